"""The main job from nothing: `sae run configs/embedded.yaml` into an empty folder, in its own process.

python -m benchmarks.atlas [rounds]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import results

CONFIG = Path(__file__).parent.parent / "configs" / "embedded.yaml"


def main(rounds: int = 1) -> None:
    runs = [_run() for _ in range(rounds)]
    middle = sorted(runs, key=lambda run: run["total_seconds"])[len(runs) // 2]
    figures = {**middle, "total_seconds": statistics.median(run["total_seconds"] for run in runs), "rounds": rounds}
    results.save("atlas", figures)
    sys.stderr.write(json.dumps(figures, indent=1) + "\n")


def _run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sae", "run", str(CONFIG), f"out={folder}/run"], check=True)
        seconds = time.perf_counter() - started
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        size = sum(file.stat().st_size for file in (Path(folder) / "run" / "atlas").rglob("*") if file.is_file())
    return {**summary, "total_seconds": round(seconds, 1), "atlas_bytes": size}


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
