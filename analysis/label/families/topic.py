"""Passages by their words: the window of some 64 tokens to either side holds telling words.

A word tells by its log-odds in the windows around firings against the rest of the text, with the
text as a Dirichlet prior (Monroe, Colaresi and Quinn 2008, eq. 16-22). The topic stands alone
("any token in passages with ...") or narrows a set of tokens.
"""

from dataclasses import replace

import numpy as np

from analysis.config import LabelConfig
from analysis.label.evidence import Evidence, chance
from analysis.label.protocol import Clause, Part, Topic, families
from analysis.label.tree import fit_chain

MAX_WORDS = 40
MIN_Z = 3.0
PRIOR_TOKENS = 10_000
UNIT = 1024
"""Weights are multiples of 1 / UNIT: sums of them are exact, whatever the order of the text."""
MIN_LIFT, MIN_SHARE = 1.3, 0.5
"""A topic narrows a token set if this many times more firings than tokens lie in it, and this
share of all firings."""


@families.register("topic")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    topic = telling_words(evidence)
    if topic is None:
        return []
    scores, blocks = topic.scores(evidence.indexed), evidence.indexed.blocks
    hits = np.bincount(blocks.of[evidence.fired], minlength=len(blocks.starts))
    return [*_alone(evidence, cfg, topic, scores, hits), *_narrowed(evidence, cfg, topic, scores, hits)]


def _alone(evidence: Evidence, cfg: LabelConfig, topic: Topic, scores: np.ndarray, hits: np.ndarray) -> list[Part]:
    """Every token of the passages, with the threshold of the best F1."""
    blocks = evidence.indexed.blocks
    totals = blocks.n_valid
    if evidence.outside is not None:
        totals = totals - np.bincount(blocks.of[evidence.outside], minlength=len(totals))
    levels, n_hits, n_totals = _sweep(scores, hits, totals)
    best = int(np.argmax((evidence.n_true + n_hits) / (evidence.n_predicted + evidence.n_firings + n_totals)))
    if levels[best] <= 0 or n_hits[best] <= evidence.cost(cfg):
        return []
    score = chance(int(n_hits[best]), int(n_totals[best]))
    return [Part("topic", (Clause(None, (), (score,), (replace(topic, threshold=float(levels[best])),)),))]


def _narrowed(evidence: Evidence, cfg: LabelConfig, topic: Topic, scores: np.ndarray, hits: np.ndarray) -> list[Part]:
    """Tokens within the passages. The threshold best parts the firings from the same tokens elsewhere."""
    indexed, blocks = evidence.indexed, evidence.indexed.blocks
    tokens, totals = indexed.view.tokens, evidence.token_totals()
    weights = np.bincount(tokens[evidence.fired], minlength=len(totals)) / np.maximum(totals, 1)
    like = np.add.reduceat(weights[tokens] * indexed.view.valid, blocks.starts)
    levels, n_hits, n_like = _sweep(scores, hits, like)
    shares, ground = n_hits / max(len(evidence.fired), 1), n_like / like.sum()
    best = int(np.argmax(shares - ground))
    if levels[best] <= 0 or shares[best] < max(MIN_SHARE, MIN_LIFT * ground[best]):
        return []
    below = max(float(levels[min(best + 1, len(levels) - 1)]), 0.0)
    narrow = replace(topic, threshold=(float(levels[best]) + below) / 2)
    on = (scores >= narrow.threshold)[blocks.of] & indexed.view.valid
    if evidence.outside is not None:
        on[evidence.outside] = False
    clauses = fit_chain(evidence.masked(np.flatnonzero(on)), ("fold", "token"), evidence.cost(cfg), (narrow,))
    return [Part("topic", clauses)] if clauses else []


def _sweep(scores: np.ndarray, hits: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(levels, hits, totals) of the blocks that score at least each level, from the highest; blocks
    that hold nothing make no level."""
    held = np.flatnonzero(totals > 0)
    order = held[np.argsort(-scores[held])]  # ties are counted together
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    return scores[order][ends], np.cumsum(hits[order])[ends], np.cumsum(totals[order])[ends]


def telling_words(evidence: Evidence) -> Topic | None:
    """The words of the windows around firings, with no threshold yet; none if no word tells."""
    indexed = evidence.indexed
    blocks, size = indexed.blocks, len(indexed.vocabulary.strings)
    fires = np.bincount(blocks.of[evidence.fired], minlength=len(blocks.starts)) > 0
    reach = np.concatenate([[0], np.cumsum(fires)])
    near = reach[blocks.last] > reach[blocks.first]
    tokens = indexed.view.tokens
    inside = np.bincount(tokens[np.repeat(near, np.diff(blocks.starts, append=len(tokens)))], minlength=size)
    z, delta = _log_odds(inside, indexed.all_counts)
    found = np.flatnonzero((z > MIN_Z) & indexed.vocabulary.is_word)
    order = found[np.argsort(-z[found], kind="stable")][:MAX_WORDS]
    if len(order) == 0:
        return None
    return Topic(tuple(order.tolist()), tuple((np.round(delta[order] * UNIT) / UNIT).tolist()), 0.0)


def _log_odds(inside: np.ndarray, everywhere: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(z-score, log-odds ratio) of each word, inside against outside, `[vocabulary]`."""
    outside = everywhere - inside
    prior = PRIOR_TOKENS * (everywhere + 0.01) / (everywhere + 0.01).sum()
    here, there = inside + prior, outside + prior
    delta = np.log(here / (here.sum() - here)) - np.log(there / (there.sum() - there))
    return delta / np.sqrt(1 / here + 1 / there), delta
