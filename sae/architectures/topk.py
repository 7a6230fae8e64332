"""TopK: keep the k largest pre-activations of each row; dead latents learn from the residual.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sae import kernels
from sae.architectures import architectures
from sae.architectures.configs import TopKConfig
from sae.dictionary import SAE, Forward, Step, normalise_rows, remove_parallel_gradient
from sae.losses import auxk
from sae.select import Selection, TopK


@architectures.register("topk")
class TopKSAE(SAE):
    """`x_hat = ReLU(TopK((x - b_dec) W_enc^T + b_enc)) W_dec + b_dec`, unit decoder rows."""

    cfg: TopKConfig

    def selection(self) -> Selection:
        return TopK(self.cfg.k)

    def penalties(self, out: Forward, step: Step) -> Mapping[str, Tensor]:
        """AuxK: `auxk_coef * ||e - e_hat||^2 / Var(e)`, e_hat from the top dead latents (§A.2)."""
        limit = self.d_in // 2 if self.cfg.auxk is None else self.cfg.auxk
        dead = torch.nonzero(step.dead).flatten()
        if limit == 0 or len(dead) == 0 or self.cfg.auxk_coef == 0:
            return {}
        select = TopK(min(limit, len(dead)))
        latents = kernels.encode(out.x, self.W_enc[dead], self.b_enc[dead], self.b_dec, select)
        recon = kernels.decode(latents, self.W_dec[dead])
        return {"auxk": self.cfg.auxk_coef * auxk(out.target - out.recon, recon)}

    def before_step(self) -> None:
        remove_parallel_gradient(self.W_dec)

    def after_step(self) -> None:
        normalise_rows(self.W_dec)
