"""How well a dictionary reconstructs, and how much its latents are used.

Sums run over all rows in float64; ratios are taken last. A mean of per-batch ratios would depend on
how the rows were batched; these do not.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from sae.errors import DataError
from sae.latents import Latents


@dataclass
class Moments:
    """Mean and total variance of rows, merged batch by batch (Chan, Golub & LeVeque 1979).

    `sum ||x||^2 - ||sum x||^2 / n` would lose every digit of rows that lie far from 0 beside their
    spread. The variance of equal rows is exactly 0; so is that of no rows, whose mean is empty.
    """

    n_rows: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    variance: float = 0.0
    """`sum over rows of ||x - mean||^2`, with the mean of all rows."""

    @torch.no_grad()
    def update(self, x: Float[Tensor, "batch d"]) -> None:
        if len(x) == 0:
            return
        rows, n = x.double(), self.n_rows + len(x)
        mean = rows[0] + (rows - rows[0]).mean(0)  # exact if all rows are equal
        self.variance += (rows - mean).square().sum().item()
        if self.n_rows == 0:
            self.mean = mean
        else:
            shift = mean - self.mean
            self.variance += shift.square().sum().item() * self.n_rows * len(x) / n
            self.mean = self.mean + shift * len(x) / n
        self.n_rows = n


@dataclass
class Reconstruction:
    """Streaming comparison of target rows x (a transcoder's outputs) with their reconstructions x_hat.

    | figure                      | definition                                                           |
    |-----------------------------|----------------------------------------------------------------------|
    | `n_rows`                    | rows compared; a dead latent is one that is silent on all of them    |
    | `fvu`                       | sum ||x - x_hat||^2 / sum ||x - mean||^2, the mean of all rows       |
    | `explained_variance`        | 1 - fvu                                                              |
    | `explained_variance_legacy` | mean of 1 - ||x - x_hat||^2 / ||x - centre||^2 over rows x != centre |
    | `normalised_mse`            | sum ||x - x_hat||^2 / sum ||x||^2                                    |
    | `cosine`                    | mean of cos(x, x_hat), which is 0 if x or x_hat is 0                 |
    | `l2_ratio`                  | mean of ||x_hat|| / ||x|| over rows x != 0                           |
    | `relative_bias`             | sum ||x_hat||^2 / sum x . x_hat: gamma, < 1 where x_hat is shrunk    |
    | `l0`                        | mean number of latents with value > 0                                |
    | `dead_fraction`             | share of latents with value > 0 on no row                            |
    | `dense_fraction_1pct`       | share of latents with value > 0 on more than 1 % of rows             |
    | `dense_fraction_10pct`      | the same, more than 10 %                                             |

    A ratio of 0 to 0 is 0 (rows without variance that are met exactly have `fvu` 0); of anything
    else to 0, infinite. `relative_bias`: Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 10.
    """

    centre: Float[Tensor, " d"] | None = None
    """Mean of the rows, known beforehand, for `explained_variance_legacy`, of which published figures
    are: a mean of ratios cannot await it. SAELens takes the mean of each batch. None: no such figure."""
    moments: Moments = field(default_factory=Moments)
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of the rows' terms, by name."""
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Rows in which each latent has fired."""

    @torch.no_grad()
    def update(self, target: Float[Tensor, "batch d"], recon: Float[Tensor, "batch d"], latents: Latents) -> None:
        self.moments.update(target)
        terms = _terms(target.double(), recon.double())
        if self.centre is not None:
            variance = (target.double() - self.centre.to(target.device, torch.float64)).square().sum(1)
            terms["has_variance"] = variance > 0
            terms["explained"] = _quotient(variance - terms["error"], variance)
        for name, values in terms.items():
            self.sums[name] += values.sum().item()
        counts = latents.firing_counts().cpu()
        self.counts = counts if len(self.counts) == 0 else self.counts + counts

    def result(self) -> dict[str, int | float]:
        """The figures above.

        Raises:
            DataError: there are no rows.
        """
        n, sums, counts = self.moments.n_rows, self.sums, self.counts
        if n == 0:
            raise DataError("reconstruction: 0 rows were compared: there must be at least one")
        fvu = _ratio(sums["error"], self.moments.variance)
        figures = {
            "n_rows": n,
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "normalised_mse": _ratio(sums["error"], sums["square"]),
            "cosine": sums["cosine"] / n,
            "l2_ratio": _ratio(sums["l2_ratio"], sums["is_nonzero"]),
            "relative_bias": _ratio(sums["recon_square"], sums["product"]),
            "l0": counts.sum().item() / n,
            "dead_fraction": (counts == 0).double().mean().item(),
            "dense_fraction_1pct": (100 * counts > n).double().mean().item(),
            "dense_fraction_10pct": (10 * counts > n).double().mean().item(),
        }
        if self.centre is not None:
            figures["explained_variance_legacy"] = _ratio(sums["explained"], sums["has_variance"])
        return figures

    def density(self) -> Float[Tensor, " n_latents"]:
        """Share of the rows in which each latent has fired; NaN if there are no rows."""
        return self.counts.double() / self.moments.n_rows


def _terms(x: Float[Tensor, "batch d"], x_hat: Float[Tensor, "batch d"]) -> dict[str, Tensor]:
    """What each row adds to the sums."""
    square, recon_square, product = x.square().sum(1), x_hat.square().sum(1), (x * x_hat).sum(1)
    return {
        "error": (x - x_hat).square().sum(1),
        "square": square,
        "recon_square": recon_square,
        "product": product,
        "cosine": _quotient(product, (square * recon_square).sqrt()),
        "l2_ratio": _quotient(recon_square, square).sqrt(),
        "is_nonzero": square > 0,
    }


def _quotient(part: Float[Tensor, " batch"], whole: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """`part / whole`, 0 where the whole is 0."""
    return torch.where(whole == 0, 0.0, part / whole)


def _ratio(part: float, whole: float) -> float:
    """`part / whole`; 0 / 0 is 0, and anything else to 0 infinite."""
    if whole == 0:
        return 0.0 if part == 0 else part * float("inf")
    return part / whole


def ce_recovered(clean: float, spliced: float, ablated: float) -> float:
    """`(ablated - spliced) / (ablated - clean)`: 1 loses nothing, 0 is as bad as ablation.

    The three are means, or sums, over the same tokens.

    Raises:
        ZeroDivisionError: the ablation does no harm, so there is nothing to recover.
    """
    return (ablated - spliced) / (ablated - clean)


def kl_recovered(spliced: float, ablated: float) -> float:
    """`1 - spliced / ablated`, of KL divergences from the clean network: as `ce_recovered`."""
    return ce_recovered(0.0, spliced, ablated)


def kl_divergence(
    clean: Float[Tensor, "*batch vocab"], changed: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """`sum over v of p_clean (log p_clean - log p_changed)` of each token, in nats, from log-probabilities.

    A token of probability 0 adds nothing, whatever the other network thinks of it; the log of a
    softmax would give NaN there.
    """
    p = clean.exp()
    return torch.where(p == 0, 0.0, p * (clean - changed)).sum(-1, dtype=torch.float64)


class DensityHistogram(NamedTuple):
    """Latents by density. Those that never fired have a bin of their own: they have no logarithm."""

    n_silent: int
    log10_edges: list[float]
    """From a decade at or below one row in `n_rows`, up to 0."""
    n_latents: list[int]
    """In each bin between two edges, of which the lower belongs to it; the last has both."""


def density_histogram(counts: Int[Tensor, " n_latents"], n_rows: int, bins_per_decade: int = 4) -> DensityHistogram:
    """Histogram of log10 of the share of `n_rows` rows in which each latent fires.

    Raises:
        DataError: there are no rows.
    """
    if n_rows == 0:
        raise DataError("density: 0 rows were counted: there must be at least one")
    n_decades = len(str(n_rows - 1))  # log10 of n_rows, rounded up; one at least
    edges = torch.linspace(-n_decades, 0, n_decades * bins_per_decade + 1, dtype=torch.float64)
    log_density = (counts[counts > 0].double().cpu() / n_rows).log10()
    bins = torch.bucketize(log_density, edges, right=True) - 1
    n_bins = len(edges) - 1
    found = torch.bincount(bins.clamp(max=n_bins - 1), minlength=n_bins)
    return DensityHistogram(int((counts == 0).sum()), edges.tolist(), found.tolist())


@torch.no_grad()
def nearest_cosines(rows: Float[Tensor, "n d"], block: int = 1024) -> Float[Tensor, " n"]:
    """For each row the greatest cosine with any other: of decoder rows, how far latents repeat each other.

    A row of zeros has cosine 0 with every other; a row without others, -1.

    Args:
        block: rows at a time: `block * n` cosines are held at once.
    """
    unit = normalize(rows.float(), dim=1)
    nearest = []
    for start in range(0, len(unit), block):
        cosines = unit[start : start + block] @ unit.T
        cosines.diagonal(offset=start).fill_(-1.0)
        nearest.append(cosines.amax(1))
    return torch.cat(nearest)


def encoder_cosines(
    W_enc: Float[Tensor, "n_latents d"], W_dec: Float[Tensor, "n_latents d"]
) -> Float[Tensor, " n_latents"]:
    """Cosine of the direction that each latent reads with that which it writes; 0 if one is zero."""
    return cosine_similarity(W_enc.detach().float(), W_dec.detach().float(), dim=1)
