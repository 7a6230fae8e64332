"""What a dictionary loses: on held-out activations, and in the network when spliced back."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import log_softmax

from sae import memory, sites
from sae.dictionary import Dictionary
from sae.metrics import Moments, Reconstruction, ce_recovered, kl_divergence, kl_recovered
from sae.model import Subject
from sae.store import Pairs, Places
from sae.tokens import TokenSplit

ROWS = 8192  # rows at a time
CHANGES = ("spliced", "mean_ablated", "zero_ablated")
MAX_LOGITS = 1 << 26  # logits of one batch: 256 MiB of float32, of which a few copies live at once


@torch.no_grad()
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
    was_training = dictionary.training
    dictionary.eval()
    figures = Reconstruction(centre)
    n_rows = pairs.n_rows if limit is None else min(limit, pairs.n_rows)
    for start in range(0, n_rows, ROWS):
        x, target = (part.to(device) for part in pairs.read(start, min(start + ROWS, n_rows)))
        latents, recon = dictionary.reconstruct(x)
        figures.update(target, recon, latents)
    dictionary.train(was_training)
    return figures


@torch.no_grad()
def pca_fvu(train: Pairs, held_out: Pairs, k: int, limit: int = 1 << 20) -> float:
    """FVU on `held_out` of the best linear map of rank k, fitted to (at most `limit` rows of) `train`.

    It is the linear dictionary with as many active components a row, which a sparse one has to beat:
    the k leading principal components, or for a transcoder the reduced-rank regression of its target.
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
    for start in range(0, held_out.n_rows, ROWS):
        x, y = (part.double() for part in held_out.read(start, min(start + ROWS, held_out.n_rows)))
        predicted = shift_y + mean_y + (x - shift_x - mean_x) @ full @ top @ top.T
        error += (y - predicted).square().sum().item()
        moments.update(y)
    return error / moments.variance


@memory.reused()
@torch.no_grad()
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
    """Next-token loss with the reconstruction in the place of what is written, against clean and ablated.

    What the dictionary reads is taken from the clean run; of several sites all are replaced at once.
    Ablation by the mean is the strict one and gives `ce_recovered`; ablation by zero is reported
    beside it. The first `skip` positions of a context are left as they are, as they were in
    training. Losses are sums over the same tokens, in nats.
    """
    read = [sites.resolve(subject.model, name) for name in places.inputs]
    written = [sites.resolve(subject.model, name) for name in places.written]
    mean = torch.cat([means[name] for name in places.written]).to(subject.device)
    n, losses, kl = 0, dict.fromkeys(["clean", *CHANGES], 0.0), dict.fromkeys(CHANGES, 0.0)
    batch_tokens = min(batch_tokens, MAX_LOGITS // len(subject.tokenizer))
    for ids in _full_contexts(tokens, max_tokens, batch_tokens, subject.device):
        with subject.autocast(), sites.kept(subject.model, read) as found:
            clean = log_softmax(subject.model(input_ids=ids).logits[:, :-1].float(), dim=-1)
        losses["clean"] -= clean.gather(-1, ids[:, 1:, None]).double().sum().item()
        n += ids[:, 1:].numel()
        x = torch.cat([found[name].float() for name in places.inputs], dim=-1)[:, skip:].flatten(0, 1)
        recon = dictionary.reconstruct(x)[1]
        for name, new in zip(CHANGES, (recon, mean.expand_as(recon), torch.zeros_like(recon)), strict=True):
            with subject.autocast(), ExitStack() as stack:
                parts = new.view(len(ids), -1, new.shape[-1]).split([len(means[w]) for w in places.written], dim=-1)
                for site, part in zip(written, parts, strict=True):
                    stack.enter_context(sites.replaced(subject.model, site, _on_kept(part, skip)))
                changed = log_softmax(subject.model(input_ids=ids).logits[:, :-1].float(), dim=-1)
            losses[name] -= changed.gather(-1, ids[:, 1:, None]).double().sum().item()
            kl[name] += kl_divergence(clean, changed).sum().item()
    ce = {name: total / n for name, total in losses.items()}
    return {
        "ce": ce,
        "kl": kl["spliced"] / n,
        "kl_mean_ablated": kl["mean_ablated"] / n,
        "kl_recovered": kl_recovered(kl["spliced"], kl["mean_ablated"]),
        "ce_recovered": ce_recovered(ce["clean"], ce["spliced"], ce["mean_ablated"]),
        "ce_recovered_zero": ce_recovered(ce["clean"], ce["spliced"], ce["zero_ablated"]),
        "tokens": n,
    }


def _on_kept(new: Float[Tensor, "batch kept d"], skip: int) -> Callable[[Tensor], Tensor]:
    """Put `new` on all but the first `skip` positions, which pass unchanged."""
    return lambda x: torch.cat([x[:, :skip], new.to(x.dtype)], dim=1)


def _full_contexts(tokens: TokenSplit, max_tokens: int, batch_tokens: int, device: torch.device) -> list[Tensor]:
    """Contexts of the most common length, as batches `[n, length]`, at most `max_tokens` tokens."""
    lengths = torch.from_numpy(tokens.context_starts).diff()
    length = int(lengths.mode().values)
    starts = torch.from_numpy(tokens.context_starts[:-1])[lengths == length][: max(1, max_tokens // length)]
    positions = starts[:, None] + torch.arange(length)
    ids = torch.from_numpy(tokens.tokens.astype("int64"))[positions].to(device)
    return list(ids.split(max(1, batch_tokens // length)))
