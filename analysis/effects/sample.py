"""Where latents are taken away and where they are added: a few places of each, all over a split, by hash."""

from dataclasses import dataclass

import numpy as np

from analysis.codes import key, ranks_within, spread_out
from analysis.parts import in_hash_order, n_within, scrambled
from analysis.splits import View

TRIES = 4  # places looked at for each at which a latent should be silent


@dataclass(frozen=True, eq=False)
class Places:
    """Positions of a view, each for one latent, or for what stands in its place."""

    latents: np.ndarray
    """`[m]`, int64, ascending: its number."""
    positions: np.ndarray
    """`[m]`, int64."""
    values: np.ndarray
    """`[m]`, float32: the latent's activation there; 0 where it is silent."""

    def counts(self, n: int) -> np.ndarray:
        """Places of each, `[n]`."""
        return np.bincount(self.latents, minlength=n)

    def only(self, kept: np.ndarray) -> "Places":
        """Those of latents that are kept, `[n]` bool."""
        is_kept = kept[self.latents]
        return Places(self.latents[is_kept], self.positions[is_kept], self.values[is_kept])

    def shared(self, owners: np.ndarray, n: int) -> "Places":
        """With the places of `owners[i]`, once more, as those of number n + i; no number is as large yet."""
        starts, stops = (np.searchsorted(self.latents, owners + i) for i in (0, 1))
        entries = np.concatenate([np.arange(len(self.latents)), spread_out(starts, stops - starts)])
        numbers = np.concatenate([self.latents, np.repeat(n + np.arange(len(owners)), stops - starts)])
        return Places(numbers, self.positions[entries], self.values[entries])


def chosen_contexts(view: View, n_tokens: int) -> np.ndarray:
    """The number of the chosen context that each position lies in, -1 in the others and where nothing was encoded.

    Args:
        n_tokens: tokens of the chosen contexts together, at most; but one context at least.
    """
    starts = np.flatnonzero(view.offsets == 0)
    sizes = np.diff(np.append(starts, len(view.tokens)))
    order = in_hash_order(np.flatnonzero(np.logical_or.reduceat(view.valid, starts)))
    chosen = order[: n_within(sizes[order], n_tokens)]
    numbers = np.full(len(starts), -1)
    numbers[chosen] = np.arange(len(chosen))
    return np.where(view.valid, np.repeat(numbers, sizes), -1)


def firings(view: View, contexts: np.ndarray, n: int) -> Places:
    """Up to `n` firings of each latent, each in another context; which contexts and which firing is decided by hash.

    Args:
        contexts: from `chosen_contexts`.
    """
    codes = view.codes
    entries = np.flatnonzero(contexts[codes.positions] >= 0)
    latents = np.searchsorted(codes.offsets, entries, side="right") - 1
    positions = codes.positions[entries].astype(np.int64)
    own = contexts[positions]
    # positions of a latent ascend, so those of one context are neighbours
    begins = np.flatnonzero((np.diff(latents, prepend=-1) != 0) | (np.diff(own, prepend=-1) != 0))
    if len(begins) == 0:
        return Places(latents, positions, codes.values[entries])
    keyed = scrambled(positions) >> np.uint64(32) << np.uint64(32) | np.arange(len(entries)).astype(np.uint64)
    first = (np.minimum.reduceat(keyed, begins) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    order = np.lexsort((scrambled(latents[first] << 32 | own[first]), latents[first]))
    kept = order[ranks_within(latents[first][order], view.n_latents) < n]
    kept = np.sort(first[kept])
    return Places(latents[kept], positions[kept], codes.values[entries[kept]])


def silences(view: View, contexts: np.ndarray, latents: np.ndarray, n: int) -> Places:
    """Up to `n` positions for each of `latents` (ascending) at which it is silent, fewer where it seldom is."""
    ground = np.flatnonzero(contexts >= 0)
    tries = TRIES * n
    owners = np.repeat(latents, tries)
    drawn = scrambled(owners << 32 | np.tile(np.arange(tries), len(latents))) % np.uint64(len(ground))
    positions = ground[drawn.astype(np.int64)]
    _, is_firing = view.codes.at(owners, positions)
    first = np.unique(key(owners, positions), return_index=True)[1]
    is_first = np.zeros(len(owners), dtype=bool)
    is_first[first] = True
    kept = np.flatnonzero(is_first & ~is_firing)
    kept = kept[ranks_within(owners[kept], view.n_latents) < n]
    return Places(owners[kept], positions[kept], np.zeros(len(kept), np.float32))
