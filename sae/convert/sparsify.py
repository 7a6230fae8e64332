"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder named after the module (eai-sparsify 1.3.3).

`encoder.weight` and `W_dec` both have a row for each latent, `W_skip [d_out, d_in]`; what is read and
what is written have one width. An autoencoder always subtracts `b_dec`; a transcoder did so before
February 2025 (pull request 49) and has not since, and nothing in the files says which.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae.convert import Format, Read, Written, formats, places, plain
from sae.convert.answers import Answers
from sae.convert.plain import Plain, TopK
from sae.convert.tensors import check, matrix, named
from sae.dictionary import Dictionary
from sae.errors import FormatError
from sae.readers import read_mapping, read_safetensors

CFG, WEIGHTS = "cfg.json", "sae.safetensors"
MULTI_COEF = 1 / 8  # of the trainer's Multi-TopK loss


def find(path: Path) -> Path | None:
    return named(path, WEIGHTS, CFG)


def read(path: Path, answers: Answers) -> Read:
    where, tensors = path.parent / CFG, read_safetensors(path)
    cfg = read_mapping(where)
    n_latents, d_in = matrix(path, tensors, "encoder.weight")
    _check_cfg(where, cfg, n_latents, d_in)
    # an autoencoder with a skip path has the form of a transcoder here: only that has one
    transcodes, skips = bool(cfg.get("transcode", False)), bool(cfg.get("skip_connection", False))
    shapes = {"encoder.weight": (n_latents, d_in), "encoder.bias": (n_latents,), "W_dec": (n_latents, d_in)}
    check(path, tensors, {**shapes, "b_dec": (d_in,), **({"W_skip": (d_in, d_in)} if skips else {})})
    tensors = {name: value.float() for name, value in tensors.items()}
    k = cfg["k"] if "k" in cfg else answers.count("k", "how many latents of a row are kept (sparsify would take 32)")
    found = Plain(
        W_enc=tensors["encoder.weight"],
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        activation=TopK(k, MULTI_COEF if cfg.get("multi_topk") else 0.0),
        pre_bias=not transcodes and not skips,
        is_transcoder=transcodes or skips,
        W_skip=tensors.get("W_skip"),
    )
    if _subtracts(transcodes, answers) and found.is_transcoder:
        found = found.centred(found.b_dec)
    return Read(plain.to_ours(found, where), _facts(path, cfg, transcodes, found.is_transcoder))


def _subtracts(transcodes: bool, answers: Answers) -> bool:
    """Whether `b_dec` is subtracted from the input."""
    if not transcodes:
        return True
    about = "whether the transcoder subtracts b_dec from its input: true if sparsify trained it before February 2025"
    return answers.flag("apply_b_dec_to_input", about)


def _check_cfg(where: Path, cfg: Mapping[str, Any], n_latents: int, d_in: int) -> None:
    activation = cfg.get("activation", "topk")
    if activation == "groupmax":
        raise FormatError(
            f"{where}: activation = 'groupmax': is not built in; docs/plug-ins.md has it as an example, "
            "whose tensors have the same names and orientation as TopK's"
        )
    if activation != "topk":
        raise FormatError(f"{where}: activation = {activation!r}: must be topk")
    if cfg.get("signed"):
        raise FormatError(f"{where}: signed = true: has no counterpart here, latents are never negative")
    if cfg.get("d_in", d_in) != d_in:
        raise FormatError(f"{where}: d_in = {cfg['d_in']}: the weights have {d_in}")
    said = cfg.get("num_latents") or d_in * cfg.get("expansion_factor", 32)
    if said != n_latents:
        raise FormatError(f"{where}: num_latents = {said}: the weights have {n_latents}")


def _facts(path: Path, cfg: Mapping[str, Any], transcodes: bool, has_target: bool) -> dict[str, Any]:
    """The folder is the module's name, from inside the model; GPT-2's modules alone are `h.<layer>`.

    Where a run has several seeds, each has a folder of its own below: `h.5.mlp/seed1`.
    """
    folder = path.absolute().parent
    module = folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name
    full = f"transformer.{module}" if module.startswith("h.") and module.split(".")[1].isdecimal() else None
    output = full and f"{full}:out"
    inputs = full and f"{full}:in" if transcodes else output
    return places.facts(cfg, inputs, output if has_target else None, {"hookpoint": module})


def write(dictionary: Dictionary, facts: Mapping[str, Any]) -> Written:  # noqa: ARG001 - there is no place for facts
    """An autoencoder gets its pre-bias, where ours has none, out of the encoder's bias."""
    own = plain.of(dictionary)
    n_latents, d_in, d_out = own.sizes
    activation = own.activation
    if not isinstance(activation, TopK):
        raise FormatError("cannot be written: sparsify has TopK only")
    if own.rows != "none":
        raise FormatError(f"normalise = {own.rows}: cannot be written, sparsify normalises nothing in use")
    if d_in != d_out:
        raise FormatError(
            f"cannot be written: sparsify writes what is as wide as what it reads, not {d_in} and {d_out}"
        )
    own = own.with_pre_bias(not own.is_transcoder)
    tensors = {"encoder.weight": own.W_enc, "encoder.bias": own.b_enc, "W_dec": own.W_dec, "b_dec": own.b_dec}
    tensors |= {} if own.W_skip is None else {"W_skip": own.W_skip}
    cfg = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": dictionary.folded().cfg.decoder == "unit",
        "num_latents": n_latents,
        "k": activation.k,
        "multi_topk": activation.multi_coef > 0,
        "skip_connection": own.W_skip is not None,
        "transcode": own.is_transcoder,
        "d_in": d_in,
    }
    return Written({WEIGHTS: tensors, CFG: cfg}, {"apply_b_dec_to_input": "false"} if own.is_transcoder else {})


formats.register("sparsify")(Format(find, read, write))
