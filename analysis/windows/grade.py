"""Frozen labels on windows of the test split, beside their rivals on the same windows."""

from collections.abc import Iterator, Mapping

import numpy as np

from analysis.config import WindowConfig
from analysis.label.columns import Vocabulary
from analysis.label.indexed import Indexed
from analysis.label.known import Known
from analysis.label.protocol import Label
from analysis.nulls import best_token
from analysis.score import resamples
from analysis.splits import FitView, TestView, check_disjoint
from analysis.windows.grid import Grid
from analysis.windows.items import TASKS, Items, Judge, negatives
from analysis.windows.judge import rule
from analysis.windows.record import WindowRecord
from analysis.windows.sample import sample
from analysis.windows.score import score

Rivals = Mapping[str, Judge | None]
"""`token`, `other` and `rule`, see `WindowRecord`."""


def grade(
    latent: int, items: Items, judge: Judge | None, rivals: Rivals, grid: Grid[TestView], draws: np.ndarray
) -> Iterator[WindowRecord]:
    """A latent's rows.

    Args:
        judge: by its label; none where it has none.
        rivals: judges by other labels, asked where it has one.
        draws: of documents, see `analysis.score.resamples`.
    """
    for task in TASKS:
        asked = items.of(task)
        documents = grid.documents(asked.windows)
        own = score(asked, judge(asked, task), task, documents, draws) if judge else {}
        others = {
            name: score(asked, rival(asked, task), task, documents, draws[:0])
            for name, rival in rivals.items()
            if judge and rival
        }
        for kind in negatives(task):
            yield WindowRecord(
                latent=latent,
                task=task,
                negatives=kind,
                n_fires=asked.count("fires"),
                n_silent=asked.count(kind),
                scores=own.get(kind),
                **{name: others[name][kind].balanced_accuracy if name in others else None for name in rivals},
            )


def grade_rules(known: Known, fit: FitView, test: TestView, cfg: WindowConfig) -> list[WindowRecord]:
    """The rows of all latents, those without a rule too.

    Raises:
        DataError: a document is in both splits.
    """
    check_disjoint(fit, test)
    grid, draws = Grid.cut(test, cfg.width), resamples(test.n_documents, cfg.resamples, cfg.seed)
    judges, tokens = rules_of(known.rules, known.vocabulary, test), token_judges(fit, test)
    records: list[WindowRecord] = []
    for latent in range(test.n_latents):
        items, other = sample(grid, latent, known.neighbours[latent], cfg), known.others[latent]
        rivals = {"token": tokens[latent], "other": None if other is None else judges.get(other)}
        records += grade(latent, items, judges.get(latent), rivals, grid, draws)
    return records


def rules_of(labels: Mapping[int, Label], vocabulary: Vocabulary, test: TestView) -> dict[int, Judge]:
    """The judge that each rule is."""
    indexed = Indexed(test, vocabulary)
    return {latent: rule(label.predict(indexed)[0]) for latent, label in labels.items()}


def token_judges(fit: FitView, test: TestView) -> list[Judge | None]:
    """Of each latent the rule "fires on this token", of the one that is best on the fit split; none if it is silent
    there."""
    size = len(fit.strings)
    counts = np.bincount(fit.tokens[fit.valid], minlength=size)
    positions = np.flatnonzero(test.valid)
    by_token = positions[np.argsort(test.tokens[positions], kind="stable")]
    bounds = np.searchsorted(test.tokens[by_token], np.arange(size + 1))
    judges: list[Judge | None] = []
    for latent in range(fit.n_latents):
        fired, _ = fit.firing(latent)
        best = best_token(np.bincount(fit.tokens[fired], minlength=size), counts, len(fired))
        judges.append(rule(by_token[bounds[best] : bounds[best + 1]]) if len(fired) else None)
    return judges
