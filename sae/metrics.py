"""How well a dictionary reconstructs, and how much its latents are used.

Sums run over all rows in float64; ratios are taken last. A mean of per-batch ratios would depend on
how the rows were batched; these do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from sae.errors import DataError
from sae.latents import Latents
from sae.sums import Sums

N = TypeVar("N", float, np.ndarray)
"""A number, or one for each resample."""


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
    n_groups: int | None = None
    """Groups of rows (documents) that are to be resampled; none: they will not be."""
    moments: Moments = field(default_factory=Moments)
    sums: Sums = field(default_factory=Sums)
    """Of the rows' terms."""
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Rows in which each latent has fired."""
    origin: Tensor | None = None
    """A point amid the rows, about which those of a group are added up: against cancelling."""

    def __post_init__(self) -> None:
        self.sums = Sums(self.n_groups or 1)

    @torch.no_grad()
    def update(
        self,
        target: Float[Tensor, "batch d"],
        recon: Float[Tensor, "batch d"],
        latents: Latents,
        groups: Int[Tensor, " batch"] | None = None,
    ) -> None:
        """Compare some rows; `groups` is the number of each row's group, those of one group side by side."""
        if len(target) == 0:
            return
        self.moments.update(target)
        terms = _terms(target.double(), recon.double(), latents)
        if self.centre is not None:
            variance = (target.double() - self.centre.to(target.device, torch.float64)).square().sum(1)
            terms["has_variance"] = variance > 0
            terms["explained"] = _quotient(variance - terms["error"], variance)
        if self.n_groups is not None:
            self.origin = target.double().mean(0) if self.origin is None else self.origin
            terms["shift"] = target.double() - self.origin
            terms["spread"] = terms["shift"].square().sum(1)
        self.sums.add(terms, groups)
        counts = latents.firing_counts().cpu()
        self.counts = counts if len(self.counts) == 0 else self.counts + counts

    def result(self) -> dict[str, int | float]:
        """The figures above.

        Raises:
            DataError: there are no rows.
        """
        n, counts = self.moments.n_rows, self.counts
        return {
            "n_rows": n,
            **{name: value for name, value in self.ratios().items() if name not in SIZES},
            "dead_fraction": (counts == 0).double().mean().item(),
            "dense_fraction_1pct": (100 * counts > n).double().mean().item(),
            "dense_fraction_10pct": (10 * counts > n).double().mean().item(),
        }

    def ratios(self) -> dict[str, float]:
        """Those of the figures that are ratios of sums over rows, and the sizes of what is compared (`SIZES`).

        Raises:
            DataError: there are no rows.
        """
        if self.moments.n_rows == 0:
            raise DataError("reconstruction: 0 rows were compared: there must be at least one")
        sums = self.sums.total() | {"variance": np.array(self.moments.variance)}
        return {name: float(value) for name, value in _ratios(sums).items()}

    def resampled(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """The same of each resample of groups, `[n_resamples]`; the variance is about the mean of the resample.

        Args:
            draws: `[n_resamples, n_groups]`, how often each group is drawn.
        """
        sums = self.sums.resampled(draws)
        sums["variance"] = sums["spread"] - np.square(sums["shift"]).sum(1) / sums["rows"]
        return _ratios(sums)

    def density(self) -> Float[Tensor, " n_latents"]:
        """Share of the rows in which each latent has fired; NaN if there are no rows."""
        return self.counts.double() / self.moments.n_rows


SIZES = ("mse", "l1", "l2_norm_in", "l2_norm_out")
"""Means over rows, in the network's units: ||x - x_hat||^2, the sum of the latents' values, ||x||, ||x_hat||."""


def _ratios(sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Figures from sums over rows: numbers, or one for each resample."""
    n, fvu = sums["rows"], _ratio(sums["error"], sums["variance"])
    figures = {
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "normalised_mse": _ratio(sums["error"], sums["square"]),
        "cosine": sums["cosine"] / n,
        "l2_ratio": _ratio(sums["l2_ratio"], sums["is_nonzero"]),
        "relative_bias": _ratio(sums["recon_square"], sums["product"]),
        "l0": sums["fired"] / n,
        "mse": sums["error"] / n,
        "l1": sums["l1"] / n,
        "l2_norm_in": sums["norm"] / n,
        "l2_norm_out": sums["recon_norm"] / n,
    }
    if "has_variance" in sums:
        figures["explained_variance_legacy"] = _ratio(sums["explained"], sums["has_variance"])
    return figures


def _terms(x: Float[Tensor, "batch d"], x_hat: Float[Tensor, "batch d"], latents: Latents) -> dict[str, Tensor]:
    """What each row adds to the sums."""
    square, recon_square, product = x.square().sum(1), x_hat.square().sum(1), (x * x_hat).sum(1)
    values, entries = latents.values.detach(), latents.offsets.diff()
    return {
        "rows": torch.ones_like(square),
        "error": (x - x_hat).square().sum(1),
        "square": square,
        "recon_square": recon_square,
        "product": product,
        "cosine": _quotient(product, (square * recon_square).sqrt()),
        "l2_ratio": _quotient(recon_square, square).sqrt(),
        "is_nonzero": square > 0,
        "norm": square.sqrt(),
        "recon_norm": recon_square.sqrt(),
        "fired": torch.segment_reduce((values > 0).double(), "sum", lengths=entries),
        "l1": torch.segment_reduce(values.double(), "sum", lengths=entries),
    }


def _quotient(part: Float[Tensor, " batch"], whole: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """`part / whole`, 0 where the whole is 0."""
    return torch.where(whole == 0, 0.0, part / whole)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`; 0 / 0 is 0, and anything else to 0 infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((whole == 0) & (part == 0), 0.0, part / whole)


CHANGES = ("spliced", "mean_ablated", "zero_ablated")
"""What is put in the place of what a network writes."""


def ce_recovered(clean: N, spliced: N, ablated: N) -> N:
    """`(ablated - spliced) / (ablated - clean)`: 1 loses nothing, 0 is as bad as ablation.

    The three are means, or sums, over the same tokens.

    Raises:
        ZeroDivisionError: the ablation does no harm, so there is nothing to recover; not of arrays.
    """
    return (ablated - spliced) / (ablated - clean)


def kl_recovered(spliced: N, ablated: N) -> N:
    """`1 - spliced / ablated`, of KL divergences from the clean network: as `ce_recovered`."""
    return (ablated - spliced) / ablated


def splice_figures(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a spliced network from sums over its tokens (`train.evaluate.spliced`): numbers, or one for each
    resample.

    Ablation by the mean is the strict one and gives `ce_recovered`; ablation by zero is reported beside it.

    Raises:
        ZeroDivisionError: the ablation does no harm; not of arrays.
    """
    n = sums["tokens"]
    ce = {name: sums[name] / n for name in ("clean", *CHANGES)}
    kl = {name: sums[f"kl_{name}"] / n for name in CHANGES}
    return {
        "ce": ce,
        "kl": kl["spliced"],
        "kl_mean_ablated": kl["mean_ablated"],
        "kl_recovered": kl_recovered(sums["kl_spliced"], sums["kl_mean_ablated"]),
        "ce_recovered": ce_recovered(ce["clean"], ce["spliced"], ce["mean_ablated"]),
        "ce_recovered_zero": ce_recovered(ce["clean"], ce["spliced"], ce["zero_ablated"]),
        "tokens": n,
    }


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
