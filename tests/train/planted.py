"""Rows with planted features, and short runs on them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae.architectures.configs import TopKConfig
from sae.stage import SCRATCH, open_box
from sae.store import ActivationStore, Places
from train.config import TrainConfig
from train.learner import Member
from train.trainer import fit

D, N_FEATURES, K = 24, 32, 3
X, X_TO_Y, X_AND_Y = Places(("x",)), Places(("x",), ("y",)), Places(("x", "y"))


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """(rows, directions): each row is 3 of 32 unit directions in 24 dimensions, times 0.5 to 1.5, plus a constant."""
    directions = normalize(torch.randn(N_FEATURES, D, generator=torch.Generator().manual_seed(99)))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, N_FEATURES, generator=generator).topk(K, dim=1).indices
    sizes = 0.5 + torch.rand(n, K, generator=generator)
    codes = torch.zeros(n, N_FEATURES).scatter(1, chosen, sizes)
    return codes @ directions + 0.3, directions


def choices(**changes: Any) -> TrainConfig:
    """40 steps of 256 rows."""
    few = {"tokens": 256 * 40, "batch": 256, "lr": 3e-3, "tracker": "none", "window_rows": 4096, "evaluate_every": 20}
    return TrainConfig(
        **few | {"init_rows": 1024, "dead_tokens": 2560, "checkpoint_seconds": 1e6, "precision": "float32"} | changes
    )


def member(out: Path, cfg: TrainConfig, sae: Any = None, places: Places = X) -> Member:
    """A dictionary to be trained into the folder `out`; TopK with as many latents as there are features, if none."""
    out.mkdir(parents=True, exist_ok=True)
    return Member(places, sae or TopKConfig(n_latents=N_FEATURES, k=K), cfg, {"model": "none"}, out)


def train(
    store: ActivationStore, out: Path, cfg: TrainConfig, sae: Any = None, places: Places = X, seed: int = 0
) -> dict[str, Any]:
    """Train one dictionary; returns its facts."""
    return fit([member(out, cfg, sae, places)], store, seed, out.parent / "logs")[0]


def train_alone(arguments: Sequence[str]) -> None:
    """The program of a process of its own: STORE OUT and, as JSON, what `choices` takes."""
    box, out, changes = arguments
    train(ActivationStore(open_box(Path(box))), Path(out), choices(**json.loads(changes)))


def contents(path: Path) -> dict[str, bytes]:
    """What a finished box would keep."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.suffix not in (SCRATCH, ".tmp")}
