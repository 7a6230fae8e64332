"""ReLU with Lp^p, from Karvonen et al. 2024 (arXiv:2408.00113), §3.2; a line to 0 below 1e-4."""

import torch
from torch import Tensor

from tests.reference.linear import Weights, recon, row_error
from tests.reference.relu import latents


def loss(x: Tensor, target: Tensor, w: Weights, p: float) -> dict[str, Tensor]:
    f = latents(x, w)
    is_small = f < 1e-4
    power = torch.where(is_small, torch.ones_like(f), f) ** p
    penalty = torch.where(is_small, 1e-4 ** (p - 1) * f, power).sum(1).mean()
    return {"mse": row_error(recon(x, f, w), target).mean(), "lp": penalty}
