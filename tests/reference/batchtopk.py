"""BatchTopK with AuxK, from Bussmann, Leask & Nanda 2024 (arXiv:2412.06410)."""

import numpy as np
import torch
from torch import Tensor

from tests.reference.linear import Weights, active, auxk, pre_acts, recon, row_error, strengths


def kept(scores: Tensor, k: int) -> Tensor:
    """Which are among the `k * batch` largest of the whole batch, by a full sort; of equal ones the first."""
    order = np.argsort(-scores.detach().numpy().flatten(), kind="stable")
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[torch.from_numpy(order[: k * len(scores)])] = True
    return mask.view_as(scores)


def latents(x: Tensor, w: Weights, k: int) -> Tensor:
    pre = pre_acts(x, w)
    return active(pre, kept(strengths(pre, w), k))


def loss(x: Tensor, target: Tensor, w: Weights, k: int, dead: Tensor, k_aux: int) -> dict[str, Tensor]:
    """The error and AuxK's, neither weighted nor divided by a variance of inputs."""
    out = recon(x, latents(x, w, k), w)
    return {"mse": row_error(out, target).mean(), "auxk": auxk(x, target - out, w, dead, k_aux)}


def threshold(smallest: list[float], steps: int) -> float:
    """Mean of the smallest positive latents of past batches, each `1 - 1 / steps` of the weight of the next."""
    weights = [(1 - 1 / steps) ** age for age in reversed(range(len(smallest)))]
    return sum(weight * value for weight, value in zip(weights, smallest, strict=True)) / sum(weights)
