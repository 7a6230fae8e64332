"""Pieces by their last letters or words by their first, whatever these are: "in -ship", "in th-"."""

from analysis.config import LabelConfig
from analysis.label.evidence import Evidence
from analysis.label.forms import AFFIXES
from analysis.label.protocol import Clause, Filter, Part, families
from analysis.label.tree import fit_chain

CHAINS = (
    ("end_2", "end_3", "end_4", "token"),
    ("begin_2", "begin_3", "begin_4", "token"),
)

BREADTH = 4
"""Tokens of an affix on which a latent must fire: fewer are named themselves."""


@families.register("affix")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    return [Part("affix", clauses) for clauses in affixes(evidence, cfg)]


def affixes(evidence: Evidence, cfg: LabelConfig, filters: tuple[Filter, ...] = ()) -> list[tuple[Clause, ...]]:
    """The clauses of each chain that name an affix; `filters` are what the evidence was narrowed to."""
    found = [fit_chain(evidence, chain, evidence.cost(cfg), filters, BREADTH) for chain in CHAINS]
    return [clauses for clauses in found if any(clause.column in AFFIXES for clause in clauses)]
