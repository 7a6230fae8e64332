"""Checkpoints: the run goes on from one as if it had never stopped."""

import pytest
import torch

from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import InputStats, Step
from train import checkpoint
from train.checkpoint import Progress


def fresh() -> tuple[TopKSAE, torch.optim.Adam]:
    dictionary = TopKSAE(TopKConfig(n_latents=12, k=3), 6)
    stats = InputStats(scale=0.5, variance=2.0, centre=torch.ones(6))
    dictionary.initialise(stats, torch.Generator().manual_seed(0))
    return dictionary, torch.optim.Adam(dictionary.parameters(), lr=1e-2, fused=True)


def advance(dictionary: TopKSAE, optimizer: torch.optim.Adam, steps: range) -> None:
    for number in steps:
        x = torch.randn(20, 6, generator=torch.Generator().manual_seed(number))
        terms = dictionary(x, Step(number, torch.arange(12) < 4)).terms
        torch.stack(list(terms.values())).sum().backward()
        dictionary.before_step()
        optimizer.step()
        optimizer.zero_grad()
        dictionary.after_step()


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = fresh()
    advance(*whole, range(6))
    first = fresh()
    advance(*first, range(3))
    progress = Progress(3, torch.arange(12), [{"step": 3, "fvu": 0.1 + 0.2}])
    checkpoint.save(tmp_path / "c.safetensors", *first, progress)
    second = fresh()
    second[0].scale.fill_(9.0)
    found = checkpoint.load(tmp_path / "c.safetensors", *second)
    advance(*second, range(3, 6))
    expected = whole[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in second[0].state_dict().items())
    assert (found.step, found.curve) == (3, [{"step": 3, "fvu": 0.1 + 0.2}])
    assert torch.equal(found.silent_tokens, torch.arange(12))


def test_a_failing_save_leaves_the_former_checkpoint(tmp_path):
    path, run = tmp_path / "c.safetensors", fresh()
    advance(*run, range(1))
    checkpoint.save(path, *run, Progress(1, torch.zeros(12, dtype=torch.long)))
    former = path.read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save(path, *run, Progress(2, torch.zeros(12, dtype=torch.long), [{"no JSON": object()}]))
    assert path.read_bytes() == former


def test_a_checkpoint_before_the_first_step(tmp_path):
    checkpoint.save(tmp_path / "c", *fresh(), Progress(0, torch.zeros(12, dtype=torch.long)))
    run = fresh()
    assert checkpoint.load(tmp_path / "c", *run).step == 0
    advance(*run, range(1))
