"""Which keys to name so that F1 is greatest: exact pruning of nested groups.

With tp = sum of hits over the chosen groups and P = sum of their totals, F1 = 2 tp / (P + N) for N
firings. Its maximum is found by Dinkelbach's iteration: for a rate r, choose the groups that
maximise sum(hits - cost - r totals), set r = tp / (P + N), repeat. The cost of a group, in
firings, is both the price of a longer label and a discount against keys that fit by luck. In a
chain of nested columns (token, pair, triple) a group is named whole, by its parts, or not at all:
the best choice for a rate is a sum over the tree, from the leaves to the root.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from analysis.label.evidence import Evidence, Groups, chance
from analysis.label.protocol import Clause, Filter

MAX_ROUNDS = 12


@dataclass(frozen=True, eq=False)
class _Level:
    hits: np.ndarray
    totals: np.ndarray
    parent: np.ndarray
    """`[g]`: index of the group of the level above that holds this one."""


def fit_chain(
    evidence: Evidence,
    columns: Sequence[str],
    cost: float,
    filters: tuple[Filter, ...] = (),
    breadth: int = 1,
) -> tuple[Clause, ...]:
    """The clauses over nested `columns`, coarsest first, that fit the evidence best.

    Args:
        breadth: groups of the last column in which the latent must fire for a group above it to be named.
    """
    if len(evidence.fired) == 0:
        return ()
    entire = [evidence.groups(column) for column in columns]
    gainful = [group.hits > cost for group in entire]  # others gain nothing, nor does what they hold
    if not gainful[0].any():
        return ()
    groups = [group.where(keep) for group, keep in zip(entire, gainful, strict=True)]
    levels = [
        _Level(group.hits - cost, group.totals.astype(np.float64), parent)
        for group, parent in zip(groups, _parents(evidence, columns, groups), strict=True)
    ]
    if breadth > 1:
        for level, members, keep in zip(levels, _members(evidence, columns, entire), gainful, strict=False):
            level.hits[members[keep] < breadth] = 0
    chosen = _maximise(levels, evidence)
    clauses = []
    for column, group, take in zip(columns, groups, chosen, strict=True):
        if take.any():
            order = np.flatnonzero(take)
            order = order[np.argsort(-group.hits[order], kind="stable")]
            keys = evidence.indexed.column(column).keys[group.ids[order]]
            scores = [
                chance(h, t) for h, t in zip(group.hits[order].tolist(), group.totals[order].tolist(), strict=True)
            ]
            clauses.append(Clause(column, tuple(keys.tolist()), tuple(scores), filters))
    return tuple(clauses)


def _parents(evidence: Evidence, columns: Sequence[str], groups: Sequence[Groups]) -> list[np.ndarray]:
    """Of each group its place among those of the level above, `[g]`; of the first level 0."""
    parents = [np.zeros(len(groups[0].ids), dtype=np.int64)]
    for (above, fine), (coarse, group) in zip(pairwise(columns), pairwise(groups), strict=True):
        parents.append(np.searchsorted(coarse.ids, evidence.indexed.parents(fine, above)[group.ids]))
    return parents


def _members(evidence: Evidence, columns: Sequence[str], groups: Sequence[Groups]) -> list[np.ndarray]:
    """How many groups of the last column each group holds, `[g]` each, of the columns above that."""
    parents = _parents(evidence, columns, groups)
    members: list[np.ndarray] = [np.ones(len(groups[-1].ids))]
    for group, parent in zip(groups[-2::-1], parents[:0:-1], strict=True):
        members.append(np.bincount(parent, members[-1], minlength=len(group.ids)))
    return members[:0:-1]


def _maximise(levels: list[_Level], evidence: Evidence) -> list[np.ndarray]:
    """The groups to name at each level, `[g]` bool each."""
    known, base = evidence.n_true, evidence.n_predicted + evidence.n_firings
    rate = max(known / base, float(np.max((known + levels[0].hits) / (base + levels[0].totals))))
    hits, totals = np.concatenate([level.hits for level in levels]), np.concatenate([level.totals for level in levels])
    chosen = [np.zeros(len(level.hits), dtype=bool) for level in levels]
    for _ in range(MAX_ROUNDS):
        attempt = _prune(levels, rate)
        named = np.concatenate(attempt)
        found = float((known + hits[named].sum()) / (base + totals[named].sum()))
        if found < rate - 1e-12:
            break
        chosen, before, rate = attempt, rate, found
        if rate - before < 1e-12:
            break
    return chosen


def _prune(levels: list[_Level], rate: float) -> list[np.ndarray]:
    """The choice of groups that maximises sum(hits - rate * totals)."""
    whole: list[np.ndarray] = []
    below = np.zeros(len(levels[-1].hits))
    for level, above in zip(levels[::-1], [*levels[-2::-1], None], strict=True):
        gain = level.hits - rate * level.totals
        whole.append((gain > 0) & (gain >= below))
        value = np.maximum(np.maximum(gain, below), 0)
        if above is not None:
            below = np.bincount(level.parent, weights=value, minlength=len(above.hits))
    chosen, covered = [], np.zeros(1, dtype=bool)
    for level, take in zip(levels, whole[::-1], strict=True):
        inherited = covered[level.parent]
        chosen.append(take & ~inherited)
        covered = take | inherited
    return chosen
