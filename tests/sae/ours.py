"""Small dictionaries of ours with random weights, one of every kind that a peer's format may hold."""

import torch
from torch import Tensor

from sae import architectures
from sae.architectures.configs import configs
from sae.dictionary import SAE, Dictionary, Shape
from sae.scaling import SiteStats
from tests.sae import checks

D, N = 6, 10
FACTS = {"inputs": ["mlp_out.3"], "outputs": None, "model": "tiny", "note": {"µ": [1.5, None]}}
SAME, OTHER, SQUARE = None, (5,), (D,)
# name: architecture, widths that it writes, choices
CASES: dict[str, tuple[str, tuple[int, ...] | None, dict]] = {
    "relu": ("relu", SAME, {}),
    "relu_free": ("relu", SAME, {"decoder": "free", "normalise": "none"}),
    "relu_april": ("relu_april", SAME, {}),
    "relu_whiten": ("relu", SAME, {"normalise": "whiten"}),
    "relu_row_norm": ("relu", SAME, {"normalise": "row_norm"}),
    "relu_layer_norm": ("relu", SAME, {"normalise": "layer_norm"}),
    "p_anneal": ("p_anneal", SAME, {}),
    "topk": ("topk", SAME, {"k": 3}),
    "topk_no_pre_bias": ("topk", SAME, {"k": 3, "pre_bias": False, "decoder": "free"}),
    "topk_multi": ("topk", SAME, {"k": 2, "multi_coef": 0.125, "normalise": "none"}),
    "topk_layer_norm": ("topk", SAME, {"k": 3, "normalise": "layer_norm"}),
    "batchtopk": ("batchtopk", SAME, {"k": 3}),
    "batchtopk_unset": ("batchtopk", SAME, {"k": 3, "normalise": "none"}),
    "matryoshka": ("matryoshka", SAME, {"k": 3, "groups": (0.2, 0.3, 0.5)}),
    "jumprelu": ("jumprelu", SAME, {"decoder": "free"}),
    "jumprelu_tanh": ("jumprelu_tanh", SAME, {}),
    "gated": ("gated", SAME, {}),
    "gated_no_pre_bias": ("gated", SAME, {"pre_bias": False}),
    "matching_pursuit": ("matching_pursuit", SAME, {"k": 3, "normalise": "none"}),
    "matching_pursuit_scaled": (
        "matching_pursuit",
        SAME,
        {"k": 5, "residual_threshold": 0.3, "stop_on_repeat": True},
    ),
    "relu_transcoder": ("relu", OTHER, {"decoder": "free"}),
    "relu_skip_transcoder": ("relu", OTHER, {"skip": True}),
    "jumprelu_transcoder": ("jumprelu", OTHER, {}),
    "jumprelu_skip_transcoder": ("jumprelu", SQUARE, {"skip": True}),
    "relu_skip_transcoder_layer_norm": ("relu", OTHER, {"skip": True, "normalise": "layer_norm"}),
    "batchtopk_transcoder": ("batchtopk", SQUARE, {"k": 3}),
    "topk_transcoder": ("topk", SQUARE, {"k": 3}),
    "topk_skip_transcoder": ("topk", SQUARE, {"k": 3, "skip": True, "normalise": "none"}),
    "topk_transcoder_of_another_width": ("topk", OTHER, {"k": 3}),
    "gated_transcoder": ("gated", OTHER, {}),
}
_AUTOENCODERS = {name for name, (_, outputs, _) in CASES.items() if outputs is None}
_BY_ROW = {"relu_row_norm", "relu_layer_norm", "topk_layer_norm"}
_PURSUIT = {"matching_pursuit", "matching_pursuit_scaled"}
_RELU = {"relu", "relu_free", "relu_april", "relu_whiten", "p_anneal"}
_THRESHOLD = {"batchtopk", "batchtopk_unset", "matryoshka", "jumprelu", "jumprelu_tanh"}
_TRANSCODERS = {"relu_transcoder", "jumprelu_transcoder", "batchtopk_transcoder"}
_SKIPS = {"relu_skip_transcoder", "jumprelu_skip_transcoder"}
HELD = {
    "saelens": _AUTOENCODERS | _TRANSCODERS | _SKIPS | {"relu_skip_transcoder_layer_norm"},
    "dictionary_learning": _AUTOENCODERS - _BY_ROW - _PURSUIT,
    "sparsify": {"topk", "topk_no_pre_bias", "topk_multi", "topk_transcoder", "topk_skip_transcoder"},
    "openai": {"topk_layer_norm"} | _RELU,
    "gemma_scope": _RELU | _THRESHOLD | _TRANSCODERS,
    "gemma_scope_2": _RELU | _THRESHOLD | _TRANSCODERS | _SKIPS,
}
"""What each format can hold."""


def make(name: str) -> Dictionary:
    """The dictionary, in evaluation mode; its buffers are not what they are at the start."""
    kind, outputs, choices = CASES[name]
    if kind in ("topk", "batchtopk", "matryoshka"):
        choices = {"decoder": "unit", **choices}  # as they are after training
    dictionary = architectures.build(kind, configs.get(kind)(n_latents=N, **choices), Shape((D,), outputs))
    generator = torch.Generator().manual_seed(sum(name.encode()))
    checks.fill(dictionary, generator)
    with torch.no_grad():
        for key, parameter in dictionary.named_parameters():
            parameter.mul_({"r_mag": 0.3, "threshold": 0.5}.get(key, 0.7))
        if choices.get("decoder", dictionary.cfg.__dict__.get("decoder", "unit")) == "unit":
            dictionary.directions.div_(dictionary.directions.norm(dim=1, keepdim=True))
    buffers = dict(dictionary.named_buffers())
    if dictionary.cfg.normalise in ("mean_norm", "rms"):
        buffers["scaling.scale"].fill_(0.37)
    if dictionary.cfg.normalise == "whiten":
        assert isinstance(dictionary, SAE)
        x = torch.randn(100, D, generator=generator) * torch.linspace(0.5, 2, D) + 1
        dictionary.scaling.fit([SiteStats(D, 1.0, 1.0)], x)
    if "target_scaling.scale" in buffers and dictionary.cfg.normalise != "none":
        buffers["target_scaling.scale"].fill_(2.9)
    buffers["variance"].fill_(3.3)
    if "threshold.total" in buffers and not name.endswith("unset"):
        buffers["threshold.total"].fill_(1.7)
        buffers["threshold.weight"].fill_(2.9)
    return dictionary.eval()


def rows(name: str, n: int = 40) -> Tensor:
    """Rows for it, the first of zeros, some small and some large."""
    generator = torch.Generator().manual_seed(len(name))
    return (
        1.5
        * torch.randn(n, D, generator=generator)
        * torch.logspace(-2, 1.5, n)[:, None].roll(1)
        * (torch.arange(n)[:, None] > 0)
    )
