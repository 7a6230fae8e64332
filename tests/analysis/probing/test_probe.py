"""Probes of planted latents: the one that was planted is found, shuffled labels are not learnt."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from analysis.probing.probe import Result, Settings, most_telling, probe
from analysis.probing.record import record
from analysis.probing.tasks import Examples, Task
from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import Shape
from sae.store import Pairs, Places

N, D, N_LATENTS, PLANTED = 600, 32, 32, 7
SETTINGS = Settings(k=(1, 2, 5), n_examples=1000, n_resamples=200, seed=0)


def planted(seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Rows of two or three latents; the planted one is where the label is."""
    rng = np.random.default_rng(seed)
    labels = rng.random(N) < 0.4
    active = np.zeros((N, N_LATENTS), dtype=np.float32)
    others = np.array([latent for latent in range(N_LATENTS) if latent != PLANTED])
    for row in range(N):
        active[row, rng.choice(others, 2, replace=False)] = 1 + rng.random(2)
    active[labels, PLANTED] = 2 + rng.random(labels.sum())
    return torch.from_numpy(active) @ directions(), labels


def directions() -> torch.Tensor:
    """At right angles to each other, and askew to the dimensions."""
    return torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0]


@pytest.fixture(scope="module")
def dictionary() -> TopKSAE:
    """One that reads and writes the planted directions."""
    result = TopKSAE(TopKConfig(n_latents=N_LATENTS, k=3), Shape((D,)))
    result.W_enc.data, result.W_dec.data = directions(), directions()
    return result.eval()


@pytest.fixture(scope="module")
def rows(make_rows: Callable) -> Callable[[str], Pairs]:
    of = {name: Pairs(make_rows(planted(seed)[0]), ("x",), Places(("x",))) for name, seed in (("fit", 1), ("test", 2))}
    return of.__getitem__


def task(name: str, change: Callable[[np.ndarray], np.ndarray] = lambda labels: labels) -> Task:
    of = {}
    for split, seed in (("fit", 1), ("test", 2)):
        starts = np.arange(N)
        of[split] = Examples(starts, starts + 1, change(planted(seed)[1]), starts // 10)
    return Task(name, "of rows: planted?", "token", of["fit"], of["test"])


@pytest.fixture(scope="module")
def result(dictionary: TopKSAE, rows: Callable[[str], Pairs]) -> Result:
    return probe(dictionary, rows, [task("planted")], SETTINGS)[0]


def test_one_latent_finds_what_was_planted(result):
    assert result.latents[0] == PLANTED
    assert result.scores["sae_top_1"]["auroc"].value == 1
    assert result.scores["sae_top_1"]["accuracy"].value == 1
    assert result.scores["sae_top_1"]["f1"].interval == (1, 1)


def test_no_one_dimension_does_but_all_of_them_know(result):
    assert result.scores["llm_top_1"]["auroc"].value < 0.98
    assert result.scores["llm"]["auroc"].value > 0.99
    assert result.scores["majority"]["accuracy"].value == 0.5
    assert result.scores["majority"]["auroc"].value == 0.5
    assert (result.n_fit, result.n_test) == (2 * planted(1)[1].sum(), 2 * planted(2)[1].sum())


def test_labels_at_random_are_not_learnt(dictionary, rows):
    def shuffled(labels: np.ndarray) -> np.ndarray:
        return np.random.default_rng(5).permutation(labels)

    found = probe(dictionary, rows, [task("shuffled", shuffled)], SETTINGS)[0]
    for name, figures in found.scores.items():
        low, high = figures["auroc"].interval
        assert 0.4 < figures["auroc"].value < 0.6, name
        assert low - 0.02 <= 0.5 <= high + 0.02, name


def test_many_at_once_are_what_each_is_alone(dictionary, rows, result):
    rare = task("rare", lambda labels: labels & (np.arange(N) < 100))
    together = probe(dictionary, rows, [rare, task("planted")], SETTINGS)
    assert together[0].left_out is not None
    assert together[0].left_out.endswith("examples of a class in fit; at least 50 are needed")
    assert together[1].scores == result.scores


def test_the_most_telling_columns():
    x = np.array([[1.0, 0, 5, 3], [3, 0, 5, 1], [0, 4, 5, 2], [0, 4, 5, 2]])
    labels = np.array([1, 1, 0, 0], dtype=bool)
    assert most_telling(x, labels, 3).tolist() == [1, 0], "means differ by 2, 4, 0, 0"
    assert most_telling(csr_matrix(x), labels, 1).tolist() == [1]


def test_what_is_written(result):
    left_out = Result("rare", "?", "token", 4, 6, 1, [], [], {}, "2 examples")
    found = record([result, left_out], {"probe_k": [1, 2, 5]})
    names = ["test_accuracy", "top_1_test_accuracy", "top_2_test_accuracy", "top_5_test_accuracy"]
    assert found["eval_type_id"] == "sparse_probing"
    assert sorted(found["eval_result_metrics"]["sae"]) == sorted(f"sae_{name}" for name in names)
    assert sorted(found["eval_result_metrics"]["llm"]) == sorted(f"llm_{name}" for name in names)
    assert [detail["dataset_name"] for detail in found["eval_result_details"]] == ["planted"]
    accuracy = result.scores["sae_top_2"]["accuracy"].value
    assert found["eval_result_details"][0]["sae_top_2_test_accuracy"] == accuracy
    assert found["eval_result_metrics"]["sae"]["sae_top_2_test_accuracy"] == accuracy
    assert found["eval_result_unstructured"][1] == {
        **{"dataset_name": "rare", "question": "?", "level": "token", "left_out": "2 examples"},
        **{"n_fit": 4, "n_test": 6, "n_test_documents": 1},
    }
