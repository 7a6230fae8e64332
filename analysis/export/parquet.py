"""The tables of the index and the labels as one folder that needs nothing else of the run, with a README.

latents.parquet   labels.parquet   tokens.parquet    as they are in the run
examples.parquet                                     with the tokens of each window and the document
README.md                                            what each column means
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.export.results import Results
from analysis.index.tables import EXAMPLE_COLUMNS, LATENT_COLUMNS, ROW_GROUPS, TOKEN_COLUMNS, Described
from analysis.label.record import LabelRecord, Scores
from sae.config import field_help
from sae.files import write_text

ADDED: Described = (
    ("tokens", pa.list_(pa.int32()), "ids of the window's tokens; their text is in tokens.parquet"),
    ("document", pa.string(), "id of the document that the token is in"),
    ("source", pa.string(), "where the document is from"),
    ("title", pa.string(), "its title"),
)
ROWS = 1 << 14  # examples that are in memory together


def write(results: Results, _: Any, out: Path) -> None:
    """Write the four tables and what their columns mean."""
    index, labels = results.box("index").path, results.box("labels").path
    for source in (index / "latents.parquet", index / "tokens.parquet", labels / "labels.parquet"):
        shutil.copyfile(source, out / source.name)
    _write_examples(results, index / "examples.parquet", out / "examples.parquet")
    write_text(out / "README.md", readme(results))


def _write_examples(results: Results, source: Path, out: Path) -> None:
    file = pq.ParquetFile(source)
    schema = file.schema_arrow
    for name, kind, _ in ADDED:
        schema = schema.append(pa.field(name, kind))
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in file.iter_batches(ROWS, use_threads=False):
            table = _with_tokens(results, pa.table(batch)).cast(schema)
            writer.write_table(table, row_group_size=ROW_GROUPS["examples"])


def _with_tokens(results: Results, table: pa.Table) -> pa.Table:
    names = ("split", "position", "start", "stop")
    tokens, places = [], []
    for name, position, start, stop in zip(*(table[column].to_pylist() for column in names), strict=True):
        split = results.split(name)
        document = int(split.locate(np.array([position]))[0][0])
        tokens.append(split.tokens[start:stop])
        places.append([split.documents[column][document] for column in ("id", "source", "title")])
    table = table.append_column("tokens", pa.array(tokens, pa.list_(pa.int32())))
    for i, (name, kind, _) in enumerate(ADDED[1:]):
        table = table.append_column(name, pa.array([place[i] for place in places], kind))
    return table


def readme(results: Results) -> str:
    """What the folder holds, column by column."""
    index, about = results.box("index").facts, results.dictionary
    sites = ", ".join(about["facts"]["inputs"])
    record = [(name, help_of) for name, _, _, help_of in field_help(LabelRecord)]
    scores = [(name, help_of) for name, _, _, help_of in field_help(Scores)]
    return "\n".join(
        [
            f"# Features of {results.model}, {sites}",
            "",
            f"{results.n_latents:,} latents of a dictionary ({about['type']}), from {index['n_tokens']:,} tokens; of "
            f"{index['n_kept']:,} of them, the kept ones, every firing is known. Written by sae-atlas.",
            "",
            *_section("latents.parquet", "A row a latent.", _named(LATENT_COLUMNS)),
            *_section("examples.parquet", "A row an example.", _named([*EXAMPLE_COLUMNS, *ADDED])),
            *_section("tokens.parquet", "A row a token of the vocabulary.", _named(TOKEN_COLUMNS)),
            *_section("labels.parquet", "A row a latent. `rule` is JSON.", record),
            *_section("Scores", "The fields of `scores`, `token`, `token_set` and `other`.", scores),
        ]
    )


def _named(columns: Described) -> list[tuple[str, str]]:
    return [(name, meaning) for name, _, meaning in columns]


def _section(title: str, about: str, columns: Sequence[tuple[str, str]]) -> list[str]:
    rows = [f"| `{name}` | {meaning.rstrip('.').replace('|', chr(92) + '|')} |" for name, meaning in columns]
    return [f"## {title}", "", about, "", "| column | is |", "|---|---|", *rows, ""]
