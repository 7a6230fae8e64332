"""`sae eval`: measure a dictionary."""

import argparse
from pathlib import Path
from typing import Any

from sae.commands import common

EXAMPLES = """sae eval configs/embedded.yaml
  sae eval configs/embedded.yaml analysis.eval.tokens=100_000 analysis.eval.probe_files=[my_labels.csv]
  sae eval configs/embedded.yaml --dictionary their_sae        # another dictionary, on this run's network and text"""


def add(commands: Any) -> None:
    text = "measure a dictionary on held-out documents and in the network, with intervals"
    parser = common.add_run(commands, "eval", text, evaluate, EXAMPLES)
    parser.add_argument(
        "--dictionary", type=Path, metavar="DIR", help="evaluate the dictionary in this folder (see sae convert)"
    )


def evaluate(arguments: argparse.Namespace) -> None:
    with common.locked_run(arguments) as run:
        from sae import evaluation

        box = evaluation.evaluate(run, arguments.dictionary)
        common.say({"box": str(box.path), **box.facts})
        common.say(f"page: {box.path / 'eval.html'}")
