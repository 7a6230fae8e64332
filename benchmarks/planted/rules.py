"""What a rule is: conditions on the tokens around a position, and on what a reader has counted up to it.

Rules are written from the characters of tokens, as a person would say them; nothing here knows how labels are made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from benchmarks.planted.counters import Marks, counts, recently
from sae.tokens import TokenSplit

Bounds = tuple[str, int, int]
"""(count, low, high): low <= count < high."""


@dataclass(frozen=True, eq=False)
class Condition:
    """All of these at once; what is empty asks for nothing."""

    tokens: Mapping[int, np.ndarray] = field(default_factory=dict)
    """By offset: `[vocabulary]` bool, which tokens may stand there, within the context."""
    bounds: tuple[Bounds, ...] = ()
    soon: tuple[np.ndarray, int] | None = None
    """(table of words, n): one of them is among the n tokens up to this one."""
    sources: tuple[str, ...] = ()
    """Origins of the document."""

    def __and__(self, other: "Condition") -> "Condition":
        both = {at: table & other.tokens.get(at, True) for at, table in self.tokens.items()}
        return Condition(
            {**other.tokens, **both},
            self.bounds + other.bounds,
            self.soon or other.soon,
            self.sources or other.sources,
        )

    @property
    def is_causal(self) -> bool:
        """Whether a network that reads forwards can know it."""
        return not self.sources and max(self.tokens, default=0) <= 0


@dataclass(frozen=True, eq=False)
class Rule:
    """Any of some conditions."""

    kind: str
    text: str
    conditions: Sequence[Condition]

    @property
    def is_causal(self) -> bool:
        return all(condition.is_causal for condition in self.conditions)


@dataclass(frozen=True, eq=False)
class Text:
    """A split as rules read it, a row a context."""

    split: TokenSplit
    strings: Sequence[str]
    marker: int
    """The token that begins a document."""

    @cached_property
    def grid(self) -> torch.Tensor:
        """`[n_contexts, width]`, int64: the tokens; the marker after the end of a context that is shorter."""
        grid = torch.full(self.is_token.shape, self.marker)
        grid[torch.from_numpy(self.is_token)] = torch.from_numpy(self.split.tokens.astype(np.int64))
        return grid

    @cached_property
    def is_token(self) -> np.ndarray:
        """`[n_contexts, width]`, bool."""
        lengths = np.diff(self.split.context_starts)
        return np.arange(lengths.max()) < lengths[:, None]

    @cached_property
    def counts(self) -> dict[str, np.ndarray]:
        """Every count, `[n_contexts, width]`."""
        found = counts(self.grid, Marks.of(self.strings, self.marker))
        return {name: count.numpy() for name, count in found.items()}

    @cached_property
    def counted(self) -> np.ndarray:
        """`[n]`, bool: all positions but the first of each context, which says nothing."""
        return np.arange(self.is_token.shape[1])[None].repeat(len(self.is_token), 0)[self.is_token] > 0

    def holds(self, rule: Rule) -> np.ndarray:
        """Where the rule holds, `[n]` bool, `False` at the first position of a context."""
        return np.any([self._condition(condition) for condition in rule.conditions], axis=0) & self.counted

    def _condition(self, condition: Condition) -> np.ndarray:
        held = np.ones(self.is_token.shape, dtype=bool)
        for offset, table in condition.tokens.items():
            held &= self._at(table, offset)
        for name, low, high in condition.bounds:
            held &= (self.counts[name] >= low) & (self.counts[name] < high)
        if condition.soon is not None:
            words, n = condition.soon
            held &= recently(torch.from_numpy(words)[self.grid]).numpy() < n
        flat = held[self.is_token]
        if condition.sources:
            is_of = np.isin(self.split.documents["source"], condition.sources)
            flat &= np.repeat(is_of, np.diff(self.split.document_starts))
        return flat

    def _at(self, table: np.ndarray, offset: int) -> np.ndarray:
        """Where the token `offset` away is in the context and one of `table`."""
        own = table[self.grid.numpy()] & self.is_token
        found = np.zeros_like(own)
        width = own.shape[1]
        if offset <= 0:
            found[:, -offset:] = own[:, : width + offset]
        else:
            found[:, : width - offset] = own[:, offset:]
        return found
