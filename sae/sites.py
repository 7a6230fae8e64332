"""Places in a network: name them, read them, replace what comes out of them.

A site is a module and a side of it: `mlp_out.3`, or `transformer.h.3.mlp:out` for any module of
any network. Short names resolve by one table a model family, so that `mlp_out.3` means the same
in GPT-2 and in Llama.

| name          | what                                                    |
|---------------|---------------------------------------------------------|
| `mlp_in.i`    | input of layer i's MLP (after its norm)                 |
| `mlp_act.i`   | its neurons: hidden activations after the nonlinearity  |
| `mlp_out.i`   | its output, before it is added to the residual stream   |
| `attn_out.i`  | output of layer i's attention, likewise                 |
| `resid_pre.i` | residual stream as layer i receives it                  |
| `resid_post.i`| residual stream as layer i leaves it                    |
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae.errors import ConfigError
from sae.registry import nearest

Side = Literal["in", "out"]


@dataclass(frozen=True)
class Site:
    """A side of a module. `name` is what the user called it."""

    name: str
    path: str
    side: Side


@dataclass(frozen=True)
class _Family:
    """Where a model family keeps its parts; `{i}` is the layer."""

    block: str
    mlp: str
    attn: str
    mlp_act: tuple[str, Side]


_GPT2 = _Family("transformer.h.{i}", "mlp", "attn", ("mlp.c_proj", "in"))
_NEOX = _Family("gpt_neox.layers.{i}", "mlp", "attention", ("mlp.dense_4h_to_h", "in"))
_LLAMA = _Family("model.layers.{i}", "mlp", "self_attn", ("mlp.down_proj", "in"))
_FAMILIES = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "smollm3": _LLAMA,
    "phi3": _LLAMA,
}
KINDS = ("mlp_in", "mlp_act", "mlp_out", "attn_out", "resid_pre", "resid_post")


def resolve(model: nn.Module, name: str) -> Site:
    """The site that `name` means in `model`.

    Raises:
        ConfigError: no such kind, layer or module; the message gives the nearest.
    """
    modules = dict(model.named_modules())
    if ":" in name:
        path, _, side = name.rpartition(":")
        if side not in ("in", "out"):
            raise ConfigError(f"site {name!r}: must end in :in or :out")
        if path not in modules:
            raise ConfigError(f"site {name!r}: the model has no module {path!r}; {nearest(path, modules)}")
        return Site(name, path, "in" if side == "in" else "out")
    kind, _, layer = name.partition(".")
    if kind not in KINDS or not layer.isdigit():
        raise ConfigError(f"site {name!r}: must be KIND.LAYER ({', '.join(KINDS)}) or module.path:in|out")
    path, side = _path(_family(model, name), kind, int(layer))
    if path not in modules:
        raise ConfigError(
            f"site {name!r}: the model has no module {path!r}; its layers are 0 to {_n_layers(model) - 1}"
        )
    return Site(name, path, side)


def writes_residual(model: nn.Module, site: Site) -> bool:
    """Whether what passes through the site is in the residual stream, or is added to it."""
    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    if kind not in _FAMILIES:
        return False
    kinds = ("mlp_out", "attn_out", "resid_pre", "resid_post")
    places = {_path(_FAMILIES[kind], name, layer) for name in kinds for layer in range(_n_layers(model))}
    return (site.path, site.side) in places


def _family(model: nn.Module, name: str) -> _Family:
    kind = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if kind not in _FAMILIES:
        raise ConfigError(f"site {name!r}: short names are not known for {kind}; write module.path:out")
    return _FAMILIES[kind]


def _n_layers(model: nn.Module) -> int:
    return int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]


def _path(family: _Family, kind: str, layer: int) -> tuple[str, Side]:
    block = family.block.format(i=layer)
    places: dict[str, tuple[str, Side]] = {
        "mlp_in": (f"{block}.{family.mlp}", "in"),
        "mlp_act": (f"{block}.{family.mlp_act[0]}", family.mlp_act[1]),
        "mlp_out": (f"{block}.{family.mlp}", "out"),
        "attn_out": (f"{block}.{family.attn}", "out"),
        "resid_pre": (block, "in"),
        "resid_post": (block, "out"),
    }
    return places[kind]


class _Done(Exception):
    """Every site has been read; the rest of the forward pass is not needed."""


def read(model: nn.Module, sites: Sequence[Site], forward: Callable[[], Any]) -> dict[str, Tensor]:
    """Run `forward()` and return what passes through each site, by name.

    The pass stops as soon as the last site has been seen, so later layers and the output layer
    cost nothing.

    Raises:
        ConfigError: a site was not reached, or what passes through it is no tensor.
    """
    found: dict[str, Tensor] = {}

    def keep(site: Site, value: Any) -> None:
        found[site.name] = _tensor(site, value)
        if len(found) == len(sites):
            raise _Done

    handles = [_attach(model, site, lambda value, site=site: keep(site, value)) for site in sites]
    try:
        forward()
    except _Done:
        pass
    finally:
        for handle in handles:
            handle.remove()
    missing = [site.name for site in sites if site.name not in found]
    if missing:
        raise ConfigError(f"site {missing[0]!r}: its module is not used in the forward pass")
    return found


@contextmanager
def kept(model: nn.Module, sites: Sequence[Site]) -> Iterator[dict[str, Tensor]]:
    """Within this context a whole forward pass leaves what passed through each site, by name."""
    found: dict[str, Tensor] = {}

    def keep(site: Site, value: Any) -> None:
        found[site.name] = _tensor(site, value)

    handles = [_attach(model, site, lambda value, site=site: keep(site, value)) for site in sites]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(model: nn.Module, site: Site, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this context, what passes through `site` is `change(what would have passed)`."""

    def swap(value: Any) -> Any:
        new = change(_tensor(site, value))
        return (new, *value[1:]) if isinstance(value, tuple) else new

    handle = _attach(model, site, swap)
    try:
        yield
    finally:
        handle.remove()


def _attach(model: nn.Module, site: Site, act: Callable[[Any], Any]) -> RemovableHandle:
    """Call `act` on the value at the site; what it returns, if not None, takes the value's place."""
    module = model.get_submodule(site.path)
    if site.side == "out":
        return module.register_forward_hook(lambda _module, _args, output: act(output))

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if args:
            new = act(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = act(kwargs["hidden_states"])
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _tensor(site: Site, value: Any) -> Tensor:
    value = value[0] if isinstance(value, tuple) else value
    if not isinstance(value, Tensor):
        raise ConfigError(f"site {site.name!r}: {type(value).__name__} passes through it, must be a tensor")
    return value
