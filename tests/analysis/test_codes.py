"""Codes on disk: two bytes a value, both orders, and every firing found again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from analysis import codes as codes_module
from analysis.codes import PartCodes, StoredCodes, packed, spread_out, unpacked
from analysis.encode import both_orders
from analysis.parts import plan
from tests.analysis.stored import split_of, stored


@given(st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1))
def test_values_are_kept_to_the_nearest_of_eight_bits(values):
    values = np.array(values, np.float32)
    kept = unpacked(packed(values))
    np.testing.assert_allclose(kept, values, rtol=2**-9, atol=0)
    assert np.array_equal(packed(kept), packed(values)), "and are those that are kept from then on"
    order = np.argsort(values, kind="stable")
    assert (np.diff(packed(values[order]).astype(int)) >= 0).all(), "in their order"


def test_values_by_hand():
    assert unpacked(packed(np.array([1.0, 1.00390625, 1.001, 3.14159], np.float32))).tolist() == [
        1.0,
        1.00390625,
        1.0,
        3.140625,
    ]


def test_the_smallest_values_are_kept_above_zero():
    assert packed(np.array([1e-41, 1e-45], np.float32)).tolist() == [1, 1]
    assert (unpacked(np.array([1], np.uint16)) > 0).all()


def one_row(n_rows: int, n_latents: int, latents: list[int]) -> PartCodes:
    """Latents that fire on the last row, and nothing else."""
    offsets = np.append(np.zeros(n_rows, int), len(latents))
    return both_orders(offsets, np.array(latents, np.int32), packed(np.ones(len(latents), np.float32)), n_latents)


def test_long_contexts_and_wide_dictionaries_take_four_bytes(tmp_path):
    """The last of 70,000 latents fires on the last of 70,000 tokens of a context; two bytes count 65,536 of either."""
    [part] = plan(split_of([70_000]), 0, 10**6, 10**6)
    one_row(70_000, 70_000, [5, 69_999]).write(tmp_path / "train-00000.safetensors", part)
    on_disk = StoredCodes([tmp_path / "train-00000.safetensors"], 70_000)
    assert on_disk.of(69_999)[0].tolist() == [69_999]
    assert on_disk.latents_at(np.array([69_999]))[1].tolist() == [5, 69_999]
    [part] = plan(split_of([65_536]), 0, 10**6, 10**6)
    one_row(65_536, 65_536, [65_535]).write(tmp_path / "fit-00000.safetensors", part)
    arrays = load_file(tmp_path / "fit-00000.safetensors")
    assert (arrays["rows"].dtype, arrays["rows"].tolist()) == (np.uint16, [65_535])
    assert (arrays["latents"].dtype, arrays["latents"].tolist()) == (np.uint16, [65_535])


def test_both_orders_by_hand():
    # row 0: latents 2 (.5), 0 (1.); row 1: none; row 2: 2 (2.), 3 (2.)
    codes = both_orders(
        np.array([0, 2, 2, 4]), np.array([2, 0, 3, 2], np.int32), packed(np.array([0.5, 1, 2, 2], np.float32)), 5
    )
    assert codes.offsets.tolist() == [0, 1, 1, 3, 4, 4]
    assert codes.rows.tolist() == [0, 0, 2, 2]
    assert unpacked(codes.values).tolist() == [1, 0.5, 2, 2]
    assert codes.row_offsets.tolist() == [0, 2, 2, 4]
    assert codes.latents.tolist() == [0, 2, 2, 3], "the strongest first, of equals the lowest"


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 2))
def test_every_firing_is_found_again_by_brute_force(tmp_path_factory, seed, part_rows, skip):
    rng = np.random.default_rng(seed)
    split = split_of([*rng.integers(1, 9, 8).tolist(), 9])
    kept = split.kept_positions(skip).tolist()
    firings = [{p: float(rng.integers(1, 9)) for p in kept if rng.random() < share} for share in (0, 0.1, 0.5, 1)]
    on_disk, _ = stored(tmp_path_factory.mktemp("codes"), split, firings, skip, part_rows=part_rows)
    assert on_disk.positions().tolist() == kept
    assert (on_disk.n_latents, on_disk.n_rows) == (4, len(kept))
    whole = on_disk.load()
    assert whole.counts().tolist() == on_disk.counts().tolist() == [len(own) for own in firings]
    assert whole.latents.tolist() == [latent for latent, own in enumerate(firings) for _ in own]
    for latent, own in enumerate(firings):
        for positions, values in (on_disk.of(latent), whole.of(latent)):
            assert dict(zip(positions.tolist(), values.tolist(), strict=True)) == own
            assert (np.diff(positions) > 0).all()
    blocks = [(first, block.n_latents, len(block.positions)) for first, block in on_disk.blocks(len(kept), 2)]
    assert sum(n for _, n, _ in blocks) == 4
    assert all((size <= len(kept) and n <= 2) or n == 1 for _, n, size in blocks)
    some = np.array(sorted(rng.choice(kept, min(5, len(kept)), replace=False)))
    for few in (0, 256):  # read one by one, or all of a part
        codes_module.FEW_ROWS, before = few, codes_module.FEW_ROWS
        bounds, latents = on_disk.latents_at(some)
        codes_module.FEW_ROWS = before
        for i, position in enumerate(some.tolist()):
            here = {latent: own[position] for latent, own in enumerate(firings) if position in own}
            expected = sorted(here, key=lambda latent: (-here[latent], latent))
            assert latents[bounds[i] : bounds[i + 1]].tolist() == expected


def test_an_entry_takes_four_bytes_by_latent_and_two_by_row(tmp_path):
    split = split_of([100] * 10)
    stored(tmp_path, split, [{p: 1.0 for p in range(0, 1000, 3)}, {}])
    arrays = load_file(tmp_path / "train-00000.safetensors")
    assert {name: arrays[name].dtype.itemsize for name in ("rows", "values", "latents")} == {
        "rows": 2,
        "values": 2,
        "latents": 2,
    }


def test_contexts_that_are_not_kept_are_not_there(tmp_path):
    split = split_of([10] * 20)
    firings = [{p: 1.0 for p in range(200)}]
    on_disk, summary = stored(tmp_path, split, firings, n_rows=150, n_kept=60, part_rows=30)
    assert len(on_disk.positions()) == 60
    assert on_disk.of(0)[0].tolist() == on_disk.positions().tolist()
    assert (summary.n_rows, summary.counts().tolist()) == (150, [150])


@pytest.mark.parametrize(("starts", "sizes", "expected"), [([5, 0, 9], [2, 0, 3], [5, 6, 9, 10, 11]), ([], [], [])])
def test_spread_out(starts, sizes, expected):
    assert spread_out(np.array(starts, int), np.array(sizes, int)).tolist() == expected
