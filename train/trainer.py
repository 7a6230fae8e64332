"""Learn a dictionary from stored activations.

The loop knows nothing of the architecture: it asks for the terms of a loss, steps on their sum,
counts which latents fired, and lets the dictionary do the rest. Batches are a pure function of
the step and everything else is in the checkpoint, so a killed run ends with the same bytes.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from sae import architectures, hub
from sae.dictionary import Dictionary, InputStats, Step, geometric_median
from sae.errors import ConfigError, DataError
from sae.files import write_json
from sae.model import default_device
from sae.stage import SCRATCH
from sae.store import ActivationSplit
from train import checkpoint
from train.checkpoint import Progress
from train.config import TrainConfig
from train.evaluate import reconstruct
from train.loader import Loader
from train.schedule import lr_scale, peak_lr

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """What a dictionary is trained on: rows, held-out rows, and the moments of the former."""

    train: ActivationSplit
    held_out: ActivationSplit
    moments: Mapping[str, Any]
    """`mean [d_in]`, `mean_norm`, `mean_square` of the training rows."""


def fit(
    data: Data, name: str, sae_cfg: Any, cfg: TrainConfig, seed: int, facts: Mapping[str, Any], out: Path, logs: Path
) -> dict[str, Any]:
    """Train architecture `name` with choices `sae_cfg` into the folder `out`; returns the box's facts.

    Args:
        facts: what should travel with the dictionary (site, model).
        logs: folder for the tracker's files, outside of the box: they hold times.
    """
    accelerator = _accelerator(cfg, logs)
    dictionary = architectures.build(name, sae_cfg, data.train.d_in)
    _initialise(dictionary, data, cfg, seed)
    lr = cfg.lr or peak_lr(sae_cfg.n_latents)
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=lr, betas=cfg.betas, eps=cfg.eps, fused=True)
    state = out / f"checkpoint{SCRATCH}"
    progress = Progress(0, torch.zeros(sae_cfg.n_latents, dtype=torch.long))
    if state.exists():
        progress = checkpoint.load(state, dictionary, optimizer)
        log.info("resuming at step %d", progress.step)
    _loop(accelerator, dictionary, optimizer, data, cfg, progress, seed, lr, state)
    hub.save(dictionary, name, sae_cfg, {**facts, "d_in": data.train.d_in}, out)
    write_json(out / "curve.json", progress.curve)
    accelerator.end_training()
    last = progress.curve[-1]
    return {"steps": progress.step, "lr": lr, "n_dead": last["n_dead"], "fvu": last["fvu"]}


def _accelerator(cfg: TrainConfig, logs: Path) -> Accelerator:
    log_with = None if cfg.tracker == "none" else cfg.tracker
    accelerator = Accelerator(log_with=log_with, project_dir=str(logs), cpu=default_device().type == "cpu")
    if accelerator.num_processes > 1:
        raise ConfigError(f"a dictionary is trained by one process, not by {accelerator.num_processes}")
    if log_with:
        accelerator.init_trackers("train")
    return accelerator


def _initialise(dictionary: Dictionary, data: Data, cfg: TrainConfig, seed: int) -> None:
    mean_norm, mean = data.moments["mean_norm"], torch.tensor(data.moments["mean"], dtype=torch.float64)
    scale = data.train.d_in**0.5 / mean_norm if cfg.normalise == "mean_norm" else 1.0
    variance = (data.moments["mean_square"] - mean.square().sum().item()) * scale**2
    if variance <= 0:
        raise DataError("the activations do not vary: every row is the same; choose another site")
    sample = Loader(data.train, min(cfg.init_rows, data.train.n_rows), cfg.window_rows, seed).batch(0)
    stats = InputStats(scale=scale, variance=variance, centre=geometric_median(sample * scale))
    dictionary.initialise(stats, torch.Generator().manual_seed(seed))


def _loop(
    accelerator: Accelerator,
    dictionary: Dictionary,
    optimizer: torch.optim.Optimizer,
    data: Data,
    cfg: TrainConfig,
    progress: Progress,
    seed: int,
    lr: float,
    state: Path,
) -> None:
    """Step until `cfg.tokens` rows have been seen; `progress` is brought forward in place."""
    n_steps = max(1, cfg.tokens // cfg.batch)
    loader = Loader(data.train, cfg.batch, cfg.window_rows, seed)
    model, optimizer = accelerator.prepare(dictionary, optimizer)
    progress.silent_tokens = progress.silent_tokens.to(accelerator.device)
    bar = tqdm(total=n_steps * cfg.batch, initial=progress.step * cfg.batch, unit="tok", unit_scale=True, desc="train")
    saved = time.monotonic()
    while progress.step < n_steps:
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_scale(progress.step, n_steps, cfg.warmup, cfg.decay)
        x = loader.batch(progress.step).to(accelerator.device)
        out = model(x, Step(progress.step, progress.silent_tokens >= dead_window(cfg)))
        accelerator.backward(torch.stack(list(out.terms.values())).sum())
        dictionary.before_step()
        if cfg.clip is not None:
            accelerator.clip_grad_norm_(model.parameters(), cfg.clip)
        optimizer.step()
        optimizer.zero_grad()
        dictionary.after_step()
        _count(progress, out.latents.firing_counts(), cfg)
        bar.update(cfg.batch)
        is_last = progress.step == n_steps
        if is_last or (cfg.evaluate_every and progress.step % cfg.evaluate_every == 0):
            _evaluate(accelerator, dictionary, data, cfg, progress, out.terms, bar)
        if is_last or time.monotonic() - saved > cfg.checkpoint_seconds:
            checkpoint.save(state, dictionary, optimizer, progress)
            saved = time.monotonic()
    bar.close()


def dead_window(cfg: TrainConfig) -> int:
    """Rows without a firing after which a latent is dead."""
    return cfg.dead_tokens or max(1, min(10_000_000, cfg.tokens // 10))


def _count(progress: Progress, fired: Tensor, cfg: TrainConfig) -> None:
    progress.step += 1
    progress.silent_tokens = torch.where(fired > 0, 0, progress.silent_tokens + cfg.batch)


def _evaluate(
    accelerator: Accelerator,
    dictionary: Dictionary,
    data: Data,
    cfg: TrainConfig,
    progress: Progress,
    terms: Mapping[str, Tensor],
    bar: tqdm,
) -> None:
    """A point of the curve: held-out figures, and the loss terms of the last batch."""
    if not all(torch.isfinite(value) for value in terms.values()):
        raise DataError(f"the loss is not finite at step {progress.step}: lower train.lr, or set train.clip")
    figures = reconstruct(dictionary, data.held_out, accelerator.device, cfg.evaluate_rows).result()
    n_dead = int((progress.silent_tokens >= dead_window(cfg)).sum())
    losses = {f"loss/{name}": value.item() for name, value in terms.items()}
    point = {"step": progress.step, "tokens": progress.step * cfg.batch, "n_dead": n_dead, **figures, **losses}
    progress.curve.append(point)
    accelerator.log({key: value for key, value in point.items() if key != "step"}, step=progress.step)
    bar.set_postfix_str(f"fvu {figures['fvu']:.3f}, dead {n_dead}")
