"""TopK: keep the k largest pre-activations of each row; dead latents learn from the residual.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093.
"""

from collections.abc import Mapping

from torch import Tensor

from sae import kernels
from sae.architectures import architectures
from sae.architectures.configs import TopKConfig
from sae.dictionary import SAE, Forward, Step
from sae.select import Selection, TopK


@architectures.register("topk")
class TopKSAE(SAE):
    """`x_hat = ReLU(TopK((x - b_dec) W_enc^T + b_enc)) W_dec + b_dec`."""

    is_normalised = True
    steps_are_alike = True
    can_divide = True
    folds = ("folded",)
    cfg: TopKConfig

    def selection(self) -> Selection:
        return TopK(self.cfg.k, self.sizes, self.partners)

    def penalties(self, out: Forward, step: Step) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Multi-TopK: `multi_coef` times the error with 4 k latents (§A.3)."""
        if self.cfg.multi_coef == 0:
            return {}
        select = TopK(min(4 * self.cfg.k, self.cfg.n_latents), out.sizes, self.partners)
        latents = kernels.encode(out.x, self.W_enc, self.b_enc, self.b_pre, select)
        return {"multi": self.cfg.multi_coef * self._error(self._decode(latents, out.skipped), out.target)}
