"""What a finished run has found, as exports read it: checked, and a block of latents at a time.

results = Results(Path("runs/embedded"))
for latent in results.latents(0, results.n_latents, ("top", "interval")):
    latent.row, latent.label, latent.examples
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.codes import StoredCodes, open_codes
from analysis.index.tables import Table
from sae.convert import places
from sae.errors import ConfigError
from sae.files import read_json
from sae.stage import Box, open_box, verify
from sae.tokens import TokenSplit, TokenStore, folder_of

BLOCK = 128  # latents whose rows are in memory together
LAYERED = "cross_layer_transcoder"
"""The architecture whose latents belong each to one of the sites that it reads, as many to each, in their order."""
LABEL_COLUMNS = ("latent", "status", "text", "scores", "f1_low", "f1_high", "token")


@dataclass(frozen=True, eq=False)
class Example:
    """A firing, and its latent's activations around it."""

    kind: str
    stratum: str
    split: str
    position: int
    at: int
    """Its place in the window."""
    tokens: list[int]
    """Ids of the window's tokens."""
    values: np.ndarray
    """Activations on them, float32."""


@dataclass(frozen=True, eq=False)
class Latent:
    """What is known of one latent."""

    row: Mapping[str, Any]
    """Of `index/latents.parquet`."""
    label: Mapping[str, Any]
    """`LABEL_COLUMNS` of `labels/labels.parquet`."""
    examples: Sequence[Example]


@dataclass(frozen=True)
class Group:
    """Latents that read the same site, or sites."""

    sites: tuple[str, ...]
    layer: int | None
    """The layer of the network in the sites' names, where it is one."""
    first: int
    last: int

    def has(self, latent: int) -> bool:
        return self.first <= latent < self.last

    @property
    def kind(self) -> str:
        """What of a layer is read, such as `mlp_out`; nothing where a site is named by its module, or sites differ."""
        kinds = {site.partition(".")[0] for site in self.sites}
        return kinds.pop() if len(kinds) == 1 and not any(":" in site for site in self.sites) else ""


class Results:
    """The boxes of a run, or of one dictionary of a sweep.

    Each box is compared with its checksums when it is first asked for, and a box that is missing, unfinished or damaged
    raises a StoreError.
    """

    def __init__(self, run: Path) -> None:
        self.run = run.resolve()
        self._boxes: dict[str, Box] = {}

    def box(self, name: str) -> Box:
        if name not in self._boxes:
            box = open_box(folder_of(self.run) if name == "tokens" else self.run / name)
            verify(box)
            self._boxes[name] = box
        return self._boxes[name]

    @property
    def digests(self) -> dict[str, str]:
        """Of each box that was read: what the export was made from."""
        return {name: box.digest for name, box in sorted(self._boxes.items())}

    # --- what the run is about ---

    @cached_property
    def dictionary(self) -> Mapping[str, Any]:
        """`dictionary.json`."""
        return read_json(self.box("dictionary").path / "dictionary.json")

    @property
    def model(self) -> str:
        return self.dictionary["facts"]["model"]

    @cached_property
    def groups(self) -> list[Group]:
        """All latents; those of a cross-layer transcoder by the site that they read."""
        sites, n = tuple(self.dictionary["facts"]["inputs"]), self.n_latents
        parts = [(site,) for site in sites] if self.dictionary["type"] == LAYERED else [sites]
        size = n // len(parts)
        return [Group(own, _layer(own), i * size, (i + 1) * size) for i, own in enumerate(parts)]

    def layers(self, chosen: int | None = None) -> list[int]:
        """The layer of each group, for a format that files latents by layer.

        Args:
            chosen: what the user says it is.

        Raises:
            ConfigError: it is in no site's name and was not said, or was said of several.
        """
        if chosen is not None:
            if len(self.groups) > 1:
                raise ConfigError(
                    f"layer = {chosen}: must be left out, the latents belong to {len(self.groups)} layers"
                )
            return [chosen]
        layers = [group.layer for group in self.groups if group.layer is not None]
        if len(set(layers)) < len(self.groups):
            sites = ", ".join(site for group in self.groups for site in group.sites)
            raise ConfigError(f"layer: the sites {sites} do not name one; say it with --set layer=…")
        return layers

    @property
    def n_latents(self) -> int:
        return self._latents.n_rows

    # --- what was found ---

    def latents(self, first: int, last: int, kinds: Sequence[str]) -> Iterator[Latent]:
        """Latents `first:last`, each with its examples of some kinds in the order of the table."""
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            rows = self._latents.block(start, stop).to_pylist()
            examples = self._examples_of(start, stop, kinds)
            for row, label, own in zip(rows, self.labels(start, stop), examples, strict=True):
                yield Latent(row, label, own)

    def _examples_of(self, first: int, last: int, kinds: Sequence[str]) -> list[list[Example]]:
        table = self._examples.block(first, last).combine_chunks()
        found: list[list[Example]] = [[] for _ in range(first, last)]
        names = ("latent", "kind", "stratum", "split", "position", "start", "stop")
        columns = [table[name].to_pylist() for name in names]
        offsets, flat = _lists(table["values"])
        for i, (latent, kind, stratum, split, position, start, stop) in enumerate(zip(*columns, strict=True)):
            if kind in kinds:
                tokens = self.split(split).tokens[start:stop].tolist()
                values = flat[offsets[i] : offsets[i + 1]]
                example = Example(kind, stratum, split, position, position - start, tokens, values)
                found[latent - first].append(example)
        return found

    def labels(self, first: int, last: int) -> Iterator[Mapping[str, Any]]:
        """`LABEL_COLUMNS` of latents `first:last`."""
        for start in range(first, last, BLOCK):
            yield from self._labels.block(start, min(start + BLOCK, last), LABEL_COLUMNS).to_pylist()

    def split(self, name: str) -> TokenSplit:
        """Its tokens and documents."""
        if name not in self._splits:
            self._splits[name] = self.tokens.split(name)
        return self._splits[name]

    def codes(self, split: str) -> StoredCodes:
        """Every firing on the kept contexts of a split."""
        return open_codes(self.box("codes"), split)

    @cached_property
    def tokens(self) -> TokenStore:
        return TokenStore(self.box("tokens"))

    @cached_property
    def strings(self) -> list[str]:
        """The text of each token id, with its leading space."""
        return pq.read_table(self.box("index").path / "tokens.parquet", columns=["text"])["text"].to_pylist()

    def texts(self, tokens: Sequence[int]) -> list[str]:
        return [self.strings[token] for token in tokens]

    @cached_property
    def _splits(self) -> dict[str, TokenSplit]:
        return {}

    @cached_property
    def _latents(self) -> Table:
        return Table(self.box("index").path / "latents.parquet")

    @cached_property
    def _examples(self) -> Table:
        return Table(self.box("index").path / "examples.parquet")

    @cached_property
    def _labels(self) -> Table:
        return Table(self.box("labels").path / "labels.parquet")


def short(value: float) -> float:
    """With five significant digits; activations are known to 0.2 %."""
    return float(f"{value:.5g}")


def shorts(values: np.ndarray) -> list[float]:
    """`short` of each; most are 0."""
    return [short(value) if value else 0.0 for value in values.tolist()]


def _layer(sites: Sequence[str]) -> int | None:
    layers = {places.layer(site) for site in sites}
    return layers.pop() if len(layers) == 1 else None


def _lists(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, values) of a column of lists."""
    lists = column.combine_chunks()
    return lists.offsets.to_numpy(), lists.values.to_numpy()
