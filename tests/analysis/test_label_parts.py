"""The parts below the families: keys, forms, places, pruning and sentences."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.codes import Codes
from analysis.label.columns import COLUMNS, Slot, Vocabulary, column_of, digits
from analysis.label.evidence import Evidence
from analysis.label.forms import SHAPES, folds_of, forms_of
from analysis.label.indexed import Indexed
from analysis.label.places import PLACES, places_of
from analysis.label.protocol import Clause, Label, Named, Part, Topic, predict_clauses
from analysis.label.sentence import sentence, show
from analysis.label.tree import fit_chain
from analysis.splits import FitView
from sae.tokens import TokenSplit

STRINGS = (
    "<|endoftext|>",
    " dog",
    "Dog",
    " dogs",
    "ing",
    " walk",
    ".",
    "\n",
    ' "',
    '"',
    " (",
    ")",
    " 1999",
    " Mr",
    " X",
)
ID = {text: token for token, text in enumerate(STRINGS)}
VOCABULARY = Vocabulary.of(STRINGS, np.eye(len(STRINGS)), np.ones(len(STRINGS), dtype=np.int64))


def view_of(texts: list[str], contexts: list[int] | None = None) -> FitView:
    tokens = np.array([ID[text] for text in texts], dtype=np.uint16)
    bounds = np.array(contexts or [0, len(texts)])
    split = TokenSplit("fit", tokens, np.array([0, len(texts)]), bounds, {})
    none = Codes(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    return FitView.of(split, none, STRINGS, skip_positions=0)


def form_names(text: str) -> set[str]:
    forms = forms_of((text,))
    return {name for name, holds in zip(forms.names, forms.table[0], strict=True) if holds}


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        (" 1999", {"year", "number"}),
        ("ing", {"suffix_ing", "continuation"}),
        (" University", {"capitalised_word", "word_start", "long_word", "suffix_ity", "suffix_y", "capitalised"}),
        (" the", {"article", "lower_word", "word_start", "short_word"}),
        (".", {"full_stop", "sentence_end", "punctuation"}),
        ("\n\n", {"newline"}),
        (" Mr", {"title", "capitalised", "capitalised_word", "word_start"}),
        ("'s", {"apostrophe_s", "contraction"}),
        ("<|endoftext|>", set()),
    ],
)
def test_forms_of_a_token(text, classes):
    assert form_names(text) == classes


def test_every_token_has_one_shape():
    names = [SHAPES[i][0] for i in forms_of(("<|endoftext|>", "\n", " 12", " Dog", " dog", "ing", "\ufffd", "")).shapes]
    assert names == ["marker", "newline", "number", "capitalised", "lower_word", "continuation", "punctuation", "other"]


def test_folds_join_case_space_and_plural():
    strings = (" dog", "Dog", " dogs", " 1", "1", " ass", " as", " cats", ".", " .")
    assert folds_of(strings).tolist() == [0, 0, 0, 3, 4, 5, 6, 7, 8, 9]


def test_keys_say_what_the_slots_see():
    view, vocabulary = view_of([" Mr", " X", "."], contexts=[0, 2, 3]), VOCABULARY
    column = column_of(view, vocabulary, "pair")
    seen = [digits(int(column.keys[group]), "pair", vocabulary) for group in column.groups]
    before, here = Slot(-1, "token"), Slot(0, "token")
    assert seen == [
        [(before, -1), (here, ID[" Mr"])],
        [(before, ID[" Mr"]), (here, ID[" X"])],
        [(before, -1), (here, ID["."])],  # the first of its context
    ]


@pytest.mark.parametrize("name", COLUMNS)
def test_lookup_finds_each_position_once(name):
    view = view_of([" Mr", " X", ".", "\n", " Mr", " X", "\n"], contexts=[0, 4, 7])
    column = column_of(view, VOCABULARY, name)
    positions, scores = column.lookup(column.keys, np.arange(1.0, len(column.keys) + 1))
    assert sorted(positions.tolist()) == list(range(7))
    assert (scores == column.groups[positions] + 1).all()
    assert len(column.lookup(np.array([10**12]), np.array([1.0]))[0]) == 0


def test_places_by_hand():
    texts = [" dog", ".", " X", ' "', "Dog", '"', " (", "Dog", ")", "\n", " dog", "."]
    places = places_of(view_of(texts))
    at = {name: np.flatnonzero(mask).tolist() for name, mask in places.items()}
    assert set(at) == set(PLACES)
    assert at["sentence_start"] == [0, 2, 10]
    assert at["line_start"] == [0, 10]
    assert at["in_quotes"] == [4, 5]
    assert at["in_brackets"] == [7, 8]
    assert at["repeated"] == [7, 10, 11]  # Dog, dog, full stop
    assert at["bigram_repeated"] == [11]
    assert at["previous_repeated"] == [8, 11]


def test_places_forget_what_lies_in_another_context():
    places = places_of(view_of([" dog", ".", " dog", "."], contexts=[0, 2, 4]))
    assert not places["repeated"].any()
    assert not places["bigram_repeated"].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pruning_finds_the_best_of_all_choices(seed):
    # tokens of 3 kinds after tokens of 3 kinds: every set of tokens and pairs, by brute force
    rng = np.random.default_rng(seed)
    texts = [STRINGS[i] for i in rng.integers(1, 4, size=60)]
    view = view_of(texts)
    fires = rng.random(60) < rng.random((4, 4))[np.roll(view.tokens, 1), view.tokens]
    fired = np.flatnonzero(fires)
    if len(fired) == 0:
        return
    evidence = Evidence(Indexed(view, VOCABULARY), fired, len(fired))
    cost = 0.5
    clauses = fit_chain(evidence, ("token", "pair"), cost)
    positions, _ = predict_clauses(clauses, evidence.indexed)
    n_atoms = sum(len(clause.keys) for clause in clauses)
    found = (fires[positions].sum() - cost * n_atoms) / (len(positions) + len(fired))
    pairs = [(a, b) for a in (-1, 1, 2, 3) for b in (1, 2, 3)]
    previous = np.where(np.arange(60) > 0, np.roll(view.tokens, 1), -1)
    sums = {(a, b): ((previous == a) & (view.tokens == b)) for a, b in pairs}
    best = 0.0
    for whole in product([False, True], repeat=3):
        chosen = [b for b, is_whole in zip((1, 2, 3), whole, strict=True) if is_whole]
        options = [(int(fires[m].sum()), int(m.sum())) for (_, b), m in sums.items() if b not in chosen and m.any()]
        head = np.isin(view.tokens, chosen)
        # for a fixed rate pairs are chosen one by one, so the best set is a prefix by (hits - cost) / total
        options.sort(key=lambda option: -(option[0] - cost) / option[1])
        hits, total = fires[head].sum() - cost * len(chosen), head.sum()
        best = max(best, hits / (total + len(fired)))
        for n_hits, n_total in options:
            hits, total = hits + n_hits - cost, total + n_total
            best = max(best, hits / (total + len(fired)))
    assert found == pytest.approx(best, abs=1e-9)


def key(column: str, *values: int) -> int:
    radix = {"token": len(STRINGS), "fold": len(STRINGS), "shape": len(SHAPES)}
    found = 0
    for slot, value in zip(COLUMNS[column], values, strict=True):
        found = found * (radix[slot.table] + 1) + value + 1
    return found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" dog", "\u201cdog\u201d"),
        ("ing", "\u201c-ing\u201d"),
        ("Dog", "\u201cDog\u201d"),
        ("\n", "line break"),
        (".\n", "\u201c.\u201d"),
        ("  ", "\u201c\u2423\u2423\u201d"),
    ],
)
def test_tokens_are_shown_readably(text, shown):
    assert show(text) == shown


def test_sentences():
    vocabulary = VOCABULARY

    def say(*clauses: Clause, family: str = "x") -> str:
        return sentence(Label((Part(family, clauses),)), vocabulary)

    number = next(i for i, (name, _, _) in enumerate(SHAPES) if name == "number")
    after = Clause("pair", (key("pair", ID[" Mr"], ID[" X"]), key("pair", ID["."], ID[" X"])), (0.9, 0.5))
    assert say(after) == "Fires on \u201cX\u201d after \u201cMr\u201d or \u201c.\u201d."
    kind = Clause("previous_shape", (key("previous_shape", ID[" Mr"], number),), (0.9,))
    assert say(kind) == "Fires on a number after \u201cMr\u201d."
    edge = Clause("pair", (key("pair", -1, ID[" X"]),), (0.9,))
    assert say(edge) == "Fires on \u201cX\u201d after the edge of the context window."
    two = Clause("token", tuple(ID[text] + 1 for text in (" dog", "Dog", ".")), (0.9, 0.8, 0.7))
    assert say(two) == "Fires on \u201cdog\u201d, \u201cDog\u201d or \u201c.\u201d."
    outside = Clause("token", (ID["."] + 1,), (0.9,), (Named("place", "in_brackets", is_negated=True),))
    assert say(outside) == "Fires on \u201c.\u201d, not inside brackets."
    topic = Clause(None, (), (0.9,), (Topic((ID[" dog"], ID[" walk"]), (1.0, 0.5), 2.0),))
    assert say(topic) == "Fires on any token, in passages with words such as \u201cdog\u201d or \u201cwalk\u201d."
    folds = Clause("fold", tuple(key("fold", ID[text]) for text in (" dog", "ing", " walk")), (0.9,) * 3)
    exact = Clause("token", (ID["."] + 1,), (0.8,), ())
    forms = "\u201cdog\u201d (in any case, singular or plural); \u201c-ing\u201d, \u201cwalk\u201d or \u201c.\u201d"
    assert say(folds, exact) == f"Fires on {forms}."
    within = [replace(clause, filters=outside.filters) for clause in (folds, exact)]
    assert say(*within) == f"Fires on {forms}, all not inside brackets."
    many = Clause("token", tuple(range(1, 13)), (0.5,) * 12)
    assert say(many).endswith(" and 7 more such rules.")


def test_alternatives_tell_their_shares():
    label = Label((Part("token", (Clause("token", (2,), (0.9,)),)), Part("token", (Clause("token", (7,), (0.9,)),))))
    text = sentence(label, VOCABULARY, [0.621, 0.31])
    assert text == "Fires on \u201cdog\u201d (62%); or on \u201c.\u201d (31%)."


def test_the_highest_score_counts():
    indexed = Indexed(view_of([" dog", "Dog", "."]), VOCABULARY)
    fold = Clause("fold", (key("fold", ID[" dog"]),), (0.25,))
    token = Clause("token", (key("token", ID["Dog"]),), (0.5,))
    positions, scores = predict_clauses([fold, token], indexed)
    assert positions.tolist() == [0, 1]
    assert scores.tolist() == [0.25, 0.5]
