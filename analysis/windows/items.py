"""Questions about windows: does the latent fire in it, and are the marked tokens where it fires?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.codes import spread_out
from analysis.index.tables import Lists

Task = Literal["detection", "fuzzing"]
TASKS: tuple[Task, ...] = ("detection", "fuzzing")
KINDS = ("fires", "random", "same_trigger", "neighbour", "elsewhere")
"""Of windows: the latent fires, with its firings marked; or it is silent, and

`random`: in any such window, random tokens are marked;
`same_trigger`: a token that a firing window peaks at stands in it, and is marked;
`neighbour`: a latent with a direction like its own fires, and its firings are marked;
`elsewhere` (fuzzing only): it does fire, but tokens at which it does not are marked.
"""
FIRES, RANDOM, SAME_TRIGGER, NEIGHBOUR, ELSEWHERE = range(len(KINDS))
YES, NO, UNANSWERED = 1, 0, -1


def negatives(task: Task) -> tuple[str, ...]:
    """The kinds of windows at which the right answer is no."""
    return KINDS[1:ELSEWHERE] if task == "detection" else KINDS[1:]


@dataclass(frozen=True, eq=False)
class Items:
    """Windows of one latent with marked tokens, m of them."""

    windows: np.ndarray
    """`[m]`: number in the grid."""
    starts: np.ndarray
    """`[m]`: first position."""
    stops: np.ndarray
    kinds: np.ndarray
    """`[m]`, int8: index into `KINDS`."""
    marks: Lists
    """Positions of the marked tokens of each, at least one."""

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def fires(self) -> np.ndarray:
        """`[m]`, bool: whether the right answer is yes."""
        return self.kinds == FIRES

    def count(self, kind: str) -> int:
        return int((self.kinds == KINDS.index(kind)).sum())

    def take(self, which: np.ndarray) -> "Items":
        """Some of them, in that order."""
        sizes = np.diff(self.marks.offsets)[which]
        marks = Lists.of_sizes(sizes, self.marks.flat[spread_out(self.marks.offsets[which], sizes)])
        return Items(self.windows[which], self.starts[which], self.stops[which], self.kinds[which], marks)

    def of(self, task: Task) -> "Items":
        """Those that the task asks about."""
        return self if task == "fuzzing" else self.take(np.flatnonzero(self.kinds != ELSEWHERE))


Judge = Callable[[Items, Task], np.ndarray]
"""Answers `[m]`, int8, to items of a task: `YES`, `NO`, `UNANSWERED`. What it judges by, a label, it knows."""
