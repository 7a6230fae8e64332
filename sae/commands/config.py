"""`sae config`: every field of a run."""

import argparse
from typing import Any

from sae.commands import common


def add(commands: Any) -> None:
    text = "print every field with its value and help"
    common.add_run(commands, "config", text, config, "sae config configs/embedded.yaml")


def config(arguments: argparse.Namespace) -> None:
    from sae.run_config import describe

    cfg, name = common.cfg(arguments), common.option(arguments, "member")
    common.say(describe(cfg if name is None else cfg.member(name)))
