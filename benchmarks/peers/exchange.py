"""What goes into a framework's process, and what comes out of it. Free of the project: torch and safetensors only.

In: a job (JSON), rows of activations in shards, and the order in which to read them. Out: the
latents of the test rows as they are in use, and what each latent writes (`found.safetensors`).
"""

import gc
import itertools
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

TEST_ROWS = 2048  # rows that are encoded together
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Job:
    """One dictionary to train."""

    architecture: str
    """By the framework's own name."""
    settings: Mapping[str, Any]
    """What the framework is told of it, beside what follows."""
    seed: int
    d_in: int
    n_latents: int
    batch: int
    steps: int
    lr: float
    """Peak learning rate; it falls linearly to 0 over the last 20 % of the steps."""
    dead_rows: int
    """A latent is dead, and AuxK revives it, when it has not fired for so many rows."""
    data: str
    """Folder of the training rows, an activations box."""
    order: str
    """File with the row of each position of the stream."""
    test: str
    """File with the test rows."""
    out: str
    """Folder for what is found."""
    mode: str = ""
    """How dense products are computed: `float32`, `autocast` (in bfloat16), or nothing, as the framework does it by
    default."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> "Job":
        return cls(**json.loads(path.read_text()))


class Codes(NamedTuple):
    """Latents of some rows in CSR form: row r has the next `counts[r]` entries."""

    values: Tensor
    indices: Tensor
    counts: Tensor

    @classmethod
    def of(cls, dense: Tensor) -> "Codes":
        """The positive entries of dense latents."""
        fired = dense > 0
        return cls(dense[fired], fired.nonzero()[:, 1].int(), fired.sum(1))


@dataclass(frozen=True)
class Found:
    """A trained dictionary, in the data's units: `x_hat = f @ directions + bias`."""

    encode: Callable[[Tensor], Codes]
    """As in use, not as in training."""
    reconstruct: Callable[[Tensor], Tensor]
    """By the framework's own path, so that its error can be compared with that of `encode` and `directions`."""
    directions: Tensor
    bias: Tensor


class Batches:
    """The training rows as float32 batches, all of them on the device; every iteration starts again at the first."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.order = load_file(job.order)["order"].long().to(DEVICE)
        shards = sorted(Path(job.data).rglob("train-*.safetensors"))
        self.rows = torch.cat([load_file(path)["acts"] for path in shards]).to(DEVICE)

    def __iter__(self) -> Iterator[Tensor]:
        _marks.clear()
        for step in range(self.job.steps):
            mark()
            yield self.rows[self.order[step * self.job.batch : (step + 1) * self.job.batch]].float()


_marks: list[float] = []


def mark() -> None:
    """To be called when a step asks for its batch."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()  # or launches would be timed
    _marks.append(time.perf_counter())


def measure(job: Job, train: Callable[[Job], Found], versions: Callable[[], Mapping[str, str]]) -> dict[str, Any]:
    """Train, and write what was found; returns the facts of that. Memory is the process's, or the GPU's if there is
    one."""
    torch.manual_seed(job.seed)
    if DEVICE == "cuda":
        gc.collect()  # what another framework has left
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    _marks.clear()
    started = time.perf_counter()
    found = train(job)
    seconds, peak = time.perf_counter() - started, peak_kilobytes()
    if DEVICE == "cuda":
        peak = torch.cuda.max_memory_allocated() // 1024
    between = [round(after - before, 6) for before, after in itertools.pairwise(_marks)]
    with torch.no_grad():
        squared_error = _hand_over(job, found)
    facts = {"seconds": round(seconds, 1), "step_seconds": between, "peak_kilobytes": peak}
    return facts | {"squared_error": squared_error, "versions": dict(versions())}


def peak_kilobytes() -> int:
    """The largest resident set of this process. What `getrusage` says is at least that of the one that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(status.read_text().split("VmHWM:")[1].split()[0])


def _hand_over(job: Job, found: Found) -> float:
    """Write the latents of the test rows; returns the squared error of the framework's own reconstructions."""
    parts, squared_error = [], 0.0
    with safe_open(job.test, framework="pt") as file:
        acts = file.get_slice("acts")
        for start in range(0, acts.get_shape()[0], TEST_ROWS):
            x = acts[start : start + TEST_ROWS].float().to(DEVICE)
            parts.append(found.encode(x))
            squared_error += (x - found.reconstruct(x)).double().square().sum().item()
    values, indices, counts = (torch.cat(column) for column in zip(*parts, strict=True))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    tensors = {"values": values, "indices": indices, "offsets": offsets}
    tensors |= {"directions": found.directions.detach(), "bias": found.bias.detach()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, Path(job.out, "found.safetensors"))
    return squared_error
