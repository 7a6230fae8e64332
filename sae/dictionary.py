"""What a dictionary is: an encoder to sparse latents, a decoder back, and a training loss.

A variant is a final subclass that says which pre-activations it selects, what it adds to the
loss, and what it does after a step. The trainer, the files and the analysis know only this file.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from sae import kernels
from sae.architectures.configs import DecoderNorm, SAEConfig
from sae.errors import ConfigError
from sae.latents import Latents
from sae.losses import auxk, ghost, squared_error
from sae.scaling import RowScale, Scaling, SiteStats
from sae.select import Selection, TopK
from sae.team import ALONE, Team
from sae.weights import centre, first_directions, normalise_rows, remove_parallel_gradient, rms_norm

NEVER = -1e30  # a bias with which a latent does not fire
FIT_ROWS, FIT_CHUNK = 4096, 512  # of the sample, by which the encoder's size is set
WRITTEN = 4096  # latents at a time


@dataclass(frozen=True)
class Shape:
    """Widths of the sites that a dictionary reads, and of those that it writes, side by side."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...] | None = None
    """None: it writes what it reads. Otherwise it is a transcoder."""

    @property
    def d_in(self) -> int:
        return sum(self.inputs)

    @property
    def d_out(self) -> int:
        return sum(self.inputs if self.outputs is None else self.outputs)


@dataclass(frozen=True)
class Step:
    """All that a loss may know of the training run."""

    index: int
    n_steps: int
    dead: Bool[Tensor, " n_latents"]
    """Latents that have not fired for the dead window."""
    room: int | None = None
    """A number of latents that the dead ones are padded to, at least theirs; none: to none. With it nothing in the pass
    asks a GPU how many there are."""

    def warm(self, share: float) -> float:
        """A factor that rises linearly to 1 over the first `share` of the run; its first value is not 0."""
        steps = share * self.n_steps
        return min(1.0, (self.index + 1) / steps) if steps >= 1 else 1.0


@dataclass(frozen=True)
class Forward:
    """All that comes out of a training forward pass, in the dictionary's own units."""

    x: Float[Tensor, "batch d_in"]
    target: Float[Tensor, "batch d_out"]
    latents: Latents
    recon: Float[Tensor, "batch d_out"]
    terms: dict[str, Tensor]
    """Weighted terms of the loss by name; their sum is minimised."""
    skipped: Float[Tensor, "batch d_in"] | None = None
    """What a linear path beside the latents reads, where there can be one."""
    sizes: Float[Tensor, " n_latents"] | None = None
    """Weights with which the latents competed (`SAE.sizes`)."""

    @property
    def strengths(self) -> Float[Tensor, " nnz"]:
        """The latents' values, outside autograd, weighted as they competed."""
        values = self.latents.values.detach()
        return values if self.sizes is None else values * self.latents.pick(self.sizes)


@dataclass(frozen=True)
class InputStats:
    """What a dictionary is told of its data before it is trained, in the network's units."""

    inputs: tuple[SiteStats, ...]
    outputs: tuple[SiteStats, ...]
    """Of the sites that it writes; the same as `inputs` unless it is a transcoder."""
    x: Float[Tensor, "n d_in"]
    """A sample of rows."""
    target: Float[Tensor, "n d_out"]
    """What they should become; the same rows unless it is a transcoder."""


class Dictionary(nn.Module, ABC):
    """A trainable basis. `encode`, `decode` and `reconstruct` speak the network's own units."""

    can_reseed: ClassVar[bool] = False
    """Whether it has `reseed`, and a latent with its weights can fire on the row that it was given."""
    steps_are_alike: ClassVar[bool] = False
    """Whether no value decides how large a tensor of its pass is, and none depends on the step's number: a GPU can
    then record a step. Each class says it for itself: it is not inherited."""
    can_divide: ClassVar[bool] = False
    """Whether its latents can be divided among processes: what is summed over latents, and what is chosen among them,
    it asks the partners. Each class says it for itself: it is not inherited."""
    per_latent: ClassVar[tuple[str, ...]] = ()
    """Parameters with a row for each latent."""
    cfg: Any
    shape: Shape
    team: Team = ALONE
    """In training, the processes among which a batch is divided: a pass is of this one's rows, as many as the others',
    and what it takes from a whole batch it asks the team."""
    partners: Team = ALONE
    """In training, those among which the latents are divided (`divide`): all have the same rows, each its latents."""

    @property
    @abstractmethod
    def directions(self) -> Float[Tensor, "n_latents d_out"]:
        """What each latent writes."""

    @abstractmethod
    def initialise(self, stats: InputStats, generator: torch.Generator) -> None:
        """Set the weights before training, from what is known of the data."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Latents: ...

    @abstractmethod
    def decode(self, latents: Latents) -> Float[Tensor, "batch d_out"]:
        """What the latents alone say of the output; see `reconstruct` for all of it."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"], step: Step) -> Forward:
        """The training forward pass; `target` is `x` unless it is a transcoder."""

    def reconstruct(self, x: Float[Tensor, "batch d_in"]) -> tuple[Latents, Float[Tensor, "batch d_out"]]:
        """The latents of each row and the output that they stand for."""
        latents = self.encode(x)
        return latents, self.decode(latents)

    @torch.no_grad()
    def written(self) -> Float[Tensor, "n_latents d_out"]:
        """What each latent adds to the output for each unit of activation, in the network's units; where rows are
        normalised one by one, times `row_sizes`."""
        n, device, parts = len(self.directions), self.directions.device, []
        for latents in torch.arange(n, device=device).split(WRITTEN):
            ones, bounds = torch.ones(len(latents), device=device), torch.arange(len(latents) + 1, device=device)
            alone = Latents(ones, latents, bounds, ones, n)
            parts.append(self.decode(alone) - self.decode(alone.with_values(torch.zeros_like(ones))))
        return torch.cat(parts)

    def row_sizes(self, x: Float[Tensor, "batch d_out"]) -> Float[Tensor, "batch 1"]:
        """What outputs are multiplied by where rows are normalised one by one: the sizes of the rows that are there."""
        return x.new_ones(len(x), 1)

    @torch.no_grad()
    def divide(self, partners: Team) -> None:
        """Keep this process's part of the latents. What is summed over latents is asked of the partners from now on:
        all make the same passes, and get the same reconstructions and losses."""
        self.partners = partners
        for name in self.per_latent if partners.size > 1 else ():
            parameter = self.get_parameter(name)
            parameter.data = partners.own(parameter.data).clone()

    def whole(self) -> "Dictionary":
        """All latents again: on the first process, on its CPU; on the others what they have."""
        if self.partners.size == 1:
            return self
        state = self.state_dict()
        state |= {name: self.partners.whole(state[name]) for name in self.per_latent}
        if not self.partners.is_main:
            return self
        result = type(self)(self.cfg, self.shape)  # type: ignore[call-arg] # as all are built
        result.load_state_dict(state)
        return result.train(self.training)

    def units(self) -> Mapping[str, float]:
        """By parameter, the size of what it is measured in where that is not 1; known once initialised.

        Biases are measured in the data: the optimiser's steps are as many times larger, so that what is learnt
        does not depend on how the data are scaled. So are thresholds, but larger steps do not become them:
        their straight-through gradients are noise for the most part.
        """
        return {}

    def before_step(self) -> None:
        """What is to be done with the gradients before they are clipped and applied."""

    def constrain(self) -> None:
        """Bring the weights back to where the architecture keeps them, after a step or an average of weights."""

    def after_step(self, out: Forward) -> None:  # noqa: ARG002 - for variants
        """What is to be done after each optimiser step on the pass `out`."""
        self.constrain()

    def folded(self) -> "Dictionary":
        """The same reconstructions, with what served its training only folded into the weights."""
        return self

    def with_unit_rows(self) -> "Dictionary":
        """The same output by latents whose decoder rows have norm 1 (Conerly et al. 2024, after training), where
        the encoder can take up the former norms; latents are then as large as what they write. Crosscoders keep
        theirs, which are compared by site."""
        return self


class SAE(Dictionary):
    """One linear encoder and one linear decoder; subclasses are final.

    `pre = (s x - b_pre) W_enc^T + b_enc;  f = select(pre);  x_hat = (f W_dec + b_dec) / s`

    with `b_pre = b_dec` where the pre-bias is on. Both matrices have a row for each latent, which
    is contiguous. A transcoder (Dunefsky et al. 2024, arXiv:2406.11944) is the same with another
    target: it has no pre-bias, and may have a linear path beside its latents, `+ s x W_skip^T`
    (Paulo et al. 2025, arXiv:2501.18823). Where rows are normalised one by one this path takes them as
    they are, for the output is as large as it is.
    """

    is_normalised: ClassVar[bool]
    """Whether the squared error is divided by the variance of the target (Gao) or not (Anthropic)."""
    folds: ClassVar[tuple[DecoderNorm, ...]] = ()
    """Values of `sae.decoder` with which the encoder can take up the norms of the decoder's rows: a latent whose
    encoder row and biases are scaled is then scaled by the same factor, and it alone."""
    per_latent: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "W_dec")
    can_reseed: ClassVar[bool] = True
    cfg: SAEConfig

    def __init__(self, cfg: SAEConfig, shape: Shape) -> None:
        super().__init__()
        self.cfg, self.shape = cfg, shape
        self.W_enc = nn.Parameter(torch.zeros(cfg.n_latents, shape.d_in))
        self.b_enc = nn.Parameter(torch.zeros(cfg.n_latents))
        self.W_dec = nn.Parameter(torch.zeros(cfg.n_latents, shape.d_out))
        self.b_dec = nn.Parameter(torch.zeros(shape.d_out))
        if cfg.decoder == "folded" and "folded" not in self.folds:
            raise ConfigError(f"sae.decoder = 'folded': must be unit or free, {type(self).__name__} does not fold")
        if cfg.skip and shape.outputs is None:
            raise ConfigError("sae.skip = true: must be false unless train.target names another site than train.site")
        self.W_skip = nn.Parameter(torch.zeros(shape.d_out, shape.d_in)) if cfg.skip else None
        self.register_buffer("variance", torch.ones(()))
        self.variance: Tensor
        self.input_size = self.target_size = 1.0  # root mean square of a row's norm at one site
        self.scaling = Scaling(cfg.normalise, shape.inputs)
        # what is written has no row's own scale at hand: it is read from the input
        by_site = "mean_norm" if cfg.normalise in ("layer_norm", "row_norm") else cfg.normalise
        self.target_scaling = None if shape.outputs is None else Scaling(by_site, shape.outputs)

    @abstractmethod
    def selection(self) -> Selection:
        """How latents are chosen now, in training or for use (`self.training`)."""

    def errors(self, latents: Latents, skipped: Tensor | None, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstruction, and terms of the loss that are errors; `mse` is its own."""
        recon = self._decode(latents, skipped)
        return recon, {"mse": self._error(recon, target)}

    def penalties(self, out: Forward, step: Step) -> Mapping[str, Tensor]:  # noqa: ARG002 - for variants
        """Terms that the variant adds to the loss, weighted, by name."""
        return {}

    @property
    def directions(self) -> Float[Tensor, "n_latents d_out"]:
        return self.W_dec

    @property
    def sizes(self) -> Float[Tensor, " n_latents"] | None:
        """Weights, constants, with which latents compete where few may fire, as the decoder is now; None: each by its
        own value."""
        return self.W_dec.detach().norm(dim=1) if self.cfg.decoder == "folded" else None

    @property
    def b_pre(self) -> Tensor | None:
        """What is subtracted from scaled inputs."""
        return self.partners.shared(self.b_dec) if self.cfg.pre_bias and self.shape.outputs is None else None

    @torch.no_grad()
    def initialise(self, stats: InputStats, generator: torch.Generator) -> None:
        """Scalars, sizes and variance of the data; then the first weights, and the encoder's size."""
        self.scaling.fit(stats.inputs, stats.x)
        x = target = self._enter(stats.x)[0]
        if self.target_scaling is not None:
            self.target_scaling.fit(stats.outputs, stats.target)
            target = self.target_scaling.enter(stats.target)
        self.input_size = rms_norm(x, len(self.shape.inputs))
        self.target_size = rms_norm(target, len(self.shape.outputs or self.shape.inputs))
        self.variance.copy_(target.double().var(dim=0, correction=0).sum())
        self.first_weights(x, target, generator)
        if self.cfg.fits_encoder and (self.target_scaling is None or self.cfg.init_decoder == "data"):
            held_out = _n_held_out(x)
            self._fit_encoder(x[:held_out], target[:held_out])

    def first_weights(
        self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"], generator: torch.Generator
    ) -> None:
        """Decoder directions of one norm, the encoder their copy, biases by the configuration.

        A transcoder's encoder has directions of its own, and its biases make the mean input give
        the mean output and no latent (Paulo et al. 2025, §A).

        Args:
            x: a sample of rows, in the dictionary's units, as `target`.
        """
        held_out = _n_held_out(x)
        self.b_dec.copy_(centre(target, self.cfg.init_bias if self.target_scaling is None else "mean"))
        self.first_matrices(x[held_out:], target[held_out:], generator)
        if self.target_scaling is not None:
            self._shift_pre_acts(-(x.double().mean(0) @ self.W_enc.double().T))

    def first_matrices(self, x: Tensor, target: Tensor, generator: torch.Generator) -> None:
        """Rows of norm 1, or of `init_norm` where they are free, in directions of the data or in random ones. A
        transcoder's latent reads a row and writes that row's target."""
        matrices, sides = [self.W_dec], [target]
        if self.target_scaling is not None:
            matrices, sides = [self.W_dec, self.W_enc], [target, x]
        found = first_directions(sides, self.cfg.n_latents, self.cfg.init_decoder, generator, self.row_groups(x))
        norm = 1.0 if self.cfg.decoder == "unit" else self.cfg.init_norm
        for matrix, unit in zip(matrices, found, strict=True):
            matrix.copy_(norm * unit)
        if self.target_scaling is None:
            # of neurons the encoder undoes what the decoder does
            self.W_enc.copy_(self.W_dec / norm**2 if self.cfg.init_decoder == "identity" else self.W_dec)

    def row_groups(self, x: Float[Tensor, "n d_in"]) -> Sequence[Int[Tensor, " _"]]:  # noqa: ARG002 - for variants
        """Numbers of the rows that equal parts of the latents may point to at first; nothing: all to any."""
        return ()

    def _fit_encoder(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> None:
        """Scale the encoder so that the first reconstructions of rows that no latent points to are right in size: in
        the direction of the data many latents fire a little, and their sum is too long, or, where few may fire, too
        short."""
        along, square, select = 0.0, 0.0, self.selection()
        for rows, wanted in zip(x.split(FIT_CHUNK), target.split(FIT_CHUNK), strict=True):
            recon = kernels.decode(self._encode(rows, select), self.W_dec)
            along += (recon * (wanted - self.b_dec)).sum().item()
            square += recon.square().sum().item()
        if along > 0:
            self.W_enc.mul_(along / square)
            self._shift_pre_acts((along / square - 1) * self.b_enc)

    def units(self) -> Mapping[str, float]:
        return {"b_enc": self.input_size, "b_dec": self.target_size}

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Latents:
        return self._encode(self._enter(x)[0], self.selection()).of_all(self.partners)

    def decode(self, latents: Latents) -> Float[Tensor, "batch d_out"]:
        if self.partners.size > 1:
            raise RuntimeError("a dictionary whose latents are divided reconstructs, and does not decode")
        return self._leave(kernels.decode(latents, self.W_dec) + self.b_dec, None)

    def reconstruct(self, x: Float[Tensor, "batch d_in"]) -> tuple[Latents, Float[Tensor, "batch d_out"]]:
        scaled, rows = self._enter(x)
        latents = self._encode(scaled, self.selection())
        recon = self._leave(self._decode(latents, self._skipped(x, scaled)), rows)
        return latents.of_all(self.partners), recon

    def row_sizes(self, x: Float[Tensor, "batch d_out"]) -> Float[Tensor, "batch 1"]:
        rows = self.scaling.rows(x) if self.target_scaling is None else None
        return super().row_sizes(x) if rows is None else rows.size

    def forward(self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"], step: Step) -> Forward:
        scaled = self._enter(x)[0]
        target = scaled if self.target_scaling is None else self.target_scaling.enter(target)
        select = self.selection()
        latents, skipped = self._encode(scaled, select), self._skipped(x, scaled)
        recon, terms = self.errors(latents, skipped, target)
        out = Forward(scaled, target, latents, recon, terms, skipped, select.sizes)
        terms.update(self._revival(out, step))
        terms.update(self.penalties(out, step))
        return out

    def _enter(self, x: Tensor) -> tuple[Tensor, RowScale | None]:
        rows = self.scaling.rows(x)
        return self.scaling.enter(x, rows), rows

    def _leave(self, recon: Tensor, rows: RowScale | None) -> Tensor:
        if self.target_scaling is not None:
            return self.target_scaling.leave(recon)
        return self.scaling.leave(recon, rows)

    def _encode(self, scaled: Tensor, select: Selection) -> Latents:
        return kernels.encode(scaled, self.W_enc, self.b_enc, self.b_pre, select, self.training)

    def _skipped(self, x: Tensor, scaled: Tensor) -> Tensor:
        return x if self.cfg.normalise in ("layer_norm", "row_norm") else scaled

    def _decode(self, latents: Latents, skipped: Tensor | None) -> Tensor:
        return self._written(latents, self.W_dec) + self._silent(skipped)

    def _silent(self, skipped: Tensor | None) -> Tensor:
        """The reconstruction without any latent."""
        return self.b_dec if self.W_skip is None or skipped is None else self.b_dec + skipped @ self.W_skip.T

    def _written(self, latents: Latents, W_dec: Tensor) -> Tensor:
        """What all latents write, those of the partners too."""
        return self.partners.summed(kernels.decode(latents, W_dec))

    def _error(self, recon: Tensor, target: Tensor) -> Tensor:
        error = squared_error(recon, target)
        return error / self.variance if self.is_normalised else error

    def _revival(self, out: Forward, step: Step) -> Mapping[str, Tensor]:
        """Terms by which dead latents learn from what the live ones missed."""
        dead, b_enc = self._dead(step)
        if len(dead) == 0:
            return {}
        terms, residual = {}, out.target - out.recon
        limit = self.shape.d_out // 2 if self.cfg.auxk is None else self.cfg.auxk
        if self.cfg.auxk_coef > 0 and limit > 0:
            k = limit if self.partners.size > 1 else min(limit, len(dead))
            select = TopK(k, None if out.sizes is None else out.sizes[dead], self.partners)
            W_enc, W_dec = self.W_enc.index_select(0, dead), self.W_dec.index_select(0, dead)
            recon = kernels.topk_recon(out.x, W_enc, b_enc, self.b_pre, W_dec, select)
            unit = 1.0 if self.is_normalised else self.variance
            terms["auxk"] = self.cfg.auxk_coef * unit * auxk(residual, self.partners.summed(recon), self.team)
        if self.cfg.ghost_coef > 0:
            centred = out.x if self.b_pre is None else out.x - self.b_pre
            pre_acts = torch.addmm(b_enc, centred, self.W_enc[dead].T)
            # a factor of a row does not change the term, so none of its exponentials need overflow or vanish
            ghosts = (pre_acts - pre_acts.detach().amax(dim=1, keepdim=True)).exp()
            recon = ghosts @ self.W_dec[dead]
            terms["ghost"] = self.cfg.ghost_coef * ghost(residual, recon, out.terms["mse"], self.team)
        return terms

    def _dead(self, step: Step) -> tuple[Int[Tensor, " dead"], Float[Tensor, " dead"]]:
        """Dead latents and their encoder biases; others pad them, and never fire."""
        if step.room is None:
            dead = torch.nonzero(step.dead).flatten()
            return dead, self.b_enc[dead]
        dead = (~step.dead).int().argsort(stable=True)[: step.room]
        return dead, torch.where(step.dead[dead], self.b_enc[dead], NEVER)

    def before_step(self) -> None:
        if self.cfg.decoder == "unit":
            remove_parallel_gradient(self.W_dec)

    def constrain(self) -> None:
        if self.cfg.decoder == "unit":
            normalise_rows(self.W_dec)

    @torch.no_grad()
    def reseed(self, latents: Int[Tensor, " m"], x: Float[Tensor, "m d_in"], target: Float[Tensor, "m d_out"]) -> None:
        """Let dead latents start again at rows that are badly reconstructed (Bricken et al. 2023,
        "Neuron resampling"): the decoder points at the row, with norm 1 or, where norms are free, the mean of the
        others'; the encoder too, at a fifth of their mean norm; its bias is 0. The input is in the network's units."""
        scaled = self._enter(x)[0]
        target = scaled if self.target_scaling is None else self.target_scaling.enter(target)
        is_alive = torch.ones(len(self.W_enc), dtype=torch.bool, device=self.W_enc.device)
        is_alive[latents] = False
        read, written = (
            matrix[is_alive].norm(dim=1).mean() if bool(is_alive.any()) else matrix.new_ones(())
            for matrix in (self.W_enc, self.W_dec)
        )
        norm = 1.0 if self.cfg.decoder == "unit" else written
        self.W_dec[latents] = norm * normalize(target - self.b_dec, dim=1)
        self.W_enc[latents] = 0.2 * read * normalize(scaled if self.b_pre is None else scaled - self.b_pre, dim=1)
        self.b_enc[latents] = 0

    def _shift_pre_acts(self, by: Tensor) -> None:
        """Add a constant to every latent's pre-activation, through the biases."""
        self.b_enc.add_(by)

    def _scale_latents(self, by: Tensor) -> None:
        """Multiply every latent by a factor of its own, not negative, through the encoder."""
        self.W_enc.mul_(by[:, None])
        self.b_enc.mul_(by)

    @torch.no_grad()
    def with_unit_rows(self) -> "SAE":
        if self.cfg.decoder not in self.folds:
            return self
        norms, competes = self.W_dec.norm(dim=1), self.cfg.decoder == "folded"
        if not competes:
            norms[norms == 0] = 1  # a latent that writes nothing still fires; where latents compete by norm, never
            if bool(((norms - 1).abs() < 1e-4).all()):
                return self
        plain = deepcopy(self)
        plain._scale_latents(norms)
        normalise_rows(plain.W_dec)
        if competes:
            plain.cfg = replace(self.cfg, decoder="unit", init_norm=type(self.cfg).init_norm)
        return plain

    @torch.no_grad()
    def folded(self) -> "SAE":
        """The same reconstructions without norms of the decoder's rows by which latents compete, which the latents take
        up, and without its whitening: `W_enc C^(-1/2)`, `W_dec C^(1/2)`, biases moved."""
        if self.cfg.decoder == "folded":
            return self.with_unit_rows().folded()
        if self.cfg.normalise != "whiten":
            return self
        plain = type(self)(replace(self.cfg, normalise="none"), self.shape).to(self.W_enc.device)
        source = {k: v for k, v in self.state_dict().items() if not k.startswith(("scaling.", "target_scaling."))}
        plain.load_state_dict(source, strict=False)
        into, out_of = self.scaling, self.target_scaling or self.scaling
        # in float64, and shifts by the weights as they are stored: whitened means can be far from 0
        matrix, mean = into.matrix.double(), into.mean.double()
        inverse = out_of.inverse.double()
        plain.W_enc.copy_(self.W_enc.double() @ matrix)
        if self.b_pre is None:
            plain._shift_pre_acts(-(plain.W_enc.double() @ mean))
        plain.W_dec.copy_(self.W_dec.double() @ inverse)
        b_dec = self.b_dec.double() @ inverse + out_of.mean.double()
        if self.W_skip is not None and plain.W_skip is not None:
            plain.W_skip.copy_(inverse @ self.W_skip.double() @ matrix)
            b_dec -= plain.W_skip.double() @ mean
        plain.b_dec.copy_(b_dec)
        return plain.train(self.training)


def _n_held_out(x: Tensor) -> int:
    """How many rows of a sample, its first, set the encoder's size; directions are those of the others."""
    return min(FIT_ROWS, len(x) // 2)
