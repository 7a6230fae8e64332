"""Measure the English subject on documents it never saw, and write its model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel

from sae.files import read_json, write_text
from sae.text import Document
from train.subjects.ngram import Trigram

PROMPTS = (
    "The city of",
    "And the LORD said unto",
    "It was impossible for Elizabeth",
    "HAMLET.\n",
)


@dataclass(frozen=True)
class SourceLoss:
    """Held-out loss on one source, the model's and the trigram's, over the same tokens."""

    source: str
    n_documents: int
    n_tokens: int
    n_bytes: int
    loss: float
    """Nats a token."""
    trigram_loss: float

    def bits_per_byte(self, loss: float) -> float:
        return loss * self.n_tokens / self.n_bytes / np.log(2)


def measure(model: GPT2LMHeadModel, tokenizer: Tokenizer, documents: Sequence[Document]) -> list[SourceLoss]:
    """Loss on all held-out documents by source, in rows of the model's full context."""
    encoded = {d.id: np.array([0, *tokenizer.encode(d.text).ids]) for d in documents}
    vocabulary, context = model.config.vocab_size, model.config.n_positions
    trigram = Trigram(np.concatenate([encoded[d.id] for d in documents if d.split == "train"]), vocabulary)
    lengths = np.array([len(tokenizer.id_to_token(i) or "") for i in range(vocabulary)])  # one character a byte
    found = []
    for source in sorted({d.source for d in documents}):
        held = [encoded[d.id] for d in documents if d.source == source and d.split != "train"]
        stream = np.concatenate(held)
        rows = torch.from_numpy(stream[: len(stream) // context * context].reshape(-1, context))
        losses, baseline = _token_losses(model, rows), np.zeros(rows.shape)
        baseline.reshape(-1)[2:] = trigram.losses(rows.flatten().numpy())
        # positions 0 and 1 of a row, and ends of text, are left out of both sums
        kept = np.ones(rows.shape, dtype=bool) & (rows.numpy() != 0)
        kept[:, :2] = False
        found.append(
            SourceLoss(
                source=source,
                n_documents=len(held),
                n_tokens=int(kept.sum()),
                n_bytes=int(lengths[rows.numpy()[kept]].sum()),
                loss=float(losses.numpy()[kept].mean()),
                trigram_loss=float(baseline[kept].mean()),
            )
        )
    return found


@torch.no_grad()
def _token_losses(model: GPT2LMHeadModel, rows: Tensor) -> Tensor:
    """Loss of each token `[n, context]`; 0 at position 0, which nothing predicts."""
    model.eval()
    losses = torch.zeros(rows.shape)
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        logits = model(input_ids=part).logits[:, :-1]
        losses[start : start + 16, 1:] = cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none")
    return losses


@torch.no_grad()
def repeat_losses(model: GPT2LMHeadModel, seed: int = 0, length: int = 64, n: int = 32) -> tuple[float, float]:
    """Mean loss (nats) over the first and the second half of `length` random tokens shown twice."""
    model.eval()
    rng = np.random.default_rng((seed, 3))
    half = torch.from_numpy(rng.integers(1, model.config.vocab_size, (n, length)))
    losses = _token_losses(model, torch.cat([half, half], dim=1))
    return losses[:, 1:length].mean().item(), losses[:, length:].mean().item()


@torch.no_grad()
def samples(model: GPT2LMHeadModel, tokenizer: Tokenizer, n_tokens: int = 70, temperature: float = 0.8) -> list[str]:
    """One continuation of each of `PROMPTS`, from a fixed seed."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([[0, *tokenizer.encode(prompt).ids]])
        for _ in range(n_tokens):
            logits = model(input_ids=ids).logits[0, -1] / temperature
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)[None]], dim=1)
        found.append(tokenizer.decode(ids[0].tolist()))
    return found


def write(
    folder: Path,
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    losses: Sequence[SourceLoss],
    repeat: tuple[float, float],
    out: Path,
) -> None:
    """Write the model card from what was measured and the recipe in `folder/curve.json`."""
    trained = read_json(folder / "curve.json")
    parts = [
        _HEAD,
        _data_table(documents),
        _LICENCES,
        _training(trained, model),
        _loss_table(losses),
        _INDUCTION.format(first=repeat[0], second=repeat[1], gain=repeat[0] - repeat[1]),
        _curve_table(trained["curve"]),
        "## Samples\n\nTemperature 0.8, seed 0, not chosen.\n",
        *(f"```\n{text}\n```" for text in samples(model, tokenizer)),
        _LIMITS,
    ]
    write_text(out, "\n".join(parts).rstrip() + "\n")


def _data_table(documents: Sequence[Document]) -> str:
    lines = ["| source | documents | text, MB | held out, MB |", "|---|---|---|---|"]
    for source in sorted({d.source for d in documents}):
        of_source = [d for d in documents if d.source == source]
        held = sum(len(d.text.encode()) for d in of_source if d.split != "train")
        total = sum(len(d.text.encode()) for d in of_source)
        lines.append(f"| {source} | {len(of_source):,} | {total / 1e6:.2f} | {held / 1e6:.2f} |")
    return "\n".join(lines) + "\n"


def _training(trained: Mapping[str, Any], model: GPT2LMHeadModel) -> str:
    recipe = trained["recipe"]
    tokens = recipe["steps"] * recipe["batch"] * recipe["context"]
    epochs = recipe["steps"] * recipe["batch"] / trained["rows_per_epoch"]
    n_parameters = sum(p.numel() for p in model.parameters())
    repeats = ", ".join(f"{share:.0%} up to step {min(until, recipe['steps']):,}" for until, share in recipe["repeats"])
    return (
        f"## Training\n\n{recipe['n_layers']} layers of width {recipe['d_model']}, {recipe['n_heads']} heads, context "
        f"{recipe['context']}, vocabulary {recipe['vocabulary']:,}: {n_parameters / 1e6:.2f} million parameters. "
        f"{recipe['steps']:,} steps of {recipe['batch'] * recipe['context']:,} tokens ({tokens / 1e6:.1f} million, "
        f"{epochs:.1f} epochs), Muon on hidden matrices and AdamW on the rest, dropout {recipe['dropout']}, seed "
        f"{recipe['seed']}. Rows that repeat a segment: {repeats}. "
        "Made by `sae subject english`.\n"
    )


def _loss_table(losses: Sequence[SourceLoss]) -> str:
    lines = [
        "## Held-out loss\n",
        "On all documents that were kept from training, beside an interpolated Kneser-Ney trigram fitted on the same",
        "training text and asked for the same tokens.\n",
        "| source | documents | tokens | nats a token | bits a byte | trigram, nats | trigram, bits a byte |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s.source} | {s.n_documents} | {s.n_tokens:,} | **{s.loss:.3f}** | {s.bits_per_byte(s.loss):.3f} "
        f"| {s.trigram_loss:.3f} | {s.bits_per_byte(s.trigram_loss):.3f} |"
        for s in losses
    ]
    return "\n".join(lines) + "\n"


def _curve_table(curve: Sequence[Mapping[str, Any]]) -> str:
    sources = [key for key in curve[0] if key not in ("step", "train", "repeat")]
    head = " | ".join(sources)
    lines = [
        "## Loss curves\n",
        "Nats a token: the training batch (with its repeated rows), held-out rows by source, and the second half of 64",
        "random tokens shown twice.\n",
        f"| step | train | {head} | repeat |",
        "|---" * (len(sources) + 3) + "|",
    ]
    stride = max(1, len(curve) // 12)
    for point in [*curve[:-1:stride], curve[-1]]:
        cells = " | ".join(f"{point[source]:.2f}" for source in sources)
        lines.append(f"| {point['step']:,} | {point['train']:.2f} | {cells} | {point['repeat'][1]:.2f} |")
    return "\n".join(lines) + "\n"


_HEAD = """---
language: en
license: cc-by-sa-4.0
library_name: transformers
tags: [gpt2, interpretability]
---
# A small GPT-2 of freely licensed English

A `GPT2LMHeadModel` with a byte-level BPE of its own, trained to be studied: small enough for a laptop, good enough
to have features worth finding. Not for use as a language model.

## Data
"""

_LICENCES = """Wikipedia's text is by its authors, under CC BY-SA 4.0; the King James Bible, Shakespeare and Austen are
in the public domain. Held-out documents were chosen by a hash of their names. Weights and tokenizer: CC BY-SA 4.0.
"""

_INDUCTION = """## Induction

64 random tokens shown twice (32 sequences, seed 0): {first:.2f} nats a token the first time, **{second:.2f}**
the second: {gain:.2f} nats less.
"""

_LIMITS = """
## Limits

Old, male, English and Christian voices are most of its text; it repeats their views. It knows no facts. Chapters of
one book stand on both sides of the held-out line, so held-out loss on the books flatters it; Wikipedia's does not.
"""
