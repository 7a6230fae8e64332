"""Rows of weights and of data: norms, centres, first directions, and what keeps a decoder's rows at norm 1."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from sae import kernels
from sae.architectures.configs import InitBias, InitDecoder
from sae.errors import ConfigError

NOISE = 0.5  # norm of what is added to a row's direction
CENTRE_ROWS = 4096  # from which rows' directions are seen


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


def first_directions(
    sides: Sequence[Float[Tensor, "n _"]],
    count: int,
    kind: InitDecoder,
    generator: torch.Generator,
    groups: Sequence[Int[Tensor, " _"]] = (),
) -> list[Float[Tensor, "count _"]]:
    """Where latents point at first, of norm 1, on each side that they have.

    `data`: to a row, the same on all sides, as seen from the rows' geometric median; a row is taken
    again only after all others. Some noise keeps rows that are alike, or were taken twice, from becoming
    the same latent twice. `identity`: latent i to the i-th number of a row.

    Args:
        groups: numbers of the rows that the first, the second, … of so many equal parts of the latents are
            to take; any row where it has none.

    Raises:
        ConfigError: `identity`, and there are not as many latents as numbers.
    """
    if kind == "identity":
        for side in sides:
            if side.shape[1] != count:
                raise ConfigError(
                    f"sae.n_latents = {count}: must be {side.shape[1]}, the width of the site, with "
                    "sae.init_decoder = identity"
                )
        return [torch.eye(count) for _ in sides]
    if kind == "random":
        return [random_rows((count, side.shape[1]), generator) for side in sides]
    every = torch.arange(len(sides[0]))
    parts = [group if len(group) else every for group in groups or [every]]
    numbers = torch.arange(count // len(parts))
    taken = torch.cat([part[torch.randperm(len(part), generator=generator)][numbers % len(part)] for part in parts])
    return [_with_noise(side[taken] - geometric_median(side[:CENTRE_ROWS]), generator) for side in sides]


def _with_noise(rows: Float[Tensor, "n d"], generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Their directions, plus noise of the norm `NOISE`, brought back to norm 1."""
    rows = normalize(rows, dim=1) + NOISE * random_rows(rows.shape, generator).to(rows)
    return normalize(rows, dim=1)


def rms_norm(rows: Float[Tensor, "n d"], n_sites: int = 1) -> float:
    """Root mean square of the rows' norms, at one of the sites that lie side by side in them."""
    return rows.double().square().sum(1).mean().sqrt().item() / n_sites**0.5


def normalise_rows(matrix: Tensor) -> None:
    """Divide each row by its norm, in place; a zero row stays zero."""
    kernels.normalise_rows(matrix)


def remove_parallel_gradient(matrix: nn.Parameter) -> None:
    """`g <- g - (g . d) d` for unit rows d: the part that a renormalisation would undo."""
    if matrix.grad is not None:
        kernels.remove_parallel(matrix.grad, matrix)


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
