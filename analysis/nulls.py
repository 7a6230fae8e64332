"""What a label must beat: one token, and predictions that know nothing of the latent."""

import numpy as np


def best_token(token_hits: np.ndarray, token_counts: np.ndarray, n_firings: int) -> int:
    """The token whose label has the best F1, 2 hits / (count + firings); the lowest id of equals.

    Args:
        token_hits: `[vocabulary]`, firings on each token.
        token_counts: `[vocabulary]`, counted positions of each token.
    """
    return int(np.argmax(2 * token_hits / np.maximum(token_counts + n_firings, 1)))


def shuffled(n_predicted: int, n_firings: int, n_valid: int) -> tuple[float, float]:
    """Expected (F1, AUPRC) of a prediction whose positions are drawn at random.

    A prediction of m positions meets m * density firings on average: precision and AUPRC are the
    density (up to terms of 1 / n_valid).
    """
    density = n_firings / n_valid if n_valid else 0.0
    both = n_predicted + n_firings
    return (2 * n_predicted * density / both if both else 0.0), density


def density_neighbours(counts: np.ndarray, is_labelled: np.ndarray) -> np.ndarray:
    """For each latent another labelled one of nearly the same number of firings, -1 if there is none.

    Latents are ranked by (count, index); the next labelled one after it is taken, or else the
    last before it.
    """
    order = np.lexsort((np.arange(len(counts)), counts))
    labelled = np.flatnonzero(is_labelled[order])
    neighbours = np.full(len(counts), -1)
    for rank, latent in enumerate(order):
        after = np.searchsorted(labelled, rank, side="right")
        before = np.searchsorted(labelled, rank, side="left") - 1
        if after < len(labelled):
            neighbours[latent] = order[labelled[after]]
        elif before >= 0:
            neighbours[latent] = order[labelled[before]]
    return neighbours
