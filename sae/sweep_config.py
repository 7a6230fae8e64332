"""A sweep's list, from what the YAML says to one set of changes for each dictionary.

    sweep:
      - sae.k: 16                                          # k=16: the run's own dictionary, but for k
      - grid: {sae.k: [32, 64], sae.n_latents: [2048, 4096]}    # every combination: k=32,n_latents=2048, …
      - sae: {type: jumprelu, sparsity_coef: 1e-3}         # jumprelu,sparsity_coef=0.001
        name: jump

An entry that names a type starts from that architecture's own defaults and inherits the width only;
any other changes the fields that it names. A name depends on nothing but its entry, so that a list
that grows leaves the folders of former dictionaries alone.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sae.errors import ConfigError

STREAM = ("tokens", "batch", "window_rows", "init_rows", "checkpoint_seconds", "tracker", "divide")
"""Fields of `train` that say what all dictionaries of a sweep share: the stream, how it is watched, and by whom."""
FILES = ("table.csv", "table.json", "pareto.svg", "pareto.png")
"""The sweep's own, beside the folders of its dictionaries; each has the ending .tmp while it is written."""
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,=+-]{0,99}")


@dataclass(frozen=True)
class Changes:
    """What differs between the run's own dictionary and one of the sweep."""

    where: str
    """In the list, for messages: `sweep[3]`."""
    name: str
    fields: Mapping[str, Any]
    """By path: `{"sae.k": 16}`."""


def expand(entries: Any) -> list[Changes]:
    """Every dictionary of the list.

    Raises:
        ConfigError: an entry that is malformed or changes what the dictionaries share; a name that is
            unfit for a folder or taken.
    """
    if not isinstance(entries, list):
        raise ConfigError(f"sweep = {entries!r}: must be a list, such as [{{sae.k: 16}}, {{sae.k: 32}}]")
    found: dict[str, Changes] = {}
    for i, entry in enumerate(entries):
        for changes in _expand_entry(entry, f"sweep[{i}]"):
            folder = changes.name.casefold()  # on some disks `K=8` is `k=8`
            if folder in found:
                first = found[folder].where
                raise ConfigError(f"{changes.where}.name = {changes.name!r}: is that of {first} too; give it another")
            found[folder] = changes
    return list(found.values())


def changed(values: Mapping[str, Any], fields: Mapping[str, Any], n_latents: int) -> dict[str, Any]:
    """What the YAML would say if it described one dictionary of the sweep.

    Args:
        n_latents: width of the run's own dictionary.
    """
    own = {"n_latents": n_latents} if "sae.type" in fields else values.get("sae") or {}
    sections = {"sae": dict(own), "train": dict(values.get("train") or {})}
    for path, value in fields.items():
        section, _, field = path.partition(".")
        sections[section][field] = value
    return {**values, **sections}


def _expand_entry(entry: Any, where: str) -> Iterator[Changes]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} = {entry!r}: must be a mapping of fields to values, such as sae.k: 16")
    own = {key: value for key, value in entry.items() if key not in ("name", "grid")}
    fields, axes = _by_path(own, where), _by_path(entry.get("grid", {}), f"{where}.grid")
    for path, choices in axes.items():
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{where}.grid.{path} = {choices!r}: must be a list of values, such as [16, 32]")
    stem = entry.get("name", _name(fields))
    for choice in itertools.product(*axes.values()):
        point = dict(zip(axes, choice, strict=True))
        name = ",".join(part for part in (stem, _name(point)) if part) if isinstance(stem, str) else stem
        if not name:
            raise ConfigError(f"{where}: changes nothing; give it a name, or leave it out")
        if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
            raise ConfigError(
                f"{where}.name = {name!r}: must be the name of a folder: letters, digits and . _ , = + -, at most 100"
            )
        if name.casefold().removesuffix(".tmp") in FILES:
            raise ConfigError(f"{where}.name = {name!r}: is that of a file of the sweep; give it another")
        yield Changes(where, name, {**fields, **point})


def _by_path(fields: Any, where: str) -> dict[str, Any]:
    """`{"sae": {"k": 16}, "train.lr": 1e-3}` as `{"sae.k": 16, "train.lr": 1e-3}`."""
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{where} = {fields!r}: must be a mapping of fields to values, such as sae.k: 16")
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        is_section = key in ("sae", "train")
        if is_section and not isinstance(value, Mapping):
            raise ConfigError(f"{where}.{key} = {value!r}: must be a mapping of fields to values")
        flat |= {f"{key}.{field}": inner for field, inner in value.items()} if is_section else {str(key): value}
    for path in flat:
        section, _, field = path.partition(".")
        if section not in ("sae", "train") or not field:
            raise ConfigError(f"{where}.{path}: must be a field of sae or train, such as sae.k")
        if section == "train" and field in STREAM:
            raise ConfigError(
                f"{where}.{path}: must be the same for all dictionaries, which learn from one stream; "
                f"set {path} for the run"
            )
    return flat


def _name(fields: Mapping[str, Any]) -> str:
    """`jumprelu,sparsity_coef=0.001`: what differs, fit for a folder."""
    parts = [
        _text(value) if path == "sae.type" else f"{path.partition('.')[2]}={_text(value)}"
        for path, value in fields.items()
    ]
    return re.sub(r"[^A-Za-z0-9._,=+-]+", "-", ",".join(parts))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(_text(item) for item in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
