"""What is known of one latent on the fit split: counts of firings for the keys of any column.

Evidence can be narrowed to a mask (for "... inside quotation marks") or to what a first label
leaves over (for "A or B"); the counts then are those of the narrowed ground, while F1 is still
reckoned over all firings.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from analysis.config import LabelConfig
from analysis.label.indexed import Indexed
from analysis.splits import FitView

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

    def token_totals(self) -> np.ndarray:
        """Positions of each token on the ground, `[vocabulary]`; not for masked evidence."""
        counts, tokens = self.indexed.token_counts, self.indexed.view.tokens
        if self.outside is None:
            return counts
        return counts - np.bincount(tokens[self.outside], minlength=len(counts))

    def masked(self, inside: np.ndarray) -> "Evidence":
        """The evidence at the valid positions `inside` alone."""
        on = np.zeros(len(self.indexed.view.tokens), dtype=bool)
        on[inside] = True
        return replace(self, fired=self.fired[on[self.fired]], inside=inside, _groups={})

    def without(self, predicted: np.ndarray) -> "Evidence":
        """The evidence that is left when `predicted` positions are taken for granted."""
        taken = np.zeros(len(self.indexed.view.tokens), dtype=bool)
        taken[predicted] = True
        left = self.fired[~taken[self.fired]]
        return replace(self, fired=left, outside=predicted, n_true=self.n_firings - len(left), _groups={})

    def _count(self, column: str) -> Groups:
        entire = self.indexed.column(column)
        ids, hits = np.unique(entire.groups[self.fired], return_counts=True)
        n_groups = len(entire.keys)
        if self.inside is not None:
            totals = _tally(entire.groups[self.inside], ids, n_groups)
        else:
            totals = entire.starts[ids + 1] - entire.starts[ids]
            if self.outside is not None:
                totals = totals - _tally(entire.groups[self.outside], ids, n_groups)
        return Groups(ids, hits, totals)


def _tally(groups: np.ndarray, ids: np.ndarray, n_groups: int) -> np.ndarray:
    """How often each of `ids` (ascending) is among `groups`, `[len(ids)]`."""
    if len(ids) == 0 or len(groups) * 16 > n_groups:
        return np.bincount(groups, minlength=n_groups)[ids]
    at = np.searchsorted(ids, groups)
    at[at == len(ids)] = 0
    return np.bincount(at[ids[at] == groups], minlength=len(ids))
