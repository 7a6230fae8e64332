"""One threshold for use, learnt from what whole batches kept in training."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.architectures.configs import SAEConfig
from sae.dictionary import SAE, Forward, Shape
from sae.select import BatchTopK, JumpReLU, Selection
from sae.team import ALONE, Team


class BatchThreshold(nn.Module):
    """`theta = E over batches [smallest positive latent of the batch]` (Bussmann et al. 2024, §3).

    Two sums that decay alike: their ratio is a running mean with no bias towards its start, which
    forgets what the weights were like much more than `steps` batches ago.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.keep = 1 - 1 / steps
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))
        self.total: Tensor
        self.weight: Tensor

    @torch.no_grad()
    def update(self, values: Float[Tensor, " nnz"], team: Team = ALONE, partners: Team = ALONE) -> None:
        """Take in the latents of a training batch, weighted as they competed; one without a positive latent says
        nothing.

        Args:
            team: whose rows are one batch.
            partners: among whom the latents are divided.
        """
        positive = torch.where(values > 0, values, torch.inf)
        own = positive.min() if len(values) else positive.new_tensor(torch.inf)
        smallest = partners.smallest(team.smallest(own))
        is_there = smallest.isfinite()
        self.total.copy_(torch.where(is_there, self.keep * self.total + smallest, self.total))
        self.weight.copy_(torch.where(is_there, self.keep * self.weight + 1, self.weight))

    def value(self) -> Float[Tensor, ""]:
        """The threshold; 0, a plain ReLU, before the first update."""
        return torch.where(self.weight > 0, self.total / self.weight.clamp_min(1e-30), 0)

    def selection(
        self,
        k: int,
        n_latents: int,
        sizes: Float[Tensor, " n_latents"] | None = None,
        team: Team = ALONE,
        partners: Team = ALONE,
    ) -> Selection:
        """The batch's own choice in training, the threshold for use, where rows are independent.

        Args:
            sizes: weights with which latents compete; the threshold is one of weighted latents.
            team: whose rows are one batch.
            partners: among whom the latents are divided.
        """
        if self.training:
            return BatchTopK(k, sizes, team, partners)
        threshold = self.value().float().expand(n_latents)
        return JumpReLU(threshold if sizes is None else threshold / sizes.clamp_min(1e-30))


class ThresholdSAE(SAE):
    """One whose latents compete over a batch in training, and are used by one threshold."""

    is_normalised = True
    cfg: Any

    def __init__(self, cfg: SAEConfig, shape: Shape) -> None:
        super().__init__(cfg, shape)
        self.threshold = BatchThreshold(self.cfg.threshold_steps)

    def selection(self) -> Selection:
        return self.threshold.selection(self.cfg.k, len(self.W_enc), self.sizes, self.team, self.partners)

    def after_step(self, out: Forward) -> None:
        super().after_step(out)
        self.threshold.update(out.strengths, self.team, self.partners)
