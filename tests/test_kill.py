"""A run that is killed, whenever, and started again, ends with the same bytes as one that was not.

Marked slow. The kills fall at random moments of the run's whole length, so that every stage meets
some; a run that finishes before its share of kills is begun anew in another folder.
"""

import hashlib
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
OUTSIDE = {"seconds.json", "summary.json", ".lock"}
"""Times and locks: all that may differ between two runs."""


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sae", "run", str(CONFIG), f"out={out}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=CONFIG.parent.parent)


def finish(out: Path) -> float:
    """Run to the end; returns the seconds it took."""
    began = time.monotonic()
    process = start(out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return time.monotonic() - began


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file of every box."""
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name not in OUTSIDE]
    return {file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    seconds = finish(tmp_path / "whole")
    whole = digests(tmp_path / "whole")
    assert {Path(name).parts[0] for name in whole} == {
        *("tokens", "activations", "dictionary", "evaluation", "codes", "index", "labels", "atlas")
    }
    moments, kills, runs, reached = random.Random(0), 0, [tmp_path / "killed-0"], set()
    while kills < N_KILLS:
        process = start(runs[-1])
        try:
            # start-up takes a part of each attempt; the rest advances the run
            process.wait(timeout=moments.uniform(0.1, 0.5) * seconds)
            assert process.returncode == 0
            runs.append(tmp_path / f"killed-{len(runs)}")
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            reached |= {box.name for box in runs[-1].glob("*/") if (box / "inputs.json").exists()}
    finish(runs[-1])
    assert len(reached) >= 4, f"kills fell only in {reached}"
    for run in runs:
        assert digests(run) == whole
