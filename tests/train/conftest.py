"""What tests of training may use: rows as a finished store."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import config
from torch import Tensor

from sae.store import ActivationStore, write_shard
from tests.train.planted import D, planted


@pytest.fixture(scope="session")
def make_store(make_box: Any) -> Callable[..., ActivationStore]:
    """`make_store({site: rows}, {site: held-out rows})`: a store with the splits `train` and `select`."""

    def make(train: Mapping[str, Tensor], select: Mapping[str, Tensor]) -> ActivationStore:
        def build(out: Path) -> Mapping[str, Any]:
            sites: dict[str, Any] = {}
            for site, rows in train.items():
                r, shards = rows.double(), {"train": rows.split(5000), "select": select[site].split(5000)}
                sites[site] = {
                    "d_in": rows.shape[1],
                    "mean": r.mean(0).tolist(),
                    "mean_norm": r.norm(dim=1).mean().item(),
                    "mean_square": r.square().sum(1).mean().item(),
                    "splits": {
                        split: [[f"{site}-{split}-{i}.safetensors", len(part)] for i, part in enumerate(parts)]
                        for split, parts in shards.items()
                    },
                }
                for split, parts in shards.items():
                    for i, part in enumerate(parts):
                        write_shard(out / f"{site}-{split}-{i}.safetensors", part, torch.float32)
            return {"sites": sites, "skip_positions": 0, "dtype": "float32"}

        return ActivationStore(make_box(build))

    return make


@pytest.fixture(scope="session")
def store(make_store: Callable[..., ActivationStore]) -> ActivationStore:
    """Planted rows at site `x`; at site `y` a fixed linear map of them to 20 dimensions."""
    rows, held_out = planted(20_000, 1)[0], planted(2000, 2)[0]
    matrix = torch.randn(D, 20, generator=torch.Generator().manual_seed(5)) / D**0.5
    return make_store({"x": rows, "y": rows @ matrix}, {"x": held_out, "y": held_out @ matrix})


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Shapes and types are not checked at run time: in hundreds of equal steps that is half of the time. Those of every
    architecture are in `test_together.py`, `test_learner.py` and `test_trainer.py`, which take the same steps."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
