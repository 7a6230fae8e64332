"""Loading a network: what its digest stands for, and networks that have learnt nothing."""

from copy import deepcopy

import torch

from sae.config import ModelConfig
from sae.model import Subject, load


def network(folder, gpt2, tokenizer, **choices) -> Subject:
    own = deepcopy(gpt2)
    with torch.no_grad():
        for parameter in own.parameters():  # as if it had learnt: the fixture's own are drawn from seed 0
            parameter.mul_(1.5)
    own.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(ModelConfig(name=str(folder), **choices))


def test_trained_weights_are_those_of_the_file(tmp_path, gpt2, tokenizer):
    subject = network(tmp_path, gpt2, tokenizer)
    for name, parameter in gpt2.named_parameters():
        assert torch.equal(dict(subject.model.named_parameters())[name], 1.5 * parameter)
    assert subject.digest.startswith("sha256:")
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())


def test_shuffled_weights_keep_their_numbers_but_not_their_places(tmp_path, gpt2, tokenizer):
    trained, shuffled = (network(tmp_path, gpt2, tokenizer, weights=how) for how in ("trained", "shuffled"))
    for (name, a), b in zip(trained.model.named_parameters(), shuffled.model.parameters(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values), name
        assert torch.equal(a, b) == (a.unique().numel() == 1), name
    assert shuffled.model.lm_head.weight is shuffled.model.transformer.wte.weight, "what is tied stays so"
    assert shuffled.digest == f"{trained.digest} shuffled"


def test_random_weights_are_the_same_every_time_and_not_the_trained_ones(tmp_path, gpt2, tokenizer):
    state = torch.random.get_rng_state()
    trained, one, two = (network(tmp_path, gpt2, tokenizer, weights=how) for how in ("trained", "random", "random"))
    assert torch.equal(torch.random.get_rng_state(), state), "no seed of the caller's is touched"
    for (name, a), b, c in zip(
        trained.model.named_parameters(), one.model.parameters(), two.model.parameters(), strict=True
    ):
        assert torch.equal(b, c), name
        assert a.shape == b.shape
    assert not torch.equal(trained.model.transformer.wte.weight, one.model.transformer.wte.weight)
    assert not one.model.training
    assert not any(parameter.requires_grad for parameter in one.model.parameters())
    assert one.digest == two.digest == f"{trained.digest} random"
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.allclose(one.model(ids).logits, trained.model(ids).logits)
