"""Harvesting speed: one model, one set of contexts, ours beside SAELens, dictionary_learning and a plain hook.

python -m benchmarks.harvest [--rounds 5] [--cases embedded ...] [--contestants sae-atlas ...]

Rounds alternate: in each, every contestant runs the case's contexts in a process of its own (`benchmarks/peers/`),
after a few others to warm up, and keeps one MLP's output as float16: ours in safetensors with fsync, SAELens's runner
in Arrow files, the others in memory, dictionary_learning's as float32. Speed is the median over rounds, a ratio the
median of the rounds' ratios, memory the largest resident set of the process. The error is that of the first rows
against the plain model in float32, relative, by root mean square. Subjects are the embedded GPT-2 and GPT-2 small's
shape with random weights: speed does not depend on them. Rounds are kept in `docs/results/harvest.json` as they come.
"""

import argparse
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks import results
from benchmarks.frameworks import HOOK, OURS, ROOT, launch
from benchmarks.peers.harvesting import HarvestJob
from sae.files import read_json
from sae.text import EMBEDDED

FOLDER = ROOT / "runs" / "harvesting"
WARM, CHECKED = 16, 4  # contexts that warm a process up; those whose rows are compared


@dataclass(frozen=True)
class Case:
    """One model, layer and length of contexts."""

    model: str
    """`embedded`, or GPT-2 small's shape."""
    layer: int
    context: int
    n_contexts: int


@dataclass(frozen=True)
class Contestant:
    """A framework, and how it runs the model."""

    framework: str
    mode: str = ""

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.framework, self.mode) if part)


CASES = {
    "embedded, layer 3, contexts of 256": Case("embedded", 3, 256, 256),
    "GPT-2 small, layer 6, contexts of 128": Case("small", 6, 128, 128),
    "GPT-2 small, layer 6, contexts of 1,024": Case("small", 6, 1024, 16),
}
CONTESTANTS = (
    Contestant(OURS),
    Contestant("SAELens"),
    Contestant("SAELens", "autocast"),
    Contestant("dictionary_learning"),
    Contestant(HOOK),
    Contestant(HOOK, "autocast"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    names = [one.name for one in CONTESTANTS]
    parser.add_argument("--contestants", nargs="+", choices=names, default=names)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    path = results.RESULTS / "harvest.json"
    known: dict[str, Any] = read_json(path)["figures"] if path.exists() else {"cases": {}, "origins": {}}
    for name in given.cases:
        job = prepare(CASES[name], FOLDER)
        rounds: list[dict[str, Any]] = []
        for _ in range(given.rounds):
            chosen = (one for one in CONTESTANTS if one.name in given.contestants)
            rounds.append({one.name: run(CASES[name], one, job, FOLDER) for one in chosen})
            known["cases"][name], known["origins"][name] = rounds, results.origin("harvest")
            results.save("harvest", known, path)


def prepare(case: Case, folder: Path) -> dict[str, Any]:
    """Write the case's model, contexts and first rows; returns the job's fields but for framework and place."""
    torch.manual_seed(0)
    model_folder = folder / case.model
    model, tokenizer = _model(case.model)
    model.save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)
    contexts, expected = (folder / f"{name}-{case.model}-{case.context}.safetensors" for name in ("contexts", "acts"))
    tokens = torch.randint(len(tokenizer), (case.n_contexts + WARM, case.context))
    save_file({"warm": tokens[:WARM].contiguous(), "tokens": tokens[WARM:].contiguous()}, contexts)
    save_file({"acts": _rows(model, case.layer, tokens[WARM : WARM + CHECKED])}, expected)
    return {
        "model": str(model_folder),
        "layer": case.layer,
        "contexts": str(contexts),
        "expected": str(expected),
    }


def run(case: Case, one: Contestant, job: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Harvest once; returns speed, memory and error.

    Raises:
        CalledProcessError: the framework failed; what it said has been shown.
    """
    out = folder / re.sub(r"\W+", "-", one.name)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    found = launch(one.framework, HarvestJob(**job, mode=one.mode, out=str(out)))
    shutil.rmtree(out)
    figures = {
        "tokens_per_second": round(case.n_contexts * case.context / found["seconds"]),
        "peak_megabytes": round(found["peak_kilobytes"] / 1024),
        "error": round(found["error"], 5),
    }
    logging.info("%s: %s", one.name, figures)
    return figures


def _model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded GPT-2, or GPT-2 small's shape with random weights; its contexts know the former's tokens only."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "model")
    if name == "embedded":
        return AutoModelForCausalLM.from_pretrained(EMBEDDED / "model", dtype=torch.float32), tokenizer
    return GPT2LMHeadModel(GPT2Config(use_cache=False)), tokenizer


@torch.no_grad()
def _rows(model: PreTrainedModel, layer: int, tokens: torch.Tensor) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    module = model.get_submodule(f"transformer.h.{layer}.mlp")
    hook = module.register_forward_hook(lambda _m, _i, out: kept.append(out.flatten(0, 1)))
    model.eval()(input_ids=tokens)
    hook.remove()
    return kept[0]


if __name__ == "__main__":
    main()
