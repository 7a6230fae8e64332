"""A dictionary on disk: `dictionary.safetensors` and, beside it, `dictionary.json`.

The JSON holds the schema version, the architecture's name and choices, and facts: width of the
input, the site and the network it was trained on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from sae import architectures
from sae.architectures.configs import configs
from sae.config import parse, to_json
from sae.dictionary import Dictionary
from sae.errors import FormatError
from sae.files import publish, read_json, write_json

SCHEMA = 1


def save(dictionary: Dictionary, name: str, cfg: Any, facts: Mapping[str, Any], out: Path) -> None:
    """Write a dictionary of architecture `name` into the folder `out`.

    Args:
        facts: must hold `d_in`; further `site`, `model` and what else should travel with it.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in dictionary.state_dict().items()}
    publish(out / "dictionary.safetensors", lambda path: save_file(tensors, path))
    content = {"schema": SCHEMA, "type": name, "config": to_json(cfg), "facts": dict(facts)}
    write_json(out / "dictionary.json", content)


def load(folder: Path) -> Dictionary:
    """The dictionary in `folder`, in evaluation mode.

    Raises:
        FormatError: another schema version, or tensors that do not fit the configuration.
        ConfigError: an architecture that is not registered (its plug-in has not been imported).
    """
    content = read_json(folder / "dictionary.json")
    if content.get("schema") != SCHEMA:
        raise FormatError(f"{folder}/dictionary.json: schema {content.get('schema')!r}, this version reads {SCHEMA}")
    cfg = parse(configs.get(content["type"]), content["config"], "config", str(folder / "dictionary.json"))
    dictionary = architectures.build(content["type"], cfg, content["facts"]["d_in"])
    try:
        dictionary.load_state_dict(load_file(folder / "dictionary.safetensors"))
    except RuntimeError as error:
        raise FormatError(f"{folder}/dictionary.safetensors: {error}") from None
    return dictionary.eval()


def facts(folder: Path) -> dict[str, Any]:
    """The facts that were saved with the dictionary in `folder`."""
    return read_json(folder / "dictionary.json")["facts"]
