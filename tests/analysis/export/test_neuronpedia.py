"""Neuronpedia's layout: every row of one latent by hand, and what its importer asks of a file."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.export import neuronpedia
from analysis.export.formats import export
from analysis.export.neuronpedia_rows import Options, Source
from sae.errors import ConfigError

BOT = "clkht01d40000jv08hvalcvly"
KEY = {"modelId": "tiny-gpt", "layer": "1-mlp-out-topk-4", "index": "0"}


def read(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.split("\n") if line]


@pytest.fixture(scope="module")
def out(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "np"
    export(run, out, "neuronpedia")
    return out


@pytest.fixture(scope="module")
def source(out) -> Path:
    return out / "tiny-gpt" / "1-mlp-out-topk-4"


def test_the_files_are_those_that_the_importer_looks_for(out):
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    tables = {"release.jsonl", "model.jsonl", "sourceset.jsonl", "source.jsonl"}
    batches = {f"{name}/batch-0.jsonl.gz" for name in ("features", "activations", "explanations")}
    kinds = (
        "explanation_model_type",
        "explanation_type",
        "explanation_score_model",
        "explanation_score_type",
        "eval_type",
    )
    assert names == {
        "sae_export.json",
        *(f"tiny-gpt/1-mlp-out-topk-4/{name}" for name in tables | batches),
        *(f"config/{name}.jsonl" for name in kinds),
    }


def test_a_feature(source, results):
    rows = read(source / "features" / "batch-0.jsonl.gz")
    assert [row["index"] for row in rows] == ["0", "1", "2", "3"]
    (latent,) = results.latents(0, 1, ())
    words = {"pos": latent.row["promoted_logits"], "neg": latent.row["suppressed_logits"]}
    for side, logits in words.items():
        assert rows[0].pop(f"{side}_values") == pytest.approx(logits, rel=1e-4)
    assert rows[0] == {
        **KEY,
        "sourceSetName": "mlp-out-topk-4",
        "creatorId": BOT,
        "maxActApprox": 8.0,
        "frac_nonzero": 0.23529,  # 4 of 17
        "pos_str": ["\n", " dog"],
        "neg_str": [" cat", "the"],
        # 1, 2, 4 and 8, in 20 bins up to 8
        "freq_hist_data_bar_heights": [1 if i in (2, 5, 10, 19) else 0 for i in range(20)],
        "freq_hist_data_bar_values": [round(0.2 + 0.4 * i, 1) for i in range(20)],
        "topkCosSimIndices": [1, 3],
        "topkCosSimValues": [0.4, 0.4],  # (1, ½) and its neighbours by one place
    }


def test_a_dead_latent_is_there_and_says_so(source):
    dead = read(source / "features" / "batch-0.jsonl.gz")[2]
    assert (dead["frac_nonzero"], dead["maxActApprox"], dead["freq_hist_data_bar_heights"]) == (0, 0, [])
    assert "2" not in {row["index"] for row in read(source / "activations" / "batch-0.jsonl.gz")}


def test_activations(source):
    rows = read(source / "activations" / "batch-0.jsonl.gz")
    own = [row for row in rows if row["index"] == "0"]
    assert [(row["dataIndex"], row["binMin"], row["binMax"], row["binContains"]) for row in own] == [
        ("train:12", -1, 8, -1),
        ("train:1", -1, 8, -1),
        ("train:7", 0.8, 2.4, 0.11765),  # 10 to 30 % of 8: two of 17 tokens
        ("train:14", 0.8, 2.4, 0.11765),
    ]
    assert len({row["id"] for row in rows}) == len(rows) == 9
    last = own[3]
    assert len(last.pop("id")) == 25
    assert last == {
        **KEY,
        "creatorId": BOT,
        "tokens": ["the", " dog", "the", " dog"],
        "values": [0, 8, 0, 1],
        "maxValue": 8,
        "maxValueTokenIndex": 1,
        "minValue": 0,
        "binMin": 0.8,
        "binMax": 2.4,
        "binContains": 0.11765,
        "qualifyingTokenIndex": 3,
        "dataIndex": "train:14",
        "dataSource": "books: Title 1",
    }
    assert {row["dataIndex"] for row in rows if row["index"] == "1"} == {"train:9", "train:4", "train:18"}


def test_the_share_of_an_interval_is_of_the_kept_tokens(results):
    box = results.box("index")
    results._boxes["index"] = replace(box, facts={**box.facts, "n_kept": 8, "n_tokens": 800})
    (latent,) = results.latents(0, 1, ("interval",))
    row = Source(results, Options(), results.groups[0], 1).activation(latent, latent.examples[0])
    assert row["binContains"] == 0.25  # two of eight


def test_explanations_are_of_labelled_latents(source, out):
    rows = read(source / "explanations" / "batch-0.jsonl.gz")
    assert [row["index"] for row in rows] == ["0", "3"]
    assert len(rows[0].pop("id")) == 25
    assert rows[0] == {
        **KEY,
        "description": "Fires on “dog”.",
        "authorId": BOT,
        "typeName": "sae-atlas_rule",
        "notes": "F1 0.60 (0.41 to 0.80) on held-out text; best single token 0.30",
    }
    (kind,) = read(out / "config" / "explanation_type.jsonl")
    assert (kind["name"], kind["creatorId"]) == ("sae-atlas_rule", BOT)
    assert (out / "config" / "eval_type.jsonl").read_bytes() == b""


def test_tables_refer_to_one_another(source):
    (release,), (model,), (source_set,), (own,) = (
        read(source / f"{name}.jsonl") for name in ("release", "model", "sourceset", "source")
    )
    assert release["name"] == source_set["releaseName"] == "sae-atlas"
    assert model["id"] == source_set["modelId"] == own["modelId"] == "tiny-gpt"
    assert source_set["name"] == own["setName"] == "mlp-out-topk-4"
    assert own["id"] == "1-mlp-out-topk-4"
    assert (own["dataset"], own["num_tokens_in_prompt"]) == ("embedded", 8)
    assert own["notes"] == "Statistics of 17 tokens, made by sae-atlas."
    assert {row["creatorId"] for row in (release, model, source_set, own)} == {BOT}
    for row in (release, model, source_set, own):
        assert not {"createdAt", "updatedAt"} & row.keys(), "a time would differ each time"


def test_batches_have_the_same_columns_in_all_lines_and_none_is_empty(run, tmp_path, monkeypatch):
    """The importer takes columns from the first line, and fails at a file without one."""
    monkeypatch.setattr(neuronpedia, "BATCH", 1)
    export(run, tmp_path / "np", "neuronpedia")
    source = tmp_path / "np" / "tiny-gpt" / "1-mlp-out-topk-4"
    files = {name: sorted(path.name for path in (source / name).iterdir()) for name in ("features", "activations")}
    assert files["features"] == [f"batch-{i}.jsonl.gz" for i in range(4)]
    assert files["activations"] == [f"batch-{i}.jsonl.gz" for i in (0, 1, 3)]
    for path in source.rglob("*.gz"):
        assert len({tuple(row) for row in read(path)}) == 1


def test_a_cross_layer_transcoder_is_a_source_a_layer(layered, tmp_path):
    export(layered, tmp_path / "np", "neuronpedia", {"release": "clt", "source_set": "clt-4"})
    folders = sorted(path.name for path in (tmp_path / "np" / "tiny").iterdir())
    assert folders == ["0-clt-4", "1-clt-4"]
    second = tmp_path / "np" / "tiny" / "1-clt-4"
    features = read(second / "features" / "batch-0.jsonl.gz")
    assert [(row["index"], row["maxActApprox"]) for row in features] == [("0", 0), ("1", 1)]
    assert features[1]["topkCosSimIndices"] == [0], "neighbours in another layer are in another source"
    (label,) = read(second / "explanations" / "batch-0.jsonl.gz")
    assert (label["index"], label["description"]) == ("1", "Fires after “dog”.")


def test_what_things_are_called(run, tmp_path):
    settings = {"model": "gpt2-small", "layer": "5", "creator_id": "abc", "url": "https://x.org", "layers": "12"}
    export(run, tmp_path / "np", "neuronpedia", settings)
    source = tmp_path / "np" / "gpt2-small" / "5-mlp-out-topk-4"
    (release,), (model,) = read(source / "release.jsonl"), read(source / "model.jsonl")
    assert (release["urls"], release["creatorId"], model["layers"]) == (["https://x.org"], "abc", 12)
    with pytest.raises(ConfigError, match=r"neuronpedia\.source_set = 'a/b': string should match"):
        export(run, tmp_path / "other", "neuronpedia", {"source_set": "a/b"})
    assert not (tmp_path / "other").exists()
