"""Tokens by what stands before them: "of" after "University", a capitalised word after "Mr."."""

from analysis.config import LabelConfig
from analysis.label.evidence import Evidence
from analysis.label.protocol import Part, families
from analysis.label.tree import fit_chain

CHAINS = (
    ("token", "shape_token", "pair", "triple"),
    ("shape", "shapes", "previous_shape", "pair"),
    ("previous", "previous_two"),
)


@families.register("context")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    found = [fit_chain(evidence, chain, evidence.cost(cfg)) for chain in CHAINS]
    return [Part("context", clauses) for clauses in found if clauses]
