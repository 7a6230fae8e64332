"""One linear encoder and one linear decoder as dense formulas: what the sparse code must equal.

Written from the papers, shares no code with the package; gradients are autograd's. A variant adds
which of the pre-activations it keeps, as a mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """`b_pre` and `W_skip` are None where there is none; with a pre-bias `b_pre` is `b_dec` itself."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_pre: Tensor | None
    W_skip: Tensor | None = None
    is_folded: bool = False
    """Pre-activations compete by what they would write."""


def pre_acts(x: Tensor, w: Weights) -> Tensor:
    u = x if w.b_pre is None else x - w.b_pre
    return u @ w.W_enc.T + w.b_enc


def strengths(pre: Tensor, w: Weights) -> Tensor:
    """What is compared where few may fire; for choices only."""
    norms = w.W_dec.detach().square().sum(1).sqrt()
    return pre.detach() * norms if w.is_folded else pre.detach()


def active(pre: Tensor, kept: Tensor) -> Tensor:
    """The kept pre-activations, negative ones as 0."""
    return torch.where(kept & (pre > 0), pre, torch.zeros_like(pre))


def recon(x: Tensor, f: Tensor, w: Weights) -> Tensor:
    y = f @ w.W_dec + w.b_dec
    return y if w.W_skip is None else y + x @ w.W_skip.T


def row_error(recon: Tensor, target: Tensor) -> Tensor:
    """`||recon - target||^2` of each row; a loss is its mean."""
    return ((recon - target) ** 2).sum(1)


def top(scores: Tensor, k: int) -> Tensor:
    """Which entries of each row are among its k largest (by full sort; assumes no ties at the edge)."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order[:, :k], True)


def auxk(x: Tensor, residual: Tensor, w: Weights, dead: Tensor, k_aux: int, sizes: Tensor | float = 1.0) -> Tensor:
    """`||e - z W_dec||^2 / Var(e)`, z the k_aux largest positive pre-activations of dead latents, as they compete; 0
    without any."""
    if not dead.any():
        return torch.zeros((), dtype=x.dtype)
    e = residual.detach()
    variance = ((e - e.mean(0)) ** 2).sum(1).mean()
    if variance <= 1e-15 * (e**2).sum(1).mean():
        return torch.zeros((), dtype=x.dtype)
    pre = pre_acts(x, w)
    of_dead = torch.where(dead, strengths(pre, w) * sizes, torch.full_like(pre, -torch.inf))
    z = active(pre, top(of_dead, min(k_aux, int(dead.sum()))))
    return row_error(z @ w.W_dec, e).mean() / variance
