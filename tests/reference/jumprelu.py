"""JumpReLU, from Rajamanoharan et al. 2024 (arXiv:2407.14435), eqs 1, 9-12, and Conerly et al. 2025 (January).

The pseudo-derivatives are written as the papers print them, on dense matrices.
"""

import torch
from torch import Tensor

from tests.reference.linear import Weights, pre_acts, recon, row_error


def kernel(z: Tensor, threshold: Tensor, width: float) -> Tensor:
    """K, the rectangle on (-1/2, 1/2)."""
    return (((z - threshold) / width).abs() < 0.5).to(z.dtype)


class Jump(torch.autograd.Function):
    """`z H(z - t)`; eq. 11: `d/dt := -(t / width) K`. `to_input` adds the opposite to `d/dz = H`."""

    @staticmethod
    def forward(ctx, z, threshold, width, to_input):
        ctx.save_for_backward(z, threshold)
        ctx.width, ctx.to_input = width, to_input
        return z * (z > threshold)

    @staticmethod
    def backward(ctx, grad):
        z, threshold = ctx.saved_tensors
        pseudo = -(threshold / ctx.width) * kernel(z, threshold, ctx.width)
        slope = (z > threshold).to(z.dtype)
        return grad * (slope - pseudo if ctx.to_input else slope), (grad * pseudo).sum(0), None, None


class Heaviside(torch.autograd.Function):
    """`H(z - t)`; eq. 12: `d/dt := -(1 / width) K`, `d/dz := 0`. `to_input` sets `d/dz := (1 / width) K`."""

    @staticmethod
    def forward(ctx, z, threshold, width, to_input):
        ctx.save_for_backward(z, threshold)
        ctx.width, ctx.to_input = width, to_input
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        z, threshold = ctx.saved_tensors
        pseudo = -kernel(z, threshold, ctx.width) / ctx.width
        return grad * -pseudo if ctx.to_input else None, (grad * pseudo).sum(0), None, None


def latents(z: Tensor, threshold: Tensor, width: float, to_input: bool = False) -> Tensor:
    return Jump.apply(z, threshold, width, to_input)


def loss(
    x: Tensor, target: Tensor, w: Weights, threshold: Tensor, width: float, to_input: bool, c: float, target_l0: float
) -> dict[str, Tensor]:
    """The error, and every penalty without its weight."""
    z = pre_acts(x, w)
    f, steps = latents(z, threshold, width, to_input), Heaviside.apply(z, threshold, width, to_input)
    norms = w.W_dec.norm(dim=1)
    return {
        "mse": row_error(recon(x, f, w), target).mean(),
        "l0": steps.sum(1).mean(),
        "tanh": torch.tanh(c * f * norms).sum(1).mean(),
        "quadratic": (2 / target_l0 * (steps.sum(1) - target_l0) ** 2).mean(),
        "preact": (torch.relu(threshold - z) * norms).sum(1).mean(),
    }
