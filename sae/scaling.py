"""From the network's units to those a dictionary is trained in, and back.

| name         | a row x becomes                                              | source               |
|--------------|--------------------------------------------------------------|----------------------|
| `mean_norm`  | s x with E ||s x|| = sqrt(d)                                 | Conerly et al. 2024  |
| `rms`        | s x with E ||s x||^2 = 1                                     | Lieberum et al. 2024 |
| `none`       | x                                                            |                      |
| `whiten`     | (x - mean) C^(-1/2), C the covariance; folded away on saving |                      |
| `layer_norm` | (x - mean_d x) / (std_d x + 1e-5), for each row [1]          | Gao et al. 2024, §A  |
| `row_norm`   | x sqrt(d) / ||x||, for each row                              |                      |

The scalars s are one for each site, so that no site of a crosscoder drowns the others.

[1] Back it is `x std_d + mean_d`, without the 1e-5, as OpenAI's code and SAELens have it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.architectures.configs import Normalise

EPS = 1e-5


@dataclass(frozen=True)
class SiteStats:
    """Moments of one site's rows."""

    d: int
    mean_norm: float
    """`E ||x||`."""
    mean_square: float
    """`E ||x||^2`."""

    def scale(self, normalise: Normalise) -> float:
        """The scalar of this site; 1 for what is normalised in another way."""
        if normalise == "mean_norm":
            return self.d**0.5 / self.mean_norm
        return self.mean_square**-0.5 if normalise == "rms" else 1.0


@dataclass(frozen=True)
class RowScale:
    """What a row is normalised by: `scaled = (x - shift) / (size + eps)`, and back `scaled * size + shift`."""

    size: Float[Tensor, "batch 1"]
    shift: Float[Tensor, "batch 1"]
    eps: float = 0.0


class Scaling(nn.Module):
    """The way between a dictionary's units and the network's, for one or more sites side by side."""

    def __init__(self, normalise: Normalise, widths: Sequence[int]) -> None:
        super().__init__()
        self.normalise: Normalise = normalise
        self.widths = tuple(widths)
        self.register_buffer("scale", torch.ones(len(widths)))
        self.scale: Tensor
        is_kept = normalise == "whiten"
        d = sum(widths) if is_kept else 0
        self.register_buffer("mean", torch.zeros(d), persistent=is_kept)
        self.register_buffer("matrix", torch.eye(d), persistent=is_kept)
        self.register_buffer("inverse", torch.eye(d), persistent=is_kept)
        self.mean: Tensor
        self.matrix: Tensor
        self.inverse: Tensor

    @torch.no_grad()
    def fit(self, sites: Sequence[SiteStats], rows: Float[Tensor, "n d"]) -> None:
        """Set the scalars from the sites' moments, a whitening from `rows`."""
        self.scale.copy_(torch.tensor([site.scale(self.normalise) for site in sites]))
        if self.normalise == "whiten":
            rows64 = rows.double()
            self.mean.copy_(rows64.mean(0))
            values, vectors = torch.linalg.eigh(rows64.T.cov())
            values = values.clamp_min(values[-1] * 1e-6)  # none is stretched over 1,000 times as much as the widest
            self.matrix.copy_(vectors * values.rsqrt() @ vectors.T)
            self.inverse.copy_(vectors * values.sqrt() @ vectors.T)

    def columns(self) -> Float[Tensor, " d"]:
        """The scalar of every column."""
        return torch.cat([scale.expand(width) for scale, width in zip(self.scale, self.widths, strict=True)])

    def rows(self, x: Float[Tensor, "batch d"]) -> RowScale | None:
        """What each row is normalised by, where rows are normalised one by one."""
        if self.normalise == "layer_norm":
            return RowScale(x.std(dim=1, keepdim=True), x.mean(dim=1, keepdim=True), EPS)
        if self.normalise == "row_norm":
            norm = x.norm(dim=1, keepdim=True)
            return RowScale((norm / x.shape[1] ** 0.5).clamp_min(torch.finfo(x.dtype).tiny), torch.zeros_like(norm))
        return None

    def enter(self, x: Float[Tensor, "batch d"], rows: RowScale | None = None) -> Float[Tensor, "batch d"]:
        """Network units → dictionary units."""
        if rows is not None:
            return (x - rows.shift) / (rows.size + rows.eps)
        if self.normalise == "whiten":
            with torch.autocast(x.device.type, enabled=False):  # what is reconstructed stays float32
                return (x - self.mean) @ self.matrix
        return x * self.columns()

    def leave(self, x: Float[Tensor, "batch d"], rows: RowScale | None = None) -> Float[Tensor, "batch d"]:
        """Dictionary units → network units."""
        if rows is not None:
            return x * rows.size + rows.shift
        if self.normalise == "whiten":
            return x @ self.inverse + self.mean
        return x / self.columns()
