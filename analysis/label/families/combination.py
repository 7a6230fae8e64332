"""Two conditions at once: tokens, pairs, affixes or forms at a place, within a topic, or soon after some words."""

from collections.abc import Iterator

from analysis.config import LabelConfig
from analysis.label.evidence import Evidence
from analysis.label.families import affix, form
from analysis.label.families.place import telling_place
from analysis.label.families.recent import telling_recent
from analysis.label.families.topic import telling_topic
from analysis.label.protocol import Filter, Named, Part, families
from analysis.label.tree import fit_chain

CHAINS = (("fold", "token"), ("token", "shape_token", "pair"), ("shape", "token"))


@families.register("combination")
def fit(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    told = max(_conditions(evidence, cfg), key=lambda each: each[0], default=None)
    if told is None:
        return []
    condition = told[1]
    masked = evidence.narrowed(condition.mask(evidence.indexed))
    chains = CHAINS if isinstance(condition, Named) else CHAINS[1:]  # topics and recent words narrow tokens themselves
    found = [fit_chain(masked, chain, evidence.cost(cfg), (condition,)) for chain in chains]
    found += affix.affixes(masked, cfg, (condition,))
    found.append(form.classes(masked, cfg, (condition,)))
    return [Part("combination", clauses) for clauses in found if clauses]


def _conditions(evidence: Evidence, cfg: LabelConfig) -> Iterator[tuple[float, Filter]]:
    """(gain, condition) of each kind that tells something."""
    if place := telling_place(evidence):
        yield place
    if "topic" in cfg.families and (topic := telling_topic(evidence)):
        yield topic
    if "recent" in cfg.families and (recent := telling_recent(evidence)):
        yield recent
