"""Matryoshka BatchTopK, from Bussmann, Nabeshima, Karvonen & Nanda 2025 (arXiv:2503.17547), eq. 3."""

from dataclasses import replace

from torch import Tensor

from tests.reference import batchtopk
from tests.reference.linear import Weights, auxk, recon, row_error


def loss(
    x: Tensor, target: Tensor, w: Weights, k: int, prefixes: tuple[int, ...], dead: Tensor, k_aux: int
) -> dict[str, Tensor]:
    """The error of the whole and of every shorter prefix from the widest down, and AuxK's; the loss is their (weighted)
    sum."""
    f = batchtopk.latents(x, w, k)
    errors = {m: row_error(recon(x, f[:, :m], replace(w, W_dec=w.W_dec[:m])), target).mean() for m in prefixes}
    return {
        "mse": errors[prefixes[-1]],
        **{f"mse_{m}": errors[m] for m in reversed(prefixes[:-1])},
        "auxk": auxk(x, target - recon(x, f, w), w, dead, k_aux),
    }
