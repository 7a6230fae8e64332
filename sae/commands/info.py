"""`sae info`: what is installed, and what it can do."""

import argparse
from typing import Any

from sae.commands import common


def add(commands: Any) -> None:
    parser = common.add(commands, "info", "versions, devices, architectures, formats, backends", info)
    parser.add_argument("--json", action="store_true", help="as JSON")


def info(arguments: argparse.Namespace) -> None:
    from sae.info import collect

    facts = collect()
    if arguments.json:
        common.say(facts)
        return
    for name, value in facts.items():
        items = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
        common.say(f"{name + ':':<15}{', '.join(items)}")
