"""Questions to a run, against brute force over what its codes say; and how a latent is shown in a terminal."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from analysis.config import IndexConfig, LabelConfig
from analysis.effects import tables as effect_tables
from analysis.effects.record import Effect, EffectRecord
from analysis.export.text import describe
from analysis.index import build as build_module
from analysis.index.build import build as build_index
from analysis.label.fit import labels, write
from analysis.query import Index
from analysis.splits import token_strings
from sae.errors import ConfigError
from sae.stage import stage
from tests.analysis.conftest import view_of
from tests.analysis.stored import stored

N = 5


@pytest.fixture(scope="module")
def firings(token_store) -> list[dict[int, float]]:
    """Latent 0 fires on every `e`, 1 on half of them, 2 on the token after, 3 anywhere, 4 never."""
    split = token_store.split("train")
    kept = set(split.kept_positions(1).tolist())
    rng = np.random.default_rng(0)
    on_e = [p for p in sorted(kept) if split.tokens[p] == frequent(token_store)]
    return [
        {p: 2.0 + p % 7 for p in on_e},
        {p: 1.0 + p % 3 for p in on_e[::2]},
        {p + 1: 1.5 for p in on_e if p + 1 in kept},
        {p: float(rng.integers(1, 9)) for p in sorted(kept) if rng.random() < 0.2},
        {},
    ]


def frequent(token_store) -> int:
    split = token_store.split("train")
    return int(np.bincount(split.tokens[split.kept_positions(1)]).argmax())


@pytest.fixture(scope="module")
def run(tmp_path_factory, firings, token_store, tokenizer, gpt2):
    """A run's folder with all that is asked: two labels are written down."""
    root = tmp_path_factory.mktemp("run")
    (root / "tokens").symlink_to(token_store.box.path)
    split, strings = token_store.split("train"), token_strings(tokenizer)
    directions = torch.randn(N, 16, generator=torch.Generator().manual_seed(0))

    def codes(out):
        made, summary = stored(out, split, firings, skip=1, part_rows=100)
        summary.save(out / "summary.safetensors")
        return {"splits": {"train": {"kept_parts": len(made.parts), "n_tokens": len(split.tokens)}}}

    def index(out):
        made, summary = stored(root / "again", split, firings, skip=1, part_rows=100)
        return build_index(made, summary, directions, gpt2, split, strings, IndexConfig(), out)

    def dictionary(out):
        matrices = {"W_dec": directions.numpy(), "W_enc": directions.flip(0).contiguous().numpy()}
        save_file(matrices, out / "dictionary.safetensors")
        return {}

    for name, build in {"codes": codes, "index": index, "dictionary": dictionary}.items():
        stage(root / name, {}, build)
    stage(root / "labels", {}, lambda out: write(records(), out))
    stage(root / "effects", {}, lambda out: effect_tables.write(effects(), out))
    return root


def effects() -> list[EffectRecord]:
    """One latent does something, whose taking away is known; of one it could not be told, and three abstain."""
    names = ("text", "verb", "tokens", "source", "select_effect", "kl", "other_latent", "removed", "added", "amount")
    found = [EffectRecord(latent=i, status="abstained", n_fit=9, n_select=9, **dict.fromkeys(names)) for i in range(N)]
    removed = Effect(9, 0.8123, 0.5, 1.25, 1.0, 0.99, 0.125, 0.25)
    said = {"text": "Promotes “e” (+0.81 nats).", "verb": "promotes", "tokens": [5], "source": "lens"}
    added = replace(removed, nats=0.375, low=None, high=None, other_label=None, chance=None)
    found[0] = replace(found[0], status="labelled", removed=removed, added=added, **said)
    found[3] = replace(found[3], status="rare")
    return found


def records():
    none = [
        view_of(name, np.arange(2)[:, None] + np.full((2, 96), 2 * i), lambda flat: [np.zeros(len(flat), bool)] * N)
        for i, name in enumerate(("fit", "select", "test"))
    ]
    empty = labels(*none, LabelConfig())
    texts = {0: "Fires on the King’s letter “e”.", 2: "Fires just after kings and queens."}
    return [
        replace(record, text=texts.get(i), status="labelled" if i in texts else record.status)
        for i, record in enumerate(empty)
    ]


@pytest.fixture(scope="module")
def index(run) -> Index:
    return Index(run)


def test_the_view_of_a_latent_has_all_that_is_known_of_it(index, firings, token_store, run):
    split, strings = token_store.split("train"), index.strings
    view = index.view(0)
    assert json.loads(json.dumps(view)) == view, "JSON values"
    assert (view["latent"], view["n_fired"]) == (0, len(firings[0]))
    assert view["label"]["text"] == "Fires on the King’s letter “e”."
    token = frequent(token_store)
    assert (view["does"]["text"], view["does"]["removed"]["nats"]) == ("Promotes “e” (+0.81 nats).", 0.8123)
    assert view["triggers"] == [
        {"token": token, "count": len(firings[0]), "rate": 1.0, "mass": 1.0, "text": strings[token]}
    ]
    assert view["cofiring"][0].items() >= {"latent": 1, "label": None}.items()
    assert {entry["latent"] for entry in view["neighbours"]} == {1, 2, 3, 4}
    assert view["neighbours"][0].keys() == {"latent", "cosine", "label"}
    rows = [row for row in pq.read_table(run / "index" / "examples.parquet").to_pylist() if row["latent"] == 0]
    assert len(view["examples"]) == len(rows) > 8
    for example, row in zip(view["examples"], rows, strict=True):
        assert {name: example[name] for name in row} == row
        ids = split.tokens[row["start"] : row["stop"]]
        assert example["tokens"] == [strings[i] for i in ids]
        document, offset = split.locate(np.array([row["position"]]))
        assert example["document"]["id"] == split.documents["id"][document[0]]
        assert example["document"]["offset"] == offset[0]
    assert not index.view(4)["examples"]


def test_a_run_without_effects_answers_all_else(run, tmp_path):
    for name in ("tokens", "codes", "index", "labels", "dictionary"):
        (tmp_path / name).symlink_to(run / name)
    bare = Index(tmp_path)
    assert bare.view(0)["does"] is None
    assert describe(bare.view(0)).splitlines()[1].startswith("   fires ")
    assert bare.search("king")


def test_rows_are_found_in_whichever_group_they_lie(index, run):
    """Of every latent, and of one whose rows lie in two groups."""
    table = pq.read_table(run / "index" / "examples.parquet")
    pq.write_table(table, run / "again" / "small.parquet", row_group_size=7)
    small = type(index._examples)(run / "again" / "small.parquet")
    for latent in range(N):
        assert small.rows(latent) == [row for row in table.to_pylist() if row["latent"] == latent]


def test_latents_by_token(index, firings, token_store, monkeypatch):
    split = token_store.split("train")
    kept, counts = split.kept_positions(1), [len(own) for own in firings]
    for text in {index.strings[token] for token in split.tokens[kept]} - {"\ufffd"}:  # several tokens show as that
        where = {p for p in kept.tolist() if index.strings[split.tokens[p]] == text}
        hits = {latent: len(where & set(own)) for latent, own in enumerate(firings) if where & set(own)}
        found = index.by_token(text)
        assert {hit["latent"] for hit in found} == set(hits)
        for hit in found:
            n = hits[hit["latent"]]
            assert hit["f1"] == pytest.approx(2 * n / (len(where) + counts[hit["latent"]]))
            assert hit["rate"] == pytest.approx(n / len(where))
            assert hit["share"] == pytest.approx(n / counts[hit["latent"]])
        assert [hit["f1"] for hit in found] == sorted((hit["f1"] for hit in found), reverse=True)
    best = index.by_token(index.strings[frequent(token_store)], k=1)
    assert [(hit["latent"], hit["f1"], hit["label"]) for hit in best] == [(0, 1.0, "Fires on the King’s letter “e”.")]
    monkeypatch.setattr(sys.modules[Index.__module__], "MOST_PLACES", 20)
    for hit in index.by_token(index.strings[frequent(token_store)]):
        assert max(hit["f1"], hit["rate"], hit["share"]) <= 1
    [half] = [hit for hit in index.by_token(index.strings[frequent(token_store)]) if hit["latent"] == 1]
    assert half["rate"] == pytest.approx(0.5, abs=0.2), "of some of its places"


def test_a_token_that_does_not_occur(index, token_store):
    missing = set(range(300)) - set(token_store.split("train").tokens.tolist())
    text = next(index.strings[i] for i in sorted(missing) if index.strings.count(index.strings[i]) == 1)
    assert index.by_token(text) == []


def test_latents_by_the_next_token_that_they_promote(index):
    rows = [index.view(latent) for latent in range(N)]
    text = rows[1]["promoted"][3]["text"]
    expected = {row["latent"]: entry["logit"] for row in rows for entry in row["promoted"] if entry["text"] == text}
    found = index.by_next_token(text)
    assert {hit["latent"]: hit["logit"] for hit in found} == expected
    assert [hit["logit"] for hit in found] == sorted(expected.values(), reverse=True)
    follows = next(entry for entry in rows[0]["followers"])
    lifts = {row["latent"]: e["lift"] for row in rows for e in row["followers"] if e["token"] == follows["token"]}
    for hit in index.by_next_token(follows["text"]):
        assert hit["lift"] == lifts.get(hit["latent"])


@pytest.mark.parametrize(
    ("words", "latents"),
    [
        ("king", [0, 2]),  # kings too: words are compared by their stems
        ("Queens KING", [2]),
        ("lett*", [0]),
        ("lett", []),
        ('letter" or text match "king', []),
        ("“e”", [0]),
        ("nothing", []),
    ],
)
def test_labels_by_their_words(index, words, latents):
    assert sorted(hit["latent"] for hit in index.search(words)) == latents


@pytest.mark.parametrize("by", ["decoder", "encoder"])
def test_nearest_by_cosine(index, by):
    directions = torch.randn(N, 16, generator=torch.Generator().manual_seed(0))
    matrix = directions if by == "decoder" else directions.flip(0)
    cosines = torch.nn.functional.cosine_similarity(matrix, matrix[1], dim=1)
    cosines[1] = -2
    found = index.nearest(1, by, k=3)
    assert [hit["latent"] for hit in found] == cosines.argsort(descending=True)[:3].tolist()
    assert [hit["cosine"] for hit in found] == pytest.approx(cosines.sort(descending=True).values[:3].tolist())


def test_how_two_latents_overlap(index, firings, token_store):
    n = len(token_store.split("train").kept_positions(1))
    for a in range(N):
        for b in range(N):
            x, y = (np.zeros(len(token_store.split("train").tokens)) for _ in range(2))
            x[list(firings[a])], y[list(firings[b])] = list(firings[a].values()), list(firings[b].values())
            kept = token_store.split("train").kept_positions(1)
            both, either = ((x > 0) & (y > 0)).sum(), ((x > 0) | (y > 0)).sum()
            found = index.overlap(a, b)
            assert (found["n_tokens"], found["n_both"]) == (n, both)
            assert (found["n_fired"], found["n_fired_other"]) == (len(firings[a]), len(firings[b]))
            assert found["jaccard"] == pytest.approx(both / max(1, either))
            if both:
                p, q, pq_ = (x > 0).sum() / n, (y > 0).sum() / n, both / n
                assert found["npmi"] == pytest.approx(math.log(pq_ / (p * q)) / -math.log(pq_))
            else:
                assert found["npmi"] is None
            if x.any() and y.any():
                assert found["correlation"] == pytest.approx(np.corrcoef(x[kept], y[kept])[0, 1])
            else:
                assert found["correlation"] is None


def test_sql(index, firings):
    pytest.importorskip("duckdb")
    found = index.sql(
        "select latent, n_fired, text from latents join labels using (latent) order by latent"
    ).to_pylist()
    assert [row["n_fired"] for row in found] == [len(own) for own in firings]
    assert found[2]["text"] == "Fires just after kings and queens."
    assert index.sql("select count(*) as n from tokens").to_pylist() == [{"n": 300}]
    assert index.sql("select latent, removed.nats from effects where verb = 'promotes'").to_pylist() == [
        {"latent": 0, "nats": 0.8123}
    ]
    assert index.sql("select min(value) as least from examples where kind = 'top'").to_pylist()[0]["least"] > 0


def test_without_duckdb(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigError, match=r"^SQL needs DuckDB: pip install 'sae-atlas\[query\]'$"):
        index.sql("select 1")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda i: i.view(5), "latent 5: must be from 0 to 4"),
        (lambda i: i.view(-1), "latent -1: must be from 0 to 4"),
        (lambda i: i.overlap(0, 9), "latent 9: must be from 0 to 4"),
        (lambda i: i.nearest(0, "both"), "by 'both': must be decoder or encoder"),
        (lambda i: i.by_token("zzz"), "token 'zzz': is none of this model's; longer words are several tokens"),
        (lambda i: i.search("?!"), "words '?!': must have a letter or a digit"),
    ],
)
def test_mistakes_are_named(index, ask, message):
    with pytest.raises(ConfigError) as caught:
        ask(index)
    assert str(caught.value) == message


def test_a_token_without_its_space_is_guessed(index):
    text = next(t for t in index.strings if t.startswith(" ") and t.strip() and t.strip() not in index.strings)
    with pytest.raises(ConfigError, match=f"did you mean '{text}'"):
        index.token(text.strip())


def test_sql_mistakes_are_one_line(index):
    pytest.importorskip("duckdb")
    with pytest.raises(ConfigError, match=r'^sql: Parser Error: syntax error at or near "selec"$'):
        index.sql("selec")


def test_sql_that_gives_no_table(index):
    pytest.importorskip("duckdb")
    with pytest.raises(ConfigError, match=r"^sql: '' gives no table; ask with select$"):
        index.sql("")


def test_the_tokens_of_a_member_of_a_sweep_are_those_of_its_run(index, run, tmp_path, monkeypatch):
    member = tmp_path / "sweep" / "k=8"
    member.mkdir(parents=True)
    (tmp_path / "tokens").symlink_to(run / "tokens")
    for name in ("index", "labels", "effects", "codes", "dictionary"):
        (member / name).symlink_to(run / name)
    monkeypatch.chdir(member.parent)
    assert Index(Path("k=8")).view(0) == index.view(0)


def test_latents_none_of_which_fires(tmp_path, token_store, tokenizer, run, monkeypatch):
    """Of a whole block nothing is told, and the others are found."""
    split, none = token_store.split("train"), [{}, {}, {5: 1.0}]
    made, summary = stored(tmp_path / "codes", split, none, skip=1)
    monkeypatch.setattr(build_module, "MOST_LATENTS", 1)
    build_index(made, summary, torch.eye(3, 16), None, split, token_strings(tokenizer), IndexConfig(), tmp_path)
    table = type(Index(run)._examples)(tmp_path / "examples.parquet")
    assert [len(table.rows(latent)) > 0 for latent in range(3)] == [False, False, True]


def test_a_run_that_writes_no_logits_says_so(index, monkeypatch):
    nothing = pa.table({"promoted_tokens": pa.array([[]] * N, pa.list_(pa.int32()))})
    monkeypatch.setattr(index._latents, "columns", lambda *_: nothing)
    with pytest.raises(ConfigError, match="do not write into the residual stream"):
        index.by_next_token(index.strings[5])


# --- in a terminal ---


def test_a_latent_in_a_terminal(index):
    text = describe(index.view(0))
    lines = text.splitlines()
    assert lines[0] == "0: Fires on the King’s letter “e”."
    assert lines[1:4] == [
        "   Promotes “e” (+0.81 nats).",
        "      taken away where it fires: 0.81 nats (0.50 to 1.25); another's label 0.12, random directions 0.25",
        "      added where it is silent: 0.38 nats",
    ]
    assert describe(index.view(1)).splitlines()[1] == "   No measurable effect on single tokens."
    assert describe(index.view(3)).splitlines()[1] == "   Fires too seldom for its effect on the output to be told."
    assert any(line.startswith("   fires on:") and "100%" in line for line in lines)
    assert f"on 1 in {1 / index.view(0)['density']:,.0f} tokens" in text
    assert not any(line.lstrip().startswith("q9") for line in lines), "tenths are not shown"
    assert sum(line.lstrip().startswith("top ") for line in lines) == 8
    assert all("«" in line for line in lines if line.lstrip().startswith(("top ", "70-90%")))
    assert describe({**index.view(4), "does": None}).splitlines() == ["4: silent", "   never fires"]


def test_no_text_commands_the_terminal(index):
    view = index.view(0)
    example = {**view["examples"][0], "tokens": ["a\x1b[2J", " \x07b", "\n", "\u202ec"], "start": 0, "position": 1}
    label = {**view["label"], "text": "on “\x1b[2J\u202e”"}
    hostile = {"examples": [example], "triggers": [{"text": "\x1b]0;x\x07", "rate": 1.0}], "label": label}
    said = describe({**view, **hostile})
    assert "«·b»" in said
    assert "a·[2J «" in said
    assert "⏎·c" in said
    assert not [c for c in said if c != "\n" and not c.isprintable()]
