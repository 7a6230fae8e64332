"""Peers' names of places in a network, and ours.

Only names that mean the same tensor are translated. TransformerLens' `ln2.hook_normalized` lies before
the norm's weights and its `hook_mlp_in` before the norm altogether, where our `mlp_in` lies after both:
such names stay in the facts as they are, and the user may say `--set site=…`.
"""

import re
from collections.abc import Mapping
from typing import Any

_HOOKS = {
    "hook_mlp_out": "mlp_out",
    "mlp.hook_post": "mlp_act",
    "hook_attn_out": "attn_out",
    "hook_resid_pre": "resid_pre",
    "hook_resid_post": "resid_post",
}
_HOOK_OF = {kind: hook for hook, kind in _HOOKS.items()}


def of_hook(name: str | None) -> str | None:
    """`blocks.3.hook_mlp_out` → `mlp_out.3`; None where we have no such place."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name or "")
    kind = found and _HOOKS.get(found[2])
    return f"{kind}.{found[1]}" if found and kind else None


def to_hook(site: str | None) -> str | None:
    """`mlp_out.3` → `blocks.3.hook_mlp_out`; None where TransformerLens has no such place."""
    kind, _, layer = (site or "").partition(".")
    return f"blocks.{layer}.{_HOOK_OF[kind]}" if kind in _HOOK_OF else None


def layer(site: str | None) -> int | None:
    """The layer in a site's name: 3 for `mlp_out.3` and for `transformer.h.3.mlp:out`."""
    found = re.search(r"\.(\d+)(?![\d])", site or "")
    return int(found[1]) if found else None


def facts(
    config: Mapping[str, Any],
    inputs: str | None = None,
    outputs: str | None = None,
    hooks: Mapping[str, str] | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """What a peer's files say beside the weights.

    Args:
        config: all of the peer's own configuration.
        inputs, outputs: sites, in our names; None where they are not known.
        hooks: the peer's names of places.
        model: the network's name.
    """
    known: dict[str, Any] = {"inputs": inputs and [inputs], "outputs": outputs and [outputs], "model": model}
    known = {name: value for name, value in known.items() if value is not None}
    return known | ({"hooks": dict(hooks)} if hooks else {}) | {"source": {"config": dict(config)}}


def site(facts: Mapping[str, Any], which: str) -> str | None:
    """The one site among the facts' `inputs` or `outputs`."""
    return next(iter(facts.get(which) or ()), None)
