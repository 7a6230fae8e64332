"""Many edits in one pass: each is what a plain forward pass with that edit gives."""

import numpy as np
import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from analysis.codes import Codes
from analysis.effects.intervene import Edits, Network
from analysis.splits import FitView
from sae.errors import ConfigError
from sae.sites import Site, resolve
from sae.tokens import TokenSplit
from tests.analysis.effects.networks import Spelled, SpelledAlone, plain_rows, random_models, subject_of

V = 50
STARTS = np.array([0, 24, 48, 64])
DIRECTIONS = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
SITES = ("mlp_out.1", "attn_out.0", "resid_pre.2", "resid_post.0", "mlp_in.1")


@pytest.fixture(scope="module")
def view() -> FitView:
    tokens = np.random.default_rng(0).integers(0, V, 64).astype(np.uint16)
    nothing = Codes(np.zeros(6, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    return FitView.of(TokenSplit("fit", tokens, STARTS, STARTS, {}), nothing, tuple(map(str, range(V))), 1)


@pytest.fixture(scope="module")
def edits() -> Edits:
    """Of three contexts, some positions with several."""
    rng = np.random.default_rng(1)
    latents = rng.integers(0, 5, 30)
    return Edits(latents, rng.integers(1, 64, 30), latents, rng.normal(0, 3, 30).astype(np.float32))


def network_of(model, site: str, directions: torch.Tensor = DIRECTIONS) -> Network:
    return Network(subject_of(model), resolve(model, site), directions, plain_rows)


@pytest.fixture(scope="module")
def models():
    return random_models(V)


def by_hand(model, site, view, edits, i) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities without, with) edit i, by one hook on one context."""
    position = int(edits.positions[i])
    start = int(STARTS[np.searchsorted(STARTS, position, side="right") - 1])
    ids = torch.from_numpy(view.tokens[start : position + 1])[None]
    delta = edits.values[i].item() * DIRECTIONS[int(edits.directions[i])]
    module = model.get_submodule(site.path)

    def added(value):
        x = value[0] if isinstance(value, tuple) else value
        x = torch.cat([x[:, :-1], x[:, -1:] + delta], dim=1)
        return (x, *value[1:]) if isinstance(value, tuple) else x

    clean = model(input_ids=ids).logits[0, -1].log_softmax(0)
    if site.side == "out":
        handle = module.register_forward_hook(lambda _m, _a, output: added(output))
    else:
        handle = module.register_forward_pre_hook(lambda _m, args: (added(args[0]), *args[1:]))
    changed = model(input_ids=ids).logits[0, -1].log_softmax(0)
    handle.remove()
    return clean, changed


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_copies_are_plain_passes(models, family, site, view, edits):
    model = models[family]
    network = network_of(model, site)
    seen, worst, largest = [], 0.0, 0.0
    for outcomes in network.outcomes(view, edits):
        for row, i in enumerate(outcomes.edits.tolist()):
            clean, changed = by_hand(model, network.site, view, edits, i)
            worst = max(worst, (outcomes.clean[outcomes.at[row]] - clean).abs().max().item())
            worst = max(worst, (outcomes.change[row] - (changed - clean)).abs().max().item())
            largest = max(largest, outcomes.change[row].abs().max().item())
            kl = (clean.exp() * (clean - changed)).sum()
            torch.testing.assert_close(outcomes.kl()[row], kl, rtol=1e-3, atol=1e-5)
            seen.append(i)
    assert network._takes_copies is True
    assert sorted(seen) == list(range(30)), "each edit once"
    assert worst < 2e-5
    assert largest > 0.5, "and the edits matter"


def test_a_pass_has_no_more_copies_than_it_may(models, view, edits, monkeypatch):
    """Edits of a context that do not fit into one pass are made in several, with the same outcome."""
    model = models["gpt2"]
    network = network_of(model, "mlp_out.1")
    whole = {i: row for o in network.outcomes(view, edits) for i, row in zip(o.edits.tolist(), o.change, strict=True)}
    monkeypatch.setattr("analysis.effects.intervene.MOST_COPIES", 4)
    passes = list(network_of(model, "mlp_out.1").outcomes(view, edits))
    assert max(len(o.edits) for o in passes) <= 4 < max(np.bincount(np.searchsorted(STARTS, edits.positions, "right")))
    for outcomes in passes:
        for i, row in zip(outcomes.edits.tolist(), outcomes.change, strict=True):
            torch.testing.assert_close(row, whole[i], rtol=0, atol=2e-5)


def test_a_mask_that_is_not_heeded_is_noticed(models, view, edits, monkeypatch):
    """A network that drops the mask given to it shows copies to one another: then every edit has a pass of its own."""
    model = models["gpt2"]
    forward = model.forward

    def deaf(input_ids, attention_mask=None, position_ids=None, logits_to_keep=0):  # noqa: ARG001
        return forward(input_ids=input_ids, position_ids=position_ids, logits_to_keep=logits_to_keep)

    monkeypatch.setattr(model, "forward", deaf)
    network = network_of(model, "mlp_out.1")
    outcomes = list(network.outcomes(view, edits))
    assert network._takes_copies is False
    for each in outcomes:
        for row, i in enumerate(each.edits.tolist()):
            clean, changed = by_hand(model, network.site, view, edits, i)
            torch.testing.assert_close(each.change[row], changed - clean, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("places", "window"), [(128, 40), (48, 40), (36, 128), (128, 20)])
def test_networks_that_count_tokens_by_where_they_stand_take_fewer_copies(view, places, window):
    """GPT-Neo's local layers look `window` tokens back in the pass, whatever the mask, and a pass has `places` at most:
    beside 24 tokens it takes some copies, or none."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "initializer_range": 0.3, "vocab_size": V}
    local = {"attention_types": [[["global", "local"], 1]], "window_size": window, "max_position_embeddings": places}
    model = GPTNeoForCausalLM(GPTNeoConfig(**sizes, **local, bos_token_id=0, eos_token_id=0)).eval()
    rng = np.random.default_rng(1)
    latents = rng.integers(0, 5, 90)
    many = Edits(latents, rng.integers(1, 64, 90), latents, rng.normal(0, 3, 90).astype(np.float32))
    network = network_of(model, "transformer.h.0.mlp:out")
    few = Edits(*(array[:4] for array in (many.owners, many.positions, many.directions, many.values)))
    list(network.outcomes(view, few))  # holds for some does not say that it holds for many
    outcomes = list(network.outcomes(view, many))
    assert network._takes_copies is (window > 24)
    longest = max(view.offsets[many.positions[each.edits]].max() + 1 + len(each.edits) for each in outcomes)
    assert not network._takes_copies or 24 + 4 < longest <= min(places, window)
    assert sum(len(each.edits) for each in outcomes) == 90
    for each in outcomes:
        for row, i in enumerate(each.edits.tolist()):
            clean, changed = by_hand(model, network.site, view, many, i)
            torch.testing.assert_close(each.change[row], changed - clean, rtol=0, atol=2e-5)


def test_a_longer_context_is_tried_anew(view, models, monkeypatch):
    """A network that heeds the mask up to 20 places only, and is first asked of shorter contexts."""
    model = models["gpt2"]
    forward = model.forward

    def short(input_ids, attention_mask=None, position_ids=None, logits_to_keep=0):
        mask = attention_mask if position_ids is None or position_ids.max() < 20 else None
        return forward(input_ids, attention_mask=mask, position_ids=position_ids, logits_to_keep=logits_to_keep)

    monkeypatch.setattr(model, "forward", short)
    network = network_of(model, "mlp_out.1")
    value = np.array([2.0], np.float32)
    for position, holds in ((60, True), (10, True), (47, False)):  # places 12, 10, 23 of their contexts
        (outcome,) = network.outcomes(view, Edits(np.array([0]), np.array([position]), np.array([0]), value))
        assert network._takes_copies is holds
        edit = Edits(np.array([0]), np.array([position]), np.array([0]), value)
        clean, changed = by_hand(model, network.site, view, edit, 0)
        torch.testing.assert_close(outcome.change[0], changed - clean, rtol=0, atol=2e-5)


def test_no_edits_have_no_outcomes(models, view):
    none = Edits(*(np.zeros(0, np.int64) for _ in range(3)), np.zeros(0, np.float32))
    assert list(network_of(models["gpt2"], "mlp_out.1").outcomes(view, none)) == []


def test_a_network_that_takes_ids_only_has_passes_of_its_own(view):
    """Coordinate v is the logit of token v: adding 2 to it leaves the differences of all the others."""
    network = network_of(SpelledAlone(V), "stream:out", torch.eye(V + 2)[:5])
    edits = Edits(np.array([3]), np.array([30]), np.array([3]), np.array([2.0], np.float32))
    (outcomes,) = network.outcomes(view, edits)
    assert network._takes_copies is False
    margin = outcomes.change[0] - outcomes.change[0, 0]
    torch.testing.assert_close(margin, 2.0 * torch.eye(V)[3], rtol=0, atol=1e-5)


def test_rows_that_are_normalised_get_as_much_as_they_are_large(view):
    """A row of size 3 in a site whose dictionary divides rows by their size: 3 times as much is added."""
    model = Spelled(V)
    site, directions = resolve(model, "stream:out"), torch.eye(V + 2)[:5]
    edits = Edits(np.array([0]), np.array([30]), np.array([3]), np.array([2.0], np.float32))
    network = Network(subject_of(model), site, directions, lambda x: x.norm(dim=1, keepdim=True))
    (outcomes,) = network.outcomes(view, edits)
    size = model.stream(torch.tensor(view.tokens[30])).norm().item()
    assert (outcomes.change[0, 3] - outcomes.change[0, 5]).item() == pytest.approx(2 * size, rel=1e-5)


def test_a_network_without_logits_is_refused():
    class Headless(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids.float()

    model = Headless()
    with pytest.raises(ConfigError) as caught:
        Network(subject_of(model), Site("x", "x", "out"), DIRECTIONS, plain_rows)
    assert str(caught.value) == "Headless gives no logits"
