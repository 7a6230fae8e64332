"""Loss terms as pure functions. Squared errors are summed over d and averaged over rows."""

import torch
from jaxtyping import Float
from torch import Tensor


def squared_error(recon: Float[Tensor, "batch d"], target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """`mean over rows of ||recon - target||^2`."""
    return (recon - target).square().sum(dim=1).mean()


def auxk(residual: Float[Tensor, "batch d"], recon: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """How badly dead latents reconstruct what the live ones missed (Gao et al. 2024, §A.2).

    `||e - e_hat||^2 / Var(e)`, means over rows; the residual e is a constant here. 0 if e has no
    variance.
    """
    e = residual.detach()
    variance = (e - e.mean(dim=0)).square().sum(dim=1).mean()
    error = squared_error(recon, e)
    return torch.where(variance > 0, error / variance.clamp_min(torch.finfo(e.dtype).tiny), torch.zeros_like(error))
