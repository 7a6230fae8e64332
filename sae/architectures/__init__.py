"""Every dictionary by its name, one small file each; a plug-in adds its own with `register`."""

import importlib

from sae.architectures.configs import configs
from sae.dictionary import Dictionary
from sae.registry import Registry

architectures: Registry[type[Dictionary]] = Registry("sae.type")


def build(name: str, cfg: object, d_in: int) -> Dictionary:
    """An untrained dictionary of the named architecture.

    Raises:
        ConfigError: there is no such architecture.
    """
    _import_built_in()
    return architectures.get(name)(cfg, d_in)


def names() -> list[str]:
    """Architectures that can be built now."""
    _import_built_in()
    return architectures.names()


def _import_built_in() -> None:
    for name in configs.names():
        if name not in architectures.names():
            importlib.import_module(f"sae.architectures.{name}")
