"""Switch SAE, from Mudide et al. 2024 (arXiv:2410.08201), §3: all experts computed, all but one masked."""

import torch
from torch import Tensor

from tests.reference.linear import Weights, active, auxk, pre_acts, recon, row_error, strengths, top


def route(x: Tensor, W_router: Tensor, b_router: Tensor) -> Tensor:
    logits = (x - b_router) @ W_router.T
    return torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)


def latents(x: Tensor, w: Weights, W_router: Tensor, b_router: Tensor, k: int) -> Tensor:
    """The k largest latents of the likeliest expert, times its probability."""
    p, pre = route(x, W_router, b_router), pre_acts(x, w)
    size = pre.shape[1] // p.shape[1]
    owner = torch.arange(pre.shape[1]) // size
    is_own = owner[None, :] == p.argmax(1)[:, None]
    kept = top(torch.where(is_own, strengths(pre, w), torch.full_like(pre, -torch.inf)), k)
    return active(pre, kept) * p.max(1, keepdim=True).values


def loss(
    x: Tensor, target: Tensor, w: Weights, W_router: Tensor, b_router: Tensor, k: int, dead: Tensor, k_aux: int
) -> dict[str, Tensor]:
    """The error, AuxK's over all experts, and the load balance `E sum_i F_i P_i`; none of them weighted."""
    p = route(x, W_router, b_router)
    n_experts = p.shape[1]
    shares = torch.stack([(p.argmax(1) == i).to(p.dtype).mean() for i in range(n_experts)])
    out = recon(x, latents(x, w, W_router, b_router, k), w)
    return {
        "mse": row_error(out, target).mean(),
        "auxk": auxk(x, target - out, w, dead, k_aux),
        "balance": n_experts * (shares * p.mean(0)).sum(),
    }
