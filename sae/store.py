"""Activations on disk: sharded safetensors that are read in place.

    activations/<site>/<split>-00000.safetensors {acts [rows, d]}   manifest.json

Row r of a split belongs to the r-th of its kept positions (`TokenSplit.kept_positions`), so that
activations, tokens and everything found later meet at the same position.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae.errors import StoreError
from sae.files import publish
from sae.scaling import SiteStats
from sae.stage import Box, checksums, is_whole

STRETCH_ROWS = 4096  # rows that lie side by side where some are taken from all over a split
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Shard:
    """One file: `rows` rows of a split, the first of which is row `start` of it."""

    path: Path
    start: int
    rows: int
    sha256: str | None = None
    """What the box's manifest says of it; None: it is of no box, and is not checked."""


class ActivationSplit(ABC):
    """The activations of one or more sites on one split, side by side."""

    is_computed: ClassVar[bool] = False
    """Whether rows are dear, so that processes that need the same share the work."""
    widths: tuple[int, ...]
    """Of each site."""
    n_rows: int

    @property
    def d(self) -> int:
        return sum(self.widths)

    @abstractmethod
    def stored(self, start: int, stop: int) -> Float[Tensor, "rows d"]:
        """Rows `start:stop` in the type in which they are kept."""

    def each(self, bounds: Sequence[tuple[int, int]]) -> Iterator[Float[Tensor, "rows d"]]:
        """The same of several stretches, one after the other."""
        return (self.stored(start, stop) for start, stop in bounds)

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d"]:
        """Rows `start:stop` as float32."""
        return self.stored(start, stop).float()


@dataclass(frozen=True)
class StoredSplit(ActivationSplit):
    """On disk; only the bytes that are asked for are read, once their shards have been."""

    columns: Sequence[Sequence[Shard]]
    """The shards of each site; rows of all sites are at the same positions."""
    widths: tuple[int, ...]

    @classmethod
    def of(cls, files: Sequence[Sequence[tuple[Path, int]]]) -> "StoredSplit":
        """Files of no box, and the rows of each, for each site."""
        columns = [_shards((path, rows, None) for path, rows in own) for own in files]
        return cls(columns, tuple(_width(shards[0].path) for shards in columns))

    @property
    def n_rows(self) -> int:  # type: ignore[override]
        return sum(shard.rows for shard in self.columns[0])

    def stored(self, start: int, stop: int) -> Float[Tensor, "rows d"]:
        """Raises:
        StoreError: a shard is missing or damaged; all of it is compared with its checksum before its first use.
        """
        read = [_read(shards, start, stop) for shards in self.columns]
        filled = [part if len(part) else torch.empty(0, d) for part, d in zip(read, self.widths, strict=True)]
        return torch.cat(filled, dim=1) if len(filled) > 1 else filled[0]


def _shards(files: Iterable[tuple[Path, int, str | None]]) -> list[Shard]:
    """Files whose rows follow one another: path, rows and checksum of each."""
    shards, start = [], 0
    for path, rows, sha256 in files:
        shards.append(Shard(path, start, rows, sha256))
        start += rows
    return shards


def _width(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return int(file.get_slice("acts").get_shape()[1])


def _read(shards: Sequence[Shard], start: int, stop: int) -> Tensor:
    parts = []
    for shard in shards:
        first, last = max(start - shard.start, 0), min(stop - shard.start, shard.rows)
        if first < last:
            _check(shard.path, shard.sha256)
            with safe_open(shard.path, framework="pt") as file:
                parts.append(file.get_slice("acts")[first:last])
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else torch.empty(0, 0)


@cache  # once a process, though training, evaluation and analysis each open the store anew
def _check(path: Path, sha256: str | None) -> None:
    if sha256 is not None and not is_whole(path, sha256):
        raise StoreError(
            f"{path}: missing or damaged (checksum differs); remove it and run the stage that builds it again"
        )


@dataclass(frozen=True)
class Places:
    """The sites that a dictionary reads and, if it is a transcoder, those that it writes."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...] | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((*self.inputs, *(self.outputs or ()))))

    @property
    def written(self) -> tuple[str, ...]:
        """The sites whose activations are reconstructed."""
        return self.inputs if self.outputs is None else self.outputs


@dataclass(frozen=True)
class Pairs:
    """Rows as a dictionary sees them: what it reads, and what that should become."""

    split: ActivationSplit
    sites: tuple[str, ...]
    """Of the split's columns."""
    places: Places

    @property
    def n_rows(self) -> int:
        return self.split.n_rows

    def widths(self, sites: Sequence[str]) -> tuple[int, ...]:
        return tuple(self.split.widths[self.sites.index(site)] for site in sites)

    def read(self, start: int, stop: int) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"]]:
        """Rows `start:stop` of both."""
        return self.pick(self.split.read(start, stop))

    def blocks(
        self, bounds: Sequence[tuple[int, int]], size: int
    ) -> Iterator[tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"]]]:
        """Both of the rows within some bounds, one stretch after the other, `size` rows at a time."""
        short = [(at, min(at + size, stop)) for start, stop in bounds for at in range(start, stop, size)]
        waiting, n_waiting = list[Tensor](), 0
        for stretch in self.split.each(short):
            waiting.append(stretch)
            n_waiting += len(stretch)
            while n_waiting >= size:
                together = torch.cat(waiting) if len(waiting) > 1 else waiting[0]
                yield self.pick(together[:size].float())
                waiting, n_waiting = [together[size:]], n_waiting - size
        if n_waiting:
            yield self.pick(torch.cat(waiting).float())

    def pick(self, rows: Float[Tensor, "rows d"]) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"]]:
        """Both out of rows of the whole split."""
        x = self._columns(rows, self.places.inputs)
        return x, x if self.places.outputs is None else self._columns(rows, self.places.outputs)

    def _columns(self, rows: Tensor, sites: Sequence[str]) -> Tensor:
        if tuple(sites) == self.sites:
            return rows
        parts = rows.split(list(self.split.widths), dim=1)
        chosen = [parts[self.sites.index(site)] for site in sites]
        return torch.cat(chosen, dim=1) if len(chosen) > 1 else chosen[0].contiguous()


class ActivationStore:
    """A finished activations box: `store.split(["mlp_out.3"], "train")`.

    Args:
        compute: gives the activations of some sites on a split that the box does not keep
            (`sae.harvest.ComputedSplit`).
    """

    def __init__(self, box: Box, compute: Callable[[Sequence[str], str], ActivationSplit] | None = None) -> None:
        self.box, self.compute = box, compute
        self.skip_positions: int = box.facts["skip_positions"]
        self._checksums = checksums(box.path)

    def sites(self) -> list[str]:
        return list(self.box.facts["sites"])

    def stats(self, site: str) -> SiteStats:
        """Moments of a site on the train split, or on a sample of it."""
        facts = self.box.facts["sites"][site]
        return SiteStats(facts["d_in"], facts["mean_norm"], facts["mean_square"])

    def mean(self, site: str) -> Float[Tensor, " d"]:
        """Mean of a site on the same rows."""
        return torch.tensor(self.box.facts["sites"][site]["mean"])

    def split(self, sites: Sequence[str], split: str) -> ActivationSplit:
        """Some sites on one split.

        Raises:
            StoreError: one was not harvested, or the split is not kept and cannot be computed here.
        """
        known = self.box.facts["sites"]
        for site in sites:
            if site not in known:
                raise self._missing(site, split)
        if split in self.box.facts.get("not_kept", ()):
            if self.compute is None:
                raise StoreError(
                    f"{self.box.path}: activations on {split} are not kept (harvest.keep_train = false), and no model "
                    "is here to compute them; harvest again with harvest.keep_train=true"
                )
            return self.compute(sites, split)
        columns = []
        for site in sites:
            if split not in known[site]["splits"]:
                raise self._missing(site, split)
            files = known[site]["splits"][split]
            columns.append(_shards((self.box.path / name, rows, self._checksums[name]) for name, rows in files))
        return StoredSplit(columns, tuple(known[site]["d_in"] for site in sites))

    def _missing(self, site: str, split: str) -> StoreError:
        return StoreError(f"{self.box.path}: no activations of {site} on {split}; harvested: {self.sites()}")

    def pairs(self, places: Places, split: str) -> Pairs:
        """What a dictionary at `places` is trained or measured on."""
        return Pairs(self.split(places.sites, split), places.sites, places)


def spread(n_rows: int, wanted: int) -> list[tuple[int, int]]:
    """Bounds of stretches of rows, evenly spaced, that hold about as many rows as are wanted, or all."""
    n, wanted = (-(-rows // STRETCH_ROWS) for rows in (n_rows, wanted))
    starts = np.unique(np.linspace(0, n - 1, min(n, wanted)).astype(int)) * STRETCH_ROWS
    return [(start, min(start + STRETCH_ROWS, n_rows)) for start in starts.tolist()]


def write_shard(path: Path, acts: Float[Tensor, "rows d_in"], dtype: torch.dtype) -> None:
    """Publish one shard.

    Raises:
        StoreError: a value is not finite in `dtype`; the message says what to do.
    """
    stored = rounded(acts, dtype, str(path))
    publish(path, lambda temporary: save_file({"acts": stored.contiguous()}, temporary))


def rounded(acts: Float[Tensor, "rows d_in"], dtype: torch.dtype, where: str) -> Tensor:
    """Activations as they are kept.

    Raises:
        StoreError: a value is not finite in `dtype`; the message says `where`, and what to do.
    """
    stored = acts.to(dtype)
    if not torch.isfinite(stored).all():
        largest = acts.abs().max().item()
        raise StoreError(
            f"{where}: an activation of size {largest:g} is not finite in {dtype}; use harvest.dtype=bfloat16 or "
            "float32"
        )
    return stored
