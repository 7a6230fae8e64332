"""Which contexts of a split are encoded, and in what parts.

Contexts are chosen by a hash of their number, so that as many tokens of a long text as are asked for come from all
over it. A part is a group of whole contexts that is encoded by one process, and whose codes are one file: whoever makes
it, and whenever, makes the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sae.tokens import TokenSplit

PART_ROWS = 1 << 16  # so that a row's number in its part takes two bytes


@dataclass(frozen=True, eq=False)
class Part:
    """Some contexts of a split, and the rows in them that count."""

    contexts: np.ndarray
    """`[c]`, int64, ascending: their numbers in the split."""
    row_starts: np.ndarray
    """`[c + 1]`, int64: where the rows of each begin, from 0."""
    positions: np.ndarray
    """`[c]`, int64: the position of the first row of each."""
    is_kept: bool
    """Whether its codes are kept, or only summed up."""

    @property
    def n_rows(self) -> int:
        return int(self.row_starts[-1])

    def position_of(self, rows: np.ndarray) -> np.ndarray:
        """The position of each of some rows, int64."""
        context = self.context_of(rows)
        return self.positions[context] + rows - self.row_starts[context]

    def row_of(self, positions: np.ndarray) -> np.ndarray:
        """The row at each of some positions that have one."""
        context = np.searchsorted(self.positions, positions, side="right") - 1
        return self.row_starts[context] + positions - self.positions[context]

    def context_of(self, rows: np.ndarray) -> np.ndarray:
        """Which of `contexts` each of some rows lies in."""
        return np.searchsorted(self.row_starts, rows, side="right") - 1


def plan(split: TokenSplit, skip: int, n_rows: int, n_kept: int, part_rows: int = PART_ROWS) -> list[Part]:
    """Cut what is encoded of `split` into parts; those whose codes are kept come first.

    Args:
        skip: positions at the beginning of a context that do not count.
        n_rows: how many are encoded, at most; but one context at least.
        n_kept: of how many of those the codes are kept, at most; but of one context at least.
        part_rows: rows of a part, at most; but one context at least.
    """
    sizes = np.diff(split.row_starts(skip))
    order = in_hash_order(np.flatnonzero(sizes > 0))
    chosen, kept = (n_within(sizes[order], n) for n in (n_rows, n_kept))
    groups = ((np.sort(order[:kept][:chosen]), True), (np.sort(order[kept:chosen]), False))
    return [
        Part(contexts, np.append(0, np.cumsum(sizes[contexts])), split.context_starts[contexts] + skip, is_kept)
        for group, is_kept in groups
        for contexts in _cut(group, sizes, part_rows)
    ]


def _cut(contexts: np.ndarray, sizes: np.ndarray, part_rows: int) -> Iterator[np.ndarray]:
    ends, start = np.cumsum(sizes[contexts]), 0
    while start < len(contexts):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + part_rows, side="right")))
        yield contexts[start:stop]
        start = stop


def runs(part: Part, first_rows: np.ndarray) -> list[tuple[int, int]]:
    """Bounds of a part's rows among all that count of its split, of neighbours together.

    Args:
        first_rows: `[n_contexts]`, where the rows of each context of the split begin.
    """
    starts = first_rows[part.contexts]
    return merged(starts, starts + np.diff(part.row_starts))


def merged(starts: np.ndarray, stops: np.ndarray) -> list[tuple[int, int]]:
    """Ranges, ascending, of which those that touch are one; none that is empty."""
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not len(starts):
        return []
    breaks = np.flatnonzero(starts[1:] != stops[:-1]) + 1
    return list(zip(starts[np.append(0, breaks)].tolist(), stops[np.append(breaks - 1, -1)].tolist(), strict=True))


def n_within(sizes: np.ndarray, most: int) -> int:
    """How many, from the first on, have `most` together or less; but one at least."""
    return max(1, int(np.searchsorted(np.cumsum(sizes), most, side="right")))


def in_hash_order(numbers: np.ndarray) -> np.ndarray:
    """Some integers, ascending, in the order of a fixed hash of each."""
    return numbers[np.argsort(scrambled(numbers), kind="stable")]


def scrambled(numbers: np.ndarray) -> np.ndarray:
    """A fixed hash of integers, `uint64` (the finaliser of splitmix64)."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
