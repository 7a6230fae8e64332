"""Index: the statistics by hand and by brute force, and which examples are shown."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis import index
from analysis.codes import Codes
from analysis.config import IndexConfig
from sae.tokens import TokenSplit

TOKENS = [5, 6, 5, 7, 5, 6, 5, 8, 7, 7]
"""Two documents of 5 tokens, each a context."""


def split_of(tokens=TOKENS, document_starts=(0, 5, 10), context_starts=(0, 5, 10)) -> TokenSplit:
    starts = (np.array(s, dtype=np.int64) for s in (document_starts, context_starts))
    return TokenSplit("train", np.array(tokens, dtype=np.uint16), *starts, documents={})


def codes_of(*latents: dict[int, float]) -> Codes:
    """Codes from {position: value} of each latent."""
    offsets = np.cumsum([0, *(len(latent) for latent in latents)])
    positions = np.array([p for latent in latents for p in sorted(latent)], dtype=np.int32)
    values = np.array([latent[p] for latent in latents for p in sorted(latent)], dtype=np.float32)
    return Codes(offsets, positions, values)


def build(path, gpt2, codes, split=None, n_rows=None, skip=0, directions=None, **choices) -> tuple[list, list, dict]:
    split = split or split_of()
    n_rows = len(split.kept_positions(skip)) if n_rows is None else n_rows
    if directions is None:
        directions = torch.randn(codes.n_latents, 16, generator=torch.Generator().manual_seed(0))
    facts = index.build(codes, directions, gpt2, split, n_rows, skip, IndexConfig(**choices), path)
    return *(pq.read_table(path / f"{name}.parquet").to_pylist() for name in ("latents", "examples")), facts


# --- statistics ---


def test_statistics_by_hand(tmp_path, gpt2):
    """The latent fires on 5 at position 0 (2.0) and 4 (1.0) and on 6 at 5 (3.0); 10 tokens in all."""
    latents, _, facts = build(tmp_path, gpt2, codes_of({0: 2.0, 4: 1.0, 5: 3.0}, {}))
    one, silent = latents
    assert (one["n_fired"], one["density"], one["max_value"], one["mean_value"]) == (3, 0.3, 3.0, 2.0)
    # bins of .15: 1.0 in bin 6, 2.0 in bin 13, the maximum in the last
    assert [i for i, n in enumerate(one["histogram"]) if n] == [6, 13, 19]
    assert sum(one["histogram"]) == 3
    # 5 occurs 4 times and the latent fires on 2, 6 occurs twice and it fires on 1
    assert (one["trigger_tokens"], one["trigger_counts"], one["trigger_rates"]) == ([5, 6], [2, 1], [0.5, 0.5])
    # mean .6, second moment 1.4, variance 1.04; token means 5: 3/4, 6: 3/2, others 0:
    # between = (4 * .5625 + 2 * 2.25) / 10 = .675, less .36
    assert one["token_r2"] == pytest.approx((0.675 - 0.36) / 1.04, rel=1e-9)
    assert (silent["n_fired"], silent["density"], silent["max_value"], silent["mean_value"]) == (0, 0.0, 0.0, 0.0)
    assert silent["token_r2"] is None
    assert silent["trigger_tokens"] == []
    assert sum(silent["histogram"]) == 0
    assert facts == {"n_tokens": 10, "n_latents": 2, "n_live": 1}


def test_a_latent_of_one_token_is_explained_by_it(tmp_path, gpt2):
    latents, _, _ = build(tmp_path, gpt2, codes_of({1: 2.0, 5: 2.0}))
    assert latents[0]["token_r2"] == pytest.approx(1.0)


def test_skipped_positions_do_not_count_as_occurrences(tmp_path, gpt2):
    """Without the first of each context, 5 occurs 3 times (positions 2, 4, 6) and 6 once."""
    latents, _, facts = build(tmp_path, gpt2, codes_of({1: 1.0, 2: 1.0}), skip=1)
    assert facts["n_tokens"] == 8
    assert latents[0]["density"] == 2 / 8
    assert latents[0]["trigger_tokens"] == [5, 6]
    assert latents[0]["trigger_rates"] == pytest.approx([1 / 3, 1.0])


@given(st.data())
def test_token_r2_by_brute_force(data):
    """Share of variance between groups, of the dense activations grouped by token."""
    tokens = np.array(data.draw(st.lists(st.integers(0, 3), min_size=2, max_size=12)))
    dense = np.array(
        data.draw(st.lists(st.sampled_from([0, 0, 0.5, 1, 4]), min_size=len(tokens), max_size=len(tokens)))
    )
    fires = np.flatnonzero(dense)
    counts = np.bincount(tokens)
    found = index._statistics(tokens[fires], dense[fires].astype(np.float32), counts, len(tokens))["token_r2"]
    means = np.array([dense[tokens == token].mean() for token in tokens])
    if dense.var() == 0:
        assert found is None or abs(found) < 1e-9 or found == pytest.approx(1)
    else:
        assert found == pytest.approx(means.var() / dense.var(), rel=1e-6, abs=1e-9)


# --- directions ---


def test_neighbours_are_the_nearest_others_by_cosine(tmp_path, gpt2):
    directions = torch.zeros(4, 16)
    directions[0, 0], directions[1, 1] = 1.0, 3.0
    directions[2, :2] = torch.tensor([4.0, 3.0])  # cosines .8 and .6
    directions[3, 0] = -2.0
    latents, _, _ = build(tmp_path, gpt2, codes_of({}, {}, {}, {}), directions=directions, neighbours=2)
    assert latents[0]["neighbours"] == [2, 1]
    assert latents[0]["neighbour_cosines"] == pytest.approx([0.8, 0.0])
    assert latents[2]["neighbours"] == [0, 1]
    assert latents[2]["neighbour_cosines"] == pytest.approx([0.8, 0.6])
    assert latents[3]["neighbours"] == [1, 2]


def test_more_neighbours_than_there_are(tmp_path, gpt2):
    latents, _, _ = build(tmp_path, gpt2, codes_of({}, {}, {}), neighbours=8)
    assert [sorted(row["neighbours"]) for row in latents] == [[1, 2], [0, 2], [0, 1]]


def test_promoted_and_suppressed_tokens_are_those_of_the_lens(tmp_path, gpt2):
    directions = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    latents, _, _ = build(tmp_path, gpt2, codes_of({}, {}), directions=directions, logits=3)
    centred = (directions - directions.mean(1, keepdim=True)).double() * gpt2.transformer.ln_f.weight.double()
    effects = centred @ gpt2.lm_head.weight.double().T
    effects = effects - effects.mean(1, keepdim=True)
    for row, effect in zip(latents, effects, strict=True):
        order = effect.argsort(descending=True).tolist()
        assert row["promoted_tokens"] == order[:3]
        assert row["suppressed_tokens"] == order[::-1][:3]
        assert row["promoted_logits"] == pytest.approx(effect[order[:3]].tolist(), rel=1e-4)
        assert row["suppressed_logits"] == pytest.approx(effect[order[::-1][:3]].tolist(), rel=1e-4)


def test_a_site_outside_the_residual_stream_promotes_nothing(tmp_path, gpt2):
    latents, _, _ = build(tmp_path, gpt2, codes_of({}, {}), directions=torch.randn(2, 64))
    assert latents[0]["promoted_tokens"] == latents[0]["suppressed_logits"] == []


# --- examples ---


def test_examples_by_hand(tmp_path, gpt2):
    """Six firings, four in the first document: the two strongest there and both of the second are on top."""
    firings = {0: 10.0, 1: 9.0, 2: 8.0, 4: 0.5, 6: 6.0, 8: 4.0}
    _, examples, _ = build(tmp_path, gpt2, codes_of(firings), top_examples=3, window=4)
    shown = [(e["stratum"], e["rank"], e["position"], e["value"]) for e in examples]
    assert shown == [
        ("top", 0, 0, 10.0),
        ("top", 1, 1, 9.0),
        ("top", 2, 6, 6.0),
        ("70-90%", 0, 2, 8.0),
        ("30-50%", 0, 8, 4.0),
        ("0-10%", 0, 4, 0.5),
    ]
    # a window of 4 begins 3 before the token, but not before its context
    assert [(e["start"], e["stop"]) for e in examples] == [(0, 4), (0, 4), (5, 9), (0, 4), (5, 9), (1, 5)]
    assert examples[2]["values"] == [0.0, 6.0, 0.0, 4.0], "the latent on every token of the window"
    assert {(e["latent"], e["split"]) for e in examples} == {(0, "train")}


def test_windows_stay_in_their_context(tmp_path, gpt2):
    _, examples, _ = build(tmp_path, gpt2, codes_of({4: 1.0, 5: 2.0}), window=100)
    assert [(e["position"], e["start"], e["stop"]) for e in examples] == [(5, 5, 10), (4, 0, 5)]


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_which_examples_are_chosen(seed, n):
    rng = np.random.default_rng(seed)
    split = split_of([1] * 100, [0, 10, 11, 40, 70, 100], [0, 50, 100])
    positions = np.sort(rng.choice(100, n, replace=False)).astype(np.int32)
    values = rng.choice([0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0], n).astype(np.float32)
    cfg = IndexConfig(top_examples=4, interval_examples=2)
    strata = index.choose(positions, values, split, cfg)
    chosen = np.concatenate([entries for _, entries in strata])
    assert len(set(chosen.tolist())) == len(chosen), "nothing is shown twice"
    name, top = strata[0]
    assert name == "top"
    documents = split.locate(positions[top])[0]
    assert len(top) <= 4
    assert np.bincount(documents).max() <= 2
    assert (np.diff(values[top]) <= 0).all()
    # greedy: each entry left out is no stronger than the last, or its document is full, or there are 4
    for entry in set(range(n)) - set(top.tolist()):
        full = (documents == split.locate(positions[[entry]])[0]).sum() == 2
        assert full or (len(top) == 4 and values[entry] <= values[top[-1]])
    bounds = {"90-100%": (0.9, 1), "70-90%": (0.7, 0.9), "50-70%": (0.5, 0.7), "30-50%": (0.3, 0.5)}
    bounds |= {"10-30%": (0.1, 0.3), "0-10%": (0, 0.1)}
    left = values[np.setdiff1d(np.arange(n), top)] / values.max()
    for name, (low, high) in bounds.items():
        shown = dict(strata[1:]).get(name, np.zeros(0, int))
        shares = values[shown] / values.max()
        assert ((shares > low) & (shares <= high)).all()
        assert len(shown) == min(2, ((left > low) & (left <= high)).sum())
    again = index.choose(positions, values, split, cfg)
    assert [(s, e.tolist()) for s, e in again] == [(s, e.tolist()) for s, e in strata]


def test_a_silent_latent_has_no_examples(tmp_path, gpt2):
    _, examples, _ = build(tmp_path, gpt2, codes_of({}, {3: 1.0}))
    assert {e["latent"] for e in examples} == {1}


def test_a_sample_does_not_depend_on_the_other_latents(tmp_path, gpt2):
    firings = {p: 1.0 + (p % 3) for p in range(0, 10)}
    _, alone, _ = build(tmp_path / "1", gpt2, codes_of(firings), interval_examples=1)
    _, among, _ = build(tmp_path / "2", gpt2, codes_of({1: 1.0}, firings), interval_examples=1)
    strip = [{k: v for k, v in e.items() if k != "latent"} for e in among if e["latent"] == 1]
    assert strip == [{k: v for k, v in e.items() if k != "latent"} for e in alone]


def test_the_same_codes_give_the_same_bytes(tmp_path, gpt2):
    for name in ("1", "2"):
        build(tmp_path / name, gpt2, codes_of({0: 2.0, 4: 1.0}, {3: 1.0}))
    for name in ("latents.parquet", "examples.parquet"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
