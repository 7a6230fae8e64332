"""Tokens soon after certain words: "in the 20 tokens from “king” on". A network that reads forwards may remember them.

Words and reach are those that best part the firings from the same tokens elsewhere, found on a sample of both.
"""

from functools import lru_cache

import numpy as np

from analysis.config import LabelConfig
from analysis.label.evidence import MIN_GAIN, Evidence, chance
from analysis.label.indexed import Indexed
from analysis.label.protocol import Clause, Part, Recent, families, since_words
from analysis.label.tree import fit_chain
from analysis.splits import FitView

REACH = 64
"""Tokens that are looked back, at most."""
SPANS = (2, 8, 32, REACH)
"""A word may tell at short distances only: it is counted up to each of these."""
MAX_FIRED, MAX_LIKE = 300, 1000
"""Firings, and tokens like them, that are looked at, evenly over the text."""
MAX_CANDIDATES, MAX_WORDS = 24, 12
MIN_Z = 3.0
MIN_STEP = 0.01
"""F1 that a word must add."""
FIRST, MIN_SHARE = 8, 0.2
"""Unless one of so many words alone holds this share more of the firings than of like tokens, no more are tried."""


@families.register("recent")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    told = telling_recent(evidence)
    if told is None:
        return []
    condition = told[1]
    masked = evidence.narrowed(condition.mask(evidence.indexed))
    clauses = fit_chain(masked, ("fold", "token"), evidence.cost(cfg), (condition,))
    parts = [Part("recent", clauses)] if clauses else []
    if len(masked.fired) > evidence.cost(cfg):
        alone = Clause(None, (), (chance(len(masked.fired), masked.n_ground),), (condition,))
        parts.append(Part("recent", (alone,)))
    return parts


@lru_cache(maxsize=1)
def telling_recent(evidence: Evidence) -> tuple[float, Recent] | None:
    """(gain, condition): the words and the reach that best part the firings from the same tokens elsewhere."""
    if len(evidence.fired) == 0:
        return None
    fired = _evenly(evidence.fired, MAX_FIRED)
    like, weights = evidence.like
    step = len(like) // MAX_LIKE + 1
    like, weights = like[::step], weights[::step] / weights[::step].sum()
    words = _candidates(evidence.indexed, fired, like, weights)
    looked = np.concatenate([fired, like])
    distances = [_since(evidence.indexed, word, looked) for word in words[:FIRST].tolist()]
    if not distances or (np.subtract(*_shares(np.stack(distances), len(fired), weights)) < MIN_SHARE).all():
        return None
    distances += [_since(evidence.indexed, word, looked) for word in words[FIRST:].tolist()]
    chosen = _greedy(evidence, words, np.stack(distances), len(fired), weights)
    return _with_reach(evidence, tuple(words[chosen].tolist())) if chosen else None


def _greedy(
    evidence: Evidence, words: np.ndarray, distances: np.ndarray, n_fired: int, weights: np.ndarray
) -> list[int]:
    """Which words: the one that gains most is added, with the reach that is best then, while one gains enough; none
    if they tell little together."""
    nearest, chosen, best = np.full(distances.shape[1], REACH, dtype=np.uint8), [], -np.inf
    while len(chosen) < min(MAX_WORDS, len(words)):
        gains = evidence.gains(*_shares(np.minimum(distances, nearest), n_fired, weights))
        word, reach = np.unravel_index(int(np.argmax(gains)), gains.shape)
        if gains[word, reach] < best + MIN_STEP:
            break
        chosen.append(int(word))
        best, nearest = float(gains[word, reach]), np.minimum(distances[word], nearest)
    return chosen if best > MIN_GAIN else []


def _with_reach(evidence: Evidence, words: tuple[int, ...]) -> tuple[float, Recent] | None:
    """(gain, condition) with the best reach of these words, by all of the text."""
    back, (like, weights) = np.minimum(since_words(evidence.indexed, words), REACH), evidence.like
    shares = np.bincount(back[evidence.fired], minlength=REACH + 1)[:REACH].cumsum() / len(evidence.fired)
    grounds = np.bincount(back[like], weights, minlength=REACH + 1)[:REACH].cumsum() / weights.sum()
    gains = evidence.gains(shares, grounds)
    best = int(np.argmax(gains))
    return (float(gains[best]), Recent(words, best + 1)) if gains[best] > MIN_GAIN else None


def _shares(distances: np.ndarray, n_fired: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(of firings, of like tokens) within each reach, `[words, REACH]` each."""
    fired, like = distances[:, :n_fired], distances[:, n_fired:]
    return _cumulative(fired, np.full(n_fired, 1 / n_fired)), _cumulative(like, weights)


def _cumulative(distances: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`[rows, REACH]`: the weight of entries of each row below each distance."""
    n_rows, n = distances.shape
    keys = distances.astype(np.int64) + (np.arange(n_rows) * (REACH + 1))[:, None]
    each = np.broadcast_to(weights, (n_rows, n)).ravel()
    counts = np.bincount(keys.ravel(), each, minlength=n_rows * (REACH + 1))
    return counts.reshape(n_rows, REACH + 1)[:, :REACH].cumsum(axis=1)


def _candidates(indexed: Indexed[FitView], fired: np.ndarray, like: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Words that stand more often before firings than before like tokens, up to one of the distances."""
    size = len(indexed.vocabulary.strings)
    here, there = _before(indexed, fired), _before(indexed, like)
    best, p, q = np.zeros(size), np.zeros(size), np.zeros(size)
    for low, high in zip((0, *SPANS), SPANS, strict=False):
        p += np.bincount(here[:, low:high].ravel(), minlength=size + 1)[:size] / len(fired)
        q += np.bincount(there[:, low:high].ravel(), np.repeat(weights, high - low), minlength=size + 1)[:size]
        spread = np.sqrt(p / len(fired) + q / len(like) + 1 / len(fired) ** 2)
        best = np.maximum(best, (p - q) / spread)
    found = np.flatnonzero(best > MIN_Z)
    return found[np.argsort(-best[found], kind="stable")][:MAX_CANDIDATES]


def _before(indexed: Indexed[FitView], positions: np.ndarray) -> np.ndarray:
    """`[m, REACH]`: the token at each distance back, its own at 0; the vocabulary's size outside the context."""
    view, back = indexed.view, np.arange(REACH)
    inside = back <= view.offsets[positions][:, None]
    return np.where(inside, view.tokens[np.maximum(positions[:, None] - back, 0)], len(indexed.vocabulary.strings))


def _since(indexed: Indexed[FitView], word: int, positions: np.ndarray) -> np.ndarray:
    """`[m]`, uint8: tokens back to the last `word` in the context, at most `REACH`."""
    where = indexed.positions_of(word)
    at = np.searchsorted(where, positions, side="right") - 1
    gaps = positions - where[np.maximum(at, 0)]
    seen = (at >= 0) & (gaps <= indexed.view.offsets[positions]) & (gaps < REACH)
    return np.where(seen, gaps, REACH).astype(np.uint8)


def _evenly(positions: np.ndarray, n: int) -> np.ndarray:
    """At most n of them, from all over."""
    return positions[:: len(positions) // n + 1]
