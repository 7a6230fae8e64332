"""`sae export`: a run's results in other forms."""

import argparse
from pathlib import Path
from typing import Any

from sae.commands import common


def add(commands: Any) -> None:
    example = "sae export configs/embedded.yaml --to features.csv"
    parser = common.add_run(commands, "export", "write a run's results elsewhere", export, example)
    parser.add_argument(
        "--to", required=True, type=Path, help="a .csv file (a row a latent), or a folder for the atlas"
    )


def export(arguments: argparse.Namespace) -> None:
    import shutil

    from sae.stage import open_box, verify

    boxes = {name: open_box(common.boxes(arguments) / name) for name in ("index", "labels", "atlas")}
    for box in boxes.values():
        verify(box)
    if arguments.to.suffix == ".csv":
        from analysis.export.csv import export

        export(boxes["index"].path, boxes["labels"].path, arguments.to)
    else:
        own = shutil.ignore_patterns("manifest.json", "inputs.json", ".lock")
        shutil.copytree(boxes["atlas"].path, arguments.to, dirs_exist_ok=True, ignore=own)
    common.say(f"written: {arguments.to}")
