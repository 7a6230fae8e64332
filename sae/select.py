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

from sae.latents import Entries, Latents, above, pieces
from sae.team import ALONE, Team

NARROW = 2**-6  # a window of fewer than four of bfloat16's steps below 1

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

    @property
    def is_exact(self) -> bool:
        """Whether pre-activations must not be rounded to bfloat16 before it decides; then it has `keeps`."""
        return False

    @abstractmethod
    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        """Which pre-activations, weighted with `sizes` if there are any, are kept; called without gradient."""

    def keeps(self, pre_acts: Float[Tensor, "*kept"], indices: Which) -> Bool[Tensor, "*kept"]:
        """Which of these `entries` has, of an elementwise selection that `is_exact`; of pre-activations that were
        rounded also those that are rounded to the edge."""
        raise NotImplementedError(f"{type(self).__name__} is exact: it must say what it keeps")

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
    partners: Team = ALONE
    """Among whom the latents are divided; they have the same rows."""

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        if self.partners.size == 1:
            return Entries.of_each_row(pre_acts.topk(self.k, dim=1, sorted=False).indices)
        strengths, indices = pre_acts.topk(min(self.k, pre_acts.shape[1]), dim=1, sorted=False)
        return self.chosen(indices, strengths)

    def chosen(self, indices: Int[Tensor, "rows m"], strengths: Float[Tensor, "rows m"]) -> Entries:
        """Those of this process's largest, as many of each row, that are among the largest of all partners."""
        owners = torch.full((indices.shape[1],), self.partners.rank, device=indices.device)
        every, owners = self.partners.joined(strengths.T.float()), self.partners.joined(owners)
        largest = every.topk(min(self.k, len(every)), dim=0, sorted=False).indices
        is_kept = torch.zeros_like(every, dtype=torch.bool).scatter_(0, largest, value=True)
        is_kept = is_kept[owners == self.partners.rank].T
        return Entries(indices[is_kept], where(is_kept).offsets)


@dataclass(frozen=True)
class BatchTopK(Selection):
    """The `k * batch` largest positive pre-activations of the whole batch (Bussmann et al. 2024, §3).

    Rows differ in how many latents they have; their mean is k, or less where the batch has fewer
    positive pre-activations. Of equal ones at the edge those in earlier rows are kept.
    """

    is_rowwise: ClassVar[bool] = False
    k: int
    sizes: Float[Tensor, " n_latents"] | None = None
    team: Team = ALONE
    """Whose rows are one batch, those of each process behind those of the one before."""
    partners: Team = ALONE
    """Among whom the latents are divided; they have the same rows."""

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        return self.choose(pre_acts.flatten(), None, *pre_acts.shape)

    def choose(
        self, strengths: Float[Tensor, " n"], keys: Int[Tensor, " n"] | None, batch: int, n_latents: int
    ) -> Entries:
        """What is kept of candidates, among which are all that can be.

        Args:
            keys: `row * n_latents + latent` of each candidate; None: they are the whole matrix, row by row.
        """
        wanted, team, partners = self.k * batch * self.team.size, self.team, self.partners
        first, width = team.rank * batch, partners.size * n_latents  # of all rows, and of all latents
        if team.size * partners.size > 1:
            keys = torch.arange(len(strengths), device=strengths.device) if keys is None else keys
            keys = (first + keys // n_latents) * width + partners.rank * n_latents + keys % n_latents
            strengths, keys = (partners.joined(team.joined(part)) for part in (strengths.float(), keys))
        chosen = (_largest if strengths.device.type == "cpu" else _largest_on_gpu)(strengths, keys, wanted)
        if team.size * partners.size > 1:
            row, latent = chosen // width - first, chosen % width - partners.rank * n_latents
            is_own = (row >= 0) & (row < batch) & (latent >= 0) & (latent < n_latents)
            chosen = row[is_own] * n_latents + latent[is_own]
        return Entries.at(chosen, batch, n_latents)


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

    @property
    def is_exact(self) -> bool:
        """Thresholds learn from a narrow window."""
        return 0 < self.bandwidth < NARROW

    def entries(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Entries:
        return where(self.keeps(pre_acts, ...))

    def keeps(self, pre_acts: Float[Tensor, "*kept"], indices: Which) -> Bool[Tensor, "*kept"]:
        threshold = self.threshold.detach()
        edge = (threshold - self.bandwidth / 2 if self.bandwidth > 0 else threshold.clamp_min(0))[indices]
        # rounding keeps the order of numbers, but makes some equal
        return pre_acts > edge if pre_acts.dtype == edge.dtype else pre_acts >= edge.to(pre_acts.dtype)

    def values(self, pre_acts: Float[Tensor, "*kept"], indices: Which) -> Float[Tensor, "*kept"]:
        return _Jump.apply(pre_acts, self.threshold[indices], self.bandwidth, self.ste_to_input)  # type: ignore[return-value]

    def l0(self, latents: Latents) -> Float[Tensor, " batch"]:
        """How many pre-activations of each row are above their threshold, `sum_i H(z_i - threshold_i)`,
        differentiable in the thresholds (eq. 12)."""
        threshold = self.threshold if latents.pre_acts.ndim == 2 else latents.pick(self.threshold)
        return _L0.apply(latents.pre_acts, threshold, latents, self.bandwidth, self.ste_to_input)  # type: ignore[return-value]


def _window(pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """`K((z - threshold) / bandwidth)`."""
    distance = (pre_acts - threshold).abs_()
    return torch.lt(distance, bandwidth / 2, out=distance)


class _Jump(torch.autograd.Function):
    """`z H(z - threshold)`, with the straight-through gradient of eq. 11: of single entries, each with its threshold,
    or of a matrix, whose rows all have the same thresholds."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, threshold: Tensor, bandwidth: float, ste_to_input: bool) -> Tensor:
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth, ctx.ste_to_input = bandwidth, ste_to_input
        values = _values_of(pre_acts)
        for part in pieces(pre_acts):
            own = pre_acts[part]
            values[part] = above(own, threshold.clamp_min(0)).mul_(own)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        pre_acts, threshold = ctx.saved_tensors
        grad_pre, grad_threshold = torch.empty_like(pre_acts), torch.zeros_like(threshold)
        for part in pieces(pre_acts):
            own, coming = pre_acts[part], grad[part].to(pre_acts.dtype)
            passed = above(own, threshold.clamp_min(0)).mul_(coming)
            if ctx.bandwidth > 0:
                through = _window(own, threshold, ctx.bandwidth).mul_(coming)
                if ctx.ste_to_input:
                    passed += through * (threshold / ctx.bandwidth)
                grad_threshold -= _to_latents(through, threshold)
            grad_pre[part] = passed
        if ctx.bandwidth == 0:
            return grad_pre, None, None, None
        return grad_pre, grad_threshold * (threshold / ctx.bandwidth), None, None


class _L0(torch.autograd.Function):
    """`sum_i H(z_i - threshold_i)` of each row, with the straight-through gradient of eq. 12; see `_Jump`."""

    @staticmethod
    def forward(
        ctx: Any, pre_acts: Tensor, threshold: Tensor, latents: Latents, bandwidth: float, ste_to_input: bool
    ) -> Tensor:
        ctx.save_for_backward(pre_acts, threshold)
        ctx.latents, ctx.bandwidth, ctx.ste_to_input = latents, bandwidth, ste_to_input
        if pre_acts.ndim == 1:
            return latents.row_sums(above(pre_acts, threshold.clamp_min(0)))
        parts = pieces(pre_acts)
        sums = [above(pre_acts[part], threshold.clamp_min(0)).sum(dim=1, dtype=threshold.dtype) for part in parts]
        return torch.cat(sums)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        pre_acts, threshold = ctx.saved_tensors
        grad = grad[ctx.latents.rows()] if pre_acts.ndim == 1 else grad[:, None]
        grad_pre = torch.empty_like(pre_acts) if ctx.ste_to_input else None
        grad_threshold = torch.zeros_like(threshold)
        for part in pieces(pre_acts):
            through = _window(pre_acts[part], threshold, ctx.bandwidth).mul_(grad[part])
            if grad_pre is not None:
                grad_pre[part] = through / ctx.bandwidth
            grad_threshold -= _to_latents(through, threshold)
        return grad_pre, grad_threshold / ctx.bandwidth, None, None, None


def _values_of(pre_acts: Tensor) -> Tensor:
    """Room for the latents of these pre-activations: those of a matrix are of the kind that products want."""
    is_rounded = pre_acts.ndim == 2 and torch.is_autocast_enabled(pre_acts.device.type)
    return torch.empty_like(pre_acts, dtype=torch.bfloat16 if is_rounded else pre_acts.dtype)


def _to_latents(grad: Tensor, of_latents: Tensor) -> Tensor:
    """The gradient of what single entries, or all rows of a matrix, have of their latents."""
    return grad if grad.ndim == of_latents.ndim else grad.sum(dim=0)


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
        scale = self.r_mag.exp()
        shift = self.b_mag - scale * self.b_gate
        return _Magnitude.apply(pre_acts, scale[indices], shift[indices])  # type: ignore[return-value]


class _Magnitude(torch.autograd.Function):
    """`1[z > 0] ReLU(scale z + shift)`, of single entries or of a matrix; see `_Jump`."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        values = _values_of(pre_acts)
        for part in pieces(pre_acts):
            own = pre_acts[part]
            values[part] = torch.addcmul(shift, scale, own.to(scale.dtype)).relu_().mul_(above(own))
        ctx.save_for_backward(pre_acts, scale, values)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        pre_acts, scale, values = ctx.saved_tensors
        grad_pre, grad_scale, grad_shift = torch.empty_like(pre_acts), torch.zeros_like(scale), torch.zeros_like(scale)
        for part in pieces(pre_acts):
            passed = above(values[part]) * grad[part].to(scale.dtype)
            grad_pre[part] = passed * scale
            grad_scale += _to_latents(passed * pre_acts[part], scale)
            grad_shift += _to_latents(passed, scale)
        return grad_pre, grad_scale, grad_shift
