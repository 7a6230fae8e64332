"""Tokens → activations: run the network once and keep what passes through its sites.

The forward pass stops after the last site. A shard is a run of consecutive contexts; within it
contexts are batched by length, so nothing is padded. A shard that is on disk is not made again,
which is all that a resume needs. Rows of the train split need not be kept: a `ComputedSplit` has them
whenever they are read.
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
from torch import Tensor, nn
from tqdm import tqdm

from sae import memory
from sae import sites as site_names
from sae.config import HarvestConfig
from sae.errors import ConfigError, DataError
from sae.sites import Site
from sae.store import DTYPES, ActivationSplit, StoredSplit, rounded, spread, write_shard
from sae.team import current
from sae.tokens import TokenSplit, TokenStore

log = logging.getLogger(__name__)
Autocast = Callable[[], AbstractContextManager]
STATS_ROWS = 1 << 18  # of the train split, from all over it, whose moments are taken


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
    """Write the activations of `sites` on every split of `tokens` that is to be kept; returns the facts of the box. Of
    several processes each makes its share of the shards, and the first has the facts.

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
    kept = [name for name in splits if cfg.keep_train or name != "train"]
    shards = [(name, number, group) for name in kept for number, group in enumerate(groups[name])]
    total = sum(len(splits[name].tokens) for name in kept)
    with tqdm(
        total=total, unit="tok", unit_scale=True, desc="harvest", mininterval=1.0, disable=not team.is_main
    ) as progress:
        for i, (name, number, group) in enumerate(shards):
            split, paths = splits[name], _paths(out, sites, name, number)
            if i % team.size == team.rank and not all(path.exists() for path in paths.values()):
                acts = _run(model, resolved, split, np.arange(group.first, group.last), cfg, autocast)
                for site, path in paths.items():
                    write_shard(path, acts[site], DTYPES[cfg.dtype])
            progress.update(int(split.context_starts[group.last] - split.context_starts[group.first]))
    team.wait()
    if not team.is_main:
        return {}
    facts: dict[str, Any] = {site: {"splits": defaultdict(list)} for site in sites}
    for name, number, group in shards:
        for site, path in _paths(out, sites, name, number).items():
            facts[site]["splits"][name].append([path.relative_to(out).as_posix(), group.rows])
    if cfg.keep_train:
        files = [[(out / file, rows) for file, rows in facts[site]["splits"]["train"]] for site in sites]
        train: ActivationSplit = StoredSplit.of(files)
    else:
        train = ComputedSplit(model, sites, splits["train"], cfg, autocast)
    for site, found in zip(sites, moments(train), strict=True):
        facts[site] |= found
    result = {"sites": facts, "skip_positions": cfg.skip_positions, "dtype": cfg.dtype}
    return result if cfg.keep_train else {**result, "not_kept": ["train"]}


class ComputedSplit(ActivationSplit):
    """Activations that are computed when they are read, as they would have been kept: the same rows, to rounding. Of a
    context that is read in part all is computed.

    Raises:
        ConfigError: a site does not exist or does not give `[batch, positions, d]`.
        StoreError: an activation does not fit `cfg.dtype`.
    """

    is_computed = True

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[str],
        tokens: TokenSplit,
        cfg: HarvestConfig,
        autocast: Autocast = nullcontext,
    ) -> None:
        self.model, self.tokens, self.cfg, self.autocast = model, tokens, cfg, autocast
        self.sites = [site_names.resolve(model, name) for name in sites]
        self.starts = tokens.row_starts(cfg.skip_positions)
        self.n_rows = int(self.starts[-1])
        first = int(np.searchsorted(self.starts, 0, side="right")) - 1
        acts = _run(model, self.sites, tokens, np.array([first]), cfg, autocast)
        self.widths = tuple(acts[site.name].shape[1] for site in self.sites)

    def stored(self, start: int, stop: int) -> Tensor:
        return next(self.each([(start, stop)]))

    def each(self, bounds: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        """As many stretches together as reach into a shard's rows, so that forward passes are full."""
        dtype, together, n_rows = DTYPES[self.cfg.dtype], list[tuple[int, int]](), 0
        for start, stop in bounds:
            stretch = start, min(stop, self.n_rows)
            reached = self._contexts(*stretch)
            size = int(self.starts[reached[-1] + 1] - self.starts[reached[0]]) if len(reached) else 0
            if together and n_rows + size > self.cfg.shard_rows:
                yield from self._computed(together, dtype)
                together, n_rows = [], 0
            together.append(stretch)
            n_rows += size
        if together:
            yield from self._computed(together, dtype)

    def _computed(self, bounds: Sequence[tuple[int, int]], dtype: torch.dtype) -> Iterator[Tensor]:
        reached = [self._contexts(start, stop) for start, stop in bounds]
        contexts = np.unique(np.concatenate(reached))
        if not len(contexts):
            yield from (torch.empty(0, self.d, dtype=dtype) for _ in bounds)
            return
        acts = _run(self.model, self.sites, self.tokens, contexts, self.cfg, self.autocast)
        columns = [acts[site.name] for site in self.sites]
        rows = torch.cat(columns, dim=1) if len(columns) > 1 else columns[0]
        del acts, columns
        # where the rows of each context begin among those that were computed
        starts = np.concatenate([[0], np.cumsum(np.diff(self.starts)[contexts])])
        for (start, stop), own in zip(bounds, reached, strict=True):
            if start >= stop:
                yield rows[:0].to(dtype)
                continue
            first = int(starts[np.searchsorted(contexts, own[0])]) + start - int(self.starts[own[0]])
            yield rounded(rows[first : first + stop - start], dtype, f"{self.tokens.name}, rows {start}:{stop}")

    def _contexts(self, start: int, stop: int) -> np.ndarray:
        """Those that have one of these rows."""
        if start >= stop:
            return np.arange(0)
        first, last = np.searchsorted(self.starts, [start, stop - 1], side="right")
        return np.arange(first - 1, last)


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


def _row_starts(lengths: np.ndarray, cfg: HarvestConfig) -> np.ndarray:
    """Where the kept rows of contexts of these lengths begin, and the last end."""
    return np.concatenate([[0], np.cumsum(np.maximum(lengths - cfg.skip_positions, 0))])


@torch.no_grad()
def _run(
    model: nn.Module,
    sites: Sequence[Site],
    split: TokenSplit,
    contexts: np.ndarray,
    cfg: HarvestConfig,
    autocast: Autocast,
) -> dict[str, Tensor]:
    """The kept rows of some contexts at every site, float32, in order of position."""
    starts, lengths = split.context_starts[contexts], np.diff(split.context_starts)[contexts]
    row_starts = _row_starts(lengths, cfg)
    acts: dict[str, Tensor] = {}
    for batch in _batches(lengths, cfg):
        ids = np.stack([split.tokens[starts[i] : starts[i] + lengths[i]] for i in batch]).astype(np.int64)
        values = forward(model, sites, torch.from_numpy(ids), autocast)
        for site, value in values.items():
            if site not in acts:
                acts[site] = torch.empty(int(row_starts[-1]), value.shape[-1])
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


def moments(split: ActivationSplit) -> list[dict[str, Any]]:
    """Width, mean of the rows, mean norm and mean squared norm of each site, in float64 over the stored values: of all
    rows, or of `STATS_ROWS` from all over them."""
    n_rows, sums = 0, [[torch.zeros(d, dtype=torch.float64), 0.0, 0.0] for d in split.widths]
    for part in split.each(spread(split.n_rows, STATS_ROWS)):
        n_rows += len(part)
        for rows, own in zip(part.split(list(split.widths), dim=1), sums, strict=True):
            norms = rows.double().norm(dim=1)
            for i, more in enumerate((rows.double().sum(0), norms.sum().item(), norms.square().sum().item())):
                own[i] = own[i] + more
    return [
        {
            "d_in": d,
            "rows": n_rows,
            "mean": (total / n_rows).tolist(),
            "mean_norm": norm / n_rows,
            "mean_square": square / n_rows,
        }
        for d, (total, norm, square) in zip(split.widths, sums, strict=True)
    ]
