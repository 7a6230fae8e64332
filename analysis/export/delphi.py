"""The cache of activations that EleutherAI's delphi explains and scores from: every firing of the kept contexts.

    latents/<hookpoint>/<first>_<last>.safetensors   locations [n, 3] (row, place in it, latent − first),
                                                     activations [n], tokens [n_rows, context]
    latents/<hookpoint>/config.json
    explanations/<hookpoint>_latent<number>.txt      our labels, as JSON strings: what its scorers read

As delphi/latents/cache.py (`save_splits`, `save_config`) writes and delphi/latents/loader.py reads it (eai-delphi
0.1.3). Firings stand by latent, then by row and place; delphi's own stand by row first, and its loader sorts them by
latent.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from safetensors.numpy import save_file

from analysis.codes import Codes, StoredCodes
from analysis.export.results import Group, Results
from sae.config import config
from sae.errors import ConfigError
from sae.files import publish, write_json
from sae.tokens import TokenSplit

ENTRIES, MOST_LATENTS = 1 << 21, 4096  # firings, and latents, of a file


@config
class Options:
    """What is written, and what it is called."""

    hookpoint: Annotated[str, Field(pattern=r"^[^/]+$")] | None = None
    """Name of the folder, as delphi calls the module: h.8.mlp; none means our site's name."""
    split: Literal["train", "fit", "select", "test"] = "train"
    """Split of the text whose kept contexts are written."""


def write(results: Results, options: Options, out: Path) -> None:
    """Write all firings; those of a cross-layer transcoder as a hookpoint a layer.

    Raises:
        ConfigError: one name for several hookpoints.
        StoreError: nothing of the split was kept.
    """
    if options.hookpoint is not None and len(results.groups) > 1:
        raise ConfigError(f"hookpoint = {options.hookpoint!r}: must be left out, the latents belong to several sites")
    stored, split = results.codes(options.split), results.split(options.split)
    rows = Rows.of(stored, split)
    for group in results.groups:
        name = options.hookpoint or "+".join(site.removesuffix(":out") for site in group.sites)
        folder = out / "latents" / name
        n_files = 0
        for first, codes in stored.blocks(ENTRIES, MOST_LATENTS, group.first, group.last):
            _write_file(folder, first - group.first, codes, rows)
            n_files += 1
        write_json(folder / "config.json", _config(results, options, rows, n_files))
        _write_labels(results, group, out / "explanations", name)


@dataclass(frozen=True, eq=False)
class Rows:
    """Kept contexts, one behind the other, cut into rows of one length; what is left at the end is in none.

    Where contexts are packed, and so all but the last of one length, each is a row.
    """

    tokens: np.ndarray
    """`[n_rows, context]`, ids."""
    starts: np.ndarray
    """`[c]`: the position at which each context begins in its split, ascending."""
    begins: np.ndarray
    """`[c]`: where it begins among the rows' tokens."""

    @classmethod
    def of(cls, stored: StoredCodes, split: TokenSplit) -> "Rows":
        contexts = np.concatenate([each.part.contexts for each in stored.parts])
        starts, stops = split.context_starts[contexts], split.context_starts[contexts + 1]
        width = int(np.diff(split.context_starts).max())
        flat = np.concatenate([split.tokens[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)])
        n_rows = len(flat) // width
        lengths = stops - starts
        return cls(flat[: n_rows * width].reshape(n_rows, width), starts, np.cumsum(lengths) - lengths)

    def place(self, positions: np.ndarray) -> np.ndarray:
        """Where positions of kept contexts are among the rows' tokens; beyond them: in none."""
        context = np.searchsorted(self.starts, positions, side="right") - 1
        return self.begins[context] + positions - self.starts[context]


def _write_file(folder: Path, first: int, codes: Codes, rows: Rows) -> None:
    path, content = folder / f"{first}_{first + codes.n_latents - 1}.safetensors", _content(codes, rows)
    publish(path, lambda temporary: save_file(content, temporary))


def _content(codes: Codes, rows: Rows) -> dict[str, np.ndarray]:
    """One file's tensors, of the types that delphi writes, where those hold them: values are kept exactly."""
    n_rows, width = rows.tokens.shape
    places = rows.place(codes.positions)
    is_there = places < n_rows * width
    row, at = np.divmod(places[is_there], width)
    kind = np.uint16 if max(n_rows, width, codes.n_latents) <= 1 << 16 else np.uint32
    values = codes.values[is_there]
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return {
        "locations": np.stack([row, at, codes.latents[is_there]], axis=1).astype(kind),
        "activations": half if np.array_equal(half.astype(np.float32), values) else values,
        "tokens": rows.tokens,
    }


def _config(results: Results, options: Options, rows: Rows, n_files: int) -> Mapping[str, Any]:
    """`CacheConfig` of delphi/config.py, and the model's name."""
    n_rows, width = rows.tokens.shape
    data = results.tokens.box.inputs["data"]
    return {
        "dataset_repo": data["source"],
        "dataset_split": options.split,
        "dataset_name": data["subset"] or "",
        "dataset_column": data["text_column"],
        "cache_ctx_len": width,
        "n_tokens": n_rows * width,
        "n_splits": n_files,
        "model_name": results.model,
    }


def _write_labels(results: Results, group: Group, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for label in results.labels(group.first, group.last):
        if label["status"] == "labelled":
            path = folder / f"{name}_latent{label['latent'] - group.first}.txt"
            path.write_text(json.dumps(label["text"], ensure_ascii=False), encoding="utf-8")
