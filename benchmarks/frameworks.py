"""The frameworks: what each is told, and its process (`benchmarks/peers/`)."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers import delphi, dictionary_learning, plain, sae_atlas, saedashboard, saelens, sparsify
from benchmarks.peers.dashboarding import DashboardJob
from benchmarks.peers.exchange import Job, measure
from benchmarks.peers.harvesting import HarvestJob
from benchmarks.peers.sae_atlas import PLAIN
from sae.architectures.configs import MatryoshkaConfig
from sae.files import read_json

ROOT = Path(__file__).parent.parent
OURS = "sae-atlas"
ADAPTERS = {OURS: sae_atlas, "SAELens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}
"""Those that train."""
HOOK = "transformers"
"""No framework but a hook on the model: `benchmarks/peers/plain.py`."""
PROGRAMS = {**ADAPTERS, HOOK: plain, "SAEDashboard": saedashboard, "delphi": delphi}
TASKS = {Job: "train", HarvestJob: "harvest", DashboardJob: "dashboards"}


def settings(framework: str, architecture: str, knob: float, n_latents: int, steps: int) -> dict[str, Any]:
    """What a framework is told of an architecture, beside the job."""
    if framework == OURS:
        return sae_atlas.settings(architecture, knob, n_latents)
    prefixes = MatryoshkaConfig(n_latents=n_latents).prefixes
    return ADAPTERS[framework].settings(architecture, knob, prefixes, steps)


def here(framework: str, job: Job) -> dict[str, Any]:
    """Train in this process, into which the framework must be installed beside ours; returns the same facts."""
    adapter = ADAPTERS[framework]
    return measure(job, adapter.train, adapter.versions)


def launch(framework: str, job: Job | HarvestJob | DashboardJob) -> dict[str, Any]:
    """Do a job in the framework's own process and environment; returns the facts of that process.

    Raises:
        CalledProcessError: the framework failed; what it said has been shown.
    """
    path = Path(job.out) / "job.json"
    job.write(path)
    is_ours = framework in (OURS, HOOK)
    python = sys.executable if is_ours else ROOT / ".peers" / framework.lower() / "bin" / "python"
    command = [str(python), "-m", PROGRAMS[framework].__name__, TASKS[type(job)], str(path)]
    settings = {"WANDB_MODE": "disabled"} | ({"SAE_KERNELS": "torch"} if job.mode == PLAIN else {})
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, **settings})
    return read_json(Path(job.out) / "facts.json")
