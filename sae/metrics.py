"""How well a dictionary reconstructs. Sums run over all rows in float64; ratios are taken last.

A mean of per-batch ratios would depend on how the rows were batched; these do not.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sae.latents import Latents


@dataclass
class Moments:
    """Sums of rows: enough for their total variance."""

    n_rows: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    square: float = 0.0

    def update(self, x: Float[Tensor, "batch d"]) -> None:
        rows = x.double()
        self.total = rows.sum(0) if self.n_rows == 0 else self.total + rows.sum(0)
        self.square += rows.square().sum().item()
        self.n_rows += len(rows)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        return self.total / self.n_rows

    @property
    def variance(self) -> float:
        """`sum over rows of ||x - mean||^2`, with the mean of all rows."""
        return self.square - self.total.square().sum().item() / self.n_rows


@dataclass
class Reconstruction:
    """Streaming comparison of rows with their reconstructions.

    | figure          | definition                                                      |
    |-----------------|-----------------------------------------------------------------|
    | `fvu`           | sum ||x - x_hat||^2 / sum ||x - mean||^2, mean over all rows     |
    | `l0`            | mean number of latents with value > 0                           |
    | `cosine`        | mean cos(x, x_hat)                                              |
    | `l2_ratio`      | mean ||x_hat|| / ||x||                                          |
    | `dead_fraction` | share of latents with no value > 0 on any row                   |
    """

    moments: Moments = field(default_factory=Moments)
    error: float = 0.0
    cosines: float = 0.0
    ratios: float = 0.0
    fired: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def update(self, x: Float[Tensor, "batch d"], recon: Float[Tensor, "batch d"], latents: Latents) -> None:
        self.moments.update(x)
        self.error += (x - recon).double().square().sum().item()
        norm, recon_norm = x.double().norm(dim=1), recon.double().norm(dim=1)
        tiny = torch.finfo(torch.float64).tiny
        self.cosines += ((x.double() * recon.double()).sum(1) / (norm * recon_norm).clamp_min(tiny)).sum().item()
        self.ratios += (recon_norm / norm.clamp_min(tiny)).sum().item()
        counts = latents.firing_counts().cpu()
        self.fired += int(counts.sum())
        self.counts = counts if len(self.counts) == 0 else self.counts + counts

    def result(self) -> dict[str, float]:
        n = self.moments.n_rows
        return {
            "fvu": self.error / self.moments.variance,
            "l0": self.fired / n,
            "cosine": self.cosines / n,
            "l2_ratio": self.ratios / n,
            "dead_fraction": (self.counts == 0).double().mean().item(),
        }


def ce_recovered(clean: float, spliced: float, ablated: float) -> float:
    """`(ablated - spliced) / (ablated - clean)`: 1 loses nothing, 0 is as bad as ablation."""
    return (ablated - spliced) / (ablated - clean)
