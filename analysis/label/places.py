"""Where a token stands: facts of positions that no list of tokens can express.

Every place is a fact of the text within the context that the model saw, or of the document. `PLACES` hold or do not;
`DISTANCES` count tokens, and a place is then made of one of them and a number: `line<8`, in the first 8 tokens of a
line. The phrases complete "fires on a token ...".
"""

import re
from dataclasses import dataclass

import numpy as np

from analysis.label.forms import MARKER
from analysis.splits import View

PLACES: dict[str, str] = {
    "in_quotes": "inside quotation marks",
    "quotes_open": "from an opening quotation mark to the last token before the closing one",
    "in_brackets": "inside brackets",
    "brackets_open": "from an opening bracket to the last token before the closing one",
    "bigram_repeated": "seen before in the context after the same token",
    "repeated": "seen before in the context",
    "previous_repeated": "after a token seen before in the context",
}
DISTANCES: dict[str, tuple[str, str]] = {
    "document": ("at the start of a document", "in the first {} tokens of a document"),
    "context": ("at the start of the context window", "in the first {} tokens of the context window"),
    "line": ("at the start of a line", "in the first {} tokens of a line"),
    "sentence": ("at the start of a sentence", "in the first {} tokens of a sentence"),
    "repeat": ("the same as the token before it", "seen in the last {} tokens"),
}
"""Phrases for a distance of 1, and of more."""
QUOTES = {
    "left": r'.*(\s"|\u201c)',
    "right": r'(.*[^\s"]".*|"[^\w\s"].*|.*\u201d.*)',
    "straight": r'"',
    "gap": r".*[\s(\[\u2014-]",
}
"""Tokens with an opening mark, a closing one, one that opens only after a gap, and those that end in a gap."""
FAR = 64
"""Distances are told apart up to this."""
NAMES: tuple[str, ...] = (*PLACES, *(f"{name}<{n}" for name in DISTANCES for n in range(1, FAR + 1)))
"""Every place there is."""


def phrase(name: str) -> str:
    """What a place is called."""
    if name in PLACES:
        return PLACES[name]
    distance, _, n = name.partition("<")
    one, many = DISTANCES[distance]
    return one if n == "1" else many.format(n)


@dataclass(frozen=True, eq=False)
class Places:
    """The places of a view."""

    masks: dict[str, np.ndarray]
    """`[n]`, bool, of each of `PLACES`."""
    distances: dict[str, np.ndarray]
    """`[n]`, uint8, of each of `DISTANCES`: tokens since then, at most `FAR`."""

    @classmethod
    def of(cls, view: View) -> "Places":
        at = np.arange(len(view.tokens))
        in_document = at - view.document_starts[view.documents]
        has = {name: table[view.tokens] for name, table in _tables(view.strings).items()}
        fresh = (in_document == 0) | np.roll(has["marker"], 1)
        paragraph = _latest(fresh | np.roll(has["blank"], 1) | (view.offsets == 0))
        quotes = _open_quotes(has, paragraph)
        brackets = _depth(has["opens"] - has["closes"], paragraph)
        seen, gap = _last_seen(view, view.tokens)
        pair = np.roll(view.tokens, 1) * (len(view.strings) + 1) + view.tokens
        pair_seen, _ = _last_seen(view, np.where(view.offsets > 0, pair, -1 - at))
        masks = {
            "in_quotes": _before(quotes, paragraph) > 0,
            "quotes_open": quotes > 0,
            "in_brackets": _before(brackets, paragraph) > 0,
            "brackets_open": brackets > 0,
            "bigram_repeated": pair_seen,
            "repeated": seen,
            "previous_repeated": np.roll(seen, 1) & (view.offsets > 0),
        }
        distances = {
            "document": in_document,
            "context": view.offsets,
            "line": at - _latest(fresh | np.roll(has["newline"], 1)),
            "sentence": at - _latest(fresh | _starts_sentence(has, fresh)),
            "repeat": np.where(seen, gap - 1, FAR),
        }
        return cls(masks, {name: np.minimum(counts, FAR).astype(np.uint8) for name, counts in distances.items()})

    def holds(self, name: str, positions: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Whether the place `name` of `NAMES` is at each of `positions`, bool."""
        if name in self.masks:
            return self.masks[name][positions]
        distance, _, n = name.partition("<")
        return self.distances[distance][positions] < int(n)

    def counts(self, positions: np.ndarray) -> np.ndarray:
        """How many of `positions` are at each place, in the order of `NAMES`, int64."""
        return self.weighed(positions, None).astype(np.int64)

    def weighed(self, positions: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """The same, each position counted `weights` times."""
        of = np.ones(len(positions)) if weights is None else weights
        held = [of[mask[positions]].sum() for mask in self.masks.values()]
        near = [np.bincount(d[positions], of, minlength=FAR + 1)[:FAR].cumsum() for d in self.distances.values()]
        return np.concatenate([held, *near])


def _tables(strings: tuple[str, ...]) -> dict[str, np.ndarray]:
    bare = [text.strip() for text in strings]
    count = {"opens": "([{", "closes": ")]}"}
    tables = {name: np.array([sum(map(text.count, marks)) for text in strings]) for name, marks in count.items()}
    for name, pattern in QUOTES.items():
        tables[name] = np.array([re.fullmatch(pattern, text, re.DOTALL) is not None for text in strings])
    tables["newline"] = np.array(["\n" in text for text in strings])
    tables["blank"] = np.array(["\n\n" in text for text in strings])
    tables["marker"] = np.array([re.fullmatch(MARKER, text) is not None for text in strings])
    tables["stop"] = np.array(
        [(text != "" and text[-1] in ".!?") or text[:-1].endswith((".", "!", "?")) for text in bare]
    )
    tables["closing"] = np.array([text in {'"', "\u201d", ")", "'", "\u2019"} for text in bare])
    return tables


def _latest(starts: np.ndarray) -> np.ndarray:
    """The last position up to each at which something starts, `[n]`; the first starts everything."""
    return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))


def _depth(steps: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Running sum of `steps` since `start`, each position's own included; it does not fall below 0."""
    total = np.cumsum(steps)
    since = total - (total - steps)[start]
    ground = 2 * len(steps) * start  # lowers each stretch below all before it
    lowest = np.minimum.accumulate(since - ground) + ground
    return since - np.minimum(lowest, 0)


def _open_quotes(has: dict[str, np.ndarray], start: np.ndarray) -> np.ndarray:
    """Whether the last quotation mark since `start`, each position's own included, was an opening one."""
    at = np.arange(len(start))
    opens = has["left"] | has["straight"] & (np.roll(has["gap"], 1) | (start == at))
    closes = has["right"] | has["straight"] & ~opens
    last = _latest(opens | closes)
    return (opens[last] & (last >= start)).astype(np.int64)


def _before(depth: np.ndarray, start: np.ndarray) -> np.ndarray:
    """What `depth` was one position earlier; 0 at a start."""
    return np.where(start == np.arange(len(depth)), 0, np.roll(depth, 1))


def _starts_sentence(has: dict[str, np.ndarray], fresh: np.ndarray) -> np.ndarray:
    """The first token after a stop, which quotes, brackets and line breaks may follow, or after a blank line."""
    at = np.arange(len(fresh))
    told = np.roll(_latest(~has["newline"]), 1)  # the last token before that is no line break
    told[0] = 0
    ends = has["stop"][told] | has["closing"][told] & has["stop"][told - 1] & (told > 0)
    blank = np.cumsum(has["blank"])
    crossed = (blank - has["blank"] > blank[told]) & (told < at)
    return (ends | crossed) & ~has["newline"] & ~np.roll(fresh, -1)


def _last_seen(view: View, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(whether the key stood earlier in the same context, tokens since then), both `[n]`."""
    at = np.arange(len(keys))
    context = at - view.offsets  # the position at which the context starts stands for it
    order = np.lexsort((at, keys, context))
    same = (keys[order][1:] == keys[order][:-1]) & (context[order][1:] == context[order][:-1])
    seen, gap = np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=np.int64)
    seen[order[1:]] = same
    gap[order[1:]] = np.where(same, order[1:] - order[:-1], 0)
    return seen, gap
