"""The command line: one small function a command, heavy imports inside them.

Exit codes: 0 done, 2 a mistake of the user's (one line says what and how to mend it), 1 a fault of ours.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import ConfigError, SaeError

if TYPE_CHECKING:
    from analysis.query import Index
    from sae.run import Run
    from sae.run_config import RunConfig

EPILOG = """examples:
  sae run configs/embedded.yaml                        text to atlas, everything by default
  sae run configs/embedded.yaml sae.k=32 train.lr=3e-4 out=runs/k32
  sae train configs/embedded.yaml                      build up to the dictionary, no further
  sae sweep configs/sweep.yaml                         many dictionaries from one pass: a table and a plot
  sae browse configs/embedded.yaml                     open the atlas of a finished run
  sae config configs/embedded.yaml                     every field, its value and what it means
  sae convert their_folder --to sae --out ours         another package's dictionary, as ours

A run lives in runs/<name of the config>/ unless out=DIR is given. A stage whose inputs have not
changed is not run again; one that was killed goes on where it was. With member=NAME a command is
about one dictionary of the sweep."""

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

CONVERT_EXAMPLES = """examples:
  sae convert layer_5/width_16k/average_l0_7 --to sae --out gemma5 --set kind=res
  sae convert trainer_3 --to sae --out ours --set apply_b_dec_to_input=false
  sae convert runs/embedded/dictionary --to saelens --out for_saelens

What a file leaves open is asked for by name, never guessed. Formats: sae info."""


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
        logging.getLogger(package).setLevel(logging.INFO if _is_main() else logging.WARNING)
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
    _add_run(
        commands,
        "sweep",
        "train the dictionaries of `sweep:` on one stream and compare them",
        _sweep,
        "sae sweep configs/sweep.yaml\n  sae sweep configs/embedded.yaml 'sweep=[{grid: {sae.k: [16, 32, 64]}}]'\n"
        "  sae run configs/sweep.yaml member=k=32",
    )
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
    query = _add_run(
        commands,
        "query",
        "ask a run's index: which latent does what",
        _query,
        """sae query configs/embedded.yaml --latent 12
  sae query configs/embedded.yaml --token ' dog'
  sae query configs/embedded.yaml --label 'king quee*' --top 5
  sae query configs/embedded.yaml --sql 'select latent, density from latents order by token_r2 limit 5'""",
    )
    asked = query.add_mutually_exclusive_group(required=True)
    asked.add_argument("--latent", type=int, metavar="N", help="all that is known of a latent")
    asked.add_argument("--token", metavar="TEXT", help="latents by the token that they fire on, ' dog' with its space")
    asked.add_argument("--next", metavar="TEXT", help="latents by the next token that they promote")
    asked.add_argument("--label", metavar="WORDS", help="latents by words of their labels; a word may end in *")
    asked.add_argument("--near", type=int, metavar="N", help="latents whose decoder direction is like that of a latent")
    asked.add_argument("--near-encoder", type=int, metavar="N", help="the same by encoder direction")
    asked.add_argument("--overlap", type=int, nargs=2, metavar=("N", "M"), help="how far two latents fire together")
    asked.add_argument("--sql", metavar="QUERY", help="DuckDB's SQL over latents, examples, labels, tokens")
    query.add_argument("--top", type=int, metavar="K", help="answers, at most (20; of SQL all)")
    query.add_argument("--json", action="store_true", help="as JSON; --overlap always is")
    _add_run(
        commands, "config", "print every field with its value and help", _config, "sae config configs/embedded.yaml"
    )
    info = commands.add_parser("info", help="versions, devices, architectures, formats, backends")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(command=_info)
    convert = commands.add_parser(
        "convert",
        help="read and write dictionaries of other packages",
        description="Translate one dictionary from a format to another, as docs/interchange.md says.",
        epilog=CONVERT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("source", type=Path, help="the folder of one dictionary, or the file with its weights")
    convert.add_argument("--to", required=True, metavar="FORMAT", help="saelens, sparsify, ...; sae is our own")
    convert.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    convert.add_argument("--from", dest="form", metavar="FORMAT", help="of the source; none means by its files")
    convert.add_argument(
        "--set", action="append", default=[], metavar="field=value", help="answer what the source leaves open"
    )
    convert.set_defaults(command=_convert)
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
    parser.add_argument(
        "assignments", nargs="*", metavar="section.field=value", help="override a field; out=DIR, member=NAME"
    )
    parser.set_defaults(command=command)
    return parser


def _option(arguments: argparse.Namespace, name: str) -> str | None:
    """The last `name=value` among the overrides."""
    values = [text.removeprefix(f"{name}=") for text in arguments.assignments if text.startswith(f"{name}=")]
    return values[-1] if values else None


def _out(arguments: argparse.Namespace) -> Path:
    """Where the run lives: `out=DIR` among the overrides, or runs/ and the config's name."""
    out = _option(arguments, "out")
    if out == "":
        raise ConfigError("out= : must name a folder, such as out=runs/wide")
    return Path(out) if out else Path("runs") / arguments.config.stem


def _boxes(arguments: argparse.Namespace) -> Path:
    """Where the boxes lie that the arguments are about: the run's, or those of one dictionary of its sweep."""
    member = _option(arguments, "member")
    return _out(arguments) if member is None else _out(arguments) / "sweep" / member


def _cfg(arguments: argparse.Namespace) -> "RunConfig":
    from sae.run_config import load_config

    return load_config(arguments.config, [t for t in arguments.assignments if not t.startswith(("out=", "member="))])


@contextmanager
def _locked_run(arguments: argparse.Namespace) -> Iterator["Run"]:
    """The run that the arguments describe, held by this process, or by the first of several."""
    cfg, out, name = _cfg(arguments), _out(arguments), _option(arguments, "member")
    if name is not None:
        cfg.member(name)  # a wrong name is told before anything is imported or made
    from sae.run import Run
    from sae.stage import lock
    from sae.sweep import member
    from sae.team import current

    team = current()
    with lock(out) if team.is_main else nullcontext():
        run = Run(cfg, out)
        yield run if name is None else member(run, name)
        team.wait()
    team.leave()


def _say(value: Any) -> None:
    if not _is_main():
        return
    sys.stdout.write((value if isinstance(value, str) else json.dumps(value, indent=1)) + "\n")


def _is_main() -> bool:
    """Whether this process speaks, of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


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


def _sweep(arguments: argparse.Namespace) -> None:
    from sae.sweep import sweep

    with _locked_run(arguments) as run:
        rows = sweep(run)
        columns = ("name", "type", "site", "n_latents", "l0", "fvu", "pca_fvu", "ce_recovered", "dead_fraction")
        for line in _aligned([columns, *([getattr(row, name) for name in columns] for row in rows)]):
            _say(line)
        _say(f"table: {run.out / 'sweep' / 'table.csv'}\nplot: {run.out / 'sweep' / 'pareto.png'}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else "".join(c if c.isprintable() else " " for c in str(value))


def _browse(arguments: argparse.Namespace) -> None:
    import webbrowser

    from sae.stage import open_box

    page = open_box(_boxes(arguments) / "atlas").path / "index.html"
    _say(f"atlas: {page}")
    # without a screen, `webbrowser` may start a text browser in the middle of a script
    has_screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if has_screen and not arguments.no_open:
        webbrowser.open(page.resolve().as_uri())


def _export(arguments: argparse.Namespace) -> None:
    import shutil

    from sae.stage import open_box, verify

    boxes = {name: open_box(_boxes(arguments) / name) for name in ("index", "labels", "atlas")}
    for box in boxes.values():
        verify(box)
    if arguments.to.suffix == ".csv":
        from analysis.export.csv import export

        export(boxes["index"].path, boxes["labels"].path, arguments.to)
    else:
        own = shutil.ignore_patterns("manifest.json", "inputs.json", ".lock")
        shutil.copytree(boxes["atlas"].path, arguments.to, dirs_exist_ok=True, ignore=own)
    _say(f"written: {arguments.to}")


def _query(arguments: argparse.Namespace) -> None:
    if arguments.top is not None and arguments.top < 1:
        raise ConfigError(f"--top {arguments.top}: must be 1 or more")
    from analysis.query import Index

    index = Index(_boxes(arguments))
    if arguments.latent is not None:
        from analysis.export.text import describe

        view = index.view(arguments.latent)
        _say(view if arguments.json else describe(view))
    elif arguments.overlap is not None:
        _say(index.overlap(*arguments.overlap))
    else:
        hits = _hits(index, arguments)
        if arguments.json:
            _say(hits)
            return
        for line in _aligned([list(hits[0]), *(list(hit.values()) for hit in hits)]) if hits else ["nothing"]:
            _say(line)


def _hits(index: "Index", arguments: argparse.Namespace) -> list[dict[str, Any]]:
    if arguments.sql is not None:
        table = index.sql(arguments.sql).slice(0, arguments.top)
        twice = [name for name in table.column_names if table.column_names.count(name) > 1]
        if twice:
            raise ConfigError(f"sql: two columns are called {twice[0]!r}; call one otherwise (select … as …)")
        return table.to_pylist()
    top = arguments.top or 20
    if arguments.token is not None:
        return index.by_token(arguments.token, top)
    if arguments.next is not None:
        return index.by_next_token(arguments.next, top)
    if arguments.label is not None:
        return index.search(arguments.label, top)
    if arguments.near is not None:
        return index.nearest(arguments.near, "decoder", top)
    return index.nearest(arguments.near_encoder, "encoder", top)


def _aligned(rows: Sequence[Sequence[Any]]) -> list[str]:
    """A line for each row, its cells below one another."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _config(arguments: argparse.Namespace) -> None:
    from sae.run_config import describe

    cfg, name = _cfg(arguments), _option(arguments, "member")
    _say(describe(cfg if name is None else cfg.member(name)))


def _info(arguments: argparse.Namespace) -> None:
    from sae.info import collect

    facts = collect()
    if arguments.json:
        _say(facts)
        return
    for name, value in facts.items():
        items = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
        _say(f"{name + ':':<15}{', '.join(items)}")


def _convert(arguments: argparse.Namespace) -> None:
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
    _say(f"written: {arguments.out}")


def _subject(arguments: argparse.Namespace) -> None:
    from train.subjects import make

    make(arguments.name, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
