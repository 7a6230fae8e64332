"""A set of tokens: "fires on dog, Dog, dogs". Folded by case, space and plural where that fits."""

from analysis.config import LabelConfig
from analysis.label.evidence import Evidence
from analysis.label.protocol import Part, families
from analysis.label.tree import fit_chain


@families.register("token")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    clauses = fit_chain(evidence, ("fold", "token"), evidence.cost(cfg))
    return [Part("token", clauses)] if clauses else []
