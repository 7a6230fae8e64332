"""Plain-torch kernels: always there, and the reference for any other.

The gradient of a matrix's rows is a sum over the entries of each latent: with the entries sorted by
latent it is an `embedding_bag` over the *token* table, which is small enough to stay in cache, needs
no atomics and always adds in the same order, so that runs repeat bit for bit.
"""

from typing import ClassVar

import torch
from jaxtyping import BFloat16, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.latents import Entries


class Kernels:
    """What touches active latents only; a backend overrides what it does better. None of it is in autograd."""

    is_recordable: ClassVar[bool] = False
    """Whether nothing waits for a GPU, so that it can record a step."""
    chooses_from_all: ClassVar[bool] = False
    """Whether `largest_of_batch` is the faster way to BatchTopK's choice."""
    adds_rounded: ClassVar[bool] = False
    """Whether `row_gradients` takes a table in bfloat16, half the bytes; sums are of the weights' type."""

    def largest(self, strengths: Float[Tensor, "rows n"], k: int) -> Int[Tensor, "rows k"]:
        """The k largest of each row, in no order; of entries that are not positive any may be taken."""
        return strengths.topk(k, dim=1, sorted=False).indices

    def largest_of_batch(self, strengths: Float[Tensor, "rows n"], wanted: int) -> Entries:
        """So many of the largest positive ones of the whole matrix; of equal ones at the edge those that come first.
        Where too few are positive, others that are not come with them. What is no number may be taken or not."""
        return Entries.at(strengths.flatten().sort(descending=True, stable=True).indices[:wanted], *strengths.shape)

    def keep_largest(self, strengths: Float[Tensor, "rows n"], k: int) -> None:
        """Set to 0, in place, what is not positive or less than the k-th largest of its row."""
        if k < strengths.shape[1]:
            edge = strengths.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
            strengths.mul_(torch.ge(strengths, edge, out=torch.empty_like(strengths)))
        strengths.relu_()

    def rounded(self, matrix: Float[Tensor, "n d"], sizes: Float[Tensor, " n"] | None) -> BFloat16[Tensor, "n d"]:
        """The matrix, its rows times their sizes if there are any, in bfloat16."""
        return (matrix if sizes is None else matrix * sizes[:, None]).bfloat16()

    def dots(
        self, entries: Entries, table: Float[Tensor, "batch d"], matrix: Float[Tensor, "n_latents d"]
    ) -> Float[Tensor, " nnz"]:
        """For each entry, the dot product of its row of `table` with its latent's row of `matrix`."""
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            table, matrix, entries.indices.contiguous(), entries.offsets[:-1], entries.rows, 0, -1
        )

    def sum_rows(
        self, entries: Entries, weights: Float[Tensor, " nnz"], matrix: Float[Tensor, "n_latents d"]
    ) -> Float[Tensor, "batch d"]:
        """For each row of the batch, the weighted sum of its latents' rows of `matrix`."""
        return embedding_bag(entries.indices, matrix, entries.offsets[:-1], mode="sum", per_sample_weights=weights)

    def row_gradients(
        self, entries: Entries, weights: Float[Tensor, " nnz"], table: Float[Tensor, "batch d"], n_latents: int
    ) -> Float[Tensor, "n_latents d"]:
        """For each latent, the weighted sum of its entries' rows of `table`."""
        _, order = entries.by_latent
        counts = torch.bincount(entries.indices, minlength=n_latents)
        starts = counts.cumsum(0) - counts
        return embedding_bag(entries.rows[order], table, starts, mode="sum", per_sample_weights=weights[order])

    def latent_sums(
        self, entries: Entries, weights: Float[Tensor, " nnz"], n_latents: int
    ) -> Float[Tensor, " n_latents"]:
        """For each latent, the sum of its entries' weights."""
        return weights.new_zeros(n_latents).index_add_(0, entries.indices, weights)

    def normalise_rows(self, matrix: Float[Tensor, "n d"]) -> None:
        """Divide each row by its norm, in place; a zero row stays zero."""
        norms = matrix.norm(dim=1, keepdim=True)
        matrix.div_(torch.where(norms > 0, norms, torch.ones_like(norms)))

    def remove_parallel(self, gradient: Float[Tensor, "n d"], unit: Float[Tensor, "n d"]) -> None:
        """`g <- g - (g . d) d` for each row, in place."""
        along = (gradient * unit).sum(dim=1, keepdim=True)
        gradient.addcmul_(along, unit, value=-1)
