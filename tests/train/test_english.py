"""The English recipe, in miniature: rows by step, and a killed run that ends with the same bytes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from sae.config import DataConfig, ModelConfig
from sae.errors import ConfigError
from sae.files import read_json
from sae.model import load
from sae.text import Document, documents
from train.subjects import embed, english, make, subjects
from train.subjects.english import English, Rows

TINY = English(
    vocabulary=300,
    n_layers=1,
    d_model=32,
    n_heads=2,
    context=128,  # induction is measured on 128 tokens
    steps=3,
    batch=2,
    micro_batch=1,
    warmup_steps=1,
    repeats=((2, 0.3), (1000, 0.06)),
)
DOCUMENTS = [np.full(300 + i, i + 1) for i in range(5)]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_rows_depend_on_the_step_alone(steps):
    in_order = Rows(DOCUMENTS, TINY)
    expected = [in_order.batch(step) for step in range(41)]
    for step in steps:
        tokens, labels = Rows(DOCUMENTS, TINY).batch(step)
        assert torch.equal(tokens, expected[step][0])
        assert torch.equal(labels, expected[step][1])


def test_rows_are_full_contexts_of_the_text():
    recipe = English(**{**vars(TINY), "repeats": ((1000, 0.0),)})
    rows = Rows(DOCUMENTS, recipe)
    assert rows.rows_per_epoch == (5 * 300 + 10 + 5) // 128 - 1
    for step in range(3 * rows.rows_per_epoch):  # over several epochs
        tokens, labels = rows.batch(step)
        assert tokens.shape == (2, 128)
        assert torch.equal(tokens, labels)
        changes = tokens[:, 1:] != tokens[:, :-1]
        assert (changes <= ((tokens[:, 1:] == 0) | (tokens[:, :-1] == 0))).all(), "texts meet at an end of text only"


def test_repeated_rows_repeat_and_random_first_copies_are_no_targets():
    recipe = English(**{**vars(TINY), "repeats": ((4, 1.0), (1000, 0.0))})
    seen = {"random": 0, "text": 0}
    rows = Rows(DOCUMENTS, recipe)
    for step in range(4):
        tokens, labels = rows.batch(step)
        for row, label in zip(tokens.tolist(), labels.tolist(), strict=True):
            periods = [p for p in range(8, 65) if all(row[i] == row[i - p] for i in range(p, 128))]
            assert periods, "every row repeats a segment of 8 to 64 tokens"
            masked = [i for i, value in enumerate(label) if value == -100]
            seen["random" if masked else "text"] += 1
            if masked:
                assert masked == list(range(periods[0]))
            assert all(value in (-100, token) for value, token in zip(label, row, strict=True))
    assert seen["random"] and seen["text"], seen
    tokens, labels = rows.batch(4)
    assert torch.equal(tokens, labels), "and none after the last step that says so"


def test_an_unknown_subject_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        make("englsh", tmp_path)
    assert (
        str(caught.value) == "subject 'englsh' is unknown: did you mean english? (a plug-in is named under `plugins`)"
    )
    assert subjects.names() == ["english"]


@pytest.fixture(scope="module")
def long_corpus(corpus):
    return [Document(d.id, d.source, d.title, d.text * 4, d.split) for d in corpus]


@pytest.fixture(scope="module")
def done(long_corpus, tmp_path_factory):
    return english.train(long_corpus, TINY, tmp_path_factory.mktemp("whole"))


def test_a_tiny_recipe_goes_on_after_being_killed(tmp_path, long_corpus, done, monkeypatch):
    step = english._step

    def killed(*arguments):
        if arguments[3] == 2:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(english, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            english.train(long_corpus, TINY, tmp_path / "killed", checkpoint_seconds=0.0)
    with safe_open(tmp_path / "killed" / "checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == 2
    again = english.train(long_corpus, TINY, tmp_path / "killed")
    for name in ("model.safetensors", "curve.json", "config.json", "tokenizer.json"):
        assert (again / name).read_bytes() == (done / name).read_bytes(), name


def test_the_curve_of_a_tiny_recipe(done):
    curve = read_json(done / "curve.json")["curve"]
    assert [point["step"] for point in curve] == [0, 2]
    assert set(curve[0]) == {"step", "train", "s0", "s1", "repeat"}
    # random weights know nothing: about log 300 = 5.7 nats
    assert curve[0]["s0"] == pytest.approx(np.log(300), abs=0.5)


def test_what_is_embedded_is_a_model_a_card_and_a_text(tmp_path, long_corpus, done):
    embed.write(done, long_corpus, tmp_path)
    subject = load(ModelConfig(name=str(tmp_path / "model"), precision="float32"), torch.device("cpu"))
    trained = load_file(done / "model.safetensors")
    for name, value in subject.model.state_dict().items():
        if name in trained:
            assert torch.equal(value, trained[name].half().float()), name
    assert subject.tokenizer.bos_token_id == 0
    text = long_corpus[0].text
    assert subject.tokenizer.decode(subject.tokenizer(text)["input_ids"]) == text
    cfg = DataConfig(source=str(tmp_path / "text" / "corpus.parquet"), split_column="split")
    found = {d.id: d for d in documents(cfg)}
    assert found == {d.id: d for d in long_corpus}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "1 layers of width 32, 2 heads, context 128, vocabulary 300" in card
    assert "Rows that repeat a segment: 30% up to step 2, 6% up to step 3." in card
    assert "| s0 | 12 |" in card
