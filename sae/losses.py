"""Loss terms as pure functions. Squared errors are summed over d and averaged over rows."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from sae.latents import Latents
from sae.team import ALONE, Team


def squared_error(recon: Float[Tensor, "batch d"], target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """`mean over rows of ||recon - target||^2`."""
    return mse_loss(recon, target, reduction="sum") / len(recon)


def row_sum(latents: Latents, per_entry: Float[Tensor, " *nnz"]) -> Float[Tensor, ""]:
    """`mean over rows of the sum over its entries`, the form of every sparsity penalty."""
    rows = per_entry.sum(dim=-1)  # of a list, all of them
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).sum() / latents.batch


def weighted_l1(latents: Latents, norms: Float[Tensor, " n_latents"]) -> Float[Tensor, ""]:
    """`mean over rows of sum_i f_i norm_i`."""
    return latents.weighted_sum(norms) / latents.batch


def auxk(residual: Float[Tensor, "batch d"], recon: Float[Tensor, "batch d"], team: Team = ALONE) -> Float[Tensor, ""]:
    """How badly dead latents reconstruct what the live ones missed (Gao et al. 2024, §A.2).

    `||e - e_hat||^2 / Var(e)`, means over rows; the residual e is a constant here, and its variance that of the
    whole team's rows. 0 if e has no variance beyond the rounding of its mean.
    """
    e = residual.detach()
    centred = e - team.mean(e.mean(dim=0))
    kind, error = torch.finfo(e.dtype), squared_error(recon, e)
    variance, square = team.mean(torch.stack([part.square().sum(dim=1).mean() for part in (centred, e)]))
    rounding = kind.eps * square
    return torch.where(variance > rounding, error / variance.clamp_min(kind.tiny), torch.zeros_like(error))


def ghost(
    residual: Float[Tensor, "batch d"], recon: Float[Tensor, "batch d"], mse: Tensor, team: Team = ALONE
) -> Float[Tensor, ""]:
    """Ghost gradients: dead latents as if their activation were `exp(pre)` (Jermyn & Templeton 2024,
    "Ghost grads", Transformer Circuits, January update).

    `recon`, what they would write, is scaled in each row to half the norm of the residual e, a
    constant; its squared error to e is then scaled to the size of the main loss `mse`.
    """
    e, kind = residual.detach(), torch.finfo(residual.dtype)
    size = e.norm(dim=1, keepdim=True) / (2 * recon.detach().norm(dim=1, keepdim=True)).clamp_min(kind.eps)
    error = squared_error(size * recon, e)
    whole_mse, whole_error = team.mean(torch.stack([mse.detach(), error.detach()]))
    return error * (whole_mse / whole_error.clamp_min(kind.tiny))
