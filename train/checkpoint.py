"""Everything that a training run must remember, in one file that is replaced atomically."""

import json
from collections.abc import Mapping
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
    tensors |= optimizer_tensors(optimizer, "optimizer")
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
    restore_optimizer(optimizer, tensors, "optimizer")
    return Progress(int(meta["step"]), tensors["silent_tokens"], json.loads(meta["curve"]))


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: `prefix/<parameter>/<slot>`."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}/{i}/{slot}": value for i, slots in state.items() for slot, value in slots.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Put back what `optimizer_tensors` gave under `prefix`; other tensors are left alone."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}/"):
            i, slot = name.removeprefix(f"{prefix}/").split("/")
            state.setdefault(int(i), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
