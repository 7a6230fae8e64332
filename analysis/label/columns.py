"""What stands at and around a position, as one integer key: the evidence that labels count.

A column cuts all positions into groups of one key each: the token, the pair (previous token,
token), the pair (kind of the previous token, token)... A `Slot` says which token it looks at and
how closely; the keys of several slots are joined as digits of mixed radix, so that a key means
the same in every view.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from analysis.codes import spread_out
from analysis.label.forms import AFFIXES, LITTLE, SHAPES, Forms, affixes_of, folds_of, forms_of
from analysis.label.kinds import Kinds, kinds_of
from analysis.splits import View


class Slot(NamedTuple):
    """One token of the surroundings: `offset` from the position, seen as token, fold, shape, affix (`AFFIXES`) or kind
    (`LEVELS`)."""

    offset: int
    table: str


COLUMNS: dict[str, tuple[Slot, ...]] = {
    "token": (Slot(0, "token"),),
    "fold": (Slot(0, "fold"),),
    "shape": (Slot(0, "shape"),),
    "previous": (Slot(-1, "token"),),
    "pair": (Slot(-1, "token"), Slot(0, "token")),
    "triple": (Slot(-2, "token"), Slot(-1, "token"), Slot(0, "token")),
    "previous_two": (Slot(-2, "token"), Slot(-1, "token")),
    "shape_token": (Slot(-1, "shape"), Slot(0, "token")),
    "previous_shape": (Slot(-1, "token"), Slot(0, "shape")),
    "shapes": (Slot(-1, "shape"), Slot(0, "shape")),
    "next": (Slot(1, "token"),),
    "next_shape": (Slot(1, "shape"),),
    "token_next": (Slot(0, "token"), Slot(1, "token")),
    "token_next_shape": (Slot(0, "token"), Slot(1, "shape")),
    "wide": (Slot(0, "wide"),),
    "kind": (Slot(0, "kind"),),
    "narrow": (Slot(0, "narrow"),),
    "wide_token": (Slot(-1, "wide"), Slot(0, "token")),
    "kind_token": (Slot(-1, "kind"), Slot(0, "token")),
    "token_kind": (Slot(-1, "token"), Slot(0, "kind")),
    "wides": (Slot(-1, "wide"), Slot(0, "wide")),
    "kinds": (Slot(-1, "kind"), Slot(0, "kind")),
    **{name: (Slot(0, name),) for name in AFFIXES},
}


def of_token(column: str) -> str | None:
    """The table of a column that looks at the token alone: its groups are sets of tokens; none for another."""
    slots = COLUMNS[column]
    return slots[0].table if len(slots) == 1 and slots[0].offset == 0 else None


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """All that is known of the tokens; shared by all views."""

    strings: tuple[str, ...]
    forms: Forms
    folds: np.ndarray
    """`[vocabulary]`, int64: a token that stands for all of its fold."""
    is_word: np.ndarray
    """`[vocabulary]`, bool: the start of a word of three letters or more, none of the most common little words;
    sentences name these first."""
    tables: Mapping[str, np.ndarray]
    """`[vocabulary]`, int64, of each table but those of `kinds`: what a slot sees of each token."""
    kinds: Kinds | None = None

    @classmethod
    def of(
        cls, strings: tuple[str, ...], embedding: np.ndarray | None = None, counts: np.ndarray | None = None
    ) -> "Vocabulary":
        """What there is to know of the tokens of a vocabulary.

        Args:
            strings: the text of each token id.
            embedding: the network's row for each, `[vocabulary or more, d]`; without it there are no kinds.
            counts: how often each stands in the fit split, `[vocabulary]`; goes with `embedding`.
        """
        is_word = [
            text[:1] == " " and len(text) > 3 and text[1:].isalpha() and text[1:].lower() not in LITTLE
            for text in strings
        ]
        forms, folds = forms_of(strings), folds_of(strings)
        tables = {"token": np.arange(len(strings)), "fold": folds, "shape": forms.shapes}
        tables |= {name: affixes_of(strings, name) for name in AFFIXES}
        kinds = None if embedding is None or counts is None else kinds_of(embedding, folds, counts)
        return cls(strings, forms, folds, np.array(is_word), tables, kinds)

    def values(self, table: str) -> np.ndarray:
        """`[vocabulary]`: what a slot of this table sees of each token."""
        return self.tables[table] if self.kinds is None or table in self.tables else self.kinds.of[table]

    def radix(self, table: str) -> int:
        """Values of a table are below this."""
        return len(SHAPES) if table == "shape" else len(self.strings)

    def members(self, fold: int) -> np.ndarray:
        """The tokens of a fold, ascending."""
        return np.flatnonzero(self.folds == fold)


@dataclass(frozen=True, eq=False)
class Column:
    """The groups of one column over one view; groups are numbered by ascending key."""

    keys: np.ndarray
    """`[n_groups]`, int64."""
    groups: np.ndarray
    """`[n]`, int32: group of each position."""
    order: np.ndarray
    """`[n_valid]`, int32: valid positions by group, ascending within one."""
    starts: np.ndarray
    """`[n_groups + 1]`: group g owns `order[starts[g]:starts[g + 1]]`."""

    @property
    def totals(self) -> np.ndarray:
        """Valid positions of each group, `[n_groups]`."""
        return np.diff(self.starts)

    def lookup(self, keys: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(positions, scores) of all valid positions with one of `keys`; in no order."""
        at = np.searchsorted(self.keys, keys)
        at[at == len(self.keys)] = 0
        known = self.keys[at] == keys
        first, last = self.starts[at[known]], self.starts[at[known] + 1]
        lengths = last - first
        return self.order[spread_out(first, lengths)], np.repeat(scores[known], lengths)


def column_of(view: View, vocabulary: Vocabulary, name: str) -> Column:
    """Number the groups of column `name` over `view`."""
    keys = np.zeros(len(view.tokens), dtype=np.int64)
    for slot in COLUMNS[name]:
        radix = vocabulary.radix(slot.table)
        keys = keys * (radix + 1) + 1 + _seen(view, vocabulary.values(slot.table), slot.offset)
    unique, groups = np.unique(keys, return_inverse=True)
    valid = np.flatnonzero(view.valid)
    order = valid[np.argsort(groups[valid], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(groups[valid], minlength=len(unique)))])
    return Column(unique, groups.astype(np.int32), order.astype(np.int32), starts)


def _seen(view: View, values: np.ndarray, offset: int) -> np.ndarray:
    """`values` of the token at `offset` from each position; -1 outside the context."""
    seen = np.roll(values[view.tokens], -offset)
    if offset < 0:
        return np.where(view.offsets + offset >= 0, seen, -1)
    if offset > 0:
        same = (
            np.roll(np.arange(len(view.tokens)) - view.offsets, -offset) == np.arange(len(view.tokens)) - view.offsets
        )
        same[-offset:] = False
        return np.where(same, seen, -1)
    return seen


def digits(key: int, name: str, vocabulary: Vocabulary) -> Sequence[tuple[Slot, int]]:
    """What each slot of column `name` sees under `key`; -1 means outside the context."""
    found = []
    for slot in reversed(COLUMNS[name]):
        radix = vocabulary.radix(slot.table)
        key, digit = divmod(key, radix + 1)
        found.append((slot, digit - 1))
    return found[::-1]
