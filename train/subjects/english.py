"""A small GPT-2 of freely licensed English: the network that the embedded default studies.

The model is transformers' own `GPT2LMHeadModel` with a byte-level BPE of its own. A share of the
training rows repeats a segment (of random tokens or of text), so that induction heads form.
Hidden matrices are trained with Muon, all else with AdamW. Every random choice of step `t` comes
from `(seed, t)` alone, so a run that was killed goes on exactly as if it had not been.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from sae.files import publish, write_json
from sae.text import Document
from train.checkpoint import optimizer_tensors, restore_optimizer
from train.subjects import corpus, embed, subjects
from train.subjects.card import repeat_losses
from train.subjects.embed import END_OF_TEXT

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class English:
    """The recipe; the defaults are those of the embedded subject."""

    vocabulary: int = 8192
    """Entries of the BPE, the end-of-text token included."""
    n_layers: int = 6
    d_model: int = 256
    n_heads: int = 4
    context: int = 256
    """Tokens of a row, in training and at most ever after."""
    dropout: float = 0.1
    """On embeddings and residual branches; 0 on attention weights."""
    steps: int = 3900
    batch: int = 16
    """Rows a step."""
    micro_batch: int = 8
    """Rows at a time; what fits the cache is fastest."""
    muon_lr: float = 3e-3
    """For hidden matrices; Muon's update is scaled to AdamW's root mean square."""
    adam_lr: float = 1.5e-3
    weight_decay: float = 0.1
    """On matrices; none on biases and layer norms."""
    warmup_steps: int = 100
    decay_share: float = 0.3
    """The last share of the steps, over which the learning rates fall linearly to 0."""
    repeats: tuple[tuple[int, float], ...] = ((1300, 0.3), (1950, 0.5), (1_000_000, 0.08))
    """(until which step, share of rows that repeat a segment): induction has to form first."""
    seed: int = 0


def fit_tokenizer(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE, GPT-2's pre-tokenisation; token 0 is the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_model(recipe: English) -> GPT2LMHeadModel:
    """GPT-2 with random weights from `recipe.seed`; the token embedding is tied to the output."""
    torch.manual_seed(recipe.seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=recipe.vocabulary,
            n_positions=recipe.context,
            n_embd=recipe.d_model,
            n_layer=recipe.n_layers,
            n_head=recipe.n_heads,
            activation_function="gelu_pytorch_tanh",  # GPT-2's `gelu_new`, as one fused operation
            resid_pdrop=recipe.dropout,
            embd_pdrop=recipe.dropout,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )


class Rows:
    """Training rows by step: text in document order of an epoch's shuffle, some rows repeated.

    `batch(step)` is a pure function of the step, `[batch, context]` tokens and labels; label -100
    marks what cannot be predicted (the first copy of random tokens) and is not trained on.
    """

    def __init__(self, documents: list[np.ndarray], recipe: English) -> None:
        self.documents, self.recipe = documents, recipe
        n_tokens = sum(len(document) + 1 for document in documents)
        self.rows_per_epoch = n_tokens // recipe.context - 1
        self._epoch, self._stream = -1, np.zeros(0, np.int64)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.recipe.seed, 1, step))
        first = step * self.recipe.batch
        rows = np.stack([self._row(first + i) for i in range(self.recipe.batch)])
        labels = rows.copy()
        share = next(share for until, share in self.recipe.repeats if step < until)
        for i in np.flatnonzero(rng.random(len(rows)) < share):
            period = int(rng.integers(8, self.recipe.context // 2 + 1))
            is_random = rng.random() < 0.5
            segment = rng.integers(1, self.recipe.vocabulary, period) if is_random else rows[i, :period].copy()
            rows[i] = np.resize(segment, self.recipe.context)
            labels[i] = rows[i]
            if is_random:
                labels[i, :period] = -100
        return torch.from_numpy(rows), torch.from_numpy(labels)

    def _row(self, number: int) -> np.ndarray:
        epoch, at = divmod(number, self.rows_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.recipe.seed, 2, epoch))
            order = rng.permutation(len(self.documents))
            parts = [part for i in order for part in (np.zeros(1, np.int64), self.documents[i])]
            self._stream = np.concatenate(parts)[int(rng.integers(self.recipe.context)) :]
            self._epoch = epoch
        return self._stream[at * self.recipe.context : (at + 1) * self.recipe.context]


@subjects.register("english")
def build(out: Path) -> None:
    """The whole subject: fetch the text, train, measure, and lay the result out as it is embedded.

    `out/packages` keeps what was fetched, `out/training` the checkpoints, `out/embedded` the result:
    `model/` (fp16 safetensors, configuration, tokenizer, card) and `text/` (a slice of the corpus).
    """
    documents = corpus.load(out / "packages")
    training = train(documents, English(), out / "training")
    embed.write(training, documents, out / "embedded")


def train(documents: list[Document], recipe: English, out: Path, checkpoint_seconds: float = 300.0) -> Path:
    """Train the subject on the `train` documents; resumes from `out/checkpoint.safetensors`.

    Returns the folder with `model.safetensors` (fp32), `config.json`, `tokenizer.json`, `curve.json`.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(documents, recipe, out)
    encoded = {d.id: np.array(tokenizer.encode(d.text).ids, dtype=np.int64) for d in documents}
    rows = Rows([encoded[d.id] for d in documents if d.split == "train"], recipe)
    held_out = _held_out(documents, encoded, recipe.context)
    model = build_model(recipe)
    muon, adam = _optimizers(model, recipe)
    state = out / "checkpoint.safetensors"
    first, curve = _resume(state, model, (muon, adam)) if state.exists() else (0, [])
    saved = time.monotonic()
    for step in range(first, recipe.steps):
        loss = _step(model, (muon, adam), rows.batch(step), step, recipe)
        if step % 250 == 0 or step == recipe.steps - 1:
            repeat = repeat_losses(model, recipe.seed)
            point = {"step": step, "train": loss, **evaluate(model, held_out), "repeat": repeat}
            curve.append(point)
            log.info("%s", point)
        if time.monotonic() - saved > checkpoint_seconds or step == recipe.steps - 1:
            _checkpoint(state, model, (muon, adam), step + 1, curve)
            saved = time.monotonic()
    model.eval()
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    publish(out / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    model.config.save_pretrained(out)
    write_json(out / "curve.json", {"recipe": asdict(recipe), "curve": curve, "rows_per_epoch": rows.rows_per_epoch})
    return out


def _tokenizer(documents: list[Document], recipe: English, out: Path) -> Tokenizer:
    path = out / "tokenizer.json"
    if not path.exists():
        texts = (d.text for d in documents if d.split == "train")
        tokenizer = fit_tokenizer(texts, recipe.vocabulary)
        publish(path, lambda temporary: tokenizer.save(str(temporary)))
    return Tokenizer.from_file(str(path))


def _optimizers(model: GPT2LMHeadModel, recipe: English) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    embeddings = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." not in name]
    rest = [p for p in model.parameters() if p.ndim < 2]
    muon = torch.optim.Muon(hidden, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": embeddings, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=recipe.adam_lr, betas=(0.9, 0.95), fused=True)
    return muon, adam


def _step(
    model: GPT2LMHeadModel,
    optimizers: tuple[torch.optim.Optimizer, ...],
    batch: tuple[Tensor, Tensor],
    step: int,
    recipe: English,
) -> float:
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"{recipe.seed} dropout {step}".encode()).digest()[:4], "big"))
    warmup = (step + 1) / recipe.warmup_steps
    decay = (recipe.steps - step) / (recipe.decay_share * recipe.steps)
    scale = min(1.0, warmup, decay)
    for optimizer, peak in zip(optimizers, (recipe.muon_lr, recipe.adam_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * scale
    model.train()
    n_labels = (batch[1][:, 1:] >= 0).sum()
    total = 0.0
    for tokens, labels in zip(*(part.split(recipe.micro_batch) for part in batch), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=tokens).logits[:, :-1].flatten(0, 1)
            loss = cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / n_labels
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return total


def _held_out(documents: list[Document], encoded: dict[str, np.ndarray], context: int) -> dict[str, Tensor]:
    """At most 40 full rows a source from the documents that training never sees."""
    found = {}
    for source in sorted({d.source for d in documents}):
        held = [encoded[d.id] for d in documents if d.source == source and d.split != "train"]
        stream = np.concatenate([part for ids in held for part in (np.zeros(1, np.int64), ids)])
        n_rows = min(40, len(stream) // context)
        found[source] = torch.from_numpy(stream[: n_rows * context].reshape(n_rows, context))
    return found


@torch.no_grad()
def evaluate(model: GPT2LMHeadModel, rows: dict[str, Tensor]) -> dict[str, float]:
    """Mean next-token loss in nats, by source, over rows `[n, context]`."""
    model.eval()
    losses = {}
    for source, tokens in rows.items():
        with torch.autocast("cpu", torch.bfloat16):
            total = [model(input_ids=part, labels=part).loss.item() * len(part) for part in tokens.split(20)]
        losses[source] = sum(total) / len(tokens)
    return losses


def _checkpoint(
    path: Path, model: GPT2LMHeadModel, optimizers: tuple[torch.optim.Optimizer, ...], step: int, curve: list[dict]
) -> None:
    """One file, so that a kill cannot part the weights from the step they belong to."""
    tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        tensors |= optimizer_tensors(optimizer, f"optimizer/{i}")
    meta = {"progress": json.dumps({"step": step, "curve": curve})}
    publish(path, lambda temporary: save_file(tensors, temporary, metadata=meta))


def _resume(
    path: Path, model: GPT2LMHeadModel, optimizers: tuple[torch.optim.Optimizer, ...]
) -> tuple[int, list[dict]]:
    with safe_open(path, framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
    for i, optimizer in enumerate(optimizers):
        restore_optimizer(optimizer, tensors, f"optimizer/{i}")
    return progress["step"], progress["curve"]
