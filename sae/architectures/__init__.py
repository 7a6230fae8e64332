"""Every dictionary by its name, one small file each; a plug-in adds its own with `register`.

Importing this package imports no torch: `sae.architectures.configs` lies in it and is read first.
"""

import importlib
from typing import TYPE_CHECKING

from sae.architectures.configs import configs
from sae.registry import Registry

if TYPE_CHECKING:
    import sae.dictionary

architectures: "Registry[type[sae.dictionary.Dictionary]]" = Registry("sae.type")


def build(name: str, cfg: object, d_in: int) -> "sae.dictionary.Dictionary":
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
