"""Switch: a router sends each row to one expert, whose latents alone are computed.

Mudide et al. 2024, "Efficient dictionary learning with switch sparse autoencoders",
arXiv:2410.08201.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae import kernels
from sae.architectures import architectures
from sae.architectures.configs import SwitchConfig
from sae.dictionary import SAE, Forward, Shape, Step
from sae.latents import Latents
from sae.select import Selection, TopK


@architectures.register("switch")
class SwitchSAE(SAE):
    """`p = softmax((x - b_router) W_router^T)`, expert `i = argmax p`, `x_hat = p_i f W_dec^i + b_dec` with f
    the TopK of the expert's own latents.

    The factor p_i belongs to the latents here: through it the router learns. Expert e owns latents
    `e m ... (e + 1) m`.
    """

    is_normalised = True
    folds = ("folded",)
    can_reseed = False  # the row may belong to another expert
    cfg: SwitchConfig

    def __init__(self, cfg: SwitchConfig, shape: Shape) -> None:
        super().__init__(cfg, shape)
        self.W_router = nn.Parameter(torch.zeros(cfg.n_experts, shape.d_in))
        self.b_router = nn.Parameter(torch.zeros(shape.d_in))

    def first_matrices(self, x: Tensor, target: Tensor, generator: torch.Generator) -> None:
        """As for every dictionary; the router's logits have a variance of 1, whatever the data's units."""
        self.W_router.copy_(torch.randn(self.W_router.shape, generator=generator) / self.input_size)
        self.b_router.copy_(self.b_dec if self.b_pre is not None else x.mean(0))
        super().first_matrices(x, target, generator)

    def row_groups(self, x: Float[Tensor, "n d_in"]) -> Sequence[Int[Tensor, " _"]]:
        """Those that are sent to each expert."""
        expert = self._route(x).argmax(dim=1)
        return [(expert == e).nonzero().flatten() for e in range(self.cfg.n_experts)]

    def units(self) -> Mapping[str, float]:
        # random rows of W_router have norm sqrt(d) / input_size, where those of the other matrices have 1
        router = {"W_router": self.shape.d_in**0.5 / self.input_size, "b_router": self.input_size}
        return {**super().units(), **router}

    def selection(self) -> Selection:
        """Of all latents; an expert's is that of its own."""
        return TopK(self.cfg.k, self.sizes)

    def _route(self, scaled: Tensor) -> Tensor:
        with torch.autocast(scaled.device.type, enabled=False):  # bfloat16 would send rows elsewhere
            return ((scaled - self.b_router) @ self.W_router.T).softmax(dim=1)

    def _encode(self, scaled: Tensor, select: Selection) -> Latents:
        routes = self._route(scaled)
        expert = routes.argmax(dim=1)
        size, sizes = self.cfg.n_latents // self.cfg.n_experts, select.sizes
        parts, where = [], []
        for e in range(self.cfg.n_experts):
            rows = (expert == e).nonzero().flatten()
            own = slice(e * size, (e + 1) * size)
            of_expert = TopK(self.cfg.k, None if sizes is None else sizes[own])
            part = kernels.encode(scaled[rows], self.W_enc[own], self.b_enc[own], self.b_pre, of_expert)
            parts.append((part.values, part.indices + e * size, part.pre_acts))
            where.append(rows)
        # every row has k latents: back to the order of rows by sorting rows alone
        back = torch.argsort(torch.cat(where))
        values, indices, pre_acts = (
            torch.cat(column).view(len(scaled), self.cfg.k)[back] for column in zip(*parts, strict=True)
        )
        values = values * routes.gather(1, expert[:, None])
        offsets = torch.arange(len(scaled) + 1, device=scaled.device) * self.cfg.k
        return Latents(values.flatten(), indices.flatten(), offsets, pre_acts.flatten(), self.cfg.n_latents)

    @torch.no_grad()
    def folded(self) -> SAE:
        """As for every linear dictionary, the router's input included."""
        plain = super().folded()
        if self.cfg.normalise == "whiten":
            W_router, b_router = plain.get_parameter("W_router"), plain.get_parameter("b_router")
            W_router.copy_(self.W_router.double() @ self.scaling.matrix.double())
            b_router.copy_(self.b_router.double() @ self.scaling.inverse.double() + self.scaling.mean.double())
        return plain

    def penalties(self, out: Forward, step: Step) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Load balance: `E sum_i F_i P_i`, F the share of rows sent to i, P its mean probability;
        1 where all experts share alike (§3)."""
        routes = self._route(out.x)
        rows = torch.bincount(routes.argmax(dim=1), minlength=self.cfg.n_experts).to(routes.dtype)
        share = self.team.mean(rows / len(routes))
        return {"balance": self.cfg.balance_coef * self.cfg.n_experts * (share * routes.mean(dim=0)).sum()}
