"""One place or its opposite: "at the start of a line", "not inside brackets"."""

from functools import lru_cache

import numpy as np

from analysis.config import LabelConfig
from analysis.label.evidence import MIN_GAIN, Evidence, chance
from analysis.label.places import NAMES
from analysis.label.protocol import Clause, Named, Part, families


@families.register("place")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    hits, totals = place_counts(evidence)
    hits = np.concatenate([hits, len(evidence.fired) - hits])
    totals = np.concatenate([totals, evidence.n_ground - totals])
    known, base = evidence.n_true, evidence.n_predicted + evidence.n_firings
    gains = hits - evidence.cost(cfg)
    rates = (known + gains) / (base + totals)
    best = int(np.argmax(rates))
    if gains[best] <= 0 or rates[best] <= known / base:
        return []
    score = chance(int(hits[best]), int(totals[best]))
    return [Part("place", (Clause(None, (), (score,), (place_at(best),)),))]


def place_counts(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """(firings, positions) of each place on the ground, in the order of `NAMES`; not for masked evidence."""
    places, totals = evidence.indexed.places, evidence.indexed.place_counts
    if evidence.outside is not None:
        totals = totals - places.counts(evidence.outside)
    return places.counts(evidence.fired), totals


def place_at(number: int) -> Named:
    """Number i of `NAMES` followed by their opposites."""
    return Named("place", NAMES[number % len(NAMES)], is_negated=number >= len(NAMES))


@lru_cache(maxsize=1)
def telling_place(evidence: Evidence) -> tuple[float, Named] | None:
    """(gain, place): the place, or its opposite, that best parts the firings from the same tokens elsewhere."""
    if len(evidence.fired) == 0:
        return None
    positions, weights = evidence.like
    places = evidence.indexed.places
    hits = places.counts(evidence.fired) / len(evidence.fired)
    like = places.weighed(positions, weights) / weights.sum()
    shares, grounds = np.concatenate([hits, 1 - hits]), np.concatenate([like, 1 - like])
    gains = evidence.gains(shares, grounds)
    best = int(np.argmax(gains))
    return (float(gains[best]), place_at(best)) if gains[best] > MIN_GAIN else None
