"""The tables of the ground-truth benchmark: side by side, and beside what was published."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from benchmarks import markdown
from benchmarks.ground_truth import FAMILIES, OURS, Cell, Plan, Run, find, kept

METRICS = {"f1": "F1", "mcc": "MCC", "uniqueness": "uniqueness", "explained_variance": "EV"}
JUDGED = ("f1", "mcc")
"""What says whether features were found; EV does not, where a dictionary fits more than the features."""
PUBLISHED: Mapping[str, Mapping[float, tuple[float, float, float, float]]] = {
    "batchtopk": {25: (0.7316, 0.7574, 0.9837, 0.7923), 20: (0.8183, 0.7526, 0.9760, 0.7889)},
    "matryoshka": {25: (0.8793, 0.7927, 0.9987, 0.7792), 20: (0.8601, 0.7455, 0.9874, 0.7699)},
    "matching_pursuit": {25: (0.4464, 0.6930, 0.8281, 0.8351), 20: (0.4439, 0.6748, 0.7552, 0.8267)},
    "relu_april": {25: (0.5562, 0.6039, 0.8976, 0.7654), 20: (0.5777, 0.5834, 0.8528, 0.7501)},
    "jumprelu": {25: (0.7317, 0.7527, 0.9885, 0.7951), 20: (0.8241, 0.7434, 0.9781, 0.7906)},
}
"""SynthSAEBench (Chanin & Garriga-Alonso 2026, arXiv:2602.14687): F1, MCC, uniqueness, EV by L0."""


class Mean(NamedTuple):
    value: float
    error: float
    """Standard error; NaN of one value."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        n = len(values)
        return cls(statistics.fmean(values), statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan)

    def __str__(self) -> str:
        return f"{self.value:.3f}" if math.isnan(self.error) else f"{self.value:.3f} ± {self.error:.3f}"


def section(plan: Plan, runs: Sequence[Run], sittings: Sequence[str] = ()) -> str:
    """Everything that docs/benchmarks.md says of the benchmark: at each L0 of the families of which ours has been run
    on every seed, and nothing if there is none."""
    shown = {target: [f for f in plan.families if is_complete(plan, runs, f, OURS, target)] for target in plan.targets}
    targets = tuple(target for target in plan.targets if shown[target])
    families = tuple(family for family in plan.families if any(family in own for own in shown.values()))
    plan = replace(plan, targets=targets, families=families)
    if not families:
        return ""
    tables = [_table(replace(plan, families=tuple(shown[target])), runs, target) for target in plan.targets]
    return "\n".join([_about(plan), *tables, _verdict(plan, runs), _searches(plan, runs), _sittings(sittings)])


def is_complete(plan: Plan, runs: Sequence[Run], family: str, framework: str, target: float) -> bool:
    """Whether a framework's architecture has been run on every seed."""
    return framework in FAMILIES[family] and len(found(plan, runs, family, framework, target)) == plan.seeds


def found(plan: Plan, runs: Sequence[Run], family: str, framework: str, target: float) -> list[Run]:
    """The runs that fill the cells of a framework's architecture, one a seed; none if it has only been run for
    another L0, and did not happen to meet this one."""
    own = [Cell(target, seed, family, framework) for seed in range(plan.seeds)]
    filled = [run for cell in own if (run := find(plan, cell, runs)) is not None]
    was_tried = any(run["target"] == target for run in kept(plan, own[0], runs))
    is_near = bool(filled) and abs(filled[0]["figures"]["l0"] - target) <= plan.tolerance
    return filled if was_tried or is_near else []


def means(plan: Plan, runs: Sequence[Run], family: str, framework: str, target: float) -> dict[str, Mean]:
    """Figures of a framework's architecture over the seeds that have been run; empty if none."""
    own = [run["figures"] for run in found(plan, runs, family, framework, target)]
    return {name: Mean.of([figures[name] for figures in own]) for name in own[0]} if own else {}


def is_met(plan: Plan, figures: Mapping[str, Mean], target: float) -> bool:
    """Whether the L0 is that of the table; by twice the tolerance, since all seeds have the knob of seed 0."""
    return abs(figures["l0"].value - target) <= 2 * plan.tolerance


def _about(plan: Plan) -> str:
    scale = plan.scale
    return f"""## Known features: side by side with SAELens and dictionary_learning

SynthSAEBench-16k (`train/synthetic.py`): {scale.world.n_features:,} features in {scale.world.d_in} dimensions,
dictionaries of {scale.n_latents:,} latents. Each was trained on **{scale.tokens:,} tokens** (rows) in batches of
{scale.batch:,}, the same rows in the same order in every framework, with Adam at a peak learning rate of {plan.lr:g},
a linear decay over the last 20 %, and AuxK for latents that were silent for {scale.dead_rows:,} rows; all else is as
the framework's authors use it (`benchmarks/peers/` says how). No learning rate was searched, and it was in this world
that [the first weights](decisions/first-weights.md) were chosen. Figures are of {scale.test_rows:,} other rows, with
latents as they are in use: mean ± standard error over {plan.seeds} seeds (samples,
initial weights, order of rows) in one world. L0 is what was met on them. The published runs saw 200,000,000 tokens
({200e6 / scale.tokens:.0f} times as many) in batches of 1,024, at a learning rate of 3e-4; their rows stand here for
orientation only. F1, MCC and uniqueness as in `sae/truth.py`; EV is the explained variance.
"""


def _table(plan: Plan, runs: Sequence[Run], target: float) -> str:
    header = ["architecture", "framework", "L0", *METRICS.values(), "dead"]
    lines: list[list[str]] = []
    for family in plan.families:
        rows = {name: means(plan, runs, family, name, target) for name in plan.frameworks if name in FAMILIES[family]}
        met = [figures for figures in rows.values() if figures and is_met(plan, figures, target)]
        best = {m: max((figures[m].value for figures in met), default=math.nan) for m in METRICS}
        for name, figures in rows.items():
            if figures:
                is_near = is_met(plan, figures, target)
                values = [f"**{figures[m]}**" if figures[m].value == best[m] else str(figures[m]) for m in METRICS]
                l0, dead = f"{figures['l0'].value:.1f}", f"{figures['dead_fraction'].value:.1%}"
                n = len(found(plan, runs, family, name, target))
                who = name if n == plan.seeds else f"{name} ({n} of {plan.seeds} seeds)"
                lines.append([family, who, l0 if is_near else f"{l0} (not met)", *values, dead])
        if target in PUBLISHED.get(family, {}):
            values = [f"*{value:.3f}*" for value in PUBLISHED[family][target]]
            lines.append([family, "*published*", f"*{target:g}*", *values, ""])
    return "\n".join([f"### L0 = {target:g}\n", *markdown.table(header, lines), ""])


def is_fair(plan: Plan, ours: Mapping[str, Mean], theirs: Mapping[str, Mean], target: float) -> bool:
    """Whether two may be compared: both at the table's L0, and no further from each other than it allows."""
    is_near = abs(ours["l0"].value - theirs["l0"].value) <= plan.tolerance
    return is_near and is_met(plan, ours, target) and is_met(plan, theirs, target)


def _verdict(plan: Plan, runs: Sequence[Run]) -> str:
    """How often ours is better, as good, or worse, by the standard error of the difference, where both have been run
    on every seed; nothing of one seed, which has none."""
    if plan.seeds < 2:
        return ""
    counts, worse = {"better": 0, "as good": 0, "worse": 0}, []
    for target in plan.targets:
        for family in plan.families:
            ours = means(plan, runs, family, OURS, target)
            for name in plan.frameworks:
                if name == OURS or not all(is_complete(plan, runs, family, who, target) for who in (OURS, name)):
                    continue
                theirs = means(plan, runs, family, name, target)
                for metric in JUDGED if is_fair(plan, ours, theirs, target) else ():
                    outcome = compare(ours[metric], theirs[metric])
                    counts[outcome] += 1
                    if outcome == "worse":
                        worse.append(f"{family} at L0 {target:g} against {name} ({METRICS[metric]})")
    total = sum(counts.values())
    text = (
        f"Of {total} comparisons of F1 and MCC with a peer's same architecture at the same L0, ours is better by more "
        f"than a standard error of the difference in {counts['better']}, within one in {counts['as good']}, and worse "
        f"in {counts['worse']}{': ' + '; '.join(worse) if worse else ''}.\n"
    )
    return text if total else ""


def compare(ours: Mean, theirs: Mean) -> str:
    """`better`, `as good` or `worse`, by the standard error of the difference."""
    error = math.hypot(ours.error, theirs.error)
    difference = ours.value - theirs.value
    return "as good" if abs(difference) <= error else "better" if difference > 0 else "worse"


def _searches(plan: Plan, runs: Sequence[Run]) -> str:
    """Every knob that was tried on seed 0, with the L0 that it gave."""
    lines = ["<details><summary>Every value of k or of a coefficient that was tried, and its L0</summary>\n"]
    for framework in plan.frameworks:
        for family in plan.families:
            if framework in FAMILIES[family]:
                cell = Cell(plan.targets[0], 0, family, framework)  # runs for any target are told alike
                own = sorted((run["knob"], run["figures"]["l0"]) for run in kept(plan, cell, runs))
                pairs = ", ".join(f"{knob:g} → {l0:.1f}" for knob, l0 in own)
                lines.append(f"- {framework} {cell.architecture}: {pairs}")
    return "\n".join([*lines, "\n</details>\n"])


def _sittings(sittings: Sequence[str]) -> str:
    commands = "".join(f"- `{command}`\n" for command in sittings)
    return f"<details><summary>The sittings in which it was measured</summary>\n\n{commands}\n</details>\n"
