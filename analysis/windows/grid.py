"""A view cut into windows, and the windows in which a latent fires."""

from dataclasses import dataclass
from typing import Generic

import numpy as np

from analysis.codes import spread_out
from analysis.index.examples import TokenPlaces
from analysis.index.tables import Lists
from analysis.label.indexed import V

N_PLACES = 1024  # occurrences of each token that same-trigger windows are looked for at


@dataclass(frozen=True, eq=False)
class Grid(Generic[V]):
    """A view whose contexts are cut into windows side by side; the last of a context may be shorter.

    Windows without a position that counts are left out: of contexts that were not encoded.
    """

    view: V
    starts: np.ndarray
    """`[n_windows]`, int64, ascending: first position."""
    stops: np.ndarray
    """`[n_windows]`: one after the last."""
    of: np.ndarray
    """`[n]`, int64: the window of each position; -1 where there is none."""
    places: TokenPlaces
    """Up to 1,024 occurrences of each token, drawn by a hash."""

    @classmethod
    def cut(cls, view: V, width: int) -> "Grid[V]":
        starts = np.flatnonzero(view.offsets % width == 0)
        stops = np.append(starts[1:], len(view.tokens))
        counted = np.add.reduceat(view.valid, starts, dtype=np.int64) > 0
        of = np.repeat(np.where(counted, np.cumsum(counted) - 1, -1), stops - starts)
        positions = np.flatnonzero(view.valid)
        places = TokenPlaces(view.tokens, positions, len(view.strings), N_PLACES)
        return cls(view, starts[counted], stops[counted], of, places)

    @property
    def n_windows(self) -> int:
        return len(self.starts)

    def fired(self, latent: int) -> "Fired":
        positions, values = self.view.firing(latent)
        of = self.of[positions]
        firsts = np.flatnonzero(np.diff(of, prepend=-1))
        windows, bounds = of[firsts], np.append(firsts, len(positions))
        owners = np.repeat(np.arange(len(windows)), np.diff(bounds))
        strongest = np.lexsort((positions, -values, owners))[firsts]
        return Fired(windows, positions[strongest], values[strongest], bounds, positions, values)

    def documents(self, windows: np.ndarray) -> np.ndarray:
        """The document in which each of some windows begins."""
        return self.view.documents[self.starts[windows]]


@dataclass(frozen=True, eq=False)
class Fired:
    """The p windows in which a latent fires, and its m firings in them."""

    windows: np.ndarray
    """`[p]`, int64, ascending."""
    peaks: np.ndarray
    """`[p]`: position of the strongest firing, the first of equals."""
    values: np.ndarray
    """`[p]`, float32: how strong it is."""
    bounds: np.ndarray
    """`[p + 1]`: window i has firings `bounds[i]:bounds[i + 1]`."""
    firing_positions: np.ndarray
    """`[m]`, ascending."""
    firing_values: np.ndarray
    """`[m]`, float32."""

    def marks(self, which: np.ndarray, share: float) -> Lists:
        """Positions of the firings of at least `share` of the strongest, in some of the p windows."""
        sizes = np.diff(self.bounds)[which]
        entries = spread_out(self.bounds[which], sizes)
        owners = np.repeat(np.arange(len(which)), sizes)
        strong = self.firing_values[entries] >= share * self.values[which][owners]
        return Lists.of_sizes(np.bincount(owners[strong], minlength=len(which)), self.firing_positions[entries[strong]])
