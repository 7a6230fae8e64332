"""Selections: which pre-activations of a batch become latents, and with what value.

A selection is a frozen value that can be called: calling it on dense pre-activations is its
definition. It has two halves, so that `sae.kernels` can keep the wide matrix out of autograd:
`entries` says which are kept (no gradient), `values` turns the kept ones into latents (with it).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.latents import Latents, rows_of


@dataclass(frozen=True)
class Entries:
    """Positions in a batch's pre-activations in CSR form, as in `Latents`."""

    indices: Int[Tensor, " nnz"]
    offsets: Int[Tensor, " bounds"]


class Selection(ABC):
    """Pre-activations → latents."""

    is_rowwise: ClassVar[bool] = True
    """Whether a row's latents depend on that row alone."""

    @abstractmethod
    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        """Which pre-activations are kept; called without gradient."""

    def values(self, pre_acts: Float[Tensor, " nnz"], indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:  # noqa: ARG002 - for variants
        """The latents of the kept pre-activations, whose latents are `indices`."""
        return pre_acts.relu()

    def __call__(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Latents:
        with torch.no_grad():
            kept = self.entries(pre_acts.detach())
        picked = gather(pre_acts, kept)
        return Latents(self.values(picked, kept.indices), kept.indices, kept.offsets, picked, pre_acts.shape[1])


def gather(pre_acts: Float[Tensor, "batch n_latents"], kept: Entries) -> Float[Tensor, " nnz"]:
    """The kept pre-activations."""
    return pre_acts.flatten()[rows_of(kept.offsets, len(kept.indices)) * pre_acts.shape[1] + kept.indices]


def where(mask: Bool[Tensor, "batch n_latents"]) -> Entries:
    """The entries at which `mask` is true."""
    counts = mask.sum(dim=1)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Entries(mask.nonzero()[:, 1], offsets)


@dataclass(frozen=True)
class ReLU(Selection):
    """Every positive pre-activation."""

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        return where(pre_acts > 0)


@dataclass(frozen=True)
class TopK(Selection):
    """The k largest of each row, negative ones as 0: `f = ReLU(TopK(pre))` (Gao et al. 2024, §2.3).

    A row with fewer than k positive pre-activations has fewer than k active latents; the padding
    has value 0 and gets no gradient.
    """

    k: int
    sizes: Float[Tensor, " n_latents"] | None = None
    """Weights with which pre-activations compete; latents keep their own values."""

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        strengths = pre_acts if self.sizes is None else pre_acts * self.sizes
        indices = strengths.topk(self.k, dim=1, sorted=False).indices
        offsets = torch.arange(0, indices.numel() + 1, self.k, device=pre_acts.device)
        return Entries(indices.flatten(), offsets)


@dataclass(frozen=True)
class BatchTopK(Selection):
    """The `k * batch` largest positive pre-activations of the whole batch (Bussmann et al. 2024, §3).

    Rows differ in how many latents they have; their mean is k, or less where the batch has fewer
    positive pre-activations. Of equal ones at the edge those in earlier rows are kept.
    """

    is_rowwise: ClassVar[bool] = False
    k: int
    sizes: Float[Tensor, " n_latents"] | None = None
    """Weights with which pre-activations compete; latents keep their own values."""

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        strengths = pre_acts if self.sizes is None else pre_acts * self.sizes
        wanted, flat = self.k * len(pre_acts), strengths.flatten()
        floor = _lower_bound(flat, wanted)
        candidates = (flat > floor).nonzero().flatten()
        if len(candidates) < wanted and floor > 0:
            candidates = (flat > 0).nonzero().flatten()
        if len(candidates) > wanted:
            values = flat[candidates]
            edge = values.kthvalue(len(values) - wanted + 1).values
            above = values > edge
            at_edge = (values == edge).cumsum(0) <= wanted - above.sum()
            candidates = candidates[above | ((values == edge) & at_edge)]
        n = pre_acts.shape[1]
        counts = torch.bincount(candidates // n, minlength=len(pre_acts))
        return Entries(candidates % n, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def _lower_bound(flat: Tensor, wanted: int, stride: int = 61) -> float:
    """A value that about twice as many entries exceed as are wanted, from every `stride`-th entry.

    Selecting among these instead of all makes the exact choice many times cheaper. The stride is a
    prime, so that it meets every latent unless their number is a multiple of it.
    """
    sample = flat[::stride]
    rank = 2 * wanted // stride + 8
    if rank >= len(sample):
        return 0.0
    return max(0.0, sample.kthvalue(len(sample) - rank).values.item())


@dataclass(frozen=True)
class JumpReLU(Selection):
    """`f = z H(z - threshold)`, 0 where z is negative (Rajamanoharan et al. 2024, eqs 1, 11, 12).

    With a bandwidth, pre-activations within half of it of the threshold are kept as well: those
    below have value 0, yet through them the threshold learns,
    `df/dthreshold := -(threshold / bandwidth) K((z - threshold) / bandwidth)`, K = 1 on (-1/2, 1/2).
    """

    threshold: Float[Tensor, " n_latents"]
    bandwidth: float = 0.0
    """Width of the window, in units of pre-activations; 0 for inference."""
    ste_to_input: bool = False
    """Let the threshold's pseudo-derivative reach the pre-activation as well, with the other sign."""

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        if self.bandwidth == 0:
            return where(pre_acts > self.threshold.detach().clamp_min(0))
        return where(pre_acts > self.threshold.detach() - self.bandwidth / 2)

    def values(self, pre_acts: Float[Tensor, " nnz"], indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        threshold = self.threshold[indices]
        return _Jump.apply(pre_acts, threshold, self.bandwidth, self.ste_to_input)  # type: ignore[return-value]

    def steps(self, latents: Latents) -> Float[Tensor, " nnz"]:
        """`H(z - threshold)` of each entry, differentiable in the threshold (eq. 12)."""
        threshold = self.threshold[latents.indices]
        return _Step.apply(latents.pre_acts, threshold, self.bandwidth, self.ste_to_input)  # type: ignore[return-value]


def _window(pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """`K((z - threshold) / bandwidth)`."""
    return ((pre_acts - threshold).abs() < bandwidth / 2).to(pre_acts.dtype)


class _Jump(torch.autograd.Function):
    """`z H(z - threshold)` of single entries, with the straight-through gradient of eq. 11."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, threshold: Tensor, bandwidth: float, ste_to_input: bool) -> Tensor:
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth, ctx.ste_to_input = bandwidth, ste_to_input
        return torch.where(pre_acts > threshold, pre_acts.relu(), 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        pre_acts, threshold = ctx.saved_tensors
        grad_pre = grad * ((pre_acts > threshold) & (pre_acts > 0))
        if ctx.bandwidth == 0:
            return grad_pre, None, None, None
        through = grad * _window(pre_acts, threshold, ctx.bandwidth) * (threshold / ctx.bandwidth)
        return grad_pre + through if ctx.ste_to_input else grad_pre, -through, None, None


class _Step(torch.autograd.Function):
    """`H(z - threshold)` of single entries, with the straight-through gradient of eq. 12."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, threshold: Tensor, bandwidth: float, ste_to_input: bool) -> Tensor:
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth, ctx.ste_to_input = bandwidth, ste_to_input
        return ((pre_acts > threshold) & (pre_acts > 0)).to(pre_acts.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        pre_acts, threshold = ctx.saved_tensors
        through = grad * _window(pre_acts, threshold, ctx.bandwidth) / ctx.bandwidth
        return through if ctx.ste_to_input else None, -through, None, None


@dataclass(frozen=True)
class Gated(Selection):
    """`f = 1[gate > 0] ReLU(magnitude)`, both from one product (Rajamanoharan et al. 2024b, eq. 6).

    The pre-activations are the gate's; `magnitude = exp(r_mag) (gate - b_gate) + b_mag`.
    """

    r_mag: Float[Tensor, " n_latents"]
    b_gate: Float[Tensor, " n_latents"]
    b_mag: Float[Tensor, " n_latents"]

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        return where(pre_acts > 0)

    def values(self, pre_acts: Float[Tensor, " nnz"], indices: Int[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        magnitude = self.r_mag.exp()[indices] * (pre_acts - self.b_gate[indices]) + self.b_mag[indices]
        return magnitude.relu()
