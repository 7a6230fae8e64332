"""Frozen labels of a language model on windows of the test split, judged by the model that is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from analysis.chat.structured import Asker
from analysis.config import LlmConfig, WindowConfig
from analysis.explain.judge import answers, intrusions, questions, remembered
from analysis.explain.prompts import IntruderAnswer
from analysis.explain.record import Choice, IntruderScore, LlmRecord
from analysis.label.known import Known
from analysis.nulls import density_neighbours
from analysis.score import resamples
from analysis.splits import FitView, TestView, check_disjoint
from analysis.windows.grade import grade, rules_of, token_judges
from analysis.windows.grid import Grid
from analysis.windows.items import TASKS, Items, Judge, Task, negatives
from analysis.windows.record import WindowRecord
from analysis.windows.sample import sample


def grade_choices(
    choices: Mapping[int, Choice],
    known: Known,
    fit: FitView,
    test: TestView,
    asker: Asker,
    cfg: LlmConfig,
    windows: WindowConfig,
) -> tuple[list[LlmRecord], list[WindowRecord]]:
    """The records of all latents that were asked for, and the rows of their labels on windows.

    Args:
        fit: for the single tokens and the densities; no text of it is shown.

    Raises:
        DataError: a document is in both splits.
    """
    check_disjoint(fit, test)
    grid, draws = Grid.cut(test, windows.width), resamples(test.n_documents, windows.resamples, windows.seed)
    per_kind = replace(windows, per_kind=cfg.test_windows)
    items = {latent: sample(grid, latent, known.neighbours[latent], per_kind) for latent in choices}
    others = _others(choices, fit) if cfg.nulls else dict.fromkeys(choices)
    judges = _judges(choices, others, items, grid, asker, cfg.per_prompt)
    intruders = _intruders(choices, items, grid, asker, cfg.intruders)
    labelled = {latent: known.rules[latent] for latent in choices if latent in known.rules}
    rules = rules_of(labelled, known.vocabulary, test)
    tokens = token_judges(fit, test)
    records, rows = [], []
    for latent, choice in choices.items():
        own, null = judges.get(latent, (None, None))
        rivals = {"token": tokens[latent], "other": null, "rule": rules.get(latent)}
        rows += grade(latent, items[latent], own, rivals, grid, draws)
        records.append(LlmRecord(latent, choice, known.sentences[latent], others[latent], intruders.get(latent, ())))
    return records, rows


def _others(choices: Mapping[int, Choice], fit: FitView) -> dict[int, int | None]:
    """Of each labelled latent another one, whose label is its null."""
    latents = np.array(list(choices))
    is_labelled = np.array([choice.label is not None for choice in choices.values()])
    nearest = density_neighbours(fit.codes.counts()[latents], is_labelled)
    return {
        latent: int(latents[at]) if at >= 0 and choices[latent].label else None
        for latent, at in zip(latents.tolist(), nearest.tolist(), strict=True)
    }


def _judges(
    choices: Mapping[int, Choice],
    others: Mapping[int, int | None],
    items: Mapping[int, Items],
    grid: Grid[TestView],
    asker: Asker,
    per_prompt: int,
) -> dict[int, tuple[Judge, Judge | None]]:
    """Of each labelled latent the model as it judged by its label, and by the other latent's, on its windows."""
    texts = {latent: choice.label.text for latent, choice in choices.items() if choice.label}
    pairs = {(latent, texts[by]) for latent in texts for by in (latent, others[latent]) if by is not None}
    asked: dict[tuple[int, str, Task], Items] = {
        (latent, text, task): items[latent].of(task) for latent, text in sorted(pairs) for task in TASKS
    }
    groups = {key: questions(key[1], own, key[2], grid, per_prompt) for key, own in asked.items()}
    replies = asker.ask_all(groups, "scoring")

    def judge(latent: int, text: str) -> Judge:
        keys: dict[Task, tuple[int, str, Task]] = {task: (latent, text, task) for task in TASKS}
        return remembered({task: answers(asked[key], replies[key], per_prompt) for task, key in keys.items()})

    return {
        latent: (judge(latent, text), None if (other := others[latent]) is None else judge(latent, texts[other]))
        for latent, text in texts.items()
    }


def _intruders(
    choices: Mapping[int, Choice], items: Mapping[int, Items], grid: Grid[TestView], asker: Asker, n: int
) -> dict[int, tuple[IntruderScore, ...]]:
    """Of each latent that is not too rare; no label is needed."""
    able = [latent for latent, choice in choices.items() if choice.status not in ("rare", "silent")]
    tests = {latent: list(intrusions(latent, items[latent], grid, n)) for latent in able}
    replies = asker.ask_all({latent: [test.question for test in own] for latent, own in tests.items()}, "intruders")
    scores: dict[int, tuple[IntruderScore, ...]] = {}
    for latent, own in tests.items():
        pairs = list(zip(own, replies[latent], strict=True))
        scores[latent] = tuple(
            _intruder_score(kind, [(test.right, reply) for test, reply in pairs if test.kind == kind])
            for kind in negatives("detection")
        )
    return scores


def _intruder_score(kind: str, pairs: Sequence[tuple[int, IntruderAnswer | None]]) -> IntruderScore:
    n_right = sum(reply is not None and reply.intruder == right for right, reply in pairs)
    return IntruderScore(kind, len(pairs), n_right, sum(reply is None for _, reply in pairs))
