"""The whole pipeline on the network whose features are known: text to activations, dictionary, codes and labels.

A latent has found a feature if it fires where the feature nearest to its direction holds: F1 of at least `RIGHT` on
test documents. What its label says of that feature is then marked as for rules planted in text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import PreTrainedTokenizerBase

from analysis.label.indexed import Indexed
from analysis.label.known import Known
from analysis.score import counts
from analysis.splits import FitView, TestView
from benchmarks.planted.kinds import rules
from benchmarks.planted.network import SITE, PlantedModel, build, firings, save
from benchmarks.planted.plant import RIGHT, VIEWS, is_told
from benchmarks.planted.rules import Rule, Text
from sae import hub
from sae.run import Run
from sae.run_config import load_config
from sae.truth import nearest

MOST = 0.1
"""Share of the text on which a feature holds, at most: few are active at once."""
D_MODEL = 128
SAE = {"type": "batchtopk", "n_latents": 384, "k": 4}
TRAIN = {"tokens": 3_000_000, "batch": 2048, "lr": 1e-3, "evaluate_every": 100, "dead_tokens": 100_000}


@dataclass(frozen=True)
class Learnt:
    """What a dictionary found of the features, and what its labels say of those."""

    n_features: int
    n_latents: int
    found: Sequence["Found"]
    """The latents that have found one."""

    @property
    def n_found(self) -> int:
        """Features that a latent has found."""
        return len({each.planted for each in self.found})


@dataclass(frozen=True)
class Found:
    """A latent, the feature that it has found, and its label."""

    kind: str
    planted: str
    label: str | None
    is_right: bool
    f1: float
    """Of the label with the feature; 0 without a label."""


def causal_rules(texts: Mapping[str, Text], n_each: int, seed: int) -> list[Rule]:
    """Rules that a network that reads forwards can know."""
    known = {name: texts[name] for name in VIEWS}

    def is_wanted(rule: Rule) -> bool:
        return rule.is_causal and is_told({name: text.holds(rule) for name, text in known.items()}, MOST)

    return rules(texts["train"], n_each, seed, is_wanted)


def learn(features: Sequence[Rule], tokenizer: PreTrainedTokenizerBase, text: Text, out: Path, seed: int) -> Learnt:
    """Write the network into `out`, run everything on it there, and mark the labels.

    Args:
        text: the test split.
    """
    model = build(features, tokenizer, D_MODEL, seed)
    save(model, tokenizer, out / "model")
    (out / "run.yaml").write_text(yaml.safe_dump(settings(out / "model", seed)), encoding="utf-8")
    run = Run(load_config(out / "run.yaml"), out / "run")
    known = Known.of(run.index.path, run.labels.path, run.view(FitView))
    return judge(model, features, firings(model, text), run, known)


def settings(model: Path, seed: int) -> dict[str, Any]:
    """Of a run on the network."""
    return {
        "model": {"name": str(model), "precision": "float32"},
        "plugins": ["benchmarks.planted.network"],
        "data": {"source": "embedded", "context": 256},
        "harvest": {"sites": [SITE]},
        "sae": SAE,
        "train": {**TRAIN, "tracker": "none"},
        "analysis": {"index": {"evaluation_tokens": 8192}},
        "seed": seed,
    }


def judge(model: PlantedModel, features: Sequence[Rule], holds: np.ndarray, run: Run, known: Known) -> Learnt:
    """`holds [n, n_features]`: where the features are on test documents."""
    view = run.view(TestView)
    test = Indexed(view, known.vocabulary)
    near = nearest(hub.load(run.dictionary.path).directions.detach(), model.write.weight.detach().T)
    truths = [np.flatnonzero(own) for own in holds.T]
    found = []
    for latent, which in enumerate(near.which.tolist()):
        truth = truths[which]
        if counts(view.firing(latent)[0], truth).f1 < RIGHT:
            continue
        rule = known.rules.get(latent)
        f1 = counts(rule.predict(test)[0], truth).f1 if rule else 0.0
        feature = features[which]
        found.append(Found(feature.kind, feature.text, known.sentences[latent], f1 >= RIGHT, f1))
    return Learnt(len(features), view.n_latents, found)
