"""Everything that a training run must remember, in one file that is replaced atomically."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sae.dictionary import Dictionary
from sae.files import publish
from train.optim import Optimizer, Part


@dataclass
class Progress:
    """Where a run is. `silent_tokens[l]` rows have passed since latent l last fired."""

    step: int
    silent_tokens: Tensor
    curve: list[dict[str, Any]] = field(default_factory=list)


def save(path: Path, model: Dictionary, optimizer: Optimizer, average: nn.Module | None, progress: Progress) -> None:
    """Publish a checkpoint; the former one stays until the new one is whole. Where latents are divided all partners
    save, and it is that of one process with all of them."""
    tensors = {f"model/{name}": value.detach() for name, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average/{name}": value.detach() for name, value in average.state_dict().items()}
    numbers: dict[str, int | float] = {}
    for i, part in enumerate(optimizer.parts):
        tensors |= optimizer_tensors(part, f"optimizer/{i}")
        numbers |= optimizer_numbers(part, f"optimizer/{i}")
    tensors["silent_tokens"] = progress.silent_tokens
    meta = {"step": progress.step, "curve": progress.curve, "optimizer": numbers}
    meta = {name: json.dumps(value) for name, value in meta.items()}
    for name in _divided(model, optimizer):
        if name in tensors:
            tensors[name] = model.partners.whole(tensors[name])
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    if model.partners.is_main:
        publish(path, lambda temporary: save_file(tensors, temporary, metadata=meta))


def load(path: Path, model: Dictionary, optimizer: Optimizer, average: nn.Module | None = None) -> Progress:
    """Put a checkpoint's state into `model`, `optimizer` and, if one is kept, the average of the weights."""
    with safe_open(path, framework="pt") as file:
        meta = {name: json.loads(value) for name, value in file.metadata().items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    for name in _divided(model, optimizer):
        if name in tensors:
            tensors[name] = model.partners.own(tensors[name])
    for prefix, module in (("model/", model), ("average/", average)):
        if module is not None:
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    for i, part in enumerate(optimizer.parts):
        restore_optimizer(part, tensors, f"optimizer/{i}", meta["optimizer"])
    return Progress(meta["step"], tensors["silent_tokens"], meta["curve"])


def _divided(model: Dictionary, optimizer: Optimizer) -> list[str]:
    """Names of the tensors of which each partner has its rows."""
    if model.partners.size == 1:
        return []
    own = {id(model.get_parameter(name)) for name in model.per_latent}
    moments = [
        f"optimizer/{i}/{j}/{slot}"
        for i, part in enumerate(optimizer.parts)
        for j, parameter in enumerate(_parameters(part))
        for slot in ("exp_avg", "exp_avg_sq")
        if id(parameter) in own
    ]
    return ["silent_tokens", *(f"model/{name}" for name in model.per_latent), *moments]


def optimizer_tensors(optimizer: Part, prefix: str) -> dict[str, Tensor]:
    """The tensors of an optimiser's state by name: `prefix/<parameter>/<slot>`."""
    # the tables of 8-bit codes are shared by all parameters, which safetensors refuses to write
    return {
        name: value.clone() if "/qmap" in name else value
        for name, value in _state(optimizer, prefix).items()
        if isinstance(value, Tensor)
    }


def optimizer_numbers(optimizer: Part, prefix: str) -> dict[str, int | float]:
    """All else that it counts: numbers of its state, likewise, and of its groups: `prefix/group/<group>/<key>`."""
    groups = {
        f"{prefix}/group/{i}/{key}": value
        for i, group in enumerate(optimizer.param_groups)
        for key, value in group.items()
    }
    every = {**_state(optimizer, prefix), **groups}
    # learning rates are set at every step, and whether one can be recorded is the machine's matter
    kept = {k: v for k, v in every.items() if not k.endswith(("/lr", "/capturable"))}
    return {name: value for name, value in kept.items() if isinstance(value, int | float)}


def restore_optimizer(
    optimizer: Part,
    tensors: Mapping[str, Tensor],
    prefix: str,
    numbers: Mapping[str, int | float] | None = None,
) -> None:
    """Put back what `optimizer_tensors` and `optimizer_numbers` gave under `prefix`; others are left alone."""
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for name, value in {**tensors, **(numbers or {})}.items():
        if not name.startswith(f"{prefix}/"):
            continue
        *place, slot = name.removeprefix(f"{prefix}/").split("/")
        if place[0] == "group":
            groups[int(place[1])][slot] = value
        else:
            state.setdefault(int(place[0]), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _state(optimizer: Part, prefix: str) -> dict[str, Any]:
    """An optimiser's state by name; its own `state_dict` may nest it."""
    return {
        f"{prefix}/{i}/{slot}": value
        for i, parameter in enumerate(_parameters(optimizer))
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def _parameters(optimizer: Part) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
