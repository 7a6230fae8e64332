"""A dictionary on disk, and on the Hugging Face hub: `dictionary.safetensors` and `dictionary.json`.

The JSON holds the schema version, the architecture's name and choices, the widths of what it reads
and writes, and facts: the sites and the network it was trained on. A published one has a model card
beside them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sae import architectures
from sae.architectures.configs import configs
from sae.card import card
from sae.config import parse, to_json
from sae.dictionary import Dictionary, Shape
from sae.errors import ConfigError, FormatError, StoreError
from sae.files import publish, write_json
from sae.readers import read_mapping, read_safetensors, require

SCHEMA = 2
JSON, TENSORS, CARD = FILES = ("dictionary.json", "dictionary.safetensors", "README.md")


def save(dictionary: Dictionary, facts: Mapping[str, Any], out: Path) -> None:
    """Write a dictionary into the folder `out`; what served its training only is folded away.

    Args:
        facts: JSON that should travel with it: `inputs` and `outputs` (site names), `model`, …
    """
    content, tensors = describe(dictionary, facts)
    (out / JSON).unlink(missing_ok=True)  # a kill from here on leaves no weights under another's choices
    publish(out / TENSORS, lambda path: save_file(tensors, path))
    write_json(out / JSON, content)


def describe(dictionary: Dictionary, facts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the two files of a dictionary hold."""
    folded = dictionary.folded()
    tensors = {key: value.detach().cpu().contiguous() for key, value in folded.state_dict().items()}
    shape = {"inputs": list(folded.shape.inputs), "outputs": folded.shape.outputs and list(folded.shape.outputs)}
    content = {
        "schema": SCHEMA,
        "type": architectures.name_of(folded.cfg),
        "module": type(folded).__module__,
        "config": to_json(folded.cfg),
        "shape": shape,
        "facts": dict(facts),
    }
    return content, tensors


def find(path: Path) -> Path | None:
    """The folder of a dictionary, from itself or from one of its two files; None if there is none."""
    folder = path.parent if path.name in (JSON, TENSORS) and not path.is_dir() else path
    return folder if (folder / JSON).is_file() else None


def load(path: Path) -> Dictionary:
    """The dictionary in a folder, or of which one file is given, in evaluation mode.

    Raises:
        StoreError: a file is missing, or is no JSON.
        FormatError: another schema version, a damaged file, or tensors that do not fit the configuration.
        ConfigError: an architecture that is not registered (its plug-in has not been imported).
    """
    folder = find(path) or path
    content, tensors = _read(folder)
    return build(content, tensors, folder / JSON, folder / TENSORS)


def build(content: Mapping[str, Any], tensors: Mapping[str, Tensor], where: Path, where_tensors: Path) -> Dictionary:
    """The dictionary that `describe` described, in evaluation mode; raises as `load`."""
    if content["type"] not in configs.names() and content.get("module"):
        raise ConfigError(
            f"{where}: type = {content['type']!r}: comes from the plug-in {content['module']}, "
            "which has not been imported"
        )
    cfg = parse(configs.get(content["type"]), content["config"], "config", str(where))
    widths = content["shape"]
    shape = Shape(tuple(widths["inputs"]), widths["outputs"] and tuple(widths["outputs"]))
    dictionary = architectures.build(content["type"], cfg, shape)
    try:
        dictionary.load_state_dict(tensors)
    except RuntimeError as error:
        raise FormatError(f"{where_tensors}: {error}") from None
    return dictionary.eval()


def save_pretrained(
    dictionary: Dictionary, facts: Mapping[str, Any], out: Path, figures: Mapping[str, Any] | None = None
) -> None:
    """`save`, with a model card (`README.md`) beside it.

    Args:
        figures: an evaluation, for the card.
    """
    save(dictionary, facts, out)
    text = card(_read_json(out), figures)
    publish(out / CARD, lambda path: path.write_text(text, encoding="utf-8"))


def from_pretrained(name: str | Path, revision: str | None = None, subfolder: str = "") -> Dictionary:
    """The dictionary in a folder or in a repository on the Hugging Face hub, in evaluation mode.

    Args:
        name: a folder, or `owner/repository`.
        revision: branch, tag or commit on the hub; none means the main branch.
        subfolder: where in it the dictionary lies.

    Raises:
        FormatError, ConfigError: as `load`.
        StoreError: the repository does not exist or cannot be reached.
    """
    return load(_fetch(name, revision) / subfolder)


def push_to_hub(folder: Path, repository: str, private: bool = False, token: str | None = None) -> str:
    """Upload a folder that `save_pretrained` made; returns the address of the commit.

    Args:
        repository: `owner/repository`; made if it is not there.
        token: none means the one that `hf auth login` has stored.
    """
    from huggingface_hub import HfApi

    _read_json(folder)  # a folder without a dictionary is refused before anything is sent
    api = HfApi(token=token)
    api.create_repo(repository, private=private, exist_ok=True)
    names = [name for name in FILES if (folder / name).exists()]
    return str(api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=names))


def _fetch(name: str | Path, revision: str | None) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=[f"*{file}" for file in FILES]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise StoreError(f"{name}: no such folder, and not to be had from the hub: {error}") from None


def facts(path: Path) -> dict[str, Any]:
    """The facts that were saved with the dictionary in a folder, or of which one file is given."""
    return _read_json(find(path) or path)["facts"]


def check(content: Mapping[str, Any], where: Path) -> None:
    """See that what `describe` described is all there.

    Raises:
        FormatError: naming the field that is missing or is no such thing.
    """
    require(where, content, "type", str, "the name of an architecture")
    require(where, content, "config", dict, "a mapping of choices to values")
    require(where, content, "facts", dict, "a mapping")
    shape = require(where, content, "shape", dict, "a mapping with inputs and outputs")
    for side in ("inputs", "outputs"):
        widths = shape.get(side)
        is_list = isinstance(widths, list) and widths and all(type(width) is int and width > 0 for width in widths)
        if not is_list and not (side == "outputs" and widths is None):
            raise FormatError(f"{where}: shape.{side} = {widths!r}: must be a list of widths, such as [768]")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content, tensors = _read_json(folder), read_safetensors(folder / TENSORS)
    if content["schema"] == 1:
        scale = tensors.pop("scale", None)
        if scale is None or scale.numel() != 1:
            raise FormatError(f"{folder / TENSORS}: scale: must be a tensor of one number, in a file of schema 1")
        tensors["scaling.scale"] = scale.view(1)
    return content, tensors


def _read_json(folder: Path) -> dict[str, Any]:
    where = folder / JSON
    content = read_mapping(where)
    if content.get("schema") not in (1, SCHEMA):
        raise FormatError(f"{where}: schema {content.get('schema')!r}, this version reads 1 and {SCHEMA}")
    if content["schema"] == 1:  # one site, whose scale was a scalar and whose width was a fact
        own = require(where, content, "facts", dict, "a mapping")
        content["shape"] = {"inputs": [require(where, own, "d_in", int, "the width of what is read")], "outputs": None}
    check(content, where)
    return content
