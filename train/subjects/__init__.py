"""Networks that are trained here to be studied, each a function that makes one in a folder."""

import importlib
from collections.abc import Callable
from pathlib import Path

from sae.registry import Registry

subjects: Registry[Callable[[Path], None]] = Registry("subject")


def make(name: str, out: Path) -> None:
    """Make the named subject in the folder `out`; goes on where a killed attempt was.

    Raises:
        ConfigError: there is no such subject.
    """
    importlib.import_module("train.subjects.english")
    subjects.get(name)(out)
