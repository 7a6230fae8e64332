"""Activations on disk: sharded safetensors that are read in place.

    activations/<site>/<split>-00000.safetensors {acts [rows, d]}   manifest.json

Row r of a split belongs to the r-th of its kept positions (`TokenSplit.kept_positions`), so that
activations, tokens and everything found later meet at the same position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae.errors import StoreError
from sae.files import publish
from sae.stage import Box

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Shard:
    """One file: `rows` rows of a split, the first of which is row `start` of it."""

    path: Path
    start: int
    rows: int


@dataclass(frozen=True)
class ActivationSplit:
    """The activations of one site on one split."""

    shards: Sequence[Shard]
    d_in: int

    @property
    def n_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        """Rows `start:stop` as float32; only these bytes are read from disk."""
        parts = []
        for shard in self.shards:
            first, last = max(start - shard.start, 0), min(stop - shard.start, shard.rows)
            if first < last:
                with safe_open(shard.path, framework="pt") as file:
                    parts.append(file.get_slice("acts")[first:last].float())
        return torch.cat(parts) if parts else torch.empty(0, self.d_in)


class ActivationStore:
    """A finished activations box: `store.split("mlp_out.3", "train")`."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.skip_positions: int = box.facts["skip_positions"]

    def sites(self) -> list[str]:
        return list(self.box.facts["sites"])

    def split(self, site: str, split: str) -> ActivationSplit:
        """One site on one split.

        Raises:
            StoreError: it was not harvested.
        """
        facts = self.box.facts["sites"].get(site)
        if facts is None or split not in facts["splits"]:
            raise StoreError(f"{self.box.path}: no activations of {site} on {split}; harvested: {self.sites()}")
        shards, start = [], 0
        for name, rows in facts["splits"][split]:
            shards.append(Shard(self.box.path / name, start, rows))
            start += rows
        return ActivationSplit(shards, facts["d_in"])


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
