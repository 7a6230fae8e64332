"""`python -m sae`: the same as the console script `sae`."""

import sys
from pathlib import Path

# `python -m` puts the working directory first: a user's own train.py must not stand in for ours.
here = Path.cwd()
if sys.path and Path(sys.path[0] or ".").resolve() == here and not (here / "sae" / "cli.py").exists():
    del sys.path[0]

from sae.cli import main  # noqa: E402 - after the path is mended

sys.exit(main())
