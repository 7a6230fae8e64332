"""Tokens → activations: run the network once and keep what passes through its sites.

The forward pass stops after the last site. A shard is a run of consecutive contexts; within it
contexts are batched by length, so nothing is padded. A shard that is on disk is not made again,
which is all that a resume needs.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from sae import memory
from sae import sites as site_names
from sae.config import HarvestConfig
from sae.errors import ConfigError, DataError
from sae.sites import Site
from sae.store import DTYPES, write_shard
from sae.team import current
from sae.tokens import TokenSplit, TokenStore

log = logging.getLogger(__name__)
Autocast = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class _Group:
    """The contexts of one shard: `first:last` of the split's, with `rows` rows in all."""

    first: int
    last: int
    rows: int


@memory.reused()
def harvest(
    model: nn.Module,
    sites: Sequence[str],
    tokens: TokenStore,
    out: Path,
    cfg: HarvestConfig,
    autocast: Autocast = nullcontext,
) -> dict[str, Any]:
    """Write the activations of `sites` on every split of `tokens`; returns the facts of the box. Of several processes
    each makes its share of the shards, and the first has the facts.

    Args:
        model: any module that takes `input_ids=[batch, positions]`.
        autocast: context for the forward pass, such as `Subject.autocast`.

    Raises:
        ConfigError: a site does not exist or does not give `[batch, positions, d]`.
        DataError: no context of the train split is longer than `cfg.skip_positions`.
        StoreError: an activation does not fit `cfg.dtype`.
    """
    resolved = [site_names.resolve(model, name) for name in sites]
    splits = {name: tokens.split(name) for name in tokens.splits()}
    groups = {name: list(_groups(split, cfg)) for name, split in splits.items()}
    if not groups["train"]:
        raise DataError(
            f"harvest.skip_positions = {cfg.skip_positions}: no context of the train split is longer; "
            "nothing is left to train on"
        )
    team = current()
    shards = [(name, number, group) for name in splits for number, group in enumerate(groups[name])]
    total = sum(len(split.tokens) for split in splits.values())
    with tqdm(
        total=total, unit="tok", unit_scale=True, desc="harvest", mininterval=1.0, disable=not team.is_main
    ) as progress:
        for i, (name, number, group) in enumerate(shards):
            split, paths = splits[name], _paths(out, sites, name, number)
            if i % team.size == team.rank and not all(path.exists() for path in paths.values()):
                acts = _run(model, resolved, split, group, cfg, autocast)
                for site, path in paths.items():
                    write_shard(path, acts[site], DTYPES[cfg.dtype])
            progress.update(int(split.context_starts[group.last] - split.context_starts[group.first]))
    team.wait()
    if not team.is_main:
        return {}
    facts: dict[str, Any] = {site: {"splits": defaultdict(list)} for site in sites}
    for name, number, group in shards:
        for site, path in _paths(out, sites, name, number).items():
            facts[site]["d_in"] = _width(path)
            facts[site]["splits"][name].append([path.relative_to(out).as_posix(), group.rows])
    for site in sites:
        facts[site] |= _moments([out / file for file, _ in facts[site]["splits"]["train"]])
    return {"sites": facts, "skip_positions": cfg.skip_positions, "dtype": cfg.dtype}


def _groups(split: TokenSplit, cfg: HarvestConfig) -> Iterator[_Group]:
    """Consecutive contexts of at most `shard_rows` rows, one context at least."""
    kept = np.maximum(np.diff(split.context_starts) - cfg.skip_positions, 0)
    first, rows = 0, 0
    for i, size in enumerate(kept):
        if rows and rows + size > cfg.shard_rows:
            yield _Group(first, i, rows)
            first, rows = i, 0
        rows += int(size)
    if rows:
        yield _Group(first, len(kept), rows)


@torch.no_grad()
def _run(
    model: nn.Module, sites: Sequence[Site], split: TokenSplit, group: _Group, cfg: HarvestConfig, autocast: Autocast
) -> dict[str, Tensor]:
    """The kept rows of one group at every site, float32, in order of position."""
    starts = split.context_starts[group.first : group.last + 1]
    lengths = np.diff(starts)
    row_starts = np.concatenate([[0], np.cumsum(np.maximum(lengths - cfg.skip_positions, 0))])
    acts: dict[str, Tensor] = {}
    for batch in _batches(lengths, cfg):
        ids = np.stack([split.tokens[starts[i] : starts[i] + lengths[i]] for i in batch]).astype(np.int64)
        values = forward(model, sites, torch.from_numpy(ids), autocast)
        for site, value in values.items():
            if site not in acts:
                acts[site] = torch.empty(group.rows, value.shape[-1])
            for i, context in zip(batch, value[:, cfg.skip_positions :].float().cpu(), strict=True):
                acts[site][row_starts[i] : row_starts[i + 1]] = context
    return acts


def _batches(lengths: np.ndarray, cfg: HarvestConfig) -> Iterator[np.ndarray]:
    """Indices of contexts of one length, about `batch_tokens` tokens at a time."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > cfg.skip_positions]
    for same in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        if len(same):
            size = max(1, cfg.batch_tokens // int(lengths[same[0]]))
            yield from (same[i : i + size] for i in range(0, len(same), size))


def forward(
    model: nn.Module, sites: Sequence[Site], ids: Int[Tensor, "batch positions"], autocast: Autocast = nullcontext
) -> dict[str, Float[Tensor, "batch positions d"]]:
    """What passes through each site for a batch of contexts.

    Raises:
        ConfigError: a site's values are not `[batch, positions, d]`.
    """
    ids = ids.to(next(model.parameters()).device)
    with autocast():
        found = site_names.read(model, sites, lambda: model(input_ids=ids))
    for name, value in found.items():
        if value.ndim != 3 or value.shape[:2] != ids.shape:
            raise ConfigError(f"site {name!r}: gives {tuple(value.shape)}, must be [batch, positions, d]")
    return found


def _paths(out: Path, sites: Sequence[str], split: str, number: int) -> dict[str, Path]:
    """The files of one shard, by site."""
    return {site: out / site.replace(":", "-") / f"{split}-{number:05d}.safetensors" for site in sites}


def _width(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return int(file.get_slice("acts").get_shape()[1])


def _moments(paths: Sequence[Path]) -> dict[str, Any]:
    """Mean of the rows, mean norm and mean squared norm, in float64 over the stored values."""
    n_rows, total, norm, square = 0, torch.zeros(0, dtype=torch.float64), 0.0, 0.0
    for path in paths:
        with safe_open(path, framework="pt") as file:
            acts = file.get_tensor("acts")
        for part in acts.split(16384):
            rows = part.double()
            total = rows.sum(0) if n_rows == 0 else total + rows.sum(0)
            norms = rows.norm(dim=1)
            n_rows, norm, square = n_rows + len(rows), norm + norms.sum().item(), square + norms.square().sum().item()
    return {
        "rows": n_rows,
        "mean": (total / n_rows).tolist(),
        "mean_norm": norm / n_rows,
        "mean_square": square / n_rows,
    }
