"""The text that a dictionary is measured on: which contexts, whose documents, and what is said of too little text."""

import numpy as np
import pytest

from analysis.quality import sample as module
from analysis.quality.sample import sample
from sae.tokens import TokenSplit


def split_of(documents: list[int], context: int) -> TokenSplit:
    """Documents of these lengths, packed into contexts; token i has id i."""
    n = sum(documents)
    starts = np.append(np.arange(0, n, context), n)
    return TokenSplit("test", np.arange(n, dtype=np.uint16), np.append(0, np.cumsum(documents)), starts, {})


def test_all_of_a_short_text_and_it_is_said():
    text = split_of([3, 5, 4], 4)
    found = sample(text, 1, 1_000_000)
    assert found.split.tokens.tolist() == list(range(12))
    assert found.bounds == [(0, 9)], "three rows of each context"
    assert found.split.document_starts.tolist() == [0, 3, 8, 12]
    assert found.split.context_starts.tolist() == [0, 4, 8, 12]
    assert found.documents.tolist() == [0] * 3 + [1] * 5 + [2] * 4
    assert found.describe() == "12 held-out tokens of 3 documents: all that there are; 1,000,000 were asked for"
    assert found.facts()["tokens_there"] == 12


def test_some_contexts_of_a_long_text():
    text = split_of([7] * 100, 10)
    found = sample(text, 2, 205)
    assert found.n_tokens == 200, "twenty contexts, no more than were asked for"
    contexts = found.split.tokens.reshape(20, 10)
    assert (np.diff(contexts, axis=1) == 1).all(), "whole contexts"
    assert (contexts[:, 0] % 10 == 0).all()
    assert contexts[-1, 0] > 400 > contexts[0, 0] + 200, "from all over the text"
    rows = np.concatenate([np.arange(start, stop) for start, stop in found.bounds])
    kept = found.split.tokens[found.split.kept_positions(2)]
    assert (rows == kept // 10 * 8 + kept % 10 - 2).all(), "rows are those of the positions"
    assert (found.documents == found.split.tokens // 7).all()
    whole = sample(text, 2, 699)
    assert (whole.n_tokens, whole.describe()) == (690, "690 held-out tokens of 99 documents")


def test_the_rest_of_a_document_begins_anew_where_some_of_it_is_missing():
    text = split_of([100, 20], 10)
    found = sample(text, 0, 60)
    at = found.split.document_starts[1:-1]
    before, after = found.split.tokens[at - 1].astype(int), found.split.tokens[at].astype(int)
    assert ((after - before > 1) | (after == 100)).all()
    gaps = np.flatnonzero(np.diff(found.split.tokens.astype(int)) > 1) + 1
    assert set(gaps) <= set(found.split.document_starts.tolist())


def test_at_least_one_context():
    assert sample(split_of([30], 10), 1, 1).n_tokens == 10


def test_few_documents_are_no_units_to_draw():
    found = sample(split_of([500, 500], 10), 1, 10_000)
    assert (found.unit, found.n_groups) == ("contexts", 100)
    assert found.groups.tolist() == np.repeat(np.arange(100), 10).tolist()
    found = sample(split_of([50] * 20, 10), 1, 10_000)
    assert (found.unit, found.n_groups) == ("documents", 20)


def test_many_documents_are_drawn_a_few_together(monkeypatch):
    monkeypatch.setattr(module, "MOST_GROUPS", 30)
    found = sample(split_of([5] * 100, 10), 1, 10_000)
    assert found.n_groups == 30
    assert (np.diff(found.groups) >= 0).all()
    together = {
        document: group for document, group in zip(found.documents.tolist(), found.groups.tolist(), strict=True)
    }
    assert len(together) == 100
    assert np.bincount(list(together.values())).tolist() == pytest.approx([3.33] * 30, abs=0.7)
