"""Words of a kind by the network's own embedding, and tokens after or of such a kind: "words like air, wind, sea".

Rules of tokens know only those that they have seen fire; a kind says the same of its other words.
"""

from analysis.config import LabelConfig
from analysis.label.evidence import Evidence
from analysis.label.protocol import Part, families
from analysis.label.tree import fit_chain

CHAINS = (
    ("wide", "kind", "narrow", "fold", "token"),
    ("token", "wide_token", "kind_token", "pair"),
    ("kind", "kinds", "token_kind", "pair"),
    ("wide", "wides", "kinds", "kind_token", "pair"),
)


@families.register("kind")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    if evidence.indexed.vocabulary.kinds is None:
        return []
    found = [fit_chain(evidence, chain, evidence.cost(cfg)) for chain in CHAINS]
    return [Part("kind", clauses) for clauses in found if clauses]
