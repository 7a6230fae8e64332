"""Text: every kind of source gives documents, and a text is always on the same side of a split."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae.config import DataConfig
from sae.errors import DataError
from sae.text import SPLITS, Document, documents, hashed_split, source_digest

HELD_OUT = (0.10, 0.04, 0.06)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What `datasets` keeps goes into the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def texts(**choices) -> list[str]:
    return [document.text for document in documents(DataConfig(**choices))]


def refusal(**choices) -> str:
    with pytest.raises(DataError) as caught:
        list(documents(DataConfig(**choices)))
    return str(caught.value)


def jsonl(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


# --- sources ---


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("One line.\n\nAnother, after an empty one.\n")
    (document,) = documents(DataConfig(source=str(tmp_path / "a.txt")))
    assert document == Document(
        id="0",
        source="a.txt",
        title="",
        text="One line.\n\nAnother, after an empty one.\n",
        split=hashed_split("One line.\n\nAnother, after an empty one.\n", HELD_OUT),
    )


def test_a_folder_gives_its_files_in_order_of_name(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    assert texts(source=str(tmp_path)) == ["text a", "text b", "text c"]


def test_jsonl_columns_fill_the_document(tmp_path):
    records = [
        {"id": 7, "source": "web", "title": "T", "body": "first", "fold": "test"},
        {"id": 8, "source": "web", "title": "U", "body": "second", "fold": "train"},
    ]
    cfg = DataConfig(source=jsonl(tmp_path / "a.jsonl", records), text_column="body", split_column="fold")
    assert list(documents(cfg)) == [
        Document("7", "web", "T", "first", "test"),
        Document("8", "web", "U", "second", "train"),
    ]


def test_parquet_is_read(tmp_path):
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    assert texts(source=str(tmp_path / "a.parquet")) == ["one", "two"]


def test_documents_without_text_are_left_out_and_not_counted(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"text": t} for t in ("", "one", " \n", None, "two", "three")])
    found = list(documents(DataConfig(source=source, max_documents=2)))
    assert [(d.id, d.text) for d in found] == [("1", "one"), ("4", "two")], "an id is the number of the record"


def test_the_embedded_text_has_its_splits():
    found = list(documents(DataConfig(source="embedded", max_documents=200)))
    assert len(found) == 200
    assert {document.split for document in found} <= set(SPLITS)


# --- what is refused ---


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"body": "x", "id": 1}])
    assert refusal(source=source) == f"data.text_column = 'text': {source} has the columns body, id"


def test_a_column_of_numbers_is_no_text(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"text": 5}])
    assert refusal(source=source) == "data.text_column = 'text': holds 5, must hold text"


@pytest.mark.parametrize("records", [[{"text": "x", "fold": "dev"}], [{"text": "x", "fold": None}]])
def test_a_wrong_split_is_named(tmp_path, records):
    source, value = jsonl(tmp_path / "a.jsonl", records), records[0]["fold"]
    message = refusal(source=source, split_column="fold")
    assert message == f"data.split_column = 'fold': holds {value!r}, must be one of train, fit, select, test"


def test_a_missing_split_column_is_named(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    message = refusal(source=source, split_column="fold")
    assert message == "data.split_column = 'fold': holds None, must be one of train, fit, select, test"


def test_a_source_without_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("  \n")
    source = str(tmp_path / "a.txt")
    assert refusal(source=source) == f"data.source = {source!r}: no document with text in it"


def test_a_missing_file_is_refused(tmp_path):
    source = str(tmp_path / "none.jsonl")
    assert refusal(source=source) == f"data.source = {source!r}: no such file"


def test_other_kinds_and_mixtures_of_files_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    kinds = "must hold files of one kind: .json, .jsonl, .parquet, .txt"
    assert refusal(source=str(tmp_path / "a.csv")) == f"data.source = {str(tmp_path / 'a.csv')!r}: {kinds}"
    assert refusal(source=str(tmp_path)) == f"data.source = {str(tmp_path)!r}: {kinds}", "no file it can read"
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    assert refusal(source=str(tmp_path)) == f"data.source = {str(tmp_path)!r}: {kinds}"


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b'{"text": "x"\n'), ("a.parquet", b"PAR1 not really")])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    source = str(tmp_path / name)
    assert refusal(source=source).startswith(f"data.source = {source!r}: cannot be read: ")


def test_a_name_that_is_nowhere_is_refused():
    message = refusal(source="no-such-owner/no-such-dataset")
    assert message.startswith(
        "data.source = 'no-such-owner/no-such-dataset': no such file or folder here, and the hub answered: "
    )


# --- splits ---


def test_shares_of_splits_are_those_asked_for():
    counts = Counter(hashed_split(f"text {i}", HELD_OUT) for i in range(20_000))
    # standard deviation of a share of 0.1 over 20,000 texts: 0.0021
    for name, share in zip(SPLITS[1:], HELD_OUT, strict=True):
        assert counts[name] / 20_000 == pytest.approx(share, abs=0.01)
    assert counts["train"] / 20_000 == pytest.approx(0.80, abs=0.012)


def test_split_of_a_known_text():
    # SHA-256 of "abc" begins ba7816bf8f01cfea: as a share of 2^64 it is 0.728...
    assert hashed_split("abc", (0.7, 0.0, 0.0)) == "train"
    assert hashed_split("abc", (0.73, 0.0, 0.0)) == "fit"
    assert hashed_split("abc", (0.7, 0.03, 0.0)) == "select"
    assert hashed_split("abc", (0.7, 0.0, 0.03)) == "test"


@given(st.text(), st.tuples(*[st.floats(0, 0.3)] * 3))
def test_split_is_a_function_of_the_text(text, held_out):
    assert hashed_split(text, held_out) == hashed_split(text, held_out) in SPLITS


def test_copies_of_a_text_stand_on_one_side(tmp_path):
    records = [{"id": i, "text": f"text {i % 50}"} for i in range(150)]
    found = list(documents(DataConfig(source=jsonl(tmp_path / "a.jsonl", records), held_out=(0.3, 0.2, 0.2))))
    sides = {}
    for document in found:
        assert sides.setdefault(document.text, document.split) == document.split
    assert len(set(sides.values())) == 4, "the example reaches every split"


# --- digest ---


def test_digest_follows_the_bytes_of_local_files(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    before = source_digest(DataConfig(source=str(tmp_path)))
    assert before == source_digest(DataConfig(source=str(tmp_path), context=8)), "and nothing else"
    (tmp_path / "a.txt").write_text("y")
    changed = source_digest(DataConfig(source=str(tmp_path)))
    (tmp_path / "b.txt").write_text("x")
    more = source_digest(DataConfig(source=str(tmp_path)))
    assert len({before, changed, more}) == 3
    assert source_digest(DataConfig(source="some/dataset")) == "hub:some/dataset"
