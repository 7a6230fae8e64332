"""Training speed: the same dictionary on the same activations, ours beside SAELens, dictionary_learning and sparsify.

python -m benchmarks.training [--rounds 5] [--steps 24] [--cases topk-24k ...] [--gpu] [--smoke]

Rounds alternate: in each, every contestant trains the case's dictionary in a process of its own, on the same rows in
the same order, with Adam at the same learning rate, gradients clipped where the framework clips (`benchmarks/peers/`).
A step's time is that between two requests for a batch; the first steps are left out. Speed is the median over steps,
then over rounds; a ratio is the median of the rounds' ratios. FVU is of held-out rows after the last step, memory the
largest resident set of the process. Rounds are kept in `docs/results/training.json` as they come, with the steps of the
case beside where it was measured. Threads are torch's: `OMP_NUM_THREADS`.

With `--gpu`: batches of 8,192 rows that lie on the GPU, memory is that allocated there (what a framework before has
left behind included), all frameworks are installed beside ours and run in this process, where starting one takes longer
than its steps; `docs/results/training_gpu.json`.
"""

import argparse
import logging
import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks import results
from benchmarks.frameworks import ADAPTERS, OURS, ROOT, here, launch, settings
from benchmarks.peers.exchange import Job
from benchmarks.peers.sae_atlas import PLAIN
from benchmarks.rounds import summary
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
    knob: float | None = None
    """Instead of the case's."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Settings beside those that all comparisons have."""
    label: str = ""

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.framework, self.mode, self.label) if part)


@dataclass(frozen=True)
class Case:
    """One dictionary, trained by all."""

    name: str
    n_latents: int
    knob: float
    """k in every framework, or our penalty's coefficient."""
    contestants: tuple[Contestant, ...]


_TOPK = (
    Contestant(OURS, "topk"),
    Contestant(OURS, "topk", PLAIN),
    Contestant("sparsify", "topk"),
    Contestant("SAELens", "topk"),
    Contestant("SAELens", "topk", "autocast"),
    Contestant("dictionary_learning", "topk"),
    Contestant("dictionary_learning", "topk", "autocast"),
)
_SHORT, _SHORT_LENS = {"threshold_steps": 4}, {"topk_threshold_lr": 1 / 4}
"""Thresholds averaged over the last of few steps, not over 100; dictionary_learning's are of the second half."""
_BATCHTOPK = (
    Contestant(OURS, "batchtopk", others=_SHORT),
    Contestant("SAELens", "batchtopk", others=_SHORT_LENS),
    Contestant("dictionary_learning", "batch_topk"),
)
_MATRYOSHKA = (
    Contestant(OURS, "matryoshka", others=_SHORT),
    Contestant("SAELens", "matryoshka_batchtopk", others=_SHORT_LENS),
    Contestant("dictionary_learning", "matryoshka"),
)
_SPARSE = "L0 < 128"
"""The others' steps take as long, however few latents fire."""
_RELU = (
    Contestant(OURS, "relu"),
    Contestant(OURS, "relu", label=_SPARSE, knob=9.0),
    Contestant("SAELens", "standard"),
    Contestant("dictionary_learning", "standard"),
)
_JUMPRELU = (
    Contestant(OURS, "jumprelu"),
    Contestant(OURS, "jumprelu", label=_SPARSE, others={"threshold": 0.01}),
    Contestant("SAELens", "jumprelu"),
    Contestant("dictionary_learning", "jumprelu", knob=100),
)
_GATED = (
    Contestant(OURS, "gated"),
    Contestant(OURS, "gated", label=_SPARSE, knob=9.0),
    Contestant("SAELens", "gated"),
    Contestant("dictionary_learning", "gated"),
)
CASES = {
    case.name: case
    for case in (
        Case("topk-24k", 24_576, 32, _TOPK),
        Case("topk-6k", 6144, 32, _TOPK),
        Case("topk-131k", 131_072, 32, _TOPK),
        Case("batchtopk-24k", 24_576, 32, _BATCHTOPK),
        Case("matryoshka-24k", 24_576, 32, _MATRYOSHKA),
        Case("relu-24k", 24_576, 0.01, _RELU),
        Case("jumprelu-24k", 24_576, 0.01, _JUMPRELU),
        Case("gated-24k", 24_576, 0.01, _GATED),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=_steps, default=STEPS, help=f"the first {WARM_STEPS} are not timed")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--frameworks", nargs="+", choices=list(ADAPTERS), default=list(ADAPTERS))
    parser.add_argument("--gpu", action="store_true", help="see above; needs one")
    parser.add_argument("--smoke", action="store_true", help="all of it in a minute, on 64 latents; nothing to report")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    scale = _of_steps(TINY if given.smoke else GPU if given.gpu else SPEED, given.steps)
    folder = ROOT / "runs" / "training" / scale.digest
    path = folder / "smoke.json" if given.smoke else results.RESULTS / f"training{'_gpu' * given.gpu}.json"
    prepare(scale, 0, folder)
    known: dict[str, Any] = read_json(path)["figures"] if path.exists() else {"cases": {}, "origins": {}}
    for name in given.cases:
        case = CASES[name] if not given.smoke else replace(CASES[name], n_latents=64, knob=4)
        chosen = (c for c in case.contestants if c.framework in given.frameworks)
        # in one process all have the same kernels; coefficients that make ours sparse are of the other rows
        case = replace(case, contestants=tuple(c for c in chosen if not (given.gpu and (c.mode == PLAIN or c.label))))
        rounds: list[dict[str, Any]] = []
        for _ in range(given.rounds):
            rounds.append({one.name: run(case, one, scale, folder, given.gpu) for one in case.contestants})
            known = with_case(known, name, rounds, scale)
            results.save("training", known, path)
        for contestant, figures in summary(rounds).items():
            logging.info("%s, %s: %s", name, contestant, figures)


def _steps(text: str) -> int:
    steps = int(text)
    if steps <= WARM_STEPS:
        raise argparse.ArgumentTypeError(f"{steps}: must be more than the {WARM_STEPS} that are not timed")
    return steps


def _of_steps(scale: Scale, steps: int) -> Scale:
    return replace(scale, tokens=scale.batch * steps)


def with_case(known: Mapping[str, Any], name: str, rounds: Sequence[Any], scale: Scale) -> dict[str, Any]:
    """The figures with those of a case, its steps beside where it was measured, and what all cases have in common."""
    origin = {**results.origin("training"), "steps": scale.steps}
    return {
        "cases": {**known["cases"], name: rounds},
        "origins": {**known["origins"], name: origin},
        "batch": scale.batch,
        "d_in": scale.world.d_in,
        "lr": LR,
        "test_rows": scale.test_rows,
    }


def run(case: Case, one: Contestant, scale: Scale, folder: Path, in_process: bool = False) -> dict[str, float]:
    """Train the case's dictionary once; returns its speed, memory and error.

    Raises:
        CalledProcessError: the framework failed; what it said has been shown.
    """
    out = folder / re.sub(r"\W+", "-", f"{case.name}-{one.name}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    knob = case.knob if one.knob is None else one.knob
    job = Job(
        architecture=one.architecture,
        settings=settings(one.framework, one.architecture, knob, case.n_latents, scale.steps) | dict(one.others),
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
    l0 = load_file(out / "found.safetensors")["offsets"][-1].item() / scale.test_rows
    shutil.rmtree(out)
    step = statistics.median(found["step_seconds"][-(scale.steps - WARM_STEPS) :])
    acts = load_file(folder / "test.safetensors")["acts"].double()
    variance = (acts - acts.mean(0)).square().sum().item()
    figures = {
        "step_seconds": round(step, 6),
        "tokens_per_second": round(scale.batch / step),
        "peak_megabytes": round(found["peak_kilobytes"] / 1024),
        "fvu": round(found["squared_error"] / variance, 5),
        "l0": round(l0, 1),
    }
    logging.info("%s, %s: %s", case.name, one.name, figures)
    return figures


if __name__ == "__main__":
    main()
