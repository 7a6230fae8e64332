"""What a run's index and labels know of each latent, none of it from the test split."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from analysis.label.columns import Vocabulary
from analysis.label.kinds import read as read_kinds
from analysis.label.protocol import Label
from analysis.splits import FitView


@dataclass(frozen=True, eq=False)
class Known:
    """Of all latents of a run."""

    vocabulary: Vocabulary
    """What rules know of the tokens."""
    statuses: Sequence[str]
    """Of the rules."""
    sentences: Sequence[str | None]
    rules: Mapping[int, Label]
    """Of those that have one."""
    others: Sequence[int | None]
    """Another latent, which fires about as often, and whose rule is a null."""
    neighbours: Sequence[Sequence[int]]
    """Latents of nearly the same direction, the nearest first."""
    promoted: Sequence[Sequence[str]]
    """Tokens that its direction makes more likely, the likeliest first."""

    @property
    def n_latents(self) -> int:
        return len(self.statuses)

    @classmethod
    def of(cls, index: Path, labels: Path, fit: FitView) -> "Known":
        """From the folders of the two boxes, and the split that the rules were fitted on."""
        vocabulary, kinds = Vocabulary.of(fit.strings), labels / "kinds.parquet"
        if kinds.exists():
            counts = np.bincount(fit.tokens, minlength=len(fit.strings))
            vocabulary = replace(vocabulary, kinds=read_kinds(kinds, counts))
        columns = ["status", "text", "rule", "other_latent"]
        rows = pq.read_table(labels / "labels.parquet", columns=columns).to_pydict()
        latents = pq.read_table(index / "latents.parquet", columns=["neighbours", "promoted_tokens"]).to_pydict()
        promoted: list[list[int]] = latents["promoted_tokens"]
        rules = {latent: json.loads(rule) for latent, rule in enumerate(rows["rule"]) if rule is not None}
        return cls(
            vocabulary=vocabulary,
            statuses=rows["status"],
            sentences=rows["text"],
            rules={latent: Label.of_json(rule) for latent, rule in rules.items()},
            others=rows["other_latent"],
            neighbours=latents["neighbours"],
            promoted=[[fit.strings[token] for token in tokens] for tokens in promoted],
        )
