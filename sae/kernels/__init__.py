"""Encode and decode with sparse gradients, whatever the dictionary.

`encode` fuses the selections it knows and runs any other on dense pre-activations, so that a new
selection works at once. Both functions are differentiable in all their tensors.
"""

from jaxtyping import Float
from torch import Tensor

from sae.kernels import torch as _torch
from sae.latents import Latents
from sae.select import Selection, TopK


def encode(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    b_pre: Float[Tensor, " d_in"],
    select: Selection,
) -> Latents:
    """`select((x - b_pre) W_enc^T + b_enc)`."""
    if isinstance(select, TopK):
        return _torch.encode_topk(x, W_enc, b_enc, b_pre, select.k)
    return select((x - b_pre) @ W_enc.T + b_enc)


def decode(latents: Latents, W_dec: Float[Tensor, "n_latents d_out"]) -> Float[Tensor, "batch d_out"]:
    """`f W_dec` as a weighted sum of the active rows."""
    return _torch.decode(latents, W_dec)


def backends() -> list[str]:
    """Kernel backends that can be used on this machine, the preferred one first."""
    return ["torch"]
