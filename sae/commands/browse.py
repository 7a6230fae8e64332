"""`sae browse`: open the atlas."""

import argparse
import os
import sys
from typing import Any

from sae.commands import common


def add(commands: Any) -> None:
    parser = common.add_run(commands, "browse", "open the atlas of a run", browse, "sae browse configs/embedded.yaml")
    parser.add_argument("--no-open", action="store_true", help="print the page's path, open nothing")


def browse(arguments: argparse.Namespace) -> None:
    import webbrowser

    from sae.stage import open_box

    page = open_box(common.boxes(arguments) / "atlas").path / "index.html"
    common.say(f"atlas: {page}")
    # without a screen, `webbrowser` may start a text browser in the middle of a script
    has_screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if has_screen and not arguments.no_open:
        webbrowser.open(page.resolve().as_uri())
