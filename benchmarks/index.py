"""The index: its time beside that of encoding alone, its memory as tokens grow, and how long questions take.

python -m benchmarks.index [--latents 4096 24576] [--d-in 768] [--tokens 1_000_000 10_000_000] [--run DIR] [--smoke]

A TopK dictionary (k 32, first weights) encodes Gaussian rows whose directions differ in size; their tokens are drawn
from Zipf's law, each by itself, which gives more pairs of latent and token than text does. The network behind the
logits has the rows' width and GPT-2's vocabulary. *Encoding alone* reads the same rows, and keeps nothing. Each
measurement has a process of its own; memory is its largest resident set, beside that of encoding alone. Questions are
asked of latents and tokens drawn at random, of a finished run.
"""

import argparse
import json
import logging
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from analysis import encode
from analysis.codes import StoredCodes, part_path
from analysis.config import IndexConfig
from analysis.index.build import build
from analysis.parts import plan
from analysis.query import Index
from analysis.summary import Summary
from benchmarks import results
from benchmarks.frameworks import ROOT
from sae import memory
from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import InputStats, Shape
from sae.files import read_json
from sae.scaling import SiteStats
from sae.store import Pairs, Places, StoredSplit, write_shard
from sae.tokens import TokenSplit

K, CONTEXT, VOCABULARY = 32, 128, 50_257
SHARD = 1 << 17  # rows that are there; more tokens have the same again
FOLDER = ROOT / "runs" / "index-benchmark"
WORDS = ("king", "any", "“the”", "number*", "capital*", "passages", "line", "before of", "sea", "said")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="*", default=[4096, 24_576], help="none: questions only")
    parser.add_argument("--d-in", type=int, default=768, help="numbers of a row, a multiple of 64")
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[1_000_000, 10_000_000],
        help="of each measurement; as many as of the first are kept",
    )
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "embedded", help="a finished run")
    parser.add_argument("--smoke", action="store_true", help="all but the questions in seconds; nothing to report")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if given.one:
        sys.stdout.write(json.dumps(measure(*map(int, given.one))))
        return
    if given.smoke:
        given.latents, given.tokens = [64], [3000, 6000]
    path = FOLDER / "smoke.json" if given.smoke else results.RESULTS / "index.json"
    figures: dict[str, Any] = read_json(path)["figures"] if path.exists() else {}
    asked = [(given.d_in, n_latents) for n_latents in given.latents]
    known = [case for case in figures.get("cases", ()) if (case["d_in"], case["n_latents"]) not in asked]
    figures |= {"k": K, "cases": known}
    figures.setdefault("origins", {})
    for n_latents in given.latents:
        figures["origins"][f"{n_latents} of {given.d_in}"] = results.origin("index")
        for tokens in given.tokens:
            figures["cases"].append(in_own_process(n_latents, given.d_in, tokens, given.tokens[0]))
            results.save("index", figures, path)
    if not given.smoke and given.run.exists():
        figures["questions"] = questions(given.run)
        figures["origins"]["questions"] = results.origin("index")
    results.save("index", figures, path)


def in_own_process(*case: int) -> dict[str, Any]:
    """What `measure` finds."""
    command = [sys.executable, "-m", "benchmarks.index", "--one", *map(str, case)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout)
    logging.info("%s", figures)
    return figures


def measure(n_latents: int, d_in: int, tokens: int, kept_tokens: int) -> dict[str, Any]:
    """Index `tokens` rows of `d_in` numbers, of which `kept_tokens` are kept; seconds of each stage, by the clock and
    of busy cores, and the process's memory."""
    rows, split, dictionary = _world(n_latents, d_in, tokens)
    out = FOLDER / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with memory.reused():
        alone = spent(lambda: _encode_alone(dictionary, rows, min(tokens, SHARD))) * (tokens / min(tokens, SHARD))
        before = _peak()
        task = encode.Task(dictionary, n_latents, rows, split, 0, plan(split, 0, tokens, kept_tokens))
        encoded = spent(lambda: encode.summarise(task, Summary.empty(n_latents, 0), out))
    n_kept = sum(part.is_kept for part in task.parts)
    stored = StoredCodes([part_path(out, split.name, i) for i in range(n_kept)], tokens)
    network = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=d_in, n_head=d_in // 64))
    strings = [str(token) for token in range(VOCABULARY)]
    directions = dictionary.directions.detach()
    summary = Summary.load(out / "summary.safetensors")
    indexed = spent(lambda: build(stored, summary, directions, network, split, strings, IndexConfig(), out))
    n_firings = int(stored.counts().sum())
    n_bytes = sum(part_path(out, split.name, i).stat().st_size for i in range(n_kept))
    shutil.rmtree(out)
    stages = {"encode": alone, "codes": encoded, "index": indexed}
    return {
        "n_latents": n_latents,
        "d_in": d_in,
        "tokens": tokens,
        "kept_tokens": stored.n_rows,
        **{f"{name}_seconds": round(each[0], 2) for name, each in stages.items()},
        **{f"{name}_cpu_seconds": round(each[1], 2) for name, each in stages.items()},
        "bytes_a_firing": round(n_bytes / n_firings, 2),
        "encode_peak_megabytes": before,
        "peak_megabytes": _peak(),
    }


def _world(n_latents: int, d_in: int, tokens: int) -> tuple[Pairs, TokenSplit, TopKSAE]:
    generator = torch.Generator().manual_seed(0)
    path = FOLDER / f"rows-{d_in}.safetensors"
    if not path.exists():
        mix = torch.randn(d_in, d_in, generator=generator) * torch.linspace(1, 0.1, d_in)
        write_shard(path, torch.randn(SHARD, d_in, generator=generator) @ mix / d_in**0.5, torch.bfloat16)
    sizes = [min(SHARD, tokens - start) for start in range(0, tokens, SHARD)]
    stored = StoredSplit.of([[(path, size) for size in sizes]])
    chances = 1 / np.arange(1, VOCABULARY + 1)
    drawn = np.random.default_rng(0).choice(VOCABULARY, tokens, p=chances / chances.sum()).astype(np.uint16)
    starts = np.append(np.arange(0, tokens, CONTEXT), tokens)
    dictionary = untrained(n_latents, K, stored.read(0, min(tokens, 2048)), generator)
    split = TokenSplit("train", drawn, starts, starts, {})
    return Pairs(stored, ("x",), Places(("x",))), split, dictionary


def untrained(n_latents: int, k: int, sample: torch.Tensor, generator: torch.Generator) -> TopKSAE:
    """A TopK dictionary with first weights, for rows such as those of `sample` [n, d_in]."""
    d_in = sample.shape[1]
    dictionary = TopKSAE(TopKConfig(n_latents=n_latents, k=k), Shape((d_in,)))
    size = SiteStats(d_in, sample.norm(dim=1).mean().item(), sample.square().sum(1).mean().item())
    dictionary.initialise(InputStats((size,), (size,), sample, sample), generator)
    return dictionary.eval()


@torch.no_grad()
def _encode_alone(dictionary: TopKSAE, rows: Pairs, n_rows: int) -> None:
    for start in range(0, n_rows, encode.ROWS):
        dictionary.encode(rows.read(start, min(start + encode.ROWS, n_rows))[0]).fired()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    return spent(work)[0].item()


def spent(work: Callable[[], Any]) -> np.ndarray:
    """Seconds that it takes, by the clock and of busy cores."""
    before = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter(), time.process_time()]) - before


def _peak() -> int:
    """Megabytes of the process's largest resident set."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024))


def questions(run: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of each kind of question: of the first, and quantiles of those after it."""
    index = Index(run)
    random = np.random.default_rng(0)
    latents = random.integers(0, index.n_latents, 1001).tolist()
    tokens = [text for text in random.permutation(np.unique(index.strings)).tolist() if text][:200]
    asked: dict[str, tuple[Callable[[Any], Any], Sequence[Any]]] = {
        "a latent, all of it": (index.view, latents),
        "labels by words": (index.search, [WORDS[i % len(WORDS)] for i in range(200)]),
        "latents by token": (index.by_token, tokens),
        "latents by next token": (index.by_next_token, tokens),
        "latents by direction": (index.nearest, latents[:200]),
        "overlap of two latents": (lambda latent: index.overlap(latent, latents[0]), latents[:200]),
    }
    found = {}
    for name, (ask, about) in asked.items():
        first, *times = (1000 * timed(lambda ask=ask, what=what: ask(what)) for what in about)
        p50, p95 = np.quantile(times, [0.5, 0.95]).tolist()
        found[name] = {"first": round(first, 1), "p50": round(p50, 1), "p95": round(p95, 1), "n": len(times)}
    return found


if __name__ == "__main__":
    main()
