"""Passages and documents by their words: some 64 tokens to either side, or the whole text, hold telling words.

A word tells by its log-odds in the passages with firings against those with the same tokens and none, with the text as
a Dirichlet prior (Monroe, Colaresi and Quinn 2008, eq. 16-22); one that is missing there tells as well. The topic
stands alone ("any token in passages with ...") or narrows a set of tokens.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from analysis.config import LabelConfig
from analysis.label.evidence import MIN_GAIN, Evidence, chance
from analysis.label.indexed import Reach
from analysis.label.protocol import Clause, Part, Topic, families
from analysis.label.tree import fit_chain

MAX_WORDS, MAX_MISSING = 40, 20
MIN_Z = 3.0
PRIOR_TOKENS = 5000
UNIT = 1024
"""Weights and thresholds are multiples of 1 / UNIT: sums of them are exact, whatever the order of the text."""
REACHES: tuple[Reach, ...] = ("passage", "document")


@dataclass(frozen=True, eq=False)
class _Counts:
    """What is in each block, `[n_blocks]` each."""

    hits: np.ndarray
    """Firings."""
    totals: np.ndarray
    """Positions of the ground."""
    like: np.ndarray
    """Firings to be expected if the token alone decided."""


@families.register("topic")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    parts = _alone(evidence, cfg)
    if told := telling_topic(evidence):
        masked = evidence.narrowed(told[1].mask(evidence.indexed))
        clauses = fit_chain(masked, ("fold", "token"), evidence.cost(cfg), (told[1],))
        parts += [Part("topic", clauses)] if clauses else []
    return parts


def _alone(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    """Every token of the passages, with the reach and the threshold of the best F1."""
    counts, scored = _scored(evidence)
    if not scored:
        return []
    known, base = evidence.n_true, evidence.n_predicted + evidence.n_firings
    swept = [(topic, *_sweep(scores, counts.hits, counts.totals)) for topic, scores in scored]
    rates = [(known + hits) / (base + totals) for _, _, hits, totals in swept]
    which = int(np.argmax([rate.max() for rate in rates]))
    (topic, levels, hits, totals), best = swept[which], int(np.argmax(rates[which]))
    if hits[best] <= evidence.cost(cfg):
        return []
    score = chance(int(hits[best]), int(totals[best]))
    return [Part("topic", (Clause(None, (), (score,), (replace(topic, threshold=_below(levels, best)),)),))]


@lru_cache(maxsize=1)
def telling_topic(evidence: Evidence) -> tuple[float, Topic] | None:
    """(gain, topic): the reach and the threshold that best part the firings from the same tokens elsewhere."""
    counts, scored = _scored(evidence)
    found, most = None, MIN_GAIN
    for topic, scores in scored:
        levels, hits, like = _sweep(scores, counts.hits, counts.like)
        gains = evidence.gains(hits / max(len(evidence.fired), 1), like / counts.like.sum())
        best = int(np.argmax(gains))
        if gains[best] > most:
            found, most = replace(topic, threshold=_below(levels, best)), float(gains[best])
    return None if found is None else (most, found)


@lru_cache(maxsize=1)
def _scored(evidence: Evidence) -> tuple[_Counts, list[tuple[Topic, np.ndarray]]]:
    """What is in each block, and its score by the telling words at each reach; no scores if no word tells."""
    counts = _count(evidence)
    topic = telling_words(evidence, counts)
    if topic is None:
        return counts, []
    return counts, [(own, own.scores(evidence.indexed)) for own in (replace(topic, reach=reach) for reach in REACHES)]


def _count(evidence: Evidence) -> _Counts:
    view, blocks, weights = evidence.indexed.view, evidence.indexed.blocks, evidence.token_rates
    n, n_valid, like = len(blocks.starts), blocks.n_valid, evidence.indexed.valid_words @ weights
    if evidence.outside is not None:
        n_valid = n_valid - np.bincount(blocks.of[evidence.outside], minlength=n)
        like = like - np.bincount(blocks.of[evidence.outside], weights[view.tokens[evidence.outside]], minlength=n)
    return _Counts(np.bincount(blocks.of[evidence.fired], minlength=n), n_valid, np.maximum(like, 0))


def _sweep(scores: np.ndarray, hits: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(levels, hits, totals) of the blocks that score at least each level, from the highest; a level at which no block
    holds anything is left out."""
    steps = np.floor(scores * UNIT).astype(np.int64)
    lowest = int(steps.min())
    n_totals = np.bincount(steps - lowest, totals)[::-1]
    n_hits = np.bincount(steps - lowest, hits)[::-1]
    levels = (lowest + np.arange(len(n_totals)))[::-1] / UNIT
    held = n_totals > 0
    return levels[held], n_hits.cumsum()[held], n_totals.cumsum()[held]


def _below(levels: np.ndarray, number: int) -> float:
    """Halfway between a level and the next lower one."""
    return float(levels[number] + levels[min(number + 1, len(levels) - 1)]) / 2


def telling_words(evidence: Evidence, counts: _Counts) -> Topic | None:
    """The words of the passages with firings, and those that are missing there, with no threshold yet; none if no word
    tells."""
    blocks = evidence.indexed.blocks
    fires, like = blocks.means(counts.hits, "passage"), blocks.means(counts.like, "passage")
    typical = (fires * counts.hits).sum() / max(len(evidence.fired), 1)  # what a firing sees around it
    near, ground = (np.minimum(np.round(density / max(typical, 1e-12) * UNIT) / UNIT, 1) for density in (fires, like))
    inside, everywhere = (evidence.indexed.blocks_of_words @ np.stack([near, np.maximum(near, ground)], axis=1)).T
    z, delta = _log_odds(inside, everywhere)
    order = np.concatenate([_most(z, MAX_WORDS), _most(-z, MAX_MISSING)])
    if len(order) == 0:
        return None
    return Topic(tuple(order.tolist()), tuple((np.round(delta[order] * UNIT) / UNIT).tolist()), 0.0)


def _most(z: np.ndarray, n: int) -> np.ndarray:
    """The words with the greatest z-scores beyond `MIN_Z`, at most n."""
    found = np.flatnonzero(z > MIN_Z)
    return found[np.argsort(-z[found], kind="stable")][:n]


def _log_odds(inside: np.ndarray, everywhere: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(z-score, log-odds ratio) of each word, inside against outside, `[vocabulary]`."""
    outside = everywhere - inside
    prior = PRIOR_TOKENS * (everywhere + 0.01) / (everywhere + 0.01).sum()
    here, there = inside + prior, outside + prior
    delta = np.log(here / (here.sum() - here)) - np.log(there / (there.sum() - there))
    return delta / np.sqrt(1 / here + 1 / there), delta
