"""Matching pursuit: latents are chosen one after another, each for what the former ones left.

Costa et al. 2025, "From flat to hierarchical: extracting sparse representations with matching
pursuit", arXiv:2506.03093.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae import kernels
from sae.architectures import architectures
from sae.architectures.configs import MatchingPursuitConfig
from sae.dictionary import Dictionary, Forward, InputStats, Shape, Step
from sae.errors import ConfigError
from sae.latents import Entries, Latents
from sae.losses import squared_error
from sae.scaling import Scaling
from sae.weights import centre, first_directions, normalise_rows, remove_parallel_gradient, rms_norm

CHUNK_ROWS = 256  # rows whose scores of all latents are kept at a time: they should stay in cache


@architectures.register("matching_pursuit")
class MatchingPursuitSAE(Dictionary):
    """`r = x - b_dec`; k times: `j = argmax <r, d_i>`, `f_j += <r, d_j>`, `r -= <r, d_j> d_j`.

    Decoder rows d have norm 1, so each step takes `<r, d_j>^2` off `||r||^2`. A row stops where no
    score is positive, and as `residual_threshold` and `stop_on_repeat` say. Gradients run through the
    unrolled loop, the choices being constants.
    """

    cfg: MatchingPursuitConfig

    def __init__(self, cfg: MatchingPursuitConfig, shape: Shape) -> None:
        super().__init__()
        if shape.outputs is not None:
            raise ConfigError("sae.type = matching_pursuit: writes what it reads; leave train.target out")
        self.cfg, self.shape = cfg, shape
        self.W_dec = nn.Parameter(torch.zeros(cfg.n_latents, shape.d_in))
        self.b_dec = nn.Parameter(torch.zeros(shape.d_in))
        self.register_buffer("variance", torch.ones(()))
        self.variance: Tensor
        self.input_size = 1.0  # root mean square of a row's norm
        self.scaling = Scaling(cfg.normalise, shape.inputs)

    @property
    def directions(self) -> Float[Tensor, "n_latents d_out"]:
        return self.W_dec

    @torch.no_grad()
    def initialise(self, stats: InputStats, generator: torch.Generator) -> None:
        """Unit rows and the bias by the configuration."""
        self.scaling.fit(stats.inputs, stats.x)
        x = self.scaling.enter(stats.x, self.scaling.rows(stats.x))
        self.W_dec.copy_(first_directions([x], self.cfg.n_latents, self.cfg.init_decoder, generator)[0])
        self.b_dec.copy_(centre(x, self.cfg.init_bias))
        self.variance.copy_(x.double().var(dim=0, correction=0).sum())
        self.input_size = rms_norm(x)

    def units(self) -> Mapping[str, float]:
        return {"b_dec": self.input_size}

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Latents:
        return self._encode(self.scaling.enter(x, self.scaling.rows(x)))

    def decode(self, latents: Latents) -> Float[Tensor, "batch d_out"]:
        return self.scaling.leave(kernels.decode(latents, self.W_dec) + self.b_dec)

    def reconstruct(self, x: Float[Tensor, "batch d_in"]) -> tuple[Latents, Float[Tensor, "batch d_out"]]:
        rows = self.scaling.rows(x)
        latents = self._encode(self.scaling.enter(x, rows))
        return latents, self.scaling.leave(kernels.decode(latents, self.W_dec) + self.b_dec, rows)

    def row_sizes(self, x: Float[Tensor, "batch d_out"]) -> Float[Tensor, "batch 1"]:
        rows = self.scaling.rows(x)
        return super().row_sizes(x) if rows is None else rows.size

    def forward(self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"], step: Step) -> Forward:  # noqa: ARG002 - it writes what it reads, and has no schedule
        x = self.scaling.enter(x, self.scaling.rows(x))
        latents = self._encode(x)
        recon = kernels.decode(latents, self.W_dec) + self.b_dec
        return Forward(x, x, latents, recon, {"mse": squared_error(recon, x) / self.variance})

    def before_step(self) -> None:
        remove_parallel_gradient(self.W_dec)

    def constrain(self) -> None:
        normalise_rows(self.W_dec)

    def _encode(self, scaled: Tensor) -> Latents:
        residual, k = scaled - self.b_dec, self.cfg.k
        with torch.no_grad():
            gram = self.W_dec @ self.W_dec.T
            chosen = torch.cat([_pursue(part, self.W_dec, gram, k) for part in residual.split(CHUNK_ROWS)])
        scores: Tensor = _Replay.apply(residual, self.W_dec, chosen, self.cfg)  # type: ignore[assignment]
        # a latent that is taken again adds to its first entry; the later one keeps the value 0
        first = (chosen[:, :, None] == chosen[:, None, :]).int().argmax(dim=2)
        values = torch.zeros_like(scores).scatter_add(1, first, scores.relu())
        offsets = torch.arange(len(scaled) + 1, device=scaled.device) * k
        return Latents(values.flatten(), chosen.flatten(), offsets, scores.flatten(), self.cfg.n_latents)


def _pursue(residual: Tensor, W_dec: Tensor, gram: Tensor, k: int) -> Int[Tensor, "batch k"]:
    """Which latent each step takes. Scores are kept up to date by `gram = W_dec W_dec^T`: a step reads
    one row of it, where scoring anew would be a dense product.

    A row with no positive score takes whatever is largest; as its score is not positive, it adds nothing.
    """
    scores, chosen = residual @ W_dec.T, []
    for _ in range(k):
        value, index = scores.max(dim=1)
        chosen.append(index)
        scores.addcmul_(gram[index], value.relu()[:, None], value=-1)
    return torch.stack(chosen, dim=1)


class _Replay(torch.autograd.Function):
    """Scores `s_t = <r_t, d_t>` of the chosen latents, `r_{t+1} = r_t - c_t d_t`, `c_t = ReLU(s_t)`;
    0 once a row has stopped, and so without a gradient.

    Backward in the other order: with g the gradient of s and rho_t that of r_t,
    `a_t = g_t - 1[s_t > 0] <rho_{t+1}, d_t>`, `rho_t = rho_{t+1} + a_t d_t`, and d_t gets
    `a_t r_t - c_t rho_{t+1}`, summed over entries sorted by latent.
    """

    @staticmethod
    def forward(ctx: Any, residual: Tensor, W_dec: Tensor, chosen: Tensor, cfg: MatchingPursuitConfig) -> Tensor:
        residuals = residual.new_empty(chosen.shape[1], *residual.shape)
        scores = residual.new_empty(chosen.shape)
        has_stopped = torch.zeros(len(residual), dtype=torch.bool, device=residual.device)
        for t in range(chosen.shape[1]):
            residuals[t] = residual
            d = W_dec[chosen[:, t]]
            scores[:, t] = (residual * d).sum(dim=1).masked_fill(has_stopped, 0)
            residual = torch.addcmul(residual, d, scores[:, t, None].relu(), value=-1)
            if cfg.stop_on_repeat:
                has_stopped |= (scores[:, t] <= 0) | (chosen[:, :t] == chosen[:, t, None]).any(dim=1)
            if cfg.residual_threshold > 0:
                has_stopped |= residual.norm(dim=1) < cfg.residual_threshold
        ctx.save_for_backward(W_dec, chosen, residuals, scores)
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        W_dec, chosen, residuals, scores = ctx.saved_tensors
        rho, of_directions = torch.zeros_like(residuals[0]), torch.empty_like(residuals)
        for t in reversed(range(chosen.shape[1])):
            d, score = W_dec[chosen[:, t]], scores[:, t]
            a = grad[:, t] - torch.where(score > 0, (rho * d).sum(dim=1), 0)
            of_directions[t] = a[:, None] * residuals[t] - score.relu()[:, None] * rho
            rho = torch.addcmul(rho, d, a[:, None])
        flat = chosen.T.flatten()
        each = Entries(flat, torch.arange(len(flat) + 1, device=flat.device))
        ones = torch.ones_like(scores.flatten())
        grad_W = kernels.row_gradients(each, ones, of_directions.flatten(0, 1), len(W_dec))
        return rho, grad_W, None, None
