"""A language model as a judge of windows: detection, fuzzing, and the test of the intruder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.chat.structured import Question
from analysis.explain.prompts import IntruderAnswer, JudgeAnswer, intruding, judging, quoted
from analysis.label.indexed import V
from analysis.parts import scrambled
from analysis.windows.grid import Grid
from analysis.windows.items import FIRES, KINDS, UNANSWERED, Items, Judge, Task, negatives

N_SHOWN = 5  # passages of a test of the intruder


def questions(label: str, items: Items, task: Task, grid: Grid[V], per_prompt: int) -> list[Question[JudgeAnswer]]:
    """About items of a task, some at a time, true and false ones mixed."""
    texts = _texts(items, grid, task == "fuzzing")
    mixed = _mixed(items)
    return [
        judging(label, [texts[i] for i in mixed[at : at + per_prompt]], task) for at in range(0, len(mixed), per_prompt)
    ]


def answers(items: Items, replies: Sequence[JudgeAnswer | None], per_prompt: int) -> np.ndarray:
    """Of each item, from the replies to its `questions`."""
    found = np.full(len(items), UNANSWERED, dtype=np.int8)
    mixed = _mixed(items)
    for reply, at in zip(replies, range(0, len(mixed), per_prompt), strict=True):
        if reply is not None:
            found[mixed[at : at + per_prompt]] = reply.answers
    return found


def remembered(by_task: Mapping[Task, np.ndarray]) -> Judge:
    """A judge that has been asked already about the items of each task."""
    return lambda _items, task: by_task[task]


@dataclass(frozen=True)
class Intrusion:
    """One test: which of the passages is the odd one, from 1."""

    kind: str
    right: int
    question: Question[IntruderAnswer]


def intrusions(latent: int, items: Items, grid: Grid[V], n: int) -> Iterator[Intrusion]:
    """Up to n tests of each kind of silent windows, each beside four at which the latent fires about as strongly."""
    fired, true = grid.fired(latent), np.flatnonzero(items.kinds == FIRES)
    strengths = fired.values[np.searchsorted(fired.windows, items.windows[true])]
    true = true[np.argsort(strengths, kind="stable")]
    groups = [true[at : at + N_SHOWN - 1] for at in range(0, len(true) - N_SHOWN + 2, N_SHOWN - 1)]
    texts = _texts(items, grid, has_marks=True)
    for kind in negatives("detection"):
        odd = np.flatnonzero(items.kinds == KINDS.index(kind))[:n]
        for i, intruder in enumerate(odd.tolist() if groups else []):
            place = int(scrambled(np.array([latent << 16 | KINDS.index(kind) << 8 | i]))[0] % np.uint64(N_SHOWN))
            shown = [texts[j] for j in groups[i % len(groups)]]
            shown.insert(place, texts[intruder])
            yield Intrusion(kind, place + 1, intruding(shown))


def _texts(items: Items, grid: Grid[V], has_marks: bool) -> list[str]:
    marks = np.split(items.marks.flat, items.marks.offsets[1:-1]) if len(items) else []
    return [
        quoted(grid.view, start, stop, set(own.tolist()) if has_marks else ())
        for start, stop, own in zip(items.starts.tolist(), items.stops.tolist(), marks, strict=True)
    ]


def _mixed(items: Items) -> np.ndarray:
    """All items, in an order that has nothing to do with the right answers."""
    return np.argsort(scrambled(items.windows * len(KINDS) + items.kinds), kind="stable")
