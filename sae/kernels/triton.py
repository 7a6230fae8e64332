"""Kernels for a GPU, in Triton: one program a row, or a latent.

Nothing waits for the device, and no sum of numbers with a fraction uses atomics: steps repeat bit for bit, and can
be captured in a graph. Sums are in float32, or float64 where tensors are.
"""

# pyright: reportCallIssue=false
# a launch takes `num_warps`, which the kernel has not

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from sae.kernels import triton_batch
from sae.kernels.torch import Kernels
from sae.latents import Entries

BLOCK = 256  # columns of a row that a program holds
MAX_ROW = 1 << 14  # columns of a row that it can hold
ENTRIES = 4  # rows that it adds up at once; by one warp, or the sum would be one over warps
DOTS = 8  # entries whose dot products it takes at once
SEGMENT = 256  # entries of a latent that one program adds up; those of frequent latents are shared out
MAX_CANDIDATES = 1 << 12  # entries that one program sorts; a larger top-k is torch's


class Triton(Kernels):
    """All of them."""

    is_recordable = True
    chooses_from_all = True
    adds_rounded = True

    def largest(self, strengths: Tensor, k: int) -> Tensor:
        """The row is cut into strided buckets. Those k whose maxima are largest have the k largest entries."""
        n_rows, n = strengths.shape
        kept = max(2, triton.next_power_of_2(k))
        buckets = kept
        while buckets * buckets < kept * n:  # as many maxima to sort as entries of the buckets that are kept
            buckets *= 2
        depth = triton.next_power_of_2(triton.cdiv(n, buckets))
        types = (torch.float32, torch.bfloat16)
        if strengths.dtype not in types or max(buckets, kept * depth) > MAX_CANDIDATES or n_rows == 0:
            return super().largest(strengths, k)
        out = torch.empty(n_rows, k, dtype=torch.long, device=strengths.device)
        # where both fit, position and strength are sorted as one number of 32 bits
        is_short = strengths.dtype == torch.bfloat16 and n <= 1 << 16
        _largest[(n_rows,)](
            strengths.contiguous(), out, n, k, triton.cdiv(n, buckets), buckets, depth, kept, is_short, num_warps=4
        )
        return out

    def largest_of_batch(self, strengths: Tensor, wanted: int) -> Entries:
        if strengths.dtype not in (torch.float32, torch.bfloat16) or strengths.numel() == 0:
            return super().largest_of_batch(strengths, wanted)
        return triton_batch.largest(strengths.contiguous(), wanted)

    def rounded(self, matrix: Tensor, sizes: Tensor | None) -> Tensor:
        if matrix.dtype != torch.float32 or not matrix.is_contiguous() or matrix.numel() == 0:
            return super().rounded(matrix, sizes)
        n, d = matrix.shape
        out = torch.empty(n, d, dtype=torch.bfloat16, device=matrix.device)
        own = matrix, matrix if sizes is None else sizes.contiguous(), out.view(torch.int16)
        block = min(4 * BLOCK, triton.next_power_of_2(d))
        _round[(n, triton.cdiv(d, block))](*own, d, sizes is not None, block, num_warps=1)
        return out

    def dots(self, entries: Entries, table: Tensor, matrix: Tensor) -> Tensor:
        n, d = len(entries.indices), table.shape[1]
        out = torch.empty(n, dtype=table.dtype, device=table.device)
        if n:
            own = table.contiguous(), matrix.contiguous(), entries.rows, entries.indices.contiguous(), out
            _dots[(triton.cdiv(n, DOTS),)](*own, n, d, _block(d), DOTS, _accumulator(table), num_warps=2)
        return out

    def sum_rows(self, entries: Entries, weights: Tensor, matrix: Tensor) -> Tensor:
        batch, d = len(entries.offsets) - 1, matrix.shape[1]
        out = torch.empty(batch, d, dtype=weights.dtype, device=weights.device)
        if batch:
            own = entries.indices.contiguous(), entries.offsets, weights.contiguous(), matrix.contiguous(), out
            grid = batch, triton.cdiv(d, _block(d))
            _sum_rows[grid](*own, d, _block(d), ENTRIES, _accumulator(weights), num_warps=1)
        return out

    def row_gradients(self, entries: Entries, weights: Tensor, table: Tensor, n_latents: int) -> Tensor:
        """Latents with many entries are added up in parts, cut at multiples of `SEGMENT` of the sorted entries: of
        each cut but two latents can have a part, for such a latent reaches over at least one."""
        (sorted_latents, order), d = entries.by_latent, table.shape[1]
        block, kind = _block(d), _accumulator(weights)
        width = triton.cdiv(d, block)
        bounds = entries.bounds(n_latents)
        own = bounds, entries.rows[order], weights[order], table.contiguous()
        out = torch.empty(n_latents, d, dtype=weights.dtype, device=table.device)
        _add_few[(n_latents, width)](*own, out, d, SEGMENT, block, ENTRIES, kind, num_warps=1)
        cuts = triton.cdiv(len(order), SEGMENT)
        if cuts > 1:
            parts = torch.empty(cuts, 2, d, dtype=weights.dtype, device=table.device)
            sizes = len(order), d, SEGMENT, block
            _add_parts[(cuts, width, 2)](sorted_latents, *own, parts, *sizes, ENTRIES, kind, num_warps=1)
            _join_parts[(cuts, width)](sorted_latents, bounds, parts, out, *sizes, kind, num_warps=1)
        return out

    def latent_sums(self, entries: Entries, weights: Tensor, n_latents: int) -> Tensor:
        _, order = entries.by_latent
        out = torch.empty(n_latents, dtype=weights.dtype, device=weights.device)
        bounds = entries.bounds(n_latents)
        _add_weights[(n_latents,)](bounds, weights[order], out, BLOCK, _accumulator(weights), num_warps=1)
        return out

    def normalise_rows(self, matrix: Tensor) -> None:
        if not matrix.is_contiguous() or matrix.shape[1] > MAX_ROW:
            super().normalise_rows(matrix)
        elif len(matrix):
            width = triton.next_power_of_2(matrix.shape[1])
            _normalise[(len(matrix),)](matrix, matrix.shape[1], width, _accumulator(matrix))
            increment_version(matrix)

    def remove_parallel(self, gradient: Tensor, unit: Tensor) -> None:
        if not (gradient.is_contiguous() and unit.is_contiguous()) or unit.shape[1] > MAX_ROW:
            super().remove_parallel(gradient, unit)
        elif len(unit):
            width = triton.next_power_of_2(unit.shape[1])
            _remove_parallel[(len(unit),)](gradient, unit, unit.shape[1], width, _accumulator(unit))
            increment_version(gradient)


def _block(d: int) -> int:
    return min(BLOCK, triton.next_power_of_2(d))


def _accumulator(like: Tensor) -> tl.dtype:
    return tl.float64 if like.dtype == torch.float64 else tl.float32


@triton.jit
@no_type_check  # Triton compiles what it finds, and tests would wrap what has types
def _largest(
    strengths,
    out,
    n,
    k,
    steps,
    BUCKETS: tl.constexpr,
    DEPTH: tl.constexpr,
    KEPT: tl.constexpr,
    IS_SHORT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    bucket = tl.arange(0, BUCKETS)
    best = tl.zeros([BUCKETS], tl.float32)
    for step in range(steps):
        at = step * BUCKETS + bucket
        best = tl.maximum(best, tl.load(strengths + row * n + at, mask=at < n, other=0).to(tl.float32))
    # beyond the row is nothing that any entry of it comes behind
    maxima = tl.where(bucket < n, _keys(best, bucket, IS_SHORT), -1)
    chosen = _positions(tl.topk(maxima, KEPT), IS_SHORT)
    at = tl.reshape(chosen[:, None] + BUCKETS * tl.arange(0, DEPTH)[None, :], [KEPT * DEPTH])
    found = tl.load(strengths + row * n + at, mask=at < n, other=0).to(tl.float32)
    keys = tl.where(at < n, _keys(tl.maximum(found, 0.0), at, IS_SHORT), -1)
    place = tl.arange(0, KEPT)
    tl.store(out + row * k + place, _positions(tl.topk(keys, KEPT), IS_SHORT), mask=place < k)


@triton.jit
@no_type_check
def _keys(strength, position, IS_SHORT: tl.constexpr):
    """Strength, none negative, and position in one number, in the order of strengths."""
    bits = strength.to(tl.int32, bitcast=True)
    if IS_SHORT:
        return bits | position  # the lower half of what was bfloat16 is empty
    else:  # noqa: RET505 - only one of the two is compiled
        return (bits.to(tl.int64) << 32) | position


@triton.jit
@no_type_check
def _positions(keys, IS_SHORT: tl.constexpr):
    if IS_SHORT:
        return (keys & 0xFFFF).to(tl.int64)
    else:  # noqa: RET505
        return keys & 0xFFFFFFFF


@triton.jit
@no_type_check
def _round(matrix, sizes, out, d, IS_SIZED: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(matrix + row * d + column, mask=column < d, other=0)
    if IS_SIZED:
        values *= tl.load(sizes + row)
    bits = values.to(tl.int32, bitcast=True)
    # to the nearest, to the even one of two; what is no number keeps its upper half, which must not become 0
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = tl.where(values == values, rounded, (bits >> 16) | 0x40)
    tl.store(out + row * d + column, rounded.to(tl.int16), mask=column < d)


@triton.jit(do_not_specialize=["n"])  # it differs from step to step: one compilation for all
@no_type_check
def _dots(table, matrix, rows, indices, out, n, d, BLOCK: tl.constexpr, ENTRIES: tl.constexpr, KIND: tl.constexpr):
    """Entries of one row read it once: most are, but where rows are cut into groups of a few entries."""
    start = tl.program_id(0).to(tl.int64) * ENTRIES
    entry = start + tl.arange(0, ENTRIES)
    is_own = entry < n
    latent, row = tl.load(indices + entry, mask=is_own, other=0), tl.load(rows + entry, mask=is_own, other=0)
    first, last = tl.load(rows + start), tl.load(rows + tl.minimum(start + ENTRIES, n) - 1)
    products = tl.zeros([ENTRIES, BLOCK], KIND)
    for left in range(0, d, BLOCK):
        column = left + tl.arange(0, BLOCK)
        is_in = is_own[:, None] & (column < d)[None, :]
        w = tl.load(matrix + latent[:, None] * d + column[None, :], mask=is_in, other=0).to(KIND)
        if first == last:
            x = tl.load(table + first * d + column, mask=column < d, other=0).to(KIND)
            products += x[None, :] * w
        else:
            products += tl.load(table + row[:, None] * d + column[None, :], mask=is_in, other=0).to(KIND) * w
    tl.store(out + entry, tl.sum(products, axis=1), mask=is_own)


@triton.jit
@no_type_check
def _weighted_rows(weights, rows, first, last, table, column, d, ENTRIES: tl.constexpr, KIND: tl.constexpr):
    """The sum of some entries' rows of a table, each as often as it weighs."""
    total = tl.zeros(column.shape, KIND)
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        is_own = entry < last
        row = tl.load(rows + entry, mask=is_own, other=0)
        weight = tl.load(weights + entry, mask=is_own, other=0).to(KIND)
        is_in = is_own[:, None] & (column < d)[None, :]
        values = tl.load(table + row[:, None] * d + column[None, :], mask=is_in, other=0).to(KIND)
        total += tl.sum(weight[:, None] * values, axis=0)
    return total


@triton.jit
@no_type_check
def _sum_rows(
    indices, offsets, weights, matrix, out, d, BLOCK: tl.constexpr, ENTRIES: tl.constexpr, KIND: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first, last = tl.load(offsets + row), tl.load(offsets + row + 1)
    total = _weighted_rows(weights, indices, first, last, matrix, column, d, ENTRIES, KIND)
    tl.store(out + row * d + column, total, mask=column < d)


@triton.jit
@no_type_check
def _add_few(
    bounds,
    rows,
    weights,
    table,
    out,
    d,
    SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    ENTRIES: tl.constexpr,
    KIND: tl.constexpr,
):
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first, last = tl.load(bounds + latent), tl.load(bounds + latent + 1)
    if last - first <= SEGMENT:
        total = _weighted_rows(weights, rows, first, last, table, column, d, ENTRIES, KIND)
        tl.store(out + latent * d + column, total, mask=column < d)


@triton.jit(do_not_specialize=["n"])
@no_type_check
def _add_parts(
    latents,
    bounds,
    rows,
    weights,
    table,
    parts,
    n,
    d,
    SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    ENTRIES: tl.constexpr,
    KIND: tl.constexpr,
):
    """Of the latent that has a cut's first entry (side 0), and of the one that has its last, if it is another."""
    cut, side = tl.program_id(0).to(tl.int64), tl.program_id(2)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin = cut * SEGMENT
    end = tl.minimum(begin + SEGMENT, n)
    latent = tl.load(latents + (begin if side == 0 else end - 1)).to(tl.int64)
    first, last = tl.load(bounds + latent), tl.load(bounds + latent + 1)
    if last - first > SEGMENT and (side == 0 or first > begin):
        first, last = tl.maximum(first, begin), tl.minimum(last, end)
        total = _weighted_rows(weights, rows, first, last, table, column, d, ENTRIES, KIND)
        tl.store(parts + (2 * cut + side) * d + column, total, mask=column < d)


@triton.jit(do_not_specialize=["n"])
@no_type_check
def _join_parts(latents, bounds, parts, out, n, d, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr):
    """Of the latent whose entries begin in a cut and reach beyond it."""
    cut = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin = cut * SEGMENT
    latent = tl.load(latents + tl.minimum(begin + SEGMENT, n) - 1).to(tl.int64)
    first, last = tl.load(bounds + latent), tl.load(bounds + latent + 1)
    if last - first > SEGMENT and first >= begin:
        side = 1 if first > begin else 0
        total = tl.load(parts + (2 * cut + side) * d + column, mask=column < d, other=0).to(KIND)
        for other in range(cut + 1, (last - 1) // SEGMENT + 1):
            total += tl.load(parts + 2 * other * d + column, mask=column < d, other=0)
        tl.store(out + latent * d + column, total, mask=column < d)


@triton.jit
@no_type_check
def _add_weights(bounds, weights, out, BLOCK: tl.constexpr, KIND: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    first, last = tl.load(bounds + latent), tl.load(bounds + latent + 1)
    total = tl.zeros([BLOCK], KIND)
    for start in range(first, last, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        total += tl.load(weights + entry, mask=entry < last, other=0).to(KIND)
    tl.store(out + latent, tl.sum(total))


@triton.jit
@no_type_check
def _normalise(matrix, d, WIDTH: tl.constexpr, KIND: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    at, is_in = matrix + row * d + column, column < d
    values = tl.load(at, mask=is_in, other=0).to(KIND)
    norm = tl.sqrt(tl.sum(values * values))
    tl.store(at, values / tl.where(norm > 0, norm, 1), mask=is_in)


@triton.jit
@no_type_check
def _remove_parallel(gradient, unit, d, WIDTH: tl.constexpr, KIND: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    at, is_in = row * d + column, column < d
    g = tl.load(gradient + at, mask=is_in, other=0).to(KIND)
    u = tl.load(unit + at, mask=is_in, other=0).to(KIND)
    tl.store(gradient + at, g - tl.sum(g * u) * u, mask=is_in)
