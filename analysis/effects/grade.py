"""Frozen labels on the test split: each latent is taken away and added, beside its nulls."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.config import EffectsConfig
from analysis.effects import sample
from analysis.effects.choose import Chosen, chances, means, taken_away, values_of
from analysis.effects.intervene import Edits, Network
from analysis.effects.named import Named
from analysis.effects.record import Effect
from analysis.effects.sample import Places
from analysis.effects.units import Units
from analysis.score import resamples
from analysis.splits import TestView
from sae.sums import interval


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels that are given, as tables."""

    latents: np.ndarray
    """`[n]`, ascending."""
    kinds: np.ndarray
    """`[n]`: their numbers."""
    signs: np.ndarray
    """`[n]`."""
    weights: np.ndarray
    """`[n, k]`: what each token counts; they sum to 1, and are 0 behind the last."""
    named: Named
    others: np.ndarray
    """`[n]`: the row of the label that each is compared with; its own where there is none."""

    @classmethod
    def of(cls, chosen: Chosen, n_latents: int, neighbours: np.ndarray) -> "Labels":
        """Tables of those of the latents.

        Args:
            neighbours: `[n_latents]`: the labelled latent that each is compared with, -1 where there is none.
        """
        rows = np.searchsorted(chosen.numbers, np.flatnonzero(chosen.is_labelled(n_latents)))
        latents, kinds = chosen.numbers[rows], chosen.best[rows]
        own = [chosen.kinds[kind] for kind in kinds]
        width = max((kind.stop - kind.start for kind in own), default=1)
        columns, weights = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.float32)
        for row, kind in enumerate(own):
            n = kind.stop - kind.start
            columns[row, :n], weights[row, :n] = np.arange(kind.start, kind.stop), 1 / n
        every = chosen.named[rows]
        tokens = np.take_along_axis(every.tokens, columns, axis=1)
        others = np.where(neighbours[latents] >= 0, neighbours[latents], latents)
        return cls(
            latents=latents,
            kinds=kinds,
            signs=np.array([kind.sign for kind in own], dtype=np.int64),
            weights=weights,
            named=Named(tokens, np.take_along_axis(every.controls, columns[:, :, None], axis=1)),
            others=np.searchsorted(latents, others),
        )

    def tokens(self, row: int) -> list[int]:
        """Those that a label names, the most affected first."""
        return self.named.tokens[row, self.weights[row] > 0].tolist()

    def said(self, change: Float[Tensor, "m vocabulary"], rows: np.ndarray) -> np.ndarray:
        """What label `rows[i]` says of change i, `[m]`: its tokens' mean margin, in the direction that it says."""
        margins = self.named.margins(change, rows).cpu().numpy()
        return self.signs[rows] * (margins * self.weights[rows]).sum(axis=1, dtype=np.float64)

    def percentiles(self, change: Float[Tensor, "m vocabulary"], rows: np.ndarray) -> np.ndarray:
        """Mean share of the other tokens that change less than the named ones, in the direction that the label says,
        `[m]`."""
        change = change * torch.from_numpy(self.signs[rows]).to(change)[:, None]
        tokens = torch.from_numpy(self.named.tokens[rows]).to(change.device)
        total = np.zeros(len(rows))
        for column in range(tokens.shape[1]):
            own = np.flatnonzero(self.weights[rows, column] > 0)
            at = torch.from_numpy(own).to(change.device)
            part = change[at]
            below = (part < part.gather(1, tokens[at, column : column + 1])).sum(dim=1).cpu().numpy()
            total[own] += self.weights[rows[own], column] * below / (change.shape[1] - 1)
        return total


def grade(
    labels: Labels,
    chosen: Chosen,
    amounts: np.ndarray,
    test: TestView,
    network: Network,
    units: Units,
    cfg: EffectsConfig,
) -> dict[str, dict[int, Effect]]:
    """The effects of each labelled latent: `removed` where it fires, `added` where it is silent.

    Args:
        amounts: `[n_latents]`: as how much activation each is added.
    """
    each = _edits(labels, chosen, amounts, test, units, cfg)
    found = _outcomes(Edits.joined(*each.values()), labels, chosen, test, network)
    of_edits = np.split(np.arange(len(found.values)), np.cumsum([len(edits) for edits in each.values()])[:-1])
    return {
        name: _effects(edits, found.only(own), labels, chosen, test, units, cfg)
        for (name, edits), own in zip(each.items(), of_edits, strict=True)
    }


def _edits(
    labels: Labels, chosen: Chosen, amounts: np.ndarray, test: TestView, units: Units, cfg: EffectsConfig
) -> dict[str, Edits]:
    """Both interventions of the labelled latents and, at the places of those for which they stand, of the random
    directions; the owner is the row of the unit in `chosen`."""
    asked = np.union1d(labels.latents, units.stands_for)
    contexts = sample.chosen_contexts(test, cfg.tokens)
    fired = sample.firings(test, contexts, cfg.firings).only(np.isin(np.arange(units.n_latents), asked))
    quiet = sample.silences(test, contexts, asked, cfg.firings)
    quiet = Places(quiet.latents, quiet.positions, amounts[quiet.latents])
    is_tested = np.arange(units.n) >= units.n_latents
    is_tested[labels.latents] = True
    fired, quiet = (each.shared(units.stands_for, units.n_latents).only(is_tested) for each in (fired, quiet))
    removed, added = (taken_away(places, chosen.numbers) for places in (fired, quiet))
    return {"removed": removed, "added": replace(added, values=-added.values)}


@dataclass(frozen=True, eq=False)
class _Outcomes:
    """What was measured of each edit."""

    values: np.ndarray
    """`[m, kinds]`: what a label of each kind would say."""
    others: np.ndarray
    """`[m]`: what the other latent's label says; 0 for random directions."""
    percentiles: np.ndarray
    """`[m]`: see `Labels.percentiles`; 0 for random directions."""

    def only(self, kept: np.ndarray) -> "_Outcomes":
        return _Outcomes(self.values[kept], self.others[kept], self.percentiles[kept])


def _outcomes(edits: Edits, labels: Labels, chosen: Chosen, test: TestView, network: Network) -> _Outcomes:
    margins = np.zeros((len(edits), chosen.named.tokens.shape[1]), np.float32)
    others, percentiles = np.zeros(len(edits)), np.zeros(len(edits))
    rows = np.full(len(chosen.numbers), -1)
    rows[np.searchsorted(chosen.numbers, labels.latents)] = np.arange(len(labels.latents))
    for outcomes in network.outcomes(test, edits):
        at = outcomes.edits
        signs = torch.from_numpy(np.sign(edits.values[at])).to(outcomes.change)
        change = outcomes.change[:, : len(test.strings)] * signs[:, None]
        margins[at] = chosen.named.margins(change, edits.owners[at]).cpu().numpy()
        labelled = np.flatnonzero(rows[edits.owners[at]] >= 0)
        change, at = change[torch.from_numpy(labelled).to(change.device)], at[labelled]
        own = rows[edits.owners[at]]
        others[at], percentiles[at] = labels.said(change, labels.others[own]), labels.percentiles(change, own)
    return _Outcomes(values_of(chosen.kinds, margins), others, percentiles)


def _effects(
    edits: Edits,
    found: _Outcomes,
    labels: Labels,
    chosen: Chosen,
    test: TestView,
    units: Units,
    cfg: EffectsConfig,
) -> dict[int, Effect]:
    """The effect of each labelled latent that has edits; those of one unit are neighbours."""
    numbers = chosen.numbers[edits.owners]
    sizes, documents = edits.sizes(units.norms), test.documents[edits.positions]
    bars = _bars(found.values, sizes, edits.owners, numbers >= units.n_latents, cfg)
    result = {}
    bounds = np.searchsorted(numbers, [labels.latents, labels.latents + 1]).T.tolist()
    for row, (start, stop) in enumerate(bounds):
        if start == stop:
            continue
        own, kind = slice(start, stop), labels.kinds[row]
        nats = found.values[own, kind]
        low, high = _interval(nats, documents[own], cfg)
        result[int(labels.latents[row])] = Effect(
            n=stop - start,
            nats=float(nats.mean()),
            low=low,
            high=high,
            right=float((nats > 0).mean()),
            percentile=float(found.percentiles[own].mean()),
            other_label=float(found.others[own].mean()) if labels.others[row] != row else None,
            chance=None if bars is None else float(bars[kind] * sizes[own].mean()),
        )
    return result


def _bars(
    values: np.ndarray, sizes: np.ndarray, owners: np.ndarray, is_random: np.ndarray, cfg: EffectsConfig
) -> np.ndarray | None:
    """The effect for each unit of size that most random directions stay below with their candidates, `[kinds]`; none
    where there are no random directions."""
    if not is_random.any():
        return None
    unique, of = np.unique(owners[is_random], return_inverse=True)
    effects, _ = means(values[is_random], of, len(unique))
    return chances(effects, means(sizes[is_random], of, len(unique))[0], cfg)


def _interval(values: np.ndarray, documents: np.ndarray, cfg: EffectsConfig) -> tuple[float | None, float | None]:
    """The 2.5 % and 97.5 % quantiles of the mean when documents are drawn anew."""
    unique, of = np.unique(documents, return_inverse=True)
    if len(unique) < cfg.min_firings:
        return None, None
    sums, counts = np.bincount(of, weights=values), np.bincount(of)
    draws = _draws(len(unique), cfg.resamples, cfg.seed)
    return interval(draws @ sums / (draws @ counts))


@lru_cache(maxsize=1024)
def _draws(n_documents: int, n_resamples: int, seed: int) -> np.ndarray:
    return resamples(n_documents, n_resamples, seed)
