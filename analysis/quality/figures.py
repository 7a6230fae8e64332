"""Figures of a dictionary under the names that SAEBench gives them, each with its 95 % interval.

The categories and names are those of SAEBench's `core` evaluation (Karvonen et al. 2025, arXiv:2503.09532;
`sae_bench/evals/core/eval_output.py`); where a name of theirs would promise less than is known (ablation by the mean)
there are names of ours beside them. What each figure is, and where SAEBench computes another: docs/evaluation.md.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae.metrics import CHANGES, Reconstruction, splice_figures
from sae.sums import Sums, interval

OF_ROWS: dict[str, dict[str, str]] = {
    "reconstruction_quality": {
        **{name: name for name in ("explained_variance", "explained_variance_legacy", "mse", "fvu", "normalised_mse")},
        "cossim": "cosine",
    },
    "shrinkage": {
        **{name: name for name in ("l2_norm_in", "l2_norm_out", "l2_ratio")},
        "relative_reconstruction_bias": "relative_bias",
    },
    "sparsity": {"l0": "l0", "l1": "l1"},
}
"""Category → name there → name in `sae.metrics`."""
DENSE = {"1": 0.01, "10": 0.1}


@dataclass(frozen=True)
class Figure:
    """A number and the quantiles of it when documents are drawn anew; None: not a number, or not resampled."""

    value: float | None
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, value: Any, resampled: np.ndarray | None = None) -> "Figure":
        """What is infinite, or no number, becomes None: JSON has neither."""
        bounds = None if resampled is None else interval(resampled)
        known = float(value) if math.isfinite(value) else None
        return cls(known, bounds if bounds is not None and math.isfinite(bounds[0]) else None)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {"value": self.value, "interval": None if self.interval is None else list(self.interval)}


Figures = dict[str, dict[str, Figure]]
"""Category → name → figure."""


def of_rows(found: Reconstruction, draws: np.ndarray) -> Figures:
    """What a reconstruction of rows loses.

    Args:
        draws: `[n_resamples, n_groups]`, how often each group of rows is drawn.
    """
    points, resampled = found.ratios(), found.resampled(draws)
    return {
        category: {name: Figure.of(points[ours], resampled[ours]) for name, ours in names.items() if ours in points}
        for category, names in OF_ROWS.items()
    }


def of_network(sums: Sums, draws: np.ndarray) -> Figures:
    """What the network loses with the reconstruction in it; names without `mean` are of ablation by zero.

    Args:
        sums: of `train.evaluate.spliced`.
    """
    points, resampled = _network(sums.total()), _network(sums.resampled(draws))
    return {
        category: {name: Figure.of(value, resampled[category][name]) for name, value in names.items()}
        for category, names in points.items()
    }


def _network(sums: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = splice_figures(sums)
        kl = {name: sums[f"kl_{name}"] / sums["tokens"] for name in CHANGES}
        kl_score = 1 - kl["spliced"] / kl["zero_ablated"]
    ce = figures["ce"]
    return {
        "model_behavior_preservation": {
            "kl_div_score": kl_score,
            "kl_div_with_ablation": kl["zero_ablated"],
            "kl_div_with_sae": kl["spliced"],
            "kl_div_score_mean_ablation": figures["kl_recovered"],
            "kl_div_with_mean_ablation": kl["mean_ablated"],
        },
        "model_performance_preservation": {
            "ce_loss_score": figures["ce_recovered_zero"],
            "ce_loss_with_ablation": ce["zero_ablated"],
            "ce_loss_with_sae": ce["spliced"],
            "ce_loss_without_sae": ce["clean"],
            "ce_loss_score_mean_ablation": figures["ce_recovered"],
            "ce_loss_with_mean_ablation": ce["mean_ablated"],
            "ce_loss_added": ce["spliced"] - ce["clean"],
        },
    }


def of_densities(density: np.ndarray) -> dict[str, Figure]:
    """Shares of latents, by the share of rows `[n_latents]` on which each fires. They are no means over tokens, and a
    resample of documents would have more dead latents than its text: no intervals."""
    total = density.sum()
    shares = {"frac_alive": (density > 0).mean()}
    for name, least in DENSE.items():
        shares[f"freq_over_{name}_percent"] = (density > least).mean()
        shares[f"normalized_freq_over_{name}_percent"] = density[density > least].sum() / total if total else 0.0
    return {name: Figure.of(share) for name, share in shares.items()}


def plain(figures: Figures) -> dict[str, dict[str, dict[str, Any]]]:
    """As JSON: category → name → value and interval."""
    return {category: {name: figure.plain() for name, figure in names.items()} for category, names in figures.items()}


def values(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The numbers of `plain` alone."""
    return {category: {name: figure["value"] for name, figure in names.items()} for category, names in figures.items()}


def intervals(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """The intervals of `plain` alone, of what has one, in the same places."""
    found = {
        category: {name: figure["interval"] for name, figure in names.items() if figure["interval"] is not None}
        for category, names in figures.items()
    }
    return {category: names for category, names in found.items() if names}
