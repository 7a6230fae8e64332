"""Reading shards back in a shuffled order: rows a second, and how mixed a batch is.

Rows of 768 bfloat16 numbers in shards as harvest writes them, in the page cache; one epoch by the loader of training,
in windows of several sizes. Shards are compared with their checksums before their first use, as always.

    python -m benchmarks.reading
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import results
from sae.config import HarvestConfig
from sae.files import sha256_file
from sae.store import Shard, StoredSplit, _check, write_shard
from train.loader import RUN_ROWS, Loader

D, BATCH, N_ROWS = 768, 4096, 1 << 19
WINDOWS = (1 << 19, 1 << 17, 1 << 15)
DIGITS = 256  # a row says its number in its first three columns, each of which bfloat16 holds exactly


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        split = write(Path(folder))
        cases = [read(split, window) for window in WINDOWS]
    results.save("reading", {"d": D, "batch": BATCH, "rows": N_ROWS, "cases": cases})


def write(folder: Path) -> StoredSplit:
    """Random rows that know their number."""
    shards, generator = [], torch.Generator().manual_seed(0)
    size = HarvestConfig().shard_rows
    for start in range(0, N_ROWS, size):
        rows = torch.randn(min(size, N_ROWS - start), D, generator=generator)
        number = torch.arange(start, start + len(rows))
        for column in range(3):
            rows[:, column] = number // DIGITS**column % DIGITS
        path = folder / f"train-{start}.safetensors"
        write_shard(path, rows, torch.bfloat16)
        shards.append(Shard(path, start, len(rows), sha256_file(path)))
    return StoredSplit([shards], (D,))


def read(split: StoredSplit, window: int) -> dict[str, float]:
    """One epoch: its speed, and from how many of the text's runs a batch has rows."""
    _check.cache_clear()  # type: ignore[attr-defined]
    loader, seconds, runs = Loader(split, BATCH, window, 0), 0.0, []
    for step in range(N_ROWS // BATCH):
        started = time.perf_counter()
        batch = loader.batch(step)
        seconds += time.perf_counter() - started
        runs.append(len((number_of(batch) // RUN_ROWS).unique()))
    figures = {"window": window, "rows_per_second": round(N_ROWS / seconds), "runs": statistics.mean(runs)}
    sys.stderr.write(f"{figures}\n")
    return figures


def number_of(rows: Tensor) -> Tensor:
    return sum(rows[:, column].long() * DIGITS**column for column in range(3))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
