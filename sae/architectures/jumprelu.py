"""JumpReLU: each latent has a threshold of its own, learnt through straight-through gradients.

Rajamanoharan et al. 2024, "Jumping ahead", arXiv:2407.14435; Lieberum et al. 2024, "Gemma Scope",
arXiv:2408.05147; Conerly et al. 2025, Transformer Circuits, January update (tanh penalty).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.architectures import architectures
from sae.architectures.configs import JumpReLUConfig
from sae.dictionary import SAE, Forward, Shape, Step
from sae.losses import row_sum
from sae.select import JumpReLU, Selection


@architectures.register("jumprelu_tanh")
@architectures.register("jumprelu")
class JumpReLUSAE(SAE):
    """`f = z H(z - threshold)`, `loss = ||x - x_hat||^2 + coef * penalty(f)`.

    The threshold itself is trained, in float32 and kept at 0 or above: with Adam its logarithm
    would move by the learning rate a step, a share of almost nothing for a small threshold.
    """

    is_normalised = False
    can_divide = True
    folds = ("unit", "free")
    per_latent = (*SAE.per_latent, "threshold")
    cfg: JumpReLUConfig

    def __init__(self, cfg: JumpReLUConfig, shape: Shape) -> None:
        super().__init__(cfg, shape)
        self.threshold = nn.Parameter(torch.full((cfg.n_latents,), cfg.threshold))

    def first_weights(
        self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"], generator: torch.Generator
    ) -> None:
        super().first_weights(x, target, generator)
        self.threshold.fill_(self.cfg.threshold)
        if self.cfg.init_l0:
            x = x if self.b_pre is None else x - self.b_pre
            self.b_enc.copy_(firing_biases(x, self.W_enc, self.threshold, self.cfg.init_l0 / self.cfg.n_latents))

    def first_matrices(self, x: Tensor, target: Tensor, generator: torch.Generator) -> None:
        """Where latents are to fire on the same share of the rows, those of Conerly et al. 2025."""
        if not self.cfg.init_l0:
            super().first_matrices(x, target, generator)
            return
        uniform(self.W_dec, self.shape.d_out**-0.5, generator)
        if self.target_scaling is None:
            self.W_enc.copy_(self.W_dec)
        else:
            uniform(self.W_enc, self.shape.d_in**-0.5, generator)
        self.W_enc.mul_(self.shape.d_in / self.cfg.n_latents)

    def selection(self) -> Selection:
        return self._jump() if self.training else JumpReLU(self.threshold)

    def _jump(self) -> JumpReLU:
        return JumpReLU(self.threshold, self.cfg.bandwidth, self.cfg.ste_to_input)

    def penalties(self, out: Forward, step: Step) -> Mapping[str, Tensor]:
        coef = self.cfg.sparsity_coef * step.warm(self.cfg.sparsity_warmup)
        terms = {self.cfg.penalty: coef * self._sparsity(out)}
        if self.cfg.preact_coef > 0:
            terms["preact"] = self.cfg.preact_coef * self.partners.summed(preact(self, self.threshold, out))
        return terms

    def _sparsity(self, out: Forward) -> Tensor:
        """The penalty named by `cfg.penalty`."""
        latents = out.latents
        if self.cfg.penalty == "tanh":
            strengths = self.cfg.tanh_scale * latents.values * latents.pick(self.W_dec.norm(dim=1))
            return self.partners.summed(row_sum(latents, torch.tanh(strengths)))
        l0 = self.partners.summed(self._jump().l0(latents))
        if self.cfg.penalty == "l0":
            return l0.mean()
        return (2 / self.cfg.target_l0 * (l0 - self.cfg.target_l0).square()).mean()

    @torch.no_grad()
    def reseed(self, latents: Int[Tensor, " m"], x: Float[Tensor, "m d_in"], target: Float[Tensor, "m d_out"]) -> None:
        super().reseed(latents, x, target)
        self.threshold[latents] = self.cfg.threshold

    def _scale_latents(self, by: Tensor) -> None:
        super()._scale_latents(by)
        self.threshold.mul_(by)

    def constrain(self) -> None:
        super().constrain()
        with torch.no_grad():
            self.threshold.clamp_min_(0)


def uniform(matrix: Tensor, limit: float, generator: torch.Generator) -> None:
    """Fill with `U(-limit, limit)`."""
    matrix.copy_((torch.rand(matrix.shape, generator=generator) * 2 - 1) * limit)


def firing_biases(
    x: Float[Tensor, "n d_in"], W_enc: Float[Tensor, "m d_in"], threshold: Float[Tensor, " m"], rate: float
) -> Float[Tensor, " m"]:
    """Biases by which each latent is above its threshold on a share `rate` of the rows, on half at most."""
    silent = min(max(1, round(len(x) * (1 - min(rate, 0.5)))), len(x) - 1)
    parts = [torch.kthvalue(x @ W.T, silent, dim=0).values for W in W_enc.split(256)]
    return threshold - torch.cat(parts)


def preact(dictionary: SAE, threshold: Tensor, out: Forward) -> Tensor:
    """`mean over rows of sum_i ReLU(threshold_i - pre_i) ||W_dec,i||`, over all latents."""
    centred = out.x if dictionary.b_pre is None else out.x - dictionary.b_pre
    pre_acts = torch.addmm(dictionary.b_enc, centred, dictionary.W_enc.T)
    return shortfall(pre_acts, threshold, dictionary.W_dec.norm(dim=1))


def shortfall(
    pre_acts: Float[Tensor, "batch n"], threshold: Float[Tensor, " n"], norms: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """`mean over rows of sum_i ReLU(threshold_i - pre_i) norm_i`, in float32 under autocast too."""
    with torch.autocast(pre_acts.device.type, enabled=False):
        return ((threshold - pre_acts.to(threshold.dtype)).relu() @ norms).mean()
