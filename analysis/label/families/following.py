"""Tokens by what comes next: "just before a comma". Such a rule reads one token ahead, and says so.

The network does not see that token: a latent that such a rule fits foretells it.
"""

from analysis.config import LabelConfig
from analysis.label.evidence import Evidence
from analysis.label.protocol import Part, families
from analysis.label.tree import fit_chain

CHAINS = (("next_shape", "next"), ("token", "token_next_shape", "token_next"))


@families.register("next")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    found = [fit_chain(evidence, chain, evidence.cost(cfg)) for chain in CHAINS]
    return [Part("next", clauses) for clauses in found if clauses]
