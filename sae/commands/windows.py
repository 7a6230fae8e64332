"""`sae windows`: scores of labels on windows of held-out text."""

import argparse
from typing import Any

from sae.commands import common


def add(commands: Any) -> None:
    text = "score labels on windows of held-out text, as others score theirs"
    common.add_run(
        commands, "windows", text, windows, "sae windows configs/embedded.yaml analysis.windows.per_kind=100"
    )


def windows(arguments: argparse.Namespace) -> None:
    with common.locked_run(arguments) as run:
        from sae import judged

        box = judged.windows(run)
        common.say({"box": str(box.path), **box.facts})
