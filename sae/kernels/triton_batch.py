"""BatchTopK's choice on a GPU: how many entries there are of each size is counted, which says who is kept.

Bits of positive numbers are in the order of the numbers. Counts are integers, which may be added up in any order.
Nothing waits for the device, and no shape depends on a value.
"""

# pyright: reportCallIssue=false
# a launch takes `num_warps`, which the kernel has not

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.latents import Entries

PART = 256  # entries of a row: where a row keeps a few dozen, most parts keep none, and few keep two
PARTS = 8  # of which one program looks at together
COPIES = 16  # of the counts, so that fewer programs add to one
BINS = 1 << 15  # counts of entries, by the upper bits of what is positive
LOWER = 1 << 16  # the same by the lower bits that float32 has


def largest(strengths: Tensor, wanted: int) -> Entries:
    """See `Kernels.largest_of_batch`; a matrix of float32 or bfloat16, contiguous and not empty.

    Only what is as large as the `wanted` largest of the parts' peaks can be kept, so few entries are counted, and of
    most parts of a row nothing but the peak is read.
    """
    (n_rows, n), device = strengths.shape, strengths.device
    shift = 16 if strengths.dtype == torch.float32 else 0
    width = triton.cdiv(n, PART)
    grid = n_rows, triton.cdiv(width, PARTS)
    peaks = torch.empty(n_rows, width, dtype=torch.int32, device=device)
    own = strengths, peaks
    counts = torch.zeros(COPIES, BINS, dtype=torch.int32, device=device)
    _peaks[grid](*own, counts, n, width, shift, PART, PARTS, COPIES, BINS, num_warps=4)
    floor, _ = _edge(counts.sum(0), wanted)
    counts = torch.zeros_like(counts)
    _count[grid](*own, counts, floor, n, width, shift, PART, PARTS, COPIES, BINS, num_warps=4)
    edge, above = _edge(counts.sum(0), wanted)
    if shift:
        counts = torch.zeros(LOWER, dtype=torch.int32, device=device)
        _count_lower[grid](*own, counts, edge, n, width, shift, PART, PARTS, num_warps=4)
        lower, more = _edge(counts, wanted - above)
        edge, above = (edge << shift) | lower, above + more
    larger, level = torch.empty(2, n_rows * width, dtype=torch.int32, device=device)
    _count_parts[grid](*own, edge, larger, level, n, width, PART, PARTS, num_warps=4)
    # of those at the edge, the first of all parts
    level = torch.minimum(level, (wanted - above - level.cumsum(0) + level).clamp_min(0))
    places = torch.cat([level.new_zeros(1), (larger + level).cumsum(0)])
    indices = torch.empty(min(wanted, n_rows * n), dtype=torch.long, device=device)
    _write_parts[grid](strengths, edge, level, places, indices, n, width, PART, PARTS, num_warps=4)
    return Entries(indices, places[::width].contiguous())


def _edge(counts: Tensor, wanted: Tensor | int) -> tuple[Tensor, Tensor]:
    """The largest bin from which on there are at least as many as are wanted, or 0, and how many are above it."""
    upward = counts.flip(0).cumsum(0).flip(0)
    edge = (upward[1:] >= wanted).sum(0, keepdim=True)
    return edge, torch.cat([upward, upward.new_zeros(1)]).gather(0, edge + 1)


@triton.jit
@no_type_check
def _bits(strength):
    """The bits of what is positive, in its order; 0 of all else."""
    if strength.dtype == tl.bfloat16:
        bits = strength.to(tl.int16, bitcast=True).to(tl.int32)
    else:
        bits = strength.to(tl.int32, bitcast=True)
    return tl.maximum(bits, 0)


@triton.jit
@no_type_check
def _parts(n, width, PART: tl.constexpr, PARTS: tl.constexpr):
    """A program's parts of its row: where each is among all, which of them are there, and where their entries are."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1) * PARTS + tl.arange(0, PARTS)
    column = part[:, None] * PART + tl.arange(0, PART)[None, :]
    return row * width + part, part < width, row * n, column, column < n


@triton.jit
@no_type_check
def _peaks(
    strengths,
    peaks,
    counts,
    n,
    width,
    SHIFT: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    COPIES: tl.constexpr,
    BINS: tl.constexpr,
):
    place, is_part, start, column, is_in = _parts(n, width, PART, PARTS)
    best = tl.max(_bits(tl.load(strengths + start + column, mask=is_in, other=0)), axis=1)
    tl.store(peaks + place, best, mask=is_part)
    own = counts + (tl.program_id(0) % COPIES) * BINS + (best >> SHIFT)
    tl.atomic_add(own, tl.full([PARTS], 1, tl.int32), mask=best > 0, sem="relaxed")


@triton.jit
@no_type_check
def _count(
    strengths,
    peaks,
    counts,
    floor,
    n,
    width,
    SHIFT: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    COPIES: tl.constexpr,
    BINS: tl.constexpr,
):
    place, is_part, start, column, is_in = _parts(n, width, PART, PARTS)
    least = tl.load(floor)
    is_read = (tl.load(peaks + place, mask=is_part, other=0) >> SHIFT) >= least
    bits = _bits(tl.load(strengths + start + column, mask=is_in & is_read[:, None], other=0))
    is_counted = (bits > 0) & ((bits >> SHIFT) >= least)  # nobody asks how many are not positive
    own = counts + (tl.program_id(0) % COPIES) * BINS + (bits >> SHIFT)
    tl.atomic_add(own, tl.full([PARTS, PART], 1, tl.int32), mask=is_counted, sem="relaxed")


@triton.jit
@no_type_check
def _count_lower(
    strengths, peaks, counts, edge, n, width, SHIFT: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr
):
    """By the lower bits, those whose upper ones are at the edge."""
    place, is_part, start, column, is_in = _parts(n, width, PART, PARTS)
    upper = tl.load(edge)
    is_read = (tl.load(peaks + place, mask=is_part, other=0) >> SHIFT) >= upper
    bits = _bits(tl.load(strengths + start + column, mask=is_in & is_read[:, None], other=0))
    is_counted = (bits > 0) & ((bits >> SHIFT) == upper)
    own = counts + (bits & ((1 << SHIFT) - 1))
    tl.atomic_add(own, tl.full([PARTS, PART], 1, tl.int32), mask=is_counted, sem="relaxed")


@triton.jit
@no_type_check
def _count_parts(strengths, peaks, edge, larger, level, n, width, PART: tl.constexpr, PARTS: tl.constexpr):
    """Of each part, how many entries are larger than the edge, and how many are at it."""
    place, is_part, start, column, is_in = _parts(n, width, PART, PARTS)
    limit = tl.load(edge)
    is_read = is_in & (tl.load(peaks + place, mask=is_part, other=0) >= limit)[:, None]
    bits = _bits(tl.load(strengths + start + column, mask=is_read, other=0))
    tl.store(larger + place, tl.sum((bits > limit).to(tl.int32), axis=1), mask=is_part)
    tl.store(level + place, tl.sum(((bits == limit) & is_read).to(tl.int32), axis=1), mask=is_part)


@triton.jit
@no_type_check
def _write_parts(strengths, edge, level, places, indices, n, width, PART: tl.constexpr, PARTS: tl.constexpr):
    """What is larger than the edge, and the first of those at it, as many as the part may have, by latent."""
    place, is_part, start, column, is_in = _parts(n, width, PART, PARTS)
    first, end = tl.load(places + place, mask=is_part, other=0), tl.load(places + place + 1, mask=is_part, other=0)
    limit, is_read = tl.load(edge), is_in & (first < end)[:, None]
    bits = _bits(tl.load(strengths + start + column, mask=is_read, other=0))
    is_level = ((bits == limit) & is_read).to(tl.int32)
    is_early = tl.cumsum(is_level, axis=1) <= tl.load(level + place, mask=is_part, other=0)[:, None]
    is_kept = (bits > limit) | ((is_level > 0) & is_early)
    own = indices + first[:, None] + tl.cumsum(is_kept.to(tl.int32), axis=1) - 1
    tl.store(own, column.to(tl.int64), mask=is_kept)
