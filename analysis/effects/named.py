"""The tokens that labels name, their controls, and how far an edit moves the ones beyond the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.effects.controls import Controls

Sign = Literal[1, -1]
Source = Literal["lens", "measured"]


@dataclass(frozen=True)
class Kind:
    """A kind of label, and where a table of candidate tokens has those that it names."""

    sign: Sign
    """1: it says that they are promoted; -1: that they are suppressed."""
    source: Source
    """How they were found: by the logit lens, or measured on the fit split."""
    start: int
    stop: int

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def verb(self) -> Literal["promotes", "suppresses"]:
        return "promotes" if self.sign > 0 else "suppresses"

    def values(self, margins: np.ndarray) -> np.ndarray:
        """Mean margin of the named tokens as the label says it, `[m]`, from those of all candidates `[m, columns]`."""
        return self.sign * margins[:, self.columns].mean(axis=1, dtype=np.float64)


def every_kind(sources: Sequence[Source], lengths: Sequence[int]) -> list[Kind]:
    """All kinds. Of each source a table has the `max(lengths)` most promoted tokens, then the most suppressed."""
    k, found = max(lengths), list[Kind]()
    signs: tuple[Sign, ...] = (1, -1)
    for source in sources:
        for sign in signs:
            start = k * (len(found) // len(lengths))
            found += [Kind(sign, source, start, start + n) for n in lengths]
    return found


@dataclass(frozen=True, eq=False)
class Named:
    """For each of some units as many tokens, each with its controls."""

    tokens: np.ndarray
    """`[n, k]`, int64."""
    controls: np.ndarray
    """`[n, k, c]`, int64; none is among the unit's tokens."""

    @classmethod
    def of(cls, tokens: np.ndarray, controls: Controls) -> "Named":
        """Tokens `[n, k]` with their controls."""
        found = [controls.of(row, row) for row in tokens]
        shape = (*tokens.shape, controls.n)
        return cls(tokens, np.concatenate(found).reshape(shape) if found else np.zeros(shape, np.int64))

    def __getitem__(self, rows: np.ndarray) -> "Named":
        return Named(self.tokens[rows], self.controls[rows])

    def margins(self, change: Float[Tensor, "m vocabulary"], rows: np.ndarray) -> Float[Tensor, "m k"]:
        """The change of each token of row `rows[i]`, less the mean change of its controls."""
        tokens, controls = (torch.from_numpy(table[rows]).to(change.device) for table in (self.tokens, self.controls))
        of_controls = change.gather(1, controls.flatten(1)).view(controls.shape)
        return change.gather(1, tokens) - of_controls.mean(dim=2)
