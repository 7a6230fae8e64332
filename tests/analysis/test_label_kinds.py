"""Kinds of tokens by the network's embedding, and rules about them."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from analysis.config import LabelConfig
from analysis.label.choose import choose
from analysis.label.columns import COLUMNS, Vocabulary
from analysis.label.fit import vocabulary_of, write
from analysis.label.indexed import Indexed
from analysis.label.kinds import LEVELS, embedding, kinds_of
from analysis.label.protocol import Clause, Label, Part
from analysis.label.sentence import sentence
from analysis.score import counts
from analysis.splits import View
from sae.tokens import TokenSplit
from tests.analysis.conftest import ID, LENGTH, STRINGS, VIEWS, codes_of

ANIMALS = (" ant", " bee", " cow", " doe", " elk", " fox", " gnu", " hen")
COLOURS = (" red", " tan", " blue", " pink", " gold", " jade", " plum", " rust")
OTHERS = tuple(f" {a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "mnprt")
WORDS = ("<|endoftext|>", *ANIMALS, *COLOURS, *OTHERS)
AT = {text: token for token, text in enumerate(WORDS)}


def rows(seed: int = 0) -> np.ndarray:
    """Animals lie together, colours lie together, all else anywhere; two rows stand for no token."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(len(WORDS) + 2, 32))
    for words in (ANIMALS, COLOURS):
        table[[AT[word] for word in words]] = 3 * rng.normal(size=32) + rng.normal(size=(len(words), 32))
    return table


def zoo(name: str, seed: int, left_out: tuple[str, ...], fires: str) -> View:
    """Words at random; a latent fires on animals, or on animals after colours."""
    rng = np.random.default_rng(seed)
    known = [token for word, token in AT.items() if word not in left_out and token]
    lively = [token for token in known if token <= len(ANIMALS) + len(COLOURS)]
    tokens = rng.choice(known, size=(40, LENGTH))
    tokens = np.where(rng.random(tokens.shape) < 0.3, rng.choice(lively, size=tokens.shape), tokens)
    tokens[:, 0] = 0
    flat = tokens.reshape(-1)
    is_animal, is_colour = (np.isin(flat, [AT[word] for word in words]) for words in (ANIMALS, COLOURS))
    on = is_animal if fires == "animals" else is_animal & np.roll(is_colour, 1)
    starts = np.arange(len(tokens) + 1) * LENGTH
    split = TokenSplit(name, flat.astype(np.uint16), starts, starts, {})
    return VIEWS[name].of(split, codes_of([on], seed), WORDS, skip_positions=1)


def labelled(fires: str, families: tuple[str, ...]) -> tuple[Label, float, str]:
    unseen = (" cow", " hen")  # neither in the documents that rules are fitted on, nor in those they are chosen on
    fit, select = zoo("fit", 1, unseen, fires), zoo("select", 2, unseen, fires)
    test = zoo("test", 3, (), fires)
    vocabulary = vocabulary_of(fit, rows())
    cfg = LabelConfig(families=families)
    label = choose(Indexed(fit, vocabulary), Indexed(select, vocabulary), 0, cfg).label
    assert label is not None
    found = counts(label.predict(Indexed(test, vocabulary))[0], test.firing(0)[0])
    return label, found.f1, sentence(label, vocabulary)


def test_a_kind_tells_of_words_that_were_never_seen():
    label, f1, text = labelled("animals", ("token", "kind"))
    assert (label.family, label.n_atoms, f1) == ("kind", 1, 1.0)
    assert text.startswith("Fires on tokens like \u201c")
    of_tokens, f1_of_tokens, _ = labelled("animals", ("token",))
    assert of_tokens.n_atoms == 6
    assert f1_of_tokens < 0.9


def test_a_kind_after_a_kind():
    label, f1, text = labelled("animals after colours", ("token", "context", "kind"))
    assert (label.family, label.n_atoms, f1) == ("kind", 1, 1.0)
    assert " after tokens like \u201c" in text


def test_kinds_are_nested_and_named_by_their_commonest_token():
    counts = np.arange(len(WORDS))[::-1].copy()
    kinds = kinds_of(rows(), np.arange(len(WORDS)), counts)
    for wide, narrow in (("wide", "kind"), ("kind", "narrow")):
        for group in np.unique(kinds.of[narrow]):
            assert len(np.unique(kinds.of[wide][kinds.of[narrow] == group])) == 1
    for name, size in LEVELS.items():
        groups = np.unique(kinds.of[name])
        assert len(groups) <= max(1, (len(WORDS) - 1) // size)  # the last word stands nowhere
        assert all(kinds.members(name, group)[0] == group for group in groups.tolist())
    animals = kinds.of["kind"][[AT[word] for word in ANIMALS]]
    assert (animals == AT[" ant"]).all()
    assert (kinds.of["kind"] == AT[" ant"]).sum() == len(ANIMALS)


def test_words_that_stand_nowhere_in_the_text_join_the_kind_nearest_to_them():
    counts = np.ones(len(WORDS), dtype=np.int64)
    counts[[AT[" cow"], AT[" jade"]]] = 0
    kinds = kinds_of(rows(), np.arange(len(WORDS)), counts)
    assert kinds.of["kind"][AT[" cow"]] == kinds.of["kind"][AT[" ant"]]
    assert kinds.of["kind"][AT[" jade"]] == kinds.of["kind"][AT[" red"]]


def test_only_so_many_folds_are_grouped(monkeypatch):
    monkeypatch.setattr("analysis.label.kinds.MAX_FOLDS", 20)
    counts = np.ones(len(WORDS), dtype=np.int64)
    counts[: 1 + len(ANIMALS) + len(COLOURS)] = 9
    kinds = kinds_of(rows(), np.arange(len(WORDS)), counts)
    assert len(np.unique(kinds.of["narrow"])) == 20 // LEVELS["narrow"]
    assert len(kinds.of["narrow"]) == len(WORDS)


def test_no_kinds_without_text_or_table():
    assert kinds_of(rows(), np.arange(len(WORDS)), np.zeros(len(WORDS), dtype=np.int64)) is None
    assert embedding(torch.nn.Linear(2, 2)) is None
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=11))
    assert np.array_equal(embedding(model), model.transformer.wte.weight.detach().numpy())


def test_kinds_lie_beside_the_labels_that_speak_of_them(tmp_path):
    kinds = kinds_of(rows(), np.arange(len(WORDS)), np.ones(len(WORDS), dtype=np.int64))
    write([], tmp_path, kinds)
    table = pq.read_table(tmp_path / "kinds.parquet").to_pydict()
    assert table == {"token": list(range(len(WORDS))), **{name: of.tolist() for name, of in kinds.of.items()}}


def test_no_rules_of_kinds_without_an_embedding(town, ids):
    fit, select, _ = town(lambda tokens: [tokens == ids[" town"]])
    vocabulary = Vocabulary.of(STRINGS)
    choice = choose(Indexed(fit, vocabulary), Indexed(select, vocabulary), 0, LabelConfig(families=("kind",)))
    assert choice.label == choice.token
    assert ID[" town"] + 1 == choice.token.parts[0].clauses[0].keys[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((" dog", "Dog", " dogs"), "\u201cdog\u201d, \u201cDog\u201d or \u201cdogs\u201d"),
        ((" red", " tan"), "\u201cred\u201d or \u201ctan\u201d"),
        ((" red", " tan", " dog", "Dog"), "tokens like \u201cred\u201d, \u201ctan\u201d or \u201cdog\u201d"),
        ((" red", " tan", " blue", " pink"), "tokens like \u201cred\u201d, \u201ctan\u201d or \u201cblue\u201d"),
    ],
)
def test_a_kind_is_told_by_its_members(words, said):
    strings = ("<|endoftext|>", *words, " far", " off", " it", " was")
    table = np.zeros((len(strings), 8))
    table[0, 0] = 1
    table[1 : 1 + len(words), 1] = 1
    for i in range(len(words) + 1, len(strings)):
        table[i, i - len(words) + 1] = -1
    counts = np.arange(100, 100 - len(strings), -1)
    vocabulary = Vocabulary.of(strings, table, counts)
    kinds = vocabulary.kinds.of["narrow"].copy()
    kinds[1 : 1 + len(words)] = 1
    kinds[1 + len(words) :] = 1 + len(words)
    vocabulary.kinds.of["narrow"] = kinds
    assert COLUMNS["narrow"][0].table == "narrow"
    label = Label((Part("kind", (Clause("narrow", (2,), (0.9,)),)),))
    assert sentence(label, vocabulary) == f"Fires on {said}."
