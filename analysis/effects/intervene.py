"""Next-token distributions under edits of one site, many edits in one forward pass.

An edit adds a multiple of a direction at one position. To the T tokens of a context n copies of tokens are
appended, one an edit: copy i has the token and the place of its position t, and an attention mask shows it the clean
tokens before t and itself. What passes through the site is changed at the copies alone, so each has the distribution
that its edit leads to, exactly, whatever layers follow; T + n tokens are computed in the place of n T.

A network has to take masks of four dimensions and position ids for this, as most causal models of transformers do. It
is tried, against plain passes, in the longest ones: some count tokens by where they stand in a pass (the windows of
GPT-Neo), or have room for so many, and take fewer copies. Where no number holds, each edit has a pass of its own.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax

from analysis.splits import View
from sae.errors import ConfigError
from sae.model import Subject
from sae.sites import Site, replaced

log = logging.getLogger(__name__)
TOLERANCE = 1e-3
"""Nats by which the two ways may differ: rounding is some 1e-5, another mask or place 0.1 and more."""
MOST_COPIES, FEWEST_COPIES = 512, 8  # of a pass: attention is quadratic in them
MAX_LOGITS = 1 << 24  # of the copies of a pass: 64 MiB of float32, of which a few live at once
N_TRIED = 3  # edits by which the ways are compared


@dataclass(frozen=True, eq=False)
class Edits:
    """What is added to a site, and where; each edit by itself."""

    owners: np.ndarray
    """`[m]`, int64: what each is to tell of, a row of some table; the network does not ask."""
    positions: np.ndarray
    """`[m]`, int64: in the view."""
    directions: np.ndarray
    """`[m]`, int64: the direction that is added, a row of the network's."""
    values: np.ndarray
    """`[m]`, float32: how much of it; what is negative is taken away."""

    def __len__(self) -> int:
        return len(self.owners)

    @classmethod
    def joined(cls, *parts: "Edits") -> "Edits":
        """Some after others."""
        names = ("owners", "positions", "directions", "values")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def sizes(self, norms: np.ndarray) -> np.ndarray:
        """How long what is added is, `[m]`, from the `norms` of the directions."""
        return np.abs(self.values) * norms[self.directions]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What some edits do to the next-token distribution, each at its position."""

    edits: np.ndarray
    """`[n]`: their numbers."""
    clean: Float[Tensor, "places vocabulary"]
    """Log-probabilities without an edit, at each position that has one."""
    at: Int[Tensor, " n"]
    """The place of each edit."""
    change: Float[Tensor, "n vocabulary"]
    """Log-probabilities with the edit, less those without."""

    def kl(self) -> Float[Tensor, " n"]:
        """KL(without ‖ with) of each edit, in nats."""
        return -(self.clean.exp()[self.at] * self.change).sum(dim=1)


class Network:
    """A causal language model and directions at one of its sites, in float32: effects are small differences.

    Args:
        directions: what can be added to the site, in its units.
        row_sizes: what they are multiplied by where the site has some rows; see `Dictionary.row_sizes`.

    Raises:
        ConfigError: the network gives no logits.
    """

    def __init__(
        self, subject: Subject, site: Site, directions: Float[Tensor, "n d"], row_sizes: Callable[[Tensor], Tensor]
    ) -> None:
        self.model, self.device, self.site = subject.model, subject.device, site
        self.directions, self._row_sizes = directions.to(subject.device), row_sizes
        self._known = inspect.signature(self.model.forward).parameters
        output = self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device))
        if not isinstance(getattr(output, "logits", None), Tensor):
            raise ConfigError(f"{type(self.model).__name__} gives no logits")
        self.vocabulary = int(output.logits.shape[-1])
        self._n_copies = min(MOST_COPIES, max(FEWEST_COPIES, MAX_LOGITS // self.vocabulary))
        self._takes_copies = self._told({"attention_mask", "position_ids"} <= set(self._known))
        self._tried = 0, 0  # tokens of the longest context, and of the longest pass, in which copies were right

    @torch.no_grad()
    def outcomes(self, view: View, edits: Edits) -> Iterator[Outcomes]:
        """The outcome of every edit, some of one context at a time."""
        for own in self._passes(view, edits):
            ids, offsets, directions, values = self._tensors(view, edits, own)
            places, at = offsets.unique(return_inverse=True)
            if self._takes_copies:
                both = self._by_copies(ids, places, offsets, directions, values)
            else:
                both = torch.cat([self._plain(ids, places), self._one_by_one(ids, offsets, directions, values)])
            clean, changed = both[: len(places)], both[len(places) :]
            yield Outcomes(own, clean, at, changed - clean[at])

    def _passes(self, view: View, edits: Edits) -> list[np.ndarray]:
        """Passes of as many copies as the network is found to take: where it does not, half as many are tried."""
        while True:
            passes = list(_passes(view, edits, self._n_copies))
            if not self._takes_copies or self._holds(view, edits, passes):
                return passes
            self._takes_copies = self._told(self._n_copies > FEWEST_COPIES)
            self._n_copies = max(FEWEST_COPIES, min(self._n_copies, max(map(len, passes))) // 2)

    def _tensors(self, view: View, edits: Edits, own: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(ids up to the last edited position, offsets, directions, values) of edits in one context, by position."""
        positions = edits.positions[own]
        start = positions[0] - view.offsets[positions[0]]
        ids = view.tokens[start : positions[-1] + 1]
        arrays = ids, positions - start, edits.directions[own], edits.values[own].astype(np.float32)
        ids, offsets, directions, values = (torch.from_numpy(array).to(self.device) for array in arrays)
        return ids, offsets, directions, values

    def _by_copies(self, ids: Tensor, places: Tensor, offsets: Tensor, directions: Tensor, values: Tensor) -> Tensor:
        """Log-probabilities at some places as they are, then under each edit; one pass."""
        n_clean, every = len(ids), torch.arange(len(ids), device=self.device)
        position_ids = torch.cat([every, offsets])
        is_seen = torch.zeros(len(position_ids), len(position_ids), dtype=torch.bool, device=self.device)
        is_seen[:, :n_clean] = every < position_ids[:, None]
        is_seen.fill_diagonal_(True)
        mask = torch.zeros(is_seen.shape, device=self.device).masked_fill_(~is_seen, torch.finfo(torch.float32).min)

        def change(x: Tensor) -> Tensor:
            copies = x[0, n_clean:]
            edited = copies + self._added(copies, directions, values)
            return torch.cat([x[0, :n_clean], edited])[None]

        with replaced(self.model, self.site, change):
            return self._log_probs(
                torch.cat([ids, ids[offsets]])[None],
                torch.cat([places, torch.arange(n_clean, len(position_ids), device=self.device)]),
                attention_mask=mask[None, None],
                position_ids=position_ids[None],
            )[0]

    def _added(self, rows: Tensor, directions: Tensor, values: Tensor) -> Tensor:
        """What the edits add to some rows of the site, one to each."""
        added = values[:, None] * self.directions[directions] * self._row_sizes(rows.float())
        return added.to(rows.dtype)

    def _plain(self, ids: Tensor, places: Tensor) -> Tensor:
        return self._log_probs(ids[None], places)[0]

    def _one_by_one(self, ids: Tensor, offsets: Tensor, directions: Tensor, values: Tensor) -> Tensor:
        """Log-probabilities under each edit, in a pass of its own."""
        found = []
        for i, offset in enumerate(offsets.tolist()):

            def change(x: Tensor, own: slice = slice(i, i + 1)) -> Tensor:
                edited = x[0, -1:] + self._added(x[0, -1:], directions[own], values[own])
                return torch.cat([x[:, :-1], edited[None]], dim=1)

            with replaced(self.model, self.site, change):
                found.append(self._plain(ids[: offset + 1], offsets[i : i + 1]))
        return torch.cat(found)

    def _log_probs(self, ids: Tensor, places: Tensor, **how: Tensor) -> Float[Tensor, "batch places vocabulary"]:
        if "logits_to_keep" in self._known:
            logits = self.model(input_ids=ids, logits_to_keep=places, **how).logits
        else:
            logits = self.model(input_ids=ids, **how).logits[:, places]
        return log_softmax(logits.float(), dim=-1)

    def _holds(self, view: View, edits: Edits, passes: list[np.ndarray]) -> bool:
        """Whether copies are right in the pass with the longest context and in the longest pass, where longer ones were
        not tried before."""
        sizes = [(length := int(view.offsets[edits.positions[own[-1]]]) + 1, length + len(own)) for own in passes]
        for longest in (0, 1):
            at = max(range(len(passes)), key=lambda i: sizes[i][longest], default=None)
            if at is not None and sizes[at][longest] > self._tried[longest]:
                if not self._try(view, edits, passes[at]):
                    return False
                self._tried = max(self._tried[0], sizes[at][0]), max(self._tried[1], sizes[at][1])
        return True

    def _try(self, view: View, edits: Edits, own: np.ndarray) -> bool:
        """Whether copies have the log-probabilities of plain passes, edited and not."""
        ids, *tensors = self._tensors(view, edits, own)
        tried = torch.linspace(0, len(own) - 1, N_TRIED, device=self.device).long()
        offsets, directions, values = (tensor[tried] for tensor in tensors)
        plain = torch.cat([self._plain(ids, offsets), self._one_by_one(ids, offsets, directions, values)])
        try:
            copied = self._by_copies(ids, offsets, *tensors)
        except (IndexError, RuntimeError, TypeError, ValueError):  # it takes a mask, but of another form
            return False
        copied = torch.cat([copied[:N_TRIED], copied[N_TRIED:][tried]])
        return bool((copied - plain).abs().max() < TOLERANCE)

    def _told(self, takes_copies: bool) -> bool:
        if not takes_copies:
            log.info(f"effects: {type(self.model).__name__} takes no mask for each token; each edit needs a pass")
        return takes_copies


def _passes(view: View, edits: Edits, most: int) -> Iterator[np.ndarray]:
    """Numbers of edits in one context, by position, at most so many; all edits once."""
    if len(edits) == 0:
        return
    order = np.argsort(edits.positions, kind="stable")
    starts = edits.positions[order] - view.offsets[edits.positions[order]]
    for own in np.split(order, np.flatnonzero(np.diff(starts)) + 1):
        yield from (part for part in np.array_split(own, -(-len(own) // most)) if len(part))
