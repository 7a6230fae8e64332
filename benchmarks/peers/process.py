"""The process of a framework: `python -m benchmarks.peers.<framework> (train | harvest | dashboards) job.json`.

What it finds is said in `facts.json` beside the job.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.peers import dashboarding, exchange, harvesting
from benchmarks.peers.dashboarding import DashboardJob, Dashboards
from benchmarks.peers.exchange import Found, Job
from benchmarks.peers.harvesting import Harvest, HarvestJob


def main(
    versions: Callable[[], Mapping[str, str]],
    train: Callable[[Job], Found] | None = None,
    harvester: Callable[[HarvestJob], Harvest] | None = None,
    dashboards: Callable[[DashboardJob], Dashboards] | None = None,
) -> None:
    """Do the job that the command names, by the framework's function for it."""
    task, path = sys.argv[1], Path(sys.argv[2])
    if task == "train" and train is not None:
        facts = exchange.measure(Job.read(path), train, versions)
    elif task == "harvest" and harvester is not None:
        facts = harvesting.measure(HarvestJob.read(path), harvester, versions)
    elif task == "dashboards" and dashboards is not None:
        facts = dashboarding.measure(DashboardJob.read(path), dashboards, versions)
    else:
        raise SystemExit(f"{task}: this framework does not do that here")
    path.with_name("facts.json").write_text(json.dumps(facts, indent=1))
