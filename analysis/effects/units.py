"""What is put to the test: every latent, and random directions in the place of some of them.

A network changes whatever is written into it, and some tokens change most. So a latent is compared with random
directions of its size, at the places of latents, whose labels are found, chosen and scored in the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.parts import in_hash_order

Lens = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n vocabulary"]]
"""The logit lens of some directions."""


@dataclass(frozen=True, eq=False)
class Units:
    """Directions by number: those of the latents, then the random ones."""

    directions: Float[Tensor, "n d"]
    """In the units of the site."""
    n_latents: int
    stands_for: np.ndarray
    """`[n - n_latents]`, int64, ascending: the latent in whose place each random direction is."""

    @classmethod
    def of(cls, latents: Float[Tensor, "n_latents d"], measured: np.ndarray, n_random: int, seed: int) -> "Units":
        """Random directions, each as long as the latent's, in the place of some that are `measured [n_latents]`; of few
        latents each has several."""
        order = in_hash_order(np.flatnonzero(measured))
        chosen = np.sort(np.resize(order, n_random if len(order) else 0))
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(len(chosen), latents.shape[1], generator=generator).to(latents)
        lengths = latents[torch.from_numpy(chosen).to(latents.device)].norm(dim=1, keepdim=True)
        random = drawn / drawn.norm(dim=1, keepdim=True) * lengths
        return cls(torch.cat([latents, random]), len(latents), chosen)

    @property
    def n(self) -> int:
        return len(self.directions)

    @property
    def norms(self) -> np.ndarray:
        """`[n]`, float64."""
        return self.directions.norm(dim=1).double().cpu().numpy()
