"""Index: the statistics by hand and by brute force, and which examples are shown."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.codes import packed, unpacked
from analysis.config import IndexConfig
from analysis.index import build as build_module
from analysis.index import examples as examples_module
from analysis.index.build import build as build_index
from sae.tokens import TokenSplit
from tests.analysis.stored import stored

TOKENS = [5, 6, 5, 7, 5, 6, 5, 8, 7, 7]
"""Two documents of 5 tokens, each a context."""
STRINGS = [f"<{token}>" for token in range(300)]


def split_of(tokens=TOKENS, document_starts=(0, 5, 10), context_starts=(0, 5, 10)) -> TokenSplit:
    starts = (np.array(s, dtype=np.int64) for s in (document_starts, context_starts))
    return TokenSplit("train", np.array(tokens, dtype=np.uint16), *starts, documents={})


def build(path, gpt2, firings, split=None, skip=0, directions=None, limits=(1 << 20, 1 << 20), **choices):
    """(latents, examples, facts) of an index of {position: value} of each latent."""
    split = split or split_of()
    if directions is None:
        directions = torch.randn(len(firings), 16, generator=torch.Generator().manual_seed(0))
    codes, summary = stored(path / "codes", split, firings, skip, *limits, part_rows=7)
    facts = build_index(codes, summary, directions, gpt2, split, STRINGS, IndexConfig(**choices), path)
    return *(pq.read_table(path / f"{name}.parquet").to_pylist() for name in ("latents", "examples")), facts


# --- statistics ---


def test_statistics_by_hand(tmp_path, gpt2):
    """The latent fires on 5 at position 0 (2.0) and 4 (1.0) and on 6 at 5 (3.0); 10 tokens in all."""
    latents, _, facts = build(tmp_path, gpt2, [{0: 2.0, 4: 1.0, 5: 3.0}, {}])
    one, silent = latents
    assert (one["n_fired"], one["density"], one["max_value"], one["mean_value"]) == (3, 0.3, 3.0, 2.0)
    assert one["std_value"] == pytest.approx((2 / 3) ** 0.5)
    # bins of .15: 1.0 in bin 6, 2.0 in bin 13, the maximum in the last
    assert [i for i, n in enumerate(one["histogram"]) if n] == [6, 13, 19]
    assert sum(one["histogram"]) == 3
    # eight an octave: 1 to 2 in eighths, 2 to 4 in quarters; 3.0 is in that from 3.0
    assert one["bin_edges"] == [1, *(1 + i / 8 for i in range(1, 8)), 2, 2.25, 2.5, 2.75, 3, 3.25]
    assert [i for i, n in enumerate(one["bin_counts"]) if n] == [0, 8, 12]
    # twice in the first place of a context, once in the last, of which there are two each
    assert one["offset_edges"] == [0, 1, 2, 3, 4]
    assert one["offset_rates"] == [1.0, 0, 0, 0, 0.5]
    # 5 occurs 4 times and the latent fires on 2, 6 occurs twice and it fires on 1; of a sum of 6
    assert (one["trigger_tokens"], one["trigger_counts"], one["trigger_rates"]) == ([5, 6], [2, 1], [0.5, 0.5])
    assert one["trigger_masses"] == [0.5, 0.5]
    # mean .6, second moment 1.4, variance 1.04; token means 5: 3/4, 6: 3/2, others 0:
    # between = (4 * .5625 + 2 * 2.25) / 10 = .675, less .36
    assert one["token_r2"] == pytest.approx((0.675 - 0.36) / 1.04, rel=1e-9)
    assert (silent["n_fired"], silent["density"], silent["max_value"], silent["mean_value"]) == (0, 0.0, 0.0, 0.0)
    assert silent["token_r2"] is None
    assert silent["trigger_tokens"] == silent["bin_edges"] == silent["bin_counts"] == silent["cofiring"] == []
    assert sum(silent["histogram"]) == 0
    assert facts == {"n_tokens": 10, "n_kept": 10, "n_latents": 2, "n_live": 1}


def test_a_latent_of_one_token_is_explained_by_it(tmp_path, gpt2):
    latents, _, _ = build(tmp_path, gpt2, [{1: 2.0, 5: 2.0}])
    assert latents[0]["token_r2"] == pytest.approx(1.0)


def test_skipped_positions_do_not_count_as_occurrences(tmp_path, gpt2):
    """Without the first of each context, 5 occurs 3 times (positions 2, 4, 6) and 6 once."""
    latents, _, facts = build(tmp_path, gpt2, [{1: 1.0, 2: 1.0}], skip=1)
    assert facts["n_tokens"] == 8
    assert latents[0]["density"] == 2 / 8
    assert latents[0]["trigger_tokens"] == [5, 6]
    assert latents[0]["trigger_rates"] == pytest.approx([1 / 3, 1.0])


@given(st.data())
def test_token_r2_by_brute_force(tmp_path_factory, data):
    """Share of variance between groups, of the dense activations grouped by token."""
    tokens = np.array(data.draw(st.lists(st.integers(0, 3), min_size=2, max_size=12)))
    dense = np.array(
        data.draw(st.lists(st.sampled_from([0, 0, 0.5, 1, 4]), min_size=len(tokens), max_size=len(tokens)))
    )
    firings = {int(p): float(dense[p]) for p in np.flatnonzero(dense)}
    split = split_of(tokens, [0, len(tokens)], [0, len(tokens)])
    [latent], _, _ = build(tmp_path_factory.mktemp("i"), None, [firings], split)
    means = np.array([dense[tokens == token].mean() for token in tokens])
    if dense.var() == 0:
        assert latent["token_r2"] is None
    else:
        assert latent["token_r2"] == pytest.approx(means.var() / dense.var(), rel=1e-6, abs=1e-9)


def test_what_follows_by_hand(tmp_path, gpt2):
    """It fires on 6 and on the second 7; 5 follows both 6, and at 9 the text ends. Of 8 followers 5 are 5? No: in
    [5 6 5 7 5 | 6 5 8 7 7] 6, 5, 7, 5 and 5, 8, 7, 7 follow: 5 three times, so its lift is (2 / 2) / (3 / 8)."""
    latents, _, _ = build(tmp_path, gpt2, [{1: 1.0, 5: 1.0, 9: 1.0}])
    assert (latents[0]["next_tokens"], latents[0]["next_counts"]) == ([5], [2])
    assert latents[0]["next_lifts"] == pytest.approx([8 / 3])


def test_latents_that_fire_together_by_hand(tmp_path, gpt2):
    """Latent 0 fires at 4 of 10 tokens, at 3 of which 1 does, that fires nowhere else; 2 fires always: no news."""
    firings = [{p: 1.0 for p in (0, 2, 4, 6)}, {p: 1.0 for p in (0, 4, 6)}, {p: 1.0 for p in range(10)}]
    latents, _, _ = build(tmp_path, gpt2, firings)
    assert [row["cofiring"] for row in latents[:2]] == [[1], [0]]
    assert latents[0]["cofiring_rates"] == pytest.approx([0.75])
    assert latents[0]["cofiring_lifts"] == pytest.approx([0.75 / 0.3])
    assert latents[1]["cofiring_rates"] == pytest.approx([1.0])
    assert latents[2]["cofiring"] == [], "they fire where it does as often as anywhere"


def test_companions_must_fire_together_thrice_and_the_telling_come_first(tmp_path):
    """With 0, on 40 of 400 tokens: 1 on 30 and everywhere else too often; 2 on 20 and nowhere else; 3 on 2."""
    first = list(range(0, 400, 10))
    firings = [
        {p: 1.0 for p in first},
        {p: 1.0 for p in [*first[:30], *range(1, 241)]},
        {p: 1.0 for p in first[:20]},
        {p: 1.0 for p in first[:2]},
    ]
    split = split_of([1] * 400, [0, 400], range(0, 401, 10))
    latents, _, _ = build(tmp_path, None, firings, split)
    assert latents[0]["cofiring"] == [2, 1]
    assert latents[3]["cofiring"] == [], "of two firings nothing is said"


def test_followers_are_ranked_by_what_they_tell(tmp_path):
    """After 0's firings on 5: eight times 1, as mostly, and four times 2, which stands nowhere else."""
    tokens = [5, 1] * 8 + [5, 2] * 4 + [1, 1] * 40
    split = split_of(tokens, [0, len(tokens)], [0, len(tokens)])
    latents, _, _ = build(tmp_path, None, [{p: 1.0 for p in range(0, 24, 2)}], split)
    assert latents[0]["next_tokens"] == [2], "1 follows less often than elsewhere"
    assert latents[0]["next_lifts"] == pytest.approx([(4 / 12) / (4 / 103)])


def test_twenty_triggers_and_ten_followers(tmp_path):
    tokens = [t for t in range(30) for _ in range(2)] * 3 + [31] * 820
    split = split_of(tokens, [0, 1000], [0, 1000])
    latents, _, _ = build(tmp_path, None, [{p: 1.0 for p in range(0, 180, 2)}], split)
    assert latents[0]["trigger_tokens"] == list(range(20))
    assert len(latents[0]["next_tokens"]) == 10


def test_companions_are_weighed_by_the_kept_tokens(tmp_path):
    """Latent 1 fires on all that is not kept too: among the kept its share counts."""
    split = split_of([1] * 400, [0, 400], range(0, 401, 10))
    kept = [int(p) for p in stored(tmp_path / "some", split, [{}], 0, 400, 100)[0].positions()]
    inside = {p: 1.0 for p in kept[::10]}
    firings = [inside, {**inside, **{p: 1.0 for p in range(400) if p not in kept}}]
    latents, _, _ = build(tmp_path, None, firings, split, limits=(400, 100))
    assert latents[0]["cofiring"] == [1]
    assert latents[0]["cofiring_lifts"] == pytest.approx([1 / 0.1])


def test_near_misses_are_of_each_of_the_commonest_tokens(tmp_path, monkeypatch):
    """Two places of each are looked at."""
    monkeypatch.setattr(examples_module, "N_PLACES", 2)
    tokens = [1, 2, 3] * 30
    split = split_of(tokens, [0, 90], range(0, 91, 9))
    _, examples, _ = build(tmp_path, None, [{0: 1.0, 1: 1.0, 2: 1.0}], split, silent_examples=6)
    silent = [e["position"] for e in examples if e["kind"] == "silent"]
    assert len(silent) >= 3
    assert {tokens[p] for p in silent} == {1, 2, 3}
    assert silent != sorted(silent), "in the order of a hash"


def test_the_smallest_activation_that_there_is(tmp_path):
    latents, _, _ = build(tmp_path, None, [{3: 1e-41}])
    assert latents[0]["n_fired"] == 1
    assert latents[0]["max_value"] > 0


def test_latents_that_fire_together_are_those_of_a_sample(tmp_path):
    """Of 300 firings 64 are looked at, from all over: the share is right within their number."""
    firings = [{p: 1.0 for p in range(0, 600, 2)}, {p: 1.0 for p in range(0, 300, 2)}]
    split = split_of([1] * 600, [0, 600], range(0, 601, 6))
    latents, _, _ = build(tmp_path, None, firings, split)
    assert latents[0]["cofiring_rates"] == pytest.approx([0.5], abs=1 / 64)
    assert latents[1]["cofiring_rates"] == pytest.approx([1.0])


@settings(max_examples=12)
@given(st.integers(0, 10**6))
def test_blocks_of_latents_do_not_matter(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    firings = [
        {int(p): float(rng.integers(1, 99)) for p in rng.choice(100, n, replace=False)} for n in (3, 0, 40, 9, 80)
    ]
    split = split_of(rng.integers(0, 9, 100), [0, 30, 100], [0, 20, 30, 77, 100])
    directions = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for size in (1, 1 << 22):
        build_module.BLOCK, before = size, build_module.BLOCK
        found.append(build(tmp_path_factory.mktemp("i"), None, firings, split, directions=directions))
        build_module.BLOCK = before
    assert found[0] == found[1]


# --- directions ---


def test_neighbours_are_the_nearest_others_by_cosine(tmp_path, gpt2):
    directions = torch.zeros(4, 16)
    directions[0, 0], directions[1, 1] = 1.0, 3.0
    directions[2, :2] = torch.tensor([4.0, 3.0])  # cosines .8 and .6
    directions[3, 0] = -2.0
    latents, _, _ = build(tmp_path, gpt2, [{}, {}, {}, {}], directions=directions, neighbours=2)
    assert latents[0]["neighbours"] == [2, 1]
    assert latents[0]["neighbour_cosines"] == pytest.approx([0.8, 0.0])
    assert latents[2]["neighbours"] == [0, 1]
    assert latents[2]["neighbour_cosines"] == pytest.approx([0.8, 0.6])
    assert latents[3]["neighbours"] == [1, 2]


def test_more_neighbours_than_there_are(tmp_path, gpt2):
    latents, _, _ = build(tmp_path, gpt2, [{}, {}, {}], neighbours=8)
    assert [sorted(row["neighbours"]) for row in latents] == [[1, 2], [0, 2], [0, 1]]


def test_promoted_and_suppressed_tokens_are_those_of_the_lens(tmp_path, gpt2):
    directions = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    latents, _, _ = build(tmp_path, gpt2, [{}, {}], directions=directions, logits=3)
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
    latents, _, _ = build(tmp_path, gpt2, [{}, {}], directions=torch.randn(2, 64))
    assert latents[0]["promoted_tokens"] == latents[0]["suppressed_logits"] == []


# --- examples ---


def test_examples_by_hand(tmp_path, gpt2):
    """Six firings, four in the first context: the strongest of each is on top."""
    firings = {0: 10.0, 1: 9.0, 2: 8.0, 4: 0.5, 6: 6.0, 8: 4.0}
    _, examples, _ = build(tmp_path, gpt2, [firings], window=4, quantile_examples=0)
    shown = [(e["kind"], e["stratum"], e["rank"], e["position"], e["value"]) for e in examples]
    assert [e for e in shown if e[0] != "silent"] == [
        ("top", "top", 0, 0, 10.0),
        ("top", "top", 1, 6, 6.0),
        ("interval", "70-90%", 0, 1, 9.0),
        ("interval", "70-90%", 1, 2, 8.0),
        ("interval", "30-50%", 0, 8, 4.0),
        ("interval", "0-10%", 0, 4, 0.5),
    ]
    # a window of 4 begins 3 before the token, but not before its context
    assert [(e["start"], e["stop"]) for e in examples[:6]] == [(0, 4), (5, 9), (0, 4), (0, 4), (5, 9), (1, 5)]
    assert examples[1]["values"] == [0.0, 6.0, 0.0, 4.0], "the latent on every token of the window"
    assert {(e["latent"], e["split"]) for e in examples} == {(0, "train")}
    # it fires on every 5, on one of two 6, one 7 of three; 6 at 5, 7 at 3 and 9 are left
    assert sorted(e["position"] for e in examples if e["kind"] == "silent") == [3, 5, 9]
    last = next(e for e in examples if e["position"] == 9)
    assert (last["start"], last["stop"], last["values"], last["value"]) == (6, 10, [6.0, 0.0, 4.0, 0.0], 0.0)


def test_windows_stay_in_their_context(tmp_path, gpt2):
    _, examples, _ = build(tmp_path, gpt2, [{4: 1.0, 5: 2.0}], window=64, silent_examples=0)
    assert [(e["position"], e["start"], e["stop"]) for e in examples] == [(5, 5, 10), (4, 0, 5)]


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_which_examples_are_chosen(tmp_path_factory, seed, n):
    rng = np.random.default_rng(seed)
    split = split_of(rng.integers(0, 3, 100), [0, 40, 100], [0, 10, 11, 40, 70, 100])
    positions = np.sort(rng.choice(100, n, replace=False)).tolist()
    values = unpacked(packed(rng.choice([0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0], n).astype(np.float32)))
    value_of = dict(zip(positions, values.tolist(), strict=True))
    choices = {"top_examples": 4, "interval_examples": 2, "quantile_examples": 1, "silent_examples": 2, "window": 9}
    _, examples, _ = build(tmp_path_factory.mktemp("i"), None, [value_of], split, **choices)
    by_kind = {kind: [e for e in examples if e["kind"] == kind] for kind in ("top", "interval", "quantile", "silent")}
    assert sum(map(len, by_kind.values())) == len(examples)
    for own in by_kind.values():
        assert len({e["position"] for e in own}) == len(own), "nothing is shown twice"
    for e in examples:
        assert e["value"] == value_of.get(e["position"], 0)
        assert e["values"] == [value_of.get(p, 0) for p in range(e["start"], e["stop"])]
        assert e["start"] <= e["position"] < e["stop"] <= e["start"] + 9
    # the strongest of each context
    best = {}
    for p in sorted(positions, key=lambda p: (-value_of[p], p)):
        best.setdefault(int(split.context_of(np.array([p]))[0][0]), p)
    top = sorted(best.values(), key=lambda p: (-value_of[p], p))[:4]
    assert [e["position"] for e in by_kind["top"]] == top
    left = {p: value / max(value_of.values()) for p, value in value_of.items() if p not in top}
    bounds = {"90-100%": (0.9, 1), "70-90%": (0.7, 0.9), "50-70%": (0.5, 0.7), "30-50%": (0.3, 0.5)}
    bounds |= {"10-30%": (0.1, 0.3), "0-10%": (0, 0.1)}
    for name, (low, high) in bounds.items():
        inside = {p for p, share in left.items() if low < share <= high}
        shown = [e["position"] for e in by_kind["interval"] if e["stratum"] == name]
        assert set(shown) <= inside
        assert len(shown) == min(2, len(inside))
        assert [value_of[p] for p in shown] == sorted((value_of[p] for p in shown), reverse=True)
    ranked = sorted(left, key=lambda p: (value_of[p], p))
    for i in range(10):
        inside = ranked[len(ranked) * i // 10 : len(ranked) * (i + 1) // 10]
        shown = [e["position"] for e in by_kind["quantile"] if e["stratum"] == f"q{10 * i}-{10 * i + 10}%"]
        assert set(shown) <= set(inside)
        assert len(shown) == min(1, len(inside))
    tokens = split.tokens[positions]
    triggers = sorted(set(tokens.tolist()), key=lambda t: (-(tokens == t).sum(), t))[:3]
    silences = [p for p in range(100) if p not in value_of and split.tokens[p] in triggers]
    assert {e["position"] for e in by_kind["silent"]} <= set(silences)
    assert len(by_kind["silent"]) == min(2, len(silences))


def test_examples_of_tokens_that_are_not_kept(tmp_path, gpt2):
    """The strongest are of all tokens, with their windows; all others of those that are kept."""
    rng = np.random.default_rng(0)
    split = split_of(rng.integers(0, 9, 1000), [0, 1000], range(0, 1001, 50))
    firings = {int(p): float(rng.integers(1, 200)) for p in rng.choice(1000, 300, replace=False)}
    limits = (1000, 150)
    [latent], examples, facts = build(tmp_path, gpt2, [firings], split, limits=limits, top_examples=20, window=64)
    assert (facts["n_tokens"], facts["n_kept"]) == (1000, 150)
    assert (latent["n_fired"], latent["density"]) == (300, 0.3)
    assert sum(latent["bin_counts"]) == 300
    top = [e for e in examples if e["kind"] == "top"]
    contexts = [range(at, at + 50) for at in range(0, 1000, 50)]
    assert sorted(e["value"] for e in top) == sorted(max(firings.get(p, 0) for p in own) for own in contexts)
    for e in examples:
        assert e["values"] == [firings.get(p, 0) for p in range(e["start"], e["stop"])]
    kept = {int(p) for p in stored(tmp_path / "again", split, [firings], 0, *limits)[0].positions()}
    assert {e["position"] for e in examples if e["kind"] != "top"} <= kept
    assert sum(latent["histogram"]) == len(kept & set(firings))


def test_a_silent_latent_has_no_examples(tmp_path, gpt2):
    _, examples, _ = build(tmp_path, gpt2, [{}, {3: 1.0}])
    assert {e["latent"] for e in examples} == {1}


def test_a_latent_that_does_not_fire_on_what_is_kept(tmp_path, gpt2):
    """Its examples are known, and of what is told of kept tokens nothing."""
    split = split_of([1] * 40, [0, 40], range(0, 41, 10))
    kept = {int(p) for p in stored(tmp_path / "some", split, [{}], 0, 40, 10)[0].positions()}
    outside = next(p for p in range(40) if p not in kept)
    latents, examples, _ = build(tmp_path, gpt2, [{outside: 2.0}, {}], split, limits=(40, 10))
    assert [(e["kind"], e["position"]) for e in examples] == [("top", outside)]
    assert (latents[0]["n_fired"], latents[0]["trigger_tokens"], latents[0]["token_r2"]) == (1, [], None)


def test_a_sample_is_not_always_the_first(tmp_path, gpt2):
    """Which of a stratum is drawn depends on the latent."""
    firings = [{0: 8.0, **{p: 4.0 + p / 256 for p in range(1, 100)}} for _ in range(8)]
    split = split_of([1] * 100, [0, 100], [0, 100])
    _, examples, _ = build(tmp_path, gpt2, firings, split, interval_examples=1, quantile_examples=0)
    assert len({e["position"] for e in examples if e["kind"] == "interval"}) > 4


def test_the_same_codes_give_the_same_bytes(tmp_path, gpt2):
    for name in ("1", "2"):
        build(tmp_path / name, gpt2, [{0: 2.0, 4: 1.0}, {3: 1.0}])
    for name in ("latents.parquet", "examples.parquet"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert {path.name for path in (tmp_path / "1").iterdir()} == {
        "codes",
        "latents.parquet",
        "examples.parquet",
        "tokens.parquet",
    }
