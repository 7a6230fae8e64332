"""A view with everything that labels look up in it, built once and shared by all latents."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from analysis.label.columns import Column, Vocabulary, column_of
from analysis.label.forms import total_of
from analysis.label.places import PLACES, places_of
from analysis.splits import View

V = TypeVar("V", bound=View)
BLOCK_TOKENS = 16
WINDOW_BLOCKS = 4


@dataclass(frozen=True, eq=False)
class Blocks:
    """Documents cut into blocks of 16 tokens; the window of a block is it and 4 on either side."""

    of: np.ndarray
    """`[n]`, int32: block of each position."""
    starts: np.ndarray
    """`[n_blocks]`, int64: first position."""
    first: np.ndarray
    """`[n_blocks]`: first block of the window; windows do not leave the document."""
    last: np.ndarray
    """`[n_blocks]`: one after its last block."""
    n_valid: np.ndarray
    """`[n_blocks]`: valid positions."""

    def windows(self, weights: np.ndarray) -> np.ndarray:
        """Sum over each block's window of `weights [n]`, `[n_blocks]`."""
        sums = np.concatenate([[0.0], np.cumsum(np.add.reduceat(weights, self.starts, dtype=np.float64))])
        return sums[self.last] - sums[self.first]


@dataclass(frozen=True, eq=False)
class Indexed(Generic[V]):
    """A view and its columns, masks and blocks, each made at first use."""

    view: V
    vocabulary: Vocabulary
    _columns: dict[str, Column] = field(default_factory=dict)
    _parents: dict[str, np.ndarray] = field(default_factory=dict)
    _positions: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def places(self) -> dict[str, np.ndarray]:
        return places_of(self.view)

    @cached_property
    def n_valid(self) -> int:
        return int(self.view.valid.sum())

    @cached_property
    def token_counts(self) -> np.ndarray:
        """Valid positions of each token, `[vocabulary]`."""
        return np.bincount(self.view.tokens[self.view.valid], minlength=len(self.vocabulary.strings))

    @cached_property
    def form_counts(self) -> np.ndarray:
        """Valid positions of each form class, `[n_forms]`."""
        return total_of(self.vocabulary.forms.table, self.token_counts)

    @cached_property
    def all_counts(self) -> np.ndarray:
        """Positions of each token, valid or not, `[vocabulary]`."""
        return np.bincount(self.view.tokens, minlength=len(self.vocabulary.strings))

    @cached_property
    def place_masks(self) -> np.ndarray:
        """`[n_places, n]`, bool, in the order of `PLACES`, at valid positions only."""
        return np.stack([self.places[name] & self.view.valid for name in PLACES])

    @cached_property
    def place_counts(self) -> np.ndarray:
        """Valid positions of each place, `[n_places]`."""
        return self.place_masks.sum(axis=1)

    @cached_property
    def blocks(self) -> Blocks:
        return _blocks(self.view)

    def column(self, name: str) -> Column:
        if name not in self._columns:
            self._columns[name] = column_of(self.view, self.vocabulary, name)
        return self._columns[name]

    def parents(self, column: str, above: str) -> np.ndarray:
        """The group of column `above` that holds each group of the nested `column`, `[n_groups]`."""
        key = f"{column}<{above}"
        if key not in self._parents:
            fine, coarse = self.column(column), self.column(above)
            parents = np.zeros(len(fine.keys), dtype=np.int32)
            parents[fine.groups] = coarse.groups
            self._parents[key] = parents
        return self._parents[key]

    def mask(self, kind: str, name: str) -> np.ndarray:
        """`[n]`, bool: where a form class or a place holds."""
        if kind == "place":
            return self.places[name]
        return self.vocabulary.forms.table[self.view.tokens, self.vocabulary.forms.names.index(name)]

    def positions(self, kind: str, name: str) -> np.ndarray:
        """Valid positions where a form class or a place holds, ascending."""
        key = f"{kind}/{name}"
        if key not in self._positions:
            self._positions[key] = np.flatnonzero(self.mask(kind, name) & self.view.valid)
        return self._positions[key]


def _blocks(view: View) -> Blocks:
    bounds = zip(view.document_starts[:-1], view.document_starts[1:], strict=True)
    per_document = [np.arange(a, b, BLOCK_TOKENS) for a, b in bounds]
    counts = np.array([len(starts) for starts in per_document])
    starts = np.concatenate(per_document)
    ends = np.repeat(np.cumsum(counts), counts)
    begins = ends - np.repeat(counts, counts)
    at = np.arange(len(starts))
    of = np.searchsorted(starts, np.arange(len(view.tokens)), side="right") - 1
    return Blocks(
        of=of.astype(np.int32),
        starts=starts,
        first=np.maximum(at - WINDOW_BLOCKS, begins),
        last=np.minimum(at + WINDOW_BLOCKS + 1, ends),
        n_valid=np.bincount(of[view.valid], minlength=len(starts)),
    )
