"""The world of the ground-truth benchmark on disk: rows for every framework, and the truth that judges them.

    <folder>/data-<seed>/           training rows of a seed, an activations box (bfloat16)
             order-<seed>.safetensors   the row at each position of the stream, as our loader reads them
             test.safetensors           test rows, rounded as the training rows are
             truth.safetensors          their true features, all directions, parents

There is one world. Seeds differ in the samples drawn from it, in the initial weights and in the
order of the rows; all frameworks read the same batches in the same order, and are tested on the same rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.config import to_json
from sae.files import digest_json, publish
from sae.latents import Latents
from sae.metrics import Reconstruction
from sae.store import Shard, StoredSplit, write_shard
from sae.truth import Recovery
from train.config import TrainConfig
from train.loader import Loader
from train.synthetic import SMALL, STEP_ROWS, SYNTH_SAE_BENCH_16K, Synthetic, SyntheticConfig, store

WORLD_SEED = 42  # SynthSAEBench's
SEED_STEPS = 1 << 20  # steps of samples between the seeds' training rows; the test rows come first
HELD_OUT_ROWS = 4096  # of our trainer's last evaluation; not what is reported
AGREE = 1e-3  # relative difference that is allowed between a framework's squared error and ours


@dataclass(frozen=True)
class Scale:
    """How large the benchmark is."""

    world: SyntheticConfig
    n_latents: int
    batch: int
    tokens: int
    test_rows: int

    @property
    def steps(self) -> int:
        return self.tokens // self.batch

    @property
    def dead_rows(self) -> int:
        """Silent rows after which a latent is dead, a tenth of the run."""
        return self.tokens // 10

    def facts(self) -> dict[str, Any]:
        """What the rows depend on."""
        sizes = {"n_latents": self.n_latents, "batch": self.batch, "tokens": self.tokens, "test_rows": self.test_rows}
        return {"world": to_json(self.world), "world_seed": WORLD_SEED, **sizes}

    @cached_property
    def digest(self) -> str:
        """A name for the rows, so that none are taken for others."""
        return digest_json(self.facts())[:8]


FULL = Scale(SYNTH_SAE_BENCH_16K, n_latents=4096, batch=512, tokens=500_000, test_rows=50_000)
SMOKE = Scale(SMALL, n_latents=64, batch=512, tokens=512 * 2000, test_rows=16_384)


@cache
def _synthetic(cfg: SyntheticConfig) -> Synthetic:
    return Synthetic(cfg, WORLD_SEED)


def prepare(scale: Scale, seed: int, folder: Path) -> None:
    """Make what is not there yet. The benchmark's world itself takes 100 s, its rows about as long."""
    if not (folder / "truth.safetensors").exists():
        _write_test(_synthetic(scale.world), scale.test_rows, folder)
    data = folder / f"data-{seed}"
    if not (data / "manifest.json").exists():
        rows = {"train": scale.steps * scale.batch, "select": HELD_OUT_ROWS}
        store(_synthetic(scale.world), rows, data, first_step=(seed + 1) * SEED_STEPS)
    order = folder / f"order-{seed}.safetensors"
    if not order.exists():
        publish(order, lambda path: save_file({"order": _order(scale, seed, folder)}, path))


def _write_test(world: Synthetic, n_rows: int, folder: Path) -> None:
    batches = [world.sample(step, STEP_ROWS) for step in range(-(-n_rows // STEP_ROWS))]
    write_shard(folder / "test.safetensors", torch.cat([batch.x for batch in batches])[:n_rows], torch.bfloat16)
    features = [batch.features for batch in batches]
    counts = torch.cat([part.offsets.diff() for part in features])[:n_rows]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    n = int(offsets[-1])
    truth = {
        "values": torch.cat([part.values for part in features])[:n].clone(),
        "indices": torch.cat([part.indices for part in features])[:n].clone(),
        "offsets": offsets,
        "directions": world.directions,
        "parents": world.parents,
    }
    publish(folder / "truth.safetensors", lambda path: save_file(truth, path))


def _order(scale: Scale, seed: int, folder: Path) -> Tensor:
    """The rows of our trainer's batches: its loader, reading the rows' numbers in their place."""
    n_rows = scale.steps * scale.batch
    numbers = folder / "numbers.safetensors"
    write_shard(numbers, torch.arange(n_rows)[:, None].float(), torch.float32)
    split = StoredSplit([[Shard(numbers, 0, n_rows)]], (1,))
    loader = Loader(split, scale.batch, TrainConfig().window_rows, seed)
    order = torch.cat([loader.batch(step) for step in range(scale.steps)]).flatten().int()
    numbers.unlink()
    return order


def judge(found: Path, own_error: float, folder: Path) -> dict[str, float]:
    """Figures of what a framework handed back (`benchmarks.peers.exchange`), the same code for all of them.

    Args:
        own_error: squared error of the framework's own reconstructions, which ours must agree with.
    """
    handed, truth = load_file(found), load_file(folder / "truth.safetensors")
    acts = load_file(folder / "test.safetensors")["acts"]
    directions, bias = handed["directions"].float(), handed["bias"].float()
    latents, features = _reader(handed, len(directions)), _reader(truth, len(truth["directions"]))
    recovery = Recovery(truth["directions"], directions, truth["parents"])
    reconstruction = Reconstruction()
    for start in range(0, len(acts), STEP_ROWS):
        stop = min(start + STEP_ROWS, len(acts))
        part = latents(start, stop)
        recon = bias + embedding_bag(
            part.indices,
            directions,
            part.offsets,
            mode="sum",
            per_sample_weights=part.values,
            include_last_offset=True,
        )
        reconstruction.update(acts[start:stop].float(), recon, part)
        recovery.update(features(start, stop), part)
    error = float(reconstruction.sums.total()["error"])
    assert abs(error - own_error) <= AGREE * own_error, f"{found}: error {own_error:.6g} by itself, {error:.6g} by ours"
    figures = reconstruction.result()
    kept = ("l0", "explained_variance", "l2_ratio", "dense_fraction_10pct")
    return {name: round(value, 6) for name, value in recovery.result().items()} | {
        name: round(figures[name], 6) for name in kept
    }


def _reader(tensors: dict[str, Tensor], n: int) -> Callable[[int, int], Latents]:
    """`read(start, stop)`: rows `start:stop` of entries in CSR form."""
    values, indices, offsets = tensors["values"].float(), tensors["indices"].long(), tensors["offsets"].long()

    def read(start: int, stop: int) -> Latents:
        first, last = int(offsets[start]), int(offsets[stop])
        own = values[first:last]
        return Latents(own, indices[first:last], offsets[start : stop + 1] - first, own, n)

    return read
