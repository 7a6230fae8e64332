"""What a framework is told to harvest, and how that is timed. Free of the project: torch and safetensors only.

In: a job (JSON), a model as a Hugging Face folder, and contexts of equal length. Out: the seconds that it took to run
them and to keep one module's output as float16, and how far the rows are from those of the plain model.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.peers.exchange import peak_kilobytes

CONTEXTS = (
    16  # of one forward pass, SAELens's default, where a framework must be told; dictionary_learning's own is 512
)


@dataclass(frozen=True)
class HarvestJob:
    """Contexts to run, and what to keep."""

    model: str
    """Folder of a GPT-2 and a tokenizer."""
    layer: int
    """Whose MLP's output is kept."""
    contexts: str
    """File with `tokens` [n, context], and `warm`, some others with which the process is warmed up."""
    expected: str
    """File with `acts`, the rows of the first contexts in float32."""
    out: str
    """Folder for what is kept."""
    mode: str = ""
    """`autocast` (the model in bfloat16), or nothing, as the framework does it by default."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> "HarvestJob":
        return cls(**json.loads(path.read_text()))


Harvest = Callable[[Tensor, Path], Callable[[int], Tensor]]
"""Keeps the activations of `tokens` [n, context] in a folder; what it returns reads the first rows back."""


def measure(
    job: HarvestJob, prepare: Callable[[HarvestJob], Harvest], versions: Callable[[], Mapping[str, str]]
) -> dict[str, Any]:
    """Harvest once to warm up and once to be timed. The error is relative, by the root mean square."""
    contexts, expected = load_file(job.contexts), load_file(job.expected)["acts"]
    harvest = prepare(job)
    harvest(contexts["warm"], Path(job.out, "warm"))
    started = time.perf_counter()
    rows = harvest(contexts["tokens"], Path(job.out, "timed"))
    seconds, peak = time.perf_counter() - started, peak_kilobytes()
    error = rows(len(expected)).float() - expected
    facts = {"seconds": seconds, "peak_kilobytes": peak, "error": (error.norm() / expected.norm()).item()}
    for name in ("warm", "timed"):
        shutil.rmtree(Path(job.out, name), ignore_errors=True)
    return facts | {"versions": dict(versions())}
