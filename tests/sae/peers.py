"""Golden checkpoints, copied so that a test may change them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae import convert
from sae.dictionary import Dictionary

GOLDEN = Path(__file__).parent.parent / "golden"


def folder(case: str) -> Path:
    """The folder of a case's weights: that of its `expected.safetensors`, or in Gemma Scope's layout below it."""
    return next((path.parent for path in sorted((GOLDEN / case).rglob("params.*"))), GOLDEN / case)


def expected(case: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / case / "expected.safetensors")


def copy(case: str, out: Path) -> Path:
    """A case in the folder `out`."""
    shutil.copytree(folder(case), out, dirs_exist_ok=True)
    return out


def edit_json(path: Path, **changes: Any) -> None:
    """With these fields changed; those that are None left out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_tensors(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """With `change` applied to the tensors of a .safetensors or .pt file."""
    if path.suffix == ".pt":
        tensors = torch.load(path, weights_only=True)
        change(tensors)
        torch.save(tensors, path)
    else:
        tensors = load_file(path)
        change(tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def outputs(source: Path, x: Tensor, **answers: str) -> tuple[Tensor, Tensor]:
    """Dense latents and output of what is in `source`."""
    return run(convert.read(source, answers).dictionary, x)


def run(dictionary: Dictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        latents, recon = dictionary.reconstruct(x)
    return latents.dense(), recon
