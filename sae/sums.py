"""Sums of what each row adds to a figure, over all rows and by group.

A figure of a dictionary is a ratio of such sums, so a resample of groups (documents) has its figure from the sums of
the groups that were drawn: one pass over the rows is enough for as many resamples as one likes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor


@dataclass
class Sums:
    """Streaming sums, in float64, of terms that have a number, or a vector, a row."""

    n_groups: int = 1
    by_group: dict[str, Tensor] = field(default_factory=dict)
    """Term → `[n_groups]` or `[n_groups, d]`."""

    @torch.no_grad()
    def add(self, terms: Mapping[str, Shaped[Tensor, "rows ..."]], groups: Int[Tensor, " rows"] | None = None) -> None:
        """Add up some rows.

        Args:
            groups: the group of each row, those of one group side by side (else it takes longer); none: all are of
                the first.
        """
        if groups is not None and len(groups) == 0:
            return
        if groups is None:
            found, sizes = torch.zeros(1, dtype=torch.long), None
        else:
            found, sizes = groups.unique_consecutive(return_counts=True)
        for name, term in terms.items():
            values = term.double()
            if sizes is None:
                parts = values.sum(0, keepdim=True)
            else:
                parts = torch.segment_reduce(values, "sum", lengths=sizes.to(values.device))
            if name not in self.by_group:
                self.by_group[name] = torch.zeros(self.n_groups, *values.shape[1:], dtype=torch.float64)
            self.by_group[name].index_add_(0, found.cpu(), parts.cpu())

    def total(self) -> dict[str, np.ndarray]:
        """Over all groups: `[]` or `[d]` by term."""
        return {name: sums.sum(0).numpy() for name, sums in self.by_group.items()}

    def resampled(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Over each resample: `[n_resamples]` or `[n_resamples, d]` by term.

        Args:
            draws: `[n_resamples, n_groups]`, how often each group is drawn.
        """
        return {name: draws @ sums.numpy() for name, sums in self.by_group.items()}


def interval(of_resamples: np.ndarray) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of a figure over the resamples in which it is a number; NaN if it is in none."""
    known = of_resamples[np.isfinite(of_resamples)]
    if len(known) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
