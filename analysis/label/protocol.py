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
from analysis.label.indexed import Indexed, V
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
            return indexed.places[self.name][positions] != self.is_negated
        column = indexed.vocabulary.forms.names.index(self.name)
        return indexed.vocabulary.forms.table[indexed.view.tokens[positions], column] != self.is_negated


@dataclass(frozen=True)
class Topic:
    """Words that abound in the window of some 64 tokens to either side (see `Blocks`)."""

    words: tuple[int, ...]
    """Token ids, the most telling first."""
    weights: tuple[float, ...]
    """Log-odds of each word."""
    threshold: float
    """The weights of the words in the window must sum to at least this."""

    def scores(self, indexed: Indexed[V]) -> np.ndarray:
        """The sum of weights in each block's window, `[n_blocks]`."""
        return _window_scores(indexed, self.words, self.weights)

    def holds(self, indexed: Indexed[V], positions: np.ndarray) -> np.ndarray:
        """`[m]`, bool."""
        return (self.scores(indexed) >= self.threshold)[indexed.blocks.of[positions]]


Filter = Named | Topic


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
    if "words" in values:
        return Topic(tuple(values["words"]), tuple(values["weights"]), values["threshold"])
    return Named(**values)


def predict_clauses(clauses: Sequence[Clause], indexed: Indexed[V]) -> tuple[np.ndarray, np.ndarray]:
    """(positions, scores) of a union of clauses; where several hold, the highest score counts."""
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
def _window_scores(indexed: Indexed, words: tuple[int, ...], weights: tuple[float, ...]) -> np.ndarray:
    table = np.zeros(len(indexed.vocabulary.strings))
    table[list(words)] = weights
    return indexed.blocks.windows(table[indexed.view.tokens])


def _start(indexed: Indexed[V], filters: tuple[Filter, ...]) -> tuple[np.ndarray, tuple[Filter, ...]]:
    head = filters[0]
    if isinstance(head, Named) and not head.is_negated:
        return indexed.positions(head.kind, head.name), filters[1:]
    return np.flatnonzero(indexed.view.valid), filters
