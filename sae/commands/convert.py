"""`sae convert`: dictionaries of other packages."""

import argparse
from pathlib import Path
from typing import Any

from sae.commands import common
from sae.errors import ConfigError

EXAMPLES = """examples:
  sae convert layer_5/width_16k/average_l0_7 --to sae --out gemma5 --set kind=res
  sae convert trainer_3 --to sae --out ours --set apply_b_dec_to_input=false
  sae convert runs/embedded/dictionary --to saelens --out for_saelens

What a file leaves open is asked for by name, never guessed. Formats: sae info."""


def add(commands: Any) -> None:
    parser = common.add(
        commands,
        "convert",
        "read and write dictionaries of other packages",
        convert,
        description="Translate one dictionary from a format to another, as docs/interchange.md says.",
        epilog=EXAMPLES,
    )
    parser.add_argument("source", type=Path, help="the folder of one dictionary, or the file with its weights")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="saelens, sparsify, ...; sae is our own")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument("--from", dest="form", metavar="FORMAT", help="of the source; none means by its files")
    parser.add_argument(
        "--set", action="append", default=[], metavar="field=value", help="answer what the source leaves open"
    )


def convert(arguments: argparse.Namespace) -> None:
    from sae import convert

    for name in (arguments.to, arguments.form):
        if name is not None and name not in convert.names():
            raise ConfigError(f"format {name!r} is unknown: must be one of {', '.join(convert.names())}")
    for text in arguments.set:
        if "=" not in text:
            raise ConfigError(f"--set {text}: must be field=value, such as apply_b_dec_to_input=false")
    answers = {name: value for name, _, value in (text.partition("=") for text in arguments.set)}
    found = convert.read(arguments.source, answers, arguments.form)
    convert.write(found.dictionary, found.facts, arguments.to, arguments.out)
    common.say(f"written: {arguments.out}")
