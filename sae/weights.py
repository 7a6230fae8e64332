"""Rows of weights and of data: norms, centres, and what keeps a decoder's rows at norm 1."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.architectures.configs import InitBias

NOISE = 0.5  # norm of what is added to a row's direction


def centre(rows: Float[Tensor, "n d"], kind: InitBias) -> Float[Tensor, " d"]:
    """Where an output bias starts, from a sample of targets."""
    if kind == "geometric_median":
        return geometric_median(rows)
    return rows.double().mean(0).to(rows.dtype) if kind == "mean" else rows.new_zeros(rows.shape[1])


def random_rows(shape: torch.Size | tuple[int, int], generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Directions drawn evenly, of norm 1."""
    matrix = torch.randn(shape, generator=generator)
    normalise_rows(matrix)
    return matrix


def data_rows(
    rows: Float[Tensor, "n d"], picked: Int[Tensor, " m"], generator: torch.Generator
) -> Float[Tensor, "m d"]:
    """Directions of the picked rows from the rows' mean, of norm 1, with noise: rows that are alike, or were picked
    twice, should not become the same latent twice."""
    own = rows[picked] - rows.double().mean(0).to(rows.dtype)
    normalise_rows(own)
    own += NOISE * random_rows(own.shape, generator)
    normalise_rows(own)
    return own


def pick(n: int, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """`count` of n rows at random, each again only after all others."""
    return torch.randperm(n, generator=generator)[torch.arange(count) % n]


def rms_norm(rows: Float[Tensor, "n d"], n_sites: int = 1) -> float:
    """Root mean square of the rows' norms, at one of the sites that lie side by side in them."""
    return rows.double().square().sum(1).mean().sqrt().item() / n_sites**0.5


@torch.no_grad()
def normalise_rows(matrix: Tensor) -> None:
    """Divide each row by its norm, in place; a zero row stays zero."""
    norms = matrix.norm(dim=1, keepdim=True)
    matrix.div_(torch.where(norms > 0, norms, torch.ones_like(norms)))


@torch.no_grad()
def remove_parallel_gradient(matrix: nn.Parameter) -> None:
    """`g <- g - (g . d) d` for unit rows d: the part that a renormalisation would undo."""
    if matrix.grad is not None:
        along = (matrix.grad * matrix).sum(dim=1, keepdim=True)
        matrix.grad.addcmul_(along, matrix, value=-1)


@torch.no_grad()
def geometric_median(
    points: Float[Tensor, "n d"], tolerance: float = 1e-6, max_iterations: int = 200
) -> Float[Tensor, " d"]:
    """The point with the least mean distance to `points`, in float64.

    Weiszfeld's iteration; a guess that lies on a point is left as in Vardi & Zhang 2000 (PNAS 97).
    """
    points64 = points.double()
    guess = points64.mean(dim=0)
    for _ in range(max_iterations):
        distances = (points64 - guess).norm(dim=1)
        is_away = distances > 1e-12
        weights = torch.where(is_away, 1 / distances.clamp_min(1e-12), 0)
        if not is_away.any():
            break
        target = weights @ points64 / weights.sum()
        # points under the guess hold it with a pull of 1 each, against the pull of the others
        pull = (weights @ (points64 - guess)).norm()
        step = (1 - (~is_away).sum() / pull.clamp_min(1e-300)).clamp_min(0)
        moved = guess + step * (target - guess)
        is_settled = (moved - guess).norm() <= tolerance * (1 + guess.norm())
        guess = moved
        if is_settled:
            break
    return guess.to(points.dtype)
