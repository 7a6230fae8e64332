"""What is known of each latent from every token that was encoded, in memory that does not grow with them.

Summaries of parts add up to that of all, in any order and any grouping, to the last bit: counts are integers, sums are
of integers, and of equal examples the one at the lower position is kept. So one process or several, without or with a
kill in between, end with the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from analysis.codes import PartCodes, ranks_within, spread_out, unpacked
from analysis.config import TOP, WINDOW
from analysis.parts import Part
from sae.errors import StoreError
from sae.files import publish
from sae.tokens import TokenSplit

BINS = 160  # of activation: eight an octave, of equal width in it, over 20 octaves; the outermost have what is beyond
BELOW = 12  # octaves below the unit that the bins begin at
SUM_BITS, SQUARE_BITS = 24, 30  # binary places of sums, in units
MOST = 1 << 16  # units that an activation counts for in sums, at most, so that they hold
OFFSETS = 42  # bins of a token's place in its context: 0, 1, 2, 3, 4-5, 6-7, 8-11, ... to 2^21


@dataclass(eq=False)
class Summary:
    """Of the activations of every latent on some parts of a split; `n` latents, `k` = TOP examples of `w` = WINDOW
    tokens."""

    unit: int
    """Bins and sums are relative to 2^unit, which is about as large as the activations are."""
    n_rows: int
    """Tokens that were encoded."""
    parts: np.ndarray
    """Numbers of the parts, ascending."""
    histogram: np.ndarray
    """`[n, BINS]`, int64: firings by activation, see `edges`."""
    sums: np.ndarray
    """`[n]`, int64: of activations, see `sum_of_values`."""
    squares: np.ndarray
    """`[n, 2]`, int64: of their squares, upper and lower halves; see `sum_of_squares`."""
    profile: np.ndarray
    """`[n, OFFSETS]`, int64: firings by place in the context, see `offset_edges`."""
    rows: np.ndarray
    """`[OFFSETS]`, int64: tokens by place in the context."""
    top_values: np.ndarray
    """`[n, k]`, uint16, see `codes.packed`: the strongest firing of each context, the strongest first; 0: no more."""
    top_positions: np.ndarray
    """`[n, k]`, int64; -1: no more."""
    top_windows: np.ndarray
    """`[n, k, w]`, uint16: the latent's activation on each token of the window around it (`window_of`)."""

    @classmethod
    def empty(cls, n_latents: int, unit: int) -> "Summary":
        def zeros(*shape: int, dtype: type = np.int64) -> np.ndarray:
            return np.zeros(shape, dtype)

        top = (n_latents, TOP)
        return cls(
            unit=unit,
            n_rows=0,
            parts=zeros(0),
            histogram=zeros(n_latents, BINS),
            sums=zeros(n_latents),
            squares=zeros(n_latents, 2),
            profile=zeros(n_latents, OFFSETS),
            rows=zeros(OFFSETS),
            top_values=zeros(*top, dtype=np.uint16),
            top_positions=zeros(*top) - 1,
            top_windows=zeros(*top, WINDOW, dtype=np.uint16),
        )

    @property
    def n_latents(self) -> int:
        return len(self.sums)

    def counts(self) -> np.ndarray:
        """Firings of each latent, `[n]`."""
        return self.histogram.sum(1)

    def peaks(self) -> np.ndarray:
        """The strongest activation of each latent, `[n]`, float32; 0 where it has not fired."""
        return unpacked(self.top_values[:, 0])

    def sum_of_values(self) -> np.ndarray:
        """`[n]`, float64: each activation rounded to 2^-24 units."""
        return np.ldexp(self.sums.astype(np.float64), self.unit - SUM_BITS)

    def sum_of_squares(self) -> np.ndarray:
        """`[n]`, float64: each square rounded to 2^-30 units squared."""
        upper, lower = self.squares.T.astype(np.float64)
        return np.ldexp(np.ldexp(upper, 32) + lower, 2 * self.unit - SQUARE_BITS)

    def edges(self) -> np.ndarray:
        """`[BINS + 1]`, float64: activations between which the bins lie."""
        octave, eighth = np.divmod(np.arange(BINS + 1), 8)
        return np.ldexp(1 + eighth / 8, octave + self.unit - BELOW)

    def add_part(self, part: Part, number: int, codes: PartCodes, split: TokenSplit) -> None:
        """Take in one part that is not among `parts`."""
        owners = np.repeat(np.arange(self.n_latents), np.diff(codes.offsets))
        bins = (codes.values >> 5).astype(np.int64) - 8 * (127 + self.unit - BELOW)
        self.histogram += _table(owners, np.clip(bins, 0, BINS - 1), self.histogram.shape)
        values = np.minimum(np.ldexp(unpacked(codes.values).astype(np.float64), -self.unit), MOST)
        self.sums += _by_latent(np.rint(values * (1 << SUM_BITS)).astype(np.int64), codes.offsets)
        squares = np.rint(values * values * (1 << SQUARE_BITS)).astype(np.int64)
        for half, addends in enumerate((squares >> 32, squares & 0xFFFFFFFF)):
            self.squares[:, half] += _by_latent(addends, codes.offsets)
        every = np.arange(part.n_rows)
        places = offset_bins(part.position_of(every) - split.context_starts[part.contexts[part.context_of(every)]])
        self.profile += _table(owners, places[codes.rows], self.profile.shape)
        self.rows += np.bincount(places, minlength=OFFSETS)
        self._merge_top(*self._top_of(part, codes, owners, split))
        self.n_rows += part.n_rows
        self.parts = np.union1d(self.parts, [number])

    def merge(self, other: "Summary") -> None:
        """Take in those of other parts."""
        for name in ("histogram", "sums", "squares", "profile", "rows"):
            np.add(getattr(self, name), getattr(other, name), out=getattr(self, name))
        self._merge_top(other.top_values, other.top_positions, other.top_windows)
        self.n_rows += other.n_rows
        self.parts = np.union1d(self.parts, other.parts)

    def _top_of(
        self, part: Part, codes: PartCodes, owners: np.ndarray, split: TokenSplit
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best examples of a part, as `top_values`, `top_positions` and `top_windows`; of those that are not as
        strong as the weakest that is known none."""
        n, k, width = self.top_windows.shape
        entries = np.flatnonzero(codes.values >= np.maximum(self.top_values[:, -1], 1)[owners])
        latents, rows, values = owners[entries], codes.rows[entries].astype(np.int64), codes.values[entries]
        # of the entries of a latent in a context, which are neighbours, the strongest, of equals the first
        contexts = part.context_of(rows)
        begins = np.flatnonzero(np.diff(latents * len(part.contexts) + contexts, prepend=-1))
        strength = values.astype(np.int64) << 32 | ((1 << 32) - 1 - rows)
        best = np.maximum.reduceat(strength, begins) if len(begins) else strength
        latents, values, rows = latents[begins], best >> 32, (1 << 32) - 1 - (best & 0xFFFFFFFF)
        order = np.argsort(latents << 16 | (0xFFFF - values), kind="stable")
        latents, values, rows = latents[order], values[order], rows[order]
        ranks = ranks_within(latents, n)
        own = ranks < k
        latents, values, rows, ranks = latents[own], values[own], rows[own], ranks[own]
        top_values, top_positions = np.zeros((n, k), np.uint16), np.full((n, k), -1, np.int64)
        top_windows = np.zeros((n, k, width), np.uint16)
        positions = part.position_of(rows)
        top_values[latents, ranks], top_positions[latents, ranks] = values, positions
        starts, stops = window_of(positions, split, width)
        # entries of the latent in the window: they lie in order of (latent, row)
        first = positions - rows  # what to take from a position in this context for its row
        keys = owners << 32 | codes.rows.astype(np.int64)
        low, high = (
            np.searchsorted(keys, latents << 32 | np.maximum(at - first, part.row_starts[part.context_of(rows)]))
            for at in (starts, stops)
        )
        sizes = high - low
        example = np.repeat(np.arange(len(rows)), sizes)
        entry = spread_out(low, sizes)
        where = codes.rows[entry].astype(np.int64) + first[example] - starts[example]
        top_windows[latents[example], ranks[example], where] = codes.values[entry]
        return top_values, top_positions, top_windows

    def _merge_top(self, values: np.ndarray, positions: np.ndarray, windows: np.ndarray) -> None:
        gain = np.flatnonzero(values[:, 0] > 0)  # latents that have an example to offer
        k = self.top_values.shape[1]
        mine, theirs = self.top_values[gain], values[gain]
        both = np.concatenate([mine, theirs], axis=1).astype(np.int64)
        where = np.concatenate([self.top_positions[gain], positions[gain]], axis=1)
        order = np.lexsort((where, -both), axis=1)[:, :k]
        every = np.concatenate([self.top_windows[gain], windows[gain]], axis=1)
        self.top_values[gain] = np.take_along_axis(both, order, axis=1)
        self.top_positions[gain] = np.take_along_axis(where, order, axis=1)
        self.top_windows[gain] = np.take_along_axis(every, order[:, :, None], axis=1)

    def save(self, path: Path) -> None:
        """Publish it."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        scalars = {"unit": np.array([self.unit]), "n_rows": np.array([self.n_rows])}
        publish(path, lambda temporary: save_file({**arrays, **scalars}, temporary))

    @staticmethod
    def parts_of(path: Path) -> np.ndarray:
        """The parts that a saved one is of."""
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor("parts")

    @classmethod
    def load(cls, path: Path) -> "Summary":
        """Read it.

        Raises:
            StoreError: the file is missing.
        """
        if not path.exists():
            raise StoreError(f"{path}: no summary of the latents; run the index stage again")
        arrays: Mapping[str, Any] = load_file(path)
        scalars = {name: int(arrays[name][0]) for name in ("unit", "n_rows")}
        return cls(**{**arrays, **scalars})


def _table(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """How often each pair occurs."""
    return np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)


def _by_latent(addends: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums of int64 between bounds."""
    running = np.append(0, np.cumsum(addends))
    return running[offsets[1:]] - running[offsets[:-1]]


def offset_bins(offsets: np.ndarray) -> np.ndarray:
    """The bin of each place in a context, from 0: two an octave."""
    octave = np.frexp(np.maximum(offsets, 1).astype(np.float64))[1] - 1
    bins = 2 * octave + (offsets >> np.maximum(octave - 1, 0) & 1)
    return np.minimum(np.where(offsets < 2, offsets, bins), OFFSETS - 1)


def offset_edges() -> np.ndarray:
    """`[OFFSETS]`, int64: the first place of each bin."""
    bins = np.arange(OFFSETS)
    return np.where(bins < 2, bins, (2 + (bins & 1)) << np.maximum(bins // 2 - 1, 0))


def window_of(positions: np.ndarray, split: TokenSplit, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the windows around some positions: mostly what comes before, never beyond the context."""
    contexts, _ = split.context_of(positions)
    starts = np.maximum(split.context_starts[contexts], positions - (3 * width) // 4)
    return starts, np.minimum(split.context_starts[contexts + 1], starts + width)
