"""Cross-layer transcoder layer by layer, from Ameisen et al. 2025 ("Circuit Tracing", Appendix).

`W_dec[l][m]` is what latents of layer l write to layer `l + m`.
"""

import torch
from torch import Tensor

from tests.reference import jumprelu


def pre_acts(x: list[Tensor], W_enc: list[Tensor], b_enc: list[Tensor]) -> list[Tensor]:
    return [a @ W.T + b for a, W, b in zip(x, W_enc, b_enc, strict=True)]


def latents(z: list[Tensor], threshold: list[Tensor], width: float, to_input: bool) -> list[Tensor]:
    return [jumprelu.latents(one, t, width, to_input) for one, t in zip(z, threshold, strict=True)]


def recon(f: list[Tensor], W_dec: list[list[Tensor]], b_dec: list[Tensor]) -> list[Tensor]:
    """`y_hat_l = sum over l' <= l of f_l' W_dec_(l' -> l) + b_l`."""
    return [
        b + sum(f[source] @ W_dec[source][layer - source] for source in range(layer + 1))
        for layer, b in enumerate(b_dec)
    ]


def loss(
    x: list[Tensor],
    y: list[Tensor],
    W_enc: list[Tensor],
    b_enc: list[Tensor],
    W_dec: list[list[Tensor]],
    b_dec: list[Tensor],
    threshold: list[Tensor],
    width: float,
    to_input: bool,
    c: float,
) -> dict[str, Tensor]:
    """The error, and both penalties without their weights."""
    z = pre_acts(x, W_enc, b_enc)
    f = latents(z, threshold, width, to_input)
    norms = [torch.cat(rows, dim=1).norm(dim=1) for rows in W_dec]
    errors = [((a - b) ** 2).sum(1).mean() for a, b in zip(recon(f, W_dec, b_dec), y, strict=True)]
    return {
        "mse": sum(errors),
        "tanh": sum(torch.tanh(c * one * norm).sum(1).mean() for one, norm in zip(f, norms, strict=True)),
        "preact": sum(
            (torch.relu(t - one) * norm).sum(1).mean() for one, t, norm in zip(z, threshold, norms, strict=True)
        ),
    }
