"""TopK with AuxK: the worked example of Gao et al.'s losses, then each promise of the class.

Example E: latents l0..l3, encoder and decoder rows alike, pre-bias (.5, 0), two rows.

    W = [[1,0],[0,1],[.6,.8],[-1,0]]    b_dec = (.5,0)    X = [[2,1],[1.1,-1]]
    u = X - b_dec = [[1.5,1],[.6,-1]]   pre = [[1.5,1,1.7,-1.5],[.6,-1,-.44,-.6]]
    k = 2: f = [[1.5,0,1.7,0],[.6,0,0,0]]   x_hat = [[3.02,1.36],[1.1,0]]   row errors [1.17,1]
"""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae import architectures, hub
from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import InputStats, Step, geometric_median, normalise_rows, remove_parallel_gradient
from sae.errors import ConfigError, FormatError, StoreError
from tests.reference import topk as reference

X = torch.tensor([[2.0, 1.0], [1.1, -1.0]])


def example(**choices) -> TopKSAE:
    dictionary = TopKSAE(TopKConfig(n_latents=4, k=2, **choices), d_in=2)
    with torch.no_grad():
        weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])
        dictionary.W_enc.copy_(weights)
        dictionary.W_dec.copy_(weights)
        dictionary.b_dec.copy_(torch.tensor([0.5, 0.0]))
    return dictionary


def step(*dead: int, n_latents: int = 4) -> Step:
    mask = torch.zeros(n_latents, dtype=torch.bool)
    mask[list(dead)] = True
    return Step(0, mask)


def close(actual, expected, **tolerance) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


# --- example E ---


def test_forward():
    out = example()(X, step())
    close(out.latents.dense(), [[1.5, 0, 1.7, 0], [0.6, 0, 0, 0]])
    close(out.recon, [[3.02, 1.36], [1.1, 0.0]])
    close(out.terms["mse"], 1.085)  # mean of the row errors 1.17 and 1
    assert list(out.terms) == ["mse"], "without dead latents there is no other term"


def test_loss_is_divided_by_the_variance_of_the_inputs():
    dictionary = example()
    dictionary.variance.fill_(1.2025)  # squared distance of each row of X from their mean (1.55, 0)
    close(dictionary(X, step()).terms["mse"], 0.902287)  # 2.17 / 2.405


def test_gradient():
    dictionary = example()
    dictionary(X, step()).terms["mse"].backward()
    # residual x_hat - x = [[1.02,.36],[0,1]]; d/dpre = residual . row of W_dec = [[1.02,0,.9,0],[0,0,0,0]]
    close(dictionary.W_enc.grad, [[1.53, 1.02], [0, 0], [1.35, 0.9], [0, 0]])
    close(dictionary.b_enc.grad, [1.02, 0, 0.9, 0])
    # f^T residual: l0 1.5*(1.02,.36) + .6*(0,1), l2 1.7*(1.02,.36)
    close(dictionary.W_dec.grad, [[1.53, 1.14], [0, 0], [1.734, 0.612], [0, 0]])
    # as output bias (1.02,1.36), as pre-bias -(1.02*(1,0) + .9*(.6,.8)) = -(1.56,.72)
    close(dictionary.b_dec.grad, [-0.54, 0.64])


def auxk(dictionary: TopKSAE, *dead: int) -> torch.Tensor:
    """The AuxK term without its weight of 1/32."""
    return dictionary(X, step(*dead)).terms["auxk"] * 32


def test_auxk():
    # dead l1, l3, k_aux = d/2 = 1. e = [[-1.02,-.36],[0,-1]]; z: row 0 l1 = 1, row 1 l3 = -.6 -> 0
    # e_hat = [[0,1],[0,0]]: rows 2.89 and 1, mean 1.945; variance of e .3625
    dictionary = example()
    value = auxk(dictionary, 1, 3)
    close(value, 5.365517)
    value.backward()
    # d/dpre[0,l1] = (e_hat - e)_1 / .3625 = 1.36 / .3625 = 3.751724, all others 0
    close(dictionary.W_enc.grad, [[0, 0], [5.627586, 3.751724], [0, 0], [0, 0]])
    close(dictionary.b_enc.grad, [0, 3.751724, 0, 0])
    close(dictionary.b_dec.grad, [0, -3.751724])  # through the pre-bias; no bias is added to e_hat
    close(dictionary.W_dec.grad, [[0, 0], [2.813793, 3.751724], [0, 0], [0, 0]])  # residual is a constant


def test_auxk_weight():
    term = example(auxk_coef=0.5)(X, step(1, 3)).terms["auxk"]
    close(term, 5.365517 / 2)


def test_auxk_with_fewer_dead_latents_than_it_may_use():
    # all the dead are used: l1 alone gives the same e_hat; l3 at -.6 adds nothing
    for dead in ((1,), (1, 3)):
        dictionary = example(auxk=2)
        value = auxk(dictionary, *dead)
        close(value, 5.365517)
        value.backward()
        assert all(torch.isfinite(p.grad).all() for p in dictionary.parameters())


def test_auxk_where_no_dead_latent_is_positive():
    # l3 has pre-activations -1.5 and -.6: z = 0, so ||e||^2 / Var(e) = 1.085 / .3625, and nothing moves
    dictionary = example()
    value = auxk(dictionary, 3)
    close(value, 2.993103)
    value.backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in dictionary.parameters())


@pytest.mark.parametrize("choices", [{"auxk": 0}, {"auxk_coef": 0}])
def test_auxk_can_be_turned_off(choices):
    assert list(example(**choices)(X, step(1, 3)).terms) == ["mse"]


@pytest.mark.parametrize("rows", [X[:1], X[:1].repeat(3, 1)], ids=["one row", "equal rows"])
def test_a_residual_without_variance_has_no_auxk(rows):
    dictionary = example()
    terms = dictionary(rows, step(1, 3)).terms
    assert terms["auxk"] == 0
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in dictionary.parameters())


# --- against the dense formula ---


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 5), st.integers(2, 9), st.data())
def test_losses_and_gradients_are_the_dense_ones(seed, batch, d, n, data):
    k, k_aux = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    dead = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    dictionary = TopKSAE(TopKConfig(n_latents=n, k=k, auxk=k_aux, auxk_coef=0.25), d).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in dictionary.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(batch, d, generator=generator, dtype=torch.float64)
    terms = dictionary(x, Step(0, dead)).terms
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    copies = {name: getattr(dictionary, name).detach().clone().requires_grad_() for name in names}
    expected = reference.loss(x, **copies, k=k, dead=dead, k_aux=k_aux)
    torch.testing.assert_close(terms["mse"], expected.squared_error, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        terms.get("auxk", torch.zeros((), dtype=torch.float64)), expected.auxk / 4, rtol=1e-9, atol=1e-12
    )
    torch.stack(list(terms.values())).sum().backward()
    (expected.squared_error + expected.auxk / 4).backward()
    for name in names:
        torch.testing.assert_close(getattr(dictionary, name).grad, copies[name].grad, rtol=1e-8, atol=1e-10)


# --- the decoder's rows ---


def test_the_part_of_a_gradient_along_its_row_is_removed():
    dictionary = example()
    dictionary(X, step()).terms["mse"].backward()
    dictionary.before_step()
    # l0: (1.53,1.14) on (1,0) leaves (0,1.14); l2: (1.734,.612) . (.6,.8) = 1.53, leaves (.816,-.612)
    close(dictionary.W_dec.grad, [[0, 1.14], [0, 0], [0.816, -0.612], [0, 0]])
    close(dictionary.W_enc.grad, [[1.53, 1.02], [0, 0], [1.35, 0.9], [0, 0]])


def test_no_gradient_is_no_error():
    matrix = torch.nn.Parameter(torch.eye(2))
    remove_parallel_gradient(matrix)
    assert matrix.grad is None
    assert torch.equal(matrix, torch.eye(2))


def test_rows_are_unit_after_every_step():
    dictionary = example()
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        dictionary(X, step(1, 3)).terms["mse"].backward()
        dictionary.before_step()
        optimizer.step()
        dictionary.after_step()
        close(dictionary.W_dec.norm(dim=1), [1.0] * 4)


def test_a_zero_row_stays_zero():
    matrix = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    normalise_rows(matrix)
    close(matrix, [[0.6, 0.8], [0.0, 0.0]])


# --- initialisation ---


def test_initialisation():
    dictionary = TopKSAE(TopKConfig(n_latents=50, k=4), 8)
    stats = InputStats(scale=0.5, variance=3.0, centre=torch.arange(8.0))
    dictionary.initialise(stats, torch.Generator().manual_seed(7))
    close(dictionary.W_dec.norm(dim=1), [1.0] * 50)
    assert torch.equal(dictionary.W_enc, dictionary.W_dec)
    assert torch.equal(dictionary.b_dec, torch.arange(8.0))
    assert dictionary.b_enc.abs().sum() == 0
    assert (dictionary.scale.item(), dictionary.variance.item()) == (0.5, 3.0)
    again = TopKSAE(TopKConfig(n_latents=50, k=4), 8)
    again.initialise(stats, torch.Generator().manual_seed(7))
    assert torch.equal(again.W_dec, dictionary.W_dec)


def line(*places: float) -> torch.Tensor:
    return torch.tensor([[x, 0.0] for x in places])


@pytest.mark.parametrize(
    ("points", "median"),
    [
        (torch.tensor([[0.0, 0], [0, 2], [2, 0], [2, 2]]), [1.0, 1.0]),  # a square: its centre
        (torch.tensor([[0.0, 0], [0, 2], [2, 0], [2, 2], [1, 1]]), [1.0, 1.0]),  # a point on the first guess
        (line(0, 1, 100), [1.0, 0.0]),  # on a line: the median
        (line(0, 0, 0, 2, 8), [0.0, 0.0]),  # whose mean, 2, is another of the points
        (line(3, 3, 3), [3.0, 0.0]),
        (line(5), [5.0, 0.0]),
        # corners of an equilateral triangle: its centre
        (torch.tensor([[0.0, 0], [2, 0], [1, 3**0.5]]), [1.0, 3**-0.5]),
    ],
)
def test_geometric_median(points, median):
    close(geometric_median(points), median, rtol=0, atol=2e-4)


def test_geometric_median_is_where_no_step_is_an_improvement():
    points = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) ** 3
    median = geometric_median(points).double()
    pull = torch.nn.functional.normalize(points.double() - median, dim=1).mean(0)
    assert pull.norm() < 1e-4, "unit vectors towards the points cancel"


# --- units ---


def test_inputs_and_reconstructions_are_in_the_networks_units():
    """With scale s, x is encoded as s x by the same weights, and what comes out is divided by s."""
    unscaled, scaled = example(), example()
    scaled.scale.fill_(4.0)
    latents = scaled.encode(X / 4)
    assert torch.equal(latents.dense(), unscaled.encode(X).dense())
    close(scaled.decode(latents), [[3.02 / 4, 1.36 / 4], [1.1 / 4, 0.0]])
    out = scaled(X / 4, step())
    assert torch.equal(out.target, X)
    close(out.terms["mse"], 1.085)
    close(out.recon / 4, scaled.decode(scaled.encode(X / 4)).tolist())


# --- files ---


@pytest.fixture
def saved(tmp_path):
    dictionary = example()
    dictionary.scale.fill_(2.0)
    hub.save(dictionary, "topk", dictionary.cfg, {"d_in": 2, "site": "mlp_out.3"}, tmp_path)
    return dictionary, tmp_path


def test_what_is_loaded_is_what_was_saved(saved):
    dictionary, folder = saved
    loaded = hub.load(folder)
    assert type(loaded) is TopKSAE
    assert loaded.cfg == dictionary.cfg
    assert not loaded.training
    state = dictionary.state_dict()
    assert set(state) == {"W_enc", "b_enc", "W_dec", "b_dec", "scale", "variance"}
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.decode(loaded.encode(X)), dictionary.decode(dictionary.encode(X)))
    assert hub.facts(folder) == {"d_in": 2, "site": "mlp_out.3"}
    assert sorted(path.name for path in folder.iterdir()) == ["dictionary.json", "dictionary.safetensors"]


def edit(folder, **changes) -> None:
    path = folder / "dictionary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_schema_is_refused(saved):
    _, folder = saved
    edit(folder, schema=2)
    with pytest.raises(FormatError) as caught:
        hub.load(folder)
    assert str(caught.value) == f"{folder}/dictionary.json: schema 2, this version reads 1"


def test_an_unknown_architecture_is_named(saved):
    _, folder = saved
    edit(folder, type="topkk")
    with pytest.raises(ConfigError) as caught:
        hub.load(folder)
    assert str(caught.value) == "sae.type 'topkk' is unknown: did you mean topk? (a plug-in is named under `plugins`)"
    with pytest.raises(ConfigError, match="is unknown"):
        architectures.build("topkk", TopKConfig(), 2)


def test_a_choice_that_this_version_does_not_know_is_named(saved):
    _, folder = saved
    edit(folder, config={"n_latents": 4, "k": 2, "kk": 3})
    with pytest.raises(ConfigError) as caught:
        hub.load(folder)
    assert str(caught.value) == f"{folder}/dictionary.json: config.kk: no such field; did you mean k?"


def test_tensors_that_do_not_fit_are_refused(saved):
    _, folder = saved
    edit(folder, config={"n_latents": 5, "k": 2})
    with pytest.raises(FormatError, match=r"(?s)dictionary\.safetensors: .*size mismatch for W_enc"):
        hub.load(folder)


def test_a_folder_without_a_dictionary_is_named(tmp_path):
    with pytest.raises(StoreError) as caught:
        hub.load(tmp_path)
    assert str(caught.value) == f"{tmp_path}/dictionary.json: no such file"


def test_architectures_are_listed():
    assert "topk" in architectures.names()
