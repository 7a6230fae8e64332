"""What a token looks like, from its text alone: overlapping form classes and one partition, shapes.

A form class is a question with a noun phrase, such as "numbers of four digits"; the first line of
`FORMS` decides ties. `SHAPES` puts each token into the first class that fits.
"""

import re
from dataclasses import dataclass

import numpy as np

LEXICON: dict[str, tuple[str, str]] = {
    "article": ("articles", "a an the"),
    "pronoun_subject": ("subject pronouns", "i you he she it we they thou ye"),
    "pronoun_object": ("object pronouns", "me him her us them thee"),
    "possessive": ("possessive pronouns", "my your his her its our their thy thine mine"),
    "preposition": (
        "prepositions",
        "of in to for with on at by from about into through after over between against during without before under "
        "around among upon within toward towards unto",
    ),
    "conjunction": ("conjunctions", "and or but nor yet so because although though while if unless than that"),
    "wh": ("question words", "who whom whose which what when where why how"),
    "be": ("forms of to be", "be am is are was were been being art"),
    "have": ("forms of to have", "have has had having hath hast"),
    "do": ("forms of to do", "do does did done doing doth dost"),
    "modal": ("modal verbs", "can could may might must shall should will would shalt wilt"),
    "negation": ("negations", "not no never none nothing nor neither n't"),
    "demonstrative": ("demonstratives", "this that these those"),
    "month": (
        "names of months",
        "january february march april june july august september october november december",
    ),
    "number_word": (
        "number words",
        "one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand "
        "million first second third fourth fifth",
    ),
    "kin": (
        "words of kinship",
        "father mother son daughter brother sister wife husband uncle aunt cousin child children sons daughters "
        "brothers sisters parents family",
    ),
    "title": ("titles of persons", "mr mrs miss sir lady lord king queen prince duke captain dr president"),
    "direction": ("points of the compass", "north south east west northern southern eastern western"),
    "saying": ("verbs of saying", "said says say saying saith spake speak told tell asked cried replied answered"),
}
LITTLE = frozenset(
    word
    for name in ("article", "preposition", "conjunction", "be", "demonstrative", "wh")
    for word in LEXICON[name][1].split()
)
"""Words that say nothing of a topic."""
SUFFIXES = (
    "ing", "ed", "ly", "tion", "s", "es", "er", "est", "ity", "ment", "ness", "ous", "al", "ive", "able", "ic",
    "ist", "ism", "ian", "ish", "eth", "ton", "land", "y",
)  # fmt: skip
PREFIXES = ("un", "re", "dis", "con", "pre", "in", "de", "pro", "ex")
PATTERNS: tuple[tuple[str, str, str], ...] = (
    ("newline", "line breaks", r"[ \t]*\n\s*"),
    ("comma", "commas", r" ?,"),
    ("full_stop", "full stops", r" ?\."),
    ("sentence_end", "sentence ends (.!?)", r" ?[.!?]+[\"'\u201d\u2019)\]]?"),
    ("exclamation", "exclamation and question marks", r" ?[!?]+"),
    ("colon", "colons and semicolons", r" ?[:;]+"),
    ("dash", "dashes and hyphens", r" ?[-\u2010-\u2015]+"),
    ("quote", "quotation marks", r" ?[\"'\u2018-\u201f]+"),
    ("open_bracket", "opening brackets", r" ?[(\[{]+"),
    ("close_bracket", "closing brackets", r"[)\]}]+[.,;]?"),
    ("punctuation", "punctuation", r" ?[^\w\s]+"),
    ("year", "numbers of four digits", r" ?\d{4}"),
    ("digit", "single digits", r" ?\d"),
    ("two_digits", "numbers of two digits", r" ?\d\d"),
    ("number", "numbers", r" ?\d+"),
    ("apostrophe_s", "the ending 's", r"['\u2019]s"),
    ("contraction", "endings after an apostrophe", r"['\u2019](s|t|re|ve|ll|d|m|st|S)"),
    ("capital_letter", "single capital letters", r" ?[A-Z]"),
    ("all_caps", "pieces all in capitals", r" ?[A-Z]{2,}"),
    ("capitalised_word", "capitalised word beginnings", r" [A-Z][a-z]+"),
    ("capitalised_bare", "capitalised pieces with no space before them", r"[A-Z][a-z]+"),
    ("capitalised", "pieces with a capital first", r" ?[A-Z][A-Za-z]*"),
    ("word_start", "word beginnings", r" [^\W\d_]+"),
    ("lower_word", "lower-case word beginnings", r" [a-z]+"),
    ("short_word", "lower-case pieces of one to three letters after a space", r" [a-z]{1,3}"),
    ("long_word", "pieces of eight or more letters", r" ?[^\W\d_]{8,}"),
    ("continuation", "lower-case word continuations", r"[a-z]+"),
    ("short_continuation", "word continuations of one or two letters", r"[a-z]{1,2}"),
    ("foreign", "pieces with a letter beyond a-z", r"(?=.*[^\W\d_a-zA-Z]) ?[^\W\d_]+"),
    ("broken", "fragments of a character", r".*\ufffd.*"),
)
MARKER = r"<\|.*\|>|<s>|</s>|<bos>"
SHAPES: tuple[tuple[str, str, str], ...] = (
    ("marker", "the document marker", MARKER),
    ("newline", "a line break", r"[ \t]*\n\s*"),
    ("space", "white space", r"\s+"),
    ("comma", "a comma", r" ?,"),
    ("full_stop", "a full stop", r" ?\."),
    ("exclamation", "a mark ! or ?", r" ?[!?]+"),
    ("colon", "a colon or semicolon", r" ?[:;]+"),
    ("dash", "a dash or hyphen", r" ?[-\u2010-\u2015]+"),
    ("quote", "a quotation mark", r" ?[\"'\u2018-\u201f]+"),
    ("bracket", "a bracket", r" ?[()\[\]{}]+"),
    ("punctuation", "other punctuation", r" ?[^\w\s]+"),
    ("number", "a number", r" ?\d+"),
    ("contraction", "an ending after an apostrophe", r"['\u2019][a-zA-Z]+"),
    ("capitals", "a piece all in capitals", r" ?[A-Z]{2,}"),
    ("capital", "a single capital letter", r" ?[A-Z]"),
    ("capitalised", "a capitalised piece", r" ?[A-Z][^\W\d_]+"),
    ("lower_word", "a lower-case word beginning", r" [^\W\d_]+"),
    ("continuation", "a word continuation", r"[^\W\d_]+"),
    ("other", "another kind of token", r"(?s:.*)"),
)


@dataclass(frozen=True, eq=False)
class Forms:
    """The form classes of a vocabulary."""

    names: tuple[str, ...]
    phrases: dict[str, str]
    table: np.ndarray
    """`[vocabulary, n_forms]`, bool."""
    shapes: np.ndarray
    """`[vocabulary]`, int64: index into `SHAPES`."""


def forms_of(strings: tuple[str, ...]) -> Forms:
    """Ask every question of every token."""
    questions = [(name, phrase, re.compile(pattern)) for name, phrase, pattern in PATTERNS]
    for name, (phrase, words) in LEXICON.items():
        questions.append((name, phrase, re.compile(" ?(" + "|".join(words.split()) + ")", re.IGNORECASE)))
    for suffix in SUFFIXES:
        pattern = re.compile(rf" ?[^\W\d_]*{suffix}", re.IGNORECASE)
        questions.append((f"suffix_{suffix}", f"pieces that end in \u201c-{suffix}\u201d", pattern))
    for prefix in PREFIXES:
        questions.append(
            (f"prefix_{prefix}", f"words that begin with \u201c{prefix}-\u201d", re.compile(f" {prefix}[a-z]*"))
        )
    table = np.array([[bool(q.fullmatch(text)) for _, _, q in questions] for text in strings], dtype=bool)
    shapes = [re.compile(pattern) for _, _, pattern in SHAPES]
    of_shape = [next(i for i, shape in enumerate(shapes) if shape.fullmatch(text)) for text in strings]
    return Forms(
        names=tuple(name for name, _, _ in questions),
        phrases={name: phrase for name, phrase, _ in questions},
        table=table,
        shapes=np.array(of_shape, dtype=np.int64),
    )


def total_of(table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum of `counts [vocabulary]` over the tokens of each class, `[n_forms]`, int64.

    Rows without a count are left out; a sum of whole numbers is the same on any machine.
    """
    tokens = np.flatnonzero(counts)
    return np.einsum("t,tc->c", counts[tokens], table[tokens], dtype=np.int64, casting="unsafe")


def folds_of(strings: tuple[str, ...]) -> np.ndarray:
    """`[vocabulary]`, int64: the lowest token id with the same letters, whatever case, leading space
    or simple plural; a plural is folded where its singular is in the vocabulary."""
    bare = [text.strip().lower() for text in strings]
    known = set(bare)
    first: dict[str, int] = {}
    folded = np.empty(len(strings), dtype=np.int64)
    for token, text in enumerate(bare):
        is_plural = len(text) > 3 and text.isalpha() and text[-1] == "s" and text[-2] not in "suia"
        key = text[:-1] if is_plural and text[:-1] in known else text
        if not key.isalpha():
            key = f"{token}"  # signs and fragments of characters stand for themselves
        folded[token] = first.setdefault(key, token)
    return folded


AFFIXES: dict[str, int] = {"end_2": 2, "end_3": 3, "end_4": 4, "begin_2": 2, "begin_3": 3, "begin_4": 4}
"""How many letters at the end of a piece, or at the beginning of a word, tokens are grouped by."""


def affix(text: str, name: str) -> str | None:
    """The last or first letters of a token, in lower case; none where it has fewer, or is no word or piece of one."""
    bare, n = text.strip().lower(), AFFIXES[name]
    if len(bare) < n or not bare.isalpha():
        return None
    if name.startswith("end"):
        return bare[-n:]
    return bare[:n] if text.startswith(" ") else None


def affixes_of(strings: tuple[str, ...], name: str) -> np.ndarray:
    """`[vocabulary]`, int64: the lowest token id with the same affix; its own where there is none."""
    first: dict[str, int] = {}
    affixes = [affix(text, name) for text in strings]
    return np.array([n if own is None else first.setdefault(own, n) for n, own in enumerate(affixes)])
