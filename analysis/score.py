"""How well a prediction fits the firings of a latent, over every counted token of a split.

A prediction is sparse: `positions [m]`, ascending, with `scores [m]` > 0; elsewhere it is 0. A
position with a score is a predicted firing. The metrics are those that notice missing and extra
words in a label (Oikarinen et al., ICML 2025): F1, IoU, AUPRC and Pearson's correlation.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sae.sums import interval

N_DECILES = 10


@dataclass(frozen=True)
class Counts:
    """The confusion of predicted and actual firings, without the true negatives."""

    n_true: int
    """Predicted and firing."""
    n_predicted: int
    n_firings: int

    @property
    def precision(self) -> float:
        return self.n_true / self.n_predicted if self.n_predicted else 0.0

    @property
    def recall(self) -> float:
        return self.n_true / self.n_firings if self.n_firings else 0.0

    @property
    def f1(self) -> float:
        """2 tp / (predicted + firings); 0 where both are 0."""
        both = self.n_predicted + self.n_firings
        return 2 * self.n_true / both if both else 0.0

    @property
    def iou(self) -> float:
        """tp / (predicted or firing)."""
        either = self.n_predicted + self.n_firings - self.n_true
        return self.n_true / either if either else 0.0


def hits(positions: np.ndarray, fired: np.ndarray) -> np.ndarray:
    """Which of `positions [m]` are among `fired` (ascending), `[m]` bool."""
    if len(fired) == 0:
        return np.zeros(len(positions), dtype=bool)
    at = np.searchsorted(fired, positions)
    at[at == len(fired)] = 0
    return fired[at] == positions


def counts(positions: np.ndarray, fired: np.ndarray) -> Counts:
    """Counts of a prediction at `positions` of a latent that fires at `fired`."""
    return Counts(int(hits(positions, fired).sum()), len(positions), len(fired))


def average_precision(scores: np.ndarray, is_hit: np.ndarray, n_firings: int, n_valid: int) -> float:
    """Area under the precision-recall curve, as a step function.

    AP = sum over distinct scores s, from the highest, of (R(s) - R(before)) P(s), with recall R
    and precision P over all positions that score at least s. The `n_valid - m` positions without
    a score are one last group. Tied positions enter together, so their order cannot matter.

    Args:
        scores: `[m]`, > 0.
        is_hit: `[m]` bool, whether the latent fires there.
        n_firings: firings of the latent on all `n_valid` positions.
    """
    if n_firings == 0:
        return 0.0
    order = np.argsort(-scores)
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1) if len(scores) else np.zeros(0, int)
    n_true = np.append(np.cumsum(is_hit[order])[ends], n_firings)
    n_predicted = np.append(ends + 1, n_valid)
    steps = np.diff(n_true, prepend=0)
    return float(np.sum(steps * n_true / n_predicted) / n_firings)


def pearson(positions: np.ndarray, scores: np.ndarray, fired: np.ndarray, values: np.ndarray, n_valid: int) -> float:
    """Correlation of score and activation over `n_valid` positions; 0 where one is constant."""
    return correlation(positions, scores, fired, values, n_valid) or 0.0


def correlation(
    positions: np.ndarray, scores: np.ndarray, fired: np.ndarray, values: np.ndarray, n_valid: int
) -> float | None:
    """The same; none where one is constant."""
    if len(positions) == 0 or len(fired) == 0:
        return None
    x, y = scores.astype(np.float64), values.astype(np.float64)
    is_hit = hits(positions, fired)
    xy = (x[is_hit] * y[np.searchsorted(fired, positions[is_hit])]).sum()
    covariance = xy / n_valid - x.sum() / n_valid * (y.sum() / n_valid)
    spread = ((x * x).sum() / n_valid - (x.sum() / n_valid) ** 2) * ((y * y).sum() / n_valid - (y.sum() / n_valid) ** 2)
    return float(covariance / np.sqrt(spread)) if spread > 0 else None


def recall_by_decile(positions: np.ndarray, fired: np.ndarray, values: np.ndarray) -> list[float]:
    """Recall among the weakest tenth of the firings, the next, ... the strongest, `[10]`.

    Equal values are ordered by position. A tenth without a firing has recall 0.
    """
    order = np.argsort(values, kind="stable")
    predicted = hits(fired[order], positions)
    bounds = np.arange(N_DECILES + 1) * len(fired) // N_DECILES
    return [float(predicted[a:b].mean()) if b > a else 0.0 for a, b in pairwise(bounds)]


def resamples(n_documents: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each document is drawn in each bootstrap sample, `[n_resamples, n_documents]`."""
    generator = np.random.default_rng([seed, 0xB007])
    drawn = generator.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=n_resamples)
    return drawn.astype(np.float64)


def f1_interval(
    positions: np.ndarray, fired: np.ndarray, documents: np.ndarray, draws: np.ndarray
) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of F1 when documents are drawn anew.

    Args:
        documents: `[n]`, document of each position.
        draws: `[n_resamples, n_documents]`, from `resamples`.
    """
    n = draws.shape[1]
    is_hit = hits(positions, fired)
    n_true = np.bincount(documents[positions[is_hit]], minlength=n)
    n_both = np.bincount(documents[positions], minlength=n) + np.bincount(documents[fired], minlength=n)
    sums = draws @ np.stack([n_true, n_both], axis=1)
    f1 = 2 * sums[:, 0] / np.maximum(sums[:, 1], 1)
    return interval(f1)


def token_r2(tokens: np.ndarray, fired: np.ndarray, values: np.ndarray, token_counts: np.ndarray) -> float:
    """Var(E[a | token]) / Var(a): the share of a latent's variance that its token explains.

    1: the token says all; 0: it says nothing, or the latent never fires.

    Args:
        tokens: `[n]` token ids; `fired`, `values`: the latent's firings.
        token_counts: `[vocabulary]`, counted positions of each token.
    """
    n = token_counts.sum()
    if len(fired) == 0 or n == 0:
        return 0.0
    values = values.astype(np.float64)
    total = (values * values).sum() / n - (values.sum() / n) ** 2
    sums = np.bincount(tokens[fired], weights=values, minlength=len(token_counts))
    seen = token_counts > 0
    between = np.sum(sums[seen] ** 2 / token_counts[seen]) / n - (values.sum() / n) ** 2
    return float(between / total) if total > 0 else 0.0
