"""The main job from nothing: `sae run configs/embedded.yaml` into an empty folder, in its own process.

python -m benchmarks.atlas [rounds] [--keep DIR]
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=1)
    parser.add_argument("--keep", type=Path, help="where the last run is kept; nothing may be there")
    given = parser.parse_args()
    if given.keep and given.keep.exists():
        parser.error(f"{given.keep}: must not exist")
    runs = [_run(given.keep if number == given.rounds - 1 else None) for number in range(given.rounds)]
    middle = sorted(runs, key=lambda run: run["total_seconds"])[len(runs) // 2]
    total = statistics.median(run["total_seconds"] for run in runs)
    figures = {**middle, "total_seconds": total, "rounds": given.rounds}
    results.save("atlas", figures)
    sys.stderr.write(json.dumps(figures, indent=1) + "\n")


def _run(keep: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = keep or Path(folder) / "run"
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sae", "run", str(CONFIG), f"out={out}"], check=True)
        seconds = time.perf_counter() - started
        summary = json.loads((out / "summary.json").read_text())
        size = sum(file.stat().st_size for file in (out / "atlas").rglob("*") if file.is_file())
    return {**summary, "total_seconds": round(seconds, 1), "atlas_bytes": size}


if __name__ == "__main__":
    main()
