"""Which examples of a latent are shown: pointers into the tokens, and its activation around each.

Beside the strongest, each of another context, they are samples: of intervals of activation, as shares of the latent's
maximum; of tenths of its firings, by rank; and of places of its commonest tokens where it is silent. A sample of
firings is spread over its stratum in order of strength, from a first one that a hash decides.
"""

from dataclasses import dataclass

import numpy as np

from analysis.codes import Codes, packed, ranks_within, spread_out, unpacked
from analysis.config import IndexConfig
from analysis.index.tables import Columns, Lists
from analysis.parts import scrambled
from analysis.summary import Summary, window_of
from sae.tokens import TokenSplit

INTERVALS = ((0.9, 1.0), (0.7, 0.9), (0.5, 0.7), (0.3, 0.5), (0.1, 0.3), (0.0, 0.1))
"""Intervals of activation, as shares of the latent's maximum, from high to low."""
N_QUANTILES = 10
N_PLACES = 256  # of each token that near misses are looked for at
N_TOKENS = 3  # a latent's triggers whose silences are near misses


def _percent(low: float, high: float) -> str:
    return f"{low:.0%}".rstrip("%") + f"-{high:.0%}"


STRATA = (
    *((f"{_percent(low, high)}", "interval") for low, high in INTERVALS),
    *((f"q{_percent(i / N_QUANTILES, (i + 1) / N_QUANTILES)}", "quantile") for i in reversed(range(N_QUANTILES))),
)
"""Name and kind of those that firings are drawn from."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Chosen positions of some latents, in any order."""

    latents: np.ndarray
    """`[m]`, from 0 in the block."""
    strata: np.ndarray
    """`[m]`: -1 the strongest, then `STRATA`, then `len(STRATA)` near misses."""
    ranks: np.ndarray
    positions: np.ndarray
    values: np.ndarray
    """`[m]`, float32."""

    def __add__(self, other: "Examples") -> "Examples":
        both = ((getattr(self, name), getattr(other, name)) for name in vars(self))
        return Examples(*(np.concatenate(pair) for pair in both))

    def in_order(self) -> "Examples":
        """By latent, stratum and rank."""
        order = np.lexsort((self.ranks, self.strata, self.latents))
        return Examples(*(array[order] for array in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Chooser:
    """Choose the examples of one block of latents after the other."""

    split: TokenSplit
    summary: Summary
    cfg: IndexConfig
    places: "TokenPlaces"

    def columns(self, codes: Codes, first: int, triggers: Lists) -> Columns:
        """Rows of the examples' table: of the latents of `codes`, which are `first` and on.

        Args:
            triggers: the tokens of each, the most frequent first.
        """
        top = self.strongest(codes.n_latents, first)
        drawn = self.drawn(codes, first, top)
        silent = self.silent(codes, triggers)
        chosen = (top + drawn + silent).in_order()
        starts, stops = window_of(chosen.positions, self.split, self.cfg.window)
        names = np.array([*(name for name, _ in STRATA), "silent", "top"])
        kinds = np.array([*(kind for _, kind in STRATA), "silent", "top"])
        n = len(chosen.latents)
        return {
            "latent": chosen.latents + first,
            "kind": kinds[chosen.strata],
            "stratum": names[chosen.strata],
            "rank": chosen.ranks,
            "split": np.full(n, self.split.name),
            "position": chosen.positions,
            "value": chosen.values,
            "start": starts,
            "stop": stops,
            "values": self._windows(codes, first, chosen, starts, stops),
        }

    def strongest(self, n: int, first: int) -> Examples:
        """Of all tokens that were encoded, each of another context."""
        values = self.summary.top_values[first : first + n, : self.cfg.top_examples]
        latents, ranks = np.nonzero(values)
        positions = self.summary.top_positions[first : first + n][latents, ranks]
        return Examples(latents, np.full(len(latents), -1), ranks, positions, unpacked(values[latents, ranks]))

    def drawn(self, codes: Codes, first: int, top: Examples) -> Examples:
        """From intervals of activation and of ranks, of those that are not among the strongest."""
        is_free = np.ones(len(codes.positions), bool)
        entries, is_kept = codes.at(top.latents, top.positions)
        is_free[entries[is_kept]] = False
        free = np.flatnonzero(is_free)
        strength = packed(codes.values[free]).astype(np.int64)
        # by latent and strength, of equals by position
        order = free[np.sort(codes.latents[free] << 43 | strength << 27 | np.arange(len(free))) & 0x7FFFFFF]
        latents = codes.latents[order]
        peaks = self.summary.peaks()[first : first + codes.n_latents].astype(np.float64)
        low, sizes = _strata(latents, codes.values[order] / peaks[latents], codes.n_latents)
        wanted = [
            self.cfg.interval_examples if kind == "interval" else self.cfg.quantile_examples for _, kind in STRATA
        ]
        counts = np.minimum(sizes, np.tile(wanted, codes.n_latents))
        # one of each of as many equal steps through the stratum, at a share of the step that a hash decides
        numbers = first * len(STRATA) + np.arange(len(counts))
        shifts = (scrambled(numbers) >> np.uint64(40)).astype(np.float64) / (1 << 24)
        strata = np.repeat(np.arange(len(counts)), counts)
        steps = spread_out(np.zeros_like(counts), counts)
        places = ((steps + shifts[strata]) * (sizes[strata] / counts[strata])).astype(np.int64)
        entries = order[low[strata] + places]
        return Examples(
            latents=strata // len(STRATA),
            strata=strata % len(STRATA),
            ranks=counts[strata] - 1 - steps,  # the strongest first
            positions=codes.positions[entries].astype(np.int64),
            values=codes.values[entries],
        )

    def silent(self, codes: Codes, triggers: Lists) -> Examples:
        """Places of the latents' first triggers where they do not fire."""
        sizes = np.minimum(np.diff(triggers.offsets), N_TOKENS)
        latents = np.repeat(np.arange(codes.n_latents), sizes)
        tokens = triggers.flat[spread_out(triggers.offsets[:-1], sizes)]
        owner, positions = self.places.of(tokens)
        latents = latents[owner]
        silent = np.flatnonzero(~codes.at(latents, positions)[1])
        silent = silent[np.lexsort((scrambled(positions[silent]), latents[silent]))]
        silent = silent[ranks_within(latents[silent], codes.n_latents) < self.cfg.silent_examples]
        latents, n = latents[silent], len(silent)
        ranks = ranks_within(latents, codes.n_latents)
        return Examples(latents, np.full(n, len(STRATA)), ranks, positions[silent], np.zeros(n, np.float32))

    def _windows(self, codes: Codes, first: int, chosen: Examples, starts: np.ndarray, stops: np.ndarray) -> Lists:
        """The latent's activation on each token of each window: of the strongest as their summary has it, of all
        others from the codes that are kept."""
        sizes = stops - starts
        windows = Lists.of_sizes(sizes, np.zeros(sizes.sum(), np.float32))
        is_top = chosen.strata == -1
        top = np.flatnonzero(is_top)
        shift = starts[top] - window_of(chosen.positions[top], self.split, self.summary.top_windows.shape[2])[0]
        known = self.summary.top_windows[chosen.latents[top] + first, chosen.ranks[top]]
        row = np.repeat(np.arange(len(top)), sizes[top])
        column = spread_out(shift, sizes[top])
        windows.flat[spread_out(windows.offsets[top], sizes[top])] = unpacked(known[row, column])
        rest = np.flatnonzero(~is_top)
        example, entries = codes.within(chosen.latents[rest], starts[rest], stops[rest])
        example = rest[example]
        windows.flat[windows.offsets[example] + codes.positions[entries] - starts[example]] = codes.values[entries]
        return windows


def _strata(latents: np.ndarray, shares: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(first entry, how many) of each stratum of each latent, `[n * strata]`, of entries by latent and strength.

    Args:
        shares: of the latent's maximum.
    """
    edges = np.array(sorted(low for low, _ in INTERVALS))
    inside = np.searchsorted(edges, shares, side="left") - 1
    starts = np.searchsorted(latents * len(INTERVALS) + inside, np.arange(n * len(INTERVALS) + 1))
    begins = np.searchsorted(latents, np.arange(n + 1))
    tenths = begins[:-1, None] + np.diff(begins)[:, None] * np.arange(N_QUANTILES + 1) // N_QUANTILES
    # from high to low, as they are named
    low = np.hstack([starts[:-1].reshape(n, -1)[:, ::-1], tenths[:, -2::-1]])
    sizes = np.hstack([np.diff(starts).reshape(n, -1)[:, ::-1], np.diff(tenths, axis=1)[:, ::-1]])
    return low.reshape(-1), sizes.reshape(-1)


class TokenPlaces:
    """Some places of every token among the kept positions, the same however they are gathered: those of the smallest
    hash."""

    def __init__(self, tokens: np.ndarray, positions: np.ndarray, vocabulary: int, n_places: int = N_PLACES) -> None:
        order = np.lexsort((scrambled(positions), tokens[positions]))
        order = order[ranks_within(tokens[positions[order]], vocabulary) < n_places]
        self._positions = positions[order]
        self._offsets = np.append(0, np.cumsum(np.bincount(tokens[self._positions], minlength=vocabulary)))

    def of(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of `tokens`, position) of each of their places."""
        sizes = np.diff(self._offsets)[tokens]
        return np.repeat(np.arange(len(tokens)), sizes), self._positions[spread_out(self._offsets[tokens], sizes)]
