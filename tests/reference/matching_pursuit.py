"""Matching pursuit, from Costa et al. 2025 (arXiv:2506.03093): one row after another, scored anew at each step."""

import torch
from torch import Tensor


def pursue(u: Tensor, W_dec: Tensor, k: int) -> tuple[Tensor, list[int], list[Tensor]]:
    """Coefficients `[n_latents]` of one row u, the latents taken and the residuals, before each step and at the end.

    A row stops where no score is positive.
    """
    r, f = u, torch.zeros(len(W_dec), dtype=u.dtype)
    picks, residuals = [], [u]
    for _ in range(k):
        scores = W_dec @ r
        j = int(scores.argmax())
        if scores[j] <= 0:
            break
        f = f + scores[j] * torch.nn.functional.one_hot(torch.tensor(j), len(W_dec))
        r = r - scores[j] * W_dec[j]
        picks.append(j)
        residuals.append(r)
    return f, picks, residuals


def loss(x: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The latents of all rows, and the squared error (mean over rows) of what they decode to."""
    f = torch.stack([pursue(row - b_dec, W_dec, k)[0] for row in x])
    return f, ((f @ W_dec + b_dec - x) ** 2).sum(1).mean()
