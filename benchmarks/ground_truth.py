"""Every architecture against the same architecture in SAELens and dictionary_learning, on known features.

python -m benchmarks.ground_truth [--minutes 120] [--smoke]

The world is SynthSAEBench-16k: 16,384 features in 768 dimensions, dictionaries of 4,096 latents. All
see the same batches in the same order, have Adam with the same peak learning rate and a linear decay
over the last 20 % of the steps, and call a latent dead after the same number of silent rows; everything
else is as the framework's authors use it (`benchmarks/peers/`).
Each is compared at the same L0 on test rows: a knob (k, or a penalty's coefficient) is searched on
seed 0 until it is met, and then kept for the other seeds. Every try is recorded.

Runs are kept in `docs/results/ground_truth.json` as they come, each with what it was told, so that the
matrix can be run over many sittings, and several processes can share it (`--frameworks`, `--families`):
a run that is there is not repeated; one with another default or of another version of the framework is.
"""

import argparse
import fcntl
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import frameworks, results
from benchmarks.frameworks import ADAPTERS, OURS, ROOT, launch
from benchmarks.knobs import Knob, Try, nearest
from benchmarks.peers.exchange import Job
from benchmarks.world import FULL, SMOKE, Scale, judge, prepare
from sae.files import digest_json, read_json

_settings = cache(frameworks.settings)  # asked of every run, of every cell
Run = Mapping[str, Any]
"""What it was told (`told`), the `target` it was tried for, `figures`, and `facts` of its process."""
FOLDER = ROOT / "runs" / "ground_truth"
LEARNS = "5"  # the version of our code that learns: raised when it learns something else, rounding apart
MAX_TRIES = 6  # of a knob for one L0
FRAMEWORKS = (OURS, "SAELens", "dictionary_learning")
FAMILIES: Mapping[str, Mapping[str, str]] = {
    "relu": {OURS: "relu", "dictionary_learning": "standard"},
    "relu_april": {OURS: "relu_april", "SAELens": "standard", "dictionary_learning": "standard_april"},
    "topk": {OURS: "topk", "SAELens": "topk", "dictionary_learning": "topk"},
    "batchtopk": {OURS: "batchtopk", "SAELens": "batchtopk", "dictionary_learning": "batch_topk"},
    "matryoshka": {OURS: "matryoshka", "SAELens": "matryoshka_batchtopk", "dictionary_learning": "matryoshka"},
    "jumprelu": {OURS: "jumprelu", "SAELens": "jumprelu", "dictionary_learning": "jumprelu"},
    "gated": {OURS: "gated", "SAELens": "gated", "dictionary_learning": "gated"},
    "p_anneal": {OURS: "p_anneal", "dictionary_learning": "p_anneal"},
    "matching_pursuit": {OURS: "matching_pursuit", "SAELens": "matching_pursuit"},
    "jumprelu_tanh": {OURS: "jumprelu_tanh", "SAELens": "jumprelu_tanh"},
    "switch": {OURS: "switch"},
}
"""The same architecture by each framework's name for it."""
FIRST_COEFFICIENTS: Mapping[tuple[str, str], float] = {
    (OURS, "relu"): 3.7,
    (OURS, "relu_april"): 3.6,
    (OURS, "jumprelu"): 1.3e-3,
    (OURS, "jumprelu_tanh"): 3.0,
    (OURS, "gated"): 4.3,
    (OURS, "p_anneal"): 1.8,
    ("SAELens", "standard"): 4.0,
    ("SAELens", "jumprelu"): 4.0,
    ("SAELens", "jumprelu_tanh"): 5.0,
    ("SAELens", "gated"): 5.5,
    ("dictionary_learning", "standard"): 0.1,
    ("dictionary_learning", "standard_april"): 0.12,
    ("dictionary_learning", "gated"): 0.15,
    ("dictionary_learning", "p_anneal"): 0.05,
}
"""Where the search of a penalty's coefficient begins: guesses from a smaller world, which cost a try where they are
bad."""


@dataclass(frozen=True)
class Plan:
    """The matrix that is asked for."""

    scale: Scale
    targets: tuple[float, ...]
    tolerance: float
    """Distance from a target at which an L0 is taken to meet it."""
    seeds: int
    lr: float
    frameworks: tuple[str, ...] = FRAMEWORKS
    families: tuple[str, ...] = tuple(FAMILIES)

    def settings(self, framework: str, architecture: str, knob: float) -> dict[str, Any]:
        """What a framework is told of an architecture."""
        return _settings(framework, architecture, knob, self.scale.n_latents, self.scale.steps)

    def knob(self, framework: str, architecture: str, target: float) -> Knob:
        """How an architecture's L0 is set; k itself, or the target that it is given, begins at the target."""
        name = ADAPTERS[framework].KNOBS[architecture]
        if name in ("k", "max_iterations", "target_l0"):
            return Knob(target, is_rising=True, is_whole=name != "target_l0")
        return Knob(FIRST_COEFFICIENTS[framework, architecture], is_rising=False)


@dataclass(frozen=True)
class Cell:
    """One place of the matrix."""

    target: float
    seed: int
    family: str
    framework: str

    @property
    def architecture(self) -> str:
        return FAMILIES[self.family][self.framework]


def cells(plan: Plan) -> Iterator[Cell]:
    """The matrix in the order in which it is run: frameworks alternate, so that a part of it is balanced."""
    for seed in range(plan.seeds):
        for target in plan.targets:
            for family in plan.families:
                for framework in plan.frameworks:
                    if framework in FAMILIES[family]:
                        yield Cell(target, seed, family, framework)


def next_run(plan: Plan, runs: Sequence[Run], failed: Collection[tuple[str, str]] = ()) -> dict[str, Any] | None:
    """What is to be run next, given what has been run and what cannot be; None if there is nothing."""
    for cell in cells(plan):
        if (cell.framework, cell.architecture) in failed:
            continue
        knob = next_knob(plan, cell, runs) if cell.seed == 0 else chosen_knob(plan, cell, runs)
        if knob is not None and (cell.seed == 0 or find(plan, cell, runs) is None):
            return {**told(plan, cell, knob), "target": cell.target}
    return None


def told(plan: Plan, cell: Cell, knob: float) -> dict[str, Any]:
    """What a run is told: two that are told the same are the same run."""
    return {
        "framework": cell.framework,
        "architecture": cell.architecture,
        "knob": knob,
        "seed": cell.seed,
        "lr": plan.lr,
        "scale": plan.scale.digest,
        "settings": plan.settings(cell.framework, cell.architecture, knob),
        "version": version(cell.framework),
    }


@cache
def version(framework: str) -> str:
    """Of a peer its release, as `make peers` installs it; of ours `LEARNS`."""
    if framework == OURS:
        return LEARNS
    pinned = (ROOT / "benchmarks" / "peers" / f"{framework.lower()}.txt").read_text()
    return next(line for line in pinned.splitlines() if line and not line.startswith("#"))


def kept(plan: Plan, cell: Cell, runs: Sequence[Run]) -> list[Run]:
    """The runs of a cell's framework, architecture and seed, with any knob, for any target."""
    names = {"framework": cell.framework, "architecture": cell.architecture, "seed": cell.seed}
    own = [run for run in runs if run.items() >= names.items()]
    return [run for run in own if all(run[key] == value for key, value in told(plan, cell, run["knob"]).items())]


def next_knob(plan: Plan, cell: Cell, runs: Sequence[Run]) -> float | None:
    """The knob to try next on seed 0; None if the target is met, or enough has been tried."""
    own = kept(plan, cell, runs)
    points = [Try(run["knob"], run["figures"]["l0"]) for run in own]
    is_met = bool(points) and abs(nearest(points, cell.target).l0 - cell.target) <= plan.tolerance
    if is_met or sum(run["target"] == cell.target for run in own) >= MAX_TRIES:
        return None
    return plan.knob(cell.framework, cell.architecture, cell.target).next(points, cell.target)


def chosen_knob(plan: Plan, cell: Cell, runs: Sequence[Run]) -> float | None:
    """The knob whose L0 on seed 0 is nearest to the cell's target; None if seed 0 has not been run."""
    own = kept(plan, replace(cell, seed=0), runs)
    points = [Try(run["knob"], run["figures"]["l0"]) for run in own]
    return nearest(points, cell.target).knob if points else None


def find(plan: Plan, cell: Cell, runs: Sequence[Run]) -> Run | None:
    """The run that fills a cell, if it is there."""
    knob = chosen_knob(plan, cell, runs)
    return next((run for run in kept(plan, cell, runs) if run["knob"] == knob), None)


def execute(plan: Plan, run: Run, folder: Path) -> dict[str, Any]:
    """Train one dictionary in its framework's process, and judge it.

    Raises:
        CalledProcessError: the framework failed; what it said has been shown.
    """
    prepare(plan.scale, run["seed"], folder)
    out = folder / f"{run['framework']}-{run['architecture']}-{digest_json(run)[:8]}"  # a resume must find its own
    out.mkdir(parents=True, exist_ok=True)
    job = Job(
        architecture=run["architecture"],
        settings=run["settings"],
        seed=run["seed"],
        d_in=plan.scale.world.d_in,
        n_latents=plan.scale.n_latents,
        batch=plan.scale.batch,
        steps=plan.scale.steps,
        lr=plan.lr,
        dead_rows=plan.scale.dead_rows,
        data=str(folder / f"data-{run['seed']}"),
        order=str(folder / f"order-{run['seed']}.safetensors"),
        test=str(folder / "test.safetensors"),
        out=str(out),
        mode="float32",
    )
    facts = launch(run["framework"], job)
    figures = judge(out / "found.safetensors", facts["squared_error"], folder)
    shutil.rmtree(out)
    kept = {name: facts[name] for name in ("seconds", "versions")}
    return {**run, "figures": figures, "facts": {**kept, **results.hardware()}}


def _plan_facts(plan: Plan) -> dict[str, Any]:
    choices = {"targets": list(plan.targets), "tolerance": plan.tolerance, "seeds": plan.seeds, "lr": plan.lr}
    return {**choices, "tokens": plan.scale.tokens}


def plan_of(figures: Mapping[str, Any]) -> Plan:
    """The plan of the last sitting, of all frameworks and architectures, and for the targets of all sittings."""
    facts = dict(figures["plan"])
    scale = replace(FULL, tokens=facts.pop("tokens"))
    return Plan(scale, targets=tuple(facts.pop("targets")), **facts)


def main() -> None:
    plan, minutes, folder, path = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    started, failed = time.monotonic(), set()
    while (run := next_run(plan, recorded(path)["runs"], failed)) and time.monotonic() - started < 60 * minutes:
        try:
            done = execute(plan, run, folder)
        except subprocess.CalledProcessError:
            logging.exception("%s %s is left out of this sitting", run["framework"], run["architecture"])
            failed.add((run["framework"], run["architecture"]))
            continue
        record(path, plan, done)
        _log(done)
    if failed:
        sys.exit(f"failed: {sorted(failed)}")


def recorded(path: Path) -> dict[str, Any]:
    """All that has been measured."""
    return read_json(path)["figures"] if path.exists() else {"runs": [], "sittings": []}


def record(path: Path, plan: Plan, run: Run) -> None:
    """Add a run to the results, to which other processes may be adding theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        figures = recorded(path)
        former = figures.get("plan", {}).get("targets", [])
        figures["plan"] = _plan_facts(replace(plan, targets=tuple(sorted({*former, *plan.targets}))))
        figures["runs"].append(run)
        sitting = results.command("ground_truth")
        figures["sittings"] = list(dict.fromkeys([*figures["sittings"], sitting]))
        results.save("ground_truth", figures, path)


def _log(run: Run) -> None:
    found = {name: run["figures"][name] for name in ("l0", "mcc", "f1", "uniqueness", "explained_variance")}
    name = f"{run['framework']} {run['architecture']}, target {run['target']:g}, seed {run['seed']}"
    logging.info("%s, knob %.4g: %s", name, run["knob"], json.dumps(found))


def _arguments() -> tuple[Plan, float, Path, Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many minutes")
    parser.add_argument("--tokens", type=int, help="rows that each dictionary is trained on")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", type=float, nargs="+", default=[20.0, 25.0], help="values of L0")
    parser.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--smoke", action="store_true", help="all of it in minutes, on 64 features; nothing to report")
    given = parser.parse_args()
    choices = {"lr": given.lr, "frameworks": tuple(given.frameworks), "families": tuple(given.families)}
    if given.smoke:
        plan = Plan(SMOKE, targets=(2.0,), tolerance=0.15, seeds=1, **choices)
        folder = FOLDER / SMOKE.digest
        return plan, given.minutes, folder, folder / "smoke.json"
    scale = FULL if given.tokens is None else replace(FULL, tokens=given.tokens)
    plan = Plan(scale, targets=tuple(given.targets), tolerance=1.0, seeds=given.seeds, **choices)
    return plan, given.minutes, FOLDER / scale.digest, results.RESULTS / "ground_truth.json"


if __name__ == "__main__":
    main()
