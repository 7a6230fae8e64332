"""What commands share: the arguments of a run, where it lives, how answers are written."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import ConfigError

if TYPE_CHECKING:
    from sae.run import Run
    from sae.run_config import RunConfig

Command = Callable[[argparse.Namespace], None]


def add(commands: Any, name: str, text: str, command: Command, **others: Any) -> argparse.ArgumentParser:
    """A command's parser: `text` is its line in the list of commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter, **others
    )
    parser.set_defaults(command=command)
    return parser


def add_run(commands: Any, name: str, text: str, command: Command, example: str) -> argparse.ArgumentParser:
    """The parser of a command about a run: its configuration, and what is overridden."""
    parser = add(
        commands, name, text, command, description=text[:1].upper() + text[1:] + ".", epilog=f"example:\n  {example}"
    )
    parser.add_argument("config", type=Path, help="the run's YAML file, such as configs/embedded.yaml")
    parser.add_argument(
        "assignments", nargs="*", metavar="section.field=value", help="override a field; out=DIR, member=NAME"
    )
    return parser


def option(arguments: argparse.Namespace, name: str) -> str | None:
    """The last `name=value` among the overrides."""
    values = [text.removeprefix(f"{name}=") for text in arguments.assignments if text.startswith(f"{name}=")]
    return values[-1] if values else None


def folder(arguments: argparse.Namespace) -> Path:
    """Where the run lives: `out=DIR` among the overrides, or runs/ and the config's name."""
    out = option(arguments, "out")
    if out == "":
        raise ConfigError("out= : must name a folder, such as out=runs/wide")
    return Path(out) if out else Path("runs") / arguments.config.stem


def boxes(arguments: argparse.Namespace) -> Path:
    """Where the boxes lie that the arguments are about: the run's, or those of one dictionary of its sweep."""
    member = option(arguments, "member")
    return folder(arguments) if member is None else folder(arguments) / "sweep" / member


def cfg(arguments: argparse.Namespace) -> "RunConfig":
    """The run's configuration with what is overridden."""
    from sae.run_config import load_config

    return load_config(arguments.config, [t for t in arguments.assignments if not t.startswith(("out=", "member="))])


@contextmanager
def locked_run(arguments: argparse.Namespace) -> Iterator["Run"]:
    """The run that the arguments describe, held by this process, or by the first of several."""
    chosen, out, name = cfg(arguments), folder(arguments), option(arguments, "member")
    if name is not None:
        chosen.member(name)  # a wrong name is told before anything is imported or made
    from sae.run import Run
    from sae.stage import lock
    from sae.sweep import member
    from sae.team import current

    team = current()
    with lock(out) if team.is_main else nullcontext():
        run = Run(chosen, out)
        yield run if name is None else member(run, name)
        team.wait()
    team.leave()


def say(value: Any) -> None:
    """Write an answer, text as it is and all else as JSON; of several processes the first."""
    if is_main():
        sys.stdout.write((value if isinstance(value, str) else json.dumps(value, indent=1)) + "\n")


def say_table(rows: Sequence[Sequence[Any]]) -> None:
    """A line for each row, its cells below one another."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        say("  ".join(map(str.ljust, row, widths)).rstrip())


def is_main() -> bool:
    """Whether this process speaks, of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else "".join(c if c.isprintable() else " " for c in str(value))
