"""The logit lens: at the last layer it is the derivative of the logits, up to the norm's scale."""

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from analysis import lens
from sae.errors import ConfigError


def directions(n: int = 5) -> Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def orthogonal_stream(direction: Tensor, centred: bool) -> Tensor:
    """A stream that a step along `direction` makes no longer, so that the norm's scale stays as it is."""
    stream = torch.randn(16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    if centred:
        stream, direction = stream - stream.mean(), direction - direction.mean()
    return stream - (stream @ direction) / (direction @ direction) * direction


@pytest.fixture(scope="module")
def models(gpt2) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    made = {
        "gpt2": gpt2,
        "llama": LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.3)),
        "neox": GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, initializer_range=0.3)),
    }
    for model in made.values():
        norm = lens.final_norm(model)
        with torch.no_grad():  # gains and shifts that matter
            norm.weight.copy_(torch.linspace(0.5, 2, 16))
            if isinstance(norm, nn.LayerNorm):
                norm.bias.copy_(torch.linspace(-1, 1, 16))
    return made


@pytest.fixture(autouse=True, scope="module")
def as_it_was(gpt2):
    state = {name: value.clone() for name, value in gpt2.state_dict().items()}
    yield
    gpt2.load_state_dict(state)


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_effects_are_finite_differences_of_the_logits(models, name):
    model = models[name]
    norm, unembed = lens.final_norm(model), model.get_output_embeddings()
    effects = lens.logit_effects(directions().float(), model).double()

    def logits(stream: Tensor) -> Tensor:
        # in float64: the norm by its formula, from the model's own parameters
        if isinstance(norm, nn.LayerNorm):
            centred = stream - stream.mean()
            normed = centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias
        else:
            normed = stream / (stream.square().mean() + norm.variance_epsilon).sqrt() * norm.weight
        return normed @ unembed.weight.double().T

    for direction, effect in zip(directions(), effects, strict=True):
        stream = orthogonal_stream(direction, isinstance(norm, nn.LayerNorm))
        h = 1e-5
        slope = (logits(stream + h * direction) - logits(stream - h * direction)) / (2 * h)
        slope = slope - slope.mean()  # logits matter up to a constant
        scale = (slope @ effect) / (effect @ effect)
        assert scale > 0
        torch.testing.assert_close(effect * scale, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("models")
def test_the_last_layers_own_forward_pass_agrees(gpt2):
    """Not only the norm's formula: the network itself, in float32, with a finite step at its last block."""
    from sae.sites import replaced, resolve

    (direction,) = directions(1)
    stream = orthogonal_stream(direction, centred=True).float()
    ids = torch.tensor([[1, 2, 3]])

    def logits(change: Tensor) -> Tensor:
        with replaced(gpt2, resolve(gpt2, "resid_post.2"), (stream + change).expand_as):
            return gpt2(input_ids=ids).logits[0, -1]

    h = 1e-2
    slope = (logits(h * direction.float()) - logits(-h * direction.float())) / (2 * h)
    effect = lens.logit_effects(direction[None].float(), gpt2)[0]
    assert torch.corrcoef(torch.stack([slope, effect]))[0, 1] > 0.9999


def test_effects_are_centred_over_the_vocabulary(gpt2):
    effects = lens.logit_effects(directions().float(), gpt2)
    torch.testing.assert_close(effects.mean(dim=1), torch.zeros(5), rtol=0, atol=1e-5)


def test_a_constant_direction_says_nothing_where_the_norm_subtracts_the_mean(gpt2):
    effects = lens.logit_effects(torch.ones(1, 16), gpt2)
    torch.testing.assert_close(effects, torch.zeros_like(effects), rtol=0, atol=1e-5)


def test_another_width_is_refused(gpt2):
    with pytest.raises(ConfigError) as caught:
        lens.logit_effects(torch.ones(2, 64), gpt2)
    assert str(caught.value) == "directions of width 64 are not in the residual stream (width 16)"


def test_a_network_without_a_known_norm_is_named():
    with pytest.raises(ConfigError) as caught:
        lens.final_norm(nn.Sequential(nn.Linear(2, 2)))
    message = "Sequential: the final norm is not at any of transformer.ln_f, model.norm, gpt_neox.final_layer_norm"
    assert str(caught.value) == message


def test_top_tokens_by_hand():
    effects = torch.tensor([[0.5, -2.0, 3.0, 0.0]])
    (high, up), (low, down) = lens.top_tokens(effects, 2)
    assert (high.tolist(), up.tolist()) == ([[2, 0]], [[3.0, 0.5]])
    assert (low.tolist(), down.tolist()) == ([[1, 3]], [[-2.0, 0.0]])
