"""The tables of an index: Parquet, so that DuckDB, Polars or Spark read them as they are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sae.files import publish

ROW_GROUPS = {"latents": 128, "examples": 1024, "tokens": 1 << 20}
"""Rows that are read together: a latent's are found by the bounds of each group."""

Described = Sequence[tuple[str, pa.DataType, str]]
"""Name, type and meaning of each column."""

LATENT_COLUMNS: Described = (
    ("latent", pa.int32(), "its number"),
    # of every encoded token:
    ("n_fired", pa.int64(), "tokens on which it fires"),
    ("density", pa.float64(), "share of the encoded tokens on which it fires"),
    ("max_value", pa.float32(), "its strongest activation"),
    ("mean_value", pa.float32(), "mean activation over the tokens on which it fires"),
    ("std_value", pa.float32(), "standard deviation over the same"),
    ("bin_edges", pa.list_(pa.float32()), "activations, eight bins an octave, from the first bin that is not empty"),
    ("bin_counts", pa.list_(pa.int64()), "firings between them, to the last bin that is not empty"),
    ("offset_edges", pa.list_(pa.int32()), "first place of each bin of places in the context"),
    ("offset_rates", pa.list_(pa.float32()), "share of the tokens there on which it fires"),
    # of the kept tokens:
    ("histogram", pa.list_(pa.int32()), "kept firings in 20 equal bins from 0 to max_value"),
    ("token_r2", pa.float64(), "share of its variance over kept tokens that the token alone explains"),
    ("trigger_tokens", pa.list_(pa.int32()), "tokens on which it fires most often, among the kept"),
    ("trigger_counts", pa.list_(pa.int64()), "how often it fires on each"),
    ("trigger_rates", pa.list_(pa.float32()), "share of the token's occurrences on which it fires"),
    ("trigger_masses", pa.list_(pa.float32()), "share of its activation that is on the token"),
    ("next_tokens", pa.list_(pa.int32()), "tokens that follow where it fires, beyond chance"),
    ("next_counts", pa.list_(pa.int64()), "how often each follows"),
    ("next_lifts", pa.list_(pa.float32()), "times as often as anywhere"),
    ("cofiring", pa.list_(pa.int32()), "latents that fire where it fires, beyond chance"),
    ("cofiring_rates", pa.list_(pa.float32()), "share of its firings on which each does"),
    ("cofiring_lifts", pa.list_(pa.float32()), "times as often as anywhere"),
    # of the weights:
    ("promoted_tokens", pa.list_(pa.int32()), "next tokens that its direction promotes most"),
    ("promoted_logits", pa.list_(pa.float32()), "how much it does, up to a scale that all latents share"),
    ("suppressed_tokens", pa.list_(pa.int32()), "next tokens that it suppresses most"),
    ("suppressed_logits", pa.list_(pa.float32()), "how much it does"),
    ("neighbours", pa.list_(pa.int32()), "latents whose directions are nearest"),
    ("neighbour_cosines", pa.list_(pa.float32()), "their cosines"),
)
EXAMPLE_COLUMNS: Described = (
    ("latent", pa.int32(), "whose example it is"),
    (
        "kind",
        pa.string(),
        "top: the strongest; interval, quantile: drawn from one; silent: on a frequent token, no firing",
    ),
    ("stratum", pa.string(), "top, silent, a share of the maximum such as 50-70%, or a tenth of its firings, q90-100%"),
    ("rank", pa.int32(), "place in its stratum, from 0"),
    ("split", pa.string(), "split of the text"),
    ("position", pa.int64(), "of the token, in the split's flat array of tokens"),
    ("value", pa.float32(), "activation on it"),
    ("start", pa.int64(), "position of the first token of the window around it, within one context"),
    ("stop", pa.int64(), "position after the last"),
    ("values", pa.list_(pa.float32()), "activation on each token of the window"),
)
TOKEN_COLUMNS: Described = (
    ("token", pa.int32(), "its id"),
    ("text", pa.string(), "with its leading space; bytes that are no UTF-8 by themselves show as U+FFFD"),
    ("n_kept", pa.int64(), "how often it occurs among the kept tokens"),
)


def _schema(columns: Described) -> pa.Schema:
    return pa.schema([(name, kind) for name, kind, _ in columns])


LATENTS, EXAMPLES, TOKENS = (_schema(columns) for columns in (LATENT_COLUMNS, EXAMPLE_COLUMNS, TOKEN_COLUMNS))
Columns = Mapping[str, Any]
"""A value of a table's column for each of some rows: an array, or a `Lists`."""


class Lists:
    """A list for each row, one behind the other: row i has `flat[offsets[i]:offsets[i + 1]]`."""

    def __init__(self, offsets: np.ndarray, flat: np.ndarray) -> None:
        self.offsets, self.flat = offsets, flat

    @classmethod
    def of_sizes(cls, sizes: np.ndarray, flat: np.ndarray) -> "Lists":
        return cls(np.append(0, np.cumsum(sizes)), flat)

    @classmethod
    def of_matrix(cls, rows: np.ndarray) -> "Lists":
        """As many in every row."""
        return cls(np.arange(len(rows) + 1) * rows.shape[1], rows.reshape(-1))

    def arrow(self, kind: pa.DataType) -> pa.Array:
        values = pa.array(self.flat).cast(kind.value_type)
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), values)


@contextmanager
def written(path: Path, schema: pa.Schema) -> Iterator["Writer"]:
    """A table that is written a block of rows at a time, and published when all are."""
    temporary = path.with_name(f".tmp-{path.name}")
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield Writer(writer, schema, ROW_GROUPS[path.stem])
    publish(path, temporary.rename)


class Writer:
    """Where blocks of rows go."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema, row_group: int) -> None:
        self._writer, self._schema, self._row_group = writer, schema, row_group

    def add(self, columns: Columns) -> None:
        """Some rows, with all of the schema's columns; NaN becomes null."""
        arrays = []
        for field in self._schema:
            column = columns[field.name]
            if isinstance(column, Lists):
                arrays.append(column.arrow(field.type))
            else:
                arrays.append(pa.array(column, field.type, from_pandas=True))
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        if table.num_rows == 0:  # there would be a group of no rows, whose bounds nobody knows
            return
        self._writer.write_table(table, row_group_size=self._row_group)


class Table:
    """A Parquet file whose rows are in order of latent, read a group of rows at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        metadata = self._file.metadata
        column = metadata.schema.names.index("latent")
        statistics = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
        self._last = np.array([each.max for each in statistics], dtype=np.int64)
        self.n_rows = metadata.num_rows

    def rows(self, latent: int) -> list[dict[str, Any]]:
        """Those of one latent."""
        return self.block(latent, latent + 1).to_pylist()

    def block(self, first: int, last: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Those of latents `first:last`; of some columns, `latent` among them, or of all."""
        low, high = np.searchsorted(self._last, [first, last])
        groups = list(range(low, min(high + 1, len(self._last))))
        table = self._file.read_row_groups(groups, columns=columns and list(columns), use_threads=False)
        start, stop = np.searchsorted(table["latent"].to_numpy(), [first, last])
        return table.slice(start, stop - start)

    def columns(self, *names: str) -> pa.Table:
        """Whole columns."""
        return self._file.read(list(names))
