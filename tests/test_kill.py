"""A run that is killed, whenever, and started again, ends with the same bytes as one that was not.

Marked slow. Each kill waits until a box drawn at random is being built, then for a random part of
the time that this box takes; a run with no unfinished box left is begun anew in another folder.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

N_KILLS = 20
CONFIG = Path(__file__).parent.parent / "configs" / "smoke.yaml"
BOXES = ("tokens", "activations", "dictionary", "evaluation", "codes", "index", "labels", "atlas")
OUTSIDE = {"seconds.json", "summary.json", ".lock"}
"""Times and locks: all that may differ between two runs."""


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sae", "run", str(CONFIG), f"out={out}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=CONFIG.parent.parent)


def finish(out: Path) -> None:
    assert start(out).wait() == 0


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file of every box."""
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name not in OUTSIDE]
    return {file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def unfinished(out: Path) -> list[str]:
    return [box for box in BOXES if not (out / box / "manifest.json").exists()]


def kill_within(out: Path, box: str, delay: float) -> str | None:
    """Run until `box` is being built and `delay` more seconds; the box that the kill fell in, if any."""
    process = start(out)
    while process.poll() is None and not ((out / box / "inputs.json").exists() or box not in unfinished(out)):
        time.sleep(0.005)
    time.sleep(delay)
    begun = [name for name in unfinished(out) if (out / name / "inputs.json").exists()]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return begun[0] if begun else None


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    finish(tmp_path / "whole")
    whole = digests(tmp_path / "whole")
    assert {Path(name).parts[0] for name in whole} == set(BOXES)
    seconds = json.loads((tmp_path / "whole" / "seconds.json").read_text())
    draws, runs, hit = random.Random(0), [tmp_path / "killed-0"], []
    for _ in range(N_KILLS):
        if not unfinished(runs[-1]):
            runs.append(tmp_path / f"killed-{len(runs)}")
        box = draws.choice(unfinished(runs[-1])[:3])
        hit.append(kill_within(runs[-1], box, draws.random() * seconds[box]))
    for run in runs:
        finish(run)
        assert digests(run) == whole
    assert len(set(hit) - {None}) >= 6, f"kills fell only in {hit}"
