"""`sae query`: questions to a run's index."""

import argparse
from typing import TYPE_CHECKING, Any

from sae.commands import common
from sae.errors import ConfigError

if TYPE_CHECKING:
    from analysis.query import Index

EXAMPLES = """sae query configs/embedded.yaml --latent 12
  sae query configs/embedded.yaml --token ' dog'
  sae query configs/embedded.yaml --label 'king quee*' --top 5
  sae query configs/embedded.yaml --sql 'select latent, density from latents order by token_r2 limit 5'"""


def add(commands: Any) -> None:
    parser = common.add_run(commands, "query", "ask a run's index: which latent does what", query, EXAMPLES)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--latent", type=int, metavar="N", help="all that is known of a latent")
    asked.add_argument("--token", metavar="TEXT", help="latents by the token that they fire on, ' dog' with its space")
    asked.add_argument("--next", metavar="TEXT", help="latents by the next token that they promote")
    asked.add_argument("--label", metavar="WORDS", help="latents by words of their labels; a word may end in *")
    asked.add_argument("--near", type=int, metavar="N", help="latents whose decoder direction is like that of a latent")
    asked.add_argument("--near-encoder", type=int, metavar="N", help="the same by encoder direction")
    asked.add_argument("--overlap", type=int, nargs=2, metavar=("N", "M"), help="how far two latents fire together")
    asked.add_argument("--sql", metavar="QUERY", help="DuckDB's SQL over latents, examples, labels, effects, tokens")
    parser.add_argument("--top", type=int, metavar="K", help="answers, at most (20; of SQL all)")
    parser.add_argument("--json", action="store_true", help="as JSON; --overlap always is")


def query(arguments: argparse.Namespace) -> None:
    if arguments.top is not None and arguments.top < 1:
        raise ConfigError(f"--top {arguments.top}: must be 1 or more")
    from analysis.query import Index

    index = Index(common.boxes(arguments))
    if arguments.latent is not None:
        from analysis.export.text import describe

        view = index.view(arguments.latent)
        common.say(view if arguments.json else describe(view))
    elif arguments.overlap is not None:
        common.say(index.overlap(*arguments.overlap))
    else:
        hits = _hits(index, arguments)
        if arguments.json:
            common.say(hits)
        else:
            common.say_table([list(hits[0]), *(list(hit.values()) for hit in hits)] if hits else [["nothing"]])


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
