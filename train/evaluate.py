"""What a dictionary loses: on held-out activations, and in the network when spliced back."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import log_softmax

from sae import sites
from sae.dictionary import Dictionary
from sae.metrics import Reconstruction, ce_recovered
from sae.model import Subject
from sae.store import ActivationSplit
from sae.tokens import TokenSplit

ROWS = 8192  # rows at a time
MAX_LOGITS = 1 << 26  # logits of one batch: 256 MiB of float32, of which a few copies live at once


@torch.no_grad()
def reconstruct(
    dictionary: Dictionary, rows: ActivationSplit, device: torch.device, limit: int | None = None
) -> Reconstruction:
    """Compare the first `limit` rows (all, if none) with their reconstructions, in evaluation mode."""
    was_training = dictionary.training
    dictionary.eval()
    figures = Reconstruction()
    n_rows = rows.n_rows if limit is None else min(limit, rows.n_rows)
    for start in range(0, n_rows, ROWS):
        x = rows.read(start, min(start + ROWS, n_rows)).to(device)
        latents = dictionary.encode(x)
        figures.update(x, dictionary.decode(latents), latents)
    dictionary.train(was_training)
    return figures


@torch.no_grad()
def pca_fvu(train: ActivationSplit, held_out: ActivationSplit, k: int, limit: int = 1 << 20) -> float:
    """FVU on `held_out` of the k leading principal components of (at most `limit` rows of) `train`.

    The linear dictionary with as many active components a row: what a sparse one has to beat.
    """
    d = train.d_in
    n, total, gram = 0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    for start in range(0, min(limit, train.n_rows), ROWS):
        x = train.read(start, min(start + ROWS, train.n_rows)).double()
        n, total, gram = n + len(x), total + x.sum(0), gram + x.T @ x
    mean = total / n
    components = torch.linalg.eigh(gram / n - mean.outer(mean)).eigenvectors[:, -min(k, d) :]
    error, square, n, total = 0.0, 0.0, 0, torch.zeros(d, dtype=torch.float64)
    for start in range(0, held_out.n_rows, ROWS):
        x = held_out.read(start, min(start + ROWS, held_out.n_rows)).double()
        centred = x - mean
        error += (centred - centred @ components @ components.T).square().sum().item()
        square, n, total = square + x.square().sum().item(), n + len(x), total + x.sum(0)
    return error / (square - total.square().sum().item() / n)


@torch.no_grad()
def splice(
    subject: Subject,
    dictionary: Dictionary,
    site: str,
    mean: Float[Tensor, " d_in"],
    tokens: TokenSplit,
    skip: int,
    max_tokens: int,
    batch_tokens: int,
) -> Mapping[str, Any]:
    """Next-token loss with the reconstruction in the site's place, against clean and ablated.

    Ablation by the site's mean is the strict one and gives `ce_recovered`; ablation by zero is
    reported beside it. The first `skip` positions of a context are left as they are, as they were
    in training. Losses are sums over the same tokens, in nats.
    """
    place = sites.resolve(subject.model, site)
    mean = mean.to(subject.device)

    def reconstruction(x: Tensor) -> Tensor:
        with torch.autocast(subject.device.type, enabled=False):  # a dictionary is used as it was trained
            return dictionary.decode(dictionary.encode(x.float()))

    changes = {
        "spliced": reconstruction,
        "mean_ablated": mean.expand_as,
        "zero_ablated": torch.zeros_like,
    }
    n, losses, kl = 0, dict.fromkeys(["clean", *changes], 0.0), dict.fromkeys(changes, 0.0)
    batch_tokens = min(batch_tokens, MAX_LOGITS // len(subject.tokenizer))
    for ids in _full_contexts(tokens, max_tokens, batch_tokens, subject.device):
        with subject.autocast():
            clean = log_softmax(subject.model(input_ids=ids).logits[:, :-1].float(), dim=-1)
        losses["clean"] -= clean.gather(-1, ids[:, 1:, None]).double().sum().item()
        n += ids[:, 1:].numel()
        for name, change in changes.items():
            with subject.autocast(), sites.replaced(subject.model, place, _on_kept(change, skip)):
                changed = log_softmax(subject.model(input_ids=ids).logits[:, :-1].float(), dim=-1)
            losses[name] -= changed.gather(-1, ids[:, 1:, None]).double().sum().item()
            kl[name] += (clean.exp() * (clean - changed)).sum(-1).double().sum().item()
    ce = {name: total / n for name, total in losses.items()}
    return {
        "ce": ce,
        "kl": kl["spliced"] / n,
        "kl_mean_ablated": kl["mean_ablated"] / n,
        "ce_recovered": ce_recovered(ce["clean"], ce["spliced"], ce["mean_ablated"]),
        "ce_recovered_zero": ce_recovered(ce["clean"], ce["spliced"], ce["zero_ablated"]),
        "tokens": n,
    }


def _on_kept(change: Any, skip: int) -> Any:
    """`change` on all but the first `skip` positions, which pass unchanged."""

    def apply(x: Tensor) -> Tensor:
        kept = x[:, skip:]
        new = change(kept.flatten(0, 1)).view_as(kept).to(x.dtype)
        return torch.cat([x[:, :skip], new], dim=1)

    return apply


def _full_contexts(tokens: TokenSplit, max_tokens: int, batch_tokens: int, device: torch.device) -> list[Tensor]:
    """Contexts of the most common length, as batches `[n, length]`, at most `max_tokens` tokens."""
    lengths = torch.from_numpy(tokens.context_starts).diff()
    length = int(lengths.mode().values)
    starts = torch.from_numpy(tokens.context_starts[:-1])[lengths == length][: max(1, max_tokens // length)]
    positions = starts[:, None] + torch.arange(length)
    ids = torch.from_numpy(tokens.tokens.astype("int64"))[positions].to(device)
    return list(ids.split(max(1, batch_tokens // length)))
