"""Crosscoders: one code for several sites, or for the same site of several models.

Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing"; with
BatchTopK, Minder et al. 2025, "Overcoming sparsity artifacts in crosscoders", arXiv:2504.02922.
The sites lie side by side in the rows, each scaled by itself, so that a crosscoder is a linear
dictionary that only measures its decoder differently.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures import architectures
from sae.architectures.configs import CrosscoderBatchTopKConfig, CrosscoderConfig
from sae.dictionary import SAE, Forward, Shape, Step
from sae.losses import weighted_l1
from sae.select import ReLU, Selection
from sae.threshold import ThresholdSAE


def site_norms(W_dec: Float[Tensor, "n_latents d_out"], shape: Shape) -> Float[Tensor, "n_latents n_sites"]:
    """Norm of what each latent writes into each site."""
    parts = W_dec.split(list(shape.outputs or shape.inputs), dim=1)
    return torch.stack([part.norm(dim=1) for part in parts], dim=1)


def sizes(dictionary: SAE, norm: str) -> Float[Tensor, " n_latents"]:
    """A latent's size: the sum of its norms over sites, or the norm of all of them together."""
    if norm == "concatenated":
        return dictionary.W_dec.norm(dim=1)
    return site_norms(dictionary.W_dec, dictionary.shape).sum(dim=1)


@torch.no_grad()
def set_site_norms(dictionary: SAE, norm: float) -> None:
    """Give every latent the same norm in every site; the encoder is its copy. Where whole rows have norm 1, sites
    share it."""
    shape = dictionary.shape
    widths = torch.tensor(shape.outputs or shape.inputs, device=dictionary.W_dec.device)
    if dictionary.cfg.decoder == "unit":
        norm = len(widths) ** -0.5
    each = site_norms(dictionary.W_dec, shape).repeat_interleave(widths, dim=1)
    dictionary.W_dec.mul_(norm / each)
    if shape.outputs is None:
        dictionary.W_enc.copy_(dictionary.W_dec)


@architectures.register("crosscoder")
class Crosscoder(SAE):
    """`f = ReLU(sum_l x_l W_enc,l^T + b_enc)`,

    `loss = sum_l ||x_l - x_hat_l||^2 + coef sum_i f_i sum_l ||W_dec,l,i||`.
    """

    is_normalised = False
    can_divide = True
    cfg: CrosscoderConfig

    def first_matrices(self, x: Tensor, target: Tensor, generator: torch.Generator) -> None:
        super().first_matrices(x, target, generator)
        set_site_norms(self, self.cfg.init_norm)

    def selection(self) -> Selection:
        return ReLU()

    def penalties(self, out: Forward, step: Step) -> Mapping[str, Tensor]:
        coef = self.cfg.sparsity_coef * step.warm(self.cfg.sparsity_warmup)
        return {"l1": coef * self.partners.summed(weighted_l1(out.latents, sizes(self, self.cfg.norm)))}


@architectures.register("crosscoder_batchtopk")
class BatchTopKCrosscoder(ThresholdSAE):
    """The batch keeps the largest `f_i sum_l ||W_dec,l,i||`; the threshold for use is in that unit too."""

    steps_are_alike = True
    can_divide = True
    cfg: CrosscoderBatchTopKConfig

    def first_matrices(self, x: Tensor, target: Tensor, generator: torch.Generator) -> None:
        super().first_matrices(x, target, generator)
        set_site_norms(self, self.cfg.init_norm)

    @property
    def sizes(self) -> Float[Tensor, " n_latents"]:
        return sizes(self, self.cfg.norm).detach()
