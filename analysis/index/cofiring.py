"""Latents that fire together."""

import numpy as np

from analysis.codes import Codes, StoredCodes, best_of_each, spread_out
from analysis.index.tables import Columns, Lists

SAMPLE = 64  # firings of each latent at which the others are looked at
LEAST = 3  # of them at which another must fire to be named
N_COFIRING = 10
PAIRS = 1 << 23  # of a sampled firing and a latent, about, that are worked on at a time


def most_latents(l0: float) -> int:
    """How many latents may be asked of at a time.

    Args:
        l0: latents that are active at a token, on average.
    """
    return max(1, int(PAIRS / (SAMPLE * max(l0, 1))))


def columns(stored: StoredCodes, block: Codes, first: int, densities: np.ndarray) -> Columns:
    """The latents that fire where those of `block` do, the most telling first: by count times the logarithm of lift.

    Args:
        block: latents `first` and on of `stored`.
        densities: `[n_latents]`: share of the kept tokens on which each fires.
    """
    counts = block.counts()
    sampled = np.minimum(counts, SAMPLE)
    owners = np.repeat(np.arange(block.n_latents), sampled)
    ranks = spread_out(np.zeros_like(sampled), sampled)
    entries = block.offsets[owners] + (2 * ranks + 1) * counts[owners] // (2 * sampled[owners])
    order = np.argsort(block.positions[entries], kind="stable")
    bounds, others = stored.latents_at(block.positions[entries][order].astype(np.int64))
    keys = np.sort(np.repeat(owners[order], np.diff(bounds)) * len(densities) + others)
    begins = np.flatnonzero(np.diff(keys, prepend=-1))
    (latents, others), together = np.divmod(keys[begins], len(densities)), np.diff(np.append(begins, len(keys)))
    rates = together / np.maximum(sampled[latents], 1)
    lifts = rates / np.maximum(densities[others], 1e-12)
    named = (together >= LEAST) & (others != latents + first)
    merit = np.where(named, rates * np.log(lifts), 0)
    best, sizes = best_of_each(latents, merit, others, block.n_latents, N_COFIRING)
    lists = {"cofiring": others[best], "cofiring_rates": rates[best], "cofiring_lifts": lifts[best]}
    return {name: Lists.of_sizes(sizes, flat) for name, flat in lists.items()}
