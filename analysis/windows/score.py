"""How well answers about windows are right, each kind of silent window by itself."""

from dataclasses import dataclass

import numpy as np

from analysis.windows.items import FIRES, KINDS, NO, UNANSWERED, YES, Items, Task, negatives
from sae.sums import interval


@dataclass(frozen=True)
class WindowScores:
    """Answers to questions of which the right answer is yes where the latent fires. Rates are of what was answered,
    none where nothing was."""

    n_fires: int
    """Windows at which the latent fires."""
    n_silent: int
    """Windows at which it is silent, or has its marks elsewhere."""
    n_true_yes: int
    n_true_no: int
    n_failed: int
    """Questions without an answer that could be read; they are part of the first two numbers."""
    balanced_accuracy: float | None
    """Mean of the shares of right answers of the two; 0.5 for a judge that always says the same."""
    accuracy: float | None
    f1: float | None
    """Of yes: 2 true / (2 true + false yes + false no)."""
    low: float | None
    """2.5 % quantile of balanced accuracy when documents are drawn anew."""
    high: float | None
    """97.5 % quantile."""


def score(
    items: Items, answers: np.ndarray, task: Task, documents: np.ndarray, draws: np.ndarray
) -> dict[str, WindowScores]:
    """Scores by the kind of negatives.

    Args:
        items: those of `task`.
        answers: `[m]`, of a judge.
        documents: `[m]`: document of each item.
        draws: `[n_resamples, n_documents]`, see `analysis.score.resamples`.
    """
    present, of = np.unique(documents, return_inverse=True)
    weights = draws[:, present]
    groups = [items.kinds == FIRES, *(items.kinds == KINDS.index(name) for name in negatives(task))]
    answered, right = answers != UNANSWERED, answers == np.where(items.fires, YES, NO)
    tallies = [
        np.bincount(of[group & mask], minlength=len(present)).astype(np.float64)
        for group in groups
        for mask in (answered, right)
    ]
    resampled = weights @ np.stack(tallies, axis=1)
    asked = [int(group.sum()) for group in groups]
    totals = np.array([int(tally.sum()) for tally in tallies])
    columns = {name: [0, 1, 2 * i, 2 * i + 1] for i, name in enumerate(negatives(task), start=1)}
    return {
        name: _scores(asked[0], asked[own[2] // 2], totals[own], resampled[:, own]) for name, own in columns.items()
    }


def _scores(n_fires: int, n_silent: int, totals: np.ndarray, resampled: np.ndarray) -> WindowScores:
    """Of one kind of negatives.

    Args:
        totals: `[4]`: answered and right of the firing windows, then of the silent ones.
        resampled: `[n_resamples, 4]`: the same of documents drawn anew.
    """
    n_yes, true_yes, n_no, true_no = totals.tolist()
    failed = n_fires + n_silent - n_yes - n_no
    if not n_yes or not n_no:
        return WindowScores(n_fires, n_silent, true_yes, true_no, failed, None, None, None, None, None)
    both = resampled[(resampled[:, 0] > 0) & (resampled[:, 2] > 0)]
    accuracies = (both[:, 1] / both[:, 0] + both[:, 3] / both[:, 2]) / 2
    low, high = interval(accuracies) if len(accuracies) else (None, None)
    false_no, false_yes = n_yes - true_yes, n_no - true_no
    return WindowScores(
        n_fires=n_fires,
        n_silent=n_silent,
        n_true_yes=true_yes,
        n_true_no=true_no,
        n_failed=failed,
        balanced_accuracy=(true_yes / n_yes + true_no / n_no) / 2,
        accuracy=(true_yes + true_no) / (n_yes + n_no),
        f1=2 * true_yes / max(2 * true_yes + false_yes + false_no, 1),
        low=low,
        high=high,
    )
