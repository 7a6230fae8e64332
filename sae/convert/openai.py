"""OpenAI's sparse_autoencoder: one `<layer>.pt` a dictionary, a state dict with two entries that are no tensors.

`pre_bias [d]`, `latent_bias [n_latents]`, `encoder.weight [n_latents, d]`, `decoder.weight [d, n_latents]`,
three statistics, `activation` (a class name) and `activation_state_dict`; in some files its entries stand
beside it as `activation.k`, `activation.postact_fn`. Whether rows are layer-normed is in no file: the
package takes it from the activation's name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae.convert import Format, Read, Written, formats, places, plain
from sae.convert.answers import Answers
from sae.convert.plain import Activation, Plain, ReLU, TopK
from sae.convert.tensors import check, matrix, read_pt
from sae.dictionary import Dictionary
from sae.errors import FormatError

SITES = {
    "mlp_post_act": "mlp_act.{}",
    "resid_delta_mlp": "mlp_out.{}",
    "resid_delta_attn": "attn_out.{}",
    "resid_post_mlp": "resid_post.{}",
    "resid_post_attn": "transformer.h.{}.ln_2:in",
}
"""The package's locations in GPT-2 small."""
STATISTICS = {
    "stats_last_nonzero": torch.long,
    "latents_activation_frequency": torch.float,
    "latents_mean_square": torch.float,
}


def find(path: Path) -> Path | None:
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    found = [file for file in files if _has_names(file)]
    if len(found) > 1:
        raise FormatError(f"{path}: has {len(found)} dictionaries; name one, such as {found[0]}")
    return found[0] if found else None


def _has_names(path: Path) -> bool:
    """Whether a file that `torch.save` wrote names what this format has: names come first in it, uncompressed."""
    if path.suffix != ".pt" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(1 << 16)
    return b"pre_bias" in head and b"latent_bias" in head


def read(path: Path, answers: Answers) -> Read:
    state = read_pt(path)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    n_latents, d = matrix(path, tensors, "encoder.weight")
    shapes = {"pre_bias": (d,), "latent_bias": (n_latents,), "encoder.weight": (n_latents, d)}
    shapes |= {"decoder.weight": (d, n_latents), **dict.fromkeys(STATISTICS, (n_latents,))}
    check(path, tensors, shapes)
    found = Plain(
        W_enc=tensors["encoder.weight"].float(),
        b_enc=tensors["latent_bias"].float(),
        W_dec=tensors["decoder.weight"].float().T,
        b_dec=tensors["pre_bias"].float(),
        activation=_activation(path, state, answers),
        pre_bias=True,
        rows="layer_norm" if _is_normalised(answers) else "none",
    )
    config = {name: value for name, value in state.items() if name not in tensors}
    return Read(plain.to_ours(found, path), _facts(path, config))


def _activation(path: Path, state: Mapping[str, Any], answers: Answers) -> Activation:
    name = state.get("activation") or answers.choice("activation", "how latents are chosen", ("ReLU", "TopK"))
    own = state.get("activation_state_dict") or {}
    if name == "ReLU":
        return ReLU()
    if name != "TopK":
        raise FormatError(f"{path}: activation = {name!r}: has no counterpart here, latents are never negative")
    postact = own.get("postact_fn", state.get("activation.postact_fn", "ReLU"))
    if postact != "ReLU":
        raise FormatError(f"{path}: postact_fn = {postact!r}: has no counterpart here, latents are never negative")
    k = own.get("k", state.get("activation.k"))
    return TopK(int(k) if k is not None else answers.count("k", "how many latents of a row are kept"))


def _is_normalised(answers: Answers) -> bool:
    about = "whether rows are layer-normed; the package takes true where activation is TopK, and false elsewhere"
    return answers.flag("normalize", about)


def _facts(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The place is in the path alone: `…/resid_delta_mlp_v5_32k/autoencoders/8.pt`."""
    parts = (re.match("|".join(SITES), part) for part in path.absolute().parts)
    location = next((found[0] for found in parts if found), None)
    if location is None or not path.stem.isdecimal():
        return places.facts(config)
    return places.facts(config, SITES[location].format(path.stem), hooks={"location": location}, model="gpt2")


def write(dictionary: Dictionary, facts: Mapping[str, Any]) -> Written:
    """What the package reads as we do: TopK of layer-normed rows, or ReLU of rows as they are."""
    own = plain.of(dictionary)
    if own.is_transcoder:
        raise FormatError("a transcoder: cannot be written, OpenAI's format has autoencoders only")
    expected = {TopK: "layer_norm", ReLU: "none"}.get(type(own.activation))
    if expected is None:
        raise FormatError("cannot be written: OpenAI's format has ReLU and TopK only")
    if own.rows != expected:
        raise FormatError(
            f"normalise = {dictionary.cfg.normalise}: cannot be written; the package reads every TopK file as of "
            "layer-normed rows, and every other as of rows as they are"
        )
    own = own.with_pre_bias(True)
    k = {"k": own.activation.k, "postact_fn": "ReLU"} if isinstance(own.activation, TopK) else {}
    state = {
        "pre_bias": own.b_dec,
        "latent_bias": own.b_enc,
        **{name: torch.zeros(own.sizes[0], dtype=dtype) for name, dtype in STATISTICS.items()},
        "encoder.weight": own.W_enc,
        "decoder.weight": own.W_dec.T.contiguous(),
        "activation": "TopK" if k else "ReLU",
        "activation_state_dict": k,
    }
    layer = places.layer(places.site(facts, "inputs"))
    name = "autoencoder.pt" if layer is None else f"{layer}.pt"
    return Written({name: state}, {"normalize": "true" if k else "false"})


formats.register("openai")(Format(find, read, write))
