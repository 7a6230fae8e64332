"""The whole description of one run, checked as one: each section by itself, then together.

This file, `sae.run` and `sae.cli` alone know all three packages; they import inside their functions.
"""

import importlib
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.architectures.configs import configs, split_type
from sae.config import DataConfig, HarvestConfig, ModelConfig, field_help, load_yaml, override, parse, to_json
from sae.errors import ConfigError
from sae.registry import nearest

if TYPE_CHECKING:
    from analysis.config import AnalysisConfig
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

    @property
    def site(self) -> str:
        """The site whose activations are learnt."""
        return self.train.site or self.harvest.sites[0]


def load_config(path: Path, assignments: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML, put the command line's assignments in, and check all of it.

    Raises:
        ConfigError: with the field's path, its value, and what would be valid.
    """
    from analysis.config import AnalysisConfig
    from train.config import TrainConfig

    values, origin = override(load_yaml(path), assignments), str(path)
    known = (*SECTIONS, "seed", "plugins")
    for key in values:
        if key not in known:
            raise ConfigError(f"{origin}: {key}: no such section; {nearest(str(key), known)}")
    seed, plugins = values.get("seed", 0), values.get("plugins", [])
    if not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"{origin}: seed = {seed!r}: must be a whole number, 0 or more")
    if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
        raise ConfigError(f"{origin}: plugins = {plugins!r}: must be a list of module names")
    _import_plugins(plugins)
    section = {name: values.get(name) or {} for name in SECTIONS}
    sae_type, fields = split_type(section["sae"])
    cfg = RunConfig(
        model=parse(ModelConfig, section["model"], "model", origin),
        data=parse(DataConfig, section["data"], "data", origin),
        harvest=parse(HarvestConfig, section["harvest"], "harvest", origin),
        train=parse(TrainConfig, section["train"], "train", origin),
        analysis=parse(AnalysisConfig, section["analysis"], "analysis", origin),
        sae_type=sae_type,
        sae=parse(configs.get(sae_type), fields, "sae", origin),
        seed=seed,
        plugins=tuple(plugins),
    )
    _check_together(cfg, origin)
    return cfg


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


def _check_together(cfg: RunConfig, origin: str) -> None:
    sites = cfg.harvest.sites
    if not sites:
        raise ConfigError(f"{origin}: harvest.sites = []: must name at least one site, such as mlp_out.3")
    if cfg.train.site is None and len(sites) > 1:
        raise ConfigError(f"{origin}: train.site: must name one of the harvested sites: {', '.join(sites)}")
    if cfg.train.site is not None and cfg.train.site not in sites:
        raise ConfigError(
            f"{origin}: train.site = {cfg.train.site!r}: must be one of harvest.sites: {', '.join(sites)}"
        )
    if cfg.harvest.skip_positions >= cfg.data.context:
        raise ConfigError(
            f"{origin}: harvest.skip_positions = {cfg.harvest.skip_positions}: "
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
