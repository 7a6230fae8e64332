"""Crosscoders site by site, from Lindsey et al. 2024 and, with BatchTopK, Minder et al. 2025 (arXiv:2504.02922).

`x`, the encoder, the decoder and the output bias are lists with one entry for each site.
"""

import torch
from torch import Tensor

from tests.reference.batchtopk import kept

Sites = list[Tensor]


def pre_acts(x: Sites, W_enc: Sites, b_enc: Tensor) -> Tensor:
    return sum((a @ W.T for a, W in zip(x, W_enc, strict=True)), b_enc)


def sizes(W_dec: Sites, norm: str) -> Tensor:
    """Of each latent: the sum over sites of its norms there, or the norm of all that it writes."""
    return torch.cat(W_dec, dim=1).norm(dim=1) if norm == "concatenated" else sum(W.norm(dim=1) for W in W_dec)


def error(f: Tensor, x: Sites, W_dec: Sites, b_dec: Sites) -> Tensor:
    """`sum over sites of ||x_l - x_hat_l||^2`, its mean over rows."""
    return sum(((f @ W + b - a) ** 2).sum(1).mean() for a, W, b in zip(x, W_dec, b_dec, strict=True))


def loss(x: Sites, W_enc: Sites, b_enc: Tensor, W_dec: Sites, b_dec: Sites, norm: str) -> dict[str, Tensor]:
    f = torch.relu(pre_acts(x, W_enc, b_enc))
    return {"mse": error(f, x, W_dec, b_dec), "l1": (f * sizes(W_dec, norm)).sum(1).mean()}


def batchtopk_latents(x: Sites, W_enc: Sites, b_enc: Tensor, W_dec: Sites, norm: str, k: int) -> Tensor:
    """The `k * batch` largest `f_i size_i` of the batch, each with its own value."""
    f = torch.relu(pre_acts(x, W_enc, b_enc))
    return torch.where(kept(f * sizes(W_dec, norm), k), f, torch.zeros_like(f))
