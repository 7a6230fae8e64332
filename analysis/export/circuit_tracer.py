"""Features as circuit-tracer's front-end reads them, and labels for the nodes of its graphs.

    layer_8.bin     a record a latent: the length of what follows (uint32, little-endian), and zlib-compressed JSON
    index.json.gz   {"8": {"filename": "layer_8.bin", "offsets": [...]}}: where each record begins, and the last ends
    clerps.json     {"<feature>": "label"} of all latents with a label: the front-end takes labels from a graph's nodes

The fields of a record are those of `Model` in decoderesearch/circuit-tracer, circuit_tracer/frontend/feature_models.py;
the files are read by frontend/assets/feature_examples/init-feature-examples.js. A feature's number is the pairing of
layer and latent that its graphs have (Cantor's, frontend/graph_models.py).
"""

import gzip
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from analysis.export.results import Example, Latent, Results, short, shorts
from sae.config import config
from sae.files import write_json

KINDS = ("top", "interval", "quantile")
PERCENTS = np.arange(1, 101) / 100


@config
class Options:
    """What the run does not say."""

    layer: Annotated[int, Field(ge=0)] | None = None
    """Layer of the network; none means the one in the site's name."""


def write(results: Results, options: Options, out: Path) -> None:
    """Write all latents; those of a cross-layer transcoder as a file a layer.

    Raises:
        ConfigError: the layer is not known.
    """
    index, clerps = {}, {}
    for group, layer in zip(results.groups, results.layers(options.layer), strict=True):
        name, offsets = f"layer_{layer}.bin", [0]
        owner = f"{results.model}/{'+'.join(group.sites)}"
        with (out / name).open("wb") as file:
            for number, latent in enumerate(results.latents(group.first, group.last, KINDS)):
                record = _packed({"transcoder_id": owner, "index": number, **_feature(results, latent)})
                file.write(record)
                offsets.append(offsets[-1] + len(record))
                if latent.label["status"] == "labelled":
                    clerps[str(paired(layer, number))] = latent.label["text"]
        index[str(layer)] = {"filename": name, "offsets": offsets}
    with gzip.GzipFile(out / "index.json.gz", "wb", mtime=0) as file:
        file.write(_json(index))
    write_json(out / "clerps.json", clerps)


def paired(layer: int, latent: int) -> int:
    """The number of a latent's nodes in a graph."""
    return (layer + latent) * (layer + latent + 1) // 2 + latent


def _feature(results: Results, latent: Latent) -> dict[str, Any]:
    row = latent.row
    return {
        "examples_quantiles": _quantiles(results, latent.examples),
        "top_logits": results.texts(row["promoted_tokens"]),
        "bottom_logits": results.texts(row["suppressed_tokens"]),
        "act_min": 0.0,
        "act_max": short(row["max_value"]),
        "quantile_values": _percentiles(row["bin_edges"], row["bin_counts"], row["max_value"]),
        "histogram": row["histogram"],
        "activation_frequency": short(row["density"]),
    }


def _quantiles(results: Results, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Examples by stratum; one that has been shown in a former stratum is marked."""
    found: dict[str, list[dict[str, Any]]] = {}
    seen: set[tuple[str, int]] = set()
    for example in examples:
        place = (example.split, example.position)
        found.setdefault(_title(example), []).append(
            {
                "tokens": results.texts(example.tokens),
                "tokens_acts_list": shorts(example.values),
                "train_token_ind": example.at,
                "is_repeated_datapoint": place in seen,
            }
        )
        seen.add(place)
    return [{"quantile_name": name, "examples": own} for name, own in found.items()]


def _title(example: Example) -> str:
    if example.kind == "top":
        return "Strongest"
    if example.kind == "interval":
        return f"{example.stratum} of the maximum"
    return f"{example.stratum.removeprefix('q')} of firings by rank"


def _percentiles(edges: Sequence[float], counts: Sequence[int], highest: float) -> list[float]:
    """Activations below which 1 %, 2 %, … 100 % of the firings lie, even within each bin; none for a dead latent."""
    if not counts:
        return []
    reached = np.append(0, np.cumsum(counts)) / np.sum(counts)
    return [short(value) for value in np.minimum(np.interp(PERCENTS, reached, edges), highest)]


def _packed(feature: dict[str, Any]) -> bytes:
    body = zlib.compress(_json(feature))
    return struct.pack("<I", len(body)) + body


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
