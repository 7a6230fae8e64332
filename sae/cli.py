"""The command line. What each command does stands in `sae/commands/`.

Exit codes: 0 done, 2 a mistake of the user's (one line says what and how to mend it), 1 a fault of ours.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from sae.commands import (
    browse,
    build,
    common,
    config,
    convert,
    evaluate,
    explain,
    export,
    info,
    query,
    subject,
    sweep,
    windows,
)
from sae.errors import SaeError

EPILOG = """examples:
  sae run configs/embedded.yaml                        text to atlas, everything by default
  sae run configs/embedded.yaml sae.k=32 train.lr=3e-4 out=runs/k32
  sae train configs/embedded.yaml                      build up to the dictionary, no further
  sae sweep configs/sweep.yaml                         many dictionaries from one pass: a table and a plot
  sae eval configs/embedded.yaml                       how good is its dictionary? figures, intervals, probes
  sae browse configs/embedded.yaml                     open the atlas of a finished run
  sae config configs/embedded.yaml                     every field, its value and what it means
  sae convert their_folder --to sae --out ours         another package's dictionary, as ours

A run lives in runs/<name of the config>/ unless out=DIR is given. A stage whose inputs have not
changed is not run again; one that was killed goes on where it was. With member=NAME a command is
about one dictionary of the sweep."""

COMMANDS = (build, evaluate, windows, explain, sweep, browse, export, query, config, info, convert, subject)
"""In the order of the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    arguments, left = parser.parse_known_args(argv)
    if any("=" not in text or text.startswith("-") or "assignments" not in arguments for text in left):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:  # overrides that stand after an option
        arguments.assignments += left
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for package in ("sae", "train", "analysis"):
        logging.getLogger(package).setLevel(logging.INFO if common.is_main() else logging.WARNING)
    try:
        arguments.command(arguments)
    except SaeError as error:
        sys.stderr.write(f"sae: {error}\n")
        return 2
    except OSError as error:  # no such folder, no room, no right: the user's to mend
        sys.stderr.write(f"sae: {error.filename or ''}: {error.strerror or error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("sae: interrupted; run the same command to go on\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae",
        description="Find the features a network computes, and how far the name on each can be trusted.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
