"""The atlas: what its data files hold, that no text can escape them, and what a browser draws."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from analysis.export.atlas import Atlas, AtlasInput, rounded
from analysis.export.html import export, page, script
from analysis.export.order import exemplary, interesting_first
from sae import tokens
from sae.config import DataConfig
from sae.errors import StoreError
from sae.stage import stage
from sae.text import Document

WORDS = ["the", "dog", "barked", "at", "cat", "?"]
HOSTILE = '</script><img src=x onerror="alert(1)">\u2028\u2029\u202eabc\x00\x07'
DOG = {
    **{"latent": 0, "kind": "top", "stratum": "top", "rank": 0, "split": "fit"},
    **{"position": 1, "value": 2.0, "start": 0, "stop": 4, "values": [0.0, 2.0, 0.1234567, 0.0]},
}
LAST_CAT = {
    **{"latent": 0, "kind": "interval", "stratum": "0-50%", "rank": 0, "split": "fit"},
    **{"position": 7, "value": 0.98, "start": 4, "stop": 8, "values": [0.0, 0.0, 0.0, 0.98]},
}
LABEL = {
    **{"latent": 0, "status": "labelled", "family": "token", "text": f"fires on dog {HOSTILE}"},
    **{"scores": {"f1": 0.8, "recall": 0.7}, "token": {"f1": 0.5}, "token_set": None, "n_test": 12},
    **{"decile_recall": [0.12345, None], "token_text": "“dog”", "beats_token": True},
}
DOES = {
    **{"latent": 0, "status": "labelled", "text": f"Promotes {HOSTILE} (+0.5 nats).", "verb": "promotes"},
    **{"tokens": [1, 2], "kl": 0.0123456, "other_latent": 2, "amount": 1.5, "n_fit": 9, "n_select": 8},
    "removed": {
        **{"n": 12, "nats": 0.51234, "low": 0.4, "high": 0.65, "right": 1.0, "percentile": 0.98765},
        **{"other_label": -0.01, "chance": 0.25},
    },
    "added": None,
}
ABSTAINED = {**dict.fromkeys(DOES), "latent": 2, "status": "abstained", "kl": 0.5, "n_fit": 9, "n_select": 8}
CHROMIUM = shutil.which("chromium")


@pytest.fixture
def store(tmp_path: Path) -> tokens.TokenStore:
    """Split `fit`: document 0 is `the dog barked at the cat` (positions 0-5), document 1 `the cat` (6, 7)."""
    word_level = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    word_level.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_level)
    documents = [
        Document("0", "books", "A dog & a cat", "the dog barked at the cat", "fit"),
        Document("1", "books", HOSTILE, "the cat", "fit"),
        Document("2", "books", "Training", "the dog", "train"),
    ]
    cfg = DataConfig(context=8, bos="none")
    return tokens.TokenStore(stage(tmp_path / "tokens", {}, lambda out: tokens.build(documents, tokenizer, cfg, out)))


def latent(number: int, n_fired: int, **other: Any) -> dict[str, Any]:
    return {
        "latent": number,
        "n_fired": n_fired,
        "density": n_fired / 8,
        "max_value": 2.0 * (n_fired > 0),
        "mean_value": 1.25 * (n_fired > 0),
        "histogram": [0] * 9 + [1] + [0] * 9 + [1] if n_fired else [0] * 20,
        "token_r2": 0.98765 if n_fired else None,
        "promoted_tokens": [2, 3],
        "promoted_logits": [1.23456, 0.5],
        "suppressed_tokens": [4],
        "suppressed_logits": [-0.75],
        "neighbours": [0, 1],
        "neighbour_cosines": [0.5, -0.25],
        "trigger_tokens": [1] if n_fired else [],
        "trigger_counts": [n_fired] if n_fired else [],
        "trigger_rates": [1.0] if n_fired else [],
        "next_tokens": [2] if n_fired else [],
        "next_counts": [1] if n_fired else [],
        "next_lifts": [3.14159] if n_fired else [],
        "cofiring": [2] if n_fired else [],
        "cofiring_rates": [0.12345] if n_fired else [],
        **other,
    }


def atlas(store: tokens.TokenStore, **other: Any) -> AtlasInput:
    """Latent 0 has a label and fires on `dog` (2.0) and on the last `cat` (0.98); 1 is silent, 2 has no label."""
    given = {
        "model": "toy <model>",
        "site": "mlp_out.0",
        "architecture": "TopK",
        "k": 2,
        "n_tokens": 8,
        "latents": pa.Table.from_pylist([latent(2, 1), latent(0, 2), latent(1, 0)]),
        "examples": pa.Table.from_pylist([LAST_CAT, DOG, {**DOG, "kind": "quantile", "stratum": "q90-100%"}]),
        "labels": pa.Table.from_pylist([LABEL]),
        "effects": pa.Table.from_pylist([ABSTAINED, DOES]),
        "tokens": store,
        "token_strings": ["the", " dog", HOSTILE, "\n", " cat", "?"],
        "summary": {"fvu": 0.123456, "l0": 2.0, "n_by_status": {"labelled": 1}},
        "provenance": {"Corpus": "public <domain>"},
    }
    return AtlasInput(**{**given, **other})


def read(path: Path) -> list[Any]:
    """The JSON arguments of the call in a data file."""
    _, _, rest = path.read_text(encoding="ascii").partition("(")
    return json.loads(f"[{rest.removesuffix(');' + chr(10))}]")


def test_export_writes_a_page_an_index_and_chunks(store, tmp_path):
    facts = export(atlas(store), tmp_path / "html")
    files = [path for path in (tmp_path / "html").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["index.html", "index.js", "latents-000.js"]
    n_bytes = sum(path.stat().st_size for path in files)
    assert facts == {"n_latents": 3, "n_examples": 2, "n_files": 3, "n_bytes": n_bytes}


def test_the_index_reads_back(store, tmp_path):
    export(atlas(store), tmp_path)
    [index] = read(tmp_path / "data/index.js")
    columns = index["columns"]
    assert columns["latent"] == [0, 1, 2]
    assert columns["n_fired"] == [2, 0, 1]
    assert columns["density"] == [0.25, 0, 0.125]
    assert columns["token_r2"] == [0.988, None, 0.988]
    assert columns["text"] == [f"fires on dog {HOSTILE}", "", ""]
    assert [index["statuses"][code] for code in columns["status"]] == ["labelled", "silent", "unlabelled"]
    assert columns["family"] == [0, -1, -1]
    assert columns["f1"] == [0.8, None, None]
    assert columns["does"] == [DOES["text"], "", ""]
    assert index["tokens"] == ["the", " dog", HOSTILE, "\n", " cat", "?"]
    assert index["order"] == [0, 2, 1]
    assert {name: value for name, value in index["summary"].items() if value is not None} == {"fvu": 0.123, "l0": 2}


def test_a_chunk_reads_back(store, tmp_path):
    export(atlas(store), tmp_path)
    number, chunk = read(tmp_path / "data/latents-000.js")
    first = chunk["latents"][0]
    assert (number, [details["latent"] for details in chunk["latents"]]) == (0, [0, 1, 2])
    assert {name: value for name, value in first["scores"].items() if value is not None} == {
        **{"f1": 0.8, "recall": 0.7, "token_f1": 0.5, "n_test": 12},
        **{"decile_recall": [0.123, None], "token_text": "“dog”", "beats_token": True},
    }
    removed = {**DOES["removed"], "nats": 0.512, "percentile": 0.988, "right": 1}
    known = {name: value for name, value in DOES.items() if name != "latent"}
    assert first["does"] == {**known, "kl": 0.0123, "removed": removed}
    assert (chunk["latents"][1]["does"], chunk["latents"][2]["does"]["status"]) == ({}, "abstained")
    assert first["examples"]["position"] == [1, 7], "tenths by rank are in the index only"
    assert first["promoted"] == [[2, 3], [1.23, 0.5]]
    assert first["triggers"] == [[1], [2], [1]]
    assert (first["next"], first["cofiring"]) == ([[2], [1], [3.14]], [[2], [0.123]])
    # bin 9 of 20 is below half of the maximum: one of two firings
    assert first["strata"] == [{"name": "top", "n": 1}, {"name": "0-50%", "n": 1, "low": 0, "high": 0.5, "share": 0.5}]
    assert chunk["documents"] == [["fit", "books", "A dog & a cat", 6], ["fit", "books", HOSTILE, 2]]
    assert first["examples"] == {
        "document": [0, 1],
        "position": [1, 7],
        "offset": [1, 1],
        "at": [1, 3],
        "value": [2, 0.98],
        "tokens": [[0, 1, 2, 3], [0, 4, 0, 4]],
        "where": [[1, 2], [3]],
        "values": [[2, 0.123], [0.98]],
    }


def test_no_text_can_end_a_script(store, tmp_path):
    export(atlas(store), tmp_path)
    for path in (tmp_path / "data").iterdir():
        content = path.read_bytes()
        assert b"<" not in content
        assert content.isascii()
        assert not set(content[:-1]) & set(range(32))
    assert "<title>Feature atlas: toy &lt;model&gt;, mlp_out.0</title>" in (tmp_path / "index.html").read_text()


def test_script_escapes_what_json_leaves():
    assert script("f", 1, "</x>\u2028") == 'f(1,"\\u003c/x>\\u2028");\n'


def test_the_page_neither_fetches_nor_writes_markup():
    text = page("m", "s")
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "fetch(", "eval(", "{{"):
        assert forbidden not in text
    assert [line for line in text.split('"') if "//" in line and line.startswith("http")] == [
        "http://www.w3.org/2000/svg"
    ]


def test_equal_inputs_give_equal_bytes(store, tmp_path):
    for name in ("a", "b"):
        export(atlas(store), tmp_path / name)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_scores_may_be_missing_or_null(store, tmp_path):
    struct = pa.nulls(2, pa.struct([("f1", pa.float64())]))
    labels = pa.table({"latent": [0, 2], "status": ["abstained", "rare"], "scores": struct})
    export(atlas(store, labels=labels, summary={}, k=None), tmp_path)
    [index] = read(tmp_path / "data/index.js")
    assert index["exemplars"] == []
    assert set(index["summary"].values()) == {None}
    assert index["columns"]["f1"] == [None, None, None]
    _, chunk = read(tmp_path / "data/latents-000.js")
    assert set(chunk["latents"][0]["scores"].values()) == {None}


def test_chunks_hold_64_latents(store):
    latents = pa.Table.from_pylist([latent(number, 1) for number in range(65)])
    joined = Atlas(atlas(store, latents=latents))
    assert joined.n_chunks == 2
    assert [details["latent"] for details in joined.chunk(1)["latents"]] == [64]


def test_effects_may_not_have_been_measured(store):
    joined = Atlas(atlas(store, effects=None))
    assert joined.index()["columns"]["does"] == ["", "", ""]
    assert [details["does"] for details in joined.chunk(0)["latents"]] == [{}, {}, {}]
    with pytest.raises(StoreError, match=r"^effects/effects.parquet: lacks status, text"):
        Atlas(atlas(store, effects=pa.table({"latent": [0]})))


def test_a_missing_column_is_named(store):
    with pytest.raises(StoreError) as error:
        Atlas(atlas(store, labels=pa.table({"latent": [0], "text": ["x"]})))
    assert str(error.value) == "labels/labels.parquet: lacks status; has latent, text"


@pytest.mark.parametrize(
    ("value", "short"),
    [(12.0, 12), (1234.5, 1230), (0.00123456, 0.00123), (123456789, 123456789), (float("nan"), None), (None, None)],
)
def test_rounded(value, short):
    assert rounded(value) == short


def label(status: str, f1: float | None, token_f1: float | None, family: str = "", text: str = "") -> dict[str, Any]:
    return {"status": status, "f1": f1, "token_f1": token_f1, "family": family, "text": text}


def test_the_order_puts_a_wide_margin_at_moderate_density_first():
    latents = [{"density": density} for density in (1e-3, 1e-3, 0.5, 1e-3, 0.0)]
    labels = [
        label("labelled", 0.9, 0.9),  # margin 0.0
        label("labelled", 0.7, 0.3),  # margin 0.4
        label("labelled", 0.9, 0.5),  # margin 0.4, but fires on half of all tokens: 0.4 - 0.25
        label("abstained", None, None),
        label("silent", None, None),
    ]
    assert interesting_first(latents, labels) == [1, 2, 0, 3, 4]


def test_exemplars_differ_in_text_and_first_in_family():
    labels = [
        label("labelled", 0.9, 0.1, "token", "a"),
        label("labelled", 0.8, 0.1, "token", "a"),  # same text as 0
        label("labelled", 0.7, 0.1, "token", "b"),
        label("labelled", 0.6, 0.1, "topic", "c"),
        label("labelled", 0.5, 0.1, "form", "d"),  # has no example
        label("abstained", None, None),
    ]
    assert exemplary(range(6), labels, [True, True, True, True, False, True]) == [0, 3, 2]


def dump_dom(address: str, profile: Path) -> str:
    quiet = (
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-quic",
    )
    flags = [f"--{flag}" for flag in ("headless", "no-sandbox", "disable-gpu", *quiet, "virtual-time-budget=4000")]
    command = [str(CHROMIUM), *flags, f"--user-data-dir={profile}", "--dump-dom", address]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_index(store, tmp_path):
    export(atlas(store), tmp_path / "html")
    address = (tmp_path / "html" / "index.html").as_uri()
    home = dump_dom(address, tmp_path / "profile")
    assert "2 of 3 features, most instructive first." in home  # the silent one is hidden
    assert home.count('<td class="latent">') == 2
    assert 'fires on dog &lt;/script&gt;&lt;img src=x onerror="alert(1)"&gt;⟨2028⟩⟨2029⟩⟨202E⟩abc␀␇' in home
    assert "<img" not in home.split("<script>")[0]
    everything = dump_dom(f"{address}#/?hide=&sort=density", tmp_path / "profile")
    assert "3 of 3 features, by Density, low to high." in everything
    assert re.findall(r'<td class="latent">(\d+)', everything) == ["1", "2", "0"]
    found = dump_dom(f"{address}#/?q=DOG+2", tmp_path / "profile")  # a trigger token and a number
    assert re.findall(r'<td class="latent">(\d+)', found) == ["2"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_a_feature(store, tmp_path):
    export(atlas(store), tmp_path / "html")
    address = (tmp_path / "html" / "index.html").as_uri()
    feature = dump_dom(f"{address}#/latent/0", tmp_path / "profile")
    assert "Yes, and better than any single token by 0.30." in feature
    assert '<span class="t on at" tabindex="0" style="--a: 1.000;"> dog</span>' in feature
    assert '<span class="t on at" tabindex="0" style="--a: 0.490;"> cat</span>' in feature
    assert "0–50% of the maximum, 50% of its firings" in feature
    assert "In part: one of the two interventions" in feature
    assert '<b class="number">0.51</b>' in feature
    assert "where it fires; right in 100% of 12 places, 95% interval 0.40 to 0.65" in feature
    assert "changes by 0.0123 nats (KL)" in feature
    assert "<img" not in feature.split("<script>")[0]
    abstained = dump_dom(f"{address}#/latent/2", tmp_path / "profile")
    assert "No measurable effect on single tokens" in abstained
    missing = dump_dom(f"{address}#/latent/9", tmp_path / "profile")
    assert "There is no latent 9 in this dictionary." in missing
