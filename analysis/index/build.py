"""Codes → index: for each latent its statistics, examples, tokens, companions, lens and neighbours.

    index/latents.parquet    one row a latent, see `LATENTS`
    index/examples.parquet   one row an example, see `EXAMPLES`; pointers into the token store
    index/tokens.parquet     one row a token of the vocabulary, see `TOKENS`

All of it comes from the training documents; those on which labels are scored are not looked at here. Latents are worked
on a block at a time: firings are never all in memory, kept tokens (some tens of bytes each) are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from analysis import lens
from analysis.codes import Codes, StoredCodes
from analysis.config import IndexConfig
from analysis.index import cofiring
from analysis.index.contingency import next_columns, token_columns
from analysis.index.examples import Chooser, TokenPlaces
from analysis.index.tables import EXAMPLES, LATENTS, TOKENS, Columns, Lists, written
from analysis.summary import BINS, Summary, offset_edges
from sae.errors import ConfigError
from sae.tokens import TokenSplit

N_BINS = 20
BLOCK, MOST_LATENTS = 1 << 22, 4096  # firings, and latents, that are worked on at a time


@torch.no_grad()
def build(
    stored: StoredCodes,
    summary: Summary,
    directions: Float[Tensor, "n_latents d"],
    model: nn.Module | None,
    split: TokenSplit,
    strings: Sequence[str],
    cfg: IndexConfig,
    out: Path,
) -> dict[str, Any]:
    """Write the index of `split`.

    Args:
        summary: of all tokens that were encoded; `stored` has what fires on those that are kept.
        model: the network whose residual stream the directions are written into; none if they are not.
        strings: the text of each token id.
    """
    vocabulary = len(strings)
    positions = stored.positions()
    token_counts = np.bincount(split.tokens[positions], minlength=vocabulary)
    is_last = split.is_last()
    next_counts = np.bincount(split.tokens[positions[~is_last[positions]] + 1], minlength=vocabulary)
    densities = stored.counts() / len(positions)
    chooser = Chooser(split, summary, cfg, TokenPlaces(split.tokens, positions, vocabulary))
    whole = {
        **_statistics(summary),
        **_outputs(directions, model, vocabulary, cfg.logits),
        **_neighbours(directions, cfg.neighbours),
    }
    with written(out / "latents.parquet", LATENTS) as latents, written(out / "examples.parquet", EXAMPLES) as examples:
        for first, codes in stored.blocks(BLOCK, min(MOST_LATENTS, cofiring.most_latents(densities.sum()))):
            last = first + codes.n_latents
            triggers = token_columns(codes, split.tokens, token_counts)
            latents.add(
                {
                    **{name: _rows(column, first, last) for name, column in whole.items()},
                    "histogram": _histograms(codes, summary.peaks()[first:last]),
                    **triggers,
                    **next_columns(codes, split.tokens, is_last, next_counts),
                    **cofiring.columns(stored, codes, first, densities),
                }
            )
            examples.add(chooser.columns(codes, first, triggers["trigger_tokens"]))
    with written(out / "tokens.parquet", TOKENS) as table:
        table.add({"token": np.arange(vocabulary), "text": list(strings), "n_kept": token_counts})
    n_live = int((summary.counts() > 0).sum())
    return {"n_tokens": summary.n_rows, "n_kept": len(positions), "n_latents": summary.n_latents, "n_live": n_live}


def _rows(column: np.ndarray | Lists, first: int, last: int) -> np.ndarray | Lists:
    if isinstance(column, np.ndarray):
        return column[first:last]
    offsets = column.offsets[first : last + 1]
    return Lists(offsets - offsets[0], column.flat[offsets[0] : offsets[-1]])


def _statistics(summary: Summary) -> Columns:
    """What is known of every token that was encoded."""
    counts, sums, squares = summary.counts(), summary.sum_of_values(), summary.sum_of_squares()
    means = np.divide(sums, counts, out=np.zeros(len(sums)), where=counts > 0)
    spread = np.divide(squares, counts, out=np.zeros(len(sums)), where=counts > 0) - means**2
    filled = summary.histogram > 0
    first, last = filled.argmax(1), BINS - filled[:, ::-1].argmax(1)
    sizes = np.where(counts > 0, last - first, 0)
    bins = np.arange(BINS + 1)
    within = (bins >= first[:, None]) & (bins <= last[:, None]) & (counts > 0)[:, None]
    edges = np.broadcast_to(summary.edges(), within.shape)[within]
    places = np.flatnonzero(summary.rows)
    rates = summary.profile[:, places] / summary.rows[places]
    return {
        "latent": np.arange(summary.n_latents),
        "n_fired": counts,
        "density": counts / summary.n_rows,
        "max_value": summary.peaks(),
        "mean_value": means,
        "std_value": np.sqrt(np.maximum(spread, 0)),
        "bin_edges": Lists.of_sizes(within.sum(1), edges),
        "bin_counts": Lists.of_sizes(sizes, summary.histogram[within[:, :-1] & (bins[:-1] < last[:, None])]),
        "offset_edges": Lists.of_matrix(np.tile(offset_edges()[places], (summary.n_latents, 1))),
        "offset_rates": Lists.of_matrix(rates),
    }


def _histograms(codes: Codes, peaks: np.ndarray) -> Lists:
    """Of each latent 20 equal bins from 0 to its maximum."""
    latents = codes.latents
    bins = np.minimum((codes.values / peaks[latents] * N_BINS).astype(np.int64), N_BINS - 1)
    counts = np.bincount(latents * N_BINS + bins, minlength=codes.n_latents * N_BINS)
    return Lists.of_matrix(counts.reshape(-1, N_BINS))


def _outputs(directions: Tensor, model: nn.Module | None, vocabulary: int, k: int) -> Columns:
    """Promoted and suppressed tokens of each latent; empty where the site does not write logits."""
    names = ("promoted_tokens", "promoted_logits", "suppressed_tokens", "suppressed_logits")
    nothing = {name: Lists.of_matrix(np.zeros((len(directions), 0))) for name in names}
    if model is None:
        return nothing
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for block in directions.split(1024):
        try:
            effects = lens.logit_effects(block, model)[:, :vocabulary]  # a network may have room for more tokens
        except ConfigError:  # of another width than the residual stream
            return nothing
        (high, up), (low, down) = lens.top_tokens(effects, k)
        for name, part in zip(names, (high, up, low, down), strict=True):
            found[name].append(part.cpu().numpy())
    return {name: Lists.of_matrix(np.concatenate(parts)) for name, parts in found.items()}


def _neighbours(directions: Tensor, k: int) -> Columns:
    """The k nearest other latents of each, by the cosine of their directions."""
    unit = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines, latents = [], []
    for start in range(0, len(unit), 1024):
        block = unit[start : start + 1024] @ unit.T
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -2.0
        top = block.topk(min(k, len(unit) - 1), dim=1)
        cosines.append(top.values)
        latents.append(top.indices)
    return {
        "neighbours": Lists.of_matrix(torch.cat(latents).cpu().numpy()),
        "neighbour_cosines": Lists.of_matrix(torch.cat(cosines).cpu().numpy()),
    }
