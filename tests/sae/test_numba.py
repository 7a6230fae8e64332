"""The compiled top-k: strengths as torch's, at every size, with ties, with rows that have few positive entries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sae.test_backends import check_largest, strengths

numba = pytest.importorskip("sae.kernels.numba").Numba()


def check(values: torch.Tensor, k: int) -> None:
    check_largest(numba, values, k)


@given(
    st.integers(0, 10**6),
    st.integers(0, 4),
    st.integers(1, 700),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.data(),
)
@settings(max_examples=60)
def test_it_is_torchs(seed, rows, n, dtype, data):
    check(strengths(seed, rows, n, dtype), data.draw(st.integers(1, n)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("n", "k"), [(4096, 32), (24_576, 32), (24_576, 128), (24_577, 32), (5000, 1000)])
def test_it_is_torchs_at_real_sizes(n, k, dtype):
    check(strengths(0, 8, n, dtype), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_and_rows_without_positive_entries(dtype):
    check(torch.zeros(3, 5000, dtype=dtype), 7)
    check(torch.ones(3, 5000, dtype=dtype), 7)
    check(strengths(0, 3, 5000, dtype, shift=-3.2), 64)  # a few are positive
    check(strengths(0, 3, 5000, dtype, shift=-100.0), 64)
    check(strengths(0, 3, 5000, dtype).round(), 2000)
    inner = torch.zeros(2, 5000, dtype=dtype)
    inner[:, -1] = 1.0  # behind the last whole block
    assert (numba.largest(inner, 1) == 4999).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [6, 5000])
@pytest.mark.parametrize("every", [1, 7])
def test_what_is_no_number_is_chosen_first(n, every, dtype):
    """As torch does it: a loss then is none either, and says so."""
    values = strengths(0, 2, n, dtype)
    values[:, ::every] = torch.nan
    found = numba.largest(values, 5)
    assert all(len(set(row)) == 5 for row in found.tolist())
    assert bool(values.gather(1, found).isnan().sum() == 2 * min(5, len(range(0, n, every))))


def test_more_than_there_are():
    with pytest.raises(RuntimeError, match="out of range"):
        numba.largest(torch.ones(2, 5), 6)


def test_a_row_that_is_not_contiguous():
    check(strengths(0, 5000, 3, torch.float32).T, 32)


def test_the_same_entries_every_time():
    values = strengths(0, 16, 5000, torch.bfloat16)
    assert torch.equal(numba.largest(values, 50), numba.largest(values, 50))
