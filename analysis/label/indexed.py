"""A view with everything that labels look up in it, built once and shared by all latents."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, Literal, TypeVar

import numpy as np
from scipy.sparse import csr_matrix

from analysis.label.columns import Column, Vocabulary, column_of
from analysis.label.forms import total_of
from analysis.label.places import Places
from analysis.splits import View

V = TypeVar("V", bound=View)
Reach = Literal["passage", "document"]
BLOCK_TOKENS = 16
WINDOW_BLOCKS = 4


@dataclass(frozen=True, eq=False)
class Blocks:
    """Documents cut into blocks of 16 tokens; the window of a block is it and 4 on either side, or its document."""

    of: np.ndarray
    """`[n]`, int32: block of each position."""
    starts: np.ndarray
    """`[n_blocks]`, int64: first position."""
    first: dict[Reach, np.ndarray]
    """`[n_blocks]`: first block of the window; windows do not leave the document."""
    last: dict[Reach, np.ndarray]
    """`[n_blocks]`: one after its last block."""
    sizes: np.ndarray
    """`[n_blocks]`: positions."""
    n_valid: np.ndarray
    """`[n_blocks]`: valid positions."""

    def sums(self, of_blocks: np.ndarray, reach: Reach) -> np.ndarray:
        """Sum over each block's window, `[n_blocks]`."""
        sums = np.concatenate([[0.0], np.cumsum(of_blocks, dtype=np.float64)])
        return sums[self.last[reach]] - sums[self.first[reach]]

    def means(self, of_blocks: np.ndarray, reach: Reach) -> np.ndarray:
        """Mean over the tokens of each block's window, `[n_blocks]`."""
        return self.sums(of_blocks, reach) / self.room[reach]

    @cached_property
    def room(self) -> dict[Reach, np.ndarray]:
        """Tokens in each block's window, `[n_blocks]`."""
        return {reach: self.sums(self.sizes, reach) for reach in self.first}


@dataclass(frozen=True, eq=False)
class Indexed(Generic[V]):
    """A view and its columns, masks and blocks, each made at first use."""

    view: V
    vocabulary: Vocabulary
    _columns: dict[str, Column] = field(default_factory=dict)
    _parents: dict[str, np.ndarray] = field(default_factory=dict)
    _positions: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def places(self) -> Places:
        return Places.of(self.view)

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

    def positions_of(self, token: int) -> np.ndarray:
        """Where a token is, valid or not, ascending."""
        order, starts = self._by_token
        return order[starts[token] : starts[token + 1]]

    @cached_property
    def _by_token(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.view.tokens, kind="stable").astype(np.int32)
        return order, np.concatenate([[0], np.cumsum(self.all_counts)])

    @cached_property
    def place_counts(self) -> np.ndarray:
        """Valid positions of each place, in the order of `places.NAMES`."""
        return self.places.counts(np.flatnonzero(self.view.valid))

    @cached_property
    def blocks(self) -> Blocks:
        return _blocks(self.view)

    @cached_property
    def words(self) -> csr_matrix:
        """`[n_blocks, vocabulary]`, float64: how often each token stands in each block."""
        return self._words(np.arange(len(self.view.tokens)))

    @cached_property
    def blocks_of_words(self) -> csr_matrix:
        """The same by token, `[vocabulary, n_blocks]`."""
        return self.words.T.tocsr()

    @cached_property
    def valid_words(self) -> csr_matrix:
        """`[n_blocks, vocabulary]`: the same at valid positions."""
        return self._words(np.flatnonzero(self.view.valid))

    def _words(self, positions: np.ndarray) -> csr_matrix:
        at = (self.blocks.of[positions], self.view.tokens[positions])
        shape = (len(self.blocks.starts), len(self.vocabulary.strings))
        return csr_matrix((np.ones(len(positions)), at), shape=shape)

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
            return self.places.holds(name)
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
        first={"passage": np.maximum(at - WINDOW_BLOCKS, begins), "document": begins},
        last={"passage": np.minimum(at + WINDOW_BLOCKS + 1, ends), "document": ends},
        sizes=np.diff(starts, append=len(view.tokens)),
        n_valid=np.bincount(of[view.valid], minlength=len(starts)),
    )
