"""Marks, Karvonen & Mueller's dictionary_learning 0.1.0: `ae.pt` and `config.json` in `trainer_<i>/`.

Classes made of `nn.Linear` keep `decoder.weight [d, n_latents]`, those with parameters of their own
`W_enc [d, n_latents]`, `W_dec [n_latents, d]`; which is which the names say. Where training normalised
its rows, the factor is in the biases and thresholds already: a file takes rows as they are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.convert import Format, Read, Written, formats, places, plain
from sae.convert.answers import Answers
from sae.convert.plain import Activation, Batch, Gate, Jump, Plain, ReLU, TopK
from sae.convert.tensors import check, matrix, read_pt
from sae.dictionary import Dictionary
from sae.errors import FormatError
from sae.readers import read_mapping

CONFIG, WEIGHTS = "config.json", "ae.pt"
UNSET = -1.0  # a threshold that was never learnt
PLACES = {
    ("mlp", "out"): "mlp_out",
    ("mlp", "in"): "mlp_in",
    ("attn", "out"): "attn_out",
    ("resid_post", "out"): "resid_post",
}


@dataclass(frozen=True)
class _Class:
    """How one of the package's classes names its tensors; biases by what they are to us."""

    is_linear: bool
    b_enc: str
    b_dec: str
    more: tuple[str, ...] = ()
    pre_bias: bool | None = True
    """None: an attribute that is in no file."""


CLASSES = {
    "AutoEncoder": _Class(True, "encoder.bias", "bias"),
    "AutoEncoderNew": _Class(True, "encoder.bias", "decoder.bias", pre_bias=False),
    "GatedAutoEncoder": _Class(True, "gate_bias", "decoder_bias", ("r_mag", "mag_bias")),
    "JumpReluAutoEncoder": _Class(False, "b_enc", "b_dec", ("threshold",), pre_bias=None),
    "AutoEncoderTopK": _Class(True, "encoder.bias", "b_dec", ("k", "threshold")),
    "BatchTopKSAE": _Class(True, "encoder.bias", "b_dec", ("k", "threshold")),
    "MatryoshkaBatchTopKSAE": _Class(False, "b_enc", "b_dec", ("k", "threshold", "group_sizes")),
}


def find(path: Path) -> Path | None:
    """`ae.pt`, or a checkpoint's `ae_<step>.pt`."""
    weights = path / WEIGHTS if path.is_dir() else path
    return weights if weights.is_file() and re.fullmatch(r"ae(_\d+)?\.pt", weights.name) else None


# --- reading ---


def read(path: Path, answers: Answers) -> Read:
    state = read_pt(path)
    where = (path.parent.parent if path.parent.name == "checkpoints" else path.parent) / CONFIG
    config = read_mapping(where) if where.is_file() else {}
    name = _class_name(path, where, config.get("trainer", {}), state, answers)
    kind = CLASSES[name]
    rows, columns = matrix(path, state, "encoder.weight" if kind.is_linear else "W_enc")
    n_latents, d = (rows, columns) if kind.is_linear else (columns, rows)
    check(path, state, _shapes(kind, state, n_latents, d))
    said = config.get("trainer", {})
    for key, value in {"dict_size": n_latents, "activation_dim": d, "k": int(state.get("k", 0))}.items():
        if key in said and said[key] != value and key in {*kind.more, "dict_size", "activation_dim"}:
            raise FormatError(f"{where}: trainer.{key} = {said[key]}: {path.name} has {value}")
    about = "whether b_dec is subtracted from the input; the package's class does not unless told so"
    found = Plain(
        W_enc=state["encoder.weight"].float() if kind.is_linear else state["W_enc"].float().T,
        b_enc=state[kind.b_enc].float(),
        W_dec=state["decoder.weight"].float().T if kind.is_linear else state["W_dec"].float(),
        b_dec=state[kind.b_dec].float(),
        activation=_activation(name, state),
        pre_bias=answers.flag("apply_b_dec_to_input", about) if kind.pre_bias is None else kind.pre_bias,
    )
    facts = _facts(config)
    if name == "AutoEncoderTopK":  # it keeps one, and does not use it unless told so
        facts["source"]["threshold"] = state["threshold"].item()
    return Read(plain.to_ours(found, path), facts)


def _class_name(
    path: Path, where: Path, trainer: Mapping[str, Any], state: Mapping[str, Tensor], answers: Answers
) -> str:
    """`trainer.dict_class`, or the one class with these tensors, or what the user says."""
    if "dict_class" in trainer:
        if trainer["dict_class"] not in CLASSES:
            raise FormatError(f"{where}: trainer.dict_class = {trainer['dict_class']!r}: must be {', '.join(CLASSES)}")
        return trainer["dict_class"]
    found = [name for name, kind in CLASSES.items() if set(_shapes(kind, state, 1, 1)) == set(state)]
    if not found:
        raise FormatError(f"{path}: no class of the package has just the tensors {', '.join(sorted(state))}")
    return found[0] if len(found) == 1 else answers.choice("dict_class", "how latents are chosen", found)


def _shapes(kind: _Class, state: Mapping[str, Tensor], n_latents: int, d: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a class and their shapes; groups may be as many as they are."""
    shapes: dict[str, tuple[int, ...]] = {kind.b_enc: (n_latents,), kind.b_dec: (d,)}
    if kind.is_linear:
        shapes |= {"encoder.weight": (n_latents, d), "decoder.weight": (d, n_latents)}
    else:
        shapes |= {"W_enc": (d, n_latents), "W_dec": (n_latents, d)}
    shapes |= dict.fromkeys(kind.more, (n_latents,))
    if "k" in kind.more:
        shapes |= {"k": (), "threshold": ()}
    if "group_sizes" in kind.more:
        shapes["group_sizes"] = tuple(state["group_sizes"].shape) if "group_sizes" in state else (1,)
    return shapes


def _activation(name: str, state: Mapping[str, Tensor]) -> Activation:
    match name:
        case "AutoEncoderTopK":
            return TopK(int(state["k"]))
        case "BatchTopKSAE" | "MatryoshkaBatchTopKSAE":
            threshold = state["threshold"].item()
            sizes = state.get("group_sizes")
            widths = None if sizes is None else tuple(sizes.cumsum(0).tolist())
            return Batch(int(state["k"]), threshold if threshold >= 0 else None, widths)
        case "JumpReluAutoEncoder":
            return Jump(state["threshold"].float())
        case "GatedAutoEncoder":
            return Gate(state["r_mag"].float(), state["mag_bias"].float())
        case _:
            return ReLU()


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """`submodule_name` is free text; the package's own examples say `mlp_3`, `attn_3`, `resid_post_layer_3`."""
    trainer, buffer = config.get("trainer", {}), config.get("buffer", {})
    name = str(trainer.get("submodule_name") or "")
    found = re.fullmatch(r"(mlp|attn|resid_post)_(?:layer_)?(\d+)", name)
    kind = found and PLACES.get((found[1], buffer.get("io")))
    hooks = {"submodule_name": name, "io": str(buffer.get("io"))} if name else {}
    return places.facts(config, f"{kind}.{found[2]}" if found and kind else None, None, hooks, trainer.get("lm_name"))


# --- writing ---


def write(dictionary: Dictionary, facts: Mapping[str, Any]) -> Written:
    """The class with the same activation; one that always subtracts `b_dec`, or never, gets what is due in `b_enc`."""
    own = plain.of(dictionary)
    if own.is_transcoder:
        raise FormatError("a transcoder: cannot be written, dictionary_learning has autoencoders only")
    if own.rows != "none":
        raise FormatError(f"normalise = {own.rows}: cannot be written, dictionary_learning normalises nothing in use")
    name = _class_of(own)
    kind = CLASSES[name]
    own = own.with_pre_bias(bool(kind.pre_bias))
    n_latents, d, _ = own.sizes
    if kind.is_linear:
        state = {"encoder.weight": own.W_enc, "decoder.weight": own.W_dec.T.contiguous()}
    else:
        state = {"W_enc": own.W_enc.T.contiguous(), "W_dec": own.W_dec}
    state |= {kind.b_enc: own.b_enc, kind.b_dec: own.b_dec, **_own_tensors(own.activation)}
    source = facts.get("source", {})
    theirs = source.get("config", {}) if source.get("format") == "dictionary_learning" else {}
    if name == "AutoEncoderTopK" and source.get("format") == "dictionary_learning" and "threshold" in source:
        state["threshold"] = torch.tensor(source["threshold"])
    place, io = _place(facts, theirs)
    trainer = {
        **{"layer": None, "lm_name": None, "submodule_name": None, "device": "cpu"},
        **theirs.get("trainer", {}),
        **place,
        **({} if facts.get("model") is None else {"lm_name": facts["model"]}),
        **{"dict_class": name, "activation_dim": d, "dict_size": n_latents},
        **({"k": int(state["k"])} if "k" in state else {}),
    }
    buffer = {"d_submodule": d, **theirs.get("buffer", {}), **io}
    answers = {"apply_b_dec_to_input": "false"} if kind.pre_bias is None else {}
    return Written({WEIGHTS: state, CONFIG: {"trainer": trainer, "buffer": buffer}}, answers)


def _place(facts: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `trainer` and `buffer` say of the place; nothing where their own configuration says the same of it."""
    site = places.site(facts, "inputs")
    if site is None or site == places.site(_facts(theirs), "inputs"):
        return {}, {}
    layer = places.layer(site)
    for (module, io), kind in PLACES.items():
        if site == f"{kind}.{layer}":
            name = f"{module}_layer_{layer}" if module == "resid_post" else f"{module}_{layer}"
            return {"layer": layer, "submodule_name": name}, {"io": io}
    return {"layer": layer, "submodule_name": site}, {"io": site.rpartition(":")[2] if ":" in site else None}


def _class_of(own: Plain) -> str:
    match own.activation:
        case ReLU():
            return "AutoEncoder" if own.pre_bias else "AutoEncoderNew"
        case TopK():
            return "AutoEncoderTopK"
        case Batch(widths=widths):
            return "BatchTopKSAE" if widths is None else "MatryoshkaBatchTopKSAE"
        case Jump():
            return "JumpReluAutoEncoder"
        case Gate():
            return "GatedAutoEncoder"


def _own_tensors(activation: Activation) -> dict[str, Tensor]:
    """What only a class with this activation has."""
    match activation:
        case TopK(k):
            return {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(UNSET)}
        case Batch(k, threshold, widths):
            own = {"k": torch.tensor(k, dtype=torch.int32)}
            own["threshold"] = torch.tensor(UNSET if threshold is None else threshold)
            if widths is not None:
                own["group_sizes"] = torch.tensor(widths).diff(prepend=torch.zeros(1, dtype=torch.long))
            return own
        case Jump(threshold):
            return {"threshold": threshold}
        case Gate(r_mag, b_mag):
            return {"r_mag": r_mag, "mag_bias": b_mag}
        case ReLU():
            return {}


formats.register("dictionary_learning")(Format(find, read, write))
