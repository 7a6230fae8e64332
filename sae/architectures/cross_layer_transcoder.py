"""Cross-layer transcoder: latents read one layer and write to it and to all that follow.

Ameisen, Lindsey et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models",
Transformer Circuits.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae import kernels
from sae.architectures import architectures
from sae.architectures.configs import CrossLayerTranscoderConfig
from sae.architectures.jumprelu import firing_biases, shortfall, uniform
from sae.dictionary import Dictionary, Forward, InputStats, Shape, Step
from sae.errors import ConfigError
from sae.latents import Latents, WideLatents
from sae.losses import row_sum, squared_error
from sae.scaling import Scaling
from sae.select import JumpReLU
from sae.weights import first_directions, rms_norm


@architectures.register("cross_layer_transcoder")
class CrossLayerTranscoder(Dictionary):
    """`f^l = JumpReLU(x^l W_enc^l^T + b_enc^l)`, `y_hat^l = sum over l' <= l: f^l' W_dec^{l'->l} + b_dec^l`,

    `loss = sum_l ||y^l - y_hat^l||^2 + coef sum_i tanh(c f_i ||W_dec,i||)`, the norm over all of a latent's
    decoders together. Layer l's latents are `l m ... (l + 1) m` for m = n_latents / n_layers.
    """

    cfg: CrossLayerTranscoderConfig

    def __init__(self, cfg: CrossLayerTranscoderConfig, shape: Shape) -> None:
        super().__init__()
        if shape.outputs is None or len(shape.outputs) != len(shape.inputs):
            raise ConfigError(
                "sae.type = cross_layer_transcoder: needs as many sites in train.target as in train.site, in order"
            )
        if cfg.n_latents % len(shape.inputs):
            raise ConfigError(f"sae.n_latents = {cfg.n_latents}: must be a multiple of the {len(shape.inputs)} layers")
        self.cfg, self.shape = cfg, shape
        self.size = cfg.n_latents // len(shape.inputs)
        later = [sum(shape.outputs[layer:]) for layer in range(len(shape.inputs))]
        self.W_enc = nn.ParameterList(torch.zeros(self.size, d) for d in shape.inputs)
        self.b_enc = nn.Parameter(torch.zeros(cfg.n_latents))
        self.W_dec = nn.ParameterList(torch.zeros(self.size, d) for d in later)
        self.b_dec = nn.Parameter(torch.zeros(shape.d_out))
        self.threshold = nn.Parameter(torch.full((cfg.n_latents,), cfg.threshold))
        self.input_size = self.target_size = 1.0  # root mean square of a row's norm at one layer
        self.scaling = Scaling(cfg.normalise, shape.inputs)
        self.target_scaling = Scaling(cfg.normalise, shape.outputs)

    @property
    def directions(self) -> Float[Tensor, "n_latents d_out"]:
        """What each latent writes to all layers, zeros where it comes too late."""
        return torch.cat([nn.functional.pad(W, (self.shape.d_out - W.shape[1], 0)) for W in self.W_dec])

    @torch.no_grad()
    def initialise(self, stats: InputStats, generator: torch.Generator) -> None:
        """Output biases at the means; a layer's latents read rows there, and write what these become from there on.
        With `init_l0`, as the paper: `W_enc ~ U(+-1/sqrt(m))`, m latents a layer, `W_dec ~ U(+-1/sqrt(d_out))`."""
        self.scaling.fit(stats.inputs, stats.x)
        self.target_scaling.fit(stats.outputs, stats.target)
        inputs, target = self.scaling.enter(stats.x), self.target_scaling.enter(stats.target)
        n_layers = len(self.shape.inputs)
        self.input_size, self.target_size = rms_norm(inputs, n_layers), rms_norm(target, n_layers)
        self.b_dec.copy_(target.double().mean(0))
        self.threshold.fill_(self.cfg.threshold)
        for layer, x in enumerate(inputs.split(list(self.shape.inputs), dim=1)):
            W_enc, W_dec, own = self.W_enc[layer], self.W_dec[layer], self._own(layer)
            if self.cfg.init_l0:
                uniform(W_enc, self.size**-0.5, generator)
                uniform(W_dec, self.shape.d_out**-0.5, generator)
                rate = self.cfg.init_l0 / self.cfg.n_latents
                self.b_enc[own] = firing_biases(x, W_enc, self.threshold[own], rate)
            else:
                sides = [x, target[:, -W_dec.shape[1] :]]
                read, written = first_directions(sides, self.size, self.cfg.init_decoder, generator)
                W_enc.copy_(self.cfg.init_norm * read)
                W_dec.copy_(self.cfg.init_norm * written)
                self.b_enc[own] = -(x.double().mean(0) @ W_enc.double().T)

    def units(self) -> Mapping[str, float]:
        return {"b_enc": self.input_size, "b_dec": self.target_size}

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Latents:
        return join([part for part, _ in self._encode(self.scaling.enter(x))])

    def decode(self, latents: Latents) -> Float[Tensor, "batch d_out"]:
        recon = self.b_dec.expand(latents.batch, -1)
        for layer, W in enumerate(self.W_dec):
            own = (latents.indices >= layer * self.size) & (latents.indices < (layer + 1) * self.size)
            part = latents.subset(own)
            part = Latents(part.values, part.indices - layer * self.size, part.offsets, part.pre_acts, self.size)
            recon = recon + self._write(part, W)
        return self.target_scaling.leave(recon)

    def forward(self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"], step: Step) -> Forward:
        x, target = self.scaling.enter(x), self.target_scaling.enter(target)
        parts = self._encode(x)
        recon = self.b_dec.expand(len(x), -1)
        penalty, below, warm = x.new_zeros(()), x.new_zeros(()), step.warm(self.cfg.sparsity_warmup)
        for layer, ((part, inputs), W) in enumerate(zip(parts, self.W_dec, strict=True)):
            recon = recon + self._write(part, W)
            norms = W.norm(dim=1)
            penalty = penalty + row_sum(part, torch.tanh(self.cfg.tanh_scale * part.values * part.pick(norms)))
            if self.cfg.preact_coef > 0:
                own = self._own(layer)
                pre_acts = torch.addmm(self.b_enc[own], inputs, self.W_enc[layer].T)
                below = below + shortfall(pre_acts, self.threshold[own], norms)
        terms = {"mse": squared_error(recon, target), "tanh": self.cfg.sparsity_coef * warm * penalty}
        if self.cfg.preact_coef > 0:
            terms["preact"] = self.cfg.preact_coef * below
        return Forward(x, target, join([part for part, _ in parts]), recon, terms)

    def constrain(self) -> None:
        with torch.no_grad():
            self.threshold.clamp_min_(0)

    def _own(self, layer: int) -> slice:
        return slice(layer * self.size, (layer + 1) * self.size)

    def _encode(self, scaled: Tensor) -> list[tuple[Latents, Tensor]]:
        """Each layer's latents, numbered from 0, and its input."""
        parts, bandwidth = [], self.cfg.bandwidth if self.training else 0.0
        for layer, inputs in enumerate(scaled.split(list(self.shape.inputs), dim=1)):
            own = self._own(layer)
            select = JumpReLU(self.threshold[own], bandwidth, self.cfg.ste_to_input)
            parts.append(
                (
                    kernels.encode(
                        inputs.contiguous(), self.W_enc[layer], self.b_enc[own], None, select, self.training
                    ),
                    inputs,
                )
            )
        return parts

    def _write(self, part: Latents, W: Tensor) -> Tensor:
        return nn.functional.pad(kernels.decode(part, W), (self.shape.d_out - W.shape[1], 0))


def join(parts: list[Latents]) -> Latents:
    """Latents of the same rows side by side, numbered on from part to part."""
    if all(isinstance(part, WideLatents) for part in parts):
        return WideLatents(
            *(torch.cat([getattr(part, side) for part in parts], dim=1) for side in ("values", "pre_acts"))
        )
    parts = [part.listed() if isinstance(part, WideLatents) else part for part in parts]
    rows = torch.cat([part.rows() for part in parts])
    order = torch.argsort(rows, stable=True)
    starts = [sum(part.n_latents for part in parts[:i]) for i in range(len(parts))]
    indices = torch.cat([part.indices + start for part, start in zip(parts, starts, strict=True)])
    offsets = torch.stack([part.offsets for part in parts]).sum(0)
    values, pre_acts = torch.cat([part.values for part in parts]), torch.cat([part.pre_acts for part in parts])
    n_latents = sum(part.n_latents for part in parts)
    return Latents(values[order], indices[order], offsets, pre_acts[order], n_latents)
