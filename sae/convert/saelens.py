"""SAELens: `cfg.json` and `sae_weights.safetensors` in a folder (layout of sae-lens 6.54.12, and of those before 6).

Training checkpoints too: what is normalised in them is not yet in the weights but in
`activation_scaler.json` and `activation_whitening.safetensors`, and is folded here as SAELens folds it.
`W_enc [d_in, d_sae]`, `W_dec [d_sae, d_out]`, `W_skip [d_out, d_in]`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae import architectures
from sae.architectures.configs import configs
from sae.architectures.matching_pursuit import MatchingPursuitSAE
from sae.config import parse
from sae.convert import Format, Read, Written, formats, places, plain, saelens_cfg
from sae.convert.answers import Answers
from sae.convert.plain import Activation, Batch, Gate, Jump, Plain, ReLU, TopK
from sae.convert.tensors import check, matrix, named
from sae.dictionary import Dictionary, Shape
from sae.errors import FormatError
from sae.readers import read_mapping, read_safetensors

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
REFUSED = {
    "abstopk": "it keeps latents below 0, and ours are never negative",
    "temporal": "its latents depend on the rows before, through attention",
}


def find(path: Path) -> Path | None:
    return named(path, WEIGHTS, CFG)


# --- reading ---


def read(path: Path, answers: Answers) -> Read:
    """A checkpoint of any architecture that has a counterpart here."""
    where, tensors = path.parent / CFG, read_safetensors(path)
    raw = read_mapping(where)
    cfg = saelens_cfg.modern(raw, where)
    name = cfg["architecture"]
    if name in REFUSED:
        raise FormatError(f"{where}: architecture = {name!r}: has no counterpart here: {REFUSED[name]}")
    if name == "matching_pursuit":
        dictionary = _read_pursuit(path, cfg, tensors, answers)
    elif name in (*saelens_cfg.OF_BASE, *saelens_cfg.TRANSCODERS):
        dictionary = plain.to_ours(_read_plain(path, cfg, tensors, answers), where)
    else:
        known = ", ".join((*saelens_cfg.OF_BASE, *saelens_cfg.TRANSCODERS, "matching_pursuit"))
        raise FormatError(f"{where}: architecture = {name!r}: must be one of {known}")
    metadata = cfg["metadata"]
    hooks = {key: metadata[key] for key in ("hook_name", "hook_name_out") if metadata.get(key)}
    inputs, outputs = (places.of_hook(hooks.get(key)) for key in ("hook_name", "hook_name_out"))
    return Read(dictionary, places.facts(raw, inputs, outputs, hooks, metadata.get("model_name")))


def _read_plain(path: Path, cfg: Mapping[str, Any], tensors: dict[str, Tensor], answers: Answers) -> Plain:
    name, where = cfg["architecture"], path.parent / CFG
    d_in, n_latents = matrix(path, tensors, "W_enc")
    d_out = cfg.get("d_out", matrix(path, tensors, "W_dec")[1]) if name in saelens_cfg.TRANSCODERS else d_in
    saelens_cfg.check_sizes(where, cfg, d_in=d_in, d_sae=n_latents)
    _drop_scaling_factor(path, tensors)
    if name == "jumprelu" and "log_threshold" in tensors:  # of older training checkpoints
        tensors["threshold"] = tensors.pop("log_threshold").float().exp()
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, n_latents),
        "W_dec": (n_latents, d_out),
        "b_dec": (d_out,),
        **dict.fromkeys(("b_gate", "b_mag", "r_mag") if name == "gated" else ("b_enc",), (n_latents,)),
        **({"threshold": (n_latents,)} if "jumprelu" in name else {}),
        **({"topk_threshold": ()} if "batchtopk" in name else {}),
        **({"W_skip": (d_out, d_in)} if "skip" in name else {}),
    }
    check(path, tensors, shapes)
    float32 = {key: value.float() for key, value in tensors.items()}
    activation = _activation(where, cfg, tensors, n_latents, answers)
    found = Plain(
        W_enc=float32["W_enc"].T,
        b_enc=float32["b_gate" if name == "gated" else "b_enc"],
        W_dec=float32["W_dec"],
        b_dec=float32["b_dec"],
        activation=activation,
        pre_bias=saelens_cfg.subtracts(where, cfg, answers),
        rows=saelens_cfg.rows(where, cfg),
        is_transcoder=name in saelens_cfg.TRANSCODERS,
        W_skip=float32.get("W_skip"),
    )
    return _folded(path, cfg, found, answers)


def _drop_scaling_factor(path: Path, tensors: dict[str, Tensor]) -> None:
    """Older versions wrote a factor a latent for a fine-tuning that SAELens has given up; mostly all ones."""
    factor = tensors.pop("scaling_factor", torch.ones(()))
    if not torch.allclose(factor.float(), torch.ones(())):
        raise FormatError(f"{path}: scaling_factor: is not all 1; SAELens itself reads such files no longer")


def _activation(
    where: Path, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor], n_latents: int, answers: Answers
) -> Activation:
    name = cfg["architecture"]
    if name == "gated":
        return Gate(tensors["r_mag"].float(), tensors["b_mag"].float())
    if name == "topk":
        k = cfg.get("k") or answers.count("k", "how many latents of a row are kept (SAELens would take 100)")
        if not saelens_cfg.is_whole(k):
            raise FormatError(f"{where}: k = {k!r}: must be a whole number, as latents are counted row by row")
        return TopK(int(k))
    if "batchtopk" in name:
        k = cfg.get("k")
        found = "has none" if k is None else f"has {k}, ours is a whole number"
        about = f"how many latents a row are kept in further training ({CFG} {found})"
        k = int(k) if k is not None and saelens_cfg.is_whole(k) else answers.count("k", about)
        widths = tuple(saelens_cfg.need(where, cfg, "matryoshka_widths")) if name.startswith("matryoshka") else None
        if widths is not None and widths[-1:] != (n_latents,):
            widths = (*widths, n_latents)  # as SAELens does
        return Batch(k, tensors["topk_threshold"].item(), widths)
    return Jump(tensors["threshold"].float()) if "jumprelu" in name else ReLU()


def _folded(path: Path, cfg: Mapping[str, Any], found: Plain, answers: Answers) -> Plain:
    """With the training's normalisation and decoder norms in the weights, in the order that keeps selections."""
    scale, is_rescaled = _scale(path, cfg, answers), _is_rescaled(cfg, found, answers)
    found = found.unscaled(scale)
    if is_rescaled:
        found = found.unit()
        if isinstance(found.activation, Batch) and found.activation.threshold is not None:
            # in units of f ||W_dec||, which the scale has divided
            found = replace(found, activation=replace(found.activation, threshold=found.activation.threshold / scale))
    if cfg["normalize_activations"] == "covariance_whitening":
        found = found.unwhitened(*_whitening(path.parent / WHITENING, found.sizes[1]))
    return found


def _is_rescaled(cfg: Mapping[str, Any], found: Plain, answers: Answers) -> bool:
    """Whether latents are chosen by, and reported as, `f ||W_dec||`."""
    if not isinstance(found.activation, TopK | Batch):
        return False
    name = "rescale_acts_by_decoder_norm"
    if name in cfg or ((found.W_dec.norm(dim=1) - 1).abs() < 1e-4).all():
        return bool(cfg.get(name, False))
    return answers.flag(name, "whether latents are chosen by f or by f ||W_dec||, whose rows have other norms than 1")


def _scale(path: Path, cfg: Mapping[str, Any], answers: Answers) -> float:
    """What inputs were multiplied by in training, where the weights do not hold it yet."""
    file, normalise = path.parent / SCALER, cfg["normalize_activations"]
    kept = read_mapping(file).get("scaling_factor") if file.is_file() else None
    if normalise == "expected_average_only_in":
        about = (
            f"what inputs are multiplied by before they are encoded, which {SCALER} would say; 1 if the weights hold it"
        )
        return float(kept) if kept is not None else answers.factor("scaling_factor", about)
    if kept is not None:
        raise FormatError(f"{file}: scaling_factor = {kept}: but {CFG} has normalize_activations = {normalise!r}")
    return 1.0


def _whitening(file: Path, d_in: int) -> tuple[Tensor, Tensor, Tensor]:
    if not file.is_file():
        raise FormatError(f"{file}: no such file; the weights take whitened rows, and mean nothing without it")
    parts = read_safetensors(file)
    check(file, parts, {"mean": (d_in,), "matrix": (d_in, d_in), "inverse_matrix": (d_in, d_in)})
    return parts["mean"], parts["matrix"], parts["inverse_matrix"]


def _read_pursuit(path: Path, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor], answers: Answers) -> Dictionary:
    where = path.parent / CFG
    n_latents, d_in = matrix(path, tensors, "W_dec")
    saelens_cfg.check_sizes(where, cfg, d_in=d_in, d_sae=n_latents)
    check(path, tensors, {"W_dec": (n_latents, d_in), "b_dec": (d_in,)})
    scale = _scale(path, cfg, answers)
    choices = {
        "n_latents": n_latents,
        "normalise": saelens_cfg.rows(where, cfg),
        "k": saelens_cfg.need(where, cfg, "max_iterations") or d_in,
        "residual_threshold": saelens_cfg.need(where, cfg, "residual_threshold") / scale,
        "stop_on_repeat": saelens_cfg.need(where, cfg, "stop_on_duplicate_support"),
    }
    ours = architectures.build(
        "matching_pursuit", parse(configs.get("matching_pursuit"), choices, "sae", str(where)), Shape((d_in,))
    )
    # without the pre-bias SAELens leaves b_dec out of the reconstruction, too
    b_dec = tensors["b_dec"].float() / scale if saelens_cfg.subtracts(where, cfg, answers) else torch.zeros(d_in)
    ours.load_state_dict(ours.state_dict() | {"W_dec": tensors["W_dec"].float(), "b_dec": b_dec})
    return ours.eval()


# --- writing ---


def write(dictionary: Dictionary, facts: Mapping[str, Any]) -> Written:
    """What `SAE.load_from_disk` reads; batch top-k as the JumpReLU that SAELens makes of it, too."""
    if isinstance(dictionary, MatchingPursuitSAE):
        own, tensors = _write_pursuit(dictionary)
    else:
        own, tensors = _write_plain(plain.of(dictionary))
    source = facts.get("source", {})
    theirs = source.get("config", {}) if source.get("format") == "saelens" else {}
    cfg = {
        "dtype": "float32",
        "device": "cpu",
        "reshape_activations": saelens_cfg.reshape(theirs),
        **own,
        "metadata": saelens_cfg.metadata(facts, theirs) | own.get("metadata", {}),
    }
    return Written({WEIGHTS: tensors, CFG: cfg})


def _write_plain(own: Plain) -> tuple[dict[str, Any], dict[str, Tensor]]:
    n_latents, d_in, d_out = own.sizes
    tensors = {"W_enc": own.W_enc.T, "W_dec": own.W_dec, "b_dec": own.b_dec}
    name, choices, parts = _architecture(own)
    if own.is_transcoder:
        if name not in ("standard", "jumprelu"):
            raise FormatError(
                f"a transcoder with {name}: cannot be written, SAELens has transcoders of ReLU and JumpReLU"
            )
        skip = "" if own.W_skip is None else "skip_"
        name = f"{'jumprelu_' if name == 'jumprelu' else ''}{skip}transcoder"
        choices = choices | {"d_out": d_out}
        tensors |= {} if own.W_skip is None else {"W_skip": own.W_skip}
    cfg = {
        "architecture": name,
        "d_in": d_in,
        "d_sae": n_latents,
        "apply_b_dec_to_input": own.pre_bias,
        "normalize_activations": next(key for key, rows in saelens_cfg.NORMALISE.items() if rows == own.rows),
        **choices,
    }
    return cfg, tensors | parts


def _architecture(own: Plain) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """SAELens' name for an activation, the choices that come with it, and its tensors."""
    match own.activation:
        case ReLU():
            return "standard", {}, {"b_enc": own.b_enc}
        case TopK(k):
            return "topk", {"k": k, "rescale_acts_by_decoder_norm": False}, {"b_enc": own.b_enc}
        case Gate(r_mag, b_mag):
            return "gated", {}, {"b_gate": own.b_enc, "r_mag": r_mag, "b_mag": b_mag}
        case Jump(threshold):
            return "jumprelu", {}, {"b_enc": own.b_enc, "threshold": threshold}
        case Batch(k, threshold, widths):
            name = "batchtopk" if widths is None else "matryoshka_batchtopk"
            details = {"k": k} | ({} if widths is None else {"matryoshka_widths": list(widths)})
            metadata = {"training_architecture": name, "training_architecture_details": details}
            filled = torch.full_like(own.b_enc, threshold or 0.0)
            return "jumprelu", {"metadata": metadata}, {"b_enc": own.b_enc, "threshold": filled}


def _write_pursuit(dictionary: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A scalar moves into `b_dec` and the threshold; the rows of `W_dec` being tied, latents come out `1 / s` times."""
    plain.check_one_site(dictionary)
    cfg, scale = dictionary.cfg, plain.scalar(dictionary.scaling)
    n_latents, d_in = dictionary.W_dec.shape
    rows = {ours: theirs for theirs, ours in saelens_cfg.NORMALISE.items()}
    own = {
        "architecture": "matching_pursuit",
        "d_in": d_in,
        "d_sae": n_latents,
        "apply_b_dec_to_input": True,
        "normalize_activations": rows.get(cfg.normalise, "none"),
        "max_iterations": cfg.k,
        "residual_threshold": cfg.residual_threshold / scale,
        "stop_on_duplicate_support": cfg.stop_on_repeat,
    }
    return own, {"W_dec": dictionary.W_dec.detach().float(), "b_dec": dictionary.b_dec.detach().float() / scale}


formats.register("saelens")(Format(find, read, write))
