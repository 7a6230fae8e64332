"""Typed, frozen descriptions of a run, read from YAML and overridden on the command line.

`@config` makes a frozen, keyword-only pydantic dataclass that refuses unknown fields, whether it
is built from YAML or from Python. The docstring under a field is its help. Nothing here imports
torch: a mistake in a configuration is answered at once.
"""

import ast
import copy
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import dataclass_transform  # in typing from Python 3.11

from sae.errors import ConfigError
from sae.registry import nearest

T = TypeVar("T")

Positive = Annotated[int, Field(gt=0, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["auto", "float32", "bfloat16"]
Weights = Literal["trained", "random", "shuffled"]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def config(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only, checked description; lists become tuples."""
    return pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", validate_default=True))(cls)  # type: ignore[return-value]


@config
class ModelConfig:
    """The network that is studied."""

    name: str = "embedded"
    """`embedded`, a folder, or the name of a causal language model on the Hugging Face hub."""
    revision: str | None = None
    """Commit or branch on the hub; none means the main branch."""
    weights: Weights = "trained"
    """Null models, in which nothing has been learnt: `random`, weights drawn anew as its class does; `shuffled`, the
    numbers of each matrix and vector in another order, so that sizes stay what they were."""
    precision: Precision = "auto"
    """Precision of its forward pass. `auto`: bfloat16 where the device computes it natively."""


@config
class DataConfig:
    """The text, and how it becomes tokens."""

    source: str = "embedded"
    """`embedded`, a .txt/.jsonl/.parquet file, a folder of such files, or a dataset on the hub."""
    revision: str | None = None
    """Commit or branch of the hub dataset; name a commit for a run that can be repeated."""
    subset: str | None = None
    """Name of the hub dataset's configuration."""
    hub_split: str = "train"
    """Split of the hub dataset to read."""
    streaming: bool = False
    """Read a hub dataset without downloading the whole of it."""
    text_column: str = "text"
    """Column that holds the text."""
    split_column: str | None = None
    """Column that says `train`, `fit`, `select` or `test`; none means by a hash of the text."""
    held_out: tuple[Share, Share, Share] = (0.10, 0.04, 0.06)
    """Shares of documents for `fit`, `select` and `test`, where no column says it."""
    txt_documents: Literal["file", "paragraph"] = "file"
    """What a document is in a .txt file: the file, or each block between blank lines."""
    max_documents: Positive | None = None
    """Read at most so many documents; none means all."""
    context: Positive = 256
    """Tokens of a context; at most what the model has positions for."""
    packing: Literal["packed", "document"] = "packed"
    """`packed`: documents of a split end to end, cut into full contexts. `document`: a context
    never holds two documents."""
    bos: Literal["document", "context", "none"] = "document"
    """Where the beginning-of-sequence token goes: before each document, at the start of each
    context, or nowhere."""

    def __post_init__(self) -> None:
        if sum(self.held_out) >= 1:
            raise ValueError(
                f"data.held_out = {list(self.held_out)}: must sum to less than 1, the rest is for training"
            )


@config
class HarvestConfig:
    """Which activations are kept, and how."""

    sites: tuple[str, ...] = ("mlp_out.0",)
    """Places in the model, such as `mlp_out.3`, or `module.path:out` for any module."""
    skip_positions: Natural = 1
    """First positions of each context that are left out of training, metrics and index: attention
    parks its surplus there, with norms unlike those of any other position."""
    batch_tokens: Positive = 8192
    """Tokens of one forward pass."""
    shard_rows: Positive = 131072
    """Rows of one file, at most (one context more)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type in which activations are stored, or computed; one that does not fit ends the stage that reads it."""
    keep_train: bool = True
    """Whether activations of the train split are kept on disk. If not they are computed as they are read: by training
    in each epoch, by the evaluation and by the index."""


def to_json(value: Any) -> Any:
    """A configuration as plain JSON values, for manifests and digests."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")


def parse(cls: type[T], values: Any, where: str, origin: str = "") -> T:
    """Check `values` against `cls`.

    Args:
        where: path of the section (`train`), for messages.
        origin: name of the file that the values come from, for messages.

    Raises:
        ConfigError: with the field's path, its value, and what would be valid.
    """
    prefix = f"{origin}: " if origin else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix}{where} = {values!r}: must be a mapping of fields to values")
    _refuse_unknown(cls, values, where, prefix)
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(prefix + _explain(error, where)) from None


def _refuse_unknown(cls: type, values: Mapping[str, Any], where: str, prefix: str) -> None:
    hints, known = get_type_hints(cls), [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{prefix}{where}.{key}: no such field; {nearest(str(key), known)}")
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            _refuse_unknown(hints[key], value, f"{where}.{key}", prefix)  # type: ignore[arg-type]


def _explain(error: ValidationError, where: str) -> str:
    """The first mistake: field, value, what is valid. A check of our own says all of that itself."""
    first = error.errors()[0]
    message = first["msg"].replace("Input should", "must")
    if first["type"] == "value_error":
        return message.removeprefix("Value error, ")
    path = ".".join(str(part) for part in (where, *first["loc"]))
    return f"{path} = {first['input']!r}: {message[:1].lower()}{message[1:]}"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `3e-4` as a string; here it is the number that everyone means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ConfigError(f"{path}: no such configuration file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping with the sections of a run")
    return values


def override(values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`values` with each `section.field=value` put in; a value is read as YAML.

    Raises:
        ConfigError: an assignment is not of that form.
    """
    result = copy.deepcopy(dict(values))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        parts = path.split(".")
        if not equals or not all(parts):
            raise ConfigError(f"{assignment!r}: must be section.field=value, such as train.lr=3e-4")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise ConfigError(f"{assignment!r}: the value is not valid YAML") from None
        section = result
        for part in parts[:-1]:
            if section.get(part) is None:  # missing, or written with nothing under it
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                raise ConfigError(f"{assignment!r}: {part} is not a section")
        section[parts[-1]] = value
    return result


def field_help(cls: type) -> list[tuple[str, str, Any, str]]:
    """(name, type, default, help) of each field, from the docstring that follows it."""
    texts: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__[:-1]):  # a field that is declared again is explained again
        tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                is_doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                text = inspect.cleandoc(str(after.value.value)) if is_doc else ""  # type: ignore[union-attr]
                texts[node.target.id] = (ast.unparse(node.annotation), " ".join(text.split()))
    return [
        (f.name, texts[f.name][0], None if f.default is MISSING else f.default, texts[f.name][1]) for f in fields(cls)
    ]
