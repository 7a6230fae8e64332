"""ReLU with an L1 penalty.

Bricken et al. 2023, "Towards Monosemanticity" (unit decoder rows), and Conerly et al. 2024,
"Update on how we train SAEs", Transformer Circuits, April (free decoder rows, whose norms weight
the penalty). One formula is both: where rows have norm 1, so has the weight.
"""

from collections.abc import Mapping

from torch import Tensor

from sae.architectures import architectures
from sae.architectures.configs import ReLUConfig
from sae.dictionary import SAE, Forward, Step
from sae.losses import weighted_l1
from sae.select import ReLU, Selection


@architectures.register("relu_april")
@architectures.register("relu")
class ReLUSAE(SAE):
    """`f = ReLU((x - b_pre) W_enc^T + b_enc)`, `loss = ||x - x_hat||^2 + coef sum_i f_i ||W_dec,i||`."""

    is_normalised = False
    can_divide = True
    folds = ("unit", "free")
    cfg: ReLUConfig

    def selection(self) -> Selection:
        return ReLU()

    def penalties(self, out: Forward, step: Step) -> Mapping[str, Tensor]:
        coef = self.cfg.sparsity_coef * step.warm(self.cfg.sparsity_warmup)
        return {"l1": coef * self.partners.summed(weighted_l1(out.latents, self.W_dec.norm(dim=1)))}
