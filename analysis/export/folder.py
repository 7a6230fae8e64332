"""A folder that is there whole or not at all, and never takes the place of what someone else wrote.

It is written beside its final name and renamed. `sae_export.json` in it says what it was made from and the SHA-256 of
each file, so that a folder that was exported before can be told from any other.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae.errors import StoreError
from sae.files import read_json, sha256_file, write_json
from sae.stage import lock

MARKER, SCHEMA = "sae_export.json", 1


def publish_folder(out: Path, write: Callable[[Path], Mapping[str, Any]]) -> None:
    """Have `write` fill an empty folder, which becomes `out` when all is written; after an error nothing is left of it.

    Args:
        write: returns what the marker says beside the files.

    Raises:
        StoreError: `out` holds files that were not exported, or have changed since.
    """
    check_free(out)
    out = out.resolve()
    staged, former = out.with_name(f".{out.name}.tmp"), out.with_name(f".{out.name}.old")
    with lock(staged):
        _clear(staged)
        try:
            about = write(staged)
            files = {name: sha256_file(staged / name) for name in _names(staged)}
            write_json(staged / MARKER, {"schema": SCHEMA, **about, "files": files})
            _sync(staged)
            check_free(out)  # again: that took a while
        except BaseException:
            shutil.rmtree(staged)
            raise
        shutil.rmtree(former, ignore_errors=True)  # a kill came when it had been replaced
        if out.exists():
            out.rename(former)
        (staged / ".lock").unlink()
        staged.rename(out)
        _sync_one(out.parent)
        shutil.rmtree(former, ignore_errors=True)


def check_free(out: Path) -> None:
    """See that nothing is lost if `out` is replaced.

    Raises:
        StoreError: it is a file, or holds files that were not exported, or have changed since.
    """
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out}: is a file, must be a folder to write to")
    names = _names(out) if out.exists() else []
    if not names:
        return
    if MARKER not in names:
        raise StoreError(f"{out}: holds files that were not exported from here; name a new folder, or empty this one")
    known = read_json(out / MARKER)["files"]
    for name in names:
        if name != MARKER and (name not in known or sha256_file(out / name) != known[name]):
            how = "has changed since it was exported" if name in known else "was not exported from here"
            raise StoreError(f"{out / name}: {how} and would be lost; move it away, or name a new folder")


def _names(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    files = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in files if name != ".lock")


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _sync(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
