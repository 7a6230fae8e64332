"""Rules of many kinds, as one would expect a labeller to know them; what they are about is drawn at random.

Contexts are drawn where they stand in the text, endings and beginnings from words as they come.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from benchmarks.planted.draw import Draw
from benchmarks.planted.rules import Bounds, Condition, Rule, Text

CHARACTERS = {
    "a digit": r" ?\d",
    "a number": r" ?\d+",
    "a number of two digits": r" ?\d\d",
    "a number of three or four digits": r" ?\d{3,4}",
    "a capitalised word": r" [A-Z][a-z]+",
    "a piece with a capital first": r" ?[A-Z].*",
    "a piece all in capitals": r" ?[A-Z]{2,}",
    "a single capital": r" ?[A-Z]",
    "punctuation": r" ?[^\w\s]+",
    "a piece with ! or ?": r".*[!?].*",
    "a comma, a colon or a semicolon": r" ?[,:;]",
    "a dash": r" ?[-\u2013\u2014]+",
    "a piece with a quotation mark": r'.*".*',
    "a piece with an apostrophe": r".*'.*",
    "a piece with a bracket": r".*[()\[\]].*",
    "a piece of a word without its beginning": r"[a-z]+",
    "a word of eight letters or more": r" ?[A-Za-z]{8,}",
    "a word of three letters": r" [A-Za-z]{3}",
    "a letter beyond a-z": r".*[^\x00-\x7f\u2010-\u2030].*",
    "a line break": r"\s*\n\s*",
}
NEIGHBOURS = {
    "a number": r" ?\d+",
    "a capitalised piece": r" ?[A-Z][a-z]+",
    "a lower-case word": r" [a-z]+",
    "a piece of a word without its beginning": r"[a-z]+",
    "punctuation": r" ?[^\w\s]+",
    "a comma": r" ?,",
    "a line break": r"\s*\n\s*",
    "a full stop": r" ?\.",
}
SOURCES = ("austen", "bible", "shakespeare", "wikipedia")
ANY = 1 << 30
TRIES = 40
"""Rules that are drawn for each that is asked for, at most."""

Said = tuple[str, list[Condition]]
"""What a rule says, and its conditions."""
Kind = Callable[[Draw], Said]


def a_token(draw: Draw) -> Said:
    token = draw.token()
    return draw.show([token]), [Condition({0: draw.among([token])})]


def a_word(draw: Draw) -> Said:
    word = draw.word(r" ?[A-Za-z]{3,}").strip().lower()
    forms = [word, word + "s"][: draw.pick([1, 2])]
    return " or ".join(forms), [Condition({0: draw.like(f"(?i) ?({'|'.join(forms)})")})]


def a_list(draw: Draw) -> Said:
    tokens = draw.tokens(draw.size(2, 30))
    return draw.show(tokens), [Condition({0: draw.among(tokens)})]


def an_ending(draw: Draw) -> Said:
    n = draw.pick([2, 3])
    letters = draw.word(rf" ?[A-Za-z]{{{n + 2},}}")[-n:].lower()
    return f"-{letters}", [Condition({0: draw.like(f"(?i) ?[a-z]*{letters}")})]


def a_beginning(draw: Draw) -> Said:
    n = draw.pick([2, 3])
    letters = draw.word(rf" [A-Za-z]{{{n + 2},}}")[1 : n + 1].lower()
    return f"{letters}-", [Condition({0: draw.like(f"(?i) {letters}[a-z]*")})]


def a_class(draw: Draw) -> Said:
    name = draw.pick(list(CHARACTERS))
    return name, [Condition({0: draw.like(CHARACTERS[name])})]


def a_run(draw: Draw, length: int) -> Said:
    at = draw.position()
    tokens = draw.stream[at - length + 1 : at + 1].tolist()
    return draw.show(tokens), [Condition({-i: draw.among([token]) for i, token in enumerate(tokens[::-1])})]


def pairs(draw: Draw) -> Said:
    """One token after some that it stands after in the text, or some after one."""
    one, n, side = int(draw.stream[draw.position()]), draw.size(2, 6), draw.pick([-1, 1])
    places = np.flatnonzero(draw.stream[8:-8] == one) + 8
    others = draw.rng.permutation(np.unique(draw.stream[draw.rng.choice(places, 4 * n) + side]))[:n].tolist()
    if side == -1:
        return f"{draw.show([one])} after {draw.show(others)}", [
            Condition({-1: draw.among(others), 0: draw.among([one])})
        ]
    return f"{draw.show(others)} after {draw.show([one])}", [Condition({-1: draw.among([one]), 0: draw.among(others)})]


def after_tokens(draw: Draw) -> Said:
    tokens = draw.tokens(draw.size(1, 6))
    return f"after {draw.show(tokens)}", [Condition({-1: draw.among(tokens)})]


def token_after_class(draw: Draw) -> Said:
    token, name = draw.token(), draw.pick(list(NEIGHBOURS))
    tables = {-1: draw.like(NEIGHBOURS[name]), 0: draw.among([token])}
    return f"{draw.show([token])} after {name}", [Condition(tables)]


def class_after_tokens(draw: Draw) -> Said:
    tokens, name = draw.tokens(draw.size(1, 4)), draw.pick(list(NEIGHBOURS))
    tables = {-1: draw.among(tokens), 0: draw.like(NEIGHBOURS[name])}
    return f"{name} after {draw.show(tokens)}", [Condition(tables)]


def before_tokens(draw: Draw) -> Said:
    tokens = draw.tokens(draw.size(1, 3))
    return f"before {draw.show(tokens)}", [Condition({1: draw.among(tokens)})]


def token_before(draw: Draw) -> Said:
    if draw.pick([True, False]):
        token, name = draw.token(), draw.pick(list(NEIGHBOURS))
        return f"{draw.show([token])} before {name}", [
            Condition({0: draw.among([token]), 1: draw.like(NEIGHBOURS[name])})
        ]
    first, second = draw.stream[(at := draw.position()) - 1 : at + 1].tolist()
    tables = {0: draw.among([first]), 1: draw.among([second])}
    return f"{draw.show([first])} before {draw.show([second])}", [Condition(tables)]


def inside(draw: Draw) -> Said:
    name = draw.pick(["brackets", "quotes"])
    variants: dict[str, tuple[Bounds, ...]] = {
        f"{name} stand open": ((name, 1, ANY),),
        f"{name} stood open before it": ((f"{name}_before", 1, ANY),),
        f"strictly between {name}": ((name, 1, ANY), (f"{name}_before", 1, ANY)),
    }
    text = draw.pick(list(variants))
    return text, [Condition(bounds=variants[text])]


def near_start(draw: Draw) -> Said:
    name, n = draw.pick(["document", "context", "line", "sentence"]), draw.size(1, 40)
    return f"the first {n} of the {name}", [Condition(bounds=((name, 0, n),))]


def a_repetition(draw: Draw) -> Said:
    n = draw.size(4, 60)
    variants: dict[str, Bounds] = {
        "seen before": ("gap", 1, ANY),
        f"seen in the last {n}": ("gap", 1, n + 1),
        "seen before after the same token": ("pair_gap", 1, ANY),
        "after a token seen before": ("gap_before", 1, ANY),
        "not seen before": ("gap", 0, 1),
    }
    text = draw.pick(list(variants))
    return text, [Condition(bounds=(variants[text],))]


def a_source(draw: Draw) -> Said:
    names = tuple(sorted(draw.rng.permutation(SOURCES)[: draw.pick([1, 2])].tolist()))
    return f"a document of {' or '.join(names)}", [Condition(sources=names)]


def a_passage(draw: Draw) -> Said:
    """Some longer words of one document, and the tokens after them."""
    n_words, n = draw.size(2, 8), draw.size(8, 64)
    is_long = draw.like(r" [A-Za-z]{4,}")
    words = {token for token in draw.common.tolist() if is_long[token]}
    documents = list(pairwise(draw.text.split.document_starts.tolist()))
    while True:
        start, stop = draw.pick(documents)
        own = sorted(words & set(draw.stream[start:stop].tolist()))
        if len(own) >= n_words:
            chosen = draw.rng.permutation(own)[:n_words].tolist()
            return f"the {n} tokens from {draw.show(chosen)} on", [Condition(soon=(draw.among(chosen), n))]


def _subject(draw: Draw) -> tuple[str, Condition]:
    text, (condition,) = draw.pick([a_token, a_word, a_list, a_class, an_ending])(draw)
    return text, condition


def at_place(draw: Draw) -> Said:
    (subject, first), (where, (second,)) = _subject(draw), draw.pick([inside, near_start, a_repetition])(draw)
    return f"{subject}; {where}", [first & second]


def in_topic(draw: Draw) -> Said:
    (subject, first), (where, (second,)) = _subject(draw), draw.pick([a_source, a_passage])(draw)
    return f"{subject}; {where}", [first & second]


def one_of_two(draw: Draw) -> Said:
    """Two rules of two kinds; each has a quarter of the firings at least."""
    while True:
        one, other = draw.pick(SIMPLE), draw.pick(SIMPLE)
        if one is other:
            continue
        rules = [Rule("", *kind(draw)) for kind in (one, other)]
        n_first, n_second = (int(draw.text.holds(rule).sum()) for rule in rules)
        if min(n_first, n_second) * 3 >= max(n_first, n_second) > 0:
            return " or: ".join(rule.text for rule in rules), [*rules[0].conditions, *rules[1].conditions]


SIMPLE: list[Kind] = [
    *(a_token, a_word, a_list, an_ending, a_class, pairs, after_tokens, token_after_class, class_after_tokens),
    *(before_tokens, inside, near_start, a_passage),
]
KINDS: dict[str, Kind] = {
    "a token": a_token,
    "a word in its forms": a_word,
    "a list of tokens": a_list,
    "an ending": an_ending,
    "a beginning": a_beginning,
    "a class of characters": a_class,
    "two tokens in a row": partial(a_run, length=2),
    "three tokens in a row": partial(a_run, length=3),
    "pairs of tokens": pairs,
    "any token after some": after_tokens,
    "a token after a class": token_after_class,
    "a class after some tokens": class_after_tokens,
    "any token before some": before_tokens,
    "a token before another": token_before,
    "inside brackets or quotes": inside,
    "near a start": near_start,
    "a repetition": a_repetition,
    "documents of a source": a_source,
    "soon after some words": a_passage,
    "tokens at a place": at_place,
    "tokens within a topic": in_topic,
    "one of two rules": one_of_two,
}


def rules(
    text: Text, n_each: int, seed: int, is_wanted: Callable[[Rule], bool], kinds: Sequence[str] = tuple(KINDS)
) -> list[Rule]:
    """At most `n_each` different rules of each kind that are wanted; a kind that has fewer gives those that turn up."""
    found: list[Rule] = []
    for kind in kinds:
        draw, said = Draw(text, np.random.default_rng([seed, list(KINDS).index(kind)])), set[str]()
        own: list[Rule] = []
        for _ in range(TRIES * n_each):
            if len(own) == n_each:
                break
            rule = Rule(kind, *KINDS[kind](draw))
            if rule.text not in said and is_wanted(rule):
                own.append(rule)
            said.add(rule.text)
        found += own
    return found
