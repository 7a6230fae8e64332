"""What a reader can keep count of while it goes through a context token by token; rules and the network ask for it.

A count sees the tokens of its own context up to the one it is for, that one among them. Where the context does not tell
how long ago something was, it is `FAR`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

FAR = 1 << 20
NAMES = ("context", "document", "line", "sentence", "brackets", "quotes", "gap", "pair_gap")
"""`context`, `document`, `line`, `sentence`: tokens since its first one, which has 0. `brackets`, `quotes`: how many
are open. `gap`, `pair_gap`: tokens back to where the token, the token and the one before it, stood last; 0: nowhere."""
Tokens = Int[Tensor, "contexts width"]


class Marks(NamedTuple):
    """What the tokens of a vocabulary do to the counts; each field `[vocabulary]`."""

    marker: Tensor
    """The beginning of a document."""
    line: Tensor
    """Has a line break in it."""
    paragraph: Tensor
    """Has a blank line in it."""
    stop: Tensor
    """Has a full stop, an exclamation or a question mark."""
    word: Tensor
    """Has a letter or a digit."""
    brackets: Tensor
    """Brackets that it opens, less those that it closes."""
    opens: Tensor
    """A double quotation mark after white space in it."""
    alone: Tensor
    """Is one, with nothing else."""
    quote: Tensor
    """Any double quotation mark."""
    gap: Tensor
    """Ends in white space, a bracket or a dash: a quotation mark after it opens."""

    @classmethod
    def of(cls, strings: Sequence[str], marker: int) -> "Marks":
        def each(of: Callable[[str], bool | int]) -> Tensor:
            return torch.tensor([of(text) for text in strings])

        return cls(
            marker=torch.arange(len(strings)) == marker,
            line=each(lambda text: "\n" in text),
            paragraph=each(lambda text: "\n\n" in text),
            stop=each(lambda text: any(mark in text for mark in ".!?")),
            word=each(lambda text: any(character.isalnum() for character in text)),
            brackets=each(lambda text: sum(text.count(c) for c in "([{") - sum(text.count(c) for c in ")]}")),
            opens=each(lambda text: ' "' in text),
            alone=each(lambda text: text == '"'),
            quote=each(lambda text: '"' in text),
            gap=each(lambda text: text[-1:] in set(" \n([-") or text == strings[marker]),
        )


def counts(tokens: Tokens, marks: Marks) -> dict[str, Int[Tensor, "contexts width"]]:
    """Every count of `NAMES`, and each under `<name>_before` as it was one token earlier (0 at first)."""
    found = {"context": torch.arange(tokens.shape[1]).expand_as(tokens), **_read(tokens, marks)}
    found["gap"] = _gap(tokens)
    pairs = torch.cat([-torch.ones_like(tokens[:, :1]), tokens[:, :-1]], dim=1) * len(marks.marker) + tokens
    pairs[:, 0] = -1
    found["pair_gap"] = _gap(pairs)
    return found | {f"{name}_before": _earlier(count) for name, count in found.items()}


def _earlier(count: Int[Tensor, "contexts width"]) -> Int[Tensor, "contexts width"]:
    return torch.cat([torch.zeros_like(count[:, :1]), count[:, :-1]], dim=1)


def _read(tokens: Tokens, marks: Marks) -> dict[str, Int[Tensor, "contexts width"]]:
    """The counts that need a state, one token after the other."""
    of = {name: table[tokens] for name, table in marks._asdict().items()}
    zero = torch.zeros(len(tokens), dtype=torch.long)
    document, line, sentence = zero + FAR, zero + FAR, zero + FAR
    brackets, quotes = zero, zero
    new_line, new_sentence, gap = zero > 0, zero > 0, zero == 0
    columns: dict[str, list[Tensor]] = {name: [] for name in ("document", "line", "sentence", "brackets", "quotes")}
    for at in range(tokens.shape[1]):
        now = {name: values[:, at] for name, values in of.items()}
        document = torch.where(now["marker"], 0, document + 1)
        line = torch.where(new_line | now["marker"], 0, line + 1)
        sentence = torch.where(now["marker"] | new_sentence & now["word"], 0, sentence + 1)
        opens = now["opens"] | now["alone"] & gap
        brackets = (brackets + now["brackets"]).clamp_min(0)
        quotes = torch.where(opens, 1, torch.where(now["quote"], 0, quotes))
        brackets, quotes = (torch.where(now["paragraph"] | now["marker"], 0, depth) for depth in (brackets, quotes))
        new_line, gap = now["line"] | now["marker"], now["gap"]
        new_sentence = now["stop"] | now["paragraph"] | now["marker"] | new_sentence & ~now["word"]
        for name, value in zip(columns, (document, line, sentence, brackets, quotes), strict=True):
            columns[name].append(value)
    return {name: torch.stack(column, dim=1) for name, column in columns.items()}


def _gap(keys: Int[Tensor, "contexts width"]) -> Int[Tensor, "contexts width"]:
    at = torch.arange(keys.shape[1])
    parts = []
    for part in keys.split(64):  # the comparisons of 64 contexts are in memory
        same = (part[:, :, None] == part[:, None, :]) & (at[:, None] > at[None, :])
        last = torch.where(same, at[None, None, :], -1).amax(dim=2)
        parts.append(torch.where(last >= 0, at - last, 0))
    return torch.cat(parts)


def recently(is_word: Bool[Tensor, "contexts width"]) -> Int[Tensor, "contexts width"]:
    """Tokens back to the last word, 0 at the word itself; `FAR` before the first."""
    at = torch.arange(is_word.shape[1]).expand(is_word.shape)
    last = torch.where(is_word, at, -FAR).cummax(dim=1).values
    return at - last
