"""What is known of one latent on the fit split: counts of firings for the keys of any column.

Evidence can be narrowed to a mask (for "... inside quotation marks") or to what a first label
leaves over (for "A or B"); the counts then are those of the narrowed ground, while F1 is still
reckoned over all firings.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from analysis.config import LabelConfig
from analysis.label.columns import of_token
from analysis.label.indexed import Indexed
from analysis.splits import FitView

MAX_LIKE = 5_000
"""Positions that `Evidence.like` has, at most."""
MIN_GAIN = 0.07
"""F1 that a condition must promise, by `Evidence.gains`, for rules to be fitted under it."""
DISCOUNT = 0.75
"""Firings taken off a count before it becomes a chance (absolute discounting, Ney et al. 1994)."""


def chance(hits: int, total: int) -> float:
    """The chance of a firing where `hits` of `total` were seen, to 6 decimals."""
    return round((hits - DISCOUNT) / total, 6)


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of a column in which a latent fires."""

    ids: np.ndarray
    """`[g]`, ascending numbers of groups."""
    hits: np.ndarray
    """`[g]`: firings in each."""
    totals: np.ndarray
    """`[g]`: positions of each on the ground."""

    def where(self, keep: np.ndarray) -> "Groups":
        """Some of them: `keep [g]`, bool."""
        return Groups(self.ids[keep], self.hits[keep], self.totals[keep])


@dataclass(frozen=True, eq=False)
class Evidence:
    """One latent on the fit split, or on a part of it."""

    indexed: Indexed[FitView]
    fired: np.ndarray
    """`[m]`, int: firings on the ground, ascending."""
    n_firings: int
    """Firings on the whole split."""
    inside: np.ndarray | None = None
    """Valid positions that are the ground; none means all but `outside`."""
    outside: np.ndarray | None = None
    """Positions that a first label predicts already and are no ground."""
    n_true: int = 0
    """Firings that it predicts."""
    _groups: dict[str, Groups] = field(default_factory=dict)

    @property
    def n_predicted(self) -> int:
        """Positions that a first label predicts already."""
        return 0 if self.outside is None else len(self.outside)

    @property
    def n_ground(self) -> int:
        if self.inside is not None:
            return len(self.inside)
        return self.indexed.n_valid - self.n_predicted

    def groups(self, column: str) -> Groups:
        if column not in self._groups:
            self._groups[column] = self._count(column)
        return self._groups[column]

    def cost(self, cfg: LabelConfig) -> float:
        """Firings that a key must earn; see `LabelConfig.atom_cost`."""
        return max(float(cfg.atom_cost), cfg.atom_share * self.n_firings)

    @cached_property
    def token_hits(self) -> np.ndarray:
        """Firings on each token, `[vocabulary]`."""
        return np.bincount(self.indexed.view.tokens[self.fired], minlength=len(self.indexed.token_counts))

    @cached_property
    def token_totals(self) -> np.ndarray:
        """Positions of each token on the ground, `[vocabulary]`."""
        counts, tokens = self.indexed.token_counts, self.indexed.view.tokens
        if self.inside is not None:
            return np.bincount(tokens[self.inside], minlength=len(counts))
        if self.outside is None:
            return counts
        return counts - np.bincount(tokens[self.outside], minlength=len(counts))

    @cached_property
    def token_rates(self) -> np.ndarray:
        """Share of the positions of each token that fire, `[vocabulary]`."""
        return self.token_hits / np.maximum(self.token_totals, 1)

    def gains(self, shares: np.ndarray, grounds: np.ndarray) -> np.ndarray:
        """F1 that tokens like those that fire would gain by conditions that keep such shares of the firings, and of the
        like tokens."""
        typical = float((self.token_hits * self.token_rates).sum() / max(len(self.fired), 1))
        return 2 * shares / (1 + grounds / typical) - 2 / (1 + 1 / typical)

    @cached_property
    def like(self) -> tuple[np.ndarray, np.ndarray]:
        """(positions, weights) of tokens on the ground like those that fire, evenly over the text:
        each weighs as much as its token's share of firings."""
        view = self.indexed.view
        on = (self.token_rates > 0)[view.tokens] & view.valid
        if self.outside is not None:
            on[self.outside] = False
        positions = np.flatnonzero(on)
        positions = positions[:: len(positions) // MAX_LIKE + 1]
        return positions, self.token_rates[view.tokens[positions]]

    def narrowed(self, on: np.ndarray) -> "Evidence":
        """The evidence where the mask `on [n]` holds."""
        ground = on & self.indexed.view.valid
        if self.outside is not None:
            ground[self.outside] = False
        return replace(self, fired=self.fired[ground[self.fired]], inside=np.flatnonzero(ground), _groups={})

    def without(self, predicted: np.ndarray) -> "Evidence":
        """The evidence that is left when `predicted` positions are taken for granted."""
        taken = np.zeros(len(self.indexed.view.tokens), dtype=bool)
        taken[predicted] = True
        left = self.fired[~taken[self.fired]]
        return replace(self, fired=left, outside=predicted, n_true=self.n_firings - len(left), _groups={})

    def _count(self, column: str) -> Groups:
        entire = self.indexed.column(column)
        if (table := of_token(column)) is not None:
            return self._count_tokens(entire.keys, self.indexed.vocabulary.values(table))
        found = np.sort(entire.groups[self.fired])
        firsts = np.flatnonzero(np.append(True, found[1:] != found[:-1])[: len(found)])
        ids, hits = found[firsts], np.diff(firsts, append=len(found))
        n_groups = len(entire.keys)
        if self.inside is not None:
            totals = _tally(entire.groups[self.inside], ids, n_groups)
        else:
            totals = entire.starts[ids + 1] - entire.starts[ids]
            if self.outside is not None:
                totals = totals - _tally(entire.groups[self.outside], ids, n_groups)
        return Groups(ids, hits, totals)

    def _count_tokens(self, keys: np.ndarray, values: np.ndarray) -> Groups:
        """Groups that are sets of tokens: their counts are sums of those of the tokens."""
        hits, totals = (np.bincount(values, counts).astype(np.int64) for counts in (self.token_hits, self.token_totals))
        found = np.flatnonzero(hits)
        return Groups(np.searchsorted(keys, found + 1), hits[found], totals[found])


def _tally(groups: np.ndarray, ids: np.ndarray, n_groups: int) -> np.ndarray:
    """How often each of `ids` (ascending) is among `groups`, `[len(ids)]`."""
    if len(ids) == 0 or len(groups) * 16 > n_groups:
        return np.bincount(groups, minlength=n_groups)[ids]
    at = np.searchsorted(ids, groups)
    at[at == len(ids)] = 0
    return np.bincount(at[ids[at] == groups], minlength=len(ids))
