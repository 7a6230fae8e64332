"""Tokens: contexts and documents cut one array, and every position is found again."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sae import tokens
from sae.config import DataConfig
from sae.errors import DataError, StoreError
from sae.stage import stage
from sae.text import Document
from sae.tokens import TokenSplit, TokenStore


def letters(n_extra: int = 0, bos: bool = True) -> PreTrainedTokenizerFast:
    """A token a letter: `<s>` is 0, a is 1, b is 2, ...; then `n_extra` tokens that never occur."""
    names = ["<s>", *"abcdefghijklmnopqrstuvwxyz", *(f"extra{i}" for i in range(n_extra))]
    backend = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>" if bos else None)


LETTERS = letters()


def build(path, texts, splits=None, tokenizer=LETTERS, **choices) -> TokenStore:
    splits = splits or ["train"] * len(texts)
    documents = [
        Document(f"id{i}", "s", f"t{i}", text, split) for i, (text, split) in enumerate(zip(texts, splits, strict=True))
    ]
    cfg = DataConfig(**choices)
    return TokenStore(stage(path / "tokens", {}, lambda out: tokens.build(documents, tokenizer, cfg, out)))


# Documents "abcde", "fg" and "h" in contexts of 4 tokens; 0 is the bos token.
CASES = [
    # every document has its bos; the row of tokens is cut every 4
    ("packed", "document", [0, 1, 2, 3, 4, 5, 0, 6, 7, 0, 8], [0, 6, 9, 11], [0, 4, 8, 11]),
    ("packed", "none", [1, 2, 3, 4, 5, 6, 7, 8], [0, 5, 7, 8], [0, 4, 8]),
    # each context is a bos and 3 tokens: 0abc 0def 0gh; document 2 starts at f, in the second context
    ("packed", "context", [0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8], [0, 7, 10, 11], [0, 4, 8, 11]),
    # a document begins a context of its own
    ("document", "document", [0, 1, 2, 3, 4, 5, 0, 6, 7, 0, 8], [0, 6, 9, 11], [0, 4, 6, 9, 11]),
    ("document", "none", [1, 2, 3, 4, 5, 6, 7, 8], [0, 5, 7, 8], [0, 4, 5, 7, 8]),
    # 0abc 0de | 0fg | 0h
    ("document", "context", [0, 1, 2, 3, 0, 4, 5, 0, 6, 7, 0, 8], [0, 7, 10, 12], [0, 4, 7, 10, 12]),
]


@pytest.mark.parametrize(("packing", "bos", "flat", "document_starts", "context_starts"), CASES)
def test_packing_and_bos_by_hand(tmp_path, packing, bos, flat, document_starts, context_starts):
    split = build(tmp_path, ["abcde", "fg", "h"], context=4, packing=packing, bos=bos).split("train")
    assert split.tokens.tolist() == flat
    assert split.document_starts.tolist() == document_starts
    assert split.context_starts.tolist() == context_starts
    assert split.documents == {"id": ["id0", "id1", "id2"], "source": ["s"] * 3, "title": ["t0", "t1", "t2"]}


@settings(max_examples=20)  # each waits for the disk
@given(
    texts=st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1, max_size=5),
    context=st.integers(2, 6),
    packing=st.sampled_from(["packed", "document"]),
    bos=st.sampled_from(["document", "context", "none"]),
)
def test_whatever_the_cut_the_text_is_whole_and_in_order(tmp_path_factory, texts, context, packing, bos):
    path = tmp_path_factory.mktemp("t")
    split = build(path, texts, context=context, packing=packing, bos=bos).split("train")
    flat, alphabet = split.tokens.tolist(), "_abcdefgh"
    cut = [flat[a:b] for a, b in pairwise(split.document_starts)]
    assert ["".join(alphabet[t] for t in part if t) for part in cut] == texts
    contexts = [flat[a:b] for a, b in pairwise(split.context_starts)]
    assert list(chain(*contexts)) == flat
    assert all(1 <= len(part) <= context for part in contexts)
    if bos == "context":
        assert all(part[0] == 0 and 0 not in part[1:] for part in contexts)
    if bos == "document":
        assert all(part[0] == 0 and 0 not in part[1:] for part in cut)
    if bos == "none":
        assert 0 not in flat
    if packing == "packed":
        assert all(len(part) == context for part in contexts[:-1]), "all but the last are full"
    else:
        assert set(split.document_starts) <= set(split.context_starts), "no context holds two documents"


@pytest.mark.parametrize(("n_extra", "dtype"), [((1 << 16) - 27, np.uint16), ((1 << 16) - 26, np.uint32)])
def test_two_bytes_a_token_while_the_vocabulary_allows(tmp_path, n_extra, dtype):
    store = build(tmp_path, ["abc"], tokenizer=letters(n_extra))
    assert store.vocabulary == n_extra + 27
    assert store.split("train").tokens.dtype == dtype
    assert store.split("train").tokens.tolist() == [0, 1, 2, 3]


def test_splits_hold_their_own_documents(tmp_path):
    store = build(tmp_path, ["a", "b", "c", "d"], ["train", "test", "train", "fit"], bos="none", context=4)
    assert store.splits() == ["train", "fit", "test"]
    assert [store.split(name).tokens.tolist() for name in store.splits()] == [[1, 3], [4], [2]]
    assert store.split("train").documents["id"] == ["id0", "id2"]
    assert store.box.facts == {
        "vocabulary": 27,
        "n_tokens": {"train": 2, "fit": 1, "test": 1},
        "n_documents": {"train": 2, "fit": 1, "select": 0, "test": 1},
    }
    with pytest.raises(StoreError) as caught:
        store.split("select")
    file = store.box.path / "select.safetensors"
    assert str(caught.value) == f"{file}: the text has no select documents; see data.split_column and data.held_out"


def test_same_text_gives_the_same_bytes(tmp_path):
    one, two = (build(tmp_path / name, ["abc", "de"], context=4) for name in ("one", "two"))
    assert one.box.digest == two.box.digest


def test_refusals(tmp_path):
    with pytest.raises(DataError) as caught:
        build(tmp_path / "1", ["a"], tokenizer=letters(bos=False))
    assert str(caught.value).endswith("has no bos token; use data.bos=none")
    assert str(caught.value).startswith("data.bos = 'document': ")
    with pytest.raises(DataError) as caught:
        build(tmp_path / "2", ["a"], ["fit"])
    message = "data: no document is in the `train` split; see data.split_column and data.held_out"
    assert str(caught.value) == message
    with pytest.raises(DataError) as caught:
        build(tmp_path / "3", ["a"], context=1, bos="context")
    assert str(caught.value) == "data.context = 1: must leave room for a token beside the bos token"


def test_a_tokenizer_without_bos_will_do_where_none_is_wanted(tmp_path):
    assert build(tmp_path, ["ab"], tokenizer=letters(bos=False), bos="none").split("train").tokens.tolist() == [1, 2]


# --- positions ---


@st.composite
def cuts(draw):
    """A split of up to 30 tokens with documents and contexts cut anywhere; neither is ever empty."""
    n = draw(st.integers(1, 30))
    inner = st.lists(st.integers(1, n - 1), unique=True).map(sorted) if n > 1 else st.just([])
    starts = [np.array([0, *draw(inner), n], dtype=np.int64) for _ in range(2)]
    return TokenSplit("train", np.zeros(n, np.uint16), *starts, documents={})


@given(cuts())
def test_locate_and_context_of_by_brute_force(split):
    positions = np.arange(len(split.tokens))
    for method, starts in ((split.locate, split.document_starts), (split.context_of, split.context_starts)):
        pieces, offsets = method(positions)
        expected = [(i, p - a) for i, (a, b) in enumerate(pairwise(starts)) for p in range(a, b)]
        assert list(zip(pieces.tolist(), offsets.tolist(), strict=True)) == expected
    assert split.n_contexts == len(split.context_starts) - 1


@given(cuts(), st.integers(0, 5))
def test_kept_positions_by_brute_force(split, skip):
    starts = split.context_starts
    expected = [p for a, b in pairwise(starts) for p in range(a, b) if p - a >= skip]
    kept = split.kept_positions(skip)
    assert kept.tolist() == expected
    assert kept.dtype == np.int64
