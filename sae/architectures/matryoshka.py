"""Matryoshka: nested dictionaries in one, so that general latents are not absorbed by special ones.

Bussmann, Nabeshima, Karvonen & Nanda 2025, "Learning multi-level features with Matryoshka sparse
autoencoders", arXiv:2503.17547.
"""

import torch
from torch import Tensor

from sae.architectures import architectures
from sae.architectures.configs import MatryoshkaConfig
from sae.dictionary import Shape
from sae.latents import Latents
from sae.threshold import ThresholdSAE


@architectures.register("matryoshka")
class MatryoshkaSAE(ThresholdSAE):
    """One BatchTopK over all latents; every prefix of them reconstructs by itself:
    `loss = sum over prefixes m: ||x - f_{1:m} W_dec,{1:m} - b_dec||^2 + AuxK` (eq. 3)."""

    folds = ("folded",)
    steps_are_alike = True
    can_divide = True
    cfg: MatryoshkaConfig

    def __init__(self, cfg: MatryoshkaConfig, shape: Shape) -> None:
        super().__init__(cfg, shape)
        # on the dictionary's device: no tensor may be made from a list while a step is recorded
        self.register_buffer("starts", torch.tensor([0, *cfg.prefixes[:-1]]), persistent=False)
        self.starts: Tensor

    def errors(self, latents: Latents, skipped: Tensor | None, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of all prefixes, the longest first: it is the whole dictionary."""
        n, n_groups = latents.n_latents, len(self.starts)
        # entries of a row ascend, so the groups lie one behind the other: decoded as so many rows, each once
        starts = (self.starts - self.partners.rank * n).clamp(0, n)
        rows = n * torch.arange(latents.batch + 1, device=starts.device)
        firsts = torch.cat([(rows[:-1, None] + starts).flatten(), rows[-1:]])
        split = latents.entries.cut(torch.searchsorted(latents.entries.flat(n), firsts))
        written = self._written(Latents.of(latents.values, split, latents.pre_acts, n), self.W_dec)
        recon, errors = self._silent(skipped), {}
        for prefix, part in zip(self.cfg.prefixes, written.view(latents.batch, n_groups, -1).unbind(1), strict=True):
            recon = recon + part
            errors[f"mse_{prefix}"] = self._error(recon, target)
        _, whole = errors.popitem()
        return recon, {"mse": whole, **dict(reversed(errors.items()))}
