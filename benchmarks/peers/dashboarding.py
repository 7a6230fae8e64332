"""What a framework is told of the dashboards it shall make, and how that is timed. Free of the project: torch and
safetensors only.

In: a job (JSON), a model and a dictionary as folders in the framework's own formats, contexts of equal length. Out: the
seconds of each stage from tokens to what a dashboard shows of a latent, memory, and how often some latents fire, so
that it is seen that all speak of the same ones.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.peers.exchange import peak_kilobytes


@dataclass(frozen=True)
class DashboardJob:
    """One dictionary, and the tokens on which its latents are to be shown."""

    model: str
    """Folder of a GPT-2 and a tokenizer."""
    layer: int
    """Whose MLP's output the dictionary reads."""
    dictionary: str
    """Folder of the dictionary, in the framework's format."""
    contexts: str
    """File with `tokens` [n, context]."""
    n_contexts: int
    """How many of them are used."""
    batches: int
    """How many batches of latents are worked on by a framework that goes through all tokens for each."""
    out: str
    """Folder for what is made."""
    mode: str = ""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> "DashboardJob":
        return cls(**json.loads(path.read_text()))


Stage = Callable[[str], AbstractContextManager[None]]
"""Within the context that it gives, time passes for the stage of that name."""
Dashboards = Callable[[Tensor, Path, Stage], list[float]]
"""Makes those of the tokens [n, context] in a folder; returns the density of the first latents, as it counts it."""


def measure(
    job: DashboardJob, prepare: Callable[[DashboardJob], Dashboards], versions: Callable[[], Mapping[str, str]]
) -> dict[str, Any]:
    """Make the dashboards once. Imports, model and dictionary are there before time runs."""
    tokens = load_file(job.contexts)["tokens"][: job.n_contexts].clone()
    make = prepare(job)
    loaded, stages, folder = peak_kilobytes(), {}, Path(job.out, "made")
    folder.mkdir()
    densities = make(tokens, folder, partial(_stage, stages))
    shutil.rmtree(folder)
    memory = {"loaded_kilobytes": loaded, "peak_kilobytes": peak_kilobytes()}
    return {"stages": stages, **memory, "densities": densities, "versions": dict(versions())}


@contextmanager
def _stage(stages: dict[str, dict[str, float]], name: str) -> Iterator[None]:
    """Wall seconds, and those that cores were busy for this process and its children."""
    wall, busy = time.perf_counter(), sum(os.times()[:4])
    yield
    found = {"seconds": time.perf_counter() - wall, "cpu_seconds": sum(os.times()[:4]) - busy}
    stages[name] = {kind: round(value, 2) for kind, value in found.items()}
