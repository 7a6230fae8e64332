"""`sae subject`: make the embedded network itself."""

import argparse
from pathlib import Path
from typing import Any

from sae.commands import common


def add(commands: Any) -> None:
    parser = common.add(
        commands,
        "subject",
        "train the embedded network itself from freely licensed text (hours)",
        subject,
        epilog="example:\n  sae subject english --out subjects/english",
    )
    parser.add_argument("name", help="name of the recipe: english")
    parser.add_argument("--out", required=True, type=Path, help="folder for checkpoints and the result")


def subject(arguments: argparse.Namespace) -> None:
    from train.subjects import make

    make(arguments.name, arguments.out)
