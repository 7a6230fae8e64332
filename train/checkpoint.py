"""Everything that a training run must remember, in one file that is replaced atomically."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sae.files import publish


@dataclass
class Progress:
    """Where a run is. `silent_tokens[l]` rows have passed since latent l last fired."""

    step: int
    silent_tokens: Tensor
    curve: list[dict[str, Any]] = field(default_factory=list)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Publish a checkpoint; the former one stays until the new one is whole."""
    tensors = {f"model/{name}": value.detach() for name, value in model.state_dict().items()}
    for i, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{name}": value for name, value in slots.items()}
    tensors["silent_tokens"] = progress.silent_tokens
    meta = {"step": str(progress.step), "curve": json.dumps(progress.curve)}
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    publish(path, lambda temporary: save_file(tensors, temporary, metadata=meta))


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint's state into `model` and `optimizer`."""
    with safe_open(path, framework="pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    model.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, i, slot = name.split("/")
            state.setdefault(int(i), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return Progress(int(meta["step"]), tensors["silent_tokens"], json.loads(meta["curve"]))
