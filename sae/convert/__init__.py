"""Peers' checkpoints, read and written: one file a format. See docs/interchange.md.

A peer's names, orientations and conventions end here: what is read is one of our own dictionaries, the
same function. What a file leaves open is asked of the user by name, never guessed; what it cannot hold
goes into a sidecar, so that ours → theirs → ours is exact.
"""

import importlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae import hub
from sae.convert import sidecar, tensors
from sae.convert.answers import Answers
from sae.dictionary import Dictionary
from sae.errors import ConfigError, FormatError, StoreError
from sae.files import publish, sha256_file, write_json
from sae.registry import Registry

OWN = "sae"
_FILES = ("dictionary_learning", "gemma_scope", "openai", "saelens", "sparsify")


@dataclass(frozen=True)
class Read:
    """What a peer's files say."""

    dictionary: Dictionary
    facts: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What is to be written of a dictionary."""

    files: Mapping[str, Any]
    """Name → content, that with the weights first: a state dict, or JSON where the name ends so."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """To what these files leave open."""


@dataclass(frozen=True)
class Format:
    """How one package's files are found, read and written."""

    find: Callable[[Path], Path | None]
    """The file that holds the weights, in a folder or given itself; None if it is not of this format."""
    read: Callable[[Path, Answers], Read]
    """Of the file that `find` found."""
    write: Callable[[Dictionary, Mapping[str, Any]], Written]
    """Of a dictionary and its facts; raises where the format cannot hold it."""
    check_out: Callable[[Dictionary, Path], object] = lambda *_: None
    """Of a dictionary and the folder for it; raises where the folder's name would say what the dictionary is not."""


formats: Registry[Format] = Registry("format")


def names() -> list[str]:
    """Formats that can be read and written, ours among them."""
    _import_built_in()
    return sorted([*formats.names(), OWN])


def read(source: Path, answers: Mapping[str, str] | None = None, name: str | None = None) -> Read:
    """The dictionary in a peer's files (or ours), in evaluation mode, and its facts.

    Args:
        source: the folder of one dictionary, or the file with its weights.
        answers: to what the files leave open.
        name: of the format; none means by the files that are there.

    Raises:
        FormatError: the files leave something open (the message names it), are damaged, or hold what has no
            counterpart here (the message says why).
        ConfigError: an answer that is not valid, or to no question.
    """
    name = detect(source) if name is None else name
    if name == OWN:
        return _read_own(source, Answers(source, answers or {}))
    _import_built_in()
    form = formats.get(name)
    path = form.find(source)
    if path is None:
        raise FormatError(f"{source}: holds no {name} dictionary")
    asked = Answers(path, answers or {})
    kept = sidecar.find(path.parent, path.name)
    if kept is not None:
        plain = form.read(path, Answers(path, kept["answers"])).dictionary
        dictionary = sidecar.restore(kept, path.parent, plain)
        return Read(dictionary, _said(dictionary, kept["dictionary"]["facts"], asked))
    found = form.read(path, asked)
    facts = _said(found.dictionary, found.facts, asked)
    facts["source"] = {"format": name, "sha256": sha256_file(path), "answers": asked.used, **facts["source"]}
    return Read(found.dictionary, facts)


def _read_own(source: Path, asked: Answers) -> Read:
    dictionary = hub.load(source)
    return Read(dictionary, _said(dictionary, hub.facts(source), asked))


def write(dictionary: Dictionary, facts: Mapping[str, Any], name: str, out: Path) -> None:
    """Write a dictionary in a peer's format (or ours) into the folder `out`, with a sidecar.

    Raises:
        FormatError: the format cannot hold it, or files in the folder that were not written from here would be
            lost; the message says why, and nothing is written.
    """
    if name == OWN:
        hub.save(dictionary, facts, out)
        return
    _import_built_in()
    form = formats.get(name)
    form.check_out(dictionary, out)
    written = form.write(dictionary, facts)
    sidecar.check_free(out, written.files)
    with _staging(out) as staged:
        for file, content in written.files.items():
            _WRITERS[Path(file).suffix](staged / file, content)
        path = staged / next(iter(written.files))
        plain = form.read(path, Answers(path, written.answers)).dictionary
        assert plain.shape == dictionary.shape
        sidecar.write(dictionary, facts, staged, written.files, written.answers, plain)
        sidecar.check_ours(out, staged, written.files)
        _publish(staged, out, list(written.files))


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder in `out` for files that are not yet to be seen; `out` goes with it if it is new and stays empty."""
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out}: is a file, must be a folder to write to")
    staged, is_new = out / "sae_atlas.tmp", not out.exists()
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
    finally:
        shutil.rmtree(staged)
        if is_new and not any(out.iterdir()):
            out.rmdir()


def _publish(staged: Path, out: Path, names: Sequence[str]) -> None:
    """Move the files to where they are read from, so that a kill leaves no weights under another's choices.

    JSON goes first and comes last. The sidecar stays until then: it refuses files that it does not speak of, and
    says which may be written over.
    """
    for name in names:
        if name.endswith(".json"):
            (out / name).unlink(missing_ok=True)
    for name in (*names, sidecar.TENSORS, sidecar.JSON):
        publish(out / name, (staged / name).replace)


_WRITERS: dict[str, Callable[[Path, Any], None]] = {
    ".json": write_json,
    ".safetensors": tensors.write_safetensors,
    ".pt": tensors.write_pt,
    ".npz": tensors.write_npz,
}


def detect(source: Path) -> str:
    """The format of what is there.

    Raises:
        StoreError: nothing is there.
        FormatError: no format's files are there, or those of several.
    """
    _import_built_in()
    if not source.exists():
        raise StoreError(f"{source}: no such file or folder")
    if hub.find(source) is not None:
        return OWN
    found = [name for name in formats.names() if formats.get(name).find(source) is not None]
    if len(found) > 1:
        raise FormatError(f"{source}: has files of {' and '.join(found)}; say which with --from")
    if not found:
        raise FormatError(f"{source}: no dictionary of a known format ({', '.join(names())}); {_below(source)}")
    return found[0]


def _below(source: Path) -> str:
    """Where to look instead, as the end of a message."""
    folders = sorted(path for depth in ("*", "*/*", "*/*/*") for path in source.glob(depth) if path.is_dir())
    found = [path for path in folders if any(formats.get(name).find(path) for name in formats.names())]
    if not found:
        return "give the folder of one dictionary, or the file with its weights"
    return f"there are some below it: {', '.join(str(path) for path in found[:3])}"


def _said(dictionary: Dictionary, facts: Mapping[str, Any], answers: Answers) -> dict[str, Any]:
    """The facts with what the user says himself, once all that he says has been asked for.

    Raises:
        ConfigError: one site for several, a target for what writes where it reads, or an answer to no question.
    """
    said, shape = dict(facts), dictionary.shape
    for name, side, widths in (("site", "inputs", shape.inputs), ("target", "outputs", shape.outputs or ())):
        site = answers.fact(name)
        if site is not None and len(widths) != 1:
            has = f"has {len(widths)} {side}" if widths else "writes the site that it reads"
            raise ConfigError(f"{name} = {site!r}: must be left out, the dictionary {has}")
        if site is not None:
            said[side] = [site]
    model = answers.fact("model")
    if model is not None:
        said["model"] = model
    answers.finish()
    return said


def _import_built_in() -> None:
    for name in _FILES:
        importlib.import_module(f"sae.convert.{name}")
