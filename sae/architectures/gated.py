"""Gated: one path decides whether a latent is active, another by how much.

Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders",
arXiv:2404.16014.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.architectures import architectures
from sae.architectures.configs import GatedConfig
from sae.dictionary import SAE, Forward, Shape, Step
from sae.losses import squared_error, weighted_l1
from sae.select import Gated, Selection


@architectures.register("gated")
class GatedSAE(SAE):
    """`f = 1[gate > 0] ReLU(exp(r_mag) (gate - b_enc) + b_mag)`, `gate = (x - b_dec) W_enc^T + b_enc`,

    `loss = ||x - x_hat(f)||^2 + coef sum ReLU(gate) + ||x - x_hat_frozen(ReLU(gate))||^2` (eq. 8), where
    the decoder of the last term is a constant.
    """

    is_normalised = False
    can_divide = True
    folds = ("unit", "free")
    per_latent = (*SAE.per_latent, "r_mag", "b_mag")
    cfg: GatedConfig

    def __init__(self, cfg: GatedConfig, shape: Shape) -> None:
        super().__init__(cfg, shape)
        self.r_mag = nn.Parameter(torch.zeros(cfg.n_latents))
        self.b_mag = nn.Parameter(torch.zeros(cfg.n_latents))

    def units(self) -> Mapping[str, float]:
        return {**super().units(), "b_mag": self.input_size}

    def selection(self) -> Selection:
        return Gated(self.r_mag, self.b_enc, self.b_mag)

    def penalties(self, out: Forward, step: Step) -> Mapping[str, Tensor]:
        gates = out.latents.with_values(out.latents.pre_acts.relu())
        coef = self.cfg.sparsity_coef * step.warm(self.cfg.sparsity_warmup)
        recon = self._written(gates, self.W_dec.detach()) + self.b_dec.detach()
        if self.W_skip is not None and out.skipped is not None:
            recon = recon + out.skipped @ self.W_skip.detach().T
        l1 = self.partners.summed(weighted_l1(gates, self.W_dec.detach().norm(dim=1)))
        return {"l1": coef * l1, "aux": squared_error(recon, out.target)}

    @torch.no_grad()
    def reseed(self, latents: Int[Tensor, " m"], x: Float[Tensor, "m d_in"], target: Float[Tensor, "m d_out"]) -> None:
        super().reseed(latents, x, target)
        self.r_mag[latents], self.b_mag[latents] = 0, 0

    def _scale_latents(self, by: Tensor) -> None:
        super()._scale_latents(by)
        self.b_mag.mul_(by)

    def _shift_pre_acts(self, by: Tensor) -> None:
        super()._shift_pre_acts(by)
        # the magnitude is read off the gate without its bias, so the shift must reach it by its own
        self.b_mag.add_(self.r_mag.exp() * by)
