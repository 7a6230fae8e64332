"""Up to three classes of form: "numbers of four digits", "pieces that end in -ing"."""

import numpy as np

from analysis.config import LabelConfig
from analysis.label.evidence import Evidence, chance
from analysis.label.forms import total_of
from analysis.label.protocol import Clause, Filter, Named, Part, families

MAX_CLASSES = 3


@families.register("form")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    clauses = classes(evidence, cfg)
    return [Part("form", clauses)] if clauses else []


def classes(evidence: Evidence, cfg: LabelConfig, filters: tuple[Filter, ...] = ()) -> tuple[Clause, ...]:
    """A clause for each class, the best first; `filters` are what the evidence was narrowed to."""
    indexed = evidence.indexed
    forms, size = indexed.vocabulary.forms, len(indexed.vocabulary.strings)
    hits, totals = evidence.token_hits, evidence.token_totals
    class_hits = total_of(forms.table, hits)
    class_totals = indexed.form_counts - total_of(forms.table, indexed.token_counts - totals)
    known, base = float(evidence.n_true), evidence.n_predicted + evidence.n_firings
    left = np.ones(size, dtype=bool)
    clauses: list[Clause] = []
    for _ in range(MAX_CLASSES):
        gains = class_hits - evidence.cost(cfg)
        rates = (known + gains) / (base + class_totals)
        best = int(np.argmax(rates))
        if gains[best] <= 0 or rates[best] <= known / base:
            break
        score = chance(int(class_hits[best]), int(class_totals[best]))
        clauses.append(Clause(None, (), (score,), (Named("form", forms.names[best]), *filters)))
        known, base = known + float(gains[best]), base + int(class_totals[best])
        taken = forms.table[:, best] & left
        left &= ~taken
        class_hits = class_hits - total_of(forms.table, hits * taken)
        class_totals = class_totals - total_of(forms.table, totals * taken)
    return tuple(clauses)
