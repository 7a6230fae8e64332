"""`sae export`: a run's results in other forms."""

import argparse
from pathlib import Path
from typing import Any

from sae.commands import common
from sae.errors import ConfigError

EXAMPLES = """sae export configs/embedded.yaml --to features.csv
  sae export configs/embedded.yaml --to pages
  sae export configs/gpt2-small.yaml --to for_neuronpedia --as neuronpedia --set model=gpt2-small
  sae export configs/embedded.yaml --to for_delphi --as delphi --set hookpoint=h.3.mlp"""
FORMATS = "atlas, csv, parquet, neuronpedia, circuit-tracer, delphi"


def add(commands: Any) -> None:
    parser = common.add_run(commands, "export", "write a run's results elsewhere", export, EXAMPLES)
    parser.add_argument("--to", required=True, type=Path, metavar="PATH", help="a folder, or of csv a file")
    parser.add_argument(
        "--as",
        dest="form",
        metavar="FORMAT",
        help=f"{FORMATS} (docs/exports.md); none means csv for a .csv file, else the atlas",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="field=value", help="what the format leaves to be chosen"
    )


def export(arguments: argparse.Namespace) -> None:
    for text in arguments.set:
        if "=" not in text:
            raise ConfigError(f"--set {text}: must be field=value, such as layer=8")
    from analysis.export.formats import export

    settings = {name: value for name, _, value in (text.partition("=") for text in arguments.set)}
    export(common.boxes(arguments), arguments.to, arguments.form, settings)
    common.say(f"written: {arguments.to}")
