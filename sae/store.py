"""Activations on disk: sharded safetensors that are read in place.

    activations/<site>/<split>-00000.safetensors {acts [rows, d]}   manifest.json

Row r of a split belongs to the r-th of its kept positions (`TokenSplit.kept_positions`), so that
activations, tokens and everything found later meet at the same position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae.errors import StoreError
from sae.files import publish
from sae.scaling import SiteStats
from sae.stage import Box, checksums, is_whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Shard:
    """One file: `rows` rows of a split, the first of which is row `start` of it."""

    path: Path
    start: int
    rows: int
    sha256: str | None = None
    """What the box's manifest says of it; None: it is of no box, and is not checked."""


@dataclass(frozen=True)
class ActivationSplit:
    """The activations of one or more sites on one split, side by side."""

    columns: Sequence[Sequence[Shard]]
    """The shards of each site; rows of all sites are at the same positions."""
    widths: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        return sum(shard.rows for shard in self.columns[0])

    @property
    def d(self) -> int:
        return sum(self.widths)

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d"]:
        """Rows `start:stop` as float32; only these bytes are read, once their shards have been.

        Raises:
            StoreError: a shard is missing or damaged; all of it is compared with its checksum before its first use.
        """
        return self.stored(start, stop).float()

    def stored(self, start: int, stop: int) -> Float[Tensor, "rows d"]:
        """The same as they are stored."""
        read = [_read(shards, start, stop) for shards in self.columns]
        filled = [part if len(part) else torch.empty(0, d) for part, d in zip(read, self.widths, strict=True)]
        return torch.cat(filled, dim=1) if len(filled) > 1 else filled[0]


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
    """A finished activations box: `store.split(["mlp_out.3"], "train")`."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.skip_positions: int = box.facts["skip_positions"]
        self._checksums = checksums(box.path)

    def sites(self) -> list[str]:
        return list(self.box.facts["sites"])

    def stats(self, site: str) -> SiteStats:
        """Moments of a site on the train split."""
        facts = self.box.facts["sites"][site]
        return SiteStats(facts["d_in"], facts["mean_norm"], facts["mean_square"])

    def mean(self, site: str) -> Float[Tensor, " d"]:
        """Mean of a site on the train split."""
        return torch.tensor(self.box.facts["sites"][site]["mean"])

    def split(self, sites: Sequence[str], split: str) -> ActivationSplit:
        """Some sites on one split.

        Raises:
            StoreError: one was not harvested.
        """
        columns, widths = [], []
        for site in sites:
            facts = self.box.facts["sites"].get(site)
            if facts is None or split not in facts["splits"]:
                raise StoreError(f"{self.box.path}: no activations of {site} on {split}; harvested: {self.sites()}")
            shards, start = [], 0
            for name, rows in facts["splits"][split]:
                shards.append(Shard(self.box.path / name, start, rows, self._checksums[name]))
                start += rows
            columns.append(shards)
            widths.append(facts["d_in"])
        return ActivationSplit(columns, tuple(widths))

    def pairs(self, places: Places, split: str) -> Pairs:
        """What a dictionary at `places` is trained or measured on."""
        return Pairs(self.split(places.sites, split), places.sites, places)


def write_shard(path: Path, acts: Float[Tensor, "rows d_in"], dtype: torch.dtype) -> None:
    """Publish one shard.

    Raises:
        StoreError: a value is not finite in `dtype`; the message says what to do.
    """
    stored = acts.to(dtype)
    if not torch.isfinite(stored).all():
        largest = acts.abs().max().item()
        raise StoreError(
            f"{path}: an activation of size {largest:g} is not finite in {dtype}; use harvest.dtype=bfloat16 or float32"
        )
    publish(path, lambda temporary: save_file({"acts": stored.contiguous()}, temporary))
