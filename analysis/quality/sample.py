"""The text on which a dictionary is measured, and the independent units in it that are resampled.

Whole contexts, chosen by a hash from all over a split, so that some of a long text are no worse than all of it. Figures
of neighbouring tokens depend on each other; documents do not, so intervals come from drawing documents anew.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.codes import spread_out
from analysis.parts import in_hash_order, merged, n_within
from sae.tokens import TokenSplit

FEWEST_DOCUMENTS = 20
"""Of fewer, contexts are drawn instead: the spread of a handful of documents cannot be told."""
MOST_GROUPS = 8192
"""Units that are drawn, at most; of more, neighbours are drawn together. It bounds what is kept of each unit."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Some contexts of a split."""

    split: TokenSplit
    """Of these contexts alone; a document of which parts are missing is several, see `documents`."""
    bounds: list[tuple[int, int]]
    """Bounds of their rows among all of the whole split, ascending."""
    documents: np.ndarray
    """`[n_tokens]`, int64: the document of each position, by its number in the whole split."""
    groups: np.ndarray
    """`[n_tokens]`, int64: the unit that each position is drawn with, from 0."""
    unit: Literal["documents", "contexts"]
    n_wanted: int
    """Tokens that were asked for."""
    n_there: int
    """Tokens of the whole split."""

    @property
    def n_groups(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def n_documents(self) -> int:
        return len(np.unique(self.documents))

    @property
    def n_tokens(self) -> int:
        return len(self.split.tokens)

    def facts(self) -> dict[str, int | str]:
        """As JSON."""
        return {
            "split": self.split.name,
            "tokens": self.n_tokens,
            "tokens_wanted": self.n_wanted,
            "tokens_there": self.n_there,
            "documents": self.n_documents,
            "resampled": self.unit,
            "n_resampled": self.n_groups,
        }

    def describe(self) -> str:
        """What was measured, and why it is not more."""
        of = f"{self.n_tokens:,} held-out tokens of {self.n_documents:,} documents"
        if self.n_there < self.n_wanted:
            return f"{of}: all that there are; {self.n_wanted:,} were asked for"
        return of


def sample(split: TokenSplit, skip: int, n_tokens: int) -> Sample:
    """Contexts of `split` with at most `n_tokens` tokens in all, but one at least; all, if it has no more.

    Args:
        skip: positions at the beginning of a context that have no row.
    """
    lengths = np.diff(split.context_starts)
    order = in_hash_order(np.arange(len(lengths)))
    contexts = np.sort(order[: n_within(lengths[order], n_tokens)])
    positions = spread_out(split.context_starts[contexts], lengths[contexts])
    documents = split.locate(positions)[0]
    chosen = TokenSplit(
        split.name,
        split.tokens[positions],
        np.append(np.flatnonzero(_begins(positions, documents)), len(positions)),
        np.append(0, np.cumsum(lengths[contexts])),
        {},
    )
    row_starts = split.row_starts(skip)
    bounds = merged(row_starts[contexts], row_starts[contexts + 1])
    known = np.unique(documents, return_inverse=True)[1]
    unit: Literal["documents", "contexts"] = "documents"
    if known.max() + 1 < min(FEWEST_DOCUMENTS, len(contexts)):
        unit, known = "contexts", np.repeat(np.arange(len(contexts)), lengths[contexts])
    n_units = int(known.max()) + 1
    groups = known * MOST_GROUPS // n_units if n_units > MOST_GROUPS else known
    return Sample(chosen, bounds, documents, groups.astype(np.int64), unit, n_tokens, len(split.tokens))


def _begins(positions: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Whether a document, or a part of one that is left, begins at each position."""
    begins = np.ones(len(positions), dtype=bool)
    begins[1:] = (np.diff(documents) != 0) | (np.diff(positions) != 1)
    return begins
