"""Gated SAE, from Rajamanoharan et al. 2024 (arXiv:2404.16014), eqs 6-8 and §E (its JumpReLU form)."""

from dataclasses import replace

import torch
from torch import Tensor

from tests.reference.linear import Weights, pre_acts, recon, row_error


def magnitudes(x: Tensor, w: Weights, r_mag: Tensor, b_mag: Tensor) -> Tensor:
    """`W_mag (x - b_pre) + b_mag`, `W_mag = diag(exp(r_mag)) W_gate`."""
    return pre_acts(x, replace(w, W_enc=torch.exp(r_mag)[:, None] * w.W_enc, b_enc=b_mag))


def latents(x: Tensor, w: Weights, r_mag: Tensor, b_mag: Tensor) -> Tensor:
    return (pre_acts(x, w) > 0) * torch.relu(magnitudes(x, w, r_mag, b_mag))


def latents_as_jumprelu(x: Tensor, w: Weights, r_mag: Tensor, b_mag: Tensor) -> Tensor:
    """The same with one encoder, W_mag, and thresholds `b_mag - exp(r_mag) b_gate`."""
    z, threshold = magnitudes(x, w, r_mag, b_mag), b_mag - torch.exp(r_mag) * w.b_enc
    return torch.relu(z) * (z > threshold)


def loss(x: Tensor, target: Tensor, w: Weights, r_mag: Tensor, b_mag: Tensor) -> dict[str, Tensor]:
    """The error, the L1 of the gates (norms are constants, 1 in the paper), and the error of the frozen decoder."""
    gates = torch.relu(pre_acts(x, w))
    skip = None if w.W_skip is None else w.W_skip.detach()
    frozen = replace(w, W_dec=w.W_dec.detach(), b_dec=w.b_dec.detach(), W_skip=skip)
    norms = frozen.W_dec.norm(dim=1)
    return {
        "mse": row_error(recon(x, latents(x, w, r_mag, b_mag), w), target).mean(),
        "l1": (gates * norms).sum(1).mean(),
        "aux": row_error(recon(x, gates, frozen), target).mean(),
    }
