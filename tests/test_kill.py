"""A run that is killed, whenever, and started again, ends with the same bytes as one that was not.

Marked slow. Each kill waits until a box drawn at random is being built, then for a random part of
the time that this box takes. A box is hit once in a run; when all are finished or hit, another run
is begun, and in the end each is finished and compared.
"""

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import warm

N_KILLS = 20
CONFIG = warm.ROOT / "configs" / "smoke.yaml"
BOXES = ("tokens", "activations", "dictionary", "evaluation", "codes", "index", "labels", "effects", "atlas")
OUTSIDE = {"seconds.json", "summary.json", ".lock"}
"""Times and locks: all that may differ between two runs."""


def finish(out: Path, sae: Callable[..., subprocess.CompletedProcess[str]] = warm.sae) -> None:
    done = sae("run", str(CONFIG), f"out={out}")
    assert done.returncode == 0, done.stderr


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m sae ARGUMENTS`."""
    command = [sys.executable, "-m", "sae", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=warm.ROOT, check=False)


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file of every box."""
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name not in OUTSIDE]
    return {file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def unfinished(out: Path) -> list[str]:
    return [box for box in BOXES if not (out / box / "manifest.json").exists()]


def kill_within(out: Path, box: str, delay: float) -> str | None:
    """Run until `box` is being built and `delay` more seconds; the box that the kill fell in, if any."""
    run = warm.start("run", str(CONFIG), f"out={out}")
    run.wait_until(lambda: any(line.strip() == f"{box}: building" for line in run.stderr.splitlines()))
    time.sleep(delay)
    begun = [name for name in unfinished(out) if (out / name / "inputs.json").exists()]
    run.kill()
    return begun[0] if begun else None


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    finish(tmp_path / "whole")
    whole = digests(tmp_path / "whole")
    assert {Path(name).parts[0] for name in whole} == set(BOXES)
    seconds = json.loads((tmp_path / "whole" / "seconds.json").read_text())
    draws, runs, hit = random.Random(0), [tmp_path / "killed-0"], []
    spared = list(BOXES)  # boxes of the newest run in which no kill has fallen yet
    for _ in range(N_KILLS):
        spared = [box for box in spared if box in unfinished(runs[-1])]
        if not spared:
            runs.append(tmp_path / f"killed-{len(runs)}")
            spared = list(BOXES)
        box = draws.choice(spared[:2])
        hit.append(kill_within(runs[-1], box, draws.random() * seconds[box]))
        spared = [name for name in spared if name != hit[-1]]
    for run in runs:
        finish(run, fresh if run == runs[0] else warm.sae)  # a process of either kind ends with the same
        found = digests(run)
        differing = sorted(name for name in whole | found if whole.get(name) != found.get(name))
        assert not differing, f"{run.name} differs (kills of all runs: {hit}): {differing}"
    assert len(set(hit) - {None}) >= 6, f"kills fell only in {hit}"
