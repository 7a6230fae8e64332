"""Labels of features that are known: rules planted in text, and features of a network that was written, not learnt.

python -m benchmarks.planted [--each 40] [--network 12] [--seed 2026] [--runs runs/planted]

A label is right if its rule, run on test documents, predicts what was planted: F1 of at least .95.
"""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from analysis.config import LabelConfig
from analysis.splits import token_strings
from benchmarks import results
from benchmarks.frameworks import ROOT
from benchmarks.planted.learnt import Learnt, causal_rules, learn
from benchmarks.planted.network import marker_of
from benchmarks.planted.plant import Mark, mark, plant
from benchmarks.planted.rules import Text
from sae.run import Run
from sae.run_config import load_config

CONFIG = ROOT / "configs" / "embedded.yaml"
SPLITS = ("train", "fit", "select", "test")
N_DIGITS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=40, help="rules of each kind, planted in text")
    parser.add_argument("--network", type=int, default=12, help="features of each kind of the network")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "planted")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run = Run(load_config(CONFIG), given.runs / "text")
    tokenizer = run.subject.tokenizer
    texts = read(run, tokenizer)
    marks = mark(plant(texts, given.each, given.seed), texts, LabelConfig())
    features = causal_rules(texts, given.network, given.seed)
    learnt = learn(features, tokenizer, texts["test"], given.runs / "network", given.seed)
    results.save("planted", figures(marks, learnt) | {"each": given.each, "seed": given.seed})


def read(run: Run, tokenizer: PreTrainedTokenizerBase) -> dict[str, Text]:
    """The run's splits as rules read them."""
    strings, store = token_strings(tokenizer), run.token_store
    return {name: Text(store.split(name), strings, marker_of(tokenizer)) for name in SPLITS}


def figures(marks: list[Mark], learnt: Learnt) -> dict[str, Any]:
    """Every kind's marks, and all that is wrong."""
    kinds = dict.fromkeys(each.kind for each in marks)
    of_kinds = {kind: _summed_up([each for each in marks if each.kind == kind]) for kind in kinds}
    network = {"n_features": learnt.n_features, "n_found": learnt.n_found, "n_latents": len(learnt.found)}
    return {
        "kinds": of_kinds,
        "network": {**network, "n_right": sum(each.is_right for each in learnt.found)},
        "wrong": [_told(asdict(each)) for each in (*marks, *learnt.found) if not each.is_right],
    }


def _summed_up(marks: list[Mark]) -> dict[str, Any]:
    """By whether there is noise: how many there are, and how many labels are right."""
    parts = {
        name: [each for each in marks if each.is_noisy == noisy] for name, noisy in (("clean", False), ("noisy", True))
    }
    return {
        "is_rule": marks[0].ceiling is not None,
        **{name: {"n": len(own), "n_right": sum(each.is_right for each in own)} for name, own in parts.items()},
    }


def _told(each: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, N_DIGITS) if isinstance(value, float) else value for name, value in each.items()}


if __name__ == "__main__":
    main()
