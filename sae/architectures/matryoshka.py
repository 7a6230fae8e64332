"""Matryoshka: nested dictionaries in one, so that general latents are not absorbed by special ones.

Bussmann, Nabeshima, Karvonen & Nanda 2025, "Learning multi-level features with Matryoshka sparse
autoencoders", arXiv:2503.17547.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sae.architectures import architectures
from sae.architectures.configs import MatryoshkaConfig
from sae.dictionary import Forward, Step
from sae.threshold import ThresholdSAE


@architectures.register("matryoshka")
class MatryoshkaSAE(ThresholdSAE):
    """One BatchTopK over all latents; every prefix of them reconstructs by itself:
    `loss = sum over prefixes m: ||x - f_{1:m} W_dec,{1:m} - b_dec||^2 + AuxK` (eq. 3)."""

    folds = ("folded",)
    can_divide = True
    cfg: MatryoshkaConfig

    def penalties(self, out: Forward, step: Step) -> Mapping[str, Tensor]:  # noqa: ARG002
        """The errors of all prefixes but the last, which is the whole dictionary."""
        prefixes, latents = self.cfg.prefixes[:-1], out.latents
        first = self.partners.rank * latents.n_latents
        if not prefixes:
            return {}
        # entries of a row ascend, so the groups lie one behind the other: decoded as so many rows, each once
        groups = torch.bucketize(
            first + latents.indices, torch.tensor(prefixes, device=latents.indices.device), right=True
        )
        counts = torch.bincount(
            latents.rows() * len(self.cfg.prefixes) + groups, minlength=latents.batch * len(self.cfg.prefixes)
        )
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        split = replace(latents, offsets=offsets)
        parts = self._written(split, self.W_dec).view(latents.batch, len(self.cfg.prefixes), -1)
        rest, terms = out.recon, {}
        for i in reversed(range(len(prefixes))):
            rest = rest - parts[:, i + 1]
            terms[f"mse_{prefixes[i]}"] = self._error(rest, out.target)
        return terms
