"""Learn dictionaries from stored activations: one stream of batches, read once, for all of them.

Batches are a pure function of the step and everything else is in the checkpoints, so a killed run
ends with the same bytes.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from sae import memory
from sae.errors import ConfigError
from sae.model import default_device
from sae.store import ActivationStore, Pairs
from sae.sweep_config import STREAM
from sae.team import ALONE, Team, current
from train.config import TrainConfig
from train.learner import Learner, Member
from train.loader import Loader

CHECK_STEPS = 8  # between two questions of partners whether a checkpoint is due


@memory.reused()
def fit(members: Sequence[Member], store: ActivationStore, seed: int, logs: Path) -> list[dict[str, Any]]:
    """Train every member into its folder, each step of all on the same rows; returns each one's facts.

    Several processes (`accelerate launch`) share the members among them if there are enough, each training its own on
    its device; otherwise each batch is divided among them. With `train.divide = latents` those of each member are.
    The members are those of one process, up to rounding.

    Args:
        logs: folder for the tracker's files, outside of the boxes: they hold times.

    Raises:
        ConfigError: members that do not share a stream, or batches that cannot be divided.
    """
    cfg = members[0].train
    for field in STREAM:
        if any(getattr(member.train, field) != getattr(cfg, field) for member in members):
            values = ", ".join(str(getattr(member.train, field)) for member in members)
            raise ConfigError(
                f"train.{field} = {values}: must be the same for all dictionaries that learn from one stream"
            )
    accelerator, team = _accelerator(cfg, logs), current()
    partners = team if cfg.divide == "latents" else ALONE
    rows_of = team if partners.size == 1 and len(members) < team.size else ALONE
    if rows_of.size > 1 and cfg.batch % (team.size * cfg.accumulate):
        raise ConfigError(
            f"train.batch = {cfg.batch}: must be a multiple of {team.size * cfg.accumulate}, to be divided among "
            f"{team.size} processes in {cfg.accumulate} part{'s' * (cfg.accumulate > 1)}"
        )
    is_shared = rows_of.size * partners.size > 1
    own = members if is_shared else members[team.rank :: team.size]
    sites = tuple(dict.fromkeys(site for member in members for site in member.places.sites))
    split = store.split(sites, "train")
    parts = _parts(cfg, rows_of) if rows_of.size > 1 else [slice(None)]
    sharers = team if is_shared else ALONE
    loader = Loader(split, cfg.batch, cfg.window_rows, seed, accelerator.device, parts, sharers)
    sample = loader.first(min(cfg.init_rows, split.n_rows)).cpu()
    n_steps = max(cfg.tokens > 0, cfg.tokens // cfg.batch)
    learners = [Learner(member, store, n_steps, accelerator, rows_of, partners) for member in own]
    for learner, member in zip(learners, own, strict=True):
        learner.start(Pairs(split, sites, member.places), sample, seed)
    del sample
    if n_steps == 0:
        for learner in learners:
            learner.measure()
    _loop(learners, loader, cfg, n_steps, accelerator)
    results = [learner.finish() for learner in learners]
    if not is_shared:
        every = team.collected(results)
        results = [every[i % team.size][i // team.size] for i in range(len(members))]
    for tracker in accelerator.trackers:  # `end_training` would end the team too
        tracker.finish()
    return results


def _parts(cfg: TrainConfig, team: Team) -> list[slice]:
    """What this process has of a batch: of each part that is accumulated, its share."""
    size = cfg.batch // (cfg.accumulate * team.size)
    starts = range(team.rank * size, cfg.batch, team.size * size)
    return [slice(start, start + size) for start in starts]


def _accelerator(cfg: TrainConfig, logs: Path) -> Accelerator:
    log_with = None if cfg.tracker == "none" else cfg.tracker
    accelerator = Accelerator(
        log_with=log_with,
        project_dir=str(logs),
        cpu=default_device().type == "cpu",
        mixed_precision="no",  # `train.precision` says it, whatever the machine's own configuration
    )
    if log_with:
        accelerator.init_trackers("train")
    return accelerator


def _loop(
    learners: Sequence[Learner], loader: Loader, cfg: TrainConfig, n_steps: int, accelerator: Accelerator
) -> None:
    """Step until `cfg.tokens` rows have been seen. After a kill the learners may be at different steps:
    those that are ahead wait."""
    first = min(learner.progress.step for learner in learners)
    bar = tqdm(
        total=n_steps * cfg.batch,
        initial=first * cfg.batch,
        unit="tok",
        unit_scale=True,
        desc="train",
        disable=not accelerator.is_main_process,
    )
    saved = time.monotonic()
    for step in range(first, n_steps):
        rows = loader.batch(step)
        behind = [learner for learner in learners if learner.progress.step == step]
        for learner in behind:
            learner.step(rows)
        bar.update(cfg.batch)
        is_last = step + 1 == n_steps
        for learner in behind:
            every = learner.cfg.evaluate_every
            if is_last or (every and (step + 1) % every == 0):
                _log(learner, learner.measure(), accelerator, bar, len(learners))
        if is_last or _is_time(learners[0], step, saved, cfg.checkpoint_seconds):
            for learner in behind:
                learner.save()
            saved = time.monotonic()
    bar.close()


def _is_time(learner: Learner, step: int, saved: float, seconds: float) -> bool:
    """Whether checkpoints are due; where latents are divided all write them, so the first decides, now and then."""
    is_due = time.monotonic() - saved > seconds
    if learner.partners.size == 1:
        return is_due
    return step % CHECK_STEPS == 0 and learner.partners.told(is_due)


def _log(learner: Learner, point: dict[str, Any], accelerator: Accelerator, bar: tqdm, n_learners: int) -> None:
    prefix = "" if n_learners == 1 else f"{learner.member.name}/"
    accelerator.log({prefix + key: value for key, value in point.items() if key != "step"}, step=point["step"])
    bar.set_postfix_str(f"fvu {point['fvu']:.3f}, dead {point['n_dead']}")
