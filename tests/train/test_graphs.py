"""A recorded step is the step: the same bits as launched anew each time, whatever is dead."""

import pytest
import torch
from torch import Tensor

from sae import hub
from sae.architectures.configs import BatchTopKConfig, KSparseConfig, MatryoshkaConfig, TopKConfig
from sae.files import read_json
from sae.store import Places
from train import learner, trainer
from train.config import TrainConfig
from train.graphs import WARM, Graphs
from train.learner import Member

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(store, tmp_path, monkeypatch, sae: KSparseConfig, is_recorded: bool) -> tuple[dict[str, Tensor], int]:
    recordings = []
    with monkeypatch.context() as patch:
        if not is_recorded:
            patch.setattr(learner, "Graphs", lambda work: work)
        graph = torch.cuda.CUDAGraph
        patch.setattr(torch.cuda, "CUDAGraph", lambda: recordings.append(1) or graph())
        cfg = TrainConfig(
            tokens=60 * 64, batch=64, dead_tokens=640, evaluate_every=0, tracker="none", precision="bfloat16"
        )
        out = tmp_path / str(is_recorded)
        out.mkdir()
        member = Member(Places(("resid_post.0",)), sae, cfg, {}, out)
        trainer.fit([member], store, 0, out / "logs")
    curve = read_json(out / "curve.json")
    assert curve[-1]["n_dead"] > 0
    assert "loss/auxk" in curve[-1]
    return dict(hub.load(out).state_dict()), len(recordings)


@pytest.mark.parametrize("kind", [TopKConfig, BatchTopKConfig, MatryoshkaConfig])
def test_a_run_of_recorded_steps_ends_with_the_same_bits(activation_store, tmp_path, monkeypatch, kind):
    sae = kind(n_latents=512, k=4, auxk=8)
    (own, recordings), (anew, none) = (
        trained(activation_store, tmp_path, monkeypatch, sae, it) for it in (True, False)
    )
    assert recordings >= 2, "one without dead latents, one with"
    assert none == 0
    for name, value in anew.items():
        assert torch.equal(own[name], value), name


def test_every_key_has_a_recording_of_its_own():
    total = torch.zeros(3, device="cuda")

    def work(rows: Tensor, key: int) -> Tensor:
        total.add_(key * rows)
        return total.clone()

    graphs, expected = Graphs(work), torch.zeros(3, device="cuda")
    for i in range(2 * WARM + 4):
        rows = torch.full((3,), float(i), device="cuda")
        found = graphs(rows, i % 2 + 1)
        expected += (i % 2 + 1) * rows
        assert torch.equal(found, expected)
    assert sorted(graphs.recorded) == [1, 2]
