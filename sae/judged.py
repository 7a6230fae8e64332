"""Labels judged on windows of held-out text: those of the rules, by the rules; those of a language model, by it.

    windows/windows.parquet          a row a latent, task and kind of silent windows
    llm_labels/llm_labels.parquet    what a language model said of each latent that it was asked about
    llm_labels/llm_windows.parquet   those labels on windows
    chat/answers.sqlite              all that it answered; outside the boxes, so that nothing is paid for twice

This file, like `sae.run`, sees the analysis and imports it inside its functions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.config import to_json
from sae.run import Run
from sae.stage import Box

if TYPE_CHECKING:
    from analysis.explain.labeller import Labeller

VERSIONS = {"windows": 1, "llm_labels": 1}
"""Of the code behind each box, see `sae.run.VERSIONS`."""


def windows(run: Run) -> Box:
    """The scores of the run's labels on windows."""
    from analysis.label.known import Known
    from analysis.splits import FitView, TestView
    from analysis.windows import record
    from analysis.windows.grade import grade_rules

    cfg = run.cfg.analysis.windows

    def build(out: Path) -> Mapping[str, Any]:
        fit = run.view(FitView)
        known = Known.of(run.index.path, run.labels.path, fit)
        rows = grade_rules(known, fit, run.view(TestView), cfg)
        record.write(rows, out / "windows.parquet")
        return record.facts(rows, cfg.per_kind)

    return run.stage("windows", _inputs(run, "windows"), build)


def labeller(run: Run) -> "Labeller":
    """What asks a language model for labels of the run's latents; nothing is asked before it is told to.

    Raises:
        ConfigError: one of the latents does not exist.
        DataError: a document is in two of the splits.
    """
    from analysis.explain.labeller import Labeller
    from analysis.label.known import Known
    from analysis.splits import FitView, SelectView

    cfg, fit = run.cfg.analysis, run.view(FitView)
    known = Known.of(run.index.path, run.labels.path, fit)
    return Labeller(fit, run.view(SelectView), known, cfg.llm, cfg.windows)


def llm_labels(run: Run) -> Box:
    """Labels of a language model, and their scores on windows.

    Raises:
        ConfigError: it would cost more than it may, or there is no key.
        DataError: the model cannot be reached.
    """
    from analysis.config import HOW_ASKED
    from analysis.explain.build import build
    from analysis.splits import TestView

    cfg = run.cfg.analysis
    asked = {name: value for name, value in to_json(cfg.llm).items() if name not in HOW_ASKED}
    answers = run.out / "chat" / "answers.sqlite"
    return run.stage(
        "llm_labels",
        {**_inputs(run, "llm_labels"), "llm": asked},
        lambda out: build(labeller(run), run.view(TestView), cfg.llm, cfg.windows, answers, out),
    )


def _inputs(run: Run, name: str) -> dict[str, Any]:
    boxes = {"codes": run.codes.digest, "index": run.index.digest, "labels": run.labels.digest}
    return {**boxes, "windows": to_json(run.cfg.analysis.windows), "version": VERSIONS[name]}
