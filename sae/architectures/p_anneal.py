"""p-annealing: a ReLU dictionary whose penalty goes from L1 towards L0 while it learns.

Karvonen et al. 2024, "Measuring progress in dictionary learning for language model
interpretability with board game models", arXiv:2408.00113, §3.2.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures import architectures
from sae.architectures.configs import PAnnealConfig
from sae.dictionary import SAE, Forward, Shape, Step
from sae.latents import pieces
from sae.losses import row_sum
from sae.select import ReLU, Selection

QUEUE = 10  # recent batches on which the penalty keeps its size when p changes
LINEAR = 1e-4  # latents below it are on a line to 0 instead of f^p, whose slope there has no bound


@architectures.register("p_anneal")
class PAnnealSAE(SAE):
    """`loss = ||x - x_hat||^2 + coef_s sum_i f_i^{p_s}`.

    p falls from 1 to `p_end` in equal steps; at each, `coef_{s+1} = coef_s sum f^{p_s} / sum f^{p_{s+1}}`
    over recent batches, so that the penalty neither jumps nor vanishes.
    """

    is_normalised = False
    cfg: PAnnealConfig

    def __init__(self, cfg: PAnnealConfig, shape: Shape) -> None:
        super().__init__(cfg, shape)
        self.register_buffer("p", torch.ones(()))
        self.register_buffer("ratio", torch.ones(()))
        self.register_buffer("queue", torch.zeros(QUEUE, 2))
        self.p: Tensor
        self.ratio: Tensor
        """`coef_s / coef_0`."""
        self.queue: Tensor
        """Sums of `f^p` and of `f^(next p)` in each of the last batches."""

    def selection(self) -> Selection:
        return ReLU()

    def penalties(self, out: Forward, step: Step) -> Mapping[str, Tensor]:
        if self.training:
            self._anneal(step)
        coef = self.cfg.sparsity_coef * step.warm(self.cfg.sparsity_warmup) * self.ratio.item()
        return {"lp": coef * row_sum(out.latents, power(out.latents.values, self.p.item()))}

    def after_step(self, out: Forward) -> None:
        super().after_step(out)
        values = out.latents.values.detach()
        self.queue.copy_(self.queue.roll(1, dims=0))
        parts, powers = pieces(values), (self.p.item(), self._next(self.p).item())
        sums = [torch.stack([power(values[part].double(), p).sum() for part in parts]).sum() for p in powers]
        self.queue[0] = self.team.total(torch.stack(sums))

    def _next(self, p: Tensor) -> Tensor:
        return (p - (1 - self.cfg.p_end) / self.cfg.anneal_steps).clamp_min(self.cfg.p_end)

    @torch.no_grad()
    def _anneal(self, step: Step) -> None:
        """Take the next p when the run has come so far."""
        start = self.cfg.anneal_start
        share = (step.index / step.n_steps - start) / max(1 - start, 1e-9)
        taken = round((1 - self.p.item()) / (1 - self.cfg.p_end) * self.cfg.anneal_steps) if self.cfg.p_end < 1 else 0
        # the first fall comes after 1 / (anneal_steps + 1) of the annealing time, so that the last p has its share
        due = min(self.cfg.anneal_steps, int(share * (self.cfg.anneal_steps + 1))) if share > 0 else 0
        if due > taken and self.cfg.p_end < 1:
            here, there = self.queue.sum(0)
            self.ratio.mul_(here / there if there > 0 else 1.0)
            self.p.copy_(self._next(self.p))
            self.queue.zero_()


def power(values: Float[Tensor, "*nnz"], p: float) -> Float[Tensor, "*nnz"]:
    """`f^p`, and `f LINEAR^(p - 1)` below `LINEAR`: a slope of `f^p` at 1e-8 would outweigh all others."""
    return values * values.clamp_min(LINEAR) ** (p - 1)
