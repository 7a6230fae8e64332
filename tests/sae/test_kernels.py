"""Kernels: values and gradients of the sparse code are those of the dense formula in float64.

Each test runs on both ways through the kernels, sums over entries and dense products, at any size.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae import kernels, select
from sae import latents as sparse_type
from sae.kernels import choice
from sae.latents import Entries, Latents, WideLatents
from sae.select import BatchTopK, Gated, JumpReLU, ReLU, Selection, TopK
from tests.reference import batchtopk, linear

NAMES = ("x", "W_enc", "b_enc", "b_pre", "W_dec")


@pytest.fixture(autouse=True, params=[1.0, 0.0], ids=["sparse", "dense"])
def dense_share(request, monkeypatch):
    monkeypatch.setattr(choice, "DENSE_SHARE", request.param)
    return request.param


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


def sparse(p: dict[str, Tensor], select: Selection) -> tuple[Tensor, Tensor]:
    latents = kernels.encode(p["x"], p["W_enc"], p["b_enc"], p["b_pre"], select)
    return latents.dense(), kernels.decode(latents, p["W_dec"])


def dense_pre_acts(p: dict[str, Tensor]) -> Tensor:
    return (p["x"] - p["b_pre"]) @ p["W_enc"].T + p["b_enc"]


def dense(p: dict[str, Tensor], k: int) -> tuple[Tensor, Tensor]:
    pre = dense_pre_acts(p)
    latents = linear.active(pre, linear.top(pre, k))
    return latents, latents @ p["W_dec"]


def same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-10, atol: float = 1e-12) -> None:
    for name, grad in expected.items():
        torch.testing.assert_close(
            found[name].double(), grad.double(), rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def check(p: dict[str, Tensor], k: int) -> None:
    """Latents, reconstruction and every gradient of TopK against the reference."""
    (f, recon), (f_expected, expected) = sparse(p, TopK(k)), dense(p, k)
    torch.testing.assert_close(f, f_expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(recon, expected, rtol=1e-10, atol=1e-12)
    same(gradients((recon * weights_like(recon)).sum(), p), gradients((expected * weights_like(expected)).sum(), p))


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
    same(found, gradients((expected * weights_like(expected)).sum(), p64), rtol=1e-4, atol=1e-4)


def test_padding_gets_neither_value_nor_gradient():
    """Rows with fewer than k positive pre-activations, and rows with none."""
    p = problem(0, batch=12, d=4, n_latents=8)
    with torch.no_grad():
        p["b_enc"] -= 4.0
    n_positive = (dense_pre_acts(p) > 0).sum(1)
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
    for choose in (TopK(2), BatchTopK(2), ReLU()):
        latents, recon = sparse(p, choose)
        assert latents.shape == (0, 6)
        assert recon.shape == (0, 4)
        for name, grad in gradients(recon.sum(), p).items():
            assert grad.abs().sum() == 0, name


def test_no_active_latent_at_all():
    p = problem(0, batch=3, d=4, n_latents=6)
    with torch.no_grad():
        p["b_enc"] -= 100.0
    latents, recon = sparse(p, ReLU())
    assert (latents.abs().sum(), recon.abs().sum()) == (0, 0)
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


@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "gpu"])
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 29), n=st.integers(1, 59), data=st.data())
def test_a_batch_is_chosen_from_the_largest_few_of_each_row(monkeypatch, on_gpu, seed, batch, n, data):
    """Rows differ so much in size that some have far more than their share, and must be looked at again."""
    monkeypatch.setattr(choice, "CHUNK_ROWS", 5)
    if on_gpu:
        monkeypatch.setattr(select, "_largest", select._largest_on_gpu)
    p = problem(seed, batch, 7, n)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        p["x"] *= 10 * torch.rand(batch, 1, generator=generator, dtype=torch.float64) ** 4
        p["b_enc"] -= seed % 3
    sizes = torch.rand(n, generator=generator, dtype=torch.float64) if seed % 2 else None
    choose = BatchTopK(data.draw(st.integers(1, n)), sizes)
    found = kernels.encode(p["x"], p["W_enc"], p["b_enc"], p["b_pre"], choose).dense()
    torch.testing.assert_close(found, choose(dense_pre_acts(p)).dense(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("choose", [TopK(5), BatchTopK(5), ReLU()], ids=lambda value: type(value).__name__)
def test_a_rounded_product_decides_and_values_are_exact(choose, dense_share):
    """Under autocast: those of float32, where few are kept."""
    p = {name: value.detach() for name, value in problem(4, 40, 32, 200, torch.float32).items()}
    if isinstance(choose, ReLU):
        p["b_enc"] -= 4
    sizes = torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.05
    for weights in (None, sizes):
        own = choose if isinstance(choose, ReLU) else replace(choose, sizes=weights)
        exact = (p["x"] - p["b_pre"]) @ p["W_enc"].T + 3 * p["b_enc"]
        with torch.autocast("cpu", torch.bfloat16):
            found = kernels.encode(p["x"], p["W_enc"], 3 * p["b_enc"], p["b_pre"], own)
        expected = own(exact).dense()
        kept = exact[found.entries.rows, found.indices]
        assert ((found.dense() > 0) & (expected > 0)).sum() > 0.95 * (expected > 0).sum()
        if dense_share == 1.0 or own.sizes is not None:
            torch.testing.assert_close(found.pre_acts, kept, rtol=1e-5, atol=1e-4)
        else:
            torch.testing.assert_close(found.pre_acts, kept, rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("has_sizes", [False, True])
@pytest.mark.parametrize("has_pre_bias", [False, True])
def test_many_kept_latents_reconstruct_by_whole_matrices(monkeypatch, has_sizes, has_pre_bias):
    """Under autocast. Pre-activations are whole numbers here, which bfloat16 does not round; ties are kept."""
    monkeypatch.setattr(choice, "CHUNK_ROWS", 16)
    generator = torch.Generator().manual_seed(3)
    shapes = {"x": (40, 8), "W_enc": (60, 8), "b_enc": (60,), "b_pre": (8,), "W_dec": (60, 6)}
    p = {name: torch.randint(-2, 3, shape, generator=generator).float() for name, shape in shapes.items()}
    p = {name: value.requires_grad_() for name, value in p.items() if name != "b_pre" or has_pre_bias}
    sizes = 2.0 ** torch.randint(-2, 3, (60,), generator=generator) if has_sizes else torch.ones(60)
    weights = torch.randint(-2, 3, (40, 6), generator=generator).float()
    learnt = {name: value for name, value in p.items() if name != "x"}
    with torch.autocast("cpu", torch.bfloat16):
        own = p["W_enc"], p["b_enc"], p.get("b_pre"), p["W_dec"]
        recon = kernels.topk_recon(p["x"], *own, TopK(9, sizes if has_sizes else None))
    pre_acts = (p["x"] - p.get("b_pre", 0)) @ p["W_enc"].T + p["b_enc"]
    edge = (pre_acts * sizes).topk(9, dim=1).values[:, -1:]
    latents = pre_acts.relu() * (pre_acts * sizes >= edge)
    assert (latents > 0).sum() > 9 * 40, "there are ties"
    expected = latents @ p["W_dec"]
    torch.testing.assert_close(recon, expected, rtol=2**-8, atol=1e-6)
    found, expected = (gradients((each * weights).sum(), learnt) for each in (recon, expected))
    same(found, expected, rtol=2**-7, atol=2.0 if has_sizes else 0.5)


@dataclass(frozen=True)
class Tall(TopK):
    """TopK that refuses to see more than four rows at a time."""

    def entries(self, pre_acts: Tensor):
        assert len(pre_acts) <= 4
        return super().entries(pre_acts)


@pytest.mark.parametrize("batch", [3, 4, 5, 8, 11])
def test_chunks_of_rows_do_not_show(monkeypatch, batch):
    p = problem(1, batch=batch, d=4, n_latents=9)
    whole = sparse(p, TopK(3))
    monkeypatch.setattr(choice, "CHUNK_ROWS", 4)
    torch.testing.assert_close(sparse(p, Tall(3)), whole, rtol=1e-12, atol=1e-12)
    check(p, 3)


def test_a_batch_is_never_cut_for_a_selection_that_looks_at_all_of_it(monkeypatch):
    p = problem(1, batch=11, d=4, n_latents=9)
    with torch.no_grad():
        p["x"][:4] *= 10
    monkeypatch.setattr(choice, "CHUNK_ROWS", 4)
    pre = dense_pre_acts(p)
    f, _ = sparse(p, BatchTopK(2))
    torch.testing.assert_close(f, linear.active(pre, batchtopk.kept(pre, 2)), rtol=1e-12, atol=1e-12)
    assert (f[:4] > 0).sum() > 8, "of the first four rows alone no more than 8"


SELECTIONS = {
    "relu": lambda _: ReLU(),
    "topk": lambda _: TopK(3),
    "batchtopk": lambda _: BatchTopK(2),
    "jumprelu": lambda v: JumpReLU(v["threshold"]),
    "jumprelu training": lambda v: JumpReLU(v["threshold"], bandwidth=0.5, ste_to_input=True),
    "gated": lambda v: Gated(v["threshold"], v["b_enc"], v["b_mag"]),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_selection_is_what_it_is_on_dense_pre_activations(name):
    """`kernels.encode` gives latents, pre-activations and gradients of `select(pre)`, the definition."""
    p = problem(2, batch=5, d=4, n_latents=7)
    generator = torch.Generator().manual_seed(0)
    for extra in ("threshold", "b_mag"):
        p[extra] = torch.rand(7, generator=generator, dtype=torch.float64).requires_grad_()
    select = SELECTIONS[name](p)
    found = kernels.encode(p["x"], p["W_enc"], p["b_enc"], p["b_pre"], select)
    defined = select(dense_pre_acts(p))
    assert len(found.values) > 5
    assert torch.equal(found.indices, defined.indices)
    assert torch.equal(found.offsets, defined.offsets)
    torch.testing.assert_close((found.values, found.pre_acts), (defined.values, defined.pre_acts))
    recons = kernels.decode(found, p["W_dec"]), defined.dense() @ p["W_dec"]
    losses = [
        (recon * weights_like(recon)).sum() + (latents.pre_acts**2).sum()  # pre-activations are differentiable too
        for recon, latents in zip(recons, (found, defined), strict=True)
    ]
    same(*(gradients(loss, p) for loss in losses))


@pytest.mark.parametrize("name", ["relu", "jumprelu", "jumprelu training", "gated"])
@pytest.mark.parametrize("share", [-1.0, 1.0], ids=["wide", "listed"])
def test_whole_matrices_while_many_are_active(monkeypatch, name, share):
    """`WideLatents` say, and learn, what lists of the same entries do, two rows at a time."""
    monkeypatch.setattr(choice, "WIDE_SHARE", share)
    monkeypatch.setattr(sparse_type, "CACHED", 2 * 7)
    p = problem(2, batch=5, d=4, n_latents=7)
    generator = torch.Generator().manual_seed(0)
    for extra in ("threshold", "b_mag"):
        p[extra] = torch.rand(7, generator=generator, dtype=torch.float64).requires_grad_()
    select = SELECTIONS[name](p)
    found = kernels.encode(p["x"], p["W_enc"], p["b_enc"], p["b_pre"], select, may_be_wide=True)
    listed = kernels.encode(p["x"], p["W_enc"], p["b_enc"], p["b_pre"], select)
    assert isinstance(found, WideLatents) == (share < 0)
    assert not isinstance(listed, WideLatents)
    assert (found.batch, found.n_latents) == (5, 7)
    assert torch.equal(found.firing_counts(), listed.firing_counts())
    per_latent = torch.arange(7.0, dtype=torch.float64)
    for made in (
        lambda f: f.dense(),
        lambda f: f.fired().dense(),
        lambda f: f.row_sums(f.values * f.pick(per_latent)),
        lambda f: f.weighted_sum(per_latent),
    ):
        torch.testing.assert_close(made(found), made(listed), rtol=1e-12, atol=1e-12)
    for side in ("values", "indices", "offsets", "pre_acts"):
        assert torch.equal(getattr(found.fired(), side), getattr(listed.fired(), side)), side
    half = (found.with_values(2 * found.values), listed.with_values(2 * listed.values))
    torch.testing.assert_close(*(kernels.decode(f, p["W_dec"]) for f in half), rtol=1e-12, atol=1e-12)
    losses = [
        (kernels.decode(f, p["W_dec"]) ** 2).sum()
        + (f.pick(p["b_enc"]) * f.values).sum()
        + f.weighted_sum(p["b_enc"] ** 2)
        + ((select.l0(f) ** 2).sum() if name == "jumprelu training" else 0)
        for f in (found, listed)
    ]
    same(*(gradients(loss, p) for loss in losses))


@pytest.mark.parametrize(("bandwidth", "is_exact"), [(0.001, True), (1.0, False), (0.0, False)])
@pytest.mark.parametrize("share", [-1.0, 1.0], ids=["wide", "listed"])
def test_a_narrow_window_is_met_exactly_under_autocast(monkeypatch, dense_share, bandwidth, is_exact, share):
    """Pre-activations that decide are those of float32; decoding and gradients are rounded all the same."""
    monkeypatch.setattr(choice, "WIDE_SHARE", share)
    p = problem(3, batch=8, d=32, n_latents=24, dtype=torch.float32)
    jump = JumpReLU(torch.full((24,), 0.1), bandwidth)
    assert jump.is_exact == is_exact
    with torch.autocast("cpu", torch.bfloat16):
        found = kernels.encode(*(p[n] for n in NAMES[:4]), jump, may_be_wide=True)
    pre_acts = (p["x"] - p["b_pre"]) @ p["W_enc"].T + p["b_enc"]
    is_again = is_exact or (share > 0 and dense_share == 1.0)  # values of a few that are listed are computed again
    if share > 0:
        assert not is_exact or torch.equal(found.indices, jump.entries(pre_acts).indices)
        pre_acts = select.gather(pre_acts, found.entries)
    else:
        assert found.values.dtype == torch.bfloat16
    assert ((found.pre_acts.float() - pre_acts).abs().max().item() < 1e-4) == is_again


@pytest.mark.parametrize("bandwidth", [0.001, 0.01])
@pytest.mark.parametrize("d", [32, 512])
@pytest.mark.parametrize("height", [0.0, 8.0])
def test_a_narrow_window_is_met_among_many_latents(dense_share, bandwidth, d, height):
    """Biases that bfloat16 rounds by more than the window, thresholds between its steps, a column as large as all
    others, a row ten times as long: what is kept, values
    and gradients are those of float32; by a product in bfloat16 alone others would be kept."""
    generator = torch.Generator().manual_seed(d)
    x, W = torch.randn(64, d, generator=generator), torch.randn(3000, d, generator=generator) / d**0.5
    x[:, 0] *= d**0.5
    x[7] *= 10
    b = height - 3 + torch.randn(3000, generator=generator)
    jump = JumpReLU(height + torch.rand(3000, generator=generator), bandwidth)
    found = []
    for is_rounded in (True, False):
        own = [part.clone().requires_grad_() for part in (x, W, b)]
        with torch.autocast("cpu", torch.bfloat16, enabled=is_rounded):
            latents = kernels.encode(own[0], own[1], own[2], None, jump)
        latents.values.square().sum().backward()
        found.append((latents, [part.grad for part in own]))
    (latents, gradients), (exact, expected) = found
    rough = jump.entries(linear_in_bfloat16(x, W, b))
    assert len(set(rough.flat(3000).tolist()) ^ set(exact.entries.flat(3000).tolist())) > 9
    assert torch.equal(latents.entries.flat(3000), exact.entries.flat(3000))
    torch.testing.assert_close(latents.pre_acts, exact.pre_acts, rtol=1e-5, atol=1e-4)
    loose = 1e-4 if dense_share == 1.0 else 2**-7  # dense products are of factors in bfloat16
    for own, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=loose, atol=loose * float(other.abs().max()))


def linear_in_bfloat16(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.linear(*(part.bfloat16() for part in (x, W, b))).float()


def test_few_active_latents_are_listed():
    p = problem(2, batch=5, d=4, n_latents=70)
    with torch.no_grad():
        p["b_enc"][2:] -= 100
    assert not isinstance(kernels.encode(*(p[n] for n in NAMES[:4]), ReLU(), may_be_wide=True), WideLatents)


@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(1, 6), st.data())
def test_decode_of_any_latents(seed, batch, n_latents, data):
    """Rows without entries, entries of value 0, and a latent twice in a row, whose values add up."""
    rows = [data.draw(st.lists(st.integers(0, n_latents - 1), max_size=5)) for _ in range(batch)]
    places = [(number, index) for number, row in enumerate(rows) for index in row]
    at, indices = torch.tensor(places, dtype=torch.long).view(-1, 2).T
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    generator = torch.Generator().manual_seed(seed)
    p = {
        "values": torch.randn(len(indices), generator=generator, dtype=torch.float64).relu().requires_grad_(),
        "W_dec": torch.randn(n_latents, 3, generator=generator, dtype=torch.float64).requires_grad_(),
    }
    latents = Latents(p["values"], indices, offsets, p["values"], n_latents)
    matrix = torch.zeros(batch, n_latents, dtype=torch.float64)
    expected = matrix.index_put((at, indices), p["values"], accumulate=True) @ p["W_dec"]
    recon = kernels.decode(latents, p["W_dec"])
    torch.testing.assert_close(recon, expected, rtol=1e-12, atol=1e-12)
    same(*(gradients((r * weights_like(r)).sum(), p) for r in (recon, expected)))


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 12), st.integers(1, 6))
def test_row_gradients_by_a_dense_product(seed, batch, nnz, n_latents):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(n_latents, (nnz,), generator=generator)
    rows = torch.randint(batch, (nnz,), generator=generator).sort().values
    entries = Entries(indices, torch.searchsorted(rows, torch.arange(batch + 1)))
    assert torch.equal(entries.rows, rows)
    weights = torch.randn(nnz, generator=generator, dtype=torch.float64)
    table = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    matrix = torch.zeros(n_latents, batch, dtype=torch.float64)
    matrix.index_put_((indices, rows), weights, accumulate=True)
    found = kernels.row_gradients(entries, weights, table, n_latents)
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
    assert "torch" in kernels.backends()


def test_tf32_is_asked_for_within_its_context_only():
    before = torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(KeyError), choice._tf32():
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        raise KeyError
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_tf32_that_is_there_for_all_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    with choice._tf32():
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    monkeypatch.undo()
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"
