"""The one sparse type between a network and its meaning: which latents are active, and how much."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.team import Team

CACHED, GPU_CACHED = 1 << 19, 1 << 27  # entries of a matrix that are worked on at a time


@dataclass(frozen=True)
class Entries:
    """Positions in a batch's pre-activations in CSR form: row b owns entries `offsets[b]:offsets[b + 1]`."""

    indices: Int[Tensor, " nnz"]
    """The latent of each."""
    offsets: Int[Tensor, " bounds"]
    """`batch + 1` bounds, from 0 to nnz."""

    @classmethod
    def of_each_row(cls, indices: Int[Tensor, "rows m"]) -> "Entries":
        """As many entries in every row."""
        return cls(indices.flatten(), torch.arange(0, indices.numel() + 1, indices.shape[1], device=indices.device))

    @classmethod
    def at(cls, places: Int[Tensor, " nnz"], n_rows: int, n_latents: int) -> "Entries":
        """Those at some places of the matrix of all, see `flat`."""
        places, starts = places.sort().values, n_latents * torch.arange(n_rows + 1, device=places.device)
        return cls(places % n_latents, torch.searchsorted(places, starts))

    @cached_property
    def rows(self) -> Int[Tensor, " nnz"]:
        """The row that each entry belongs to."""
        rows = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return torch.repeat_interleave(rows, self.offsets.diff(), output_size=len(self.indices))

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " nnz"], Int[Tensor, " nnz"]]:
        """Latents in ascending order, and the entry of each; those of one latent by row."""
        return self.indices.int().sort(stable=True)  # type: ignore[return-value] # half as many bytes to sort

    def cut(self, offsets: Int[Tensor, " more_bounds"]) -> "Entries":
        """The same entries in other rows; what is known of their order is kept."""
        result = Entries(self.indices, offsets)
        result.__dict__["by_latent"] = self.by_latent
        return result

    def subset(self, kept: Bool[Tensor, " nnz"]) -> "Entries":
        """Only those that are kept."""
        running = torch.cat([kept.new_zeros(1, dtype=torch.long), kept.cumsum(0)])
        return Entries(self.indices[kept], running[self.offsets])

    def bounds(self, n_latents: int) -> Int[Tensor, " n_latents_and_1"]:
        """Where each latent's entries begin and end in `by_latent`."""
        numbers = torch.arange(n_latents + 1, dtype=torch.int32, device=self.indices.device)
        return torch.searchsorted(self.by_latent[0], numbers)

    def flat(self, n_latents: int) -> Int[Tensor, " nnz"]:
        """Where each entry lies in the matrix of all."""
        return self.rows * n_latents + self.indices

    def dense(self, values: Float[Tensor, " nnz"], n_latents: int) -> Float[Tensor, "batch n_latents"]:
        """The matrix with these values at the entries, those of one place added up, and zeros; differentiable."""
        batch = len(self.offsets) - 1
        return values.new_zeros(batch * n_latents).index_add_(0, self.flat(n_latents), values).view(batch, n_latents)


@dataclass(frozen=True)
class Latents:
    """Active latents of a batch in CSR form, as in `Entries`.

    An entry whose value is 0 has been selected but has not fired.
    """

    values: Float[Tensor, " nnz"]
    indices: Int[Tensor, " nnz"]
    offsets: Int[Tensor, " bounds"]
    pre_acts: Float[Tensor, " nnz"]
    """Pre-activations of the same entries."""
    n_latents: int

    @classmethod
    def of(cls, values: Tensor, entries: Entries, pre_acts: Tensor, n_latents: int) -> "Latents":
        """Latents at these entries; what is known of their order is kept."""
        result = cls(values, entries.indices, entries.offsets, pre_acts, n_latents)
        result.__dict__["entries"] = entries
        return result

    @cached_property
    def entries(self) -> Entries:
        return Entries(self.indices, self.offsets)

    @property
    def batch(self) -> int:
        return len(self.offsets) - 1

    def rows(self) -> Int[Tensor, " nnz"]:
        """The row that each entry belongs to."""
        return self.entries.rows

    def dense(self) -> Float[Tensor, "batch n_latents"]:
        """The same latents with their zeros."""
        return self.entries.dense(self.values, self.n_latents)

    def subset(self, kept: Bool[Tensor, " nnz"]) -> "Latents":
        """Only the entries where `kept`; differentiable."""
        return Latents.of(self.values[kept], self.entries.subset(kept), self.pre_acts[kept], self.n_latents)

    def fired(self) -> "Latents":
        """Only the entries that have fired (value > 0), outside autograd."""
        values, pre_acts = self.values.detach(), self.pre_acts.detach()
        return Latents.of(values, self.entries, pre_acts, self.n_latents).subset(values > 0)

    def pick(self, of_latents: Float[Tensor, " n_latents"]) -> Tensor:
        """What each entry's latent has, in the form of `values`; differentiable."""
        return of_latents[self.indices]

    def of_all(self, partners: Team) -> "Latents":
        """With those of the partners, among whom the latents are divided and who have the same rows; outside
        autograd."""
        if partners.size == 1:
            return self
        first, n = partners.rank * self.n_latents, partners.size * self.n_latents
        parts = (self.rows(), self.indices + first, self.values, self.pre_acts)
        rows, indices, values, pre_acts = (partners.joined(part) for part in parts)
        order = (rows * n + indices).argsort()
        offsets = torch.cat([rows.new_zeros(1), torch.bincount(rows, minlength=self.batch).cumsum(0)])
        return Latents(values[order], indices[order], offsets, pre_acts[order], n)

    def row_sums(self, per_entry: Tensor) -> Float[Tensor, " batch"]:
        """The sum over each row's entries; differentiable."""
        return per_entry.new_zeros(self.batch).index_add(0, self.rows(), per_entry)

    def weighted_sum(self, of_latents: Float[Tensor, " n_latents"]) -> Float[Tensor, ""]:
        """The sum of all values, each times what its latent has; differentiable."""
        return (self.values * self.pick(of_latents)).sum()

    def with_values(self, values: Tensor) -> "Latents":
        """The same entries with other values."""
        return Latents.of(values, self.entries, self.pre_acts, self.n_latents)

    def firing_counts(self) -> Int[Tensor, " n_latents"]:
        """Rows in which each latent has fired."""
        fired = (self.values.detach() > 0).long()
        return fired.new_zeros(self.n_latents).index_add_(0, self.indices, fired)


class WideLatents(Latents):
    """All pre-activations of a batch as entries, in two matrices: the form of latents in training while many of them
    fire, where lists of entries would cost more than zeros do. Lists are made when they are asked for. Under autocast
    values are bfloat16, and so are pre-activations unless the selection is exact."""

    values: Float[Tensor, "batch n_latents"]
    pre_acts: Float[Tensor, "batch n_latents"]

    def __init__(self, values: Tensor, pre_acts: Tensor) -> None:
        for name, value in (("values", values), ("pre_acts", pre_acts), ("n_latents", values.shape[1])):
            object.__setattr__(self, name, value)

    @property
    def batch(self) -> int:
        return len(self.values)

    def listed(self) -> Latents:
        """The same as a list of entries."""
        batch, n = self.values.shape
        indices = torch.arange(n, device=self.values.device).repeat(batch)
        offsets = torch.arange(0, batch * n + 1, n, device=self.values.device)
        return Latents(self.values.flatten(), indices, offsets, self.pre_acts.flatten(), n)

    @property
    def indices(self) -> Int[Tensor, " nnz"]:  # type: ignore[override]
        return self.listed().indices

    @property
    def offsets(self) -> Int[Tensor, " bounds"]:  # type: ignore[override]
        return self.listed().offsets

    def dense(self) -> Float[Tensor, "batch n_latents"]:
        return self.values

    def subset(self, kept: Bool[Tensor, " nnz"]) -> Latents:
        return self.listed().subset(kept)

    def fired(self) -> Latents:
        return self.listed().fired()

    def pick(self, of_latents: Float[Tensor, " n_latents"]) -> Tensor:
        return of_latents.expand_as(self.values)

    def row_sums(self, per_entry: Tensor) -> Float[Tensor, " batch"]:
        return per_entry.sum(dim=1)

    def weighted_sum(self, of_latents: Float[Tensor, " n_latents"]) -> Float[Tensor, ""]:
        return _WeightedSum.apply(self.values, of_latents)  # type: ignore[return-value]

    def with_values(self, values: Tensor) -> Latents:
        return WideLatents(values, self.pre_acts)

    def firing_counts(self) -> Int[Tensor, " n_latents"]:
        counts = torch.zeros(self.n_latents, dtype=torch.long, device=self.values.device)
        for part in pieces(self.values):
            counts += column_sums(above(self.values.detach()[part]), torch.float32).long()
        return counts


class _WeightedSum(torch.autograd.Function):
    """`sum over rows b and latents i of values[b, i] * of_latents[i]`; the gradient of the matrix takes no memory."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, of_latents: Tensor) -> Tensor:
        sums = column_sums(values, of_latents.dtype)
        ctx.save_for_backward(of_latents, sums)
        ctx.like = values.shape, values.dtype
        return (sums * of_latents).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        (of_latents, sums), (shape, dtype) = ctx.saved_tensors, ctx.like
        return (grad * of_latents).to(dtype).expand(shape), grad * sums


def column_sums(matrix: Float[Tensor, "batch n"], dtype: torch.dtype) -> Float[Tensor, " n"]:
    """Sums over the rows, in the precision of `dtype`."""
    if matrix.device.type != "cpu":
        return matrix.sum(dim=0, dtype=dtype)
    total = torch.zeros(matrix.shape[1], dtype=dtype, device=matrix.device)
    for part in pieces(matrix):
        total += matrix[part].to(dtype).sum(dim=0)
    return total


def above(values: Float[Tensor, "*kept"], level: Tensor | float = 0.0) -> Float[Tensor, "*kept"]:
    """1 where a value is above the level, else 0. As a factor: a CPU takes ten times as long to choose by booleans."""
    return torch.gt(values, level, out=torch.empty_like(values))


def pieces(values: Float[Tensor, "*kept"]) -> Sequence[slice | EllipsisType]:
    """Entries to work on at a time: of a matrix so many rows that what is made of them stays in cache, and needs no
    new memory; a list is one piece."""
    if values.ndim == 1:
        return [...]
    rows = max(1, (CACHED if values.device.type == "cpu" else GPU_CACHED) // values.shape[1])
    return [slice(start, start + rows) for start in range(0, len(values), rows)]
