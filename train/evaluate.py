"""What a dictionary loses: on held-out activations, and in the network when spliced back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax
from tqdm import tqdm

from sae import memory, sites
from sae.dictionary import Dictionary
from sae.metrics import CHANGES, Moments, Reconstruction, kl_divergence, splice_figures
from sae.model import Subject
from sae.store import Pairs, Places
from sae.sums import Sums
from sae.team import current
from sae.tokens import TokenSplit

ROWS = 8192  # rows at a time
MAX_LOGITS = 1 << 26  # logits of one batch: 256 MiB of float32, of which a few copies live at once


def reconstruct(
    dictionary: Dictionary,
    pairs: Pairs,
    device: torch.device,
    limit: int | None = None,
    centre: Float[Tensor, " d_out"] | None = None,
) -> Reconstruction:
    """Compare the first `limit` rows (all, if none) with their reconstructions, in evaluation mode.

    Args:
        centre: see `Reconstruction`.
    """
    figures = Reconstruction(centre)
    compare(dictionary, pairs, [(0, pairs.n_rows if limit is None else min(limit, pairs.n_rows))], figures, device)
    return figures


@torch.no_grad()
def compare(
    dictionary: Dictionary,
    pairs: Pairs,
    bounds: Sequence[tuple[int, int]],
    figures: Reconstruction,
    device: torch.device,
    groups: Int[Tensor, " rows"] | None = None,
) -> None:
    """Tell `figures` of the rows within some bounds and their reconstructions, in evaluation mode.

    Args:
        groups: the group of each of these rows, see `Reconstruction.update`.
    """
    was_training = dictionary.training
    dictionary.eval()
    start = 0
    for x, target in pairs.blocks(bounds, ROWS):
        latents, recon = dictionary.reconstruct(x.to(device))
        own = None if groups is None else groups[start : start + len(x)]
        figures.update(target.to(device), recon, latents, own)
        start += len(x)
    dictionary.train(was_training)


@torch.no_grad()
def pca_fvu(
    train: Pairs, held_out: Pairs, k: int, limit: int = 1 << 20, bounds: Sequence[tuple[int, int]] | None = None
) -> float:
    """FVU on `held_out` of the best linear map of rank k, fitted to (at most `limit` rows of) `train`.

    It is the linear dictionary with as many active components a row, which a sparse one has to beat:
    the k leading principal components, or for a transcoder the reduced-rank regression of its target.

    Args:
        bounds: of the rows of `held_out` that count; none: all do.
    """
    shift_x, shift_y = (part.double().mean(0) for part in train.read(0, min(ROWS, train.n_rows)))  # against cancelling
    n, sums = 0, [torch.zeros((), dtype=torch.float64)] * 4
    for start in range(0, min(limit, train.n_rows), ROWS):
        x, y = train.read(start, min(start + ROWS, train.n_rows))
        x, y = x.double() - shift_x, y.double() - shift_y
        n, new = n + len(x), (x.sum(0), y.sum(0), x.T @ x, x.T @ y)
        sums = [total + part for total, part in zip(sums, new, strict=True)]
    mean_x, mean_y, cov_x, cov_xy = (total / n for total in sums)
    cov_x, cov_xy = cov_x - mean_x.outer(mean_x), cov_xy - mean_x.outer(mean_y)
    is_transcoder = train.places.outputs is not None
    # of a transcoder the best linear map; of rows on themselves that is the identity
    full = (
        torch.linalg.lstsq(cov_x, cov_xy, driver="gelsd").solution if is_transcoder else torch.eye(len(cov_x)).double()
    )
    top = torch.linalg.eigh(full.T @ cov_x @ full).eigenvectors[:, -min(k, len(mean_y)) :]
    error, moments = 0.0, Moments()
    for block in held_out.blocks([(0, held_out.n_rows)] if bounds is None else bounds, ROWS):
        x, y = (part.double() for part in block)
        predicted = shift_y + mean_y + (x - shift_x - mean_x) @ full @ top @ top.T
        error += (y - predicted).square().sum().item()
        moments.update(y)
    return error / moments.variance


def splice(
    subject: Subject,
    dictionary: Dictionary,
    places: Places,
    means: Mapping[str, Float[Tensor, " d"]],
    tokens: TokenSplit,
    skip: int,
    max_tokens: int,
    batch_tokens: int,
) -> Mapping[str, Any]:
    """Figures of `spliced` on the first contexts of the most common length, at most `max_tokens` tokens.

    Raises:
        ZeroDivisionError: the ablation does no harm.
    """
    lengths = np.diff(tokens.context_starts)
    length = np.bincount(lengths).argmax()
    contexts = np.flatnonzero(lengths == length)[: max(1, max_tokens // length)]
    sums = spliced(subject, dictionary, places, means, tokens, skip, batch_tokens, contexts).total()
    figures = splice_figures({name: float(total) for name, total in sums.items()})
    return {**figures, "tokens": int(figures["tokens"])}


@memory.reused()
@torch.no_grad()
def spliced(
    subject: Subject,
    dictionary: Dictionary,
    places: Places,
    means: Mapping[str, Float[Tensor, " d"]],
    tokens: TokenSplit,
    skip: int,
    batch_tokens: int,
    contexts: np.ndarray,
    groups: Int[Tensor, " n_tokens"] | None = None,
) -> Sums:
    """Next-token loss with the reconstruction in the place of what is written, beside clean and ablated, in nats, and
    the KL divergence of each from clean; sums over the same tokens.

    What the dictionary reads is taken from the clean run; of several sites all are replaced at once. The first `skip`
    positions of a context are left as they are, as they were in training.

    Args:
        contexts: which of the split's.
        groups: the group of each position of the split, from 0, by which sums are kept; none: of all together.
    """
    read = [sites.resolve(subject.model, name) for name in places.inputs]
    written = [sites.resolve(subject.model, name) for name in places.written]
    mean = torch.cat([means[name] for name in places.written]).to(subject.device)
    widths = [len(means[name]) for name in places.written]
    sums = Sums(1 if groups is None else int(groups.max()) + 1)
    batch_tokens = min(batch_tokens, MAX_LOGITS // len(subject.tokenizer))
    n_tokens, is_hidden = int(np.diff(tokens.context_starts)[contexts].sum()), not current().is_main
    progress = tqdm(total=n_tokens, unit="tok", unit_scale=True, desc="splice", mininterval=1.0, disable=is_hidden)
    for positions in _batches(tokens, contexts, batch_tokens):
        ids = torch.from_numpy(tokens.tokens[positions].astype("int64")).to(subject.device)
        with subject.autocast(), sites.kept(subject.model, read) as found:
            clean = log_softmax(subject.model(input_ids=ids).logits[:, :-1].float(), dim=-1)
        terms = {"clean": _loss(clean, ids)}
        x = torch.cat([found[name].float() for name in places.inputs], dim=-1)[:, skip:].flatten(0, 1)
        recon = dictionary.reconstruct(x)[1]
        for name, new in zip(CHANGES, (recon, mean.expand_as(recon), torch.zeros_like(recon)), strict=True):
            with subject.autocast(), ExitStack() as stack:
                parts = new.view(len(ids), -1, new.shape[-1]).split(widths, dim=-1)
                for site, part in zip(written, parts, strict=True):
                    stack.enter_context(sites.replaced(subject.model, site, _on_kept(part, skip)))
                changed = log_softmax(subject.model(input_ids=ids).logits[:, :-1].float(), dim=-1)
            terms |= {name: _loss(changed, ids), f"kl_{name}": kl_divergence(clean, changed)}
        terms["tokens"] = torch.ones_like(terms["clean"])
        predicted = None if groups is None else groups[positions[:, 1:].reshape(-1)]
        sums.add({name: term.flatten() for name, term in terms.items()}, predicted)
        progress.update(positions.size)
    progress.close()
    return sums


def _loss(log_p: Float[Tensor, "batch predictions vocab"], ids: Tensor) -> Float[Tensor, "batch predictions"]:
    """Of the next token, in nats."""
    return -log_p.gather(-1, ids[:, 1:, None]).double()[..., 0]


def _on_kept(new: Float[Tensor, "batch kept d"], skip: int) -> Callable[[Tensor], Tensor]:
    """Put `new` on all but the first `skip` positions, which pass unchanged."""
    return lambda x: torch.cat([x[:, :skip], new.to(x.dtype)], dim=1)


def _batches(tokens: TokenSplit, contexts: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Positions of contexts of one length, `[n, length]`, about `batch_tokens` at a time; of those that predict."""
    lengths = np.diff(tokens.context_starts)[contexts]
    for length in np.unique(lengths[lengths > 1]):
        starts, size = tokens.context_starts[contexts[lengths == length]], max(1, batch_tokens // length)
        for first in range(0, len(starts), size):
            yield starts[first : first + size, None] + np.arange(length)
