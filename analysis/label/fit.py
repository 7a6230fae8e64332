"""Labels for all latents, honestly: fitted on one split, chosen on another, scored once on a third.

    records = labels(fit, select, test, cfg);  facts = write(records, out)

Every latent has a record, whatever becomes of it: `labelled`, `abstained`, `rare` or `silent`.
"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.config import LabelConfig
from analysis.label.choose import choose
from analysis.label.columns import Vocabulary
from analysis.label.grade import grade
from analysis.label.indexed import Indexed
from analysis.label.kinds import Kinds
from analysis.label.kinds import write as write_kinds
from analysis.label.record import LabelRecord
from analysis.splits import FitView, SelectView, TestView, check_disjoint
from analysis.written import N_DIGITS, median, rounded
from sae.files import publish, write_json

ROW_GROUP = 128  # records that are read together
MARGINS = (0.1, 0.2, 0.3, 0.4, 0.5)
STATUSES = ("labelled", "abstained", "rare", "silent")


def labels(
    fit: FitView, select: SelectView, test: TestView, cfg: LabelConfig, vocabulary: Vocabulary | None = None
) -> list[LabelRecord]:
    """One record a latent, in order. All labels are frozen before the test split is looked at.

    Args:
        vocabulary: what rules know of the tokens, see `vocabulary_of`; by default their texts alone.

    Raises:
        DataError: a document is in two of the splits.
    """
    check_disjoint(fit, select, test)
    vocabulary = vocabulary or vocabulary_of(fit, None)
    fitting, selecting = Indexed(fit, vocabulary), Indexed(select, vocabulary)
    choices = [choose(fitting, selecting, latent, cfg) for latent in range(fit.n_latents)]
    return grade(choices, fitting, select, Indexed(test, vocabulary), cfg)


def vocabulary_of(fit: FitView, embedding: np.ndarray | None) -> Vocabulary:
    """What rules know of the tokens, kinds if `embedding` has a row for each token id, `[vocabulary or more, d]`."""
    return Vocabulary.of(fit.strings, embedding, np.bincount(fit.tokens, minlength=len(fit.strings)))


def write(records: list[LabelRecord], out: Path, kinds: Kinds | None = None) -> dict[str, Any]:
    """Write `labels.parquet` and `labels.json`; returns the facts of the box.

    `labels.json` is a list of records with all fields of `LabelRecord`. `labels.parquet` has the
    same, one row a latent, with `scores`, `token`, `token_set` and `other` as structs, and `rule`
    as a JSON string. Numbers are rounded to 6 decimals; equal records give equal bytes. `kinds.parquet` has the kinds
    that rules speak of.
    """
    rows = [rounded(asdict(record)) for record in records]
    write_json(out / "labels.json", rows)
    flat = [row | {"rule": json.dumps(row["rule"], sort_keys=True) if row["rule"] else None} for row in rows]
    table = pa.Table.from_pylist(flat, schema=_schema())
    publish(out / "labels.parquet", lambda path: pq.write_table(table, path, row_group_size=ROW_GROUP))
    if kinds is not None:
        write_kinds(kinds, out / "kinds.parquet")
    return facts(records)


def facts(records: list[LabelRecord]) -> dict[str, Any]:
    """What the labels are worth as a whole, for the manifest.

    `labelled_fraction`, `abstained_fraction` and `beats_token_or_abstained_fraction` are shares of
    the live latents (all but silent); a rare one counts as abstained in the last, since it too is
    given no label. `beats_nulls_fraction` is the share of live latents with a label whose F1 is above that of every
    null, `beats_nulls_by_margin` of those where it is so much above, `surely_beats_nulls_fraction` of those where the
    lower end of its interval is above; `median_auprc_margin` is over live latents too: what is not labelled counts
    against the dictionary. `beats_token_fraction` and the other medians are over labelled latents.
    """
    status = Counter(record.status for record in records)
    labelled = [record for record in records if record.scores and record.token]
    n_live = len(records) - status["silent"]
    better = sum(bool(record.beats_token) for record in labelled)
    live = [record for record in records if record.status != "silent"]
    return {
        "n_by_status": {name: status[name] for name in STATUSES},
        "n_by_family": dict(sorted(Counter(record.family or "" for record in labelled).items())),
        "n_live": n_live,
        "labelled_fraction": _share(status["labelled"], n_live),
        "abstained_fraction": _share(status["abstained"], n_live),
        "beats_token_fraction": _share(better, len(labelled)),
        "beats_token_or_abstained_fraction": _share(better + status["abstained"] + status["rare"], n_live),
        "beats_nulls_fraction": _share(sum(record.beats_nulls for record in live), n_live),
        "beats_nulls_by_margin": {
            str(margin): _share(sum(record.f1_margin >= margin for record in live), n_live) for margin in MARGINS
        },
        "surely_beats_nulls_fraction": _share(sum(record.surely_beats_nulls for record in live), n_live),
        "median_auprc_margin": median([record.auprc_margin for record in live]),
        "median_f1": median([r.scores.f1 for r in labelled if r.scores]),
        "median_auprc": median([r.scores.auprc for r in labelled if r.scores]),
        "median_token_f1": median([r.token.f1 for r in labelled if r.token]),
        "median_token_auprc": median([r.token.auprc for r in labelled if r.token]),
        "median_token_set_f1": median([r.token_set.f1 for r in labelled if r.token_set]),
        "median_other_f1": median([r.other.f1 for r in labelled if r.other]),
        "median_shuffled_f1": median([r.shuffled_f1 for r in labelled]),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, N_DIGITS) if whole else 0.0


def _schema() -> pa.Schema:
    number, whole, text = pa.float64(), pa.int64(), pa.string()
    scores = pa.struct(
        [("n_predicted", whole), ("n_true", whole)]
        + [(name, number) for name in ("precision", "recall", "f1", "iou", "auprc", "pearson")]
    )
    return pa.schema(
        [("latent", whole), ("status", text), ("text", text), ("family", text), ("n_atoms", whole), ("rule", text)]
        + [(name, whole) for name in ("n_fit", "n_select", "n_test")]
        + [("select_f1", number), ("scores", scores), ("f1_low", number), ("f1_high", number)]
        + [("decile_recall", pa.list_(number)), ("shares", pa.list_(number)), ("beats_token", pa.bool_())]
        + [("token_text", text), ("token", scores), ("token_set", scores), ("other_latent", whole), ("other", scores)]
        + [("shuffled_f1", number), ("shuffled_auprc", number), ("token_r2", number)]
    )
