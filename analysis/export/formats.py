"""The forms in which a run's results are exported, by name; docs/exports.md says what goes where."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.export import circuit_tracer, csv, delphi, neuronpedia, parquet
from analysis.export.folder import publish_folder
from analysis.export.results import Results
from sae.config import config, parse, to_json
from sae.errors import ConfigError
from sae.registry import nearest


@config
class NoOptions:
    """Nothing can be chosen."""


@dataclass(frozen=True)
class Format:
    """How results are written."""

    write: Callable[[Results, Any, Path], None]
    """Into an empty folder, or to a file; the second is what was chosen, `options`."""
    boxes: tuple[str, ...]
    """Those that are read, checked before anything is written."""
    options: type = NoOptions
    is_file: bool = False


def _atlas(results: Results, _: NoOptions, out: Path) -> None:
    own = shutil.ignore_patterns("manifest.json", "inputs.json", ".lock")
    shutil.copytree(results.box("atlas").path, out, dirs_exist_ok=True, ignore=own)


def _csv(results: Results, _: NoOptions, out: Path) -> None:
    csv.export(results.box("index").path, results.box("labels").path, out)


TABLES = ("dictionary", "index", "labels", "tokens")
FORMATS: Mapping[str, Format] = {
    "atlas": Format(_atlas, ("atlas",)),
    "csv": Format(_csv, ("index", "labels"), is_file=True),
    "parquet": Format(parquet.write, TABLES),
    "neuronpedia": Format(neuronpedia.write, TABLES, neuronpedia.Options),
    "circuit-tracer": Format(circuit_tracer.write, TABLES, circuit_tracer.Options),
    "delphi": Format(delphi.write, ("codes", *TABLES), delphi.Options),
}


def export(run: Path, out: Path, name: str | None = None, settings: Mapping[str, str] | None = None) -> None:
    """Write the results of a finished run to a file or folder, whole or not at all.

    Args:
        run: the folder of a run, or of one dictionary of its sweep.
        name: one of `FORMATS`; none means by the name of `out`: csv for a .csv file, else the atlas.
        settings: fields of the format's options, and their values as text.

    Raises:
        ConfigError: no such format or field, or a value that is not valid or is missing.
        StoreError: a box of the run is missing, unfinished or damaged, or `out` holds what would be lost.
    """
    name = name or ("csv" if out.suffix == ".csv" else "atlas")
    if name not in FORMATS:
        raise ConfigError(f"format {name!r} is unknown; {nearest(name, FORMATS)}")
    form, results = FORMATS[name], Results(run)
    options = parse(form.options, settings or {}, name)
    if form.is_file and out.is_dir():
        raise ConfigError(f"{out}: is a folder, {name} is one file")

    def write(path: Path) -> Mapping[str, Any]:
        for box in form.boxes:
            results.box(box)
        form.write(results, options, path)
        return {"format": name, "options": to_json(options), "boxes": results.digests}

    if form.is_file:
        write(out)
    else:
        publish_folder(out, write)
