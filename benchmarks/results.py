"""One form for every result: what was run, on what, when, and the figures."""

import datetime
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from sae.files import write_json

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def save(name: str, figures: dict[str, Any], path: Path | None = None) -> Path:
    """Write `docs/results/<name>.json`, or `path`."""
    path = path or RESULTS / f"{name}.json"
    write_json(path, {**origin(name), "figures": figures})
    return path


def origin(name: str) -> dict[str, Any]:
    """What was typed, on what, and when. A benchmark whose cases are measured in sittings of their own keeps one of
    each in `figures["origins"]`."""
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {"command": command(name), "hardware": hardware(), "date": date}


def command(name: str) -> str:
    """As it was typed."""
    return f"python -m benchmarks.{name} {shlex.join(sys.argv[1:])}".strip()


def hardware() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                flags = " (bfloat16)" if torch.cpu._is_avx512_bf16_supported() else " (no bfloat16)"
                return line.split(":", 1)[1].strip() + flags
    return platform.processor() or platform.machine()
