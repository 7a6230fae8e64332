"""Dead latents start again at rows that the dictionary reconstructs badly.

Bricken et al. 2023, "Towards Monosemanticity", Transformer Circuits, appendix "Neuron resampling".
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.dictionary import SAE, Step
from sae.store import ActivationSplit, Pairs
from train.optim import Optimizer

RUN_ROWS = 64  # neighbours in the text that are read at once
CHUNK_ROWS = 8192  # rows whose loss is computed at once


def is_due(step: int, n_steps: int, batch: int, every: int) -> bool:
    """Whether before this step another `every` rows have been seen; only in the run's first half, so that
    what is resampled has time to learn."""
    return every > 0 and 0 < step <= n_steps // 2 and step * batch // every > (step - 1) * batch // every


def resample(
    dictionary: SAE,
    average: nn.Module | None,
    optimizer: Optimizer,
    pairs: Pairs,
    now: Step,
    n_rows: int,
    seed: int,
) -> Int[Tensor, " m"]:
    """Give dead latents new weights in place (see `SAE.reseed`); returns which.

    Each starts at a row of its own, drawn with a probability in proportion to the square of its loss
    from about `n_rows` rows. Sample and draw depend on the seed and the step alone.
    Moments of the weights that change begin at 0, and the average of the weights at them.
    """
    dead = torch.nonzero(now.dead).flatten()
    if len(dead) == 0:
        return dead
    x, target = (part.to(dead.device) for part in pairs.pick(sample(pairs.split, n_rows, seed, now.index)))
    rows = draw(row_losses(dictionary, x, target, now), len(dead), seed, now.index).to(dead.device)
    latents = dead[: len(rows)]
    dictionary.reseed(latents, x[rows], target[rows])
    for name in dictionary.per_latent:
        parameter = dictionary.get_parameter(name)
        optimizer.forget(parameter, latents)
        if average is not None:
            average.get_parameter(name).data[latents] = parameter.data[latents]
    return latents


def sample(split: ActivationSplit, n_rows: int, seed: int, step: int) -> Float[Tensor, "rows d"]:
    """About `n_rows` rows of a split, from short runs all over it."""
    n_runs = -(-split.n_rows // RUN_ROWS)
    runs = np.random.default_rng((seed, 12, step)).permutation(n_runs)[: -(-n_rows // RUN_ROWS)]
    bounds = [(run * RUN_ROWS, (run + 1) * RUN_ROWS) for run in sorted(runs.tolist())]
    return torch.cat([part.float() for part in split.each(bounds)])


@torch.no_grad()
def row_losses(
    dictionary: SAE, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], now: Step
) -> Float[Tensor, " rows"]:
    """Squared error of each row by itself, in the units that the dictionary is trained in."""
    dictionary.eval()
    quiet, losses = Step(now.index, now.n_steps, torch.zeros_like(now.dead)), []
    for some, wanted in zip(x.split(CHUNK_ROWS), target.split(CHUNK_ROWS), strict=True):
        out = dictionary(some, wanted, quiet)
        losses.append((out.recon - out.target).square().sum(dim=1))
    dictionary.train()
    return torch.cat(losses)


def draw(losses: Float[Tensor, " rows"], n: int, seed: int, step: int) -> Int[Tensor, " m"]:
    """`n` different rows, row i with a probability in proportion to `losses[i]^2`; fewer if fewer have a loss.

    Two latents that began at one row would be one latent for ever: their gradients are the same.
    """
    weights = losses.double().square().cpu().numpy()
    n = min(n, int(np.count_nonzero(weights)))
    if n == 0:
        return torch.zeros(0, dtype=torch.long)
    generator = np.random.default_rng((seed, 13, step))
    return torch.from_numpy(generator.choice(len(weights), n, replace=False, p=weights / weights.sum()))
