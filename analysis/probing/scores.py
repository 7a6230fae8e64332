"""How well margins tell a label, with intervals over documents drawn anew."""

from collections.abc import Mapping

import numpy as np

from analysis.quality.figures import Figure

AT_ONCE = 1 << 22  # weights of examples in resamples, at a time: 32 MB
NAMES = ("accuracy", "balanced_accuracy", "f1", "auroc")


def scores(margins: np.ndarray, labels: np.ndarray, groups: np.ndarray, draws: np.ndarray) -> Mapping[str, Figure]:
    """Accuracy, mean of the two classes' accuracies, F1 of the label, area under the ROC curve.

    Args:
        margins: `[n]`; above 0 the label is predicted.
        labels: `[n]`, bool; groups: `[n]`, the document of each.
        draws: `[n_resamples, n_groups]`.
    """
    point = weighted(margins, labels, np.ones((1, len(labels))))
    size = max(1, AT_ONCE // len(labels))
    parts = [weighted(margins, labels, draws[i : i + size][:, groups]) for i in range(0, len(draws), size)]
    return {name: Figure.of(point[name][0], np.concatenate([part[name] for part in parts])) for name in NAMES}


def weighted(margins: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores `[n_resamples]` where each example counts as often as `weights [n_resamples, n]` says; NaN where a
    class is not there."""
    predicted = margins > 0
    positive, negative = weights @ labels, weights @ ~labels
    hits, rejected = weights @ (predicted & labels), weights @ (~predicted & ~labels)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "accuracy": (hits + rejected) / (positive + negative),
            "balanced_accuracy": (hits / positive + rejected / negative) / 2,
            "f1": 2 * hits / (positive + weights @ predicted),
            "auroc": _above(margins, labels, weights) / (positive * negative),
        }


def _above(margins: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pairs of a positive and a negative example in which the positive has the greater margin; ties count half
    (Mann & Whitney 1947)."""
    order = np.argsort(margins, kind="stable")
    ordered = margins[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    own = weights[:, order]
    positive = np.add.reduceat(own * labels[order], starts, axis=1)
    negative = np.add.reduceat(own * ~labels[order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    return (positive * (below + negative / 2)).sum(axis=1)
