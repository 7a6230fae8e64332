"""From the logit lens and from what was measured on the fit split to one label, chosen on the select split, or none.

Tokens are proposed by how far they pull the whole next-token distribution, not by how far they change: to second order
KL(with ‖ without) is ½ Σ p Δ², the sum over tokens of squares of sqrt(p) Δ, with p the probability of a token and Δ the
change of its log-probability. A token that would never follow may change much, and matters to nobody.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.config import EffectsConfig
from analysis.effects.controls import Controls
from analysis.effects.intervene import Edits, Network
from analysis.effects.named import Kind, Named, Source, every_kind
from analysis.effects.sample import Places
from analysis.effects.units import Lens, Units
from analysis.lens import top_tokens
from analysis.splits import FitView, SelectView, View

MAX_SUMS = 1 << 26  # units times tokens of a table, of which there are three at a time: 256 MiB


@dataclass(frozen=True, eq=False)
class Chosen:
    """The frozen outcome for each unit that was measured, before anything is scored."""

    numbers: np.ndarray
    """`[n]`, ascending: the units."""
    kinds: list[Kind]
    named: Named
    """`[n, columns]`: the candidate tokens of each."""
    best: np.ndarray
    """`[n]`: the kind of its best candidate."""
    is_given: np.ndarray
    """`[n]`, bool: whether that is worth giving."""
    effects: np.ndarray
    """`[n]`: of the best candidate on the select split, in nats."""
    kl: np.ndarray
    """`[n]`: mean KL divergence of the next-token distribution without the unit from that with it, in nats."""

    def is_labelled(self, n_latents: int) -> np.ndarray:
        """`[n_latents]`, bool: whether a latent has a label."""
        is_labelled = np.zeros(n_latents, dtype=bool)
        is_labelled[self.numbers[self.is_given & (self.numbers < n_latents)]] = True
        return is_labelled


def choose(
    fit: tuple[FitView, Places],
    select: tuple[SelectView, Places],
    network: Network,
    units: Units,
    lens: Lens | None,
    controls: Controls,
    cfg: EffectsConfig,
) -> Chosen:
    """The best candidate of each unit that has places; the test split is out of reach here.

    Args:
        fit: the split, and places at which each unit is taken away: on both splits, or on none.
    """
    numbers = np.unique(fit[1].latents)
    sources: list[Source] = ["measured"] if lens is None else ["lens", "measured"]
    kinds = every_kind(sources, cfg.lengths)
    named = Named.of(np.concatenate(list(_candidates(*fit, numbers, network, units, lens, cfg))), controls)
    edits = taken_away(select[1], numbers)
    margins, kl = measured(select[0], edits, network, named)
    effects, errors = means(values_of(kinds, margins), edits.owners, len(numbers))
    sizes, _ = means(edits.sizes(units.norms), edits.owners, len(numbers))
    best, is_given = _judged(effects, errors, sizes, numbers >= units.n_latents, cfg)
    return Chosen(
        numbers=numbers,
        kinds=kinds,
        named=named,
        best=best,
        is_given=is_given,
        effects=np.take_along_axis(effects, best[:, None], axis=1)[:, 0],
        kl=means(kl, edits.owners, len(numbers))[0],
    )


def _judged(
    effects: np.ndarray, errors: np.ndarray, sizes: np.ndarray, is_random: np.ndarray, cfg: EffectsConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(the best kind of each unit, whether it is worth giving).

    A candidate stands as high as its effect is above that which `chance` of the random directions stay below with a
    candidate of its kind, for its size; the highest is best. It is given where its effect is reliable, and it stands
    higher than as many of the random directions' best.
    """
    bars = np.maximum(sizes[:, None] * chances(effects[is_random], sizes[is_random], cfg), cfg.min_effect)
    standing = effects / bars
    best = standing.argmax(axis=1)
    every = np.arange(len(effects))
    highest = standing[every, best]
    bar = np.quantile(highest[is_random], cfg.chance) if is_random.any() else 1.0
    is_reliable = effects[every, best] > cfg.certainty * errors[every, best]
    return best, is_reliable & (highest > max(1.0, bar))


def chances(effects: np.ndarray, sizes: np.ndarray, cfg: EffectsConfig) -> np.ndarray:
    """The effect for each unit of size that `chance` of the random directions stay below, of each kind `[k]`, from
    their effects `[n, k]` and sizes `[n]`; 0 where there are none."""
    if len(effects) == 0:
        return np.zeros(effects.shape[1])
    return np.quantile(effects / np.maximum(sizes, 1e-12)[:, None], cfg.chance, axis=0)


def taken_away(places: Places, numbers: np.ndarray) -> Edits:
    """Each unit removed at its places; the owner is its row among `numbers`, ascending, which has all of them."""
    return Edits(np.searchsorted(numbers, places.latents), places.positions, places.latents, -places.values)


def measured(view: View, edits: Edits, network: Network, named: Named) -> tuple[np.ndarray, np.ndarray]:
    """(what the unit adds to each token that is named of its owner `[m, columns]`, KL divergences `[m]`) by edit."""
    margins, kl = np.zeros((len(edits), named.tokens.shape[1]), np.float32), np.zeros(len(edits), np.float32)
    for outcomes in network.outcomes(view, edits):
        own = outcomes.edits
        found = named.margins(outcomes.change, edits.owners[own]).cpu().numpy()
        margins[own] = np.sign(edits.values[own])[:, None] * found
        kl[own] = outcomes.kl().cpu().numpy()
    return margins, kl


def values_of(kinds: Sequence[Kind], margins: np.ndarray) -> np.ndarray:
    """What a label of each kind would say, `[m, kinds]`, from the margins of all candidate tokens `[m, columns]`."""
    return np.stack([kind.values(margins) for kind in kinds], axis=1)


def means(values: np.ndarray, owners: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(means, their standard errors) of `values [m, …]` by owner, `[n, …]`; an owner has one at least."""
    counts = np.bincount(owners, minlength=n).reshape(-1, *[1] * (values.ndim - 1))
    sums, squares = np.zeros((n, *values.shape[1:])), np.zeros((n, *values.shape[1:]))
    np.add.at(sums, owners, values)
    result = sums / counts
    np.add.at(squares, owners, (values - result[owners]) ** 2)
    errors = np.sqrt(squares / np.maximum(counts - 1, 1) / counts)
    return result, np.where(counts > 1, errors, np.inf)


def _candidates(
    fit: FitView,
    places: Places,
    numbers: np.ndarray,
    network: Network,
    units: Units,
    lens: Lens | None,
    cfg: EffectsConfig,
) -> Iterator[np.ndarray]:
    """Tokens that may be named of each unit `[n, columns]`, as `every_kind` has them, a block at a time."""
    k, size = max(cfg.lengths), max(1, MAX_SUMS // len(fit.strings))
    for start in range(0, max(1, len(numbers)), size):
        block = numbers[start : start + size]
        is_own = np.zeros(units.n, dtype=bool)
        is_own[block] = True
        of_lens = None if lens is None else lens(units.directions[torch.from_numpy(block).to(units.directions.device)])
        found = [
            tokens
            for table in _pulls(fit, taken_away(places.only(is_own), block), len(block), network, of_lens)
            for tokens, _ in top_tokens(table, k)
        ]
        yield torch.cat(found, dim=1).cpu().numpy()


def _pulls(
    fit: FitView, edits: Edits, n: int, network: Network, lens: Float[Tensor, "n vocabulary"] | None
) -> list[Float[Tensor, "n vocabulary"]]:
    """How far each unit pulls each token, summed over its places: foretold by the lens, if there is one, and measured.

    The lens foretells Δ up to a scale: its change of the logit, less the mean of those changes under p.
    """
    vocabulary = len(fit.strings)
    measured = torch.zeros(n, vocabulary, device=network.device)
    foretold = torch.zeros_like(measured) if lens is not None else None
    for outcomes in network.outcomes(fit, edits):
        owners = torch.from_numpy(edits.owners[outcomes.edits]).to(network.device)
        roots = (outcomes.clean[:, :vocabulary] / 2).exp()[outcomes.at]
        measured.index_add_(0, owners, roots * outcomes.change[:, :vocabulary], alpha=-1)
        if lens is not None and foretold is not None:
            own = lens[owners, :vocabulary]
            foretold.index_add_(0, owners, roots * (own - (roots.square() * own).sum(dim=1, keepdim=True)))
    return [measured] if foretold is None else [foretold, measured]
