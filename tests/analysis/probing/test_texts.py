"""Labelled texts of the user's own: what is read, what is refused, how they become tasks."""

import json
import re

import numpy as np
import pytest

from analysis.probing.texts import Labelled, read, tasks, tokens
from sae.config import DataConfig
from sae.errors import DataError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_and_jsonl_say_the_same(tmp_path):
    table = write(tmp_path / "a.csv", 'text,label,split\n"A cat, on a mat",1,fit\n"A\ndog",0,test\nA bird,1,\n')
    lines = [
        {"text": "A cat, on a mat", "label": 1, "split": "fit"},
        {"text": "A\ndog", "label": "0", "split": "test"},
        {"text": "A bird", "label": "1"},
    ]
    jsonl = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    found = read(table)
    assert found == read(jsonl)
    assert found[:2] == [Labelled("A cat, on a mat", "1", "fit"), Labelled("A\ndog", "0", "test")]
    assert found[2].split in ("fit", "test"), "by its hash"


def test_a_hash_divides_and_equal_texts_stay_together(tmp_path):
    rows = "".join(f"text {i % 500},{i % 2}\n" for i in range(1000))
    found = read(write(tmp_path / "a.csv", "text,label\n" + rows))
    split = {}
    for each in found:
        assert split.setdefault(each.text, each.split) == each.split
    assert 0.15 < sum(value == "test" for value in split.values()) / 500 < 0.25


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,class\nA,1\n", "line 2: has no label; it has text, class"),
        ("a.csv", "text,label\nA,1\n ,2\n", "line 3: text = ' ': must be text"),
        ("a.csv", "text,label,split\nA,1,train\n", "line 2: split = 'train': must be fit or test"),
        ("a.csv", "text,label\nA,1\nB,1\n", "must hold texts of two labels at least"),
        ("a.jsonl", '{"text": "A", "label": 1}\n{"text": \n', "line 2: no JSON"),
        ("a.jsonl", "[1]\n", "line 1: must be an object"),
        ("a.txt", "A\n", "must be a .csv or .jsonl file with text and label"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(DataError, match=f"^analysis.eval.probe_files: {re.escape(str(path))}.*{re.escape(message)}"):
        read(path)


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match=r"gone.csv: No such file or directory$"):
        read(tmp_path / "gone.csv")


def test_tokens_are_contexts_of_their_own(tokenizer):
    texts = [Labelled("The cat sat on the mat.", "1", "fit"), Labelled("A dog", "0", "fit")]
    split = tokens(texts, "fit", tokenizer, DataConfig(context=6))
    alone = tokenizer("The cat sat on the mat.", add_special_tokens=False)["input_ids"]
    assert split.tokens[:6].tolist() == [0, *alone[:5]], "bos, and cut at the context"
    assert split.context_starts.tolist()[:2] == [0, 6]
    assert split.n_contexts == 2
    bare = tokens(texts, "fit", tokenizer, DataConfig(context=6, bos="none"))
    assert bare.tokens[:6].tolist() == alone[:6]


def test_a_task_for_each_label_but_one_of_two(tokenizer):
    texts = [Labelled(f"The cat {i}", "abc"[i % 3], ("fit", "test")[i % 2]) for i in range(12)]
    splits = {
        split: tokens([each for each in texts if each.split == split], split, tokenizer, DataConfig(context=16))
        for split in ("fit", "test")
    }
    found = tasks("animals", texts, splits, skip=1)
    assert [task.name for task in found] == ["animals=a", "animals=b", "animals=c"]
    assert found[1].question == "of texts in animals: b?"
    assert found[0].fit.labels.tolist() == [True, False, False] * 2
    lengths = np.diff(splits["fit"].context_starts) - 1
    assert (found[0].fit.stops - found[0].fit.starts).tolist() == lengths.tolist()
    two = [each for each in texts if each.label != "c"]
    splits = {
        split: tokens([each for each in two if each.split == split], split, tokenizer, DataConfig(context=16))
        for split in ("fit", "test")
    }
    assert [task.name for task in tasks("animals", two, splits, skip=1)] == ["animals=b"]
