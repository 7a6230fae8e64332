"""The atlas as a folder of static files that opens from anywhere: `index.html`, and its data as scripts.

A page opened from a file may not fetch, but it may load scripts. So every data file is one call,
`atlasIndex({...})` or `atlasChunk(3, {...})`, of plain ASCII in which no `<` can end a script.

    html/  index.html (with style and code)  data/index.js  data/latents-000.js …
"""

import hashlib
import html
import json
from pathlib import Path
from typing import Any

from analysis.export.atlas import Atlas, AtlasInput
from sae.files import write_text

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("parts.js", "charts.js", "home.js", "feature.js", "atlas.js")


def export(atlas: AtlasInput, out: Path) -> dict[str, Any]:
    """Write the pages of `atlas` into `out`; returns facts about them. Equal inputs give equal bytes.

    Raises:
        StoreError: a table lacks a column, or an example points at a split without tokens.
    """
    joined = Atlas(atlas)
    files = {"index.html": page(atlas.model, atlas.site), "data/index.js": script("atlasIndex", joined.index())}
    n_bytes = sum(_write(out / name, text) for name, text in files.items())
    for number in range(joined.n_chunks):
        name = f"data/latents-{number:03d}.js"
        n_bytes += _write(out / name, script("atlasChunk", number, joined.chunk(number)))
    return {
        "n_latents": len(joined.latents),
        "n_examples": joined.n_examples,
        "n_files": len(files) + joined.n_chunks,
        "n_bytes": n_bytes,
    }


def assets_digest() -> str:
    """Stands for the pages' own style and code."""
    names = ("index.html", "atlas.css", *SCRIPTS)
    return hashlib.sha256("\0".join(_asset(name) for name in names).encode()).hexdigest()


def page(model: str, site: str) -> str:
    """`index.html` with its style and scripts inside."""
    scripts = "\n".join(f"<script>\n{_asset(name)}</script>" for name in SCRIPTS)
    return (
        _asset("index.html")
        .replace("{{title}}", html.escape(f"Feature atlas: {model}, {site}"))
        .replace("{{style}}", _asset("atlas.css"))
        .replace("{{scripts}}", scripts)
    )


def script(function: str, *arguments: Any) -> str:
    """A JavaScript call with JSON arguments: ASCII only, without `<`, on one line."""
    values = (json.dumps(value, separators=(",", ":"), allow_nan=False) for value in arguments)
    return f"{function}({','.join(values)});\n".replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _write(path: Path, text: str) -> int:
    write_text(path, text)
    return len(text.encode())
