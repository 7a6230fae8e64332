"""The whole description of one run, checked as one: each section by itself, then together.

This file, `sae.run` and `sae.commands` alone know all three packages; they import inside their functions.
"""

import importlib
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.architectures.configs import configs, split_type
from sae.config import DataConfig, HarvestConfig, ModelConfig, field_help, load_yaml, override, parse, to_json
from sae.errors import ConfigError
from sae.registry import nearest
from sae.sweep_config import changed, expand

if TYPE_CHECKING:
    from analysis.config import AnalysisConfig
    from sae.store import Places
    from train.config import TrainConfig

SECTIONS = ("model", "data", "harvest", "sae", "train", "analysis")


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on."""

    model: ModelConfig
    data: DataConfig
    harvest: HarvestConfig
    sae_type: str
    sae: Any
    train: "TrainConfig"
    analysis: "AnalysisConfig"
    seed: int
    plugins: tuple[str, ...]
    sweep: tuple["SweepMember", ...] = ()
    """The dictionaries of `sae sweep`."""

    def member(self, name: str) -> "RunConfig":
        """The run of one dictionary of the sweep.

        Raises:
            ConfigError: the sweep has none of that name.
        """
        runs = {member.name: member.cfg for member in self.sweep}
        if name not in runs:
            known = nearest(name, runs) if runs else "the configuration has no `sweep`"
            raise ConfigError(f"member = {name!r}: no such dictionary in the sweep; {known}")
        return runs[name]

    @property
    def places(self) -> "Places":
        """The sites whose activations are read and, for a transcoder, written."""
        from sae.store import Places

        inputs = self.harvest.sites if self.train.site is None else _names(self.train.site)
        return Places(inputs, None if self.train.target is None else _names(self.train.target))


@dataclass(frozen=True)
class SweepMember:
    """One dictionary of a sweep."""

    name: str
    """Of its folder."""
    changes: Mapping[str, Any]
    """What differs from the run's own `sae` and `train`, by path: `{"sae.k": 16}`."""
    cfg: RunConfig
    """The run that trains it alone."""


def load_config(path: Path, assignments: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML, put the command line's assignments in, and check all of it.

    Raises:
        ConfigError: with the field's path, its value, and what would be valid.
    """
    values = override(load_yaml(path), assignments)
    try:
        cfg = _check(values)
        return replace(cfg, sweep=_members(values, cfg))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _members(values: Mapping[str, Any], cfg: RunConfig) -> tuple[SweepMember, ...]:
    members = []
    for changes in expand([] if values.get("sweep") is None else values["sweep"]):
        try:
            own = _check(changed(values, changes.fields, cfg.sae.n_latents))
        except ConfigError as error:
            raise ConfigError(f"{changes.where}.{error}") from None
        members.append(SweepMember(changes.name, changes.fields, own))
    return tuple(members)


def _check(values: Mapping[str, Any]) -> RunConfig:
    """A run, without its sweep, from what its YAML says."""
    from analysis.config import AnalysisConfig
    from train.config import TrainConfig

    known = (*SECTIONS, "seed", "plugins", "sweep")
    for key in values:
        if key not in known:
            raise ConfigError(f"{key}: no such section; {nearest(str(key), known)}")
    seed, plugins = values.get("seed", 0), values.get("plugins", [])
    if type(seed) is not int or seed < 0:  # true is an int, too
        raise ConfigError(f"seed = {seed!r}: must be a whole number, 0 or more")
    if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
        raise ConfigError(f"plugins = {plugins!r}: must be a list of module names")
    _import_plugins(plugins)
    section = {name: {} if values.get(name) is None else values[name] for name in SECTIONS}
    sae_type, fields = split_type(section["sae"])
    cfg = RunConfig(
        model=parse(ModelConfig, section["model"], "model"),
        data=parse(DataConfig, section["data"], "data"),
        harvest=parse(HarvestConfig, section["harvest"], "harvest"),
        train=parse(TrainConfig, section["train"], "train"),
        analysis=parse(AnalysisConfig, section["analysis"], "analysis"),
        sae_type=sae_type,
        sae=parse(configs.get(sae_type), fields, "sae"),
        seed=seed,
        plugins=tuple(plugins),
    )
    _check_together(cfg)
    return cfg


def _names(sites: str | tuple[str, ...]) -> tuple[str, ...]:
    return (sites,) if isinstance(sites, str) else sites


def _import_plugins(plugins: Sequence[str]) -> None:
    if plugins and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that a file of the user's cannot stand in for a package
    for name in plugins:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ConfigError(f"plugins: no module {name!r} can be imported from here") from None


def _check_together(cfg: RunConfig) -> None:
    sites = cfg.harvest.sites
    if not sites:
        raise ConfigError("harvest.sites = []: must name at least one site, such as mlp_out.3")
    if cfg.train.site is None and len(sites) > 1:
        raise ConfigError(f"train.site: must name one of the harvested sites: {', '.join(sites)}")
    for field, value in (("site", cfg.train.site), ("target", cfg.train.target)):
        for name in () if value is None else _names(value):
            if name not in sites:
                raise ConfigError(f"train.{field} = {name!r}: must be one of harvest.sites: {', '.join(sites)}")
    if cfg.harvest.skip_positions >= cfg.data.context:
        raise ConfigError(
            f"harvest.skip_positions = {cfg.harvest.skip_positions}: "
            f"must be less than data.context = {cfg.data.context}"
        )


def describe(cfg: RunConfig) -> str:
    """The whole configuration as YAML, each field under its help."""
    lines: list[str] = []
    for name in SECTIONS:
        section = getattr(cfg, name)
        lines += ["", f"{name}:"]
        if name == "sae":
            lines += [f"  type: {cfg.sae_type}"]
        _describe_section(section, "  ", lines)
    lines += ["", f"seed: {cfg.seed}", f"plugins: {json.dumps(cfg.plugins)}"]
    lines += ["# Dictionaries of `sae sweep`, each by what differs from the run above."]
    lines += ["sweep:" if cfg.sweep else "sweep: []"]
    lines += [f"  - {json.dumps({'name': member.name, **member.changes}, ensure_ascii=False)}" for member in cfg.sweep]
    return "\n".join(lines).strip()


def _describe_section(section: Any, indent: str, lines: list[str]) -> None:
    values = to_json(section)
    for name, kind, _, text in field_help(type(section)):
        value = getattr(section, name)
        if is_dataclass(value):
            lines.append(f"{indent}{name}:")
            _describe_section(value, indent + "  ", lines)
            continue
        lines += textwrap.wrap(f"{text} ({kind})", 96, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        lines.append(f"{indent}{name}: {json.dumps(values[name], ensure_ascii=False)}")
