"""Encode and decode with sparse gradients, whatever the dictionary.

`encode` runs any selection: the wide matrix of pre-activations never enters autograd, and is made by
chunks of rows unless the selection needs it whole (BatchTopK does so on a GPU only). Both functions are differentiable
in all their tensors. A backend gives what touches active latents only (`sae.kernels.torch.Kernels`):
torch anywhere, numba on a CPU and Triton on a GPU where they are installed. `SAE_KERNELS=torch` in the
environment does without them.
"""

import importlib.util
import os
from functools import cache

import torch as _torch
from jaxtyping import Float
from torch import Tensor

from sae.kernels import autograd, choice
from sae.kernels.torch import Kernels
from sae.latents import Entries, Latents
from sae.select import Selection, TopK


def encode(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    b_pre: Float[Tensor, " d_in"] | None,
    select: Selection,
    may_be_wide: bool = False,
) -> Latents:
    """`select((x - b_pre) W_enc^T + b_enc)`.

    Args:
        may_be_wide: give `WideLatents` where many are active and the selection allows it.
    """
    return autograd.encode(x, W_enc, b_enc, b_pre, select, _kernels(x.device.type), may_be_wide)


def decode(latents: Latents, W_dec: Float[Tensor, "n_latents d_out"]) -> Float[Tensor, "batch d_out"]:
    """`f W_dec` as a weighted sum of the active rows."""
    return autograd.decode(latents, W_dec, _kernels(W_dec.device.type))


def topk_recon(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    b_pre: Float[Tensor, " d_in"] | None,
    W_dec: Float[Tensor, "n_latents d_out"],
    select: TopK,
) -> Float[Tensor, "batch d_out"]:
    """What the latents that `select` keeps write.

    Under autocast, where it keeps many of all, roughly: by products in bfloat16, and of equal pre-activations at the
    edge all are kept.
    """
    return autograd.topk_recon(x, W_enc, b_enc, b_pre, W_dec, select, _kernels(x.device.type))


def row_gradients(
    entries: Entries, weights: Float[Tensor, " nnz"], table: Float[Tensor, "batch d"], n_latents: int
) -> Float[Tensor, "n_latents d"]:
    """`sum over entries e of latent l: weights[e] * table[row of e]`, for each latent l."""
    return autograd.row_gradients(entries, weights, table, n_latents, _kernels(table.device.type))


@_torch.no_grad()
def normalise_rows(matrix: Float[Tensor, "n d"]) -> None:
    """Divide each row by its norm, in place; a zero row stays zero."""
    _kernels(matrix.device.type).normalise_rows(matrix)


@_torch.no_grad()
def remove_parallel(gradient: Float[Tensor, "n d"], unit: Float[Tensor, "n d"]) -> None:
    """`g <- g - (g . d) d` for each row, in place."""
    _kernels(gradient.device.type).remove_parallel(gradient, unit)


def is_recordable(device: _torch.device, n_cells: int) -> bool:
    """Whether steps of what waits for no value can be recorded there, with so many pre-activations."""
    return device.type == "cuda" and _kernels(device.type).is_recordable and n_cells <= choice.WHOLE


def backends() -> list[str]:
    """Kernel backends that can be used on this machine, the preferred one first."""
    found = {"triton": _has("triton") and _torch.cuda.is_available(), "numba": _has("numba"), "torch": True}
    return [name for name, is_there in found.items() if is_there]


def _has(package: str) -> bool:
    """Whether the package of a backend is there, and wanted."""
    return os.environ.get("SAE_KERNELS") != "torch" and importlib.util.find_spec(package) is not None


@cache
def _kernels(device: str) -> Kernels:
    if device == "cuda" and _has("triton"):
        from sae.kernels.triton import Triton

        return Triton()
    if device == "cpu" and _has("numba"):
        try:
            from sae.kernels.numba import Numba
        except RuntimeError:  # no folder is left to it for what it compiles
            return Kernels()
        return Numba()
    return Kernels()
