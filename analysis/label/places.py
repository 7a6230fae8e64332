"""Where a token stands: masks over positions that no list of tokens can express.

Every place is a fact of the text within the context that the model saw, or of the document. The
phrases complete "fires on a token ...".
"""

import numpy as np

from analysis.splits import View

PLACES: dict[str, str] = {
    "document_start": "at the start of a document (first 2 tokens)",
    "document_opening": "in the first 16 tokens of a document",
    "context_start": "in the first 8 tokens of the context window",
    "context_early": "in the first 32 tokens of the context window",
    "line_start": "at the start of a line",
    "line_opening": "in the first 8 tokens of a line",
    "sentence_start": "at the start of a sentence",
    "in_quotes": "inside quotation marks",
    "in_brackets": "inside brackets",
    "repeated": "seen before in the context",
    "repeated_lately": "seen in the last 32 tokens",
    "bigram_repeated": "seen before in the context after the same token",
    "previous_repeated": "after a token seen before in the context",
}


def places_of(view: View) -> dict[str, np.ndarray]:
    """The mask `[n]` of each place in `PLACES`."""
    n = len(view.tokens)
    at = np.arange(n)
    in_document = at - view.document_starts[view.documents]
    has = _tables(view.strings)
    previous = np.roll(view.tokens, 1)
    line_start = has["newline"][previous] & (in_document > 0) | (in_document == 0)
    line_from = np.maximum.accumulate(np.where(line_start, at, 0))
    # a sentence may end with a quotation mark or bracket after its stop
    before = np.roll(view.tokens, 2)
    ends = has["stop"][previous] | has["closing"][previous] & has["stop"][before]
    seen, gap = _last_seen(view, view.tokens)
    pair = previous * (len(view.strings) + 1) + view.tokens
    pair_seen, _ = _last_seen(view, np.where(view.offsets > 0, pair, -1 - at))
    return {
        "document_start": in_document < 2,
        "document_opening": in_document < 16,
        "context_start": view.offsets < 8,
        "context_early": view.offsets < 32,
        "line_start": line_start,
        "line_opening": at - line_from < 8,
        "sentence_start": ends & (in_document > 1) | line_start,
        "in_quotes": _inside_quotes(has, view.tokens, line_from),
        "in_brackets": _depth(has["opens"][view.tokens] - has["closes"][view.tokens], line_from) > 0,
        "repeated": seen,
        "repeated_lately": seen & (gap <= 32),
        "bigram_repeated": pair_seen,
        "previous_repeated": np.roll(seen, 1) & (view.offsets > 0),
    }


def _tables(strings: tuple[str, ...]) -> dict[str, np.ndarray]:
    bare = [text.strip() for text in strings]
    count = {"quotes": '"', "opens": "([{", "closes": ")]}", "left": "\u201c", "right": "\u201d"}
    tables = {name: np.array([sum(map(text.count, marks)) for text in strings]) for name, marks in count.items()}
    tables["newline"] = np.array(["\n" in text for text in strings])
    tables["stop"] = np.array(
        [(text != "" and text[-1] in ".!?") or text[:-1].endswith((".", "!", "?")) for text in bare]
    )
    tables["closing"] = np.array([text in {'"', "\u201d", ")", "'", "\u2019"} for text in bare])
    return tables


def _depth(steps: np.ndarray, line_from: np.ndarray) -> np.ndarray:
    """Running sum of `steps` since the start of the line, before each position."""
    before = np.concatenate([[0], np.cumsum(steps)[:-1]])
    return before - before[line_from]


def _inside_quotes(has: dict[str, np.ndarray], tokens: np.ndarray, line_from: np.ndarray) -> np.ndarray:
    straight = _depth(has["quotes"][tokens], line_from) % 2 == 1
    curly = _depth(has["left"][tokens] - has["right"][tokens], line_from) > 0
    return straight | curly


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
