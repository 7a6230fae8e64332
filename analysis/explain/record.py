"""One row for each latent that was put to a language model: `llm_labels.parquet`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.written import N_DIGITS, rounded
from sae.files import publish

Source = Literal["model", "rule"]
Status = Literal["labelled", "abstained", "failed", "rare", "silent"]
STATUSES: tuple[Status, ...] = ("labelled", "abstained", "failed", "rare", "silent")


@dataclass(frozen=True)
class Candidate:
    """A label that was judged on the select split."""

    text: str
    source: Source
    """Who proposed it."""
    score: float | None
    """Balanced accuracy of detection, mean over the kinds of silent windows; none where no question was answered."""


@dataclass(frozen=True)
class Choice:
    """The frozen outcome for one latent, before anything is scored."""

    status: Status
    """`labelled`; `abstained`: the model saw no pattern, or nothing was good enough; `failed`: no answer could be read;
    `rare` and `silent` as for rules, and nothing was asked."""
    label: Candidate | None
    """None unless `status` is `labelled`."""
    candidates: tuple[Candidate, ...]
    """All, in the order in which they were proposed; the rule's sentence first."""
    n_unread: int
    """Proposals that could not be read."""


@dataclass(frozen=True)
class IntruderScore:
    """Tests of the intruder against one kind of silent windows; by chance one in five is right."""

    negatives: str
    n: int
    n_right: int
    n_failed: int


@dataclass(frozen=True)
class LlmRecord:
    """What a language model made of one latent."""

    latent: int
    choice: Choice
    rule: str | None
    """The rule's sentence."""
    other_latent: int | None
    """Whose label stood for its null."""
    intruders: tuple[IntruderScore, ...]
    """On the test split; no label is shown in these."""


def write(records: Sequence[LlmRecord], path: Path) -> None:
    """Publish the table; numbers have six decimals."""
    table = pa.Table.from_pylist([_row(record) for record in records], schema=SCHEMA)
    publish(path, lambda temporary: pq.write_table(table, temporary))


def _row(record: LlmRecord) -> dict[str, Any]:
    choice, label = record.choice, record.choice.label
    return {
        "latent": record.latent,
        "status": choice.status,
        "text": label.text if label else None,
        "source": label.source if label else None,
        "select_score": rounded(label.score) if label else None,
        "rule": record.rule,
        "candidates": [rounded(asdict(one)) for one in choice.candidates],
        "n_unread": choice.n_unread,
        "other_latent": record.other_latent,
        "intruders": [asdict(one) for one in record.intruders],
    }


_WHOLE, _NUMBER, _TEXT = pa.int64(), pa.float64(), pa.string()
_CANDIDATE = pa.struct([("text", _TEXT), ("source", _TEXT), ("score", _NUMBER)])
_INTRUDER = pa.struct([("negatives", _TEXT), ("n", _WHOLE), ("n_right", _WHOLE), ("n_failed", _WHOLE)])
SCHEMA = pa.schema(
    [
        ("latent", _WHOLE),
        ("status", _TEXT),
        ("text", _TEXT),
        ("source", _TEXT),
        ("select_score", _NUMBER),
        ("rule", _TEXT),
        ("candidates", pa.list_(_CANDIDATE)),
        ("n_unread", _WHOLE),
        ("other_latent", _WHOLE),
        ("intruders", pa.list_(_INTRUDER)),
    ]
)


def facts(records: Sequence[LlmRecord]) -> dict[str, Any]:
    """Latents by status, labels by who proposed them, and the share of intruders that were found, by kind."""
    status = Counter(record.choice.status for record in records)
    source = Counter(record.choice.label.source for record in records if record.choice.label)
    tests: dict[str, list[IntruderScore]] = {}
    for record in records:
        for one in record.intruders:
            tests.setdefault(one.negatives, []).append(one)
    return {
        "n_by_status": {name: status[name] for name in STATUSES},
        "n_by_source": dict(sorted(source.items())),
        "n_unread": sum(record.choice.n_unread for record in records),
        "intruders_found": {
            kind: round(sum(one.n_right for one in own) / max(1, sum(one.n - one.n_failed for one in own)), N_DIGITS)
            for kind, own in tests.items()
        },
    }
