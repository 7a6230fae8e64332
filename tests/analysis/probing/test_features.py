"""Means over stretches of rows, however they are read."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from analysis.probing import features as module
from analysis.probing.features import features
from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import InputStats, Shape
from sae.scaling import SiteStats
from sae.store import ActivationSplit, Pairs, Places

AT = Places(("x",))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(100, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dictionary(x: torch.Tensor) -> TopKSAE:
    result = TopKSAE(TopKConfig(n_latents=24, k=3), Shape((8,)))
    site = (SiteStats(8, mean_norm=2.8, mean_square=8.0),)
    result.initialise(InputStats(site, site, x, x), torch.Generator().manual_seed(0))
    return result.eval()


@pytest.mark.parametrize("window", [7, 16, 8192])
def test_means_over_stretches(
    x: torch.Tensor, dictionary: TopKSAE, make_rows: Callable[..., ActivationSplit], window: int, monkeypatch
):
    monkeypatch.setattr(module, "WINDOW", window)
    pairs = Pairs(make_rows(x, shard_rows=30), ("x",), AT)
    starts, stops = np.array([3, 12, 40, 41]), np.array([4, 40, 41, 100])
    found = features(dictionary, pairs, starts, stops)
    latents = dictionary.encode(x).fired().dense().double().detach()
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        assert found.raw[number] == pytest.approx(x[start:stop].mean(0).numpy(), abs=1e-6)
        assert found.latents[[number]].toarray()[0] == pytest.approx(latents[start:stop].mean(0).numpy(), abs=1e-6)
