"""The parts below the families: keys, forms, places, pruning and sentences."""

import json
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.codes import Codes
from analysis.label.columns import COLUMNS, Slot, Vocabulary, column_of, digits
from analysis.label.evidence import Evidence
from analysis.label.forms import SHAPES, affix, affixes_of, folds_of, forms_of
from analysis.label.indexed import Indexed
from analysis.label.places import NAMES, Places, phrase
from analysis.label.protocol import Clause, Label, Named, Part, Recent, Topic, predict_clauses, since_words
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


def places_at(texts: list[str], contexts: list[int] | None = None) -> dict[str, list[int]]:
    places = Places.of(view_of(texts, contexts))
    return {name: np.flatnonzero(places.holds(name)).tolist() for name in NAMES}


def test_places_by_hand():
    at = places_at([" dog", ".", " X", ' "', "Dog", '"', " (", "Dog", ")", "\n", " dog", "."])
    assert at["sentence<1"] == [0, 2]
    assert at["line<1"] == [0, 10]
    assert at["line<3"] == [0, 1, 2, 10, 11]
    assert at["document<2"] == at["context<2"] == [0, 1]
    assert at["in_quotes"] == [4, 5]
    assert at["quotes_open"] == [3, 4]
    assert at["in_brackets"] == [7, 8]
    assert at["brackets_open"] == [6, 7]
    assert at["repeated"] == [7, 10, 11]  # Dog, dog, full stop
    assert at["repeat<3"] == [7], "Dog stood three tokens before"
    assert at["repeat<2"] == []
    assert at["bigram_repeated"] == [11]
    assert at["previous_repeated"] == [8, 11]


def test_a_sentence_starts_after_line_breaks_and_closing_marks():
    at = places_at([" dog", ".", '"', "\n", " X", " dog", "\n", "\n", "Dog", "\n", "Dog"])
    # after the full stop, and after its quotation mark past the line break; a line may break within a sentence
    assert at["sentence<1"] == [0, 2, 4]
    assert at["line<1"] == [0, 4, 7, 8, 10]


def test_places_forget_what_lies_in_another_context():
    at = places_at([" dog", ".", " dog", "."], contexts=[0, 2, 4])
    assert at["repeated"] == at["bigram_repeated"] == []
    assert at["context<1"] == [0, 2]
    assert at["document<1"] == [0]


def test_quotes_and_brackets_close_with_their_context():
    at = places_at([" (", " dog", ' "', " dog", " dog", " dog"], contexts=[0, 4, 6])
    assert (at["in_brackets"], at["in_quotes"]) == ([1, 2, 3], [3])


def test_places_are_counted_as_they_hold():
    texts = [STRINGS[i] for i in np.random.default_rng(0).integers(len(STRINGS), size=200)]
    places, positions = Places.of(view_of(texts, [0, 90, 200])), np.arange(3, 180, 2)
    held = np.array([places.holds(name, positions) for name in NAMES])
    assert (places.counts(positions) == held.sum(axis=1)).all()
    assert places.weighed(positions, positions / 7) == pytest.approx(held @ (positions / 7))


def test_places_have_phrases():
    assert phrase("line<1") == "at the start of a line"
    assert phrase("line<12") == "in the first 12 tokens of a line"
    assert phrase("repeat<32") == "seen in the last 32 tokens"


def test_affixes_group_words_by_their_letters():
    strings = (" walking", "ing", " Ring", "RING", "1ing", " walked", "ng", " a")
    assert [affix(text, "end_3") for text in strings] == ["ing", "ing", "ing", "ing", None, "ked", None, None]
    assert [affix(text, "begin_2") for text in strings] == ["wa", None, "ri", None, None, "wa", None, None]
    assert affixes_of(strings, "end_3").tolist() == [0, 0, 0, 0, 4, 5, 6, 7]


def test_a_group_is_named_by_its_affix_only_if_enough_words_of_it_fire():
    strings = (" king", " ring", " sing", " dog", " cat")
    tokens = np.tile(np.arange(5), 20).astype(np.uint16)
    split = TokenSplit("fit", tokens, np.array([0, 100]), np.array([0, 100]), {})
    none = Codes(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    indexed = Indexed(FitView.of(split, none, strings, skip_positions=0), Vocabulary.of(strings))
    fired = np.flatnonzero(tokens < 3)
    chain = ("end_2", "end_3", "token")
    whole, words = (fit_chain(Evidence(indexed, fired, 60), chain, 2.0, breadth=n) for n in (3, 4))
    assert [(clause.column, len(clause.keys)) for clause in whole] == [("end_2", 1)]
    assert [(clause.column, len(clause.keys)) for clause in words] == [("token", 3)]
    said = sentence(Label((Part("affix", whole),)), indexed.vocabulary)
    assert said == "Fires on pieces that end in \u201c-ng\u201d."
    for clauses in (whole, words):
        assert predict_clauses(clauses, indexed)[0].tolist() == fired.tolist()


def test_gains_by_hand():
    """A token fires at 2 of its 4 positions, another never. F1 of the token is 2 * 2 / (4 + 2) = 2/3; under a condition
    that keeps both firings and half of the positions it is 1."""
    view = view_of([" dog", "Dog", " dog", "Dog", " dog", "Dog", " dog", "Dog"])
    evidence = Evidence(Indexed(view, VOCABULARY), np.array([0, 2]), 2)
    assert evidence.gains(np.array([1.0, 1.0, 0.5]), np.array([1.0, 0.5, 0.5])) == pytest.approx(
        [0, 1 / 3, 0.5 - 2 / 3]
    )
    positions, weights = evidence.like
    assert (positions.tolist(), weights.tolist()) == ([0, 2, 4, 6], [0.5] * 4)
    half = evidence.narrowed(np.arange(8) < 3)
    assert (half.fired.tolist(), half.n_ground, half.token_totals[ID[" dog"]]) == ([0, 2], 3, 2)
    rest = evidence.without(np.array([0, 1]))
    assert (rest.fired.tolist(), rest.n_ground, rest.token_totals[ID["Dog"]]) == ([2], 6, 3)


def test_recent_words_by_hand():
    view = view_of([" Mr", " X", " dog", " dog", " X", " dog", " dog"], contexts=[0, 4, 7])
    indexed = Indexed(view, VOCABULARY)
    words = (ID[" Mr"], ID["ing"])
    assert since_words(indexed, words).tolist() == [0, 1, 2, 3, 7, 7, 7], "not in the other context"
    recent = Recent((ID[" Mr"], ID[" X"]), 2)
    assert np.flatnonzero(recent.mask(indexed)).tolist() == [0, 1, 2, 4, 5]
    assert recent.holds(indexed, np.array([2, 3, 6])).tolist() == [True, False, False]


def test_topics_of_passages_and_of_documents():
    """A document of 30 blocks; a word fills the first block, 16 of 480 tokens, and one that repels fills the last."""
    view = view_of([" walk"] * 16 + [" dog"] * 448 + [" Mr"] * 16)
    indexed = Indexed(view, VOCABULARY)
    passage = Topic((ID[" walk"],), (1.0,), 0.1)
    # five blocks are in the window of the first one, nine in that of the fifth
    assert passage.scores(indexed)[:6] == pytest.approx([1 / 5, 1 / 6, 1 / 7, 1 / 8, 1 / 9, 0])
    assert np.flatnonzero(passage.mask(indexed)).tolist() == list(range(80))
    document = replace(passage, weights=(3.0,), reach="document")
    assert document.scores(indexed) == pytest.approx([0.1] * 30)
    repelled = Topic((ID[" walk"], ID[" Mr"]), (1.0, -2.0), 0.0, "document")
    assert repelled.scores(indexed) == pytest.approx([-1 / 30] * 30)
    assert not repelled.holds(indexed, np.array([0, 400])).any()


def test_rules_are_the_same_from_json():
    filters = (
        Named("place", "line<4", is_negated=True),
        Topic((1, 2), (0.5, -0.25), 0.125, "document"),
        Recent((3,), 20),
    )
    label = Label((Part("combination", (Clause("end_2", (2,), (0.5,), filters), Clause(None, (), (0.25,), filters))),))
    assert Label.of_json(json.loads(json.dumps([asdict(part) for part in label.parts]))) == label


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
    document = replace(topic, filters=(Topic((ID[" dog"], ID["."]), (1.0, -0.5), 0.5, "document"),))
    assert (
        say(document)
        == "Fires on any token, in documents with words such as \u201cdog\u201d rather than \u201c.\u201d."
    )
    missing = replace(topic, filters=(Topic((ID[" dog"],), (-1.0,), 0.0),))
    assert say(missing) == "Fires on any token, in passages without words such as \u201cdog\u201d."
    soon = Clause("token", (ID["."] + 1,), (0.9,), (Recent((ID[" Mr"], ID[" X"]), 12),))
    assert say(soon) == "Fires on \u201c.\u201d, in the 12 tokens from \u201cMr\u201d or \u201cX\u201d on."
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
