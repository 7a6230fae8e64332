"""Training speed: the same dictionary on the same activations, ours beside SAELens, dictionary_learning and sparsify.

python -m benchmarks.training [--rounds 5] [--cases topk-24k ...] [--gpu] [--smoke]

Rounds alternate: in each, every contestant trains the case's dictionary in a process of its own, on the same rows in
the same order, with Adam at the same learning rate, gradients clipped where the framework clips (`benchmarks/peers/`).
A step's time is that between two requests for a batch; the first steps are left out. Speed is the median over steps,
then over rounds; a ratio is the median of the rounds' ratios. FVU is of held-out rows after the last step, memory the
largest resident set of the process. Rounds are kept in `docs/results/training.json` as they come.

With `--gpu`: batches of 8,192 rows that lie on the GPU, memory is that allocated there (what a framework before has
left behind included), all frameworks are installed beside ours and run in this process, where starting one takes longer
than its steps; `docs/results/training_gpu.json`.
"""

import argparse
import logging
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks import results
from benchmarks.frameworks import ADAPTERS, OURS, ROOT, here, launch, settings
from benchmarks.peers.exchange import Job
from benchmarks.world import FULL, SMOKE, Scale, prepare
from sae.files import read_json
from train.synthetic import SYNTH_SAE_BENCH_16K

LR = 1e-3
STEPS, WARM_STEPS = 24, 4  # of a round, and how many of them are not timed
SPEED = replace(FULL, batch=4096, tokens=4096 * STEPS, test_rows=8192)
GPU = Scale(replace(SYNTH_SAE_BENCH_16K, orthogonal_steps=0), 24_576, batch=8192, tokens=8192 * STEPS, test_rows=8192)
"""Its directions are random ones: to make them as orthogonal as can be takes longer than all of the training."""
TINY = replace(SMOKE, batch=256, tokens=256 * STEPS, test_rows=1024)


@dataclass(frozen=True)
class Contestant:
    """A framework, and how it computes."""

    framework: str
    architecture: str
    """By its own name."""
    mode: str = ""

    @property
    def name(self) -> str:
        return f"{self.framework}, {self.mode}" if self.mode else self.framework


@dataclass(frozen=True)
class Case:
    """One dictionary, trained by all."""

    name: str
    n_latents: int
    knob: float
    """k, in every framework."""
    contestants: tuple[Contestant, ...]


_TOPK = (
    Contestant(OURS, "topk"),
    Contestant("sparsify", "topk"),
    Contestant("SAELens", "topk"),
    Contestant("SAELens", "topk", "autocast"),
    Contestant("dictionary_learning", "topk"),
    Contestant("dictionary_learning", "topk", "autocast"),
)
_BATCHTOPK = (
    Contestant(OURS, "batchtopk"),
    Contestant("SAELens", "batchtopk"),
    Contestant("dictionary_learning", "batch_topk"),
)
_MATRYOSHKA = (
    Contestant(OURS, "matryoshka"),
    Contestant("SAELens", "matryoshka_batchtopk"),
    Contestant("dictionary_learning", "matryoshka"),
)
CASES = {
    case.name: case
    for case in (
        Case("topk-24k", 24_576, 32, _TOPK),
        Case("topk-6k", 6144, 32, _TOPK),
        Case("topk-131k", 131_072, 32, _TOPK),
        Case("batchtopk-24k", 24_576, 32, _BATCHTOPK),
        Case("matryoshka-24k", 24_576, 32, _MATRYOSHKA),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--frameworks", nargs="+", choices=list(ADAPTERS), default=list(ADAPTERS))
    parser.add_argument("--gpu", action="store_true", help="see above; needs one")
    parser.add_argument("--smoke", action="store_true", help="all of it in a minute, on 64 latents; nothing to report")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    scale = TINY if given.smoke else GPU if given.gpu else SPEED
    folder = ROOT / "runs" / "training" / scale.digest
    path = folder / "smoke.json" if given.smoke else results.RESULTS / f"training{'_gpu' * given.gpu}.json"
    prepare(scale, 0, folder)
    known = read_json(path)["figures"]["cases"] if path.exists() else {}
    for name in given.cases:
        case = CASES[name] if not given.smoke else replace(CASES[name], n_latents=64, knob=4)
        case = replace(case, contestants=tuple(c for c in case.contestants if c.framework in given.frameworks))
        rounds: list[dict[str, Any]] = []
        for _ in range(given.rounds):
            rounds.append({one.name: run(case, one, scale, folder, given.gpu) for one in case.contestants})
            known[name] = rounds
            results.save("training", {**facts(scale), "cases": known}, path)
        for contestant, figures in summary(rounds).items():
            logging.info("%s, %s: %s", name, contestant, figures)


def facts(scale: Scale) -> dict[str, Any]:
    """What all cases have in common."""
    return {
        "batch": scale.batch,
        "steps": scale.steps,
        "d_in": scale.world.d_in,
        "lr": LR,
        "test_rows": scale.test_rows,
    }


def run(case: Case, one: Contestant, scale: Scale, folder: Path, in_process: bool = False) -> dict[str, float]:
    """Train the case's dictionary once; returns its speed, memory and error.

    Raises:
        CalledProcessError: the framework failed; what it said has been shown.
    """
    out = folder / f"{case.name}-{one.name.replace(', ', '-')}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    job = Job(
        architecture=one.architecture,
        settings=settings(one.framework, one.architecture, case.knob, case.n_latents, scale.steps),
        seed=0,
        d_in=scale.world.d_in,
        n_latents=case.n_latents,
        batch=scale.batch,
        steps=scale.steps,
        lr=LR,
        dead_rows=scale.tokens,
        data=str(folder / "data-0"),
        order=str(folder / "order-0.safetensors"),
        test=str(folder / "test.safetensors"),
        out=str(out),
        mode=one.mode,
    )
    found = (here if in_process else launch)(one.framework, job)
    shutil.rmtree(out)
    step = statistics.median(found["step_seconds"][-(scale.steps - WARM_STEPS) :])
    acts = load_file(folder / "test.safetensors")["acts"].double()
    variance = (acts - acts.mean(0)).square().sum().item()
    figures = {
        "step_seconds": round(step, 6),
        "tokens_per_second": round(scale.batch / step),
        "peak_megabytes": round(found["peak_kilobytes"] / 1024),
        "fvu": round(found["squared_error"] / variance, 5),
    }
    logging.info("%s, %s: %s", case.name, one.name, figures)
    return figures


def summary(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds of each contestant, and of ours over its speed (`ratio`)."""
    result = {}
    for name in rounds[0]:
        own = [each[name] for each in rounds]
        result[name] = {metric: statistics.median(figures[metric] for figures in own) for metric in own[0]}
        if OURS in rounds[0]:
            ratios = [each[OURS]["tokens_per_second"] / each[name]["tokens_per_second"] for each in rounds]
            result[name]["ratio"] = round(statistics.median(ratios), 2)
    return result


if __name__ == "__main__":
    main()
