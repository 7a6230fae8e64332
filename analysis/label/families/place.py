"""One place or its opposite: "at the start of a line", "not inside brackets"."""

import numpy as np

from analysis.config import LabelConfig
from analysis.label.evidence import Evidence, chance
from analysis.label.places import PLACES
from analysis.label.protocol import Clause, Named, Part, families


@families.register("place")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    hits, totals = place_counts(evidence)
    known, base = evidence.n_true, evidence.n_predicted + evidence.n_firings
    gains = hits - evidence.cost(cfg)
    rates = (known + gains) / (base + totals)
    best = int(np.argmax(rates))
    if gains[best] <= 0 or rates[best] <= known / base:
        return []
    score = chance(int(hits[best]), int(totals[best]))
    return [Part("place", (Clause(None, (), (score,), (Named("place", list(PLACES)[best]),)),))]


def place_counts(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """(firings, positions) of each place on the ground, `[n_places]` each; not for masked evidence."""
    masks, totals = evidence.indexed.place_masks, evidence.indexed.place_counts
    if evidence.outside is not None:
        totals = totals - masks[:, evidence.outside].sum(axis=1)
    return masks[:, evidence.fired].sum(axis=1), totals
