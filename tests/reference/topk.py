"""TopK with AuxK and Multi-TopK, from Gao et al. 2024 (arXiv:2406.04093)."""

from torch import Tensor

from tests.reference.linear import Weights, active, auxk, pre_acts, recon, row_error, strengths, top


def latents(x: Tensor, w: Weights, k: int) -> Tensor:
    """`f = ReLU(TopK(pre))`, dense `[batch, n_latents]`."""
    pre = pre_acts(x, w)
    return active(pre, top(strengths(pre, w), k))


def loss(x: Tensor, target: Tensor, w: Weights, k: int, dead: Tensor, k_aux: int) -> dict[str, Tensor]:
    """The error with k latents, AuxK's, and the error with 4 k; not weighted, nor divided by a variance of inputs."""
    out = recon(x, latents(x, w, k), w)
    wide = recon(x, latents(x, w, min(4 * k, w.W_enc.shape[0])), w)
    return {
        "mse": row_error(out, target).mean(),
        "auxk": auxk(x, target - out, w, dead, k_aux),
        "multi": row_error(wide, target).mean(),
    }
