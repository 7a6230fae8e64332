"""Kernels compiled by numba, if it is installed: for the CPU, where torch's own operation is far from the floor.

Equal to those of `sae.kernels.torch`, entry for entry, but for which of equal strengths is taken at the edge.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from sae.kernels.torch import Kernels
from sae.latents import Entries

AS_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
LANES = 64  # entries that are compared at once
PARTS = 4  # of the work, for each thread: rows and latents differ in how much they have
DEPTH = 64  # entries of which a bucket holds the largest, where the row is long enough


class Numba(Kernels):
    """Plain torch, but for what reads each row once here and more often there."""

    def largest(self, strengths: Tensor, k: int) -> Tensor:
        """The row is cut into strided buckets; the k-th largest of their maxima is a lower bound of the k-th
        entry, and only buckets whose maximum reaches it are looked at again."""
        if strengths.dtype not in AS_INTEGERS or k > strengths.shape[1]:
            return super().largest(strengths, k)
        # as integers they keep their order among positive numbers; negative ones are below, what is no number above
        raw = strengths.contiguous().view(AS_INTEGERS[strengths.dtype]).numpy()
        out = torch.empty(len(raw), k, dtype=torch.long)
        depth = max(1, min(DEPTH, raw.shape[1] // (LANES * max(1, -(-2 * k // LANES)))))
        _spread(_largest, len(raw), raw, out.numpy(), k, depth)
        return out

    def keep_largest(self, strengths: Tensor, k: int) -> None:
        if strengths.dtype not in AS_INTEGERS or not strengths.is_contiguous() or k > strengths.shape[1]:
            super().keep_largest(strengths, k)
        else:
            _spread(_keep_largest, len(strengths), strengths.view(AS_INTEGERS[strengths.dtype]).numpy(), k)
            increment_version(strengths)

    def rounded(self, matrix: Tensor, sizes: Tensor | None) -> Tensor:
        if sizes is None or not _are_plain(matrix, sizes):
            return super().rounded(matrix, sizes)
        out = torch.from_numpy(np.empty(matrix.shape, dtype=np.int16))
        _spread(_rounded, len(matrix), *_arrays(matrix, sizes, out))
        return out.view(torch.bfloat16)

    def dots(self, entries: Entries, table: Tensor, matrix: Tensor) -> Tensor:
        if not _are_plain(table, matrix):
            return super().dots(entries, table, matrix)
        out = torch.empty(len(entries.indices), dtype=torch.float32)
        _spread(_dots, len(table), *_arrays(entries.indices, entries.offsets, table, matrix, out))
        return out

    def row_gradients(self, entries: Entries, weights: Tensor, table: Tensor, n_latents: int) -> Tensor:
        if not _are_plain(weights, table):
            return super().row_gradients(entries, weights, table, n_latents)
        bounds, order = entries.bounds(n_latents), entries.by_latent[1]
        # numpy's memory comes in huge pages, and needs no thousands of faults
        out = torch.from_numpy(np.empty((n_latents, table.shape[1]), dtype=np.float32))
        _spread(_row_gradients, n_latents, *_arrays(bounds, entries.rows[order], weights[order], table, out))
        return out

    def normalise_rows(self, matrix: Tensor) -> None:
        if not _are_plain(matrix):
            super().normalise_rows(matrix)
        else:
            _spread(_normalise_rows, len(matrix), *_arrays(matrix))
            increment_version(matrix)

    def remove_parallel(self, gradient: Tensor, unit: Tensor) -> None:
        if not _are_plain(gradient, unit):
            super().remove_parallel(gradient, unit)
        else:
            _spread(_remove_parallel, len(unit), *_arrays(gradient, unit))
            increment_version(gradient)


def _spread(kernel: Callable[..., None], n: int, *arguments: Any) -> None:
    """`kernel(first, last, ...)` over all of n, by as many threads as torch has.

    They sleep when there is nothing to do. OpenMP's, which numba would take, wait by spinning, and so do torch's, on
    the same cores.
    """
    threads = torch.get_num_threads()
    if threads == 1 or n == 1:
        kernel(0, n, *arguments)
        return
    size = -(-n // (PARTS * threads)) or 1
    parts = iter([(at, min(at + size, n)) for at in range(0, n, size)])

    def work() -> None:
        for first, last in parts:
            kernel(first, last, *arguments)

    others = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "sae-kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def _are_plain(*matrices: Tensor) -> bool:
    return all(matrix.dtype == torch.float32 and matrix.is_contiguous() for matrix in matrices)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


@numba.njit(nogil=True, cache=True, boundscheck=False, fastmath={"nsz"})
@no_type_check  # numba compiles what it finds, and tests would wrap what has types
def _largest(first: int, last: int, strengths: np.ndarray, out: np.ndarray, k: int, depth: int) -> None:
    n = strengths.shape[1]
    block = LANES * depth
    n_blocks = n // block
    n_buckets = n_blocks * LANES
    maxima, values = np.empty(n_buckets, strengths.dtype), np.empty(n, strengths.dtype)
    found = np.arange(n)
    for b in range(first, last):
        row = strengths[b]
        if n_buckets < k:
            _keep(row, found, n, k, values, out[b])
            continue
        for i in range(n_blocks):
            best = maxima[i * LANES : (i + 1) * LANES]
            for j in range(LANES):
                best[j] = row[i * block + j]
            for t in range(1, depth):
                part = row[i * block + t * LANES : i * block + (t + 1) * LANES]
                for j in range(LANES):
                    best[j] = max(best[j], part[j])
        bound = _kth_largest(maxima, n_buckets, k)
        count = 0
        for i in range(n_buckets):
            if maxima[i] >= bound:
                start = (i // LANES) * block + i % LANES
                for t in range(depth):
                    if row[start + t * LANES] >= bound:
                        found[count] = start + t * LANES
                        count += 1
        for i in range(n_blocks * block, n):
            if row[i] >= bound:
                found[count] = i
                count += 1
        _keep(row, found, count, k, values, out[b])


@numba.njit(nogil=True, cache=True, boundscheck=False)
@no_type_check
def _keep(row: np.ndarray, found: np.ndarray, count: int, k: int, values: np.ndarray, out: np.ndarray) -> None:
    """Write the k largest of the first `count` found; of equal ones at the edge, those that were found first."""
    for e in range(count):
        values[e] = row[found[e]]
    edge = _kth_largest(values, count, k)
    kept = 0
    for e in range(count):
        if values[e] > edge:
            out[kept] = found[e]
            kept += 1
    for e in range(count):
        if kept == k:
            break
        if values[e] == edge:
            out[kept] = found[e]
            kept += 1


@numba.njit(nogil=True, cache=True, boundscheck=False)
@no_type_check
def _kth_largest(values: np.ndarray, n: int, k: int) -> int:
    """Of the first n integers, by halving: to count those above a level is fast, to put them in order is not."""
    low = high = np.int64(values[0])
    for i in range(1, n):
        low, high = min(low, np.int64(values[i])), max(high, np.int64(values[i]))
    while low < high:
        level = low + (high - low + 1) // 2
        threshold = values.dtype.type(level)  # of their own width, which as many lanes hold as there can be
        count = np.int32(0)
        for i in range(n):
            count += np.int32(values[i] >= threshold)
        if count >= k:
            low = level
        else:
            high = level - 1
    return values.dtype.type(low)


@numba.njit(nogil=True, cache=True, boundscheck=False)
@no_type_check
def _keep_largest(first: int, last: int, strengths: np.ndarray, k: int) -> None:
    n = strengths.shape[1]
    for b in range(first, last):
        row = strengths[b]
        edge = max(_kth_largest(row, n, k), 1)
        for j in range(n):
            row[j] = row[j] if row[j] >= edge else 0


SUMS = {"nsz", "reassoc", "contract"}  # a row's sum may be one of many lanes


@numba.njit(nogil=True, cache=True, boundscheck=False)
@no_type_check
def _rounded(first: int, last: int, matrix: np.ndarray, sizes: np.ndarray, out: np.ndarray) -> None:
    """bfloat16 is the upper half of a float32, rounded to the nearest, or to the even one of two."""
    d = matrix.shape[1]
    row = np.empty(d, np.float32)
    bits = row.view(np.int32)
    for i in range(first, last):
        for j in range(d):
            row[j] = matrix[i, j] * sizes[i]
        for j in range(d):
            rounded = (bits[j] + np.int32(0x7FFF) + ((bits[j] >> np.int32(16)) & np.int32(1))) >> np.int32(16)
            out[i, j] = rounded if row[j] == row[j] else np.int32(0x7FC0)


@numba.njit(nogil=True, cache=True, boundscheck=False, fastmath=SUMS)
@no_type_check
def _dots(
    first: int,
    last: int,
    indices: np.ndarray,
    offsets: np.ndarray,
    table: np.ndarray,
    matrix: np.ndarray,
    out: np.ndarray,
) -> None:
    for row in range(first, last):
        x = table[row]
        for entry in range(offsets[row], offsets[row + 1]):
            out[entry] = _dot(x, matrix[indices[entry]])


@numba.njit(nogil=True, cache=True, boundscheck=False, fastmath=SUMS)
@no_type_check
def _row_gradients(
    first: int,
    last: int,
    bounds: np.ndarray,
    rows: np.ndarray,
    weights: np.ndarray,
    table: np.ndarray,
    out: np.ndarray,
) -> None:
    for latent in range(first, last):
        total = out[latent]
        for j in range(len(total)):
            total[j] = 0
        for entry in range(bounds[latent], bounds[latent + 1]):
            x, weight = table[rows[entry]], weights[entry]
            for j in range(len(total)):
                total[j] += weight * x[j]


@numba.njit(nogil=True, cache=True, boundscheck=False, fastmath=SUMS)
@no_type_check
def _normalise_rows(first: int, last: int, matrix: np.ndarray) -> None:
    for i in range(first, last):
        row = matrix[i]
        norm = np.sqrt(_dot(row, row))
        if norm > 0:
            for j in range(len(row)):
                row[j] = row[j] / norm


@numba.njit(nogil=True, cache=True, boundscheck=False, fastmath=SUMS)
@no_type_check
def _remove_parallel(first: int, last: int, gradient: np.ndarray, unit: np.ndarray) -> None:
    for i in range(first, last):
        g, u = gradient[i], unit[i]
        along = _dot(g, u)
        for j in range(len(g)):
            g[j] -= along * u[j]


@numba.njit(nogil=True, cache=True, boundscheck=False, fastmath=SUMS)
@no_type_check
def _dot(a: np.ndarray, b: np.ndarray) -> float:
    total = np.float32(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total
