"""Rules in English. The sentence says what the predictor tests, and nothing else."""

from collections.abc import Sequence

from analysis.label.columns import Slot, Vocabulary, digits
from analysis.label.forms import AFFIXES, SHAPES, affix
from analysis.label.kinds import LEVELS
from analysis.label.places import phrase
from analysis.label.protocol import Clause, Filter, Label, Named, Part, Recent, Topic

MAX_ATOMS = 5
MAX_FORMS = 3
MAX_WORDS, MAX_MISSING = 4, 2
MAX_LIKE = 3
ANY_FORM = "(in any case, singular or plural)"
LEFT, RIGHT = "\u201c", "\u201d"


def sentence(label: Label, vocabulary: Vocabulary, shares: Sequence[float] = ()) -> str:
    """The label as a sentence; `shares` of firings are told where there are alternatives."""
    parts = [_part(part, vocabulary) for part in label.parts]
    if len(parts) > 1 and shares:
        parts = [f"{text} ({share:.0%})" for text, share in zip(parts, shares, strict=True)]
    return f"Fires on {'; or on '.join(parts)}."


def show(text: str) -> str:
    """A token in quotation marks: spaces are dropped, line breaks shown, a continuation marked."""
    if text.strip() == "":
        named = {"\n": "line break", "\n\n": "blank line", " ": "space", "\t": "tab"}
        return named.get(text, LEFT + text.replace("\n", "\u21b5").replace(" ", "\u2423") + RIGHT)
    is_continuation = text[0].isalpha() and text[0].islower()
    return LEFT + ("-" if is_continuation else "") + text.strip().replace("\n", "\u21b5") + RIGHT


def _part(part: Part, vocabulary: Vocabulary) -> str:
    """Atoms in the order of the clauses, the first few of them named."""
    by_filters: dict[tuple[Filter, ...], list[Clause]] = {}
    for clause in part.clauses:
        by_filters.setdefault(_apart(clause), []).append(clause)
    phrases = []
    for filters, clauses in by_filters.items():
        text = _atoms(clauses, vocabulary)
        conditions = [_condition(condition, vocabulary) for condition in filters]
        every = ", all" if "; " in text else ","
        phrases.append(text + "".join(f"{every} {condition}" for condition in conditions))
    return " or ".join(phrases)


def _apart(clause: Clause) -> tuple[Filter, ...]:
    """The filters that are told after the subject: without keys, a form is the subject, or all of them are."""
    if clause.column:
        return clause.filters
    head = clause.filters[0]
    return clause.filters[1:] if isinstance(head, Named) and head.kind == "form" else ()


def _atoms(clauses: Sequence[Clause], vocabulary: Vocabulary) -> str:
    atoms: list[tuple[str, str, str]] = []
    n_keys = sum(max(len(clause.keys), 1) for clause in clauses)
    for clause in clauses:
        if clause.column is None:
            atoms.append((_subject_of(clause.filters, vocabulary), "", ""))
        for key in clause.keys[: MAX_ATOMS - len(atoms)]:
            seen = digits(key, clause.column or "", vocabulary)
            relation, context = _context(seen, vocabulary, n_keys)
            atoms.append((_subject(seen, vocabulary, n_keys), relation, context))
    text = _grouped(atoms)
    hidden = n_keys - len(atoms)
    return text + (f" and {hidden} more such rule{'s' if hidden > 1 else ''}" if hidden else "")


def _grouped(atoms: Sequence[tuple[str, str, str]]) -> str:
    """Atoms of one subject share it, then subjects of the same contexts share those."""
    contexts: dict[tuple[str, bool], list[tuple[str, str]]] = {}
    for subject, relation, context in atoms:
        entry = contexts.setdefault((subject, relation == ""), [])
        if (relation, context) not in entry:
            entry.append((relation, context))
    subjects: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for (subject, _), entry in contexts.items():
        subjects.setdefault(tuple(entry), []).append(subject)
    phrases = []
    for entry, names in subjects.items():
        relations: dict[str, list[str]] = {}
        for relation, context in entry:
            relations.setdefault(relation, []).append(context)
        tail = [f"{relation} {_listed(items)}".strip() for relation, items in relations.items()]
        phrases.append(f"{_listed(names)} {' or '.join(tail)}".strip())
    return "; ".join(phrases)


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " or " + items[-1]


def _subject(seen: Sequence[tuple[Slot, int]], vocabulary: Vocabulary, n_keys: int) -> str:
    """What the current token must be."""
    for slot, value in seen:
        if slot.offset == 0 and slot.table == "fold":
            return _fold(value, vocabulary, n_keys <= MAX_FORMS)
        if slot.offset == 0 and slot.table in LEVELS:
            return _kind(slot.table, value, vocabulary)
        if slot.offset == 0 and slot.table in AFFIXES:
            return "words" if slot.table.startswith("begin") else "pieces"
        if slot.offset == 0:
            return SHAPES[value][1] if slot.table == "shape" else show(vocabulary.strings[value])
    return "any token"


def _kind(level: str, value: int, vocabulary: Vocabulary) -> str:
    """A kind by its commonest words; all of them if they are few."""
    assert vocabulary.kinds is not None
    members = vocabulary.kinds.members(level, value)
    commonest = {fold: token for token, fold in zip(members[::-1], vocabulary.folds[members[::-1]], strict=True)}
    if len(commonest) == 1:
        return _fold(int(vocabulary.folds[value]), vocabulary, is_whole=True)
    names = [show(vocabulary.strings[token]) for token in list(commonest.values())[::-1]]
    if len(members) == len(names) <= MAX_LIKE:
        return _listed(names)
    return f"tokens like {_listed(names[:MAX_LIKE])}"


def _fold(fold: int, vocabulary: Vocabulary, is_whole: bool) -> str:
    """The tokens of a fold, or the shortest in the place of all."""
    members = [vocabulary.strings[token] for token in vocabulary.members(fold)]
    if is_whole or len(members) == 1:
        return _listed(list(dict.fromkeys(map(show, members))))
    return LEFT + min((text.strip().lower() for text in members), key=len) + RIGHT


def _context(seen: Sequence[tuple[Slot, int]], vocabulary: Vocabulary, n_keys: int) -> tuple[str, str]:
    """("after", what), ("just before", what), (any form, "") or two empty strings."""
    slot, value = seen[0]
    if slot.table == "fold" and n_keys > MAX_FORMS and len(vocabulary.members(value)) > 1:
        return ANY_FORM, ""
    if slot.table in AFFIXES:
        letters = affix(vocabulary.strings[value], slot.table)
        is_first = slot.table.startswith("begin")
        return (
            ("that begin with", f"{LEFT}{letters}-{RIGHT}") if is_first else ("that end in", f"{LEFT}-{letters}{RIGHT}")
        )
    around = [(slot, value) for slot, value in seen if slot.offset != 0]
    if not around:
        return "", ""
    relation = "after" if around[0][0].offset < 0 else "just before"
    if any(value < 0 for _, value in around):
        return relation, "the edge of the context window"
    if around[0][0].table == "shape":
        return relation, SHAPES[around[0][1]][1]
    if around[0][0].table in LEVELS:
        return relation, _kind(around[0][0].table, around[0][1], vocabulary)
    return relation, show("".join(vocabulary.strings[value] for _, value in around))


def _subject_of(filters: Sequence[Filter], vocabulary: Vocabulary) -> str:
    """The subject of a clause without keys."""
    head = filters[0]
    if isinstance(head, Named) and head.kind == "form":
        return vocabulary.forms.phrases[head.name]
    return ", ".join(["any token", *(_condition(condition, vocabulary) for condition in filters)])


def _condition(condition: Filter, vocabulary: Vocabulary) -> str:
    if isinstance(condition, Named):
        text = phrase(condition.name) if condition.kind == "place" else vocabulary.forms.phrases[condition.name]
        return f"not {text}" if condition.is_negated else text
    if isinstance(condition, Recent):
        words = _listed([show(vocabulary.strings[token]) for token in condition.words])
        return f"in the {condition.reach} tokens from {words} on"
    return _topic(condition, vocabulary)


def _topic(topic: Topic, vocabulary: Vocabulary) -> str:
    """The most telling words, longer ones first, those that abound before those that are missing."""
    ranked = sorted(zip(topic.words, topic.weights, strict=True), key=lambda each: not vocabulary.is_word[each[0]])
    shown = [(show(" " + vocabulary.strings[token].strip()), weight) for token, weight in ranked]
    there, missing = ([text for text, weight in shown if weight * sign > 0] for sign in (1, -1))
    where = "in passages" if topic.reach == "passage" else "in documents"
    if not there:
        return f"{where} without words such as {_listed(list(dict.fromkeys(missing))[:MAX_WORDS])}"
    text = f"{where} with words such as {_listed(list(dict.fromkeys(there))[:MAX_WORDS])}"
    return text + (f" rather than {_listed(list(dict.fromkeys(missing))[:MAX_MISSING])}" if missing else "")
