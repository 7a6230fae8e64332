"""Which pre-activations a selection keeps, outside autograd: the one dense product of a step, and the choice from it.

The wide matrix is made by chunks of rows, unless the selection needs it whole. Under autocast the product is one in
bfloat16; what is kept by it is computed again in float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from sae.kernels.torch import Kernels
from sae.latents import Entries
from sae.select import BatchTopK, Selection, TopK, gather, weighted, where

CHUNK_ROWS = 512  # rows of pre-activations at a time: those of 24,576 latents, in bfloat16, are 25 MB and stay in cache
GPU_CHUNK = 1 << 28  # pre-activations at a time on a GPU: enough to fill it
WHOLE = 1 << 31  # pre-activations of a batch, 4 GB in bfloat16, that a GPU holds at once
ROW_SHARE = 4  # how many times its mean a row may have of a batch's latents before it is looked at again
PROBE_ROWS, WIDE_SHARE = 64, 0.03  # of the first rows, so many entries: then whole matrices are faster
ROUNDING = 7.25 * 2**-9  # of the size of a sum of products: six deviations of what two factors in bfloat16 add to it
MORE = 32  # columns of what may have been lost: as many as products like to have together
TINY = 1e-30  # least size of what something is divided by
DENSE_SHARE = 0.05  # of all latents active: above it one dense product beats the sums over entries
GPU_DENSE_SHARE = 0.006  # the same on a GPU, where the product is rounded: an H200 takes 2.2 ns an entry, 16 ps a cell


class Exact:
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


class Rounded:
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


Product = Exact | Rounded


def product_for(select: Selection, W_enc: Tensor, b_enc: Tensor, own: Kernels, may_round: bool) -> Product:
    """The product whose pre-activations decide, or are the latents' own."""
    if may_round and not select.is_exact:
        return Rounded(W_enc, b_enc, select.sizes, own)
    return Exact(W_enc, b_enc, select.sizes, may_round)


def choose(
    centred: Tensor, product: Product, W_enc: Tensor, b_enc: Tensor, select: Selection, own: Kernels, may_round: bool
) -> tuple[Entries, Tensor]:
    """What is kept, and the pre-activations of that, by chunks of rows where the selection allows it.

    Where the product that decides is rounded and little is kept, its pre-activations are then computed again in
    full precision: rounding changes what is barely kept, and no value; what an exact selection keeps not at all.
    """
    if may_round and select.is_exact:
        return _choose_exactly(centred, product, W_enc, b_enc, select, own)
    is_rounded = isinstance(product, Rounded)
    share = _dense_share(centred.device, is_rounded)
    if type(select) is BatchTopK:
        kept = _largest_of_batch(centred, product, select, own)
    elif type(select) is TopK and (
        select.partners.size > 1 or (is_rounded and (select.sizes is not None or select.k <= share * len(W_enc)))
    ):
        kept = _largest_of_rows(centred, product, select, own)
    else:
        kept, picked = _choose_by(select, product, centred, own)
        if not is_rounded or (select.sizes is None and is_dense(kept, len(W_enc), is_rounded)):
            return kept, picked.to(b_enc.dtype)
    return kept, own.dots(kept, centred, W_enc) + b_enc[kept.indices]


def _choose_exactly(
    centred: Tensor, exact: Product, W_enc: Tensor, b_enc: Tensor, select: Selection, own: Kernels
) -> tuple[Entries, Tensor]:
    """What is kept by pre-activations in full precision, and these: computed for those only that a product in bfloat16
    has near enough. To it is added what rounding may have taken: a share of each sum's size, for a row as long as this
    one, and what the bias has lost."""
    squares = centred.square()
    lengths = squares.sum(dim=1).sqrt()
    longer = lengths / lengths.square().mean().sqrt().clamp_min(TINY)
    slack = ROUNDING * W_enc.square().matmul(squares.mean(dim=0)).sqrt_()
    left = torch.stack([slack, b_enc - b_enc.bfloat16()], dim=1)
    right = torch.stack([longer, torch.ones_like(longer)], dim=1)
    product = Rounded(torch.cat([W_enc, pad(left, (0, MORE - 2))], dim=1), b_enc, None, own)
    rows = torch.cat([centred, pad(right, (0, MORE - 2))], dim=1)
    near = _joined([where(select.keeps(product(part)[1], ...)) for part in chunks(rows, len(W_enc))])
    if is_dense(near, len(W_enc), is_rounded=True):
        return _choose_by(select, exact, centred, own)
    picked = own.dots(near, centred, W_enc) + b_enc[near.indices]
    kept = select.keeps(picked, near.indices)
    return near.subset(kept), picked[kept]


def _choose_by(select: Selection, product: Product, centred: Tensor, own: Kernels) -> tuple[Entries, Tensor]:
    """What is kept, and the pre-activations that decided."""
    parts, picked = [], []
    for rows in chunks(centred, product.n_latents) if select.is_rowwise else [centred]:
        pre_acts, strengths = product(rows)
        if type(select) is TopK:
            parts.append(Entries.of_each_row(own.largest(strengths, select.k)))
        else:
            parts.append(select.entries(strengths))
        picked.append(gather(pre_acts, parts[-1]))
    return _joined(parts), torch.cat(picked)


def _largest_of_rows(centred: Tensor, product: Product, select: TopK, own: Kernels) -> Entries:
    """TopK's choice alone."""
    k, indices, values = min(select.k, product.n_latents), [], []
    for rows in chunks(centred, product.n_latents):
        strengths = product(rows)[1]
        indices.append(own.largest(strengths, k))
        if select.partners.size > 1:
            values.append(strengths.gather(1, indices[-1]))
    if not values:
        return Entries.of_each_row(torch.cat(indices))
    return select.chosen(torch.cat(indices), torch.cat(values))


def _largest_of_batch(centred: Tensor, product: Product, select: BatchTopK, own: Kernels) -> Entries:
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
        for part in chunks(rows, n_latents):
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


def _joined(parts: Sequence[Entries]) -> Entries:
    """Entries of consecutive rows as those of one batch."""
    if len(parts) == 1:
        return parts[0]
    counts = torch.cat([part.offsets.diff() for part in parts])
    return Entries(torch.cat([part.indices for part in parts]), torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def keeps_many(centred: Tensor, product: Product, select: Selection) -> bool:
    """Whether so many entries of the first rows are kept that whole matrices are faster."""
    rows = centred[:PROBE_ROWS]
    return len(select.entries(product(rows)[1]).indices) > WIDE_SHARE * len(rows) * product.n_latents


def chunks(x: Tensor, n_latents: int) -> Sequence[Tensor]:
    return x.split(CHUNK_ROWS if x.device.type == "cpu" else max(CHUNK_ROWS, GPU_CHUNK // n_latents))


def is_dense(entries: Entries, n_latents: int, is_rounded: bool) -> bool:
    share = _dense_share(entries.indices.device, is_rounded)
    return len(entries.indices) > share * (len(entries.offsets) - 1) * n_latents


def _dense_share(device: torch.device, is_rounded: bool) -> float:
    return GPU_DENSE_SHARE if device.type != "cpu" and is_rounded else DENSE_SHARE
