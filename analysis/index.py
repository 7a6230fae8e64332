"""Codes → index: for each latent its statistics, examples, trigger tokens, lens and neighbours.

    index/latents.parquet    one row a latent, see `LATENTS`
    index/examples.parquet   one row an example, see `EXAMPLES`; pointers into the token store

Statistics and examples come from the training documents; those on which labels are scored are
not looked at here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor, nn

from analysis import lens
from analysis.codes import Codes
from analysis.config import IndexConfig
from sae.errors import ConfigError
from sae.files import publish
from sae.tokens import TokenSplit

N_BINS = 20
N_TRIGGERS = 10
INTERVALS = ((0.9, 1.0), (0.7, 0.9), (0.5, 0.7), (0.3, 0.5), (0.1, 0.3), (0.0, 0.1))
"""Intervals of activation, as shares of the latent's maximum, from high to low."""

LATENTS = pa.schema(
    [
        ("latent", pa.int32()),
        ("n_fired", pa.int64()),
        ("density", pa.float64()),  # share of indexed tokens on which it fires
        ("max_value", pa.float32()),
        ("mean_value", pa.float32()),  # over the tokens on which it fires
        ("histogram", pa.list_(pa.int32())),  # 20 equal bins from 0 to max_value
        ("token_r2", pa.float64()),  # share of its variance that the token alone explains
        ("promoted_tokens", pa.list_(pa.int32())),
        ("promoted_logits", pa.list_(pa.float32())),
        ("suppressed_tokens", pa.list_(pa.int32())),
        ("suppressed_logits", pa.list_(pa.float32())),
        ("neighbours", pa.list_(pa.int32())),
        ("neighbour_cosines", pa.list_(pa.float32())),
        ("trigger_tokens", pa.list_(pa.int32())),  # on which it fires most often
        ("trigger_counts", pa.list_(pa.int64())),
        ("trigger_rates", pa.list_(pa.float32())),  # share of the token's occurrences
    ]
)
EXAMPLES = pa.schema(
    [
        ("latent", pa.int32()),
        ("stratum", pa.string()),  # "top", or an interval of activation such as "50-70%"
        ("rank", pa.int32()),
        ("split", pa.string()),
        ("position", pa.int64()),
        ("value", pa.float32()),
        ("start", pa.int64()),  # window of tokens around it, within one context
        ("stop", pa.int64()),
        ("values", pa.list_(pa.float32())),  # this latent's activation on each token of the window
    ]
)


def build(
    codes: Codes,
    directions: Float[Tensor, "n_latents d"],
    model: nn.Module | None,
    split: TokenSplit,
    n_rows: int,
    skip: int,
    cfg: IndexConfig,
    out: Path,
) -> dict[str, Any]:
    """Write the index of `codes` on `split`, of which the first `n_rows` kept positions were encoded.

    Args:
        model: the network whose residual stream the directions are written into; none if they are not.
    """
    token_counts = np.bincount(split.tokens[split.kept_positions(skip)[:n_rows]].astype(np.int64))
    columns = {name: [] for name in LATENTS.names}
    examples = {name: [] for name in EXAMPLES.names}
    outputs = _outputs(directions, model, cfg.logits)
    cosines, nearest = _neighbours(directions, cfg.neighbours)
    for latent in range(codes.n_latents):
        positions, values = codes.of(latent)
        statistics = _statistics(split.tokens[positions].astype(np.int64), values, token_counts, n_rows)
        row = {"latent": latent, "neighbours": nearest[latent], "neighbour_cosines": cosines[latent], **statistics}
        row |= {name: column[latent] for name, column in outputs.items()}
        for name, value in row.items():
            columns[name].append(value)
        _add_examples(examples, latent, positions, values, split, cfg)
    tables = (("latents", columns, LATENTS), ("examples", examples, EXAMPLES))
    for name, content, schema in tables:
        table = pa.Table.from_pydict(content, schema=schema)
        publish(out / f"{name}.parquet", lambda path, table=table: pq.write_table(table, path, compression="zstd"))
    counts = codes.counts()
    return {"n_tokens": n_rows, "n_latents": codes.n_latents, "n_live": int((counts > 0).sum())}


def _statistics(tokens: np.ndarray, values: np.ndarray, token_counts: np.ndarray, n_rows: int) -> dict[str, Any]:
    """Figures of one latent from its firings: the token and the value of each."""
    top = float(values.max()) if len(values) else 0.0
    fired, sums = np.bincount(tokens, minlength=1), np.bincount(tokens, weights=values, minlength=1)
    seen = np.flatnonzero(fired)
    triggers = seen[np.lexsort((seen, -fired[seen]))][:N_TRIGGERS]
    mean, second = values.sum(dtype=np.float64) / n_rows, np.square(values, dtype=np.float64).sum() / n_rows
    between = (np.square(sums[seen]) / token_counts[seen]).sum() / n_rows
    variance = second - mean**2
    return {
        "n_fired": len(values),
        "density": len(values) / n_rows,
        "max_value": top,
        "mean_value": float(values.mean()) if len(values) else 0.0,
        "histogram": np.histogram(values, bins=N_BINS, range=(0.0, top or 1.0))[0],
        "token_r2": (between - mean**2) / variance if variance > 0 else None,
        "trigger_tokens": triggers,
        "trigger_counts": fired[triggers],
        "trigger_rates": fired[triggers] / token_counts[triggers] if len(triggers) else triggers.astype(np.float32),
    }


def _outputs(directions: Tensor, model: nn.Module | None, k: int) -> dict[str, list[np.ndarray]]:
    """Promoted and suppressed tokens of each latent; empty where the site does not write logits."""
    names = ("promoted_tokens", "promoted_logits", "suppressed_tokens", "suppressed_logits")
    nothing = {name: [np.zeros(0)] * len(directions) for name in names}
    if model is None:
        return nothing
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for block in directions.split(1024):
        try:
            effects = lens.logit_effects(block, model)
        except ConfigError:  # of another width than the residual stream
            return nothing
        (high, up), (low, down) = lens.top_tokens(effects, k)
        for name, part in zip(names, (high, up, low, down), strict=True):
            columns[name] += list(part.cpu().numpy())
    return columns


def _neighbours(directions: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(cosines, latents) of the k nearest other latents of each, by direction."""
    unit = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines, latents = [], []
    for start in range(0, len(unit), 1024):
        block = unit[start : start + 1024] @ unit.T
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -2.0
        top = block.topk(min(k, len(unit) - 1), dim=1)
        cosines.append(top.values)
        latents.append(top.indices)
    return torch.cat(cosines).numpy(), torch.cat(latents).numpy()


def _add_examples(
    examples: dict[str, list],
    latent: int,
    positions: np.ndarray,
    values: np.ndarray,
    split: TokenSplit,
    cfg: IndexConfig,
) -> None:
    for stratum, chosen in choose(positions, values, split, cfg):
        for rank, entry in enumerate(chosen):
            start, stop = _window(int(positions[entry]), split, cfg.window)
            examples["latent"].append(latent)
            examples["stratum"].append(stratum)
            examples["rank"].append(rank)
            examples["split"].append(split.name)
            examples["position"].append(int(positions[entry]))
            examples["value"].append(values[entry])
            examples["start"].append(start)
            examples["stop"].append(stop)
            examples["values"].append(_within(positions, values, start, stop))


def choose(
    positions: np.ndarray, values: np.ndarray, split: TokenSplit, cfg: IndexConfig
) -> list[tuple[str, np.ndarray]]:
    """Entries to show: the strongest, at most two a document, then a sample of each interval.

    The sample is by a hash of the position, so it does not depend on how entries were gathered.
    """
    if len(values) == 0:
        return []
    strongest = np.lexsort((positions, -values))
    documents = split.locate(positions[strongest[: 64 * cfg.top_examples]])[0]
    top = strongest[: len(documents)][_earlier_copies(documents) < 2][: cfg.top_examples]
    strata = [("top", top)]
    left = np.setdiff1d(np.arange(len(values)), top)
    shares = values[left] / values.max()
    priority = _hash(positions[left])
    for low, high in INTERVALS:
        inside = np.flatnonzero((shares > low) & (shares <= high))
        chosen = left[inside[np.argsort(priority[inside], kind="stable")][: cfg.interval_examples]]
        if len(chosen):
            name = f"{low:.0%}".rstrip("%") + f"-{high:.0%}"
            strata.append((name, chosen[np.argsort(-values[chosen], kind="stable")]))
    return strata


def _earlier_copies(keys: np.ndarray) -> np.ndarray:
    """How often each key has occurred before it in the array."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(keys) else np.zeros(0, int)
    sizes = np.diff(np.append(begins, len(keys)))
    counts = np.empty(len(keys), dtype=np.int64)
    counts[order] = np.arange(len(keys)) - np.repeat(begins, sizes)
    return counts


def _hash(positions: np.ndarray) -> np.ndarray:
    """A fixed scrambling of positions (the finaliser of splitmix64)."""
    x = positions.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _window(position: int, split: TokenSplit, width: int) -> tuple[int, int]:
    """Bounds of an example: mostly what comes before, never beyond the context."""
    context = int(split.context_of(np.array([position]))[0][0])
    begin, end = int(split.context_starts[context]), int(split.context_starts[context + 1])
    start = max(begin, position - (3 * width) // 4)
    return start, min(end, start + width)


def _within(positions: np.ndarray, values: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The latent's activation on each token of a window."""
    found = np.zeros(stop - start, dtype=np.float32)
    first, last = np.searchsorted(positions, (start, stop))
    found[positions[first:last] - start] = values[first:last]
    return found
