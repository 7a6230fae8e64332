"""Three views of the text that cannot be mistaken for one another.

Labels are fitted on `FitView`, chosen on `SelectView` and scored once on `TestView`. Each is a
class of its own and functions take exactly one of them, so that no example used to word a label
can be used to score it. A view holds its own split only: nothing leads from it to another. That their
documents are different ones is checked (`check_disjoint`) before any label is made.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from analysis.codes import Codes
from sae.errors import DataError, StoreError
from sae.tokens import TokenSplit

W = TypeVar("W", bound="View")
SHORT = 16  # tokens of a document that may stand in two splits, such as a title


@dataclass(frozen=True, eq=False)
class View:
    """Abstract: the tokens of one split and where each latent fires on them."""

    split: str
    tokens: np.ndarray
    """`[n]`, int64: token ids."""
    strings: tuple[str, ...]
    """Text of each token id, with its leading space; shared by all views."""
    valid: np.ndarray
    """`[n]`, bool: positions that count; false in the first of each context and where not encoded."""
    documents: np.ndarray
    """`[n]`, int64: index of the document."""
    document_starts: np.ndarray
    """`[n_documents + 1]`, int64."""
    offsets: np.ndarray
    """`[n]`, int64: offset in the context, from 0."""
    codes: Codes

    @classmethod
    def of(
        cls: type[W],
        split: TokenSplit,
        codes: Codes,
        strings: tuple[str, ...],
        skip_positions: int,
        encoded: np.ndarray | None = None,
    ) -> W:
        """The view of `split`; firings in the first `skip_positions` of a context are left out.

        Args:
            encoded: the positions that were encoded; none means all.

        Raises:
            StoreError: the split is not the one that this class stands for.
        """
        if cls is View or cls.__name__ != f"{split.name.capitalize()}View":
            raise StoreError(f"the {split.name} split as {cls.__name__}: must be {split.name.capitalize()}View")
        n = len(split.tokens)
        lengths = np.diff(split.context_starts)
        offsets = np.arange(n) - np.repeat(split.context_starts[:-1], lengths)
        valid = offsets >= skip_positions
        if encoded is not None:
            is_encoded = np.zeros(n, dtype=bool)
            is_encoded[encoded] = True
            valid &= is_encoded
        return cls(
            split=split.name,
            tokens=split.tokens.astype(np.int64),
            strings=strings,
            valid=valid,
            documents=np.repeat(np.arange(len(split.document_starts) - 1), np.diff(split.document_starts)),
            document_starts=split.document_starts,
            offsets=offsets,
            codes=_only(codes, valid),
        )

    @property
    def n_documents(self) -> int:
        return len(self.document_starts) - 1

    @property
    def n_latents(self) -> int:
        return self.codes.n_latents

    def firing(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions, values) at which `latent` fires: int32 ascending, float32 > 0."""
        return self.codes.of(latent)


class FitView(View):
    """The documents that labels are fitted on."""


class SelectView(View):
    """The documents that labels are chosen on."""


class TestView(View):
    """The documents that labels are scored on, once."""

    __test__ = False  # pytest takes a class of this name for a collection of tests


def check_disjoint(*views: View) -> None:
    """A score is of text that had no part in making the label.

    Raises:
        DataError: a document of one of the views is in another, token for token, and longer than `SHORT`.
    """
    seen: dict[bytes, tuple[str, int]] = {}
    for view in views:
        for document, (start, stop) in enumerate(pairwise(view.document_starts.tolist())):
            if stop - start <= SHORT:
                continue
            digest = hashlib.sha256(view.tokens[start:stop].tobytes()).digest()
            split, other = seen.setdefault(digest, (view.split, document))
            if split != view.split:
                raise DataError(
                    f"document {document} of {view.split} is document {other} of {split}, token for token: labels "
                    "would be scored on text that they were made from; remove one, or let data.held_out divide the text"
                )


def token_strings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The text of every token id, leading space included; bytes that are no UTF-8 become U+FFFD."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    is_byte_level = any(token.startswith("\u0120") for token in tokens)
    decode = _from_bytes if is_byte_level else _from_pieces
    special = set(tokenizer.all_special_tokens)
    return tuple(token if token in special else decode(token) for token in tokens)


def _from_bytes(token: str) -> str:
    table = _byte_of()
    if any(character not in table for character in token):
        return token  # an added token stands for itself
    return bytes(table[character] for character in token).decode("utf-8", errors="replace")


def _from_pieces(token: str) -> str:
    return token.replace("\u2581", " ")


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """GPT-2's map of bytes to printable characters, inverted (openai/gpt-2 encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _only(codes: Codes, valid: np.ndarray) -> Codes:
    """`codes` at valid positions."""
    keep = valid[codes.positions]
    if keep.all():
        return codes
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    return Codes(kept_before[codes.offsets], codes.positions[keep], codes.values[keep])
