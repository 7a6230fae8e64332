"""Files of dictionaries, ours and others': JSON mappings and safetensors, damaged ones named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae.errors import FormatError, StoreError
from sae.files import read_json


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON mapping.

    Raises:
        StoreError: no such file, or no JSON.
        FormatError: the JSON is no mapping.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise FormatError(f"{path}: holds a {type(content).__name__}, must be a mapping of fields to values")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        StoreError: no such file.
        FormatError: not a safetensors file.
    """
    check_exists(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise FormatError(f"{path}: not a safetensors file: {error}") from None


def check_exists(path: Path) -> None:
    """Raises: StoreError: no such file."""
    if not path.is_file():
        raise StoreError(f"{path}: no such file")


def require(where: Path, content: Mapping[str, Any], name: str, kind: type, valid: str) -> Any:
    """A field of a mapping.

    Args:
        valid: what it must be, as the end of a message.

    Raises:
        FormatError: it is missing or not of that kind.
    """
    if name not in content:
        raise FormatError(f"{where}: {name}: is missing, must be {valid}")
    if not isinstance(content[name], kind):
        raise FormatError(f"{where}: {name} = {content[name]!r}: must be {valid}")
    return content[name]
