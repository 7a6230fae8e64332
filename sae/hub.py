"""A dictionary on disk, and on the Hugging Face hub: `dictionary.safetensors` and `dictionary.json`.

The JSON holds the schema version, the architecture's name and choices, the widths of what it reads
and writes, and facts: the sites and the network it was trained on. A published one has a model card
beside them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from sae import architectures
from sae.architectures.configs import configs
from sae.card import card
from sae.config import parse, to_json
from sae.dictionary import Dictionary, Shape
from sae.errors import ConfigError, FormatError, StoreError
from sae.files import publish, read_json, write_json

SCHEMA = 2
FILES = ("dictionary.json", "dictionary.safetensors", "README.md")


def save(dictionary: Dictionary, facts: Mapping[str, Any], out: Path) -> None:
    """Write a dictionary into the folder `out`; what served its training only is folded away.

    Args:
        facts: JSON that should travel with it: `inputs` and `outputs` (site names), `model`, …
    """
    content, tensors = describe(dictionary, facts)
    publish(out / "dictionary.safetensors", lambda path: save_file(tensors, path))
    write_json(out / "dictionary.json", content)


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


def load(folder: Path) -> Dictionary:
    """The dictionary in `folder`, in evaluation mode.

    Raises:
        FormatError: another schema version, or tensors that do not fit the configuration.
        ConfigError: an architecture that is not registered (its plug-in has not been imported).
    """
    content, tensors = _read(folder)
    return build(content, tensors, folder / "dictionary.json", folder / "dictionary.safetensors")


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
    publish(out / "README.md", lambda path: path.write_text(text, encoding="utf-8"))


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


def facts(folder: Path) -> dict[str, Any]:
    """The facts that were saved with the dictionary in `folder`."""
    return _read_json(folder)["facts"]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content, tensors = _read_json(folder), load_file(folder / "dictionary.safetensors")
    if content["schema"] == 1:  # one site, whose scale was a scalar
        tensors["scaling.scale"] = tensors.pop("scale").view(1)
        content["shape"] = {"inputs": [content["facts"]["d_in"]], "outputs": None}
    return content, tensors


def _read_json(folder: Path) -> dict[str, Any]:
    content = read_json(folder / "dictionary.json")
    if content.get("schema") not in (1, SCHEMA):
        raise FormatError(
            f"{folder}/dictionary.json: schema {content.get('schema')!r}, this version reads 1 and {SCHEMA}"
        )
    return content
