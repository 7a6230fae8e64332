"""Plain-torch kernels: always there, and the reference for any other.

A sparse step needs one dense product, the pre-activations; all else touches the active latents
only. The gradient of a matrix's rows is a sum over the entries of each latent: with the entries
sorted by latent it is an `embedding_bag` over the *token* table, which is small enough to stay in
cache, needs no atomics and always adds in the same order, so that runs repeat bit for bit. Where
more than a share of all latents is active (a ReLU dictionary in its first steps), dense products
are faster and take over.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.latents import Latents, rows_of
from sae.select import Entries, Selection, gather

CHUNK_ROWS = 1024  # rows of pre-activations at a time, for selections that look at one row at a time
DENSE_SHARE = 0.05  # of all latents active: above it one dense product beats the sums over entries


def encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None, select: Selection) -> Latents:
    """See `sae.kernels.encode`."""
    centred = x if b_pre is None else x - b_pre
    with torch.no_grad():
        kept, picked = _select(centred, W_enc, b_enc, select)
    pre_acts = _PreActs.apply(x, W_enc, b_enc, b_pre, centred.detach(), picked, kept.indices, kept.offsets)
    values = select.values(pre_acts, kept.indices)  # type: ignore[arg-type]
    return Latents(values, kept.indices, kept.offsets, pre_acts, len(W_enc))  # type: ignore[arg-type]


def _select(centred: Tensor, W_enc: Tensor, b_enc: Tensor, select: Selection) -> tuple[Entries, Tensor]:
    """What is kept of the pre-activations, by chunks of rows where the selection allows it."""
    chunk = CHUNK_ROWS if select.is_rowwise else max(1, len(centred))
    indices, offsets, picked, nnz = [], [centred.new_zeros(1, dtype=torch.long)], [], 0
    for rows in centred.split(chunk):
        pre_acts = torch.addmm(b_enc, rows, W_enc.T).to(b_enc.dtype)
        kept = select.entries(pre_acts)
        indices.append(kept.indices)
        offsets.append(kept.offsets[1:] + nnz)
        picked.append(gather(pre_acts, kept))
        nnz += len(kept.indices)
    return Entries(torch.cat(indices), torch.cat(offsets)), torch.cat(picked)


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
    if _is_dense(len(indices), len(table), n_latents):
        return _dense(indices, rows, weights, len(table), n_latents).T @ table
    order = torch.argsort(indices, stable=True)
    counts = torch.bincount(indices, minlength=n_latents)
    starts = counts.cumsum(0) - counts
    return embedding_bag(rows[order], table, starts, mode="sum", per_sample_weights=weights[order])


def _is_dense(nnz: int, batch: int, n_latents: int) -> bool:
    return nnz > DENSE_SHARE * batch * n_latents


def _dense(indices: Tensor, rows: Tensor, weights: Tensor, batch: int, n_latents: int) -> Tensor:
    return weights.new_zeros(batch * n_latents).index_add_(0, rows * n_latents + indices, weights).view(batch, -1)


class _PreActs(torch.autograd.Function):
    """Kept pre-activations that have been computed already; their gradient touches no others."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # noqa: ARG004 - gets a gradient
        W_enc: Tensor,
        b_enc: Tensor,  # noqa: ARG004 - gets a gradient
        b_pre: Tensor | None,  # noqa: ARG004 - gets a gradient
        centred: Tensor,
        picked: Tensor,
        indices: Tensor,
        offsets: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(centred, W_enc, indices, offsets)
        return picked

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        centred, W_enc, indices, offsets = ctx.saved_tensors
        rows = rows_of(offsets, len(indices))
        grad_x = _sum_rows(grad, indices, offsets, W_enc) if ctx.needs_input_grad[0] else None
        grad_W = row_gradients(indices, rows, grad, centred, len(W_enc)) if ctx.needs_input_grad[1] else None
        grad_b_enc = torch.zeros(len(W_enc), dtype=grad.dtype, device=grad.device).index_add(0, indices, grad)
        # every row is centred by the same b_pre: its gradient needs the sum over the batch only
        grad_b_pre = -(grad_b_enc @ W_enc) if ctx.needs_input_grad[3] else None
        return grad_x, grad_W, grad_b_enc, grad_b_pre, None, None, None, None


def _sum_rows(values: Tensor, indices: Tensor, offsets: Tensor, matrix: Tensor) -> Tensor:
    """For each row of the batch, the weighted sum of its latents' rows of `matrix`."""
    batch = len(offsets) - 1
    if _is_dense(len(indices), batch, len(matrix)):
        dense = _dense(indices, rows_of(offsets, len(indices)), values, batch, len(matrix))
        return (dense @ matrix).to(values.dtype)  # under autocast the product is bfloat16
    return embedding_bag(indices, matrix, offsets[:-1], mode="sum", per_sample_weights=values)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, offsets: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, offsets, W_dec)
        return _sum_rows(values, indices, offsets, W_dec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, indices, offsets, W_dec = ctx.saved_tensors
        rows, grad = rows_of(offsets, len(indices)), grad.contiguous()
        if _is_dense(len(indices), len(grad), len(W_dec)):
            grad_values = (grad @ W_dec.T)[rows, indices]
        else:
            # for each entry, the dot product of its row's gradient with its latent's row of W_dec
            grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                grad, W_dec, indices.contiguous(), offsets[:-1], rows, 0, -1
            )
        grad_W = row_gradients(indices, rows, values, grad, len(W_dec)) if ctx.needs_input_grad[3] else None
        return grad_values, None, None, grad_W
