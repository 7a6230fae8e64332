"""A run's features as one CSV file, a row a latent, for a spreadsheet."""

import csv
from pathlib import Path

import pyarrow.parquet as pq

from sae.files import publish

INDEX_COLUMNS = ["latent", "n_fired", "density", "max_value", "mean_value", "token_r2"]


def export(index: Path, labels: Path, out: Path) -> None:
    """Join `index/latents.parquet` with `labels/labels.parquet` by latent: `scores.f1`, …; lists are left out."""
    table = pq.read_table(index / "latents.parquet", columns=INDEX_COLUMNS)
    scored = pq.read_table(labels / "labels.parquet").flatten()
    columns = [
        field.name for field in scored.schema if field.name != "latent" and not str(field.type).startswith("list")
    ]
    by_latent = {row["latent"]: row for row in scored.select(["latent", *columns]).to_pylist()}
    rows = [{**row, **by_latent.get(row["latent"], {})} for row in table.to_pylist()]

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*INDEX_COLUMNS, *columns])
            writer.writeheader()
            writer.writerows(rows)

    publish(out, write)
