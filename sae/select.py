"""Selections: which pre-activations of a batch become latents, and with what value.

A selection is a frozen value that can be called: calling it on dense pre-activations is its
definition. It has two halves, so that `sae.kernels` can keep the wide matrix out of autograd:
`entries` says which are kept (no gradient), `values` turns the kept ones into latents (with it).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.latents import Entries, Latents

Which = Int[Tensor, " nnz"] | EllipsisType
"""The latent of each entry; `...`: of a whole matrix of them."""


class Selection(ABC):
    """Pre-activations → latents."""

    is_rowwise: ClassVar[bool] = True
    """Whether a row's latents depend on that row alone."""
    is_elementwise: ClassVar[bool] = False
    """Whether `values` gives the latents of all pre-activations, zeros where they are not kept, if its `indices` are
    `...`: what is kept of one then depends on that one alone."""
    sizes: Float[Tensor, " n_latents"] | None = None
    """Weights, none negative, with which pre-activations compete; latents keep their own values."""

    @abstractmethod
    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        """Which pre-activations, weighted with `sizes` if there are any, are kept; called without gradient."""

    def values(self, pre_acts: Float[Tensor, "*kept"], indices: Which) -> Float[Tensor, "*kept"]:  # noqa: ARG002 - for variants
        """The latents of the kept pre-activations, whose latents are `indices`; see `is_elementwise`."""
        return pre_acts.relu()

    def __call__(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Latents:
        with torch.no_grad():
            kept = self.entries(weighted(pre_acts.detach(), self.sizes))
        picked = gather(pre_acts, kept)
        return Latents.of(self.values(picked, kept.indices), kept, picked, pre_acts.shape[1])


def weighted(
    pre_acts: Float[Tensor, "batch n_latents"], sizes: Float[Tensor, " n_latents"] | None
) -> Float[Tensor, "batch n_latents"]:
    """Pre-activations as they compete."""
    return pre_acts if sizes is None else pre_acts * sizes


def gather(pre_acts: Float[Tensor, "batch n_latents"], kept: Entries) -> Float[Tensor, " nnz"]:
    """The kept pre-activations."""
    return pre_acts.flatten()[kept.flat(pre_acts.shape[1])]


def where(mask: Bool[Tensor, "batch n_latents"]) -> Entries:
    """The entries at which `mask` is true."""
    counts = mask.sum(dim=1)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Entries(mask.nonzero()[:, 1], offsets)


@dataclass(frozen=True)
class ReLU(Selection):
    """Every positive pre-activation."""

    is_elementwise: ClassVar[bool] = True

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

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        indices = pre_acts.topk(self.k, dim=1, sorted=False).indices
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

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        return self.choose(pre_acts.flatten(), None, *pre_acts.shape)

    def choose(
        self, strengths: Float[Tensor, " n"], keys: Int[Tensor, " n"] | None, batch: int, n_latents: int
    ) -> Entries:
        """What is kept of candidates, among which are all that can be.

        Args:
            keys: `row * n_latents + latent` of each candidate; None: they are the whole matrix, row by row.
        """
        wanted = self.k * batch
        chosen = (_largest if strengths.device.type == "cpu" else _largest_on_gpu)(strengths, keys, wanted)
        chosen = chosen.sort().values
        starts = torch.arange(0, (batch + 1) * n_latents, n_latents, device=chosen.device)
        return Entries(chosen % n_latents, torch.searchsorted(chosen, starts))


def _largest(strengths: Tensor, keys: Tensor | None, wanted: int) -> Tensor:
    """The keys of the largest positive ones, at most as many as are wanted; of equal ones the smallest keys."""
    floor = _lower_bound(strengths, wanted)
    found = (strengths > floor).nonzero().flatten()
    if len(found) < wanted and floor > 0:
        found = (strengths > 0).nonzero().flatten()
    values = strengths[found]
    chosen = found if keys is None else keys[found]
    if len(found) <= wanted:
        return chosen
    edge = values.kthvalue(len(values) - wanted + 1).values
    above, level = chosen[values > edge], chosen[values == edge]
    return torch.cat([above, level.sort().values[: wanted - len(above)]])


def _largest_on_gpu(strengths: Tensor, keys: Tensor | None, wanted: int) -> Tensor:
    """The same by sorting all, which a GPU does faster than it selects, and with no wait for how many there are. Of
    equal ones the first are taken; where too few are positive others come with them, which have not fired."""
    order = strengths.sort(descending=True, stable=True).indices[:wanted]
    return order if keys is None else keys[order]


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

    is_elementwise: ClassVar[bool] = True
    threshold: Float[Tensor, " n_latents"]
    bandwidth: float = 0.0
    """Width of the window, in units of pre-activations; 0 for inference."""
    ste_to_input: bool = False
    """Let the threshold's pseudo-derivative reach the pre-activation as well, with the other sign."""

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        if self.bandwidth == 0:
            return where(pre_acts > self.threshold.detach().clamp_min(0))
        return where(pre_acts > self.threshold.detach() - self.bandwidth / 2)

    def values(self, pre_acts: Float[Tensor, "*kept"], indices: Which) -> Float[Tensor, "*kept"]:
        threshold = self.threshold[indices].expand_as(pre_acts)
        return _Jump.apply(pre_acts, threshold, self.bandwidth, self.ste_to_input)  # type: ignore[return-value]

    def steps(self, latents: Latents) -> Float[Tensor, "*kept"]:
        """`H(z - threshold)` of each entry, differentiable in the threshold (eq. 12)."""
        threshold = latents.pick(self.threshold)
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

    is_elementwise: ClassVar[bool] = True
    r_mag: Float[Tensor, " n_latents"]
    b_gate: Float[Tensor, " n_latents"]
    b_mag: Float[Tensor, " n_latents"]

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        return where(pre_acts > 0)

    def values(self, pre_acts: Float[Tensor, "*kept"], indices: Which) -> Float[Tensor, "*kept"]:
        magnitude = self.r_mag.exp()[indices] * (pre_acts - self.b_gate[indices]) + self.b_mag[indices]
        return torch.where(pre_acts > 0, magnitude.relu(), 0)
