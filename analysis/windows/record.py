"""One row for each latent, task and kind of silent windows: `windows.parquet`."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.windows.items import Task
from analysis.windows.score import WindowScores
from analysis.written import median, rounded
from sae.files import publish

ROW_GROUP = 896  # those of 128 latents


@dataclass(frozen=True)
class WindowRecord:
    """What one latent's label is worth on windows of the test split."""

    latent: int
    task: Task
    negatives: str
    """The kind of silent windows."""
    n_fires: int
    """Windows that were asked about at which the latent fires."""
    n_silent: int
    """Those at which it is silent."""
    scores: WindowScores | None
    """Of its label; none where it has none."""
    token: float | None = None
    """Balanced accuracy, on the same windows, of the single token that is best on the fit split."""
    other: float | None = None
    """That of the label of another latent that fires about as often."""
    rule: float | None = None
    """Beside a language model's label: that of the rule, none where the latent has none."""

    @property
    def margin(self) -> float | None:
        """How far its balanced accuracy is above the best of the token, the other latent's label, and chance."""
        if self.scores is None or self.scores.balanced_accuracy is None:
            return None
        nulls = [score for score in (self.token, self.other) if score is not None]
        return self.scores.balanced_accuracy - max([0.5, *nulls])


def write(records: Sequence[WindowRecord], path: Path) -> None:
    """Publish the table; numbers have six decimals."""
    table = pa.Table.from_pylist([_row(record) for record in records], schema=SCHEMA)
    publish(path, lambda temporary: pq.write_table(table, temporary, row_group_size=ROW_GROUP))


def _row(record: WindowRecord) -> dict[str, Any]:
    scores = asdict(record.scores) if record.scores else {}
    row = {**scores, "latent": record.latent, "task": record.task, "negatives": record.negatives}
    row |= {name: getattr(record, name) for name in ("n_fires", "n_silent", "token", "other", "rule", "margin")}
    return rounded(row)


SCHEMA = pa.schema(
    [("latent", pa.int64()), ("task", pa.string()), ("negatives", pa.string())]
    + [(name, pa.int64()) for name in ("n_fires", "n_silent", "n_true_yes", "n_true_no", "n_failed")]
    + [(name, pa.float64()) for name in ("balanced_accuracy", "accuracy", "f1", "low", "high")]
    + [(name, pa.float64()) for name in ("token", "other", "rule", "margin")]
)


def facts(records: Sequence[WindowRecord], per_kind: int) -> dict[str, Any]:
    """By task and kind of silent windows: of how many latents the label has a score, medians of it, of its rivals and
    of its margin, how many questions had no answer, and how many latents that fire have fewer windows than were asked
    for."""
    groups: dict[tuple[str, str], list[WindowRecord]] = defaultdict(list)
    for record in records:
        if record.n_fires:
            groups[record.task, record.negatives].append(record)
    found: dict[str, Any] = {}
    for (task, kind), own in groups.items():
        scored = [record for record in own if record.margin is not None]
        rivals = {name: median([getattr(record, name) for record in scored]) for name in ("token", "other", "rule")}
        found.setdefault(task, {})[kind] = {
            "n_scored": len(scored),
            "n_short_of_windows": sum(min(record.n_fires, record.n_silent) < per_kind for record in own),
            "n_failed": sum(record.scores.n_failed for record in own if record.scores),
            "median_balanced_accuracy": median([r.scores.balanced_accuracy for r in scored if r.scores]),
            "median_margin": median([record.margin for record in scored]),
            **{f"median_{name}": score for name, score in rivals.items() if score is not None},
        }
    return found
