"""SAELens' `cfg.json`, of version 6 and of those before it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae.convert import places
from sae.convert.answers import Answers
from sae.convert.plain import Rows
from sae.errors import FormatError

VERSION = "6.54.12"  # whose layout is written
NORMALISE: dict[str, Rows] = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "row_norm"}
FOLDED = ("expected_average_only_in", "covariance_whitening")
"""What training checkpoints have beside these, to be folded into the weights."""
OF_BASE = ("standard", "gated", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
METADATA = (
    "model_name",
    "hook_name",
    "hook_name_out",
    "hook_head_index",
    "context_size",
    "prepend_bos",
    "seqpos_slice",
    "dataset_path",
    "model_from_pretrained_kwargs",
    "neuronpedia_id",
    "exclude_special_tokens",
    "hf_hook_name",
    "hf_hook_name_out",
    "model_class_name",
)
"""Of `metadata`, and before version 6 of cfg.json itself: what speaks of the network and the text."""
VERSIONS = ("sae_lens_version", "sae_lens_training_version")
"""Of cfg.json itself, before version 6."""
OLD = ("activation_fn", "activation_fn_str", "activation_fn_kwargs", "hook_point")
"""Only files from before version 6 have one of these."""


def modern(raw: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """cfg.json as version 6 has it; before that the activation had a name and arguments of its own."""
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise FormatError(f"{where}: metadata = {metadata!r}: must be a mapping of fields to values")
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
    flat = {renamed.get(key, key): value for key, value in raw.items()}
    cfg = {**raw, "metadata": {**{key: flat[key] for key in METADATA if key in flat}, **metadata}}
    if _is_old(raw, metadata):
        cfg = _of_old(cfg, where)
    cfg["normalize_activations"] = cfg.get("normalize_activations") or "none"
    if "architecture" not in cfg:
        raise FormatError(f"{where}: architecture: is missing, must be the name of one of SAELens' architectures")
    return cfg


def _is_old(raw: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether it is from before version 6, by its version, or, where it has none, by fields that 6 did away with."""
    for version in (metadata.get("sae_lens_version"), *(raw.get(name) for name in VERSIONS)):
        major = re.match(r"\d+", str(version))
        if major is not None:
            return int(major[0]) < 6
    return any(name in raw for name in OLD)


def _of_old(cfg: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """With what the fields that such files lack meant then: they came later, all but the selection of batch top-k."""
    new = {"architecture": "standard", "apply_b_dec_to_input": cfg.get("architecture") not in TRANSCODERS, **cfg}
    activation = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    if activation == "topk":
        new |= {"architecture": "topk", **(cfg.get("activation_fn_kwargs") or {})}
    elif activation != "relu":
        raise FormatError(f"{where}: activation_fn = {activation!r}: has no counterpart here, must be relu or topk")
    if new["architecture"] == "topk":
        new.setdefault("rescale_acts_by_decoder_norm", False)
    if isinstance(cfg.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if cfg["normalize_activations"] else "none"
    return new


def subtracts(where: Path, cfg: Mapping[str, Any], answers: Answers) -> bool:
    """Whether `b_dec` is subtracted from the input."""
    name, is_transcoder = "apply_b_dec_to_input", cfg["architecture"] in TRANSCODERS
    if is_transcoder and cfg.get(name):
        raise FormatError(f"{where}: {name} = true: must be false, SAELens has no transcoder that does so")
    if is_transcoder or name in cfg:
        return bool(cfg.get(name, False))
    return answers.flag(name, "whether b_dec is subtracted from the input (SAELens would do so)")


def need(where: Path, cfg: Mapping[str, Any], name: str) -> Any:
    """A field without which cfg.json does not say what the dictionary does."""
    if name not in cfg:
        raise FormatError(f"{where}: {name}: is missing, and decides which latents are found")
    return cfg[name]


def is_whole(value: object) -> bool:
    return isinstance(value, int | float) and float(value).is_integer()


def check_sizes(where: Path, cfg: Mapping[str, Any], **sizes: int) -> None:
    for key, size in sizes.items():
        if cfg.get(key, size) != size:
            raise FormatError(f"{where}: {key} = {cfg[key]}: the weights have {size}")


def rows(where: Path, cfg: Mapping[str, Any]) -> Rows:
    """How rows are normalised one by one, in use."""
    name = cfg["normalize_activations"]
    folded = ("expected_average_only_in",) if cfg["architecture"] == "matching_pursuit" else FOLDED
    if name not in (*NORMALISE, *folded):
        raise FormatError(f"{where}: normalize_activations = {name!r}: must be {', '.join((*NORMALISE, *folded))}")
    return NORMALISE.get(name, "none")


def metadata(facts: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What speaks of the network and the text, from our facts and the cfg.json that it may have come from."""
    hooks = {"hook_name": places.site(facts, "inputs"), "hook_name_out": places.site(facts, "outputs")}
    known = {key: places.to_hook(site) for key, site in hooks.items()} | {"model_name": facts.get("model")}
    kept = {key: value for key, value in {**theirs, **(theirs.get("metadata") or {})}.items() if key in METADATA}
    kept |= {key: value for key, value in facts.get("hooks", {}).items() if key in hooks}
    named = {key: value for key, value in known.items() if value is not None}
    return {**kept, **named, "sae_lens_version": VERSION, "sae_lens_training_version": None}


def reshape(theirs: Mapping[str, Any]) -> str:
    """`hook_z` where heads are laid side by side before they are encoded; before version 6 the hook's name says it."""
    is_heads = "hook_z" in str(theirs.get("hook_name", theirs.get("hook_point", "")))
    return theirs.get("reshape_activations") or ("hook_z" if is_heads else "none")
