"""What a training step costs against the width of the dictionary and the batch, beside the floor of the machine.

python -m benchmarks.width [--widths 4096 ...] [--batches 1024 ...]

TopK, k = 32, rows of 768 numbers, as `sae train` does it, each in a process of its own. The floor is what nothing
avoids, measured after each in turn: the encoder's product, in the precision and layout that are used, and Adam's
reading of gradient, weights and moments and writing of the latter three, at the speed of a copy.
`docs/results/width.json` and `docs/width.png`.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks import results
from benchmarks.frameworks import OURS, ROOT
from benchmarks.training import GPU, Case, Contestant, run
from benchmarks.world import Scale, prepare
from sae.kernels.choice import CHUNK_ROWS, Exact, Rounded
from sae.kernels.torch import Kernels
from sae.model import resolve_precision

WIDTHS = [4096, 8192, 16_384, 24_576, 32_768, 65_536, 131_072, 262_144]
BATCHES = [1024, 2048, 4096, 8192, 16_384]
WIDTH, BATCH, STEPS, REPEATS = 24_576, 4096, 10, 5
MATRICES, PASSES = 2, 7  # of Adam over each: gradient, weights and two moments read, the last three written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    figures = {
        "k": 32,
        "d_in": GPU.world.d_in,
        "precision": resolve_precision("auto", torch.device("cpu")),
        "widths": [measure(width, BATCH) for width in given.widths],
        "batches": [measure(WIDTH, batch) for batch in given.batches],
    }
    results.save("width", figures)
    plot(figures)


def measure(width: int, batch: int) -> dict[str, Any]:
    """A step's seconds and its floor's."""
    scale = replace(GPU, batch=batch, tokens=batch * STEPS, test_rows=1024)
    folder = ROOT / "runs" / "training" / scale.digest
    prepare(scale, 0, folder)
    own = run(Case(f"topk-{width}", width, 32, ()), Contestant(OURS, "topk"), scale, folder)
    own = {name: own[name] for name in ("step_seconds", "tokens_per_second")}
    figures = {"n_latents": width, "batch": batch, **own, **floor(scale, width)}
    logging.info("%s", figures)
    return figures


def floor(scale: Scale, width: int) -> dict[str, float]:
    """Seconds of the product and of Adam's bytes."""
    d, is_rounded = scale.world.d_in, resolve_precision("auto", torch.device("cpu")) == "bfloat16"
    generator = torch.Generator().manual_seed(0)
    x, W = torch.randn(scale.batch, d, generator=generator), torch.randn(width, d, generator=generator) / d**0.5
    b = torch.zeros(width)
    product = Rounded(W, b, None, Kernels()) if is_rounded else Exact(W, b, None, may_round=False)
    matrix = torch.empty_like(W)
    seconds = _median(lambda: [product(rows) for rows in x.split(CHUNK_ROWS)])
    copy = _median(lambda: matrix.copy_(W))
    return {"product_seconds": round(seconds, 6), "adam_seconds": round(MATRICES * PASSES / 2 * copy, 6)}


def _median(work: Callable[[], Any]) -> float:
    work()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def plot(figures: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, points, name in zip(axes, (figures["widths"], figures["batches"]), ("n_latents", "batch"), strict=True):
        x = [point[name] for point in points]
        axis.loglog(x, [1e3 * point["step_seconds"] for point in points], "o-", label="step")
        floors = [1e3 * (point["product_seconds"] + point["adam_seconds"]) for point in points]
        axis.loglog(x, floors, "s--", label="product and Adam's bytes")
        axis.loglog(x, [1e3 * point["product_seconds"] for point in points], ":", label="product")
        axis.set_xlabel({"n_latents": "latents", "batch": "rows of a batch"}[name])
        powers = [value for value in x if value.bit_count() == 1]
        axis.set_xticks(powers, [f"{value // 1024}k" for value in powers])
        axis.minorticks_off()
    axes[0].set_ylabel("ms")
    axes[0].legend(frameon=False)
    figure.savefig(ROOT / "docs" / "width.png", dpi=150)


if __name__ == "__main__":
    main()
