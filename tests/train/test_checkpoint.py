"""Checkpoints: the run goes on from one as if it had never stopped."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import InputStats, Shape, Step
from sae.scaling import SiteStats
from train import checkpoint, optim
from train.checkpoint import Progress
from train.optim import Optimizer, Settings

N, D = 192, 24  # matrices of more than 4,096 entries, where 8-bit moments begin
NAMES = ["adam", "adam8bit", "muon", "schedule_free", "signum"]


def fresh(name: str = "adam") -> tuple[TopKSAE, Optimizer, AveragedModel]:
    dictionary = TopKSAE(TopKConfig(n_latents=N, k=3), Shape((D,)))
    rows = torch.randn(50, D, generator=torch.Generator().manual_seed(1))
    site = (SiteStats(D, mean_norm=4.9, mean_square=24.0),)
    dictionary.initialise(InputStats(site, site, rows, rows), torch.Generator().manual_seed(0))
    optimizer = optim.build(dictionary, name, Settings(1e-2, 0.0, 0.0, (0.9, 0.999), 1e-8))
    return dictionary, optimizer, AveragedModel(dictionary, multi_avg_fn=get_ema_multi_avg_fn(0.9))


def advance(dictionary: TopKSAE, optimizer: Optimizer, average: AveragedModel, steps: range) -> None:
    for number in steps:
        optimizer.set_lr(1e-2 / (1 + number))
        x = torch.randn(20, D, generator=torch.Generator().manual_seed(number))
        out = dictionary(x, x, Step(number, 6, torch.arange(N) < 40))
        torch.stack(list(out.terms.values())).sum().backward()
        dictionary.before_step()
        optimizer.step()
        dictionary.after_step(out)
        average.update_parameters(dictionary)


def everything(dictionary: TopKSAE, optimizer: Optimizer, average: AveragedModel) -> dict[str, torch.Tensor]:
    tensors = {f"model/{name}": value for name, value in dictionary.state_dict().items()}
    tensors |= {f"average/{name}": value for name, value in average.state_dict().items()}
    for i, part in enumerate(optimizer.parts):
        tensors |= checkpoint.optimizer_tensors(part, f"optimizer/{i}")
        numbers = checkpoint.optimizer_numbers(part, f"optimizer/{i}")
        tensors |= {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    return tensors


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_with_the_same_bits(name, tmp_path):
    whole = fresh(name)
    advance(*whole, range(6))
    first = fresh(name)
    advance(*first, range(3))
    progress = Progress(3, torch.arange(N), [{"step": 3, "fvu": 0.1 + 0.2}])
    checkpoint.save(tmp_path / "c.safetensors", *first, progress)
    second = fresh(name)
    second[0].scaling.scale.fill_(9.0)
    found = checkpoint.load(tmp_path / "c.safetensors", *second)
    advance(*second, range(3, 6))
    expected, actual = everything(*whole), everything(*second)
    assert actual.keys() == expected.keys()
    assert [key for key, value in actual.items() if not torch.equal(value, expected[key])] == []
    assert (found.step, found.curve) == (3, [{"step": 3, "fvu": 0.1 + 0.2}])
    assert torch.equal(found.silent_tokens, torch.arange(N))


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("adam", {}),
        ("adam8bit", {"optimizer/0/0/step": 2}),
        ("muon", {"optimizer/0/group/0/momentum": 0.95}),
        ("schedule_free", {"optimizer/0/group/0/k": 2, "optimizer/0/group/0/weight_sum": 2e-4}),
        ("signum", {"optimizer/0/group/0/k": 2, "optimizer/0/group/0/weight_sum": 2e-4}),
    ],
)
def test_what_an_optimiser_counts_is_kept(name, numbers, tmp_path):
    """After two steps at 1e-2 and 5e-3; schedule-free weighs both by the square of the largest rate so far."""
    run = fresh(name)
    advance(*run, range(2))
    checkpoint.save(tmp_path / "c", *run, Progress(2, torch.zeros(N, dtype=torch.long)))
    again = fresh(name)
    checkpoint.load(tmp_path / "c", *again)
    found = {}
    for i, part in enumerate(again[1].parts):
        found |= checkpoint.optimizer_numbers(part, f"optimizer/{i}")
    assert {key: found[key] for key in numbers} == pytest.approx(numbers, rel=1e-12)


def test_a_failing_save_leaves_the_former_checkpoint(tmp_path):
    path, run = tmp_path / "c.safetensors", fresh()
    advance(*run, range(1))
    checkpoint.save(path, *run, Progress(1, torch.zeros(N, dtype=torch.long)))
    former = path.read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save(path, *run, Progress(2, torch.zeros(N, dtype=torch.long), [{"no JSON": object()}]))
    assert path.read_bytes() == former


def test_a_checkpoint_before_the_first_step(tmp_path):
    checkpoint.save(tmp_path / "c", *fresh(), Progress(0, torch.zeros(N, dtype=torch.long)))
    run = fresh()
    assert checkpoint.load(tmp_path / "c", *run).step == 0
    advance(*run, range(1))


def test_a_run_goes_on_where_steps_are_recorded(tmp_path):
    """There learning rates are tensors that a recording reads: they stay those that are set."""
    path = tmp_path / "checkpoint"
    dictionary, optimizer, average = fresh()
    advance(dictionary, optimizer, average, range(2))
    checkpoint.save(path, dictionary, optimizer, average, Progress(2, torch.zeros(N, dtype=torch.long)))
    dictionary, optimizer, average = fresh()
    groups = optimizer.parts[0].param_groups
    for group in groups:
        group |= {"lr": torch.tensor(0.5), "capturable": True}
    checkpoint.load(path, dictionary, optimizer, average)
    optimizer.set_lr(0.25)
    for group in optimizer.parts[0].param_groups:
        assert isinstance(group["lr"], torch.Tensor)
        assert group["lr"].item() == pytest.approx(0.25 * group["unit"])
        assert group["capturable"]
