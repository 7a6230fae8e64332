"""Stored activations: any range of rows, across files."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.errors import StoreError
from sae.store import write_shard


@pytest.fixture(scope="module")
def rows():
    return torch.arange(70, dtype=torch.float32).view(35, 2)


@pytest.fixture(scope="module")
def split(make_rows, rows):
    return make_rows(rows, shard_rows=10)


def test_shards_follow_one_another(split):
    assert [(shard.start, shard.rows) for shard in split.shards] == [(0, 10), (10, 10), (20, 10), (30, 5)]
    assert (split.n_rows, split.d_in) == (35, 2)


@given(st.integers(0, 40), st.integers(0, 40))
def test_any_range_is_the_range_of_the_whole(split, rows, start, stop):
    part = split.read(start, stop)
    assert torch.equal(part, rows[start:stop])
    assert part.dtype == torch.float32
    assert part.shape[1] == 2


def test_what_was_not_harvested_is_named(activation_store):
    for site, name in (("mlp_out.0", "train"), ("mlp_out.1", "dev")):
        with pytest.raises(StoreError) as caught:
            activation_store.split(site, name)
        assert str(caught.value) == (
            f"{activation_store.box.path}: no activations of {site} on {name}; harvested: ['mlp_out.1', 'resid_post.0']"
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    with pytest.raises(StoreError, match=r"is not finite in torch\.float32"):
        write_shard(tmp_path / "a.safetensors", torch.tensor([[1.0, value]]), torch.float32)
    assert not (tmp_path / "a.safetensors").exists()
