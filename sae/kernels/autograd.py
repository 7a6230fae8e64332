"""Sparse steps, on any backend's kernels.

A sparse step needs one dense product, the pre-activations; all else touches the active latents
only. Where more than a share of all latents is active (a ReLU dictionary in its first steps), dense
products are faster and take over.
"""

from typing import Any

import torch
from torch import Tensor

from sae.kernels.choice import TINY, Product, Rounded, choose, chunks, is_dense, keeps_many, product_for
from sae.kernels.torch import Kernels
from sae.latents import Entries, Latents, WideLatents, above, column_sums
from sae.select import Selection, TopK

ROUGH_SHARE = 0.04  # of all latents kept in each row: above it products in bfloat16 beat lists of entries


def encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None, select: Selection, own: Kernels, may_be_wide: bool
) -> Latents:
    """See `sae.kernels.encode`."""
    centred = x if b_pre is None else x - b_pre
    may_round = torch.is_autocast_enabled(x.device.type)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        product = product_for(select, W_enc, b_enc, own, may_round)
        is_wide = may_be_wide and select.is_elementwise and keeps_many(centred, product, select)
    if is_wide:
        wide = _WidePreActs.apply(x, W_enc, b_enc, b_pre, centred.detach(), product)
        return WideLatents(select.values(wide, ...), wide)  # type: ignore[arg-type]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        kept, picked = choose(centred, product, W_enc, b_enc, select, own, may_round)
    pre_acts: Tensor = _PreActs.apply(x, W_enc, b_enc, b_pre, centred.detach(), picked, kept, own)  # type: ignore[assignment]
    return Latents.of(select.values(pre_acts, kept.indices), kept, pre_acts, len(W_enc))


def topk_recon(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None, W_dec: Tensor, select: TopK, own: Kernels
) -> Tensor:
    """See `sae.kernels.topk_recon`."""
    is_rounded = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not is_rounded or select.partners.size > 1 or select.k <= ROUGH_SHARE * len(W_enc):
        return decode(encode(x, W_enc, b_enc, b_pre, select, own, may_be_wide=False), W_dec, own)
    centred = (x if b_pre is None else x - b_pre).detach()
    return _RoughTopK.apply(W_enc, b_enc, b_pre, W_dec, centred, select, own)  # type: ignore[return-value]


def decode(latents: Latents, W_dec: Tensor, own: Kernels) -> Tensor:
    """Weighted sum of the rows of `W_dec` that are active."""
    if isinstance(latents, WideLatents):
        return (latents.values @ W_dec).to(W_dec.dtype)  # autocast rounds both
    return _Decode.apply(latents.values, latents.entries, W_dec, own)  # type: ignore[return-value]


def row_gradients(
    entries: Entries, weights: Tensor, table: Tensor, n_latents: int, own: Kernels, is_rounded: bool = False
) -> Tensor:
    """See `Kernels.row_gradients`.

    Args:
        is_rounded: a dense product may be rounded to bfloat16, and the table, where the sums read it faster so.
    """
    if is_dense(entries, n_latents, is_rounded):
        return _product(entries.dense(weights, n_latents).T, table, is_rounded)
    if is_rounded and own.adds_rounded:
        table = table.bfloat16()
    return own.row_gradients(entries, weights, table, n_latents)


def _sum_rows(entries: Entries, values: Tensor, matrix: Tensor, own: Kernels, is_rounded: bool) -> Tensor:
    if is_dense(entries, len(matrix), is_rounded):
        return _product(entries.dense(values, len(matrix)), matrix, is_rounded)
    return own.sum_rows(entries, values, matrix)


def _product(a: Tensor, b: Tensor, is_rounded: bool) -> Tensor:
    """Of two matrices, of which wide ones may be rounded already; in full precision."""
    return (a.bfloat16() @ b.bfloat16()).float() if is_rounded else a @ b


class _WidePreActs(torch.autograd.Function):
    """All pre-activations. The gradient of `b_pre` is the same for all rows, and no product of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,  # noqa: ARG004 - gets a gradient
        b_pre: Tensor | None,  # noqa: ARG004 - gets a gradient
        centred: Tensor,
        product: Product,
    ) -> Tensor:
        ctx.save_for_backward(centred, W_enc)
        ctx.is_rounded = torch.is_autocast_enabled(x.device.type)  # gradients, whatever decides
        with torch.autocast(x.device.type, enabled=False):
            return product(centred)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        centred, W_enc = ctx.saved_tensors
        grad_x = _product(grad, W_enc, ctx.is_rounded) if ctx.needs_input_grad[0] else None
        grad_W = _product(grad.T, centred, ctx.is_rounded) if ctx.needs_input_grad[1] else None
        grad_b_enc = column_sums(grad, W_enc.dtype)
        grad_b_pre = -(grad_b_enc @ W_enc) if ctx.needs_input_grad[3] else None
        return grad_x, grad_W, grad_b_enc, grad_b_pre, None, None


class _PreActs(torch.autograd.Function):
    """Kept pre-activations that have been computed already; their gradient touches no others."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,  # noqa: ARG004 - gets a gradient
        b_pre: Tensor | None,  # noqa: ARG004 - gets a gradient
        centred: Tensor,
        picked: Tensor,
        entries: Entries,
        own: Kernels,
    ) -> Tensor:
        ctx.save_for_backward(centred, W_enc)
        ctx.entries, ctx.own, ctx.is_rounded = entries, own, torch.is_autocast_enabled(x.device.type)
        return picked

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (centred, W_enc), entries, own = ctx.saved_tensors, ctx.entries, ctx.own
        grad_x = _sum_rows(entries, grad, W_enc, own, ctx.is_rounded) if ctx.needs_input_grad[0] else None
        grad_W = None
        if ctx.needs_input_grad[1]:
            grad_W = row_gradients(entries, grad, centred, len(W_enc), own, ctx.is_rounded)
        grad_b_enc = own.latent_sums(entries, grad, len(W_enc))
        # every row is centred by the same b_pre: its gradient needs the sum over the batch only
        grad_b_pre = -(grad_b_enc @ W_enc) if ctx.needs_input_grad[3] else None
        return grad_x, grad_W, grad_b_enc, grad_b_pre, None, None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, entries: Entries, W_dec: Tensor, own: Kernels) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.entries, ctx.own, ctx.is_rounded = entries, own, torch.is_autocast_enabled(values.device.type)
        with torch.autocast(values.device.type, enabled=False):
            return _sum_rows(entries, values, W_dec, own, ctx.is_rounded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (values, W_dec), entries, own, grad = ctx.saved_tensors, ctx.entries, ctx.own, grad.contiguous()
        if is_dense(entries, len(W_dec), ctx.is_rounded):
            grad_values = _product(grad, W_dec.T, ctx.is_rounded)[entries.rows, entries.indices]
        else:
            grad_values = own.dots(entries, grad, W_dec)
        grad_W = None
        if ctx.needs_input_grad[2]:
            grad_W = row_gradients(entries, values, grad, len(W_dec), own, ctx.is_rounded)
        return grad_values, None, grad_W, None


class _RoughTopK(torch.autograd.Function):
    """`TopK(centred W_enc^T + b_enc) W_dec` by products in bfloat16, in terms of strengths: latents times sizes."""

    @staticmethod
    def forward(
        ctx: Any,
        W_enc: Tensor,
        b_enc: Tensor,
        b_pre: Tensor | None,  # noqa: ARG004 - gets a gradient
        W_dec: Tensor,
        centred: Tensor,
        select: TopK,
        own: Kernels,
    ) -> Tensor:
        n_latents, sizes = len(W_enc), select.sizes
        with torch.autocast("cpu", enabled=False):
            product = Rounded(W_enc, b_enc, sizes, own)
            written = (W_dec if sizes is None else W_dec / sizes[:, None].clamp_min(TINY)).bfloat16()
            strengths, recon = [], []
            for rows in chunks(centred, n_latents):
                strengths.append(product(rows)[1])
                own.keep_largest(strengths[-1], min(select.k, n_latents))
                recon.append((strengths[-1] @ written).to(W_dec.dtype))
        ctx.save_for_backward(W_enc, centred, written, torch.cat(strengths))
        ctx.sizes = sizes
        return torch.cat(recon)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        W_enc, centred, written, strengths = ctx.saved_tensors
        grad, through = grad.bfloat16(), torch.empty_like(strengths)
        of_chunks = (chunks(part, strengths.shape[1]) for part in (grad, strengths, through))
        for coming, kept, out in zip(*of_chunks, strict=True):
            torch.mul(coming @ written.T, above(kept), out=out)
        grad_W_dec = (strengths.T @ grad).to(W_enc.dtype)
        grad_W_enc, grad_b_enc = (through.T @ centred.bfloat16()).to(W_enc.dtype), column_sums(through, W_enc.dtype)
        if ctx.sizes is not None:
            grad_W_dec.div_(ctx.sizes[:, None].clamp_min(TINY))
            grad_W_enc.mul_(ctx.sizes[:, None])
            grad_b_enc.mul_(ctx.sizes)
        grad_b_pre = -(grad_b_enc @ W_enc) if ctx.needs_input_grad[2] else None
        return grad_W_enc, grad_b_enc, grad_b_pre, grad_W_dec, None, None, None
