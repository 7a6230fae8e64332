"""`sae run` and the stages of a run by name: build the boxes up to one, and say what they hold."""

import argparse
from typing import Any

from sae.commands import common

STAGES: dict[str, tuple[str, str, str]] = {
    "harvest": (
        "activations",
        "run the network over the text and keep activations",
        "sae harvest configs/gpt2-small.yaml harvest.sites=[mlp_out.3,mlp_out.8] train.site=mlp_out.3",
    ),
    "train": (
        "dictionary",
        "train a dictionary on harvested activations",
        "sae train configs/embedded.yaml sae.n_latents=8192 out=runs/wide",
    ),
    "index": (
        "index",
        "collect examples, statistics and neighbours of every latent",
        "sae index configs/embedded.yaml analysis.index.window=48",
    ),
    "label": (
        "labels",
        "label latents and score the labels on held-out documents",
        "sae label configs/embedded.yaml",
    ),
    "effects": (
        "effects",
        "measure what each latent does to the network's output",
        "sae effects configs/embedded.yaml analysis.effects.firings=16",
    ),
}
"""The box that each builds, its help and an example."""


def add(commands: Any) -> None:
    example = "sae run configs/embedded.yaml train.lr=3e-4"
    common.add_run(commands, "run", "build a whole run: text to atlas", run, example)
    for name, (box, text, example) in STAGES.items():
        common.add_run(commands, name, text, _stage(box), example)


def run(arguments: argparse.Namespace) -> None:
    with common.locked_run(arguments) as run:
        common.say(run.finish())
        common.say(f"atlas: {run.atlas.path / 'index.html'}")


def _stage(name: str) -> common.Command:
    def command(arguments: argparse.Namespace) -> None:
        with common.locked_run(arguments) as run:
            box = getattr(run, name)
            facts = {key: value for key, value in box.facts.items() if key != "sites"}
            common.say({"box": str(box.path), **facts})

    return command
