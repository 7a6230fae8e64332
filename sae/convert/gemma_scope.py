"""Gemma Scope: `params.npz` (the first), `params.safetensors` and `config.json` (the second).

JumpReLU without a pre-bias; `W_enc [d_in, n_latents]`, `W_dec [n_latents, d_out]` (lower-case `w_` in the
second), `affine_skip_connection [d_in, d_out]`. No package writes these files and none checks them: copies
with a transposed encoder are about, which a square one hides.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.convert import Format, Read, Written, formats, places, plain
from sae.convert.answers import Answers
from sae.convert.plain import Jump, Plain
from sae.convert.tensors import check, matrix, named, read_npz
from sae.dictionary import Dictionary
from sae.errors import FormatError
from sae.readers import read_mapping, read_safetensors

NPZ, SAFETENSORS, CONFIG = "params.npz", "params.safetensors", "config.json"
SKIP = "affine_skip_connection"
HOOKS = {"in": "hf_hook_point_in", "out": "hf_hook_point_out"}
KINDS = ("res", "mlp", "att", "transcoder")
SITES = {
    "res": ("model.layers.{}:out", None),
    "mlp": ("model.layers.{}.post_feedforward_layernorm:out", None),
    "att": ("model.layers.{}.self_attn.o_proj:in", None),
    "transcoder": (
        "model.layers.{}.pre_feedforward_layernorm:out",
        "model.layers.{}.post_feedforward_layernorm:out",
    ),
}
"""Where each kind reads and writes in Gemma 2: the MLP's output is that behind its second norm."""


# --- reading ---


def read_first(path: Path, answers: Answers) -> Read:
    """`…/gemma-scope-2b-pt-res/…/layer_5/width_16k/average_l0_7/params.npz`: what it is only the path says."""
    parts = " ".join(path.absolute().parts)
    kind = _kind(path) or answers.choice("kind", "what it reads and writes, which the path does not say", KINDS)
    layer = re.search(r"layer_(\d+)", parts)
    inputs, outputs = (site.format(layer[1]) if site and layer else None for site in SITES[kind])
    found = _read(path, read_npz(path), kind == "transcoder", answers)
    return Read(plain.to_ours(found, path), places.facts({}, inputs, outputs))


def _kind(path: Path) -> str | None:
    """What the repository's name says, which stands somewhere in the path."""
    parts = " ".join(path.absolute().parts)
    return next((kind for kind in KINDS if re.search(rf"gemma-scope-\S+-{kind}s?\b", parts)), None)


def read_second(path: Path, answers: Answers) -> Read:
    where = path.parent / CONFIG
    config = read_mapping(where) if where.is_file() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise FormatError(f"{where}: architecture = {config['architecture']!r}: must be jump_relu")
    hooks = {name: config[name] for name in HOOKS.values() if config.get(name)}
    if hooks:
        is_transcoder = HOOKS["out"] in hooks
    else:
        about = f"whether it writes another place than it reads, which {CONFIG} would say"
        is_transcoder = answers.flag("transcoder", about)
    found = _read(path, read_safetensors(path), is_transcoder, answers)
    inputs, outputs = (_site(hooks.get(name)) for name in HOOKS.values())
    return Read(plain.to_ours(found, path), places.facts(config, inputs, outputs, hooks, config.get("model_name")))


def _site(hook: str | None) -> str | None:
    """`model.layers.5.output` → `model.layers.5:out`."""
    module, _, side = (hook or "").rpartition(".")
    return f"{module}:{side.removesuffix('put')}" if side in ("input", "output") else None


def _read(path: Path, tensors: Mapping[str, Tensor], is_transcoder: bool, answers: Answers) -> Plain:
    tensors = {re.sub("^w_", "W_", name): value for name, value in tensors.items()}
    n_latents, d_out = matrix(path, tensors, "W_dec")
    rows, columns = matrix(path, tensors, "W_enc")
    d_in = columns if rows == n_latents else rows
    if rows == columns:
        about = "which side of the square W_enc is the input's; Google's files have its rows for that"
        has_latent_rows = answers.choice("W_enc_rows", about, ("inputs", "latents")) == "latents"
    else:
        has_latent_rows = rows == n_latents
    if has_latent_rows:
        tensors["W_enc"] = tensors["W_enc"].T
    vectors = {"b_enc": (n_latents,), "b_dec": (d_out,), "threshold": (n_latents,)}
    skip = {SKIP: (d_in, d_out)} if SKIP in tensors else {}
    check(path, tensors, {"W_enc": (d_in, n_latents), "W_dec": (n_latents, d_out), **vectors, **skip})
    if not is_transcoder and (skip or d_in != d_out):
        raise FormatError(
            f"{path}: reads {d_in} and writes {d_out} columns{' and skips' if skip else ''}: is a transcoder"
        )
    tensors = {name: value.float() for name, value in tensors.items()}
    return Plain(
        W_enc=tensors["W_enc"].T,
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        activation=Jump(tensors["threshold"]),
        pre_bias=False,
        is_transcoder=is_transcoder,
        W_skip=tensors[SKIP].T if skip else None,
    )


# --- writing ---


def write_first(dictionary: Dictionary, facts: Mapping[str, Any]) -> Written:  # noqa: ARG001 - there is no place for facts
    own, tensors = _write(dictionary)
    if own.W_skip is not None:
        raise FormatError("a skip path: cannot be written, gemma_scope_2 has one")
    answers = {"kind": "transcoder" if own.is_transcoder else "res"}
    return Written({NPZ: tensors}, answers | _rows(own))


def check_first(dictionary: Dictionary, out: Path) -> None:
    """Raises: FormatError: the path would make a transcoder of an autoencoder, or the other way round."""
    kind, is_transcoder = _kind(out), dictionary.shape.outputs is not None
    if kind is not None and (kind == "transcoder") != is_transcoder:
        raise FormatError(
            f"{out}: cannot be written: the path says `{kind}`, and the dictionary is "
            f"{'a transcoder' if is_transcoder else 'no transcoder'}; write to a folder of another name"
        )


def write_second(dictionary: Dictionary, facts: Mapping[str, Any]) -> Written:
    """With the hooks of all places, or of none: a transcoder that names one of two reads as an autoencoder."""
    own, tensors = _write(dictionary)
    tensors = {name.replace("W_", "w_"): value for name, value in tensors.items()}
    if own.W_skip is not None:
        tensors[SKIP] = own.W_skip.T
    source = facts.get("source", {})
    theirs = dict(source.get("config", {})) if source.get("format") == "gemma_scope_2" else {}
    hooks = _hooks(facts, theirs, ("in", "out") if own.is_transcoder else ("in",))
    for name in HOOKS.values():
        theirs.pop(name, None)
    model = {} if facts.get("model") is None else {"model_name": facts["model"]}
    own_config = {"architecture": "jump_relu", "affine_connection": own.W_skip is not None}
    config = {"model_name": None, **theirs, **model, **hooks, **own_config}
    answers = {} if hooks else {"transcoder": "true" if own.is_transcoder else "false"}
    return Written({SAFETENSORS: tensors, CONFIG: config}, answers | _rows(own))


def _hooks(facts: Mapping[str, Any], theirs: Mapping[str, Any], sides: Sequence[str]) -> dict[str, str]:
    """The hooks of these sides: of our sites, else those that the file came with; none where one is not known."""
    found = {}
    for side in sides:
        site = places.site(facts, f"{side}puts")
        hook = theirs.get(HOOKS[side]) if site is None else _hook(site)
        if not hook:
            return {}
        found[HOOKS[side]] = hook
    return found


def _rows(own: Plain) -> dict[str, str]:
    n_latents, d_in, _ = own.sizes
    return {"W_enc_rows": "inputs"} if n_latents == d_in else {}


def _hook(site: str | None) -> str | None:
    """`model.layers.5:out` → `model.layers.5.output`; None for a short name, which no module has."""
    module, _, side = (site or "").rpartition(":")
    return f"{module}.{side}put" if module else None


def _write(dictionary: Dictionary) -> tuple[Plain, dict[str, Tensor]]:
    """Any ReLU or threshold, with the pre-bias in the encoder's bias."""
    own = plain.of(dictionary).with_pre_bias(False)
    threshold = own.thresholds()
    if threshold is None:
        raise FormatError("cannot be written: Gemma Scope has JumpReLU only, which ReLU and batch top-k become in use")
    if own.rows != "none":
        raise FormatError(f"normalise = {own.rows}: cannot be written, Gemma Scope normalises nothing in use")
    tensors = {"W_enc": own.W_enc.T.contiguous(), "W_dec": own.W_dec, "b_enc": own.b_enc, "b_dec": own.b_dec}
    return own, {**tensors, "threshold": threshold}


formats.register("gemma_scope")(Format(partial(named, name=NPZ), read_first, write_first, check_first))
formats.register("gemma_scope_2")(Format(partial(named, name=SAFETENSORS), read_second, write_second))
