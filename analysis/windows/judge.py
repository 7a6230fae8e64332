"""The judge that needs no language model: a rule."""

import numpy as np

from analysis.score import hits
from analysis.windows.items import Items, Judge, Task


def rule(predicted: np.ndarray) -> Judge:
    """What a rule that predicts firings at these positions (ascending) answers: that the latent fires in a window if it
    predicts one there, that marks are right if it predicts each."""

    def judge(items: Items, task: Task) -> np.ndarray:
        if task == "detection":
            found = np.searchsorted(predicted, items.starts) < np.searchsorted(predicted, items.stops)
        else:
            agrees = hits(items.marks.flat, predicted)
            found = np.logical_and.reduceat(agrees, items.marks.offsets[:-1]) if len(items) else agrees
        return found.astype(np.int8)

    return judge
