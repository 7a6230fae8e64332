"""A finished run that fits on a page: 20 tokens in three contexts of 8, 8 and 4, and four latents.

     0 the   1 dog   2 sat   3 the   4 cat   5 sat   6 the   7 dog     the first document is 0 to 10
     8 a     9 cat  10 sat  11 the  12 dog  13 the  14 dog  15 the
    16 cat  17 the  18 cat  19 sat

Latent 0 fires on dogs, 1 on cats, 2 never, 3 after dogs. The first token of each context does not count.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from analysis.config import IndexConfig, LabelConfig
from analysis.export.results import Results
from analysis.index.build import build as build_index
from analysis.label.fit import labels, write
from analysis.label.record import LabelRecord, Scores
from sae import tokens
from sae.config import DataConfig, to_json
from sae.stage import stage
from sae.text import Document
from sae.tokens import TokenStore
from tests.analysis.conftest import view_of
from tests.analysis.stored import stored

WORDS = ["the", "dog", "cat", "sat", "a"]
STRINGS = ["the", " dog", " cat", " “sat”", "\n"]
"""Texts of the five tokens."""
TEXTS = ("the dog sat the cat sat the dog a cat sat", "the dog the dog the cat the cat sat")
FIRINGS: list[dict[int, float]] = [
    {1: 4.0, 7: 2.0, 12: 8.0, 14: 1.0},
    {4: 1.5, 9: 3.0, 18: 0.5},
    {},
    {13: 1.0, 15: 0.25},
]
INDEX = IndexConfig(
    window=4, top_examples=2, interval_examples=2, quantile_examples=1, silent_examples=1, logits=2, neighbours=2
)
LABELS = {0: "Fires on “dog”.", 3: "Fires after “dog”."}


def token_store(path: Path, **choices: Any) -> TokenStore:
    word_level = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    word_level.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_level)
    documents = [Document(f"d{i}", "books", f"Title {i}", text, "train") for i, text in enumerate(TEXTS)]
    cfg = DataConfig(**{"context": 8, "bos": "none", **choices})
    return TokenStore(stage(path, {"data": to_json(cfg)}, lambda out: tokens.build(documents, tokenizer, cfg, out)))


def records() -> list[LabelRecord]:
    none = [
        view_of(name, np.arange(2)[:, None] + np.full((2, 96), 2 * i), lambda flat: [np.zeros(len(flat), bool)] * 4)
        for i, name in enumerate(("fit", "select", "test"))
    ]
    score = Scores(n_predicted=4, n_true=3, precision=0.75, recall=0.5, f1=0.6, iou=0.4, auprc=0.5, pearson=0.5)
    known = {"status": "labelled", "scores": score, "f1_low": 0.41, "f1_high": 0.8, "token": replace(score, f1=0.3)}
    return [
        replace(record, text=LABELS[i], **known) if i in LABELS else record
        for i, record in enumerate(labels(*none, LabelConfig()))
    ]


def build_run(root: Path, model: torch.nn.Module, facts: Mapping[str, Any], **choices: Any) -> Path:
    """All boxes that exports read; `facts` are those of `dictionary.json`."""
    split = token_store(root / "tokens", **choices).split("train")
    directions = torch.eye(4, 16) + torch.eye(4, 16).roll(1, dims=0) / 2

    def codes(out: Path) -> Mapping[str, Any]:
        made, summary = stored(out, split, FIRINGS, skip=1, part_rows=10)
        summary.save(out / "summary.safetensors")
        return {"splits": {"train": {"kept_parts": len(made.parts), "n_tokens": len(split.tokens)}}}

    def index(out: Path) -> Mapping[str, Any]:
        made, summary = stored(root / "again", split, FIRINGS, skip=1, part_rows=10)
        return build_index(made, summary, directions, model, split, STRINGS, INDEX, out)

    def dictionary(out: Path) -> Mapping[str, Any]:
        (out / "dictionary.json").write_text(json.dumps(facts))
        return {}

    def atlas(out: Path) -> Mapping[str, Any]:
        (out / "data").mkdir()
        (out / "index.html").write_text("the pages")
        (out / "data" / "index.js").write_text("their data")
        return {}

    for name, build in {"codes": codes, "index": index, "dictionary": dictionary, "atlas": atlas}.items():
        stage(root / name, {}, build)
    stage(root / "labels", {}, lambda out: write(records(), out))
    return root


PLAIN = {"type": "topk", "facts": {"inputs": ["mlp_out.1"], "model": "org/Tiny_GPT"}}
LAYERED = {
    "type": "cross_layer_transcoder",
    "facts": {"inputs": ["mlp_in.0", "mlp_in.1"], "outputs": ["mlp_out.0", "mlp_out.1"], "model": "tiny"},
}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, gpt2: torch.nn.Module) -> Path:
    return build_run(tmp_path_factory.mktemp("run"), gpt2, PLAIN)


@pytest.fixture(scope="session")
def layered(tmp_path_factory: pytest.TempPathFactory, gpt2: torch.nn.Module) -> Path:
    """A cross-layer transcoder: latents 0 and 1 read layer 0, 2 and 3 read layer 1."""
    return build_run(tmp_path_factory.mktemp("layered"), gpt2, LAYERED)


@pytest.fixture
def results(run: Path) -> Results:
    return Results(run)
