"""Labels of the embedded dictionary on windows of held-out text: `configs/embedded.yaml`, in runs/embedded.

python -m benchmarks.windows [--run runs/embedded]
"""

import argparse
import logging
from pathlib import Path

from benchmarks import results
from benchmarks.frameworks import ROOT
from sae import judged
from sae.run import Run
from sae.run_config import load_config

CONFIG = ROOT / "configs" / "embedded.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "embedded")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run = Run(load_config(CONFIG), given.run)
    facts = dict(judged.windows(run).facts)
    results.save("windows", {**facts, "per_kind": run.cfg.analysis.windows.per_kind})


if __name__ == "__main__":
    main()
