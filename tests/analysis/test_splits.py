from itertools import pairwise

import numpy as np
import pytest

from analysis.codes import Codes
from analysis.config import LabelConfig
from analysis.label.fit import labels
from analysis.splits import FitView, SelectView, TestView, View, check_disjoint, token_strings
from sae.errors import DataError, StoreError
from sae.tokens import TokenSplit

SPLIT = TokenSplit("fit", np.array([5, 6, 7, 8, 9], np.uint16), np.array([0, 2, 5]), np.array([0, 3, 5]), {})
CODES = Codes(np.array([0, 3, 4]), np.array([0, 1, 4, 3], np.int32), np.array([1, 2, 3, 4], np.float32))
STRINGS = tuple(map(str, range(10)))


def test_a_view_leaves_out_the_first_positions_of_each_context():
    view = FitView.of(SPLIT, CODES, STRINGS, skip_positions=1)
    assert view.offsets.tolist() == [0, 1, 2, 0, 1]
    assert view.valid.tolist() == [False, True, True, False, True]
    assert view.documents.tolist() == [0, 0, 1, 1, 1]
    positions, values = view.firing(0)
    assert positions.tolist() == [1, 4]
    assert values.tolist() == [2, 3]
    assert len(view.firing(1)[0]) == 0
    assert (view.n_documents, view.n_latents) == (2, 2)


def test_a_view_has_what_was_encoded():
    view = FitView.of(SPLIT, CODES, STRINGS, skip_positions=1, encoded=np.array([1, 2]))
    assert view.valid.tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("cls", [SelectView, TestView, View])
def test_a_view_refuses_the_tokens_of_another_split(cls):
    with pytest.raises(StoreError, match=f"the fit split as {cls.__name__}: must be FitView"):
        cls.of(SPLIT, CODES, STRINGS, skip_positions=1)


def test_a_view_holds_its_own_split_only():
    view = FitView.of(SPLIT, CODES, STRINGS, skip_positions=1)
    assert not any(isinstance(value, (TokenSplit, View)) for value in vars(view).values())


def test_labels_take_each_split_in_its_place(town):
    fit, select, test = town(lambda tokens: [tokens == 1])
    for wrong in ((test, select, fit), (fit, fit, test), (fit, select, select), (fit, test, select)):
        with pytest.raises(TypeError):
            labels(*wrong, LabelConfig())


def test_strings_of_a_byte_level_vocabulary():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    # "\u00c3\u00a9" are the two bytes of e acute; \u0120 is a space and \u010a a line break
    vocabulary = {"<|endoftext|>": 0, "\u0120dog": 1, "\u010a": 2, "\u00c3\u00a9": 3, "\u00c3": 4}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<|endoftext|>")
    assert token_strings(tokenizer) == ("<|endoftext|>", " dog", "\n", "\u00e9", "\ufffd")


def test_strings_of_a_sentencepiece_vocabulary():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({"<unk>": 0, "\u2581dog": 1, "ing": 2}, unk_token="<unk>"))
    assert token_strings(PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>")) == ("<unk>", " dog", "ing")


# --- leaks ---


def view_of(kind: type[View], documents: list[list[int]]) -> View:
    starts = np.append(0, np.cumsum([len(document) for document in documents]))
    tokens = np.concatenate([np.array(document, np.uint16) for document in documents])
    split = TokenSplit(kind.__name__.removesuffix("View").lower(), tokens, starts, starts, {})
    none = Codes(np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    return kind.of(split, none, STRINGS, skip_positions=1)


def long(seed: int, n: int = 40) -> list[int]:
    return np.random.default_rng(seed).integers(0, 10, n).tolist()


@pytest.mark.parametrize(("one", "other"), [(FitView, SelectView), (FitView, TestView), (SelectView, TestView)])
def test_a_document_that_labels_are_made_from_is_never_one_that_they_are_scored_on(one, other):
    """A leak is planted: the second document of one split is the third of another."""
    documents = {kind: [long(10 * i + j) for j in range(3)] for i, kind in enumerate((FitView, SelectView, TestView))}
    views = [view_of(kind, own) for kind, own in documents.items()]
    check_disjoint(*views)
    documents[other][2] = documents[one][1]
    leaking = [view_of(kind, own) for kind, own in documents.items()]
    with pytest.raises(DataError) as caught:
        labels(*leaking, LabelConfig())
    names = [kind.__name__.removesuffix("View").lower() for kind in (other, one)]
    assert str(caught.value) == (
        f"document 2 of {names[0]} is document 1 of {names[1]}, token for token: labels would be scored on text that "
        "they were made from; remove one, or let data.held_out divide the text"
    )


def test_a_title_may_stand_in_two_splits_and_a_text_twice_in_one():
    title = long(0, 16)
    check_disjoint(view_of(FitView, [title, long(1), long(1)]), view_of(TestView, [long(2), title]))


def test_the_documents_of_a_run_are_in_one_split_each(token_store):
    """By their text, whatever the split."""
    texts = {name: token_store.split(name) for name in token_store.splits()}
    seen = {}
    for name, split in texts.items():
        for start, stop in pairwise(split.document_starts.tolist()):
            assert seen.setdefault(tuple(split.tokens[start:stop].tolist()), name) == name
    assert len(seen) > 10
