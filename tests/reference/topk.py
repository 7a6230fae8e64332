"""TopK with AuxK as dense formulas in float64, gradients by autograd: what the kernels must equal.

Written from Gao et al. 2024 (arXiv:2406.04093) and shares no code with the package.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def kept(pre_acts: Tensor, k: int) -> Tensor:
    """Which entries of each row are among its k largest (by full sort; assumes no ties at the edge)."""
    order = pre_acts.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(pre_acts, dtype=torch.bool)
    return mask.scatter(1, order[:, :k], True)


def latents(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor, k: int) -> Tensor:
    """`f = ReLU(TopK((x - b_pre) W_enc^T + b_enc))`, dense `[batch, n_latents]`."""
    pre_acts = (x - b_pre) @ W_enc.T + b_enc
    return torch.where(kept(pre_acts, k) & (pre_acts > 0), pre_acts, torch.zeros_like(pre_acts))


@dataclass(frozen=True)
class Loss:
    """Per-row mean of the squared error, and the normalised AuxK error (0 without dead latents)."""

    squared_error: Tensor
    auxk: Tensor


def loss(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int, dead: Tensor, k_aux: int
) -> Loss:
    """Both losses of a batch, with the pre-bias `b_dec`; `dead` is a mask of latents."""
    recon = latents(x, W_enc, b_enc, b_dec, k) @ W_dec + b_dec
    error = ((x - recon) ** 2).sum(1).mean()
    if not dead.any():
        return Loss(error, torch.zeros((), dtype=x.dtype))
    pre_acts = (x - b_dec) @ W_enc.T + b_enc
    of_dead = torch.where(dead, pre_acts, torch.full_like(pre_acts, -torch.inf))
    chosen = kept(of_dead, min(k_aux, int(dead.sum()))) & (of_dead > 0)
    z = torch.where(chosen, pre_acts, torch.zeros_like(pre_acts))
    residual = (x - recon).detach()
    variance = ((residual - residual.mean(0)) ** 2).sum(1).mean()
    return Loss(error, ((residual - z @ W_dec) ** 2).sum(1).mean() / variance)
