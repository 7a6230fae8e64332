"""Folds: each changes the weights so that the formula, written out here in float64, gives the same."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae import architectures
from sae.architectures.configs import ReLUConfig, configs
from sae.architectures.relu import ReLUSAE
from sae.convert import plain
from sae.convert.plain import Batch, Gate, Jump, Plain, ReLU, TopK
from sae.dictionary import Shape
from sae.errors import FormatError
from tests.sae import peers
from tests.sae.checks import close

ACTIVATIONS = ["relu", "topk", "jump", "batch", "gate"]
any_kind = st.tuples(
    st.sampled_from(ACTIVATIONS),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["none", "layer_norm", "row_norm"]),
    st.integers(0, 10**6),
)


def random_plain(kind: str, pre_bias: bool, skips: bool, rows: str, seed: int) -> Plain:
    """8 latents of 4 columns; with a skip path a transcoder."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    activation = {
        "relu": ReLU(),
        "topk": TopK(3),
        "jump": Jump(draw(8) * 0.5),  # some are negative
        "batch": Batch(3, abs(draw(1).item()), (2, 8)),
        "gate": Gate(0.3 * draw(8), draw(8)),
    }[kind]
    skip = draw(4, 4) if skips else None
    return Plain(draw(8, 4), draw(8), draw(8, 4), draw(4), activation, pre_bias and not skips, rows, skips, skip)


def formula(p: Plain, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and output, in float64."""
    W_enc, b_enc, W_dec, b_dec = (t.double() for t in (p.W_enc, p.b_enc, p.W_dec, p.b_dec))
    x = x.double()
    into, back = (lambda v: v), (lambda v: v)
    if p.rows == "layer_norm":
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        into, back = (lambda v: (v - mean) / (std + 1e-5)), (lambda v: v * std + mean)
    if p.rows == "row_norm":
        size = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
        into, back = (lambda v: v / size), (lambda v: v * size)
    z = into(x) - b_dec if p.pre_bias else into(x)
    pre = z @ W_enc.T + b_enc
    f = pre.relu()
    match p.activation:
        case TopK(k):
            f = torch.zeros_like(f).scatter(1, pre.topk(k).indices, pre.topk(k).values.relu())
        case Jump(threshold):
            f = f * (pre > threshold)
        case Batch(threshold=threshold):
            f = f * (pre > threshold)
        case Gate(r_mag, b_mag):
            f = (z @ (W_enc.T * r_mag.double().exp()) + b_mag).relu() * (pre > 0)
    y = f @ W_dec + b_dec + (0 if p.W_skip is None else x @ p.W_skip.double().T)
    return f, y if p.is_transcoder else back(y)


def rows(seed: int = 0, n: int = 20) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Up to float32; a latent at the edge of its threshold may fall on either side of it."""
    (f, y), (g, z) = found, expected
    edge = ((f - g).abs() > 1e-3).any(1)
    assert edge.float().mean() <= 0.1
    torch.testing.assert_close(f[~edge], g[~edge], rtol=1e-4, atol=1e-4, check_dtype=False)
    torch.testing.assert_close(y[~edge], z[~edge], rtol=1e-4, atol=1e-4, check_dtype=False)


@given(any_kind)
def test_ours_is_the_formula_and_back(kind):
    p = random_plain(*kind)
    sae = plain.to_ours(p, "here")
    same(peers.run(sae, rows()), formula(p, rows()))
    again = plain.of(sae)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(again, name), getattr(p, name))
    assert type(again.activation) is type(p.activation)
    assert (again.pre_bias, again.rows, again.is_transcoder) == (p.pre_bias, p.rows, p.is_transcoder)


@given(any_kind, st.booleans())
def test_a_pre_bias_moves_into_the_encoders_and_out(kind, wanted):
    p = random_plain(*kind)
    if p.is_transcoder and wanted:
        return
    moved = p.with_pre_bias(wanted)
    assert moved.pre_bias == wanted
    same(formula(moved, rows()), formula(p, rows()))


@given(any_kind, st.sampled_from([0.1, 0.37, 3.0]), st.sampled_from([0.5, 2.0]))
def test_scalars(kind, into, out_of):
    p, x = replace(random_plain(*kind), rows="none"), rows()
    out_of = out_of if p.is_transcoder else into
    f, y = formula(p, into * x.double())
    same(formula(p.unscaled(into, out_of), x), (f, y / out_of))


@given(any_kind)
def test_a_scalar_of_1_changes_no_bit(kind):
    p = random_plain(*kind)
    assert p.unscaled(1.0) is p


@given(any_kind, st.integers(0, 99))
def test_whitening(kind, seed):
    p, x = replace(random_plain(*kind), rows="none", W_skip=None, is_transcoder=False), rows()
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(4, generator=generator, dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64) + 0.3 * torch.randn(4, 4, generator=generator).double()  # not symmetric
    inverse = torch.linalg.inv(matrix)
    f, y = formula(p, (x - mean) @ matrix)
    same(formula(p.unwhitened(mean, matrix, inverse), x), (f, y @ inverse + mean))


@given(any_kind, st.integers(0, 99))
def test_what_is_subtracted_from_the_input_moves_into_the_bias(kind, seed):
    p, by = replace(random_plain(*kind), rows="none", W_skip=None, is_transcoder=True, pre_bias=False), rows(seed)[0]
    same(formula(p.centred(by), rows()), formula(p, rows() - by))


def test_unit_rows_by_hand():
    """Rows of norm 5 and 0: the encoder's row is five times what it was; a dead row stays dead."""
    p = Plain(
        torch.eye(2), torch.tensor([1.0, 1.0]), torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2), ReLU(), True
    )
    close(p.unit().W_dec, [[0.6, 0.8], [0, 0]])
    close(p.unit().W_enc, [[5.0, 0], [0, 0]])
    close(p.unit().b_enc, [5.0, 0])


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (ReLU(), [0, 0]),
        (Jump(torch.tensor([0.5, -1.0])), [0.5, -1]),
        (Batch(1, 0.7), [0.7, 0.7]),
        (Batch(1, None), [0, 0]),
        (TopK(1), None),
        (Gate(torch.zeros(2), torch.zeros(2)), None),
    ],
)
def test_what_a_threshold_for_each_latent_can_say(activation, expected):
    p = Plain(torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2), activation, True)
    found = p.thresholds()
    assert (found is None) == (expected is None)
    if found is not None:
        close(found, expected)


@pytest.mark.parametrize(("name", "reason"), sorted(plain._REASONS.items()))
def test_what_has_no_peer_says_why(name, reason):
    shape = {"cross_layer_transcoder": Shape((4, 4), (4, 4))}.get(name, Shape((4, 4) if "coder" in name else (4,)))
    choices = {"n_latents": 8} | ({"k": 2} if name in ("switch", "matching_pursuit", "crosscoder_batchtopk") else {})
    choices |= {"n_experts": 2} if name == "switch" else {}
    dictionary = architectures.build(name, configs.get(name)(**choices), shape)
    with pytest.raises(FormatError) as caught:
        plain.of(dictionary)
    assert str(caught.value) == f"type = {name}: cannot be written; {reason}"


def test_two_sites_side_by_side_have_no_peer():
    with pytest.raises(FormatError, match="cannot be written: it has several sites side by side"):
        plain.of(ReLUSAE(ReLUConfig(n_latents=4), Shape((2, 2))))
