"""What touches active latents only, by every backend: equal to plain torch in float64. Triton runs on a GPU, or in its
interpreter."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae.kernels.torch import Kernels
from sae.latents import Entries

PLAIN = Kernels()
GPU = "cuda" if torch.cuda.is_available() else "cpu"


def backend(name: str) -> tuple[Kernels, str]:
    """A backend, and where its tensors lie."""
    if name == "torch":
        return PLAIN, "cpu"
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    if name == "numba":
        from sae.kernels.numba import Numba

        return Numba(), "cpu"
    from sae.kernels.triton import Triton

    return Triton(), GPU


@pytest.fixture(params=["torch", "numba", pytest.param("triton", marks=pytest.mark.slow)])
def own(request) -> tuple[Kernels, str]:
    return backend(request.param)


def strengths(seed: int, rows: int, n: int, dtype: torch.dtype, shift: float = 0.0) -> Tensor:
    return (torch.randn(rows, n, generator=torch.Generator().manual_seed(seed)) + shift).to(dtype)


def check_largest(kernels: Kernels, values: Tensor, k: int) -> None:
    found = kernels.largest(values, k)
    assert found.shape == (len(values), k)
    assert all(len(set(row)) == k for row in found.tolist()), "each entry once"
    assert bool(((found >= 0) & (found < values.shape[1])).all())
    own, torchs = values.gather(1, found), values.topk(k, dim=1).values
    # of entries that are not positive any may be taken
    assert torch.equal(own.float().relu().sort(1).values, torchs.float().relu().sort(1).values)


def check_largest_of_batch(kernels: Kernels, values: Tensor, wanted: int) -> None:
    found, (rows, n) = kernels.largest_of_batch(values, wanted), values.shape
    chosen, exact = torch.zeros(rows * n, dtype=torch.bool), values.float().relu().flatten().cpu()
    chosen[found.flat(n).cpu()] = True
    assert len(found.indices) == int(found.offsets[-1]) == int(chosen.sum()) == min(wanted, rows * n), "each entry once"
    order = exact.sort(descending=True, stable=True).indices[:wanted]
    expected = torch.zeros_like(chosen).index_fill_(0, order[exact[order] > 0], value=True)
    # of entries that are not positive any may be taken
    assert torch.equal(chosen & (exact > 0), expected)
    assert torch.equal(found.flat(n), found.flat(n).sort().values)


def check_keep_largest(kernels: Kernels, values: Tensor, k: int) -> None:
    edge = values.float().topk(k, dim=1).values[:, -1:].clamp_min(0)
    expected = torch.where(values.float() >= edge, values, 0).relu()
    found = values.clone()
    kernels.keep_largest(found, k)
    assert torch.equal(found, expected)


def problem(
    device: str, seed: int, counts: list[int], n_latents: int, d: int, kind: torch.dtype
) -> tuple[Entries, Tensor, Tensor, Tensor]:
    """Entries, a weight for each, a table of the batch and a matrix of the latents."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    nnz = sum(counts)
    skewed = (n_latents * torch.rand(nnz, generator=generator) ** 4).long()  # some latents are in nearly every row
    weights, table, matrix = (
        torch.randn(shape, generator=generator).to(kind) for shape in ((nnz,), (len(counts), d), (n_latents, d))
    )
    entries = Entries(skewed.to(device), offsets.to(device))
    return entries, weights.to(device), table.to(device), matrix.to(device)


def check_sums(
    own: tuple[Kernels, str], seed: int, counts: list[int], n_latents: int, d: int, kind: torch.dtype
) -> None:
    kernels, device = own
    entries, weights, table, matrix = problem(device, seed, counts, n_latents, d, kind)
    found = {
        "dots": kernels.dots(entries, table, matrix),
        "sum_rows": kernels.sum_rows(entries, weights, matrix),
        "row_gradients": kernels.row_gradients(entries, weights, table, n_latents),
        "latent_sums": kernels.latent_sums(entries, weights, n_latents),
    }
    weights, table, matrix = weights.double(), table.double(), matrix.double()
    exact = torch.zeros(len(counts), n_latents, dtype=torch.float64, device=device)
    exact.index_put_((entries.rows, entries.indices), weights, accumulate=True)
    expected = {
        "dots": (table[entries.rows] * matrix[entries.indices]).sum(1),
        "sum_rows": exact @ matrix,
        "row_gradients": exact.T @ table,
        "latent_sums": exact.sum(0),
    }
    loose = 1e-12 if kind == torch.float64 else 1e-4
    for name, value in expected.items():
        assert found[name].dtype == kind
        torch.testing.assert_close(
            found[name].double(), value, rtol=loose, atol=loose, msg=lambda text, name=name: f"{name}: {text}"
        )


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 20), max_size=4),
    st.integers(1, 6),
    st.sampled_from([1, 3, 300]),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=30)
def test_sums_are_the_dense_ones(own, seed, counts, n_latents, d, kind):
    check_sums(own, seed, counts, n_latents, d, kind)


def test_repeats_are_equal_bit_for_bit(own):
    kernels, device = own
    entries, weights, table, matrix = problem(device, 0, [8] * 16, 5, 64, torch.float32)
    first, again = (
        [
            kernels.dots(entries, table, matrix),
            kernels.sum_rows(entries, weights, matrix),
            kernels.row_gradients(entries, weights, table, 5),
            kernels.latent_sums(entries, weights, 5),
        ]
        for _ in range(2)
    )
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


@given(
    st.integers(0, 10**6),
    st.integers(0, 4),
    st.integers(1, 300),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([-100.0, -2.0, 0.0, 3.0]),
    st.data(),
)
@settings(max_examples=30)
def test_the_largest_of_a_batch_are_torchs(own, seed, rows, n, dtype, shift, data):
    kernels, device = own
    wanted = data.draw(st.integers(0, rows * n + 3))
    check_largest_of_batch(kernels, strengths(seed, rows, n, dtype, shift).to(device), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_largest_of_a_batch_at_real_sizes_and_of_ties(own, dtype):
    kernels, device = own
    check_largest_of_batch(kernels, strengths(0, 3, 10_241, dtype).to(device), 3 * 32)
    check_largest_of_batch(kernels, strengths(0, 3, 500, dtype).round().to(device), 64)  # ties at the edge, over rows
    check_largest_of_batch(kernels, torch.ones(3, 50, dtype=dtype, device=device), 70)
    check_largest_of_batch(kernels, torch.full((2, 50), 2.0**-130, dtype=dtype, device=device), 70)
    skewed = strengths(1, 6, 400, dtype)
    skewed[2] += 5  # most are of one row
    check_largest_of_batch(kernels, skewed.to(device), 6 * 50)
    skewed[1, 7] = torch.nan  # taken or not
    assert len(kernels.largest_of_batch(skewed.to(device), 9).indices) == 9


@pytest.mark.filterwarnings("ignore:.*encountered in multiply:RuntimeWarning")  # numpy's, in Triton's interpreter
def test_rounding_is_torchs_bit_for_bit(own):
    """To the nearest, to the even one of two, over the largest to infinity, and what is no number stays so."""
    kernels, device = own
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randint(-(2**31), 2**31 - 1, (60, 200), generator=generator).int().view(torch.float32)
    matrix[0, :5] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, torch.inf, 0.0])
    matrix[0, 5] = torch.tensor(0x7F800001, dtype=torch.int32).view(torch.float32)  # its upper half is that of infinity
    sizes = torch.ones(60)
    sizes[30:] = torch.rand(30, generator=generator)
    matrix, sizes = matrix.to(device), sizes.to(device)
    for weights in (None, sizes):
        found = kernels.rounded(matrix, weights)
        exact = (matrix if weights is None else matrix * weights[:, None]).bfloat16()
        assert found.dtype == torch.bfloat16
        assert torch.equal(found.isnan(), exact.isnan())
        assert torch.equal(found.nan_to_num(7.0), exact.nan_to_num(7.0))


def test_rows_of_a_matrix_that_is_not_contiguous(own):
    kernels, device = own
    matrix, gradient = (torch.randn(8, 6, generator=torch.Generator().manual_seed(i)).to(device).T for i in range(2))
    version = matrix._version
    kernels.normalise_rows(matrix)
    assert matrix._version > version, "autograd is told"
    torch.testing.assert_close(matrix.norm(dim=1), torch.ones(6, device=device))
    kernels.remove_parallel(gradient, matrix)
    assert float((gradient * matrix).sum(1).abs().max()) < 1e-5
    for each in (matrix.contiguous(), gradient.contiguous()):
        version = each._version
        kernels.normalise_rows(each)
        assert each._version > version


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 5, 64])
def test_rows_are_normalised_and_parallel_parts_removed(own, d, kind):
    kernels, device = own
    generator = torch.Generator().manual_seed(d)
    matrix, gradient = (torch.randn(7, d, generator=generator).to(device, kind) for _ in range(2))
    matrix[3] = 0
    expected = [matrix.clone(), gradient.clone()]
    PLAIN.normalise_rows(expected[0])
    kernels.normalise_rows(matrix)
    torch.testing.assert_close(matrix, expected[0])
    assert bool((matrix[3] == 0).all())
    PLAIN.remove_parallel(expected[1], matrix)
    kernels.remove_parallel(gradient, matrix)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-5, atol=1e-6)
    assert float((gradient * matrix).sum(1).abs().max()) < 1e-5


@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(1, 300), st.data())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("name", ["torch", "numba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_are_kept_where_they_lie(name, dtype, seed, rows, n, data):
    """With all that are equal to the least of them, of which bfloat16 has many; none that is not positive."""
    values = strengths(seed, rows, n, dtype, data.draw(st.sampled_from([-2.0, 0.0])))
    check_keep_largest(backend(name)[0], values, data.draw(st.integers(1, n)))


@pytest.mark.parametrize("name", ["torch", "numba"])
def test_more_than_there_are_are_all_kept(name):
    values = torch.tensor([[2.0, -1.0, 3.0]])
    backend(name)[0].keep_largest(values, 5)
    assert values.tolist() == [[2.0, 0.0, 3.0]]
