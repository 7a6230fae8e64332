"""`sae sweep`: many dictionaries from one pass."""

import argparse
from typing import Any

from sae.commands import common

EXAMPLES = """sae sweep configs/sweep.yaml
  sae sweep configs/embedded.yaml 'sweep=[{grid: {sae.k: [16, 32, 64]}}]'
  sae run configs/sweep.yaml member=k=32"""


def add(commands: Any) -> None:
    text = "train the dictionaries of `sweep:` on one stream and compare them"
    common.add_run(commands, "sweep", text, sweep, EXAMPLES)


def sweep(arguments: argparse.Namespace) -> None:
    from sae.sweep import sweep

    with common.locked_run(arguments) as run:
        rows = sweep(run)
        columns = ("name", "type", "site", "n_latents", "l0", "fvu", "pca_fvu", "ce_recovered", "dead_fraction")
        common.say_table([columns, *([getattr(row, name) for name in columns] for row in rows)])
        common.say(f"table: {run.out / 'sweep' / 'table.csv'}\nplot: {run.out / 'sweep' / 'pareto.png'}")
