"""ReLU with L1, weighted by decoder norms as in Conerly et al. 2024; ghost gradients as in Jermyn & Templeton 2024."""

import torch
from torch import Tensor

from tests.reference.linear import Weights, active, pre_acts, recon, row_error


def latents(x: Tensor, w: Weights) -> Tensor:
    pre = pre_acts(x, w)
    return active(pre, pre > 0)


def loss(x: Tensor, target: Tensor, w: Weights) -> dict[str, Tensor]:
    f = latents(x, w)
    norms = w.W_dec.norm(dim=1)
    return {"mse": row_error(recon(x, f, w), target).mean(), "l1": (f * norms).sum(1).mean()}


def ghost(x: Tensor, residual: Tensor, w: Weights, dead: Tensor, mse: Tensor) -> Tensor:
    """Row by row: exp(pre) of the dead decoded, scaled to half the residual; the whole to the size of `mse`."""
    e, errors = residual.detach(), []
    for b, pre in enumerate(pre_acts(x, w)):
        written = torch.exp(pre[dead]) @ w.W_dec[dead]
        half = (e[b].norm() / 2 / written.norm()).detach()
        errors.append(((half * written - e[b]) ** 2).sum())
    error = torch.stack(errors).mean()
    return error if error == 0 else error * (mse / error).detach()
