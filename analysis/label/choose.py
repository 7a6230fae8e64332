"""From the evidence on the fit split to one label, chosen on the select split, or none."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

import analysis.label.families  # noqa: F401 - enters the families
from analysis.config import LabelConfig
from analysis.label.evidence import Evidence
from analysis.label.indexed import Indexed
from analysis.label.protocol import Clause, Label, Part, families
from analysis.nulls import best_token
from analysis.score import Counts, counts
from analysis.splits import FitView, SelectView

Status = Literal["labelled", "abstained", "rare", "silent"]


@dataclass(frozen=True)
class Choice:
    """The frozen outcome for one latent, before anything is scored."""

    status: Status
    label: Label | None
    """None unless `status` is `labelled`."""
    token: Label | None
    """The best single token, the baseline; none if the latent is silent on the fit split."""
    token_set: Label | None
    """The best set of tokens, a harder baseline."""
    select_f1: float | None
    """F1 on the select split of the best candidate, given or rejected."""
    shares: tuple[float, ...] = ()
    """Share of the select split's firings that each part of the label covers."""


def choose(fit: Indexed[FitView], select: Indexed[SelectView], latent: int, cfg: LabelConfig) -> Choice:
    """Fit all families and choose; the test split is out of reach here."""
    fired, _ = fit.view.firing(latent)
    target, _ = select.view.firing(latent)
    if len(fired) == 0:
        return Choice("rare", None, None, None, None)
    evidence = Evidence(fit, fired, len(fired))
    token = _single_token(evidence)
    token_set = next((Label((part,)) for part in families.get("token")(evidence, cfg)), token)
    if len(fired) < cfg.min_fit or len(target) < cfg.min_select:
        return Choice("rare", None, token, token_set, None)
    contest = _Contest(select, target, cfg)
    best = contest.best([token, *(Label((part,)) for part in _candidates(evidence, cfg))])
    best = _alternatives(evidence, contest, best, cfg)
    if contest.worth(best) < contest.worth(token) + cfg.margin:
        best = token
    density = len(target) / select.n_valid
    if contest.worth(best) < max(cfg.min_f1, 2 * density / (1 + density) + cfg.margin):
        return Choice("abstained", None, token, token_set, contest.f1(best))
    shares = tuple(round(contest.counts(Label((part,))).recall, 6) for part in best.parts)
    return Choice("labelled", best, token, token_set, contest.f1(best), shares)


class _Contest:
    """Candidates on the select split; each is run once."""

    def __init__(self, select: Indexed[SelectView], target: np.ndarray, cfg: LabelConfig) -> None:
        self.select, self.target, self.cfg = select, target, cfg
        self._counts: dict[Label, Counts] = {}

    def counts(self, label: Label) -> Counts:
        if label not in self._counts:
            positions, _ = label.predict(self.select)
            self._counts[label] = counts(positions, self.target)
        return self._counts[label]

    def f1(self, label: Label) -> float:
        return self.counts(label).f1

    def worth(self, label: Label) -> float:
        """F1 less the price of the label's length, and less what may be luck.

        A label of n atoms was picked from so many like it that log2(1 + n) hits, times
        `luck_cost`, count for nothing; this matters where a latent fires seldom.
        """
        found = self.counts(label)
        luck = self.cfg.luck_cost * float(np.log2(1 + label.n_atoms))
        return (
            found.f1
            - 2 * luck / (found.n_predicted + found.n_firings)
            - self.cfg.length_cost * float(np.log2(label.n_atoms))
        )

    def best(self, candidates: list[Label]) -> Label:
        """The worthiest; the first among equals."""
        return max(candidates, key=self.worth)


def _single_token(evidence: Evidence) -> Label:
    indexed = evidence.indexed
    size = len(indexed.vocabulary.strings)
    hits = np.bincount(indexed.view.tokens[evidence.fired], minlength=size)
    token = best_token(hits, indexed.token_counts, evidence.n_firings)
    key = token + 1  # the key of one slot: 0 stands for outside the context
    score = float(hits[token] / indexed.token_counts[token])
    return Label((Part("token", (Clause("token", (key,), (round(score, 6),)),)),))


def _candidates(evidence: Evidence, cfg: LabelConfig) -> list[Part]:
    return [part for name in cfg.families for part in families.get(name)(evidence, cfg)]


def _alternatives(evidence: Evidence, contest: _Contest, best: Label, cfg: LabelConfig) -> Label:
    """`best`, or it and what explains the firings that it misses; the first part is then chosen again beside it."""
    while len(best.parts) < cfg.max_parts and cfg.min_f1 / 2 <= contest.f1(best) < 1 - cfg.margin:
        added = _with_another(evidence, contest, best, cfg)
        if added is best:
            return best
        again = _with_another(evidence, contest, Label(added.parts[1:]), cfg)
        best = again if len(again.parts) == len(added.parts) and contest.worth(again) > contest.worth(added) else added
    return best


def _with_another(evidence: Evidence, contest: _Contest, best: Label, cfg: LabelConfig) -> Label:
    """`best`, or it and the part that adds most beside it."""
    left = evidence.without(best.predict(evidence.indexed)[0])
    if len(left.fired) < cfg.min_fit:
        return best
    winner = contest.best([best, *(Label((*best.parts, part)) for part in _candidates(left, cfg))])
    return best if contest.worth(winner) < contest.worth(best) + cfg.margin else winner
