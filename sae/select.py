"""Selections: which pre-activations of a batch become latents.

A selection is a frozen value that can be called: calling it on dense pre-activations is its
reference definition. `sae.kernels` recognises some selections and never makes the dense matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.latents import Latents

Selection = Callable[[Float[Tensor, "batch n_latents"]], Latents]


@dataclass(frozen=True)
class TopK:
    """The k largest of each row, negative ones as 0: `f = ReLU(TopK(pre))` (Gao et al. 2024, §2.3).

    A row with fewer than k positive pre-activations has fewer than k active latents; the padding
    has value 0 and gets no gradient.
    """

    k: int

    def __call__(self, pre_acts: Float[Tensor, "batch n_latents"]) -> Latents:
        batch, n_latents = pre_acts.shape
        top, indices = pre_acts.topk(self.k, dim=1, sorted=False)
        offsets = torch.arange(0, batch * self.k + 1, self.k, device=pre_acts.device)
        return Latents(top.relu().flatten(), indices.flatten(), offsets, top.flatten(), n_latents)
