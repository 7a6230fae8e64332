"""Harvest against a plain forward pass of the whole model with a hook, same precision, same contexts.

Both keep the activations of one site in memory as float32; ours also writes its shards, with fsync.
Rounds alternate; the figure is the median over rounds. Two subjects: the embedded GPT-2, and
GPT-2 small's shape with random weights (speed does not depend on the weights).

    python -m benchmarks.harvest [rounds]
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import results
from sae.config import HarvestConfig, ModelConfig
from sae.harvest import harvest
from sae.model import load, resolve_precision
from sae.stage import open_box, stage
from sae.tokens import TokenStore


@dataclass(frozen=True)
class Case:
    """One model, site and context length."""

    name: str
    model: nn.Module
    site: str
    module: str
    context: int
    n_contexts: int
    vocabulary: int


def main(rounds: int = 5) -> None:
    torch.manual_seed(0)
    embedded = load(ModelConfig()).model
    small = GPT2LMHeadModel(GPT2Config(use_cache=False)).eval().requires_grad_(False)
    cases = [
        Case("embedded, mlp_out.3, 256", embedded, "mlp_out.3", "transformer.h.3.mlp", 256, 256, 8192),
        Case("GPT-2 small shape, mlp_out.6, 128", small, "mlp_out.6", "transformer.h.6.mlp", 128, 64, 50257),
        Case("GPT-2 small shape, mlp_out.6, 1024", small, "mlp_out.6", "transformer.h.6.mlp", 1024, 8, 50257),
    ]
    precision = resolve_precision("auto", torch.device("cpu"))
    figures = {}
    for case in cases:
        figures[case.name] = compare(case, precision, rounds)
        sys.stderr.write(f"{case.name}: {figures[case.name]}\n")
    results.save("harvest", {"precision": precision, "rounds": rounds, "cases": figures})


def compare(case: Case, precision: str, rounds: int) -> dict[str, float]:
    """Median tokens a second of both ways and their ratio, over alternating rounds."""
    ids = np.random.default_rng(0).integers(0, case.vocabulary, (case.n_contexts, case.context))
    ours, plain, ratios = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours.append(
                ids.size / _seconds(_ours, case, _tokens(ids, Path(folder) / "tokens"), Path(folder), precision)
            )
        plain.append(ids.size / _seconds(_plain, case, torch.from_numpy(ids), precision))
        ratios.append(ours[-1] / plain[-1])
    return {
        "sae_tokens_per_second": round(statistics.median(ours)),
        "plain_tokens_per_second": round(statistics.median(plain)),
        "ratio": round(statistics.median(ratios), 2),
    }


def _ours(case: Case, tokens: TokenStore, folder: Path, precision: str) -> None:
    cfg = HarvestConfig(sites=(case.site,), skip_positions=0, dtype="bfloat16")
    harvest(case.model, [case.site], tokens, folder / "acts", cfg, _autocast(precision))


@torch.no_grad()
def _plain(case: Case, ids: torch.Tensor, precision: str) -> None:
    """The obvious way: the whole model, a hook on the module, batches of 8,192 tokens."""
    kept: list[torch.Tensor] = []
    hook = case.model.get_submodule(case.module).register_forward_hook(lambda _m, _i, out: kept.append(out.float()))
    for batch in ids.split(max(1, 8192 // case.context)):
        with _autocast(precision)():
            case.model(input_ids=batch)
    hook.remove()


def _autocast(precision: str) -> Callable[[], torch.autocast]:
    return lambda: torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


def _seconds(run: Callable[..., None], *arguments: object) -> float:
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def _tokens(ids: np.ndarray, out: Path) -> TokenStore:
    """A token store of full contexts, one document each."""

    def build(path: Path) -> dict[str, object]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        starts = np.arange(0, ids.size + 1, ids.shape[1])
        arrays = {"tokens": ids.astype(np.uint16).ravel(), "document_starts": starts, "context_starts": starts}
        save_file(arrays, path / "train.safetensors")
        rows = [{"split": "train", "id": str(i), "source": "random", "title": ""} for i in range(len(ids))]
        pq.write_table(pa.Table.from_pylist(rows), path / "documents.parquet")
        return {"vocabulary": 1 << 16}

    stage(out, {}, build)
    return TokenStore(open_box(out))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
