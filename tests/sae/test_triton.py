"""Triton's top-k, and its sums over latents that are in many rows: on a GPU, or in the interpreter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae.kernels import autograd, choice
from sae.kernels.torch import Kernels
from sae.select import BatchTopK
from tests.sae.test_backends import GPU, check_largest, check_largest_of_batch, check_sums, problem, strengths

pytestmark = pytest.mark.slow  # where there is no GPU, Triton's interpreter stands for it

gpu = pytest.importorskip("sae.kernels.triton")
OWN = gpu.Triton()
KINDS = [torch.float32, torch.bfloat16]


def check(values: Tensor, k: int) -> None:
    check_largest(OWN, values.to(GPU), k)


@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(1, 130), st.sampled_from(KINDS), st.data())
def test_top_k_is_torchs(seed, rows, n, kind, data):
    check(strengths(seed, rows, n, kind), data.draw(st.integers(1, n)))


@pytest.mark.parametrize(
    ("n", "k", "kind"),
    [
        (24_576, 32, torch.bfloat16),
        (24_577, 128, torch.float32),
        (70_000, 32, torch.bfloat16),  # a position takes more than 16 bits
        (3000, 200, torch.float32),
        *((5000, 3000, kind) for kind in (*KINDS, torch.float64)),  # more than one program sorts
        (24_576, 32, torch.float64),
    ],
)
def test_top_k_at_real_sizes(n, k, kind):
    check(strengths(0, 1, n, kind), k)


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_of_ties_and_of_rows_without_positive_entries(kind):
    check(torch.zeros(2, 120, dtype=kind), 7)
    check(torch.ones(2, 120, dtype=kind), 7)
    check(strengths(0, 2, 120, kind, shift=-2.2), 16)  # a few are positive
    check(strengths(0, 2, 120, kind, shift=-100.0), 16)
    check(strengths(0, 2, 120, kind).round(), 50)
    check(torch.arange(120.0).repeat(2, 1).to(kind), 20)


@pytest.mark.parametrize("segment", [1, 2, 3, 8, 16, 1024])
@pytest.mark.parametrize("n_latents", [1, 2, 7, 40])
def test_frequent_latents_are_added_up_in_parts(monkeypatch, segment, n_latents):
    """Parts that begin and end in a cut, fill it, or reach over many."""
    monkeypatch.setattr(gpu, "SEGMENT", segment)
    check_sums((gpu.Triton(), GPU), 0, [5] * 8, n_latents, 5, torch.float64)
    check_sums((gpu.Triton(), GPU), 1, [4, 0, 3, 20], n_latents, 5, torch.float32)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [3, 18])
def test_the_edge_of_a_batch_lies_in_the_lower_bits_too(kind, rows):
    """Of numbers that differ in their lower bits only, and of as many rows as share counts, each of which matters."""
    check_largest_of_batch(OWN, strengths(0, rows, 300, kind).to(GPU), 21 * rows)
    steps = torch.randint(0, 4, (rows, 300), generator=torch.Generator().manual_seed(0))
    check_largest_of_batch(OWN, (1 + steps * 2.0**-20).to(kind).to(GPU), 21 * rows)
    check_largest_of_batch(OWN, (1 + steps * 2.0**-7).to(kind).to(GPU), 21 * rows)


@pytest.mark.parametrize("is_rounded", [False, True])
@pytest.mark.parametrize("is_sized", [False, True])
@pytest.mark.parametrize("whole", [True, False])
def test_batch_top_k_is_the_plain_one(monkeypatch, is_rounded, is_sized, whole):
    """What is kept, values and gradients, from all of the batch or from the largest few of each row; values are exact
    where the choice is rounded. One row has most of what is kept."""
    monkeypatch.setattr(choice, "WHOLE", 1 << 31 if whole else 0)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) for shape in ((6, 20), (150, 20), (150,))]
    drawn[0][5] *= 20
    sizes = (torch.rand(150, generator=generator) + 0.5).to(GPU) if is_sized else None
    found = []
    for own in (OWN, Kernels()):
        x, W, b = (part.to(GPU).requires_grad_() for part in drawn)
        with torch.autocast(GPU, torch.bfloat16, enabled=is_rounded):
            latents = autograd.encode(x, W, b, None, BatchTopK(6, sizes), own, may_be_wide=False)
        (latents.values * torch.arange(len(latents.values), device=GPU)).sum().backward()
        found.append((latents, [part.grad for part in (x, W, b)]))
    (latents, grads), (others, expected) = found
    assert len(latents.indices) == 6 * 6
    assert torch.equal(latents.offsets, others.offsets)
    assert torch.equal(latents.indices, others.indices)
    assert int(latents.offsets.diff().max()) > 24, "more than the largest few of a row"
    torch.testing.assert_close(latents.values, others.values)
    # tables of gradients may be bfloat16, in steps of 2^-8
    loose = 2**-7 if is_rounded else 1e-5
    for own, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=loose, atol=loose * float(other.abs().max()))


def test_tables_of_gradients_are_rounded_where_products_are():
    n_latents = 170  # of which so few are active that a GPU adds them up, too
    entries, weights, table, _ = problem(GPU, 0, [1, 0, 2, 1], 6, 40, torch.float32)
    assert not choice.is_dense(entries, n_latents, is_rounded=True)
    found = autograd.row_gradients(entries, weights, table, n_latents, OWN, is_rounded=True)
    assert torch.equal(found, OWN.row_gradients(entries, weights, table.bfloat16(), n_latents))
    assert not torch.equal(found, OWN.row_gradients(entries, weights, table, n_latents))


def test_a_table_may_be_bfloat16():
    """Sums are those of the rounded rows, in the weights' type."""
    entries, weights, table, _ = problem(GPU, 0, [30, 0, 700, 5], 6, 40, torch.float32)
    found = OWN.row_gradients(entries, weights, table.bfloat16(), 6)
    exact = OWN.row_gradients(entries, weights.double(), table.bfloat16().double(), 6)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
