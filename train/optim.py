"""The optimiser of a dictionary, by name; what a run leaves open is taken from the architecture's paper.

| name            | what                                                               | lr if none is given           |
|-----------------|--------------------------------------------------------------------|-------------------------------|
| `adam`          | torch's, fused (Kingma & Ba 2015)                                  | the architecture's paper's    |
| `adam8bit`      | bitsandbytes': moments in 8 bits (Dettmers et al. 2022,            | the same                      |
|                 | arXiv:2110.02861)                                                  |                               |
| `muon`          | torch's: orthogonalised updates of matrices (Jordan et al. 2024),  | the same                      |
|                 | of Adam's size (Liu et al. 2025, arXiv:2502.16982); Adam otherwise |                               |
| `schedule_free` | schedulefree's Adam (Defazio et al. 2024, arXiv:2405.15682)        | the same                      |
| `signum`        | schedulefree's, around steps by the gradient's sign, as sparsify's | 5e-3 / sqrt(n_latents / 2^14) |
"""

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sae.architectures.configs import DictionaryConfig
from sae.dictionary import Dictionary
from sae.errors import ConfigError
from train.config import AVERAGING, TrainConfig
from train.schedule import peak_lr

SIGNUM_LR = 5e-3  # at 2^14 latents (sparsify 1.3.3, trainer.py)
SHARES = {"signum": 0.95, "schedule_free": 0.9}  # of the average, in the point that gradients are taken at
MUON_MOMENTUM = 0.95
EPS_8_BIT = 1e-8  # second moments under 1.6e-7 of their block's largest are 0: with less, first moments would leap

Group = dict[str, Any]
"""Parameters that are measured in one unit: `{"params": [...], "unit": 1.0}`."""


@dataclass(frozen=True)
class Settings:
    """What is left open in no run: the configuration's values, or those of the paper."""

    lr: float
    warmup: float
    decay: float
    betas: tuple[float, float]
    eps: float


def settings(cfg: TrainConfig, sae_cfg: DictionaryConfig) -> Settings:
    """`cfg` where it says something, else what the optimiser needs, else the architecture's recipe."""
    recipe, name = sae_cfg.recipe, cfg.optimizer
    lr = peak_lr(sae_cfg.n_latents, SIGNUM_LR) if name == "signum" else recipe.lr or peak_lr(sae_cfg.n_latents)
    decay = 0.0 if name in AVERAGING else recipe.decay
    betas = (SHARES[name], recipe.betas[1]) if name in AVERAGING else recipe.betas
    eps = max(recipe.eps, EPS_8_BIT) if name == "adam8bit" else recipe.eps
    return Settings(
        lr=cfg.lr or lr,
        warmup=recipe.warmup if cfg.warmup is None else cfg.warmup,
        decay=decay if cfg.decay is None else cfg.decay,
        betas=cfg.betas or betas,
        eps=cfg.eps or eps,
    )


@runtime_checkable
class Part(Protocol):
    """What torch's optimisers have in common with those that only look like them."""

    param_groups: Any
    state: Any

    def step(self) -> Any: ...

    def zero_grad(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@runtime_checkable
class Averaging(Part, Protocol):
    """A schedule-free one. While it learns, the dictionary holds a point between the average of the
    weights and the newest of them; what is to be used is the average."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


class Optimizer:
    """One or more of torch's optimisers that step as one."""

    def __init__(self, *parts: Part, averaging: Averaging | None = None) -> None:
        self.parts, self.averaging = parts, averaging
        if averaging is not None:
            self.parts = (*parts, averaging)
            averaging.train()

    def set_lr(self, lr: float) -> None:
        """Steps of the size `lr`, for each parameter in its own unit (`Dictionary.units`)."""
        for part in self.parts:
            for group in part.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr * group["unit"])
                else:
                    group["lr"] = lr * group["unit"]

    def step(self, divisor: Tensor | None = None) -> None:
        """Step on the gradients, divided if there is a divisor, and clear them."""
        for part in self.parts:
            _divide(part, divisor)
            part.step()
            part.zero_grad()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the dictionary holds the weights to be used; after it, the same bits as before."""
        if self.averaging is None:
            yield
            return
        parameters = [p for group in self.averaging.param_groups for p in group["params"]]
        trained = [p.detach().clone() for p in parameters]
        self.averaging.eval()
        try:
            yield
        finally:
            self.averaging.train()
            with torch.no_grad():
                for parameter, value in zip(parameters, trained, strict=True):
                    parameter.copy_(value)  # the way back is not exact in floating point

    @torch.no_grad()
    def forget(self, parameter: Tensor, rows: Int[Tensor, " m"]) -> None:
        """Make these rows of a parameter as if the run began with them: their moments are 0, and they
        are their own average. Other rows are left alone."""
        for part in self.parts:
            slots = part.state.get(parameter, {})
            for slot, value in slots.items():
                if not isinstance(value, Tensor) or value.shape != parameter.shape:
                    continue
                if slot == "z":  # schedule-free: the newest weights
                    value[rows] = parameter[rows]
                elif value.dtype == torch.uint8:  # codes of `qmap1` or `qmap2`, one of which means 0
                    value[rows] = slots[f"qmap{slot[-1]}"].abs().argmin().to(torch.uint8)
                else:
                    value[rows] = 0


def _divide(part: Part, divisor: Tensor | None) -> None:
    """Torch's fused Adam does it as it reads gradients (it writes them back, as gradient scalers want it); others' are
    gone through before."""
    if isinstance(part, torch.optim.Adam) and part.defaults["fused"]:
        part.grad_scale = divisor  # type: ignore[attr-defined]
        return
    if divisor is None:
        return
    for group in part.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(divisor)


def build(dictionary: Dictionary, name: str, chosen: Settings) -> Optimizer:
    """The optimiser `name` over all of a dictionary's parameters.

    Raises:
        ConfigError: its package is not installed.
        KeyError: the dictionary gives a unit to what is none of its parameters.
    """
    units, groups, parameters = dictionary.units(), dict[float, Group](), dict(dictionary.named_parameters())
    if unknown := units.keys() - parameters.keys():
        raise KeyError(f"units() of {type(dictionary).__name__} names {sorted(unknown)}: must be parameters of it")
    for parameter_name, parameter in parameters.items():
        unit = units.get(parameter_name, 1.0)
        groups.setdefault(unit, {"params": [], "unit": unit})["params"].append(parameter)
    optimizer = _BUILDERS[name](list(groups.values()), chosen)
    optimizer.set_lr(chosen.lr)
    return optimizer


def _adam(groups: list[Group], chosen: Settings) -> Optimizer:
    # on a GPU a step may be recorded: learning rates are read when it is played
    devices = {parameter.device for group in groups for parameter in group["params"]}
    on_gpu = any(device.type == "cuda" for device in devices)
    for group in groups:
        group["lr"] = torch.tensor(chosen.lr, device=next(iter(devices))) if on_gpu else chosen.lr
    own = {"betas": chosen.betas, "eps": chosen.eps, "fused": True, "capturable": on_gpu}
    return Optimizer(torch.optim.Adam(groups, lr=chosen.lr, **own))


def _adam8bit(groups: list[Group], chosen: Settings) -> Optimizer:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses 4-bit kernels, which are not used
    bitsandbytes = _package("bitsandbytes", "adam8bit")
    return Optimizer(bitsandbytes.optim.Adam8bit(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps))


def _muon(groups: list[Group], chosen: Settings) -> Optimizer:
    matrices = _those(groups, lambda p: p.ndim == 2)
    vectors = _those(groups, lambda p: p.ndim != 2)
    muon = torch.optim.Muon(
        matrices, lr=chosen.lr, weight_decay=0.0, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )
    return Optimizer(muon, *_adam(vectors, chosen).parts)


def _those(groups: list[Group], is_in: Callable[[nn.Parameter], bool]) -> list[Group]:
    parts = [{**group, "params": [p for p in group["params"] if is_in(p)]} for group in groups]
    return [part for part in parts if part["params"]]


def _schedule_free(groups: list[Group], chosen: Settings) -> Optimizer:
    package = _package("schedulefree", "schedule_free")
    adam = package.AdamWScheduleFree(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps)
    return Optimizer(averaging=adam)


def _signum(groups: list[Group], chosen: Settings) -> Optimizer:
    package = _package("schedulefree", "signum")
    base = SignSGD(groups, {"lr": chosen.lr})
    return Optimizer(averaging=package.ScheduleFreeWrapper(base, momentum=chosen.betas[0]))


class SignSGD(torch.optim.Optimizer):
    """`w <- w - lr sign(g)` (Bernstein et al. 2018, arXiv:1802.04434)."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-group["lr"])


_BUILDERS: dict[str, Callable[[list[Group], Settings], Optimizer]] = {
    "adam": _adam,
    "adam8bit": _adam8bit,
    "muon": _muon,
    "schedule_free": _schedule_free,
    "signum": _signum,
}


def _package(module: str, optimizer: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ConfigError(
            f"train.optimizer = {optimizer}: the package {module} is not installed: pip install sae-atlas[optim]"
        ) from None
