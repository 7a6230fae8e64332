"""The logit lens of a dictionary: which next tokens each latent's direction speaks for.

A direction written into the residual stream changes the logits, to first order and up to a common
scale, by `direction diag(g) W_U^T`, with the final norm's gain g folded in and, where that norm
subtracts the mean, the direction centred first (nostalgebraist 2020; Elhage et al. 2021).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.errors import ConfigError


def logit_effects(directions: Float[Tensor, "n d_model"], model: nn.Module) -> Float[Tensor, "n vocabulary"]:
    """Change of each next token's logit per unit of each direction, up to the norm's scale.

    Raises:
        ConfigError: the directions are not in the residual stream of a causal language model.
    """
    norm, unembed = final_norm(model), model.get_output_embeddings().weight  # type: ignore[operator, union-attr]
    if directions.shape[1] != unembed.shape[1]:
        raise ConfigError(
            f"directions of width {directions.shape[1]} are not in the residual stream (width {unembed.shape[1]})"
        )
    directions = directions.to(unembed.device)
    if isinstance(norm, nn.LayerNorm):
        directions = directions - directions.mean(dim=1, keepdim=True)
    gain = norm.get_parameter("weight")
    if type(norm).__name__.startswith("Gemma"):
        gain = gain + 1  # Gemma's norms store their gain less 1
    effects = (directions * gain) @ unembed.T
    return effects - effects.mean(dim=1, keepdim=True)


def final_norm(model: nn.Module) -> nn.Module:
    """The norm before the output layer."""
    places = ("transformer.ln_f", "model.norm", "gpt_neox.final_layer_norm")
    modules = dict(model.named_modules())
    for place in places:
        if place in modules:
            return modules[place]
    raise ConfigError(f"{type(model).__name__}: the final norm is not at any of {', '.join(places)}")


def top_tokens(effects: Float[Tensor, "n vocabulary"], k: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((promoted tokens, effects), (suppressed tokens, effects)), each `[n, k]`, strongest first."""
    high, low = torch.topk(effects, k, dim=1), torch.topk(-effects, k, dim=1)
    return (high.indices, high.values), (low.indices, -low.values)
