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
from sae.convert.tensors import read_safetensors, write_safetensors
from sae.dictionary import Dictionary
from sae.errors import FormatError
from sae.files import read_json, sha256_file, write_json

SCHEMA = 1
JSON, TENSORS = "sae_atlas.json", "sae_atlas.safetensors"


def check_free(out: Path, names: Iterable[str]) -> None:
    """Raises: FormatError: the folder holds the sidecar of other files, which would be lost."""
    others = sorted(set(read_json(out / JSON)["files"]) - {*names, TENSORS}) if (out / JSON).is_file() else []
    if others:
        raise FormatError(f"{out / JSON}: belongs to {', '.join(others)}; write to a folder of its own")


def write(
    dictionary: Dictionary,
    facts: Mapping[str, Any],
    out: Path,
    names: Iterable[str],
    answers: Mapping[str, str],
    plain: Dictionary,
) -> None:
    """Write the sidecar of the peer's files `names` in `out`.

    Args:
        answers: to what the files leave open, for those who read them without the sidecar.
        plain: what the files say by themselves.
    """
    content, tensors = hub.describe(dictionary, facts)
    theirs = plain.state_dict()
    shared = [key for key, value in tensors.items() if _is_same(value, theirs.get(key))]
    lost = {key: value for key, value in tensors.items() if key not in shared}
    (out / JSON).unlink(missing_ok=True)  # a kill from here on leaves the peer's files, and no sidecar of others
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
    content = read_json(path)
    if content.get("schema") != SCHEMA:
        raise FormatError(f"{path}: schema {content.get('schema')!r}, this version reads {SCHEMA}")
    if name not in content["files"]:
        return None
    for file, digest in content["files"].items():
        if not (folder / file).is_file() or sha256_file(folder / file) != digest:
            raise FormatError(
                f"{path}: is of other contents of {file}, which has changed since; "
                f"remove {JSON} to read the files as they are"
            )
    return content


def restore(content: Mapping[str, Any], folder: Path, plain: Dictionary) -> Dictionary:
    """The dictionary as it was before it was written in the peer's format.

    Args:
        plain: what the peer's files say by themselves, with the sidecar's answers.
    """
    theirs = plain.state_dict()
    tensors = {name: theirs[name] for name in content["shared"]} | read_safetensors(folder / TENSORS)
    return hub.build(content["dictionary"], tensors, folder / JSON, folder / TENSORS)
