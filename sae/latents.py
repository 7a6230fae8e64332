"""The one sparse type between a network and its meaning: which latents are active, and how much."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Latents:
    """Active latents of a batch in CSR form: row b owns entries `offsets[b]:offsets[b + 1]`.

    An entry whose value is 0 has been selected but has not fired.
    """

    values: Float[Tensor, " nnz"]
    indices: Int[Tensor, " nnz"]
    offsets: Int[Tensor, " bounds"]
    """`batch + 1` bounds, from 0 to nnz."""
    pre_acts: Float[Tensor, " nnz"]
    """Pre-activations of the same entries."""
    n_latents: int

    @property
    def batch(self) -> int:
        return len(self.offsets) - 1

    def rows(self) -> Int[Tensor, " nnz"]:
        """The row that each entry belongs to."""
        return rows_of(self.offsets, len(self.indices))

    def dense(self) -> Float[Tensor, "batch n_latents"]:
        """The same latents with their zeros."""
        dense = self.values.new_zeros(self.batch * self.n_latents)
        flat = self.rows() * self.n_latents + self.indices
        return dense.index_add(0, flat, self.values).view(self.batch, self.n_latents)

    def subset(self, kept: Bool[Tensor, " nnz"]) -> "Latents":
        """Only the entries where `kept`; differentiable."""
        running = torch.cat([kept.new_zeros(1, dtype=torch.long), kept.cumsum(0)])
        offsets = running[self.offsets]
        return Latents(self.values[kept], self.indices[kept], offsets, self.pre_acts[kept], self.n_latents)

    def fired(self) -> "Latents":
        """Only the entries that have fired (value > 0), outside autograd."""
        values, pre_acts = self.values.detach(), self.pre_acts.detach()
        return Latents(values, self.indices, self.offsets, pre_acts, self.n_latents).subset(values > 0)

    def firing_counts(self) -> Int[Tensor, " n_latents"]:
        """Rows in which each latent has fired."""
        return torch.bincount(self.indices[self.values.detach() > 0], minlength=self.n_latents)


def rows_of(offsets: Int[Tensor, " bounds"], nnz: int) -> Int[Tensor, " nnz"]:
    """The row that each of the `nnz` entries belongs to."""
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=nnz)
