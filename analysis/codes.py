"""The sparse activations of all latents over tokens, in both orders: `codes/<split>-NNNNN.safetensors`, a file a part.

A file has whole contexts (`analysis/parts.py`): `contexts [c]` says which, `row_starts [c + 1]` where the rows of each
begin, `positions [c]` at which position of the split. Latent l owns entries `offsets[l]:offsets[l + 1]` of `rows`
(ascending) and `values`; row r owns entries `row_offsets[r]:row_offsets[r + 1]` of `latents`, the strongest first.
An entry takes four bytes by latent and two (of more than 65,536 latents four) by row.

A value is kept in two bytes: a float32 without its sign, rounded to eight bits of mantissa (0.2 %). All that is said of
latents is of these values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from analysis.parts import Part
from sae.errors import StoreError
from sae.files import publish
from sae.stage import Box

DROPPED = 15  # bits of a float32's mantissa that are not kept
FEW_ROWS = 256  # that are read one by one; of more, all of the part is


def packed(values: np.ndarray) -> np.ndarray:
    """Positive float32 → uint16 > 0, to the nearest that can be kept; the order of values is that of their codes."""
    codes = (values.astype(np.float32).view(np.uint32) + (1 << (DROPPED - 1))) >> DROPPED
    return np.maximum(codes, 1).astype(np.uint16)


def unpacked(codes: np.ndarray) -> np.ndarray:
    """uint16 → float32."""
    return (codes.astype(np.uint32) << DROPPED).view(np.float32)


@dataclass(frozen=True, eq=False)
class Codes:
    """Non-zero activations of some latents, in memory, by latent."""

    offsets: np.ndarray
    """`[n_latents + 1]`, int64."""
    positions: np.ndarray
    """`[nnz]`, int32 (int64 in a split of 2^31 tokens or more), ascending within a latent."""
    values: np.ndarray
    """`[nnz]`, float32, all > 0."""

    @property
    def n_latents(self) -> int:
        return len(self.offsets) - 1

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions, values) at which `latent` fires."""
        entries = slice(self.offsets[latent], self.offsets[latent + 1])
        return self.positions[entries], self.values[entries]

    def counts(self) -> np.ndarray:
        """Firings of each latent, `[n_latents]`."""
        return np.diff(self.offsets)

    @cached_property
    def latents(self) -> np.ndarray:
        """The latent of each entry, `[nnz]`."""
        return np.repeat(np.arange(self.n_latents), self.counts())

    @cached_property
    def keys(self) -> np.ndarray:
        """`[nnz]`, int64, ascending: what `key` gives for each entry."""
        return key(self.latents, self.positions)

    def at(self, latents: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(entries, whether they are there) of some latents at some positions; others' entries are of no use."""
        wanted = key(latents, positions)
        if len(self.keys) == 0:
            return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
        entries = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return entries, self.keys[entries] == wanted

    def within(self, latents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of `latents`, entry) of the firings of each between two positions."""
        low, high = (np.searchsorted(self.keys, key(latents, bounds)) for bounds in (starts, stops))
        return np.repeat(np.arange(len(latents)), high - low), spread_out(low, high - low)


@dataclass(frozen=True, eq=False)
class PartCodes:
    """All non-zero activations of a part, in memory, in both orders."""

    offsets: np.ndarray
    """`[n_latents + 1]`, int64."""
    rows: np.ndarray
    """`[nnz]`, ascending within a latent."""
    values: np.ndarray
    """`[nnz]`, uint16, see `packed`."""
    row_offsets: np.ndarray
    """`[n_rows + 1]`, int64."""
    latents: np.ndarray
    """`[nnz]`, the strongest of a row first, of equals the lowest."""

    def write(self, path: Path, part: Part) -> None:
        """Publish the part's file."""
        where = {"contexts": part.contexts, "row_starts": part.row_starts, "positions": part.positions}
        arrays = {
            **{name: array.astype(np.int64) for name, array in where.items()},
            "offsets": self.offsets.astype(_narrowest(len(self.rows) + 1)),
            "rows": self.rows.astype(_narrowest(part.n_rows)),
            "values": self.values,
            "row_offsets": self.row_offsets.astype(_narrowest(len(self.rows) + 1)),
            "latents": self.latents.astype(_narrowest(len(self.offsets) - 1)),
        }
        publish(path, lambda temporary: save_file(arrays, temporary))


def _narrowest(n: int) -> type[np.unsignedinteger]:
    """What can count to n - 1."""
    return next(kind for kind in (np.uint16, np.uint32, np.uint64) if n - 1 <= np.iinfo(kind).max)


class StoredPart:
    """One file: what is asked for is read from it."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="numpy")
        self.part = Part(*(self._whole(name) for name in ("contexts", "row_starts", "positions")), is_kept=True)

    def _whole(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def _slice(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._slices[name][start:stop] if start < stop else np.zeros(0, np.uint32)

    @cached_property
    def _slices(self) -> dict[str, Any]:
        return {name: self._file.get_slice(name) for name in ("rows", "values", "latents")}

    @cached_property
    def offsets(self) -> np.ndarray:
        return self._whole("offsets").astype(np.int64)

    @cached_property
    def row_offsets(self) -> np.ndarray:
        return self._whole("row_offsets").astype(np.int64)

    def block(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(firings of each, positions, values) of latents `first:last`."""
        start, stop = int(self.offsets[first]), int(self.offsets[last])
        rows = self._slice("rows", start, stop).astype(np.int64)
        values = unpacked(self._slice("values", start, stop))
        return np.diff(self.offsets[first : last + 1]), self.part.position_of(rows), values

    def latents_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bounds, latents) of some rows: the i-th has `latents[bounds[i]:bounds[i + 1]]`, the strongest first."""
        starts, sizes = self.row_offsets[rows], self.row_offsets[rows + 1] - self.row_offsets[rows]
        bounds = np.append(0, np.cumsum(sizes))
        if len(rows) > FEW_ROWS:
            return bounds, self._whole("latents")[spread_out(starts, sizes)].astype(np.int64)
        found = [self._slice("latents", a, a + n) for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
        return bounds, np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


class StoredCodes:
    """The kept codes of one split. In memory stays where the entries of each latent begin in each part and, once they
    have been asked for, those of each row; entries are read."""

    def __init__(self, paths: Sequence[Path], n_tokens: int) -> None:
        self.parts = [StoredPart(path) for path in paths]
        self._dtype = np.int32 if n_tokens < 1 << 31 else np.int64
        self._first = np.array([stored.part.positions[0] for stored in self.parts])

    @property
    def n_latents(self) -> int:
        return len(self.parts[0].offsets) - 1

    @property
    def n_rows(self) -> int:
        return sum(stored.part.n_rows for stored in self.parts)

    def counts(self) -> np.ndarray:
        """Firings of each latent, `[n_latents]`."""
        return sum((np.diff(stored.offsets) for stored in self.parts), np.zeros(self.n_latents, np.int64))

    def positions(self) -> np.ndarray:
        """All positions that were encoded, ascending."""
        every = [stored.part.position_of(np.arange(stored.part.n_rows)) for stored in self.parts]
        return np.concatenate(every)

    def load(self) -> Codes:
        """All of them in memory."""
        return self.block(0, self.n_latents)

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions, values) at which `latent` fires."""
        return self.block(latent, latent + 1).of(0)

    def block(self, first: int, last: int) -> Codes:
        """Latents `first:last`, the first of which becomes 0."""
        read = [stored.block(first, last) for stored in self.parts]
        counts = np.stack([counts for counts, _, _ in read])
        offsets = np.append(0, np.cumsum(counts.sum(0)))
        if len(read) == 1:
            return Codes(offsets, read[0][1].astype(self._dtype), read[0][2])
        positions, values = np.empty(offsets[-1], self._dtype), np.empty(offsets[-1], np.float32)
        begins = offsets[:-1] + np.cumsum(counts, axis=0) - counts  # of each part's entries of each latent
        for own, begin, (_, where, what) in zip(counts, begins, read, strict=True):
            at = spread_out(begin, own)
            positions[at], values[at] = where, what
        return Codes(offsets, positions, values)

    def blocks(
        self, n_entries: int, n_latents: int, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[int, Codes]]:
        """(first latent, latents) of consecutive latents from `first` to before `last`: so many that they have these
        entries together, or one."""
        reached, end = np.append(0, np.cumsum(self.counts())), self.n_latents if last is None else last
        while first < end:
            full = int(np.searchsorted(reached, reached[first] + n_entries, side="right")) - 1
            stop = max(first + 1, min(full, first + n_latents, end))
            yield first, self.block(first, stop)
            first = stop

    def latents_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bounds, latents) that fire at some encoded positions, ascending; see `StoredPart.latents_of`."""
        edges = np.searchsorted(positions, np.append(self._first, np.iinfo(np.int64).max))
        sizes, found = [], []
        for stored, start, stop in zip(self.parts, edges[:-1], edges[1:], strict=True):
            if start < stop:
                bounds, latents = stored.latents_of(stored.part.row_of(positions[start:stop]))
                sizes.append(np.diff(bounds))
                found.append(latents)
        bounds = np.append(0, np.cumsum(np.concatenate(sizes))) if sizes else np.zeros(1, np.int64)
        return bounds, np.concatenate(found) if found else np.zeros(0, np.int64)


def key(latents: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """A number for each (latent, position) that orders by latent, then by position."""
    return latents.astype(np.int64) << 40 | positions


def ranks_within(owners: np.ndarray, n: int) -> np.ndarray:
    """The place of each among those of its owner; owners ascend from 0 to at most n - 1."""
    return np.arange(len(owners)) - np.searchsorted(owners, np.arange(n))[owners]


def best_of_each(
    owners: np.ndarray, merit: np.ndarray, ties: np.ndarray, n: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(which, how many of each owner): the k of greatest merit, > 0, of each of n owners; of equals the lower in
    `ties`."""
    order = np.flatnonzero(merit > 0)
    order = order[np.lexsort((ties[order], -merit[order], owners[order]))]
    order = order[ranks_within(owners[order], n) < k]
    return order, np.bincount(owners[order], minlength=n)


def spread_out(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers `starts[i]` to `starts[i] + sizes[i] - 1` of every i, one behind the other."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)


def part_path(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.safetensors"


def open_codes(box: Box, split: str) -> StoredCodes:
    """The kept codes of one split.

    Raises:
        StoreError: the box has none for it.
    """
    facts = box.facts["splits"].get(split)
    if facts is None or facts["kept_parts"] == 0:
        raise StoreError(f"{box.path}: no codes of the {split} split; run the index stage again")
    paths = [part_path(box.path, split, number) for number in range(facts["kept_parts"])]
    return StoredCodes(paths, facts["n_tokens"])
