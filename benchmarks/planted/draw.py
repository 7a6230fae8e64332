"""Parameters of rules, drawn from the text of the `train` split, which no label sees.

Tokens are drawn by rank of frequency on a logarithmic scale, so rare ones are there too, and places of the text evenly.
"""

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from benchmarks.planted.rules import Text

T = TypeVar("T")
N_LEAST = 120
"""Times that a token stands in the text from which rules are drawn, at least."""
EDGE = 3
"""Tokens at the start of a context from which no place is drawn."""


class Draw:
    """Parameters of rules, from a text and a stream of random numbers."""

    def __init__(self, text: Text, rng: np.random.Generator) -> None:
        self.text, self.rng = text, rng
        self.strings = text.strings
        self.stream = text.split.tokens.astype(np.int64)
        counts = np.bincount(self.stream, minlength=len(self.strings))
        common = np.flatnonzero(counts >= N_LEAST)
        common = common[np.argsort(-counts[common], kind="stable")]
        self.common = common[common != text.marker]

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def size(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, drawn on a logarithmic scale."""
        return int(np.exp(self.rng.uniform(np.log(low), np.log(high + 1))))

    def token(self) -> int:
        return int(self.common[self.size(1, len(self.common)) - 1])

    def tokens(self, n: int) -> list[int]:
        found: dict[int, None] = {}
        while len(found) < n:
            found[self.token()] = None
        return list(found)

    def word(self, pattern: str) -> str:
        """The text of a token that matches."""
        while True:
            text = self.strings[self.token()]
            if re.fullmatch(pattern, text):
                return text

    def position(self) -> int:
        """A place of the text that is not near the start of a context."""
        while True:
            at = int(self.rng.integers(len(self.stream)))
            if self.text.split.context_of(np.array([at]))[1][0] > EDGE:
                return at

    def among(self, tokens: Sequence[int]) -> np.ndarray:
        """`[vocabulary]`, bool: whether each is one of them."""
        table = np.zeros(len(self.strings), dtype=bool)
        table[list(tokens)] = True
        return table

    def like(self, pattern: str) -> np.ndarray:
        """`[vocabulary]`, bool: whether each matches."""
        return np.array([re.fullmatch(pattern, text, re.DOTALL) is not None for text in self.strings])

    def show(self, tokens: Sequence[int]) -> str:
        return ", ".join(repr(self.strings[token]) for token in tokens)
