"""The tables of an index: Parquet, so that DuckDB, Polars or Spark read them as they are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sae.files import publish

ROW_GROUPS = {"latents": 128, "examples": 1024, "tokens": 1 << 20}
"""Rows that are read together: a latent's are found by the bounds of each group."""

LATENTS = pa.schema(
    [
        ("latent", pa.int32()),
        ("n_fired", pa.int64()),
        ("density", pa.float64()),  # share of indexed tokens on which it fires
        ("max_value", pa.float32()),
        ("mean_value", pa.float32()),  # over the tokens on which it fires
        ("std_value", pa.float32()),  # of the same
        ("bin_edges", pa.list_(pa.float32())),  # activations, eight bins an octave, from the first that is not empty
        ("bin_counts", pa.list_(pa.int64())),  # firings between them, to the last that is not empty
        ("offset_edges", pa.list_(pa.int32())),  # first place of each bin of places in the context
        ("offset_rates", pa.list_(pa.float32())),  # share of the tokens there on which it fires
        # of the kept tokens:
        ("histogram", pa.list_(pa.int32())),  # 20 equal bins from 0 to max_value
        ("token_r2", pa.float64()),  # share of its variance that the token alone explains
        ("trigger_tokens", pa.list_(pa.int32())),  # on which it fires most often
        ("trigger_counts", pa.list_(pa.int64())),
        ("trigger_rates", pa.list_(pa.float32())),  # share of the token's occurrences
        ("trigger_masses", pa.list_(pa.float32())),  # share of the latent's activation
        ("next_tokens", pa.list_(pa.int32())),  # that follow where it fires, beyond chance
        ("next_counts", pa.list_(pa.int64())),
        ("next_lifts", pa.list_(pa.float32())),  # times as often as anywhere
        ("cofiring", pa.list_(pa.int32())),  # latents that fire where it fires, beyond chance
        ("cofiring_rates", pa.list_(pa.float32())),  # share of its firings
        ("cofiring_lifts", pa.list_(pa.float32())),  # times as often as anywhere
        # of the weights:
        ("promoted_tokens", pa.list_(pa.int32())),
        ("promoted_logits", pa.list_(pa.float32())),
        ("suppressed_tokens", pa.list_(pa.int32())),
        ("suppressed_logits", pa.list_(pa.float32())),
        ("neighbours", pa.list_(pa.int32())),  # by cosine of what they write
        ("neighbour_cosines", pa.list_(pa.float32())),
    ]
)
EXAMPLES = pa.schema(
    [
        ("latent", pa.int32()),
        (
            "kind",
            pa.string(),
        ),  # "top"; "interval", "quantile": drawn from one; "silent": one of its commonest tokens
        ("stratum", pa.string()),  # "top", "silent", an interval of activation such as "50-70%", or of ranks
        ("rank", pa.int32()),
        ("split", pa.string()),
        ("position", pa.int64()),
        ("value", pa.float32()),
        ("start", pa.int64()),  # window of tokens around it, within one context
        ("stop", pa.int64()),
        ("values", pa.list_(pa.float32())),  # this latent's activation on each token of the window
    ]
)
TOKENS = pa.schema(
    [
        ("token", pa.int32()),
        ("text", pa.string()),  # with its leading space
        ("n_kept", pa.int64()),  # how often it occurs among the kept tokens
    ]
)
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
