"""GroupMax, a dictionary from outside the package: the latents lie in k groups, each row keeps the
largest of every group (the `groupmax` activation of EleutherAI's sparsify)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.architectures import architectures
from sae.architectures.configs import SAEConfig, configs
from sae.config import Positive, config
from sae.dictionary import SAE
from sae.latents import Entries
from sae.select import Selection


@dataclass(frozen=True)
class GroupMax(Selection):
    k: int

    def entries(self, pre_acts: Tensor) -> Entries:
        groups = pre_acts.view(len(pre_acts), self.k, -1)
        starts = torch.arange(self.k, device=pre_acts.device) * groups.shape[2]
        offsets = torch.arange(len(pre_acts) + 1, device=pre_acts.device) * self.k
        return Entries((groups.argmax(dim=2) + starts).flatten(), offsets)


@configs.register("group_max")
@config
class GroupMaxConfig(SAEConfig):
    k: Positive = 32
    """Groups, and so the most latents of a row; must divide n_latents."""

    def __post_init__(self) -> None:
        if self.n_latents % self.k:
            raise ValueError(f"sae.k = {self.k}: must divide n_latents = {self.n_latents}")


@architectures.register("group_max")
class GroupMaxSAE(SAE):
    is_normalised = True
    cfg: GroupMaxConfig

    def selection(self) -> Selection:
        return GroupMax(self.cfg.k)
