"""Text → tokens, once: fixed contexts with document boundaries kept.

A split's tokens lie in one flat array, 2 bytes a token where the vocabulary allows; a *position*
is an index into it, and everything later (activations, examples, labels) points at positions.
`document_starts` and `context_starts` cut the same array in two ways.

    tokens/  <split>.safetensors {tokens, document_starts, context_starts}  documents.parquet  manifest.json
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from sae.config import DataConfig
from sae.errors import DataError, StoreError
from sae.files import publish
from sae.stage import Box
from sae.text import SPLITS, Document


@dataclass(frozen=True)
class TokenSplit:
    """The tokens of one split. Positions index `tokens`; starts ascend and end with `len(tokens)`."""

    name: str
    tokens: np.ndarray
    """`[n_tokens]`, uint16 or uint32."""
    document_starts: np.ndarray
    """`[n_documents + 1]`, int64."""
    context_starts: np.ndarray
    """`[n_contexts + 1]`, int64."""
    documents: Mapping[str, list]
    """Columns `id`, `source`, `title`, one entry a document."""

    @property
    def n_contexts(self) -> int:
        return len(self.context_starts) - 1

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(document, offset in it) of each position."""
        document = np.searchsorted(self.document_starts, positions, side="right") - 1
        return document, positions - self.document_starts[document]

    def context_of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(context, offset in it) of each position."""
        context = np.searchsorted(self.context_starts, positions, side="right") - 1
        return context, positions - self.context_starts[context]

    def row_starts(self, skip: int) -> np.ndarray:
        """`[n_contexts + 1]`: where the kept positions of each context begin among all, see `kept_positions`."""
        return np.append(0, np.cumsum(np.maximum(np.diff(self.context_starts) - skip, 0)))

    def is_last(self) -> np.ndarray:
        """Whether each position is the last of its context, bool."""
        last = np.zeros(len(self.tokens), dtype=bool)
        last[self.context_starts[1:] - 1] = True
        return last

    def kept_positions(self, skip: int) -> np.ndarray:
        """All positions but the first `skip` of each context, ascending, int64."""
        offsets = np.arange(len(self.tokens)) - np.repeat(self.context_starts[:-1], np.diff(self.context_starts))
        return np.flatnonzero(offsets >= skip)


def folder_of(run: Path) -> Path:
    """Where the tokens of a run lie; a dictionary of a sweep has those of its run."""
    own = run / "tokens"
    return own if own.exists() or run.parent.name != "sweep" else run.parents[1] / "tokens"


class TokenStore:
    """A finished tokens box: `store.split("fit")`."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.vocabulary: int = box.facts["vocabulary"]
        table = pq.read_table(box.path / "documents.parquet").to_pydict()
        self._documents = {
            split: {
                column: [value for value, of in zip(table[column], table["split"], strict=True) if of == split]
                for column in ("id", "source", "title")
            }
            for split in SPLITS
        }

    def split(self, name: str) -> TokenSplit:
        """One split.

        Raises:
            StoreError: there is no document in it.
        """
        file = self.box.path / f"{name}.safetensors"
        if not file.exists():
            raise StoreError(f"{file}: the text has no {name} documents; see data.split_column and data.held_out")
        arrays = load_file(file)
        return TokenSplit(
            name, arrays["tokens"], arrays["document_starts"], arrays["context_starts"], self._documents[name]
        )

    def splits(self) -> list[str]:
        return [name for name in SPLITS if (self.box.path / f"{name}.safetensors").exists()]


def build(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, cfg: DataConfig, out: Path
) -> dict[str, Any]:
    """Tokenise `documents` into `out`; returns the facts of the box.

    Raises:
        DataError: BOS is asked for and the tokenizer has none, or nothing is left to train on.
    """
    bos = tokenizer.bos_token_id
    assert bos is None or isinstance(bos, int)
    if cfg.bos != "none" and bos is None:
        raise DataError(f"data.bos = {cfg.bos!r}: {type(tokenizer).__name__} has no bos token; use data.bos=none")
    vocabulary = len(tokenizer)
    dtype = np.uint16 if vocabulary <= 1 << 16 else np.uint32
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    rows: list[dict[str, Any]] = []
    for batch in _batched(documents, 256):
        encoded = tokenizer([d.text for d in batch], add_special_tokens=False, verbose=False)["input_ids"]
        for document, ids in zip(batch, encoded, strict=True):
            head = [bos] if cfg.bos == "document" else []
            piece = np.array(head + ids, dtype=dtype)
            if len(piece) == 0:
                continue
            pieces[document.split].append(piece)
            rows.append(
                {"split": document.split, "id": document.id, "source": document.source, "title": document.title}
            )
    if not pieces["train"]:
        raise DataError("data: no document is in the `train` split; see data.split_column and data.held_out")
    n_tokens = {}
    for name, of_split in pieces.items():
        if of_split:
            arrays = _contexts(of_split, cfg, bos, dtype)
            n_tokens[name] = len(arrays["tokens"])
            publish(out / f"{name}.safetensors", lambda path, arrays=arrays: save_file(arrays, path))
    schema = pa.schema([(column, pa.string()) for column in ("split", "id", "source", "title")])
    table = pa.Table.from_pylist(rows, schema=schema)
    publish(out / "documents.parquet", lambda path: pq.write_table(table, path))
    return {"vocabulary": vocabulary, "n_tokens": n_tokens, "n_documents": {k: len(v) for k, v in pieces.items()}}


def _contexts(
    pieces: list[np.ndarray], cfg: DataConfig, bos: int | None, dtype: type[np.unsignedinteger]
) -> dict[str, np.ndarray]:
    """Cut a split's documents into contexts; see `DataConfig.packing` and `DataConfig.bos`."""
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    document_starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.concatenate(pieces)
    room = cfg.context - (cfg.bos == "context")
    if room < 1:
        raise DataError(f"data.context = {cfg.context}: must leave room for a token beside the bos token")
    bounds = document_starts if cfg.packing == "document" else np.array([0, len(tokens)])
    starts = np.concatenate([np.arange(a, b, room) for a, b in pairwise(bounds)])
    if cfg.bos == "context":
        tokens = np.insert(tokens, starts, np.array(bos, dtype=dtype))
        # a document begins after the bos tokens that were put in before it
        document_starts = document_starts + np.searchsorted(starts, document_starts, side="left")
        starts = starts + np.arange(len(starts))
    context_starts = np.append(starts, len(tokens))
    return {
        "tokens": tokens.astype(dtype),
        "document_starts": document_starts.astype(np.int64),
        "context_starts": context_starts.astype(np.int64),
    }


def _batched(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, size)):
        yield batch
