"""Build one box of a run: skip it when it is done, resume it when it was killed, publish it whole.

A box is a folder. `inputs.json` says what it is being built from; `manifest.json`, written last,
says what is in it, with a checksum for each file. Neither holds a time or a path, so the same
inputs give the same bytes. The digest of a manifest stands for the whole box in the next stage's
inputs: a change anywhere upstream is seen by everything that depends on it, and by nothing else.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.errors import StoreError
from sae.files import digest_json, read_json, sha256_file, write_json

log = logging.getLogger(__name__)
SCHEMA = 1
SCRATCH = ".scratch"
"""Ending of files that serve a resume only; they go when the box is finished."""


@dataclass(frozen=True)
class Box:
    """A finished box: where it is, what it was made from, and the facts its builder recorded."""

    path: Path
    inputs: Mapping[str, Any]
    facts: Mapping[str, Any]
    digest: str


def stage(path: Path, inputs: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]) -> Box:
    """The box at `path` built from `inputs`; `build(path)` runs only if it is not there yet.

    `build` writes files into the folder and returns facts (JSON) for the manifest. It may find
    files of a former, killed attempt from the same inputs, and should go on from them. A box of
    other inputs is removed first.

    Raises:
        StoreError: another process is building this box.
    """
    return stages({path: inputs}, lambda paths: [build(paths[0])])[0]


def stages(
    boxes: Mapping[Path, Mapping[str, Any]],
    build: Callable[[Sequence[Path]], Sequence[Mapping[str, Any]]],
    is_shared: bool = False,
) -> list[Box]:
    """As `stage`, for boxes that are built side by side: `build` gets the paths of those that are not there yet.

    Args:
        boxes: path → inputs.
        is_shared: all processes of the run build, each its part; else the first does, and the others wait. What the
            first returns counts.

    Raises:
        StoreError: another process is building one of them.
    """
    keys = {path: digest_json({"schema": SCHEMA, "inputs": inputs}) for path, inputs in boxes.items()}
    root = os.path.commonpath([path.parent for path in boxes])
    from sae.team import current

    team, missing = current(), []
    with ExitStack() as held:
        if team.is_main:
            for path in boxes:
                held.enter_context(lock(path))
            missing = [path for path in boxes if not _is_current(path, keys[path])]
            for path in boxes:
                log.info("%s: %s", path.relative_to(root), "building" if path in missing else "up to date")
                if path not in missing:
                    _tidy(path)  # a kill came when all but this was done
            for path in missing:
                _start(path, keys[path], boxes[path])
        missing = team.told(missing)
        built = build(missing) if missing and (team.is_main or is_shared) else []
        team.wait()
        if team.is_main:
            for path, facts in zip(missing, built, strict=True):
                _finish(path, keys[path], boxes[path], facts)
        team.wait()
    return [open_box(path) for path in boxes]


def open_box(path: Path) -> Box:
    """A finished box, unverified (see `verify`).

    Raises:
        StoreError: the box is missing, unfinished, or of another schema version.
    """
    manifest = path / "manifest.json"
    if not manifest.exists():
        raise StoreError(f"{path}: not finished (no manifest.json); run the stage that builds it")
    content = read_json(manifest)
    if content.get("schema") != SCHEMA:
        raise StoreError(f"{manifest}: schema {content.get('schema')!r}, this version reads {SCHEMA}")
    return Box(path, content["inputs"], content["facts"], sha256_file(manifest))


def verify(box: Box) -> None:
    """Compare every file of a box with its checksum.

    Raises:
        StoreError: naming the first file that is missing or differs.
    """
    for name in damaged(box.path):
        raise StoreError(
            f"{box.path / name}: missing or damaged (checksum differs); run the stage that builds it again"
        )


def damaged(path: Path) -> list[str]:
    """Names of the files of a finished box that are missing or differ from their checksums."""
    return [name for name, sha256 in checksums(path).items() if not is_whole(path / name, sha256)]


def checksums(path: Path) -> dict[str, str]:
    """SHA-256 of the files of a finished box, by name."""
    return {name: entry["sha256"] for name, entry in read_json(path / "manifest.json")["files"].items()}


def is_whole(file: Path, sha256: str) -> bool:
    """Whether a file is there and has its checksum."""
    return file.is_file() and sha256_file(file) == sha256


def _is_current(path: Path, key: str) -> bool:
    manifest = path / "manifest.json"
    if not manifest.exists():
        return False
    content = read_json(manifest)
    if content.get("key") != key:
        return False
    sizes = {name: entry["bytes"] for name, entry in content["files"].items()}
    return all((path / name).is_file() and (path / name).stat().st_size == n for name, n in sizes.items())


def _start(path: Path, key: str, inputs: Mapping[str, Any]) -> None:
    begun = path / "inputs.json"
    if not begun.exists() and {entry.name for entry in path.iterdir()} - {".lock", "inputs.json.tmp"}:
        raise StoreError(f"{path}: holds files that are no part of a run; move them away or choose another out=DIR")
    same = begun.exists() and read_json(begun).get("key") == key
    if same and (path / "manifest.json").exists():
        for name in damaged(path):
            (path / name).unlink(missing_ok=True)
    (path / "manifest.json").unlink(missing_ok=True)
    if not same:
        for entry in path.iterdir():
            if entry.name not in (".lock", "inputs.json"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_json(begun, {"key": key, "inputs": inputs})


def _finish(path: Path, key: str, inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    files = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.suffix == ".tmp" or file.name.startswith(".tmp"):
            file.unlink()
        elif file.suffix != SCRATCH and file.is_file() and name not in {".lock", "inputs.json"}:
            files[name] = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
    content = {"schema": SCHEMA, "key": key, "inputs": inputs, "facts": facts, "files": files}
    write_json(path / "manifest.json", content)
    _tidy(path)  # only now: until the manifest stands, a resume needs what goes


def _tidy(path: Path) -> None:
    for file in path.glob(f"*{SCRATCH}"):
        file.unlink()


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a folder for this process.

    Raises:
        StoreError: another process holds it.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(f"{path}: another process is building it; wait for it or choose another out=DIR") from None
        yield
