"""The table of architectures: paper, file, what each finds of known features, what it keeps of a network."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import markdown
from benchmarks.architectures import CASES
from benchmarks.ground_truth import OURS, Plan, Run, plan_of
from benchmarks.ground_truth_tables import means
from sae import architectures
from sae.architectures.configs import configs

COLUMNS = ("architecture", "what it is", "file", "F1", "MCC", "FVU", "CE recovered", "L0")
TRANSCODER = "Any of these that is given a target; here `topk` (Dunefsky et al. 2024, arXiv:2406.11944)"


def table(known: Mapping[str, Any] | None, gpt2: Mapping[str, Any] | None) -> str:
    """A row for every architecture that is built in; a dash where nothing has been measured.

    Args:
        known: figures of `benchmarks.ground_truth`.
        gpt2: figures of `benchmarks.architectures`.
    """
    plan, runs = (plan_of(known), known["runs"]) if known else (None, [])
    built = architectures.names()
    rows = []
    for case in CASES:
        assert case.type in built
        about = TRANSCODER if case.name == "transcoder" else summary(configs.get(case.type))
        file = architectures.architectures.get(case.type).__module__.rpartition(".")[2] + ".py"
        measured = [*_known(plan, runs, case.name), *_gpt2(gpt2 and gpt2["cases"].get(case.name))]
        rows.append([f"`{case.name}`", about, f"[{file}](../sae/architectures/{file})", *measured])
    return "\n".join(markdown.table(COLUMNS, rows))


def summary(config: type) -> str:
    """The first sentence of a docstring: what it is, and whose; on one line, without its stop."""
    text = re.sub(r"\s+", " ", (config.__doc__ or "").strip())
    found = re.match(r".*?\)(?=\.?( |$))", text)
    return (found[0] if found else text).replace("|", "\\|")


def _known(plan: Plan | None, runs: Sequence[Run], name: str) -> list[str]:
    found = means(plan, runs, name, OURS, plan.targets[-1]) if plan and name in plan.families else {}
    return [str(found[metric]) if found else "–" for metric in ("f1", "mcc")]


def _gpt2(case: Mapping[str, Any] | None) -> list[str]:
    return [f"{case['fvu']:.3f}", f"{case['ce_recovered']:.3f}", f"{case['l0']:.1f}"] if case else ["–"] * 3
