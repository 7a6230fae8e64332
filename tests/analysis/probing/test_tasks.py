"""Questions that a text answers itself: by hand on a few tokens, and how examples are drawn."""

import numpy as np
import pytest

from analysis.probing.tasks import Examples, rows_of, source_tasks, token_tasks
from analysis.quality.sample import sample
from sae.tokens import TokenSplit

STRINGS = ("<s>", " The", " man", " saw", " Tom", ",", " and", " Ann", ".", ' "', " 12", "ly")
ID = {text: number for number, text in enumerate(STRINGS)}


def split_of(name: str, documents: list[list[str]], context: int) -> TokenSplit:
    tokens = np.array([ID[text] for document in documents for text in document], dtype=np.uint16)
    lengths = [len(document) for document in documents]
    starts = np.append(np.arange(0, len(tokens), context), len(tokens))
    return TokenSplit(name, tokens, np.append(0, np.cumsum(lengths)), starts, {})


#           0      1       2       3       4       5    6       7      8       9      10      11   12
FIRST = ["<s>", " The", " man", " saw", " Tom", ",", " and", " Tom", " saw", ' "', " Ann", ".", ' "']
#            13     14     15      16
SECOND = ["<s>", " 12", " Ann", "."]


@pytest.fixture(scope="module")
def asked():
    fit, test = split_of("fit", [FIRST, SECOND], 17), split_of("test", [FIRST, SECOND], 17)
    every = ("capitalised", "number", "sentence_start", "next_comma", "next_capitalised", "in_quotes", "repeated_name")
    found = token_tasks(every, sample(fit, 1, 100), sample(test, 1, 100), STRINGS, 1)
    return {task.name: task.fit for task in found}


def answers(examples: Examples) -> dict[int, bool]:
    """Position → label; the first position of the context has no row."""
    return {row + 1: label for row, label in zip(examples.starts.tolist(), examples.labels.tolist(), strict=True)}


def true(examples: Examples) -> list[int]:
    return [position for position, label in answers(examples).items() if label]


def test_what_a_token_is(asked):
    assert sorted(answers(asked["capitalised"])) == [1, 2, 3, 4, 6, 7, 8, 10, 15], "beginnings of words"
    assert true(asked["capitalised"]) == [1, 4, 7, 10, 15]
    assert true(asked["number"]) == [14]
    assert len(answers(asked["number"])) == 16


def test_what_comes_next(asked):
    assert true(asked["next_comma"]) == [4]
    assert true(asked["next_capitalised"]) == [3, 6, 9, 14]
    assert 12 not in answers(asked["next_comma"]), "the next token is of another document"
    assert 16 not in answers(asked["next_comma"]), "there is none"


def test_where_a_token_stands(asked):
    assert sorted(answers(asked["sentence_start"])) == [1, 4, 7, 10, 15], "capitalised words"
    assert true(asked["sentence_start"]) == [1], "the first after the document marker"
    assert true(asked["in_quotes"]) == [10, 11, 12]
    assert answers(asked["repeated_name"])[7] and not answers(asked["repeated_name"])[4]
    assert answers(asked["repeated_name"])[15], "in the same context, whatever the document"


def test_stretches_are_rows_of_the_whole_split():
    text = split_of("test", [[" man"] * 40], 4)
    some = sample(text, 1, 12)
    assert some.n_tokens == 12
    rows = rows_of(some)
    assert len(rows) == 9 and len(some.bounds) > 1, "contexts from here and there"
    fit = sample(split_of("fit", [[" man"] * 8], 4), 1, 100)
    task = token_tasks(("number",), fit, some, STRINGS, 1)[0]
    assert task.test.starts.tolist() == rows.tolist()


def test_passages_by_source():
    long, short = [" man"] * 300, [" man"] * 10
    fit = split_of("fit", [long, short, long], 200)
    test = split_of("test", [long, long], 200)
    tasks = source_tasks(sample(fit, 1, 10**6), sample(test, 1, 10**6), [["a", "b", "b"], ["a", "b"]], 1)
    assert [task.name for task in tasks] == ["source=a", "source=b"]
    of = tasks[0].fit
    # contexts at 0, 200, 400, 600, each with a row less: the first document has rows 0:199 and 199:298
    assert list(zip(of.starts.tolist(), of.stops.tolist(), strict=True)) == [
        *((0, 128), (128, 199), (199, 298)),
        *((308, 398), (398, 526), (526, 597)),
    ], "none shorter than sixteen"
    assert of.labels.tolist() == [True] * 3 + [False] * 3
    assert of.groups.tolist() == [0] * 3 + [2] * 3
    assert source_tasks(sample(fit, 1, 10**6), sample(test, 1, 10**6), [["a"] * 3, ["a"] * 2], 1) == []


def test_examples_are_drawn_alike_of_either_class():
    labels = np.arange(1000) % 10 == 0
    every = Examples(np.arange(1000), np.arange(1000) + 1, labels, np.arange(1000) // 50)
    drawn = every.balanced(60, seed=0)
    assert (drawn.labels.sum(), (~drawn.labels).sum()) == (60, 60)
    assert (np.diff(drawn.starts) > 0).all()
    assert set(drawn.groups.tolist()) == set(range(20)), "documents are counted anew, from 0"
    assert every.balanced(60, seed=0).starts.tolist() == drawn.starts.tolist()
    assert every.balanced(60, seed=1).starts.tolist() != drawn.starts.tolist()
    assert every.balanced(10**6, seed=0).n_of_each == 100, "all of the rarer class"
