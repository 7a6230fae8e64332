"""What a peer's format cannot hold, in two files beside the peer's: `sae_atlas.json`, `sae_atlas.safetensors`.

The JSON has what `dictionary.json` holds, and digests of the peer's files; the tensors are those that do
not come back from the peer's files bit by bit (scalars folded into weights, a threshold's two sums, …).
With both, ours → theirs → ours is exact. They speak of those very files: once a peer's file has been
written anew, the two are refused.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae import hub
from sae.convert.tensors import write_safetensors
from sae.dictionary import Dictionary
from sae.errors import FormatError
from sae.files import sha256_file, write_json
from sae.readers import read_mapping, read_safetensors, require

SCHEMA = 1
JSON, TENSORS = "sae_atlas.json", "sae_atlas.safetensors"


def check_free(out: Path, names: Iterable[str]) -> None:
    """Raises: FormatError: the folder holds the sidecar of other files, which would be lost."""
    others = sorted(set(_read(out / JSON)["files"]) - {*names, TENSORS}) if (out / JSON).is_file() else []
    if others:
        raise FormatError(f"{out / JSON}: belongs to {', '.join(others)}; write to a folder of its own")


def check_ours(out: Path, new: Path, names: Iterable[str]) -> None:
    """See that no file of somebody else's would be lost: what is in `out` has been written from here.

    Args:
        new: the folder with the files that are to go into `out`; one that is there already may stay, as a
            kill in the middle leaves it.

    Raises:
        FormatError: naming a file that no sidecar speaks of, or that has changed since.
    """
    ours = _read(out / JSON)["files"] if (out / JSON).is_file() else {}
    for name in names:
        if (out / name).is_file() and sha256_file(out / name) not in (ours.get(name), sha256_file(new / name)):
            raise FormatError(
                f"{out / name}: would be lost, and is not as `sae convert` wrote it (no {JSON} beside it says so); "
                "write to a folder of its own, or remove the file first"
            )


def write(
    dictionary: Dictionary,
    facts: Mapping[str, Any],
    out: Path,
    names: Iterable[str],
    answers: Mapping[str, str],
    plain: Dictionary,
) -> None:
    """Write the sidecar of the peer's files `names`, which are in `out`, a folder that has none.

    Args:
        answers: to what the files leave open, for those who read them without the sidecar.
        plain: what the files say by themselves.
    """
    content, tensors = hub.describe(dictionary, facts)
    theirs = plain.state_dict()
    shared = [key for key, value in tensors.items() if _is_same(value, theirs.get(key))]
    lost = {key: value for key, value in tensors.items() if key not in shared}
    write_safetensors(out / TENSORS, lost)
    digests = {name: sha256_file(out / name) for name in (*names, TENSORS)}
    own = {"schema": SCHEMA, "files": digests, "answers": dict(answers), "shared": shared, "dictionary": content}
    write_json(out / JSON, own)


def _is_same(ours: Tensor, theirs: Tensor | None) -> bool:
    """Bit by bit: a NaN is itself, and -0 is not 0."""
    if theirs is None or ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return torch.equal(ours.contiguous().flatten().view(torch.uint8), theirs.contiguous().flatten().view(torch.uint8))


def find(folder: Path, name: str) -> dict[str, Any] | None:
    """The sidecar of the file `name` in `folder`; None if there is none.

    Raises:
        FormatError: another version, or a file has changed since.
    """
    path = folder / JSON
    if not path.is_file():
        return None
    content = _read(path)
    if name not in content["files"]:
        return None
    for file, digest in content["files"].items():
        if not (folder / file).is_file() or sha256_file(folder / file) != digest:
            raise FormatError(
                f"{path}: is of other contents of {file}, which has changed since; "
                f"remove {JSON} to read the files as they are"
            )
    return content


def _read(path: Path) -> dict[str, Any]:
    content = read_mapping(path)
    if content.get("schema") != SCHEMA:
        raise FormatError(f"{path}: schema {content.get('schema')!r}, this version reads {SCHEMA}")
    require(path, content, "files", dict, "a mapping of names to digests")
    require(path, content, "answers", dict, "a mapping of questions to answers")
    require(path, content, "shared", list, "a list of tensors")
    hub.check(require(path, content, "dictionary", dict, "a mapping, as in dictionary.json"), path)
    return content


def restore(content: Mapping[str, Any], folder: Path, plain: Dictionary) -> Dictionary:
    """The dictionary as it was before it was written in the peer's format.

    Args:
        plain: what the peer's files say by themselves, with the sidecar's answers.
    """
    theirs = plain.state_dict()
    tensors = {name: theirs[name] for name in content["shared"]} | read_safetensors(folder / TENSORS)
    return hub.build(content["dictionary"], tensors, folder / JSON, folder / TENSORS)
