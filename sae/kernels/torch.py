"""Plain-torch kernels: always there, and the reference for any other.

A TopK step needs one dense product, the pre-activations; all else touches k latents a row. The
gradient of a matrix's rows is a sum over the entries of each latent: with the entries sorted by
latent it is an `embedding_bag` over the *token* table, which is small enough to stay in cache,
needs no atomics and always adds in the same order, so that runs repeat bit for bit.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.latents import Latents

CHUNK_ROWS = 1024  # rows of pre-activations at a time; the whole [batch, n_latents] never exists


def encode_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor, k: int) -> Latents:
    """TopK of the pre-activations, by chunks of rows; see `sae.select.TopK` for the definition."""
    pre_acts, indices = _EncodeTopK.apply(x, W_enc, b_enc, b_pre, k)  # type: ignore[misc]
    offsets = torch.arange(0, pre_acts.numel() + 1, k, device=x.device)
    return Latents(pre_acts.relu().flatten(), indices.flatten(), offsets, pre_acts.flatten(), len(W_enc))


def decode(latents: Latents, W_dec: Tensor) -> Tensor:
    """Weighted sum of the rows of `W_dec` that are active."""
    return _Decode.apply(latents.values, latents.indices, latents.offsets, W_dec)  # type: ignore[return-value]


def row_gradients(
    indices: Int[Tensor, " nnz"],
    rows: Int[Tensor, " nnz"],
    weights: Float[Tensor, " nnz"],
    table: Float[Tensor, "batch d"],
    n_latents: int,
) -> Float[Tensor, "n_latents d"]:
    """`sum over entries e of latent l: weights[e] * table[rows[e]]`, for each latent l."""
    order = torch.argsort(indices, stable=True)
    counts = torch.bincount(indices, minlength=n_latents)
    starts = counts.cumsum(0) - counts
    return embedding_bag(rows[order], table, starts, mode="sum", per_sample_weights=weights[order])


class _EncodeTopK(torch.autograd.Function):
    """The k largest pre-activations `[batch, k]` of each row and their indices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        centred = x - b_pre
        pre_acts = x.new_empty(len(x), k)
        indices = torch.empty(len(x), k, dtype=torch.long, device=x.device)
        for start in range(0, len(x), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            pre = torch.addmm(b_enc, centred[rows], W_enc.T)
            pre_acts[rows], indices[rows] = pre.topk(k, dim=1, sorted=False)
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(centred, W_enc, indices)
        return pre_acts, indices

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _grad_indices: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        centred, W_enc, indices = ctx.saved_tensors
        flat, weights = indices.flatten(), grad.flatten()
        rows = torch.arange(len(centred), device=flat.device).repeat_interleave(indices.shape[1])
        grad_b_enc = torch.zeros(len(W_enc), dtype=grad.dtype, device=grad.device).index_add(0, flat, weights)
        grad_x = embedding_bag(indices, W_enc, mode="sum", per_sample_weights=grad) if ctx.needs_input_grad[0] else None
        grad_W = row_gradients(flat, rows, weights, centred, len(W_enc))
        # every row is centred by the same b_pre: its gradient needs the sum over the batch only
        grad_b_pre = -(grad_b_enc @ W_enc) if ctx.needs_input_grad[3] else None
        return grad_x, grad_W, grad_b_enc, grad_b_pre, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, offsets: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, offsets, W_dec)
        return embedding_bag(indices, W_dec, offsets[:-1], mode="sum", per_sample_weights=values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, indices, offsets, W_dec = ctx.saved_tensors
        rows = torch.repeat_interleave(torch.arange(len(grad), device=grad.device), offsets.diff())
        grad = grad.contiguous()
        # for each entry, the dot product of its row's gradient with its latent's row of W_dec
        grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, W_dec, indices, offsets[:-1], rows, 0, -1
        )
        return grad_values, None, None, row_gradients(indices, rows, values, grad, len(W_dec))
