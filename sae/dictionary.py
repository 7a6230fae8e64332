"""What a dictionary is: an encoder to sparse latents, a decoder back, and a training loss.

A variant is a final subclass that says which pre-activations it selects, what it adds to the
loss, and what it does after a step. The trainer, the files and the analysis know only this file.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae import kernels
from sae.latents import Latents
from sae.losses import squared_error
from sae.select import Selection


@dataclass(frozen=True)
class Step:
    """All that a loss may know of the training run."""

    index: int
    dead: Bool[Tensor, " n_latents"]
    """Latents that have not fired for the dead window."""


@dataclass(frozen=True)
class Forward:
    """All that comes out of a training forward pass. `target` and `recon` are in scaled units."""

    x: Float[Tensor, "batch d_in"]
    target: Float[Tensor, "batch d_out"]
    latents: Latents
    recon: Float[Tensor, "batch d_out"]
    terms: dict[str, Tensor]
    """Weighted terms of the loss by name; their sum is minimised."""


@dataclass(frozen=True)
class InputStats:
    """What a dictionary is told of its data before it is trained."""

    scale: float
    """Inputs are multiplied by this before they are encoded."""
    variance: float
    """`E ||x - E x||^2` of the scaled inputs."""
    centre: Float[Tensor, " d_in"]
    """Geometric median of the scaled inputs."""


class Dictionary(nn.Module, ABC):
    """A trainable basis. Inputs and reconstructions are in the network's own units."""

    @property
    @abstractmethod
    def directions(self) -> Float[Tensor, "n_latents d_out"]:
        """What each latent writes."""

    @abstractmethod
    def initialise(self, stats: InputStats, generator: torch.Generator) -> None:
        """Set the weights before training, from what is known of the data."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Latents: ...

    @abstractmethod
    def decode(self, latents: Latents) -> Float[Tensor, "batch d_out"]: ...

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch d_in"], step: Step) -> Forward:
        """The training forward pass."""

    def after_step(self) -> None:
        """What is to be done after each optimiser step."""

    def before_step(self) -> None:
        """What is to be done with the gradients before they are clipped and applied."""


class SAE(Dictionary):
    """One linear encoder and one linear decoder with a shared bias; subclasses are final.

    `pre = (s x - b_dec) W_enc^T + b_enc;  f = select(pre);  x_hat = (f W_dec + b_dec) / s`

    Both matrices are `[n_latents, d_in]`: a latent's row is contiguous.
    """

    def __init__(self, cfg: Any, d_in: int) -> None:
        super().__init__()
        self.cfg, self.d_in = cfg, d_in
        self.W_enc = nn.Parameter(torch.zeros(cfg.n_latents, d_in))
        self.b_enc = nn.Parameter(torch.zeros(cfg.n_latents))
        self.W_dec = nn.Parameter(torch.zeros(cfg.n_latents, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("variance", torch.ones(()))
        self.scale: Tensor
        self.variance: Tensor

    @abstractmethod
    def selection(self) -> Selection: ...

    def penalties(self, out: Forward, step: Step) -> Mapping[str, Tensor]:  # noqa: ARG002 - for variants
        """Terms that the variant adds to the loss, weighted, by name."""
        return {}

    @property
    def directions(self) -> Float[Tensor, "n_latents d_out"]:
        return self.W_dec

    @torch.no_grad()
    def initialise(self, stats: InputStats, generator: torch.Generator) -> None:
        """Random unit decoder rows, the encoder their copy, the bias at the data's centre
        (Gao et al. 2024, §A.1)."""
        self.W_dec.copy_(torch.randn(self.W_dec.shape, generator=generator))
        normalise_rows(self.W_dec)
        self.W_enc.copy_(self.W_dec)
        self.b_dec.copy_(stats.centre)
        self.scale.fill_(stats.scale)
        self.variance.fill_(stats.variance)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Latents:
        return self._encode(x * self.scale)

    def decode(self, latents: Latents) -> Float[Tensor, "batch d_out"]:
        return self._decode(latents) / self.scale

    def forward(self, x: Float[Tensor, "batch d_in"], step: Step) -> Forward:
        x = x * self.scale
        latents = self._encode(x)
        recon = self._decode(latents)
        terms = {"mse": squared_error(recon, x) / self.variance}
        out = Forward(x, x, latents, recon, terms)
        terms.update(self.penalties(out, step))
        return out

    def _encode(self, scaled: Tensor) -> Latents:
        return kernels.encode(scaled, self.W_enc, self.b_enc, self.b_dec, self.selection())

    def _decode(self, latents: Latents) -> Tensor:
        return kernels.decode(latents, self.W_dec) + self.b_dec


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
