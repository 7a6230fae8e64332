"""Text from anywhere, as documents with an id, an origin and a split.

`datasets` reads the sources. A document belongs to one of four splits: the dictionary is trained
on `train`; labels are fitted on `fit`, chosen on `select` and scored on `test`. Without a column
that says so, a hash of the text decides: two copies of one text never stand on both sides.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.config import DataConfig
from sae.errors import DataError

SPLITS = ("train", "fit", "select", "test")
EMBEDDED = Path(__file__).parent / "embedded"
_READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Document:
    """One text. `id` is unique in its source; `split` is one of `SPLITS`."""

    id: str
    source: str
    title: str
    text: str
    split: str


def documents(cfg: DataConfig) -> Iterator[Document]:
    """The documents of a run, in the order of their source.

    Raises:
        DataError: the source cannot be found or read, lacks a column, or names a wrong split.
    """
    count = 0
    for number, record in enumerate(_records(cfg)):
        if cfg.max_documents is not None and count >= cfg.max_documents:
            return
        if cfg.text_column not in record:
            raise DataError(
                f"data.text_column = {cfg.text_column!r}: {cfg.source} has the columns {', '.join(sorted(record))}"
            )
        text = record[cfg.text_column] or ""  # a column may hold nulls
        if not isinstance(text, str):
            raise DataError(f"data.text_column = {cfg.text_column!r}: holds {text!r}, must hold text")
        if not text.strip():
            continue
        count += 1
        yield Document(
            id=_field(record, "id", str(number)),
            source=_field(record, "source", Path(cfg.source).name),
            title=_field(record, "title", ""),
            text=text,
            split=_split(record, text, cfg),
        )
    if count == 0:
        raise DataError(f"data.source = {cfg.source!r}: no document with text in it")


def _field(record: dict[str, Any], name: str, default: str) -> str:
    value = record.get(name)
    return default if value is None else str(value)


def hash64(text: str) -> int:
    """64 bits of a text's SHA-256, for choices that depend on nothing else."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def hashed_split(text: str, held_out: tuple[float, float, float]) -> str:
    """The split of a text by its SHA-256, with shares `held_out` for fit, select and test."""
    share = hash64(text) / 2**64
    for name, size in zip(SPLITS[1:], held_out, strict=True):
        if share < size:
            return name
        share -= size
    return "train"


def source_digest(cfg: DataConfig) -> str:
    """What stands for the text in the digest of a run: the bytes of local files, else the name."""
    files = _local_files(cfg.source)
    if files is None:
        return f"hub:{cfg.source}"
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _split(record: dict[str, Any], text: str, cfg: DataConfig) -> str:
    if cfg.split_column is None and cfg.source != "embedded":
        return hashed_split(text, cfg.held_out)
    column = cfg.split_column or "split"
    split = record.get(column)
    if split not in SPLITS:
        raise DataError(f"data.split_column = {column!r}: holds {split!r}, must be one of {', '.join(SPLITS)}")
    return split


def _records(cfg: DataConfig) -> Iterator[dict[str, Any]]:
    files = _local_files(cfg.source)
    try:
        yield from _load(cfg, files)
    except Exception as error:  # readers and the hub's client raise many kinds; the user needs one sentence
        problem = "cannot be read" if files else "no such file or folder here, and the hub answered"
        raise DataError(f"data.source = {cfg.source!r}: {problem}: {error}") from None


def _load(cfg: DataConfig, files: list[Path] | None) -> Iterable[Any]:
    from datasets import load_dataset  # slow to import

    if files is None:
        return load_dataset(cfg.source, cfg.subset, split=cfg.hub_split, streaming=cfg.streaming, revision=cfg.revision)
    kind = _READERS[files[0].suffix]
    how = "document" if cfg.txt_documents == "file" else "paragraph"
    options: dict[str, Any] = {"sample_by": how} if kind == "text" else {}
    return load_dataset(kind, data_files=[str(file) for file in files], split="train", streaming=True, **options)


def _local_files(source: str) -> list[Path] | None:
    """The files of a local source, or none if it is a name on the hub."""
    if source == "embedded":
        file = EMBEDDED / "text" / "corpus.parquet"
        if not file.exists():
            raise DataError(f"{file}: the embedded corpus is missing; reinstall the package")
        return [file]
    path = Path(source)
    if not path.exists():
        if path.suffix in _READERS:
            raise DataError(f"data.source = {source!r}: no such file")
        return None
    files = sorted(file for file in path.rglob("*") if file.suffix in _READERS) if path.is_dir() else [path]
    kinds = {_READERS.get(file.suffix) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise DataError(f"data.source = {source!r}: must hold files of one kind: {', '.join(sorted(_READERS))}")
    return files
