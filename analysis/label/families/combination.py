"""Two conditions at once: tokens, pairs or shapes at a place ("a capitalised word inside brackets")."""

import numpy as np

from analysis.config import LabelConfig
from analysis.label.evidence import Evidence
from analysis.label.families.place import place_counts
from analysis.label.places import PLACES
from analysis.label.protocol import Named, Part, families
from analysis.label.tree import fit_chain

CHAINS = (("fold", "token"), ("token", "shape_token", "pair"), ("shape", "token"))
MIN_SHARE, MIN_LIFT = 0.6, 1.2
"""A place is tried if it holds this share of the firings, this many times its share of the text."""


@families.register("combination")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    condition = telling_place(evidence)
    if condition is None:
        return []
    indexed = evidence.indexed
    on = (indexed.places[condition.name] != condition.is_negated) & indexed.view.valid
    if evidence.outside is not None:
        on[evidence.outside] = False
    masked = evidence.masked(np.flatnonzero(on))
    found = [fit_chain(masked, chain, evidence.cost(cfg), (condition,)) for chain in CHAINS]
    return [Part("combination", clauses) for clauses in found if clauses]


def telling_place(evidence: Evidence) -> Named | None:
    """The place, or its opposite, that tells most about firing: greatest share less chance."""
    n_fired, n_ground = len(evidence.fired), evidence.n_ground
    if n_fired == 0:
        return None
    hits, totals = place_counts(evidence)
    shares = np.concatenate([hits, n_fired - hits]) / n_fired
    chances = np.concatenate([totals, n_ground - totals]) / n_ground
    fits = (shares >= MIN_SHARE) & (shares >= MIN_LIFT * chances)
    if not fits.any():
        return None
    best = int(np.argmax(np.where(fits, shares - chances, -1)))
    return Named("place", list(PLACES)[best % len(PLACES)], is_negated=best >= len(PLACES))
