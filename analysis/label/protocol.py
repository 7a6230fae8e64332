"""What a label is: a predictor that can be run on any text, as data.

A label is a union of parts; a part is a union of clauses, all found by one family. A clause is a
list of keys of one column, each with the chance of a firing there, cut down by filters. The score
of a position is the highest of the clauses that hold, or 0: a score > 0 predicts a firing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from analysis.config import LabelConfig
from analysis.label.evidence import Evidence
from analysis.label.indexed import Indexed, Reach, V
from sae.registry import Registry


@dataclass(frozen=True)
class Named:
    """A form class or a place by name, or where it does not hold."""

    kind: str
    """`form` or `place`."""
    name: str
    is_negated: bool = False

    def holds(self, indexed: Indexed[V], positions: np.ndarray) -> np.ndarray:
        """`[m]`, bool."""
        if self.kind == "place":
            return indexed.places.holds(self.name, positions) != self.is_negated
        column = indexed.vocabulary.forms.names.index(self.name)
        return indexed.vocabulary.forms.table[indexed.view.tokens[positions], column] != self.is_negated

    def mask(self, indexed: Indexed[V]) -> np.ndarray:
        """`[n]`, bool."""
        return indexed.mask(self.kind, self.name) != self.is_negated


@dataclass(frozen=True)
class Topic:
    """Words that abound, or are missing, in the passage or the document (see `Blocks`)."""

    words: tuple[int, ...]
    """Token ids, the most telling first."""
    weights: tuple[float, ...]
    """Log-odds of each word."""
    threshold: float
    """The mean weight of a token in the window must be at least this."""
    reach: Reach = "passage"
    """The window: some 64 tokens to either side, or the whole document."""

    def scores(self, indexed: Indexed[V]) -> np.ndarray:
        """The mean weight in each block's window, `[n_blocks]`."""
        return _window_scores(indexed, self.words, self.weights, self.reach)

    def holds(self, indexed: Indexed[V], positions: np.ndarray) -> np.ndarray:
        """`[m]`, bool."""
        return (self.scores(indexed) >= self.threshold)[indexed.blocks.of[positions]]

    def mask(self, indexed: Indexed[V]) -> np.ndarray:
        """`[n]`, bool."""
        return (self.scores(indexed) >= self.threshold)[indexed.blocks.of]


@dataclass(frozen=True)
class Recent:
    """One of some words stands a short way back in the context, or here."""

    words: tuple[int, ...]
    """Token ids."""
    reach: int
    """Tokens that are looked at, the one here among them."""

    def mask(self, indexed: Indexed[V]) -> np.ndarray:
        """`[n]`, bool."""
        return _recent_mask(indexed, self.words, self.reach)

    def holds(self, indexed: Indexed[V], positions: np.ndarray) -> np.ndarray:
        """`[m]`, bool."""
        return self.mask(indexed)[positions]


Filter = Named | Topic | Recent


@dataclass(frozen=True)
class Clause:
    """Keys of a column, each with a score, where all filters hold."""

    column: str | None
    """A name in `COLUMNS`; none: every position at which the filters hold."""
    keys: tuple[int, ...]
    scores: tuple[float, ...]
    """Chance of a firing for each key; one number where there is no column."""
    filters: tuple[Filter, ...] = ()

    def predict(self, indexed: Indexed[V]) -> tuple[np.ndarray, np.ndarray]:
        """(positions, scores), in no order."""
        filters = self.filters
        if self.column is not None:
            column = indexed.column(self.column)
            positions, scores = column.lookup(np.array(self.keys, dtype=np.int64), np.array(self.scores))
        else:
            positions, filters = _start(indexed, filters)
            scores = np.full(len(positions), self.scores[0])
        for condition in filters:
            keep = condition.holds(indexed, positions)
            positions, scores = positions[keep], scores[keep]
        return positions, scores


@dataclass(frozen=True)
class Part:
    """What one family found."""

    family: str
    clauses: tuple[Clause, ...]

    @property
    def n_atoms(self) -> int:
        """Keys and filters: the length of the description."""
        return sum(len(clause.keys) + len(clause.filters) for clause in self.clauses)


@dataclass(frozen=True)
class Label:
    """An executable label."""

    parts: tuple[Part, ...]

    @property
    def family(self) -> str:
        return "+".join(part.family for part in self.parts)

    @property
    def n_atoms(self) -> int:
        return sum(part.n_atoms for part in self.parts)

    def predict(self, indexed: Indexed[V]) -> tuple[np.ndarray, np.ndarray]:
        """(positions [m] ascending, scores [m] > 0) of the predicted firings."""
        return predict_clauses([clause for part in self.parts for clause in part.clauses], indexed)

    @classmethod
    def of_json(cls, parts: Sequence[Mapping[str, Any]]) -> "Label":
        """The label whose parts a `LabelRecord` has as its rule."""
        return cls(tuple(Part(part["family"], tuple(map(_clause, part["clauses"]))) for part in parts))


def _clause(values: Mapping[str, Any]) -> Clause:
    filters = tuple(_filter(condition) for condition in values["filters"])
    return Clause(values["column"], tuple(values["keys"]), tuple(values["scores"]), filters)


def _filter(values: Mapping[str, Any]) -> Filter:
    """Each kind of filter has a field that no other has."""
    if "weights" in values:
        return Topic(tuple(values["words"]), tuple(values["weights"]), values["threshold"], values["reach"])
    if "words" in values:
        return Recent(tuple(values["words"]), values["reach"])
    return Named(**values)


def predict_clauses(clauses: Sequence[Clause], indexed: Indexed[V]) -> tuple[np.ndarray, np.ndarray]:
    """(positions, scores) of a union of clauses; where several hold, the highest score counts."""
    if len(clauses) == 1:  # which names each position once
        positions, scores = clauses[0].predict(indexed)
        order = np.argsort(positions)
        return positions[order], scores[order]
    best = np.zeros(len(indexed.view.tokens))
    for clause in clauses:
        positions, scores = clause.predict(indexed)
        best[positions] = np.maximum(best[positions], scores)
    positions = np.flatnonzero(best > 0)
    return positions, best[positions]


Family = Callable[[Evidence, LabelConfig], list[Part]]
"""Fits candidates to the evidence of one latent on the fit split; none where it has nothing to say."""

families: Registry[Family] = Registry("label family")


@lru_cache(maxsize=4)  # the clauses of a label and its rivals share their topic
def _window_scores(indexed: Indexed, words: tuple[int, ...], weights: tuple[float, ...], reach: Reach) -> np.ndarray:
    table = np.zeros(len(indexed.vocabulary.strings))
    table[list(words)] = weights
    return indexed.blocks.means(indexed.words @ table, reach)


@lru_cache(maxsize=4)
def _recent_mask(indexed: Indexed, words: tuple[int, ...], reach: int) -> np.ndarray:
    return since_words(indexed, words) < reach


def since_words(indexed: Indexed, words: tuple[int, ...]) -> np.ndarray:
    """`[n]`, int32: tokens back to the last of some words in the context, 0 at itself; more than there are if none."""
    n = len(indexed.view.tokens)
    last = np.full(n, -n, dtype=np.int32)
    where = np.concatenate([indexed.positions_of(word) for word in words])
    last[where] = where
    back = np.arange(n, dtype=np.int32) - np.maximum.accumulate(last)
    back[back > indexed.view.offsets] = n
    return back


def _start(indexed: Indexed[V], filters: tuple[Filter, ...]) -> tuple[np.ndarray, tuple[Filter, ...]]:
    head = filters[0]
    if isinstance(head, Named) and not head.is_negated:
        return indexed.positions(head.kind, head.name), filters[1:]
    return np.flatnonzero(indexed.view.valid), filters
