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
_FILES = (
    "batchtopk",
    "cross_layer_transcoder",
    "crosscoder",
    "gated",
    "jumprelu",
    "matching_pursuit",
    "matryoshka",
    "p_anneal",
    "relu",
    "switch",
    "topk",
)


def build(name: str, cfg: object, shape: "sae.dictionary.Shape") -> "sae.dictionary.Dictionary":
    """An untrained dictionary of the named architecture.

    Raises:
        ConfigError: there is no such architecture, or it cannot have this shape.
    """
    _import_built_in()
    return architectures.get(name)(cfg, shape)


def names() -> list[str]:
    """Architectures that can be built now."""
    _import_built_in()
    return architectures.names()


def name_of(cfg: object) -> str:
    """The name under which a configuration's class is registered."""
    return next(name for name in configs.names() if configs.get(name) is type(cfg))


def _import_built_in() -> None:
    for name in _FILES:
        importlib.import_module(f"sae.architectures.{name}")
