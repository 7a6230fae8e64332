"""The tables as a folder that stands alone."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.export import parquet
from analysis.export.formats import export


@pytest.fixture(scope="module")
def out(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "tables"
    export(run, out, "parquet")
    return out


def test_tables_are_those_of_the_run(run, out):
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "examples.parquet", "labels.parquet", "latents.parquet", "sae_export.json", "tokens.parquet"),
    ]
    for box, name in (("index", "latents"), ("index", "tokens"), ("labels", "labels")):
        assert (out / f"{name}.parquet").read_bytes() == (run / box / f"{name}.parquet").read_bytes()
    ours, theirs = pq.read_table(out / "examples.parquet"), pq.read_table(run / "index" / "examples.parquet")
    assert ours.select(theirs.column_names).equals(theirs)


def test_examples_bring_their_tokens_and_documents(out):
    examples = pq.read_table(out / "examples.parquet").to_pylist()
    texts = pq.read_table(out / "tokens.parquet")["text"].to_pylist()
    first = examples[0]
    assert (first["latent"], first["position"], first["kind"]) == (0, 12, "top")
    assert [texts[token] for token in first["tokens"]] == [" cat", " “sat”", "the", " dog"]
    assert (first["document"], first["source"], first["title"]) == ("d1", "books", "Title 1")
    for example in examples:
        assert len(example["tokens"]) == len(example["values"]) == example["stop"] - example["start"]
        assert example["document"] == ("d0" if example["position"] < 11 else "d1")


def test_the_readme_has_every_column(out):
    text = (out / "README.md").read_text()
    assert text.startswith("# Features of org/Tiny_GPT, mlp_out.1\n\n4 latents of a dictionary (topk), from 17 tokens;")
    for name in ("latents", "examples", "tokens", "labels"):
        section = text.split(f"## {name}.parquet")[1].split("\n## ")[0]
        meanings = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
        schema = pq.read_schema(out / f"{name}.parquet")
        assert list(meanings) == schema.names
        assert all(meanings.values())
        if name == "labels":
            scores = text.split("## Scores")[1]
            assert re.findall(r"^\| `(\w+)` \| .+ \|$", scores, re.MULTILINE) == [
                field.name for field in schema.field("scores").type
            ]


def test_examples_are_written_a_few_at_a_time(run, out, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS", 4)
    export(run, tmp_path / "tables", "parquet")
    few = pq.read_table(tmp_path / "tables" / "examples.parquet")
    assert few.equals(pq.read_table(out / "examples.parquet"))
    assert few.schema.field("tokens").type == pa.list_(pa.int32())
