"""Kernels: values and gradients of the sparse code are those of the dense formula in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae import kernels
from sae.kernels import torch as plain
from sae.select import TopK
from tests.reference import topk as reference

NAMES = ("x", "W_enc", "b_enc", "b_pre", "W_dec")


def problem(seed: int, batch: int, d: int, n_latents: int, dtype=torch.float64) -> dict[str, Tensor]:
    shapes = {"x": (batch, d), "W_enc": (n_latents, d), "b_enc": (n_latents,), "b_pre": (d,), "W_dec": (n_latents, d)}
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def gradients(loss: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if grad is None else grad
        for (name, value), grad in zip(inputs.items(), found, strict=True)
    }


def weights_like(recon: Tensor) -> Tensor:
    return torch.linspace(-1, 1, recon.numel(), dtype=recon.dtype).view_as(recon)


def sparse(p: dict[str, Tensor], select) -> tuple[Tensor, Tensor]:
    latents = kernels.encode(p["x"], p["W_enc"], p["b_enc"], p["b_pre"], select)
    return latents.dense(), kernels.decode(latents, p["W_dec"])


def dense(p: dict[str, Tensor], k: int) -> tuple[Tensor, Tensor]:
    latents = reference.latents(p["x"], p["W_enc"], p["b_enc"], p["b_pre"], k)
    return latents, latents @ p["W_dec"]


def check(p: dict[str, Tensor], k: int, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Latents, reconstruction and every gradient against the reference."""
    (f, recon), (f_expected, expected) = sparse(p, TopK(k)), dense(p, k)
    torch.testing.assert_close(f, f_expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(recon, expected, rtol=rtol, atol=atol)
    found = gradients((recon * weights_like(recon)).sum(), p)
    for name, grad in gradients((expected * weights_like(expected)).sum(), p).items():
        torch.testing.assert_close(
            found[name], grad, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@given(seed=st.integers(0, 10**6), batch=st.integers(1, 5), d=st.integers(1, 6), n=st.integers(1, 8), data=st.data())
def test_values_and_gradients_are_the_dense_ones(seed, batch, d, n, data):
    check(problem(seed, batch, d, n), data.draw(st.integers(1, n)))


@pytest.mark.parametrize("k", [1, 5, 8])
def test_in_float32(k):
    """Against the float64 reference: errors of single precision, 24 bits, over sums of 16 terms."""
    p32 = problem(3, batch=32, d=16, n_latents=8, dtype=torch.float32)
    p64 = {name: value.detach().double().requires_grad_() for name, value in p32.items()}
    (f, recon), (f_expected, expected) = sparse(p32, TopK(k)), dense(p64, k)
    torch.testing.assert_close(f.double(), f_expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(recon.double(), expected, rtol=1e-5, atol=1e-5)
    found = gradients((recon * weights_like(recon)).sum(), p32)
    for name, grad in gradients((expected * weights_like(expected)).sum(), p64).items():
        torch.testing.assert_close(found[name].double(), grad, rtol=1e-4, atol=1e-4)


def test_padding_gets_neither_value_nor_gradient():
    """Rows with fewer than k positive pre-activations, and rows with none."""
    p = problem(0, batch=12, d=4, n_latents=8)
    with torch.no_grad():
        p["b_enc"] -= 4.0
    pre_acts = (p["x"] - p["b_pre"]) @ p["W_enc"].T + p["b_enc"]
    n_positive = (pre_acts > 0).sum(1)
    assert ((n_positive > 0) & (n_positive < 5)).any(), "the example has such rows"
    assert (n_positive == 0).any()
    check(p, 5)
    with torch.no_grad():
        p["b_enc"] -= 100.0
    latents, recon = sparse(p, TopK(5))
    assert latents.abs().sum() == 0
    assert recon.abs().sum() == 0
    for name, grad in gradients((recon * weights_like(recon)).sum(), p).items():
        assert grad.abs().sum() == 0, name


def test_an_empty_batch():
    p = problem(0, batch=0, d=4, n_latents=6)
    latents, recon = sparse(p, TopK(2))
    assert latents.shape == (0, 6)
    assert recon.shape == (0, 4)
    for name, grad in gradients(recon.sum(), p).items():
        assert grad.abs().sum() == 0, name


def test_ties_keep_k_different_latents():
    p = problem(0, batch=3, d=4, n_latents=6)
    with torch.no_grad():
        p["W_enc"].fill_(0.0)
        p["b_enc"].fill_(1.0)
    latents = kernels.encode(p["x"], p["W_enc"], p["b_enc"], p["b_pre"], TopK(2))
    assert latents.values.tolist() == [1.0] * 6
    assert all(len(set(row)) == 2 for row in latents.indices.view(3, 2).tolist())
    recon = kernels.decode(latents, p["W_dec"])
    torch.testing.assert_close(recon, latents.dense() @ p["W_dec"])


def test_chunks_of_rows_do_not_show(monkeypatch):
    p = problem(1, batch=11, d=4, n_latents=9)
    whole = sparse(p, TopK(3))
    monkeypatch.setattr(plain, "CHUNK_ROWS", 4)
    torch.testing.assert_close(sparse(p, TopK(3)), whole, rtol=1e-12, atol=1e-12)
    check(p, 3)


def test_another_selection_runs_on_the_dense_pre_activations():
    p = problem(2, batch=5, d=4, n_latents=7)

    def select(pre_acts: Tensor):
        return TopK(3)(pre_acts)

    (f, recon), (f_fused, fused) = sparse(p, select), sparse(p, TopK(3))
    torch.testing.assert_close(f, f_fused, rtol=1e-12, atol=1e-12)
    found, expected = (gradients((r * weights_like(r)).sum(), p) for r in (recon, fused))
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)


def test_pre_activations_are_differentiable_themselves():
    p = problem(4, batch=5, d=4, n_latents=7)
    latents = kernels.encode(p["x"], p["W_enc"], p["b_enc"], p["b_pre"], TopK(3))
    pre_acts = (p["x"] - p["b_pre"]) @ p["W_enc"].T + p["b_enc"]
    expected = torch.where(reference.kept(pre_acts, 3), pre_acts, torch.zeros_like(pre_acts))
    found = gradients((latents.pre_acts**2).sum(), p)
    for name, grad in gradients((expected**2).sum(), p).items():
        torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 12), st.integers(1, 6))
def test_row_gradients_by_a_dense_product(seed, batch, nnz, n_latents):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(n_latents, (nnz,), generator=generator)
    rows = torch.randint(batch, (nnz,), generator=generator)
    weights = torch.randn(nnz, generator=generator, dtype=torch.float64)
    table = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    matrix = torch.zeros(n_latents, batch, dtype=torch.float64)
    matrix.index_put_((indices, rows), weights, accumulate=True)
    found = plain.row_gradients(indices, rows, weights, table, n_latents)
    torch.testing.assert_close(found, matrix @ table, rtol=1e-12, atol=1e-12)


def test_repeats_are_equal_bit_for_bit():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        p = problem(5, batch=512, d=32, n_latents=64, dtype=torch.float32)
        runs = []
        for _ in range(3):
            _, recon = sparse(p, TopK(8))
            runs.append([recon.detach(), *gradients((recon * weights_like(recon)).sum(), p).values()])
        for again in runs[1:]:
            assert all(torch.equal(one, two) for one, two in zip(runs[0], again, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_backends():
    assert kernels.backends() == ["torch"]
