"""The summary of all latents: by hand, by brute force, and the same however the parts were added up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.codes import unpacked
from analysis.parts import plan
from analysis.summary import TOP, WINDOW, Summary, offset_bins, offset_edges, window_of
from sae.errors import StoreError
from sae.tokens import TokenSplit
from tests.analysis.stored import part_codes, split_of, stored


def drawn(seed: int) -> tuple[TokenSplit, list[dict[int, float]]]:
    """Contexts of 1 to 100 tokens, and latents that fire never, seldom, often and always."""
    rng = np.random.default_rng(seed)
    split = split_of(rng.integers(1, 100, 40))
    n = len(split.tokens)
    values = np.exp2(rng.integers(-16, 8, (n, 4))) * rng.integers(256, 512, (n, 4)) / 256
    return split, [
        {p: float(values[p, i]) for p in range(n) if rng.random() < share} for i, share in enumerate((0, 0.01, 0.3, 1))
    ]


def arrays(summary: Summary) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in vars(summary).items()}


def assert_equal(one: Summary, other: Summary) -> None:
    for name, value in arrays(one).items():
        np.testing.assert_array_equal(arrays(other)[name], value, err_msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_known_of_each_latent_by_brute_force(tmp_path, seed):
    split, firings = drawn(seed)
    skip = seed
    _, summary = stored(tmp_path, split, firings, skip, part_rows=300)
    kept = set(split.kept_positions(skip).tolist())
    offsets = split.context_of(np.arange(len(split.tokens)))[1]
    edges, places = summary.edges(), offset_edges()
    assert summary.n_rows == len(kept)
    assert summary.rows.sum() == len(kept)
    for latent, every in enumerate(firings):
        own = {p: value for p, value in every.items() if p in kept}
        values = np.array(list(own.values()))
        inside = np.clip(values, edges[0], np.nextafter(edges[-1], 0))
        assert summary.histogram[latent].tolist() == np.histogram(inside, bins=edges)[0].tolist()
        assert summary.sum_of_values()[latent] == pytest.approx(values.sum(), rel=1e-6, abs=len(own) * 2**-25)
        assert summary.sum_of_squares()[latent] == pytest.approx((values**2).sum(), rel=1e-6, abs=len(own) * 2**-31)
        where = np.searchsorted(places, offsets[list(own)], side="right") - 1
        assert summary.profile[latent].tolist() == np.bincount(where, minlength=len(places)).tolist()
        # the strongest of each context, of equals the first
        best = {}
        for p in sorted(own, key=lambda p: (-own[p], p)):
            best.setdefault(int(split.context_of(np.array([p]))[0][0]), p)
        best = sorted(best.values(), key=lambda p: (-own[p], p))[:TOP]
        n = len(best)
        assert summary.top_positions[latent].tolist() == best + [-1] * (TOP - n)
        assert unpacked(summary.top_values[latent]).tolist() == [own[p] for p in best] + [0] * (TOP - n)
        assert summary.peaks()[latent] == (own[best[0]] if best else 0)
        for rank, p in enumerate(best):
            start, stop = (int(bound[0]) for bound in window_of(np.array([p]), split, WINDOW))
            window = [own.get(at, 0) for at in range(start, stop)]
            assert unpacked(summary.top_windows[latent, rank]).tolist() == window + [0] * (WINDOW - len(window))


@pytest.mark.slow
@given(st.integers(0, 10**6), st.data())
def test_parts_add_up_in_any_order_and_grouping(seed, data):
    split, firings = drawn(seed % 5)
    parts = plan(split, 0, 1 << 20, 1 << 20, 200)
    order = data.draw(st.permutations(range(len(parts))))
    groups = [data.draw(st.integers(0, 2)) for _ in order]
    whole = Summary.empty(4, 0)
    for number, part in enumerate(parts):
        whole.add_part(part, number, part_codes(part, firings), split)
    some = [Summary.empty(4, 0) for _ in range(3)]
    for number, group in zip(order, groups, strict=True):
        some[group].add_part(parts[number], number, part_codes(parts[number], firings), split)
    some[2].merge(some[0])
    some[2].merge(some[1])
    assert_equal(some[2], whole)
    assert whole.parts.tolist() == list(range(len(parts)))


def test_moments_by_hand():
    """1.5 and 2.5: sum 4, squares 8.5; in units of 2^3 the same."""
    split = split_of([4])
    for unit in (0, 3):
        summary = Summary.empty(1, unit)
        [part] = plan(split, 0, 10, 10)
        summary.add_part(part, 0, part_codes(part, [{1: 1.5, 2: 2.5}]), split)
        assert (summary.sum_of_values()[0], summary.sum_of_squares()[0]) == (4, 8.5)
        assert summary.counts().tolist() == [2]
        edges = summary.edges()
        bins = np.flatnonzero(summary.histogram[0])
        assert [(edges[b], edges[b + 1]) for b in bins] == [(1.5, 1.625), (2.5, 2.75)]


def test_sums_of_huge_activations_do_not_overflow(tmp_path):
    split = split_of([1000])
    _, summary = stored(tmp_path, split, [{p: 2.0**14 for p in range(1000)}])
    assert summary.sum_of_squares()[0] == 1000 * 2.0**28
    assert summary.sum_of_values()[0] == 1000 * 2.0**14
    assert summary.histogram[0, -1] == 1000, "beyond the last bin"


def test_sums_count_what_is_larger_yet_as_65536_units(tmp_path):
    split = split_of([10])
    _, summary = stored(tmp_path, split, [{p: 2.0**40 for p in range(10)}])
    assert (summary.sum_of_values()[0], summary.sum_of_squares()[0]) == (10 * 2.0**16, 10 * 2.0**32)
    assert summary.peaks()[0] == 2.0**40


def test_of_equal_examples_the_first_are_kept_whichever_part_comes_first():
    split = split_of([10] * 40)
    firings = [{p: 3.0 for p in range(2, 400, 10)}]
    parts = plan(split, 0, 1 << 20, 1 << 20, 50)
    for order in (range(len(parts)), reversed(range(len(parts)))):
        summary = Summary.empty(1, 0)
        for number in order:
            summary.add_part(parts[number], number, part_codes(parts[number], firings), split)
        assert summary.top_positions[0].tolist() == list(range(2, 10 * TOP, 10))


def test_bins_of_places_by_hand():
    assert offset_edges()[:10].tolist() == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24]
    every = np.arange(10_000)
    assert np.array_equal(offset_bins(every), np.searchsorted(offset_edges(), every, side="right") - 1)
    assert offset_bins(np.array([1 << 30])).tolist() == [len(offset_edges()) - 1]


def test_it_is_read_as_it_was_written(tmp_path):
    split, firings = drawn(1)
    _, summary = stored(tmp_path, split, firings)
    summary.save(tmp_path / "s.safetensors")
    assert_equal(Summary.load(tmp_path / "s.safetensors"), summary)
    with pytest.raises(StoreError, match=r"none\.safetensors: no summary of the latents; run the index stage again"):
        Summary.load(tmp_path / "none.safetensors")
