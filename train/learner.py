"""One dictionary in training: its weights, its optimiser, and how far it has come.

It knows nothing of the architecture: it asks for the terms of a loss, steps on their sum, counts
which latents fired, and lets the dictionary do the rest.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sae import architectures, hub, kernels
from sae.architectures.configs import DictionaryConfig
from sae.config import to_json
from sae.dictionary import SAE, Dictionary, Forward, InputStats, Shape, Step
from sae.errors import ConfigError, DataError
from sae.files import write_json
from sae.model import resolve_precision
from sae.stage import SCRATCH
from sae.store import ActivationStore, Pairs, Places
from sae.team import ALONE, Team
from train import checkpoint, optim, revive
from train.checkpoint import Progress
from train.config import TrainConfig
from train.evaluate import reconstruct
from train.graphs import Graphs
from train.schedule import lr_scale

LEAST_ROOM = 64  # dead latents that others are padded to

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A dictionary that is to be learnt, alone or beside others."""

    places: Places
    sae: DictionaryConfig
    train: TrainConfig
    facts: Mapping[str, Any]
    """What should travel with it (model, digest of the model)."""
    out: Path
    name: str = ""
    """Tells it from those beside it, in logs and messages."""


class Learner:
    """`step(rows)` until `n_steps` are done, then `finish()`.

    Args:
        team: among whose processes each batch is divided. Each adds up gradients and counts with the others, so that
            all make the same step; the first writes.
        partners: among whom the latents are divided. They have the same rows, and each steps its own latents.

    Raises:
        ConfigError: dead latents are to be resampled in a dictionary that cannot do it, or latents to be divided that
            cannot be.
    """

    def __init__(
        self,
        member: Member,
        store: ActivationStore,
        n_steps: int,
        accelerator: Accelerator,
        team: Team = ALONE,
        partners: Team = ALONE,
    ) -> None:
        self.member, self.n_steps, self.accelerator = member, n_steps, accelerator
        self.team, self.partners = team, partners
        self.cfg = replace(member.train, precision=resolve_precision(member.train.precision, accelerator.device))
        self.store = store
        self.held_out = store.pairs(member.places, "select")
        outputs = member.places.outputs
        shape = Shape(
            self.held_out.widths(member.places.inputs), None if outputs is None else self.held_out.widths(outputs)
        )
        name = architectures.name_of(member.sae)
        self.dictionary = architectures.build(name, member.sae, shape)
        self.dictionary.team = team
        if self.cfg.resample_tokens and not self.dictionary.can_reseed:
            raise ConfigError(
                f"train.resample_tokens = {self.cfg.resample_tokens}: must be 0 with sae.type = {name}, whose latents "
                "cannot start again from a row"
            )
        if partners.size > 1:
            check_divisible(self.dictionary, member, partners)
        self.settings = optim.settings(self.cfg, member.sae)
        self.state = member.out / f"checkpoint{SCRATCH}"
        self.terms: dict[str, Tensor] = {}
        """Of the loss, of the last batch."""

    def start(self, pairs: Pairs, rows: Tensor, seed: int) -> None:
        """Set the first weights from a sample of rows, or go on from a checkpoint.

        Raises:
            DataError: the activations do not vary, or a site has none but zeros.
        """
        self.pairs, self.seed = pairs, seed
        x, target = pairs.pick(rows)
        if not bool((target != target[0]).any()):
            raise DataError("the activations do not vary: every row is the same; choose another site")
        places = self.member.places
        for site in places.sites:
            if not self.store.stats(site).mean_square > 0:
                raise DataError(f"the activations of {site} are all zero: choose another site")
        inputs = tuple(self.store.stats(site) for site in places.inputs)
        outputs = tuple(self.store.stats(site) for site in places.written)
        self.dictionary.initialise(InputStats(inputs, outputs, x, target), torch.Generator().manual_seed(seed))
        self.dictionary.divide(self.partners)
        self.dictionary.to(self.accelerator.device).train()
        self.optimizer = optim.build(self.dictionary, self.cfg.optimizer, self.settings)
        self.average = self._average() if self.cfg.ema else None
        silent = torch.zeros(self.member.sae.n_latents // self.partners.size, dtype=torch.long)
        self.progress = Progress(0, silent)
        if self.state.exists():
            self.progress = checkpoint.load(self.state, self.dictionary, self.optimizer, self.average)
            log.info("resuming at step %d", self.progress.step)
        self.progress.silent_tokens = self.progress.silent_tokens.to(self.accelerator.device)
        is_alike = bool(vars(type(self.dictionary)).get("steps_are_alike"))
        is_plain = self.cfg.optimizer == "adam" and self.average is None and self.team.size * self.partners.size == 1
        n_cells = -(-self.cfg.batch // self.cfg.accumulate) * self.member.sae.n_latents
        is_recorded = is_alike and is_plain and kernels.is_recordable(self.accelerator.device, n_cells)
        self._work = Graphs(self._update) if is_recorded else self._update

    def _average(self) -> AveragedModel:
        return AveragedModel(self.dictionary, multi_avg_fn=get_ema_multi_avg_fn(self.cfg.ema))

    @contextmanager
    def used(self) -> Iterator[Dictionary]:
        """The dictionary to be used; if weights are averaged their average, brought back to where the
        architecture keeps its weights: the average of unit rows is shorter than 1."""
        if self.average is not None:
            result: Dictionary = deepcopy(self.average.module)  # type: ignore[assignment]
            result.constrain()
            yield result
            return
        with self.optimizer.averaged():
            if self.optimizer.averaging is not None:
                self.dictionary.constrain()
            yield self.dictionary

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all have learnt."""
        return self.team.is_main and self.partners.is_main

    @property
    def dead(self) -> Tensor:
        """Latents that have not fired for the dead window."""
        return self.progress.silent_tokens >= dead_window(self.cfg)

    def step(self, rows: Tensor) -> None:
        """One optimiser step on the split's rows `rows`."""
        self.optimizer.set_lr(
            self.settings.lr * lr_scale(self.progress.step, self.n_steps, self.settings.warmup, self.settings.decay)
        )
        self._revive()
        self.terms = self._work(rows, self._room())
        self.progress.step += 1

    def _room(self) -> int | None:
        """See `Step.room`; 0 as long as none can be dead."""
        if self.progress.step * self.cfg.batch < dead_window(self.cfg):
            return 0
        if self.partners.size > 1:
            own = room_for(int(self.dead.sum()), len(self.dead))
            return max(own, LEAST_ROOM) if self._n_dead() else 0  # those without dead ones take part
        if self.accelerator.device.type == "cpu":
            return None
        return room_for(int(self.dead.sum()), self.member.sae.n_latents)

    def _n_dead(self) -> int:
        return int(self.partners.total(self.dead.sum()))

    def _update(self, rows: Tensor, room: int | None) -> dict[str, Tensor]:
        """All of a step that is done with tensors; returns the terms of the loss."""
        now = Step(self.progress.step, self.n_steps, self.dead, room)
        terms: dict[str, Tensor] = {}
        fired = torch.zeros_like(self.progress.silent_tokens)
        *others, last = rows.chunk(self.cfg.accumulate)
        n_rows = len(rows) * self.team.size
        for part in others:
            self._learn(part, len(part) / n_rows, now, fired, terms)
        out = self._learn(last, len(last) / n_rows, now, fired, terms)
        if self.team.size > 1:
            fired = self.team.total(fired)
            for parameter in self.dictionary.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.team.total(parameter.grad)
        self.dictionary.before_step()
        self.optimizer.step(None if self.cfg.clip is None else self._divisor(self.cfg.clip))
        self.dictionary.after_step(out)
        if self.average is not None:
            self.average.update_parameters(self.dictionary)
        self.progress.silent_tokens += n_rows
        self.progress.silent_tokens.masked_fill_(fired > 0, 0)
        return terms

    def _divisor(self, limit: float) -> Tensor:
        """What the gradient of all parameters must be divided by to have a norm of at most `limit`."""
        named = [(name, p.grad) for name, p in self.dictionary.named_parameters() if p.grad is not None]
        if self.partners.size == 1:
            norm = get_total_norm([grad for _, grad in named])
        else:
            own = [grad for name, grad in named if name in self.dictionary.per_latent]
            common = [grad for name, grad in named if name not in self.dictionary.per_latent]
            squares = [get_total_norm(some).square() for some in (own, common)]
            norm = (self.partners.total(squares[0]) + squares[1]).sqrt()
        return (norm.float() / limit).clamp_min(1)

    def _learn(self, rows: Tensor, share: float, now: Step, fired: Tensor, terms: dict[str, Tensor]) -> Forward:
        """Add a part's gradients, firing counts and terms to those of the whole batch, of which it is a `share`."""
        x, target = self.pairs.pick(rows)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.cfg.precision == "bfloat16"):
            out = self.dictionary(x, target, now)
        own = {name: share * term.float() for name, term in out.terms.items()}
        self.accelerator.backward(torch.stack(list(own.values())).sum())
        terms.update({name: terms.get(name, 0) + term.detach() for name, term in own.items()})
        fired += out.latents.firing_counts()
        return out

    def _revive(self) -> None:
        """Resample dead latents where it is time to; they count as alive again."""
        step, cfg = self.progress.step, self.cfg
        if not isinstance(self.dictionary, SAE) or not revive.is_due(
            step, self.n_steps, cfg.batch, cfg.resample_tokens
        ):
            return
        now, average = Step(step, self.n_steps, self.dead), self.average.module if self.average else None
        n_rows = min(cfg.init_rows, self.pairs.n_rows)
        latents = revive.resample(self.dictionary, average, self.optimizer, self.pairs, now, n_rows, self.seed)
        self.progress.silent_tokens[latents] = 0
        log.info("step %d: %d of %d dead latents resampled", step, len(latents), int(now.dead.sum()))

    def measure(self) -> dict[str, Any]:
        """A point of the curve: held-out figures, and the loss terms of the last batch.

        Raises:
            DataError: a term is not finite.
        """
        terms = {name: self.team.total(term).item() for name, term in self.terms.items()}
        if not all(math.isfinite(term) for term in terms.values()):
            whose = f" of {self.member.name}" if self.member.name else ""
            raise DataError(
                f"the loss{whose} is not finite at step {self.progress.step}: lower train.lr, or set train.clip"
            )
        with self.used() as used:
            figures = reconstruct(used, self.held_out, self.accelerator.device, self.cfg.evaluate_rows).result()
        losses = {f"loss/{name}": term for name, term in terms.items()}
        step, tokens = self.progress.step, self.progress.step * self.cfg.batch
        point = {"step": step, "tokens": tokens, "n_dead": self._n_dead(), **figures, **losses}
        self.progress.curve.append(point)
        return point

    def save(self) -> None:
        """Publish a checkpoint."""
        if self.team.is_main:
            checkpoint.save(self.state, self.dictionary, self.optimizer, self.average, self.progress)

    def finish(self) -> dict[str, Any]:
        """Write the dictionary and its curve; returns the box's facts."""
        places = self.member.places
        sites = {"inputs": list(places.inputs), "outputs": places.outputs and list(places.outputs)}
        # what is saved may be folded, and is not all that was chosen
        trained = {"sae": to_json(self.member.sae), "train": to_json(self.cfg) | to_json(self.settings)}
        with self.used() as used:
            whole = used.whole()
            if self.is_main:
                facts = {**self.member.facts, **sites, "trained": trained}
                hub.save(whole.folded().with_unit_rows(), facts, self.member.out)
        if self.is_main:
            write_json(self.member.out / "curve.json", self.progress.curve)
        last = self.progress.curve[-1]
        return {"steps": self.progress.step, "lr": self.settings.lr, "n_dead": last["n_dead"], "fvu": last["fvu"]}


def check_divisible(dictionary: Dictionary, member: Member, partners: Team) -> None:
    """Raises: ConfigError: the latents cannot be divided, or something else that was chosen needs all of them."""
    name, n_latents, cfg = architectures.name_of(member.sae), member.sae.n_latents, member.train
    if not vars(type(dictionary)).get("can_divide"):
        raise ConfigError(f"train.divide = latents: must be batch with sae.type = {name}")
    if n_latents % partners.size:
        raise ConfigError(
            f"sae.n_latents = {n_latents}: must be a multiple of {partners.size}, to be divided among as many processes"
        )
    others = (
        ("train.optimizer", cfg.optimizer, "adam"),
        ("train.ema", cfg.ema, 0.0),
        ("train.resample_tokens", cfg.resample_tokens, 0),
        ("sae.ghost_coef", getattr(member.sae, "ghost_coef", 0.0), 0.0),
    )
    for field, chosen, only in others:
        if chosen != only:
            raise ConfigError(f"{field} = {chosen}: must be {only} where train.divide = latents")


def room_for(n_dead: int, n_latents: int) -> int:
    """The next power of two, so that few steps differ in it."""
    return min(n_latents, max(LEAST_ROOM, 1 << (n_dead - 1).bit_length())) if n_dead else 0


def dead_window(cfg: TrainConfig) -> int:
    """Rows without a firing after which a latent is dead."""
    return cfg.dead_tokens or max(1, min(10_000_000, cfg.tokens // 10))
