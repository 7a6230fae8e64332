"""Peers' files: read without running anything, tensors checked against the shapes that are due, and written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae.errors import FormatError
from sae.files import publish
from sae.readers import check_exists


def named(path: Path, name: str, *beside: str) -> Path | None:
    """The file called `name`, in a folder or given itself, if those beside it are there too."""
    file = path / name if path.is_dir() else path
    is_there = file.name == name and all((file.parent / other).is_file() for other in (name, *beside))
    return file if is_there else None


def read_pt(path: Path) -> dict[str, Any]:
    """A state dict that `torch.save` wrote, of tensors and plain values only.

    Raises:
        FormatError: not such a file, or one that would have to run code to be read.
    """
    check_exists(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # there is no end to what a damaged file may do to an unpickler
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise FormatError(
            f"{path}: must hold tensors and plain values only, as torch.save writes them: {first}"
        ) from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: holds a {type(content).__name__}, must be a state dict")
    return dict(content)


def read_npz(path: Path) -> dict[str, Tensor]:
    """Raises: FormatError: not a npz file of plain arrays."""
    check_exists(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:
        raise FormatError(f"{path}: must be a npz file of plain arrays: {error}") from None


def check(where: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """See that exactly these tensors are there, in these shapes.

    Raises:
        FormatError: one is missing, has another shape, or is there beside them.
    """
    for name, shape in shapes.items():
        if name not in tensors:
            raise FormatError(f"{where}: {name}: is missing, must be a tensor of shape {list(shape)}")
        found = tuple(tensors[name].shape)
        if found != shape:
            hint = "; it looks transposed" if found == shape[::-1] else ""
            raise FormatError(f"{where}: {name}: has shape {list(found)}, must be {list(shape)}{hint}")
    extra = sorted(tensors.keys() - shapes.keys())
    if extra:
        raise FormatError(f"{where}: {extra[0]}: no such tensor here; there should be {', '.join(shapes)}")


def matrix(where: Path, tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """The shape of a matrix that says the sizes of all the others.

    Raises:
        FormatError: it is missing or no matrix.
    """
    if name not in tensors or tensors[name].ndim != 2:
        found = f"has shape {list(tensors[name].shape)}" if name in tensors else "is missing"
        raise FormatError(f"{where}: {name}: {found}, must be a matrix")
    rows, columns = tensors[name].shape
    return rows, columns


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    publish(path, lambda temporary: save_file(kept, temporary))


def write_pt(path: Path, content: Mapping[str, Any]) -> None:
    publish(path, lambda temporary: torch.save(dict(content), temporary))


def write_npz(path: Path, tensors: Mapping[str, Tensor]) -> None:
    arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez(file, **arrays)  # type: ignore[arg-type]

    publish(path, write)
