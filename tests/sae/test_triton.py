"""Triton's top-k, and its sums over latents that are in many rows: on a GPU, or in the interpreter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.sae.test_backends import GPU, check_largest, check_sums, problem, strengths

gpu = pytest.importorskip("sae.kernels.triton")
OWN = gpu.Triton()
KINDS = [torch.float32, torch.bfloat16]


def check(values: Tensor, k: int) -> None:
    check_largest(OWN, values.to(GPU), k)


@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(1, 300), st.sampled_from(KINDS), st.data())
def test_top_k_is_torchs(seed, rows, n, kind, data):
    check(strengths(seed, rows, n, kind), data.draw(st.integers(1, n)))


@pytest.mark.parametrize("kind", [*KINDS, torch.float64])
@pytest.mark.parametrize(("n", "k"), [(24_576, 32), (24_577, 128), (70_000, 32), (3000, 200), (5000, 3000)])
def test_top_k_at_real_sizes(n, k, kind):
    check(strengths(0, 1, n, kind), k)


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_of_ties_and_of_rows_without_positive_entries(kind):
    check(torch.zeros(3, 500, dtype=kind), 7)
    check(torch.ones(3, 500, dtype=kind), 7)
    check(strengths(0, 3, 500, kind, shift=-2.2), 64)  # a few are positive
    check(strengths(0, 3, 500, kind, shift=-100.0), 64)
    check(strengths(0, 3, 500, kind).round(), 200)
    check(torch.arange(500.0).repeat(2, 1).to(kind), 20)


@pytest.mark.parametrize("segment", [1, 2, 3, 8, 64, 1024])
@pytest.mark.parametrize("n_latents", [1, 2, 7, 40])
def test_frequent_latents_are_added_up_in_parts(monkeypatch, segment, n_latents):
    """Parts that begin and end in a cut, fill it, or reach over many."""
    monkeypatch.setattr(gpu, "SEGMENT", segment)
    check_sums((gpu.Triton(), GPU), 0, [16] * 8, n_latents, 5, torch.float64)
    check_sums((gpu.Triton(), GPU), 1, [8, 0, 3, 40], n_latents, 5, torch.float32)


def test_a_table_may_be_bfloat16():
    """Sums are those of the rounded rows, in the weights' type."""
    entries, weights, table, _ = problem(GPU, 0, [30, 0, 700, 5], 6, 40, torch.float32)
    found = OWN.row_gradients(entries, weights, table.bfloat16(), 6)
    exact = OWN.row_gradients(entries, weights.double(), table.bfloat16().double(), 6)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
