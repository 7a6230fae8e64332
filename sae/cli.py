"""The command line: one small function a command, heavy imports inside them.

Exit codes: 0 done, 2 a mistake of the user's (one line says what and how to mend it), 1 a fault of ours.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import ConfigError, SaeError

if TYPE_CHECKING:
    from sae.run import Run

EPILOG = """examples:
  sae run configs/embedded.yaml                        text to atlas, everything by default
  sae run configs/embedded.yaml sae.k=32 train.lr=3e-4 out=runs/k32
  sae train configs/embedded.yaml                      build up to the dictionary, no further
  sae browse configs/embedded.yaml                     open the atlas of a finished run
  sae config configs/embedded.yaml                     every field, its value and what it means

A run lives in runs/<name of the config>/ unless out=DIR is given. A stage whose inputs have not
changed is not run again; one that was killed goes on where it was."""

STAGES: dict[str, tuple[str, str]] = {
    "harvest": ("activations", "run the network over the text and keep activations"),
    "train": ("dictionary", "train a dictionary on harvested activations"),
    "eval": ("evaluation", "measure a dictionary on held-out documents and in the network"),
    "index": ("index", "collect examples, statistics and neighbours of every latent"),
    "label": ("labels", "label latents and score the labels on held-out documents"),
}
RUN_EXAMPLES = {
    "harvest": "sae harvest configs/gpt2-small.yaml harvest.sites=[mlp_out.3,mlp_out.8] train.site=mlp_out.3",
    "train": "sae train configs/embedded.yaml sae.n_latents=8192 out=runs/wide",
    "eval": "sae eval configs/embedded.yaml",
    "index": "sae index configs/embedded.yaml analysis.index.window=48",
    "label": "sae label configs/embedded.yaml",
}


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
        logging.getLogger(package).setLevel(logging.INFO)
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
    _add_run(commands, "run", "build a whole run: text to atlas", _run, "sae run configs/embedded.yaml train.lr=3e-4")
    for name, (_, text) in STAGES.items():
        _add_run(commands, name, text, _stage_command(name), RUN_EXAMPLES[name])
    browse = _add_run(commands, "browse", "open the atlas of a run", _browse, "sae browse configs/embedded.yaml")
    browse.add_argument("--no-open", action="store_true", help="print the page's path, open nothing")
    export = _add_run(
        commands,
        "export",
        "write a run's results elsewhere",
        _export,
        "sae export configs/embedded.yaml --to features.csv",
    )
    export.add_argument(
        "--to", required=True, type=Path, help="a .csv file (a row a latent), or a folder for the atlas"
    )
    _add_run(
        commands, "config", "print every field with its value and help", _config, "sae config configs/embedded.yaml"
    )
    info = commands.add_parser("info", help="versions, devices, architectures, formats, backends")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(command=_info)
    subject = commands.add_parser(
        "subject",
        help="train the embedded network itself from freely licensed text (hours)",
        epilog="example:\n  sae subject english --out subjects/english",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subject.add_argument("name", help="name of the recipe: english")
    subject.add_argument("--out", required=True, type=Path, help="folder for checkpoints and the result")
    subject.set_defaults(command=_subject)
    return parser


def _add_run(
    commands: Any, name: str, text: str, command: Callable[[argparse.Namespace], None], example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[:1].upper() + text[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="the run's YAML file, such as configs/embedded.yaml")
    parser.add_argument("assignments", nargs="*", metavar="section.field=value", help="override a field, or out=DIR")
    parser.set_defaults(command=command)
    return parser


def _out(arguments: argparse.Namespace) -> Path:
    """Where the run lives: `out=DIR` among the overrides, or runs/ and the config's name."""
    outs = [text.removeprefix("out=") for text in arguments.assignments if text.startswith("out=")]
    if outs and not outs[-1]:
        raise ConfigError("out= : must name a folder, such as out=runs/wide")
    return Path(outs[-1]) if outs else Path("runs") / arguments.config.stem


@contextmanager
def _locked_run(arguments: argparse.Namespace) -> Iterator["Run"]:
    """The run that the arguments describe, held by this process."""
    from sae.run import Run
    from sae.run_config import load_config
    from sae.stage import lock

    overrides = [text for text in arguments.assignments if not text.startswith("out=")]
    cfg, out = load_config(arguments.config, overrides), _out(arguments)
    with lock(out):
        yield Run(cfg, out)


def _say(value: Any) -> None:
    sys.stdout.write((value if isinstance(value, str) else json.dumps(value, indent=1)) + "\n")


def _run(arguments: argparse.Namespace) -> None:
    with _locked_run(arguments) as run:
        _say(run.finish())
        _say(f"atlas: {run.atlas.path / 'index.html'}")


def _stage_command(name: str) -> Callable[[argparse.Namespace], None]:
    def command(arguments: argparse.Namespace) -> None:
        with _locked_run(arguments) as run:
            box = getattr(run, STAGES[name][0])
            facts = {key: value for key, value in box.facts.items() if key != "sites"}
            _say({"box": str(box.path), **facts})

    return command


def _browse(arguments: argparse.Namespace) -> None:
    import webbrowser

    from sae.stage import open_box

    page = open_box(_out(arguments) / "atlas").path / "index.html"
    _say(f"atlas: {page}")
    # without a screen, `webbrowser` may start a text browser in the middle of a script
    has_screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if has_screen and not arguments.no_open:
        webbrowser.open(page.resolve().as_uri())


def _export(arguments: argparse.Namespace) -> None:
    import shutil

    from sae.stage import open_box, verify

    boxes = {name: open_box(_out(arguments) / name) for name in ("index", "labels", "atlas")}
    for box in boxes.values():
        verify(box)
    if arguments.to.suffix == ".csv":
        from analysis.export.csv import export

        export(boxes["index"].path, boxes["labels"].path, arguments.to)
    else:
        own = shutil.ignore_patterns("manifest.json", "inputs.json", ".lock")
        shutil.copytree(boxes["atlas"].path, arguments.to, dirs_exist_ok=True, ignore=own)
    _say(f"written: {arguments.to}")


def _config(arguments: argparse.Namespace) -> None:
    from sae.run_config import describe, load_config

    overrides = [text for text in arguments.assignments if not text.startswith("out=")]
    _say(describe(load_config(arguments.config, overrides)))


def _info(arguments: argparse.Namespace) -> None:
    from sae.info import collect

    facts = collect()
    if arguments.json:
        _say(facts)
        return
    for name, value in facts.items():
        items = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
        _say(f"{name + ':':<15}{', '.join(items)}")


def _subject(arguments: argparse.Namespace) -> None:
    from train.subjects import make

    make(arguments.name, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
