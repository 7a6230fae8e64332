"""An interpolated trigram model with Kneser-Ney discounts: what a language model must beat.

Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", §2.7: with
discount `D = n1 / (n1 + 2 n2)` for each order and continuation counts below the highest,

    P(c|ab) = max(n(abc) - D, 0) / n(ab) + D N(ab.) / n(ab) * P(c|b),    and so on down to uniform.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Order:
    """Counts of one order: n-grams as sorted whole numbers, and what is known of their contexts."""

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    """Sum of the counts in each context."""
    kinds: np.ndarray
    """Number of different continuations of each context."""
    discount: float


class Trigram:
    """Fitted on one stream of tokens."""

    def __init__(self, tokens: np.ndarray, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        stream = tokens.astype(np.int64)
        pairs = stream[:-1] * vocabulary + stream[1:]
        triples = pairs[:-1] * vocabulary + stream[2:]
        grams3, counts3 = np.unique(triples, return_counts=True)
        grams2, counts2 = np.unique(grams3 % vocabulary**2, return_counts=True)  # different tokens before
        grams1, counts1 = np.unique(np.unique(pairs) % vocabulary, return_counts=True)
        self._orders = [_order(*part, vocabulary) for part in ((grams1, counts1), (grams2, counts2), (grams3, counts3))]

    def losses(self, tokens: np.ndarray) -> np.ndarray:
        """`-log P` in nats of each token but the first two, given the two before it."""
        stream = tokens.astype(np.int64)
        probability = np.full(len(stream) - 2, 1 / self.vocabulary)
        for n, order in enumerate(self._orders):
            context = np.zeros(len(stream) - 2, dtype=np.int64)
            for back in range(n, 0, -1):
                context = context * self.vocabulary + stream[2 - back : len(stream) - back]
            probability = _mix(order, context, context * self.vocabulary + stream[2:], probability)
        return -np.log(probability)


def _order(grams: np.ndarray, counts: np.ndarray, vocabulary: int) -> _Order:
    contexts, first = np.unique(grams // vocabulary, return_index=True)
    totals = np.add.reduceat(counts, first)
    kinds = np.diff(np.append(first, len(grams)))
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = once / (once + 2 * twice) if once else 0.5
    return _Order(grams, counts, contexts, totals, kinds, float(discount))


def _mix(order: _Order, contexts: np.ndarray, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """One step up: discounted counts where the context is known, the lower order everywhere."""
    counts = _look_up(order.grams, order.counts, grams)
    totals, kinds = (_look_up(order.contexts, column, contexts) for column in (order.totals, order.kinds))
    known = np.maximum(totals, 1)
    mixed = np.maximum(counts - order.discount, 0) / known + order.discount * kinds / known * lower
    return np.where(totals > 0, mixed, lower)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where there is none; `keys` ascend."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
