"""Logistic regression with an L2 penalty, as scikit-learn defines it, on columns of standard deviation 1.

    minimise over w, b   ||w||^2 / 2 + C sum_i log(1 + exp(-s_i (w . x_i / scale + b))),   s_i = 1 or -1

A dictionary's latents and a network's activations have units of their own; without the scale a penalty would be a
handicap for whichever is small. The bias is free, so columns need not be centred, and a sparse matrix stays sparse.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit

Matrix = np.ndarray | csr_matrix
"""`[n, d]`."""
STEPS, TOLERANCE = 1000, 1e-7  # of the gradient of the mean loss


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier."""

    weights: np.ndarray
    """`[d]`, in the units of the columns."""
    bias: float

    def margins(self, x: Matrix) -> np.ndarray:
        """`[n]`: log odds of the label; it is predicted where they are above 0."""
        return np.asarray(x @ self.weights) + self.bias


def fit(x: Matrix, labels: np.ndarray, C: float = 1.0) -> Probe:
    """The probe that the problem above defines; it is strictly convex but for the bias, so there is one.

    Args:
        labels: `[n]`, bool, of which some are true and some are not.
    """
    scale = _scale(x)
    scaled: Matrix = x @ _diagonal(1 / scale) if isinstance(x, csr_matrix) else x / scale  # both in float64
    signs, n = np.where(labels, 1.0, -1.0), len(labels)

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        """Divided by C n; with its gradient."""
        weights, bias = point[:-1], point[-1]
        margins = signs * (np.asarray(scaled @ weights) + bias)
        pulls = -signs * expit(-margins) / n
        value = np.logaddexp(0, -margins).mean() + weights @ weights / (2 * C * n)
        gradient = np.append(np.asarray(scaled.T @ pulls) + weights / (C * n), pulls.sum())
        return float(value), gradient

    start = np.zeros(len(scale) + 1)
    start[-1] = np.log(labels.mean() / (1 - labels.mean()))
    options = {"maxiter": STEPS, "maxfun": 2 * STEPS, "gtol": TOLERANCE, "ftol": 1e-14}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    return Probe(found[:-1] / scale, float(found[-1]))


def _scale(x: Matrix) -> np.ndarray:
    """Standard deviation of each column; 1 of one that is constant."""
    if isinstance(x, csr_matrix):
        mean = np.asarray(x.mean(axis=0)).ravel()
        variance = np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2
    else:
        variance = x.var(axis=0, dtype=np.float64)
    return np.sqrt(np.where(variance > 1e-20, variance, 1.0))


def _diagonal(values: np.ndarray) -> csr_matrix:
    n = len(values)
    return csr_matrix((values, np.arange(n), np.arange(n + 1)), shape=(n, n))
