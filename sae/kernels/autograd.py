"""Sparse steps, on any backend's kernels.

A sparse step needs one dense product, the pre-activations; all else touches the active latents
only. Where more than a share of all latents is active (a ReLU dictionary in its first steps), dense
products are faster and take over.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from sae.kernels.torch import Kernels
from sae.latents import Entries, Latents, WideLatents, above, column_sums
from sae.select import BatchTopK, Selection, TopK, gather, weighted, where

CHUNK_ROWS = 512  # rows of pre-activations at a time: those of 24,576 latents, in bfloat16, are 25 MB and stay in cache
GPU_CHUNK = 1 << 28  # pre-activations at a time on a GPU: enough to fill it
WHOLE = 1 << 31  # pre-activations of a batch, 4 GB in bfloat16, that a GPU holds at once
ROW_SHARE = 4  # how many times its mean a row may have of a batch's latents before it is looked at again
PROBE_ROWS, WIDE_SHARE = 64, 0.03  # of the first rows, so many entries: then whole matrices are faster
ROUNDING = 5 * 2**-9  # of the size of a sum of products: six deviations of what two factors in bfloat16 add to it
TINY = 1e-30  # least size of a latent that is divided by it
ROUGH_SHARE = 0.04  # of all latents kept in each row: above it products in bfloat16 beat lists of entries
DENSE_SHARE = 0.05  # of all latents active: above it one dense product beats the sums over entries
GPU_DENSE_SHARE = 0.006  # the same on a GPU, where the product is rounded: an H200 takes 2.2 ns an entry, 16 ps a cell


def encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None, select: Selection, own: Kernels, may_be_wide: bool
) -> Latents:
    """See `sae.kernels.encode`."""
    centred = x if b_pre is None else x - b_pre
    may_round = torch.is_autocast_enabled(x.device.type)
    is_rounded = may_round and not select.is_exact
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        weights = W_enc, b_enc, select.sizes
        product = _Rounded(*weights, own) if is_rounded else _Exact(*weights, may_round)
        is_wide = may_be_wide and select.is_elementwise and _keeps_many(centred, product, select)
    if is_wide:
        wide = _WidePreActs.apply(x, W_enc, b_enc, b_pre, centred.detach(), product)
        return WideLatents(select.values(wide, ...), wide)  # type: ignore[arg-type]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if may_round and select.is_exact:
            kept, picked = _select_exactly(centred, W_enc, b_enc, select, own)
        else:
            kept, picked = _select(centred, product, W_enc, b_enc, select, own, is_rounded)
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


def _select(
    centred: Tensor,
    product: "_Product",
    W_enc: Tensor,
    b_enc: Tensor,
    select: Selection,
    own: Kernels,
    is_rounded: bool,
) -> tuple[Entries, Tensor]:
    """What is kept, and the pre-activations of that, by chunks of rows where the selection allows it.

    Under autocast the product that decides is bfloat16. Where little is kept, its pre-activations are then
    computed again in full precision: rounding changes what is barely kept, and no value.
    """
    share = _dense_share(centred.device, is_rounded)
    if type(select) is BatchTopK:
        kept = _largest_of_batch(centred, product, select, own)
    elif type(select) is TopK and (
        select.partners.size > 1 or (is_rounded and (select.sizes is not None or select.k <= share * len(W_enc)))
    ):
        kept = _largest_of_rows(centred, product, select, own)
    else:
        kept, picked = _select_by(select, product, centred, own)
        if not is_rounded or (select.sizes is None and _is_dense(kept, len(W_enc), is_rounded)):
            return kept, picked.to(b_enc.dtype)
    return kept, own.dots(kept, centred, W_enc) + b_enc[kept.indices]


def _select_exactly(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, select: Selection, own: Kernels
) -> tuple[Entries, Tensor]:
    """What is kept by pre-activations in full precision, and these: computed for those only that a product in bfloat16
    has near enough."""
    product = _Rounded(W_enc, b_enc, None, own)
    spread = W_enc.square().matmul(centred.square().mean(dim=0)).sqrt_()
    slack = ROUNDING * spread + (b_enc - b_enc.bfloat16())
    near = _joined([where(select.keeps(product(rows)[1], ..., slack)) for rows in _chunks(centred, len(W_enc))])
    picked = own.dots(near, centred, W_enc) + b_enc[near.indices]
    kept = select.keeps(picked, near.indices)
    return near.subset(kept), picked[kept]


def _chunks(x: Tensor, n_latents: int) -> Sequence[Tensor]:
    return x.split(CHUNK_ROWS if x.device.type == "cpu" else max(CHUNK_ROWS, GPU_CHUNK // n_latents))


def _select_by(select: Selection, product: "_Product", centred: Tensor, own: Kernels) -> tuple[Entries, Tensor]:
    """What is kept, and the pre-activations that decided."""
    parts, picked = [], []
    for rows in _chunks(centred, product.n_latents) if select.is_rowwise else [centred]:
        pre_acts, strengths = product(rows)
        if type(select) is TopK:
            parts.append(Entries.of_each_row(own.largest(strengths, select.k)))
        else:
            parts.append(select.entries(strengths))
        picked.append(gather(pre_acts, parts[-1]))
    return _joined(parts), torch.cat(picked)


def _largest_of_rows(centred: Tensor, product: "_Product", select: TopK, own: Kernels) -> Entries:
    """TopK's choice alone."""
    k, indices, values = min(select.k, product.n_latents), [], []
    for rows in _chunks(centred, product.n_latents):
        strengths = product(rows)[1]
        indices.append(own.largest(strengths, k))
        if select.partners.size > 1:
            values.append(strengths.gather(1, indices[-1]))
    if not values:
        return Entries.of_each_row(torch.cat(indices))
    return select.chosen(torch.cat(indices), torch.cat(values))


def _joined(parts: Sequence[Entries]) -> Entries:
    """Entries of consecutive rows as those of one batch."""
    if len(parts) == 1:
        return parts[0]
    counts = torch.cat([part.offsets.diff() for part in parts])
    return Entries(torch.cat([part.indices for part in parts]), torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def _keeps_many(centred: Tensor, product: "_Product", select: Selection) -> bool:
    """Whether so many entries of the first rows are kept that whole matrices are faster."""
    rows = centred[:PROBE_ROWS]
    return len(select.entries(product(rows)[1]).indices) > WIDE_SHARE * len(rows) * product.n_latents


class _Exact:
    """`rows -> (pre-activations, the same as they compete)`, in full precision; on a GPU under autocast of factors in
    TF32, which leaves more bits of them than their sum needs."""

    def __init__(self, W_enc: Tensor, b_enc: Tensor, sizes: Tensor | None, may_round: bool) -> None:
        self.W, self.b, self.sizes, self.n_latents = W_enc, b_enc, sizes, len(W_enc)
        self.may_round = may_round and W_enc.device.type == "cuda"

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        with _tf32() if self.may_round else nullcontext():
            pre_acts = torch.addmm(self.b, rows, self.W.T)
        return pre_acts, weighted(pre_acts, self.sizes)


@contextmanager
def _tf32() -> Iterator[None]:
    """Within this context a GPU rounds the factors of products of float32 to 11 bits."""
    matmul = torch.backends.cuda.matmul
    if matmul.fp32_precision == "tf32":  # perhaps for all of torch, which must not become a word of its own
        yield
        return
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class _Rounded:
    """The same in bfloat16. Weights are rounded, and laid out, once; sizes are multiplied into them, so that both
    sides are as they compete."""

    def __init__(self, W_enc: Tensor, b_enc: Tensor, sizes: Tensor | None, own: Kernels) -> None:
        self.W, self.n_latents = own.rounded(W_enc, sizes), len(W_enc)
        self.b = (b_enc if sizes is None else b_enc * sizes).bfloat16()
        # oneDNN's own layout: a tenth faster over many chunks
        self.is_laid_out = W_enc.device.type == "cpu" and _has_layout()
        if self.is_laid_out:
            self.W = torch.ops.mkldnn._reorder_linear_weight(self.W, CHUNK_ROWS)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.bfloat16()
        if self.is_laid_out:
            strengths = torch.ops.mkldnn._linear_pointwise(rows, self.W, self.b, "none", [], "")
        else:
            strengths = linear(rows, self.W, self.b)
        return strengths, strengths


@cache
def _has_layout() -> bool:
    ops = torch.ops.mkldnn
    return hasattr(ops, "_reorder_linear_weight") and ops._is_mkldnn_bf16_supported()


_Product = _Exact | _Rounded


def _largest_of_batch(centred: Tensor, product: _Product, select: BatchTopK, own: Kernels) -> Entries:
    """BatchTopK's choice from the largest few of each row, so that the wide matrix never exists whole.

    Where all of a row's few have been chosen more might have been: such rows are looked at again, for more. A GPU
    would have to be waited for: it chooses from the wide matrix, up to `WHOLE` pre-activations.
    """
    n_latents, is_alone = product.n_latents, select.team.size * select.partners.size == 1
    if own.chooses_from_all and is_alone and len(centred) * n_latents <= WHOLE:
        return own.largest_of_batch(product(centred)[1], select.k * len(centred))
    rows, limit = torch.arange(len(centred), device=centred.device), min(ROW_SHARE * select.k, n_latents)
    settled: list[tuple[Tensor, Tensor]] = []
    while True:
        values, keys = [], []
        for part in _chunks(rows, n_latents):
            strengths = product(centred[part])[1]
            indices = own.largest(strengths, limit)
            values.append(strengths.gather(1, indices))
            keys.append(indices + n_latents * part[:, None])
        newest = torch.cat(values), torch.cat(keys)
        candidates, names = (
            torch.cat([part.flatten() for part in side]) for side in zip(newest, *settled, strict=True)
        )
        kept = select.choose(candidates, names, len(centred), n_latents)
        is_full = kept.offsets.diff()[rows] == limit
        is_more = select.partners.total(select.team.total(is_full.any().int())) if limit < n_latents else False
        if not bool(is_more):
            return kept
        settled.append((newest[0][~is_full], newest[1][~is_full]))
        rows, limit = rows[is_full], min(ROW_SHARE * limit, n_latents)


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
    if _is_dense(entries, n_latents, is_rounded):
        return _product(entries.dense(weights, n_latents).T, table, is_rounded)
    if is_rounded and own.adds_rounded:
        table = table.bfloat16()
    return own.row_gradients(entries, weights, table, n_latents)


def _sum_rows(entries: Entries, values: Tensor, matrix: Tensor, own: Kernels, is_rounded: bool) -> Tensor:
    if _is_dense(entries, len(matrix), is_rounded):
        return _product(entries.dense(values, len(matrix)), matrix, is_rounded)
    return own.sum_rows(entries, values, matrix)


def _is_dense(entries: Entries, n_latents: int, is_rounded: bool) -> bool:
    share = _dense_share(entries.indices.device, is_rounded)
    return len(entries.indices) > share * (len(entries.offsets) - 1) * n_latents


def _dense_share(device: torch.device, is_rounded: bool) -> float:
    return GPU_DENSE_SHARE if device.type != "cpu" and is_rounded else DENSE_SHARE


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
        product: "_Product",
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
        if _is_dense(entries, len(W_dec), ctx.is_rounded):
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
            product = _Rounded(W_enc, b_enc, sizes, own)
            written = (W_dec if sizes is None else W_dec / sizes[:, None].clamp_min(TINY)).bfloat16()
            strengths, recon = [], []
            for rows in _chunks(centred, n_latents):
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
        of_chunks = (_chunks(part, strengths.shape[1]) for part in (grad, strengths, through))
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
