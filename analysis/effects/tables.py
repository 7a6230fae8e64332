"""The records as a table, and what they are worth as a whole."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.effects.record import EffectRecord
from analysis.written import N_DIGITS, median, rounded
from sae.files import publish

ROW_GROUP = 128  # records that are read together
STATUSES = ("labelled", "abstained", "rare", "silent", "unmeasured")


def write(records: Sequence[EffectRecord], out: Path, why_not: str | None = None) -> dict[str, Any]:
    """Write `effects.parquet`, one row a latent with all fields of `EffectRecord`, `removed` and `added` as structs;
    returns the facts of the box. Numbers are rounded to 6 decimals; equal records give equal bytes."""
    rows = [rounded(asdict(record)) for record in records]
    table = pa.Table.from_pylist(rows, schema=_schema())
    publish(out / "effects.parquet", lambda path: pq.write_table(table, path, row_group_size=ROW_GROUP))
    return facts(records) | ({} if why_not is None else {"effects_not_available": why_not})


def facts(records: Sequence[EffectRecord]) -> dict[str, Any]:
    """What the labels are worth as a whole, for the manifest.

    `does_fraction`, `does_beats_nulls_fraction` and `does_surely_beats_nulls_fraction` are shares of the live latents
    (all but silent), so that what has no label counts against the dictionary; none where nothing was measured. Medians
    are over labelled latents, `median_kl` over all that were measured.
    """
    status = Counter(record.status for record in records)
    labelled = [record for record in records if record.status == "labelled"]
    n_live = 0 if status["unmeasured"] else len(records) - status["silent"]
    removed, added = [r.removed for r in labelled if r.removed], [r.added for r in labelled if r.added]
    return {
        "n_does_by_status": {name: status[name] for name in STATUSES},
        "n_does_by_verb": dict(sorted(Counter(record.verb or "" for record in labelled).items())),
        "n_does_by_source": dict(sorted(Counter(record.source or "" for record in labelled).items())),
        "does_fraction": _share(len(labelled), n_live),
        "does_beats_nulls_fraction": _share(sum(record.beats_nulls for record in labelled), n_live),
        "does_surely_beats_nulls_fraction": _share(sum(record.surely_beats_nulls for record in labelled), n_live),
        "median_effect": median([effect.nats for effect in removed]),
        "median_effect_other_label": median([effect.other_label for effect in removed]),
        "median_effect_chance": median([effect.chance for effect in removed]),
        "median_effect_percentile": median([effect.percentile for effect in removed]),
        "median_added_effect": median([effect.nats for effect in added]),
        "median_added_effect_chance": median([effect.chance for effect in added]),
        "median_kl": median([record.kl for record in records]),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, N_DIGITS) if whole else None


def _schema() -> pa.Schema:
    number, whole, text = pa.float64(), pa.int64(), pa.string()
    names = ("nats", "low", "high", "right", "percentile", "other_label", "chance")
    effect = pa.struct([("n", whole)] + [(name, number) for name in names])
    columns = [("latent", whole), ("status", text), ("text", text), ("verb", text), ("tokens", pa.list_(whole))]
    columns += [("source", text), ("n_fit", whole), ("n_select", whole), ("select_effect", number), ("kl", number)]
    columns += [("other_latent", whole), ("removed", effect), ("added", effect), ("amount", number)]
    return pa.schema(columns)
