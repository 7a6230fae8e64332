"""Encode and decode with sparse gradients, whatever the dictionary.

`encode` runs any selection: the wide matrix of pre-activations never enters autograd, and for
selections that look at one row at a time it never exists whole. Both functions are differentiable
in all their tensors.
"""

from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels import torch as _torch
from sae.latents import Latents
from sae.select import Selection


def encode(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    b_pre: Float[Tensor, " d_in"] | None,
    select: Selection,
) -> Latents:
    """`select((x - b_pre) W_enc^T + b_enc)`."""
    return _torch.encode(x, W_enc, b_enc, b_pre, select)


def decode(latents: Latents, W_dec: Float[Tensor, "n_latents d_out"]) -> Float[Tensor, "batch d_out"]:
    """`f W_dec` as a weighted sum of the active rows."""
    return _torch.decode(latents, W_dec)


def row_gradients(
    indices: Int[Tensor, " nnz"],
    rows: Int[Tensor, " nnz"],
    weights: Float[Tensor, " nnz"],
    table: Float[Tensor, "batch d"],
    n_latents: int,
) -> Float[Tensor, "n_latents d"]:
    """`sum over entries e of latent l: weights[e] * table[rows[e]]`, for each latent l."""
    return _torch.row_gradients(indices, rows, weights, table, n_latents)


def backends() -> list[str]:
    """Kernel backends that can be used on this machine, the preferred one first."""
    return ["torch"]
