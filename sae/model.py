"""The network under study: load it, say exactly which one it is, run it in a chosen precision."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from sae.config import ModelConfig, Precision, Weights
from sae.errors import DataError
from sae.files import sha256_file
from sae.text import EMBEDDED


@dataclass(frozen=True)
class Subject:
    """A causal language model in evaluation mode with its tokenizer."""

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    digest: str
    """Stands for the weights: SHA-256 of a folder's files, or the commit on the hub, and what was made of them."""
    precision: str
    """`float32` or `bfloat16`, resolved."""
    device: torch.device

    def autocast(self) -> AbstractContextManager:
        """The context in which every forward pass of a run is made."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def load(cfg: ModelConfig, device: torch.device | None = None) -> Subject:
    """Load a model and its tokenizer; weights are read from safetensors only.

    Raises:
        DataError: there is no such model, or it has no safetensors weights.
    """
    device = device or default_device()
    folder = EMBEDDED / "model" if cfg.name == "embedded" else Path(cfg.name)
    where = str(folder) if folder.is_dir() else cfg.name
    if cfg.name == "embedded" and not folder.is_dir():
        raise DataError(f"{folder}: the embedded model is missing; reinstall the package")
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=cfg.revision)
        model = AutoModelForCausalLM.from_pretrained(
            where, revision=cfg.revision, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DataError(f"model.name = {cfg.name!r}: cannot be loaded: {first_line}") from None
    n_embeddings = len(model.get_input_embeddings().get_parameter("weight"))
    if len(tokenizer) > n_embeddings:
        raise DataError(
            f"model.name = {cfg.name!r}: its tokenizer has {len(tokenizer)} tokens, its embedding {n_embeddings}; "
            "they do not belong together"
        )
    digest = folder_digest(folder) if folder.is_dir() else f"hub:{model.config._commit_hash}"
    if cfg.weights != "trained":
        model = _untrained(model, cfg.weights)
        digest = f"{digest} {cfg.weights}"
    precision = resolve_precision(cfg.precision, device)
    network = cast(nn.Module, model)
    network.eval().requires_grad_(False).to(device)
    return Subject(cfg.name, network, tokenizer, digest, precision, device)


@torch.no_grad()
def _untrained(model: PreTrainedModel, weights: Weights) -> PreTrainedModel:
    """The same network without what it has learnt; the same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if weights == "random":
            return AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    return model


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU (Apple's MPS has no float64, which the metrics need)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """`auto` becomes bfloat16 where `device` multiplies it natively, float32 elsewhere."""
    if precision != "auto":
        return precision
    native: Callable[[], bool] = torch.cuda.is_bf16_supported if device.type == "cuda" else _cpu_has_bfloat16
    return "bfloat16" if device.type in ("cuda", "cpu") and native() else "float32"


def _cpu_has_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def max_context(model: nn.Module) -> int | None:
    """Positions that the model can attend over, where its configuration says so."""
    config = getattr(model, "config", None)
    return getattr(config, "max_position_embeddings", None)


def folder_digest(folder: Path) -> str:
    """Stands for the files of a model: weights, configuration, tokenizer."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.suffix in {".safetensors", ".json", ".txt", ".model", ".jinja"}:
            digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"
