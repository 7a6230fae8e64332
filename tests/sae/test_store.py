"""Stored activations: any range of rows, across files and sites."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.errors import StoreError
from sae.scaling import SiteStats
from sae.store import ActivationStore, Places, write_shard


@pytest.fixture(scope="module")
def rows():
    return torch.arange(70, dtype=torch.float32).view(35, 2)


@pytest.fixture(scope="module")
def split(make_rows, rows):
    return make_rows(rows, shard_rows=10)


@pytest.fixture(scope="module")
def store(make_box):
    """Sites a (width 2), b (3) and c (1) of 7 rows; b is cut into files elsewhere than the others."""

    def build(out):
        sites = {}
        for name, width, cut in (("a", 2, 4), ("b", 3, 5), ("c", 1, 4)):
            shards = []
            for part in whole(name, width).split(cut):
                shards.append([f"{name}-{len(shards)}.safetensors", len(part)])
                write_shard(out / shards[-1][0], part, torch.float32)
            moments = {"mean_norm": 5.0, "mean_square": 26.0, "mean": [0.5] * width}
            sites[name] = {"d_in": width, "splits": {"train": shards}, **moments}
        return {"sites": sites, "skip_positions": 1, "dtype": "float32"}

    return ActivationStore(make_box(build))


def whole(name: str, width: int) -> torch.Tensor:
    return 1000.0 * "abc".index(name) + torch.arange(7.0 * width).view(7, width)


def test_shards_follow_one_another(split):
    (shards,) = split.columns
    assert [(shard.start, shard.rows) for shard in shards] == [(0, 10), (10, 10), (20, 10), (30, 5)]
    assert (split.n_rows, split.d, split.widths) == (35, 2, (2,))


@given(st.integers(0, 40), st.integers(0, 40))
def test_any_range_is_the_range_of_the_whole(split, rows, start, stop):
    part = split.read(start, stop)
    assert torch.equal(part, rows[start:stop])
    assert part.dtype == torch.float32
    assert part.shape[1] == 2


@given(st.integers(0, 9), st.integers(0, 9))
def test_sites_lie_side_by_side_at_the_same_rows(store, start, stop):
    split = store.split(["b", "a"], "train")
    assert (split.n_rows, split.d, split.widths) == (7, 5, (3, 2))
    expected = torch.cat([whole("b", 3), whole("a", 2)], dim=1)[start:stop]
    part = split.read(start, stop)
    assert torch.equal(part, expected)
    assert part.shape[1] == 5


@pytest.mark.parametrize(
    ("places", "sites", "x", "target"),
    [
        (Places(("a",)), ("a",), "a", "a"),
        (Places(("a", "b")), ("a", "b"), "ab", "ab"),
        (Places(("a",), ("c",)), ("a", "c"), "a", "c"),
        (Places(("b", "a"), ("a", "c")), ("b", "a", "c"), "ba", "ac"),  # a is read from disk once
    ],
)
def test_pairs_are_what_is_read_and_what_it_should_become(store, places, sites, x, target):
    widths = {"a": 2, "b": 3, "c": 1}
    pairs = store.pairs(places, "train")
    assert (pairs.n_rows, pairs.sites, places.sites) == (7, sites, sites)
    assert pairs.split.d == sum(widths[site] for site in sites)
    for found, names in zip(pairs.read(2, 6), (x, target), strict=True):
        assert torch.equal(found, torch.cat([whole(name, widths[name]) for name in names], dim=1)[2:6])
        assert found.is_contiguous()
    assert pairs.widths(places.written) == tuple(widths[name] for name in target)


def test_moments_of_a_site(store):
    assert store.stats("b") == SiteStats(d=3, mean_norm=5.0, mean_square=26.0)
    assert store.mean("b").tolist() == [0.5, 0.5, 0.5]
    assert (store.sites(), store.skip_positions) == (["a", "b", "c"], 1)


def test_what_was_not_harvested_is_named(activation_store):
    for sites, name in ((["mlp_out.1", "mlp_out.0"], "train"), (["mlp_out.1"], "dev")):
        with pytest.raises(StoreError) as caught:
            activation_store.split(sites, name)
        assert str(caught.value) == (
            f"{activation_store.box.path}: no activations of {sites[-1]} on {name}; "
            "harvested: ['mlp_out.1', 'resid_post.0']"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_read_is_what_was_stored(make_box, dtype):
    acts = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))

    def build(out):
        write_shard(out / "x.safetensors", acts, dtype)
        site = {"d_in": 2, "splits": {"train": [["x.safetensors", 3]]}}
        return {"sites": {"x": site}, "skip_positions": 0}

    read = ActivationStore(make_box(build)).split(["x"], "train").read(0, 3)
    assert torch.equal(read, acts.to(dtype).float())


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (float("inf"), "float32"), (7e4, "float16")])
def test_values_that_are_not_finite_are_refused(tmp_path, value, dtype):
    path = tmp_path / "a.safetensors"
    with pytest.raises(StoreError) as caught:
        write_shard(path, torch.tensor([[1.0, value]]), getattr(torch, dtype))
    assert str(caught.value) == (
        f"{path}: an activation of size {value:g} is not finite in torch.{dtype}; use harvest.dtype=bfloat16 or float32"
    )
    assert not path.exists()


# --- damage ---


def test_a_shard_with_one_flipped_bit_is_named_before_a_row_of_it_is_used(make_box):
    def build(out):
        for i in range(2):
            write_shard(out / f"x-{i}.safetensors", torch.ones(4, 2), torch.float32)
        shards = [[f"x-{i}.safetensors", 4] for i in range(2)]
        facts = {"d_in": 2, "splits": {"train": shards}, "mean_norm": 1.0, "mean_square": 2.0, "mean": [1.0] * 2}
        return {"sites": {"x": facts}, "skip_positions": 0, "dtype": "float32"}

    box = make_box(build)
    damaged = box.path / "x-1.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    split = ActivationStore(box).split(["x"], "train")
    assert torch.equal(split.read(0, 4), torch.ones(4, 2)), "the other shard is whole"
    for change in (lambda: None, damaged.unlink):
        change()
        with pytest.raises(StoreError) as caught:
            split.read(3, 5)
        assert str(caught.value) == (
            f"{damaged}: missing or damaged (checksum differs); remove it and run the stage that builds it again"
        )
