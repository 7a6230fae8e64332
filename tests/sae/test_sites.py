"""Sites: what is read is what a plain forward pass computes; what is put in takes its place.

The expected values come from `output_hidden_states` and from the models' own layers called by
hand (attention written out), never from the hooks under test.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from sae.errors import ConfigError
from sae.sites import KINDS, Site, read, replaced, resolve

IDS = torch.arange(1, 25).view(2, 12)


def small(cls, config) -> nn.Module:
    torch.manual_seed(1)
    return cls(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def llama():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    return small(LlamaForCausalLM, config)


@pytest.fixture(scope="module")
def neox():
    config = GPTNeoXConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    return small(GPTNeoXForCausalLM, config)


def read_all(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    return read(model, [resolve(model, name) for name in names], lambda: model(input_ids=IDS))


def every_site(n_layers: int) -> list[str]:
    return [f"{kind}.{layer}" for kind in KINDS for layer in range(n_layers)]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each `[batch, heads, positions, d]`, no looking ahead; heads side by side."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(ahead, -torch.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2)


def test_every_short_name_of_gpt2(gpt2):
    found = read_all(gpt2, every_site(3))
    output = gpt2(input_ids=IDS, output_hidden_states=True)
    for layer, block in enumerate(gpt2.transformer.h):
        before = output.hidden_states[layer]
        q, k, v = (
            part.unflatten(-1, (2, 8)).transpose(1, 2)
            for part in block.attn.c_attn(block.ln_1(before)).split(16, dim=-1)
        )
        attention = block.attn.c_proj(causal_attention(q, k, v))
        mlp_in = block.ln_2(before + attention)
        neurons = nn.functional.gelu(block.mlp.c_fc(mlp_in), approximate="tanh")
        mlp_out = block.mlp.c_proj(neurons)
        close(found[f"resid_pre.{layer}"], before)
        close(found[f"attn_out.{layer}"], attention)
        close(found[f"mlp_in.{layer}"], mlp_in)
        close(found[f"mlp_act.{layer}"], neurons)
        close(found[f"mlp_out.{layer}"], mlp_out)
        close(found[f"resid_post.{layer}"], before + attention + mlp_out)
    close(gpt2.lm_head(gpt2.transformer.ln_f(found["resid_post.2"])), output.logits)


def test_every_short_name_of_llama(llama):
    found = read_all(llama, every_site(2))
    output = llama(input_ids=IDS, output_hidden_states=True)
    for layer, block in enumerate(llama.model.layers):
        before = output.hidden_states[layer]
        middle = before + found[f"attn_out.{layer}"]
        mlp_in = block.post_attention_layernorm(middle)
        neurons = nn.functional.silu(block.mlp.gate_proj(mlp_in)) * block.mlp.up_proj(mlp_in)
        close(found[f"resid_pre.{layer}"], before)
        close(found[f"mlp_in.{layer}"], mlp_in)
        close(found[f"mlp_act.{layer}"], neurons)
        close(found[f"mlp_out.{layer}"], block.mlp.down_proj(neurons))
        close(found[f"resid_post.{layer}"], middle + found[f"mlp_out.{layer}"])
    # the first position attends to itself alone: its attention is W_O of its own value, in both heads
    value = llama.model.layers[0].self_attn.v_proj(llama.model.layers[0].input_layernorm(output.hidden_states[0]))
    expected = llama.model.layers[0].self_attn.o_proj(torch.cat([value, value], dim=-1))
    close(found["attn_out.0"][:, 0], expected[:, 0])
    close(llama.lm_head(llama.model.norm(found["resid_post.1"])), output.logits)


def test_every_short_name_of_gpt_neox(neox):
    found = read_all(neox, every_site(2))
    output = neox(input_ids=IDS, output_hidden_states=True)
    for layer, block in enumerate(neox.gpt_neox.layers):
        before = output.hidden_states[layer]
        mlp_in = block.post_attention_layernorm(before)  # attention and MLP read the stream side by side
        neurons = nn.functional.gelu(block.mlp.dense_h_to_4h(mlp_in))
        close(found[f"resid_pre.{layer}"], before)
        close(found[f"mlp_in.{layer}"], mlp_in)
        close(found[f"mlp_act.{layer}"], neurons)
        close(found[f"mlp_out.{layer}"], block.mlp.dense_4h_to_h(neurons))
        close(found[f"resid_post.{layer}"], before + found[f"attn_out.{layer}"] + found[f"mlp_out.{layer}"])
    close(neox.get_output_embeddings()(neox.gpt_neox.final_layer_norm(found["resid_post.1"])), output.logits)


def test_a_module_path_names_either_side_of_any_module(gpt2):
    found = read_all(gpt2, ["transformer.h.1.mlp:in", "transformer.h.1.mlp:out", "transformer.wte:out", "lm_head:out"])
    short = read_all(gpt2, ["mlp_in.1", "mlp_out.1"])
    assert torch.equal(found["transformer.h.1.mlp:in"], short["mlp_in.1"])
    assert torch.equal(found["transformer.h.1.mlp:out"], short["mlp_out.1"])
    assert torch.equal(found["transformer.wte:out"], gpt2.transformer.wte(IDS))
    assert torch.equal(found["lm_head:out"], gpt2(input_ids=IDS).logits)


def test_the_pass_stops_after_the_last_site(gpt2, count_calls):
    here, later = count_calls(gpt2.transformer.h[1].mlp.c_proj), count_calls(gpt2.transformer.h[2])
    final, unembed = count_calls(gpt2.transformer.ln_f), count_calls(gpt2.lm_head)
    read_all(gpt2, ["mlp_out.1", "resid_pre.0"])
    assert [len(calls) for calls in (here, later, final, unembed)] == [1, 0, 0, 0]


def test_reading_leaves_no_hooks_behind(gpt2, count_calls):
    before = gpt2(input_ids=IDS).logits
    read_all(gpt2, ["mlp_out.0"])
    with pytest.raises(RuntimeError, match="stop"):
        read(gpt2, [resolve(gpt2, "mlp_out.0")], lambda: (_ for _ in ()).throw(RuntimeError("stop")))
    unembed = count_calls(gpt2.lm_head)
    assert torch.equal(gpt2(input_ids=IDS).logits, before)
    assert len(unembed) == 1, "a later pass goes to its end"


@pytest.mark.parametrize("name", every_site(3))
def test_putting_back_what_was_there_changes_no_bit(gpt2, name):
    before = gpt2(input_ids=IDS).logits
    with replaced(gpt2, resolve(gpt2, name), lambda x: x.clone()):
        assert torch.equal(gpt2(input_ids=IDS).logits, before)


@pytest.mark.parametrize("name", every_site(3))
def test_what_is_put_in_is_what_the_network_goes_on_with(gpt2, name):
    before = gpt2(input_ids=IDS).logits
    with replaced(gpt2, resolve(gpt2, name), torch.zeros_like):
        changed = gpt2(input_ids=IDS).logits
    assert not torch.allclose(changed, before)
    assert torch.equal(gpt2(input_ids=IDS).logits, before), "and only as long as it is asked for"
    if name == "resid_post.2":
        close(changed, gpt2.lm_head(gpt2.transformer.ln_f(torch.zeros(2, 12, 16))))


def test_attention_returns_a_tuple_and_its_first_part_is_replaced(gpt2):
    with replaced(gpt2, resolve(gpt2, "attn_out.1"), lambda x: x + 1):
        found = read_all(gpt2, ["resid_pre.1", "mlp_out.1", "resid_post.1"])
    plain = read_all(gpt2, ["attn_out.1"])
    close(found["resid_post.1"], found["resid_pre.1"] + plain["attn_out.1"] + 1 + found["mlp_out.1"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlp_out.3", "site 'mlp_out.3': the model has no module 'transformer.h.3.mlp'; its layers are 0 to 2"),
        (
            "mlp.3",
            "site 'mlp.3': must be KIND.LAYER (mlp_in, mlp_act, mlp_out, attn_out, resid_pre, resid_post) "
            "or module.path:in|out",
        ),
        ("transformer.h.0.mlp:on", "site 'transformer.h.0.mlp:on': must end in :in or :out"),
        (
            "transformer.h.0.mpl:out",
            "site 'transformer.h.0.mpl:out': the model has no module 'transformer.h.0.mpl'; "
            "did you mean transformer.h.0.mlp or transformer.h.2.mlp or transformer.h.1.mlp?",
        ),
    ],
)
def test_a_site_that_is_not_there_is_named(gpt2, name, message):
    with pytest.raises(ConfigError) as caught:
        resolve(gpt2, name)
    assert str(caught.value) == message


def test_short_names_need_a_known_family():
    with pytest.raises(ConfigError) as caught:
        resolve(nn.Sequential(nn.Linear(2, 2)), "mlp_out.0")
    message = "site 'mlp_out.0': short names are not known for Sequential; write module.path:out"
    assert str(caught.value) == message


def test_a_module_that_is_not_used_is_named(gpt2):
    with pytest.raises(ConfigError) as caught:
        read(gpt2, [Site("mlp_out.2", "transformer.h.2.mlp", "out")], lambda: gpt2.transformer.h[0])
    assert str(caught.value) == "site 'mlp_out.2': its module is not used in the forward pass"


def test_what_is_no_tensor_is_named():
    class Lists(nn.Module):
        def forward(self, _x):
            return [1, 2]

    model = nn.Sequential(Lists())
    with pytest.raises(ConfigError) as caught:
        read(model, [resolve(model, "0:out")], lambda: model(IDS))
    assert str(caught.value) == "site '0:out': list passes through it, must be a tensor"
