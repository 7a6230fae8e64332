"""Neuronpedia's bulk layout, as its importer reads it: a folder a source, and `config/`.

    gpt2-small/8-topk-24576/  release.jsonl  model.jsonl  sourceset.jsonl  source.jsonl
                              features/batch-0.jsonl.gz …  activations/…  explanations/…
    config/                   explanation_type.jsonl …

The importer (apps/webapp/lib/db/import.ts) takes the columns of a file from its first line, so all lines of a file have
the same; and it cannot read a file without lines, so none is written.
"""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.export.neuronpedia_rows import Options, Source, explanation_type
from analysis.export.results import Results
from sae.files import write_text

BATCH = 1024  # latents of a file
KINDS = ("top", "interval")
EMPTY = ("explanation_model_type", "explanation_score_model", "explanation_score_type", "eval_type")
"""Tables of `config/` that the importer wants to see too."""

__all__ = ["Options", "write"]


def write(results: Results, options: Options, out: Path) -> None:
    """Write all latents; those of a cross-layer transcoder as a source a layer.

    Raises:
        ConfigError: the layer is not known.
    """
    for group, layer in zip(results.groups, results.layers(options.layer), strict=True):
        source = Source(results, options, group, layer)
        folder = out / source.model / source.id
        write_text(folder / "release.jsonl", _line(source.release()))
        write_text(folder / "model.jsonl", _line(source.network()))
        write_text(folder / "sourceset.jsonl", _line(source.source_set()))
        write_text(folder / "source.jsonl", _line(source.source()))
        for number, first in enumerate(range(group.first, group.last, BATCH)):
            _write_batch(source, folder, number, first, min(first + BATCH, group.last))
    write_text(out / "config" / "explanation_type.jsonl", _line(explanation_type(options)))
    for name in EMPTY:
        write_text(out / "config" / f"{name}.jsonl", "")


def _write_batch(source: Source, folder: Path, number: int, first: int, last: int) -> None:
    names = ("features", "activations", "explanations")
    features, activations, explanations = (_Lines(folder / name / f"batch-{number}.jsonl.gz") for name in names)
    for latent in source.results.latents(first, last, KINDS):
        features.add(source.feature(latent))
        for example in latent.examples:
            activations.add(source.activation(latent, example))
        if latent.label["status"] == "labelled":
            explanations.add(source.explanation(latent))
    for lines in (features, activations, explanations):
        lines.close()


class _Lines:
    """A compressed file of JSON lines; there is none until there is a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: gzip.GzipFile | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = gzip.GzipFile(self._path, "wb", 6, mtime=0)
        self._file.write(_line(row).encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
