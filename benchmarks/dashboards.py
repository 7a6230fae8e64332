"""Dashboards: from tokens, a network and a dictionary to what is shown of each latent, beside SAEDashboard and delphi.

python -m benchmarks.dashboards [--cases "24,576 latents" ...] [--contestants sae-atlas ...] [--run DIR] [--smoke]

Each contestant has the same network, dictionary and contexts, and a process of its own; imports and loading are not
timed. Ours and delphi do the whole job. SAEDashboard goes through all tokens for every 128 latents: its first two
batches are measured, and the others taken to last as long as the second (the first runs the network, and caches what it
says). Both peers are measured at two numbers of tokens and, for as many as ours has, continued along the line through
them, which is never steeper than in proportion to the tokens. Beside wall seconds stand those in which cores were busy,
which others on the machine change less.
"""

import argparse
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from benchmarks import results
from benchmarks.frameworks import OURS, ROOT, launch
from benchmarks.index import untrained
from benchmarks.peers.dashboarding import DashboardJob
from benchmarks.peers.sae_atlas import ALONE, ALONE_ROWS
from benchmarks.peers.saedashboard import BATCH
from sae import convert, hub
from sae.config import ModelConfig
from sae.dictionary import Dictionary
from sae.files import read_json, write_json
from sae.harvest import forward
from sae.model import load
from sae.sites import resolve
from sae.stage import open_box
from sae.text import EMBEDDED
from sae.tokens import TokenStore

FOLDER = ROOT / "runs" / "dashboards"
SAEDASHBOARD, DELPHI = "SAEDashboard", "delphi"
FORMATS = {OURS: "sae", SAEDASHBOARD: "saelens", DELPHI: "sparsify"}
BATCHES = 2  # of SAEDashboard's that are measured
K = 32


@dataclass(frozen=True)
class Case:
    """A dictionary, and how many contexts it is shown on."""

    n_latents: int
    is_trained: bool
    """The embedded run's dictionary, network and text; or first weights, one layer of random weights as wide as GPT-2
    small, and tokens drawn from Zipf's law: speed does not depend on them."""
    layer: int
    context: int
    n_contexts: int
    """Of ours; with at least as many tokens as `shares`."""
    shares: tuple[int, int]
    """Contexts on which the peers are measured; on the more of them ours too."""


CASES = {
    "4,096 latents": Case(4096, True, 3, 256, 2944, (64, 256)),
    "24,576 latents": Case(24_576, False, 0, 128, 8192, (128, 512)),
}
SMOKE = {"smoke": Case(256, False, 0, 32, 96, (32, 64))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--contestants", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "embedded", help="a finished run of it")
    parser.add_argument("--smoke", action="store_true", help="all in small; nothing to report")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    cases = SMOKE if given.smoke else {name: CASES[name] for name in given.cases}
    path = FOLDER / "smoke.json" if given.smoke else results.RESULTS / "dashboards.json"
    figures: dict[str, Any] = {"cases": {}, "origins": {}}
    if path.exists() and not given.smoke:
        figures = read_json(path)["figures"]
    for name, case in cases.items():
        folder = FOLDER / str(case.n_latents)
        facts = prepare(case, given.run, folder)
        known = figures["cases"].get(name, {"measured": {}})
        figures["cases"][name] = {**facts, "measured": known["measured"]}
        for n_contexts in (*case.shares, case.n_contexts):
            for framework in contestants(case, n_contexts, given.contestants):
                of_framework = figures["cases"][name]["measured"].setdefault(framework, {})
                of_framework[str(n_contexts * case.context)] = run(case, framework, n_contexts, folder)
                figures["origins"][name] = results.origin("dashboards")
                results.save("dashboards", figures, path)


def contestants(case: Case, n_contexts: int, chosen: list[str]) -> list[str]:
    """Who is measured on so many contexts: ours not on the fewest, the peers not on all."""
    others = {case.shares[0]: (SAEDASHBOARD, DELPHI), case.shares[1]: tuple(FORMATS), case.n_contexts: (OURS,)}
    return [name for name in others[n_contexts] if name in chosen]


def prepare(case: Case, run_folder: Path, folder: Path) -> dict[str, Any]:
    """Write the network, the contexts, and the dictionary in each format; returns facts of the case."""
    shutil.rmtree(folder, ignore_errors=True)
    tokens, dictionary = (_embedded if case.is_trained else _random)(case, run_folder, folder / "model")
    of_tokenizer = folder / "model" / "tokenizer_config.json"  # in the words of transformers 4, which SAEDashboard has
    write_json(of_tokenizer, read_json(of_tokenizer) | {"tokenizer_class": "PreTrainedTokenizerFast"})
    save_file({"tokens": torch.from_numpy(tokens.astype(np.int64))}, folder / "contexts.safetensors")
    facts = {"inputs": [f"mlp_out.{case.layer}"], "model": "model"}
    for name, form in FORMATS.items():
        out = folder / form / (f"h.{case.layer}.mlp" if name == DELPHI else "")
        out.mkdir(parents=True)
        convert.write(dictionary, facts, form, out)
    shape = {"n_latents": case.n_latents, "d_in": dictionary.shape.inputs[0], "k": dictionary.cfg.k}
    return {**shape, "context": case.context, "is_trained": case.is_trained}


def _embedded(case: Case, run_folder: Path, model: Path) -> tuple[np.ndarray, Dictionary]:
    shutil.copytree(EMBEDDED / "model", model)
    split = TokenStore(open_box(run_folder / "tokens")).split("train")
    starts = split.context_starts[:-1][np.diff(split.context_starts) == case.context]
    rows = np.unique(split.tokens[starts[:, None] + np.arange(case.context)], axis=0)  # SAEDashboard wants no two alike
    chosen = np.random.default_rng(0).permutation(rows)[: case.n_contexts]
    return chosen, hub.load(run_folder / "dictionary")


def _random(case: Case, _: Path, model: Path) -> tuple[np.ndarray, Dictionary]:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "model")
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_positions=case.context, use_cache=False)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    ranks = np.arange(1, len(tokenizer))  # the ids: SAEDashboard passes over token 0
    size = (case.n_contexts, case.context)
    tokens = np.random.default_rng(0).choice(ranks, size, p=1 / ranks / (1 / ranks).sum())
    network = load(ModelConfig(name=str(model), precision="float32")).model
    n_sample = -(-2048 // case.context)
    site = resolve(network, f"mlp_out.{case.layer}")
    sample = forward(network, [site], torch.from_numpy(tokens[:n_sample]))[f"mlp_out.{case.layer}"].flatten(0, 1)
    k = min(K, case.n_latents // 8)
    return tokens, untrained(case.n_latents, k, sample, torch.Generator().manual_seed(0))


def run(case: Case, framework: str, n_contexts: int, folder: Path) -> dict[str, Any]:
    """Have the dashboards made once; returns seconds by stage, memory, and the density of the first latents.

    Raises:
        CalledProcessError: the framework failed; what it said has been shown.
    """
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    job = DashboardJob(
        model=str(folder / "model"),
        layer=case.layer,
        dictionary=str(folder / FORMATS[framework]),
        contexts=str(folder / "contexts.safetensors"),
        n_contexts=n_contexts,
        batches=min(BATCHES, -(-case.n_latents // BATCH)),
        out=str(out),
    )
    found = launch(framework, job)
    shutil.rmtree(out)
    figures = {
        "stages": found["stages"],
        "loaded_megabytes": round(found["loaded_kilobytes"] / 1024),
        "peak_megabytes": round(found["peak_kilobytes"] / 1024),
        "densities": [round(density, 7) for density in found["densities"][: BATCHES * BATCH]],
        "versions": found["versions"],
    }
    logging.info("%s, %d contexts: %s", framework, n_contexts, {**figures, "densities": "…"})
    return figures


@dataclass(frozen=True)
class Cost:
    """What a job takes."""

    seconds: float
    cpu_seconds: float
    megabytes: float
    is_measured: bool = True


def cost(framework: str, record: Mapping[str, Any], n_latents: int, stages: tuple[str, ...] = ()) -> Cost:
    """Of the whole job on the record's tokens; of ours and delphi the sum of the stages (of all but `ALONE`, or of
    those named), of SAEDashboard by its batches."""
    own = record["stages"]
    seconds, busy = (
        (
            all_batches([stage[kind] for stage in own.values()], n_latents)
            if framework == SAEDASHBOARD
            else sum(stage[kind] for name, stage in own.items() if (name in stages if stages else name != ALONE))
        )
        for kind in ("seconds", "cpu_seconds")
    )
    is_measured = framework != SAEDASHBOARD or len(own) * BATCH >= n_latents
    return Cost(seconds, busy, record["peak_megabytes"], is_measured)


def all_batches(measured: list[float], n_latents: int) -> float:
    """Seconds of all batches of latents: of the first as it was, of each other the mean of the others measured."""
    first, *others = measured
    n_others = math.ceil(n_latents / BATCH) - 1
    return first + (n_others * sum(others) / len(others) if n_others else 0.0)


def continued(costs: Mapping[int, Cost], tokens: int) -> Cost:
    """The cost of more tokens than were measured, along the line through the two that were; where that rises faster
    than in proportion to the tokens, in proportion."""
    (few, less), (many, more) = sorted(costs.items())

    def along(name: str) -> float:
        low, high = getattr(less, name), getattr(more, name)
        return high + (tokens - many) * min((high - low) / (many - few), high / many)

    return Cost(along("seconds"), along("cpu_seconds"), along("megabytes"), is_measured=False)


def alone(record: Mapping[str, Any], tokens: int, kind: str = "seconds") -> float:
    """Seconds of encoding all of our rows and doing nothing else, from the share of which it was measured."""
    return record["stages"][ALONE][kind] * tokens / min(tokens, ALONE_ROWS)


def difference(measured: Mapping[str, Any], framework: str) -> float:
    """How far a peer's densities are from ours on the same tokens: the median over latents that fire, relative."""
    shared = max(set(measured[OURS]) & set(measured[framework]), key=int)
    ours, theirs = (np.array(measured[name][shared]["densities"][: BATCHES * BATCH]) for name in (OURS, framework))
    fires = ours > 0
    return float(np.median(np.abs(theirs - ours)[fires] / ours[fires]))


if __name__ == "__main__":
    main()
