"""Windows, and what is asked about them, on a text of 48 tokens that can be checked by eye."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from analysis.codes import Codes
from analysis.config import LabelConfig, WindowConfig
from analysis.label.columns import Vocabulary
from analysis.label.fit import labels
from analysis.label.indexed import Indexed
from analysis.label.known import Known
from analysis.label.protocol import Label
from analysis.score import resamples
from analysis.splits import FitView, TestView
from analysis.windows.grade import grade, grade_rules, token_judges
from analysis.windows.grid import Grid
from analysis.windows.items import KINDS, NO, UNANSWERED, YES, Items
from analysis.windows.judge import rule
from analysis.windows.record import WindowRecord, facts, write
from analysis.windows.sample import sample, spread_over_strength
from analysis.windows.score import WindowScores, score
from sae.errors import DataError
from sae.tokens import TokenSplit

STRINGS = tuple("abcdefgh")
A, B, C, D, E, F, G, H = range(8)
# six contexts of 8 tokens, each of two windows of 4; the first token of a context does not count
TEXT = """
    h a b c  d e f g
    h a a c  d d f g
    h b b b  a e f g
    h c c c  e e e e
    h a c c  d b b g
    h g g g  f f f f
"""
TOKENS = np.array([STRINGS.index(token) for token in TEXT.split()])
CFG = WindowConfig(width=4, per_kind=4, resamples=20)


def view_of(firings: list[dict[int, float]], encoded: list[int] | None = None) -> TestView:
    """Three documents of two contexts; `{position: value}` of each latent."""
    offsets = np.append(0, np.cumsum([len(own) for own in firings]))
    positions = np.array([position for own in firings for position in sorted(own)], np.int32)
    values = np.array([own[position] for own in firings for position in sorted(own)], np.float32)
    split = TokenSplit("test", TOKENS.astype(np.uint16), np.arange(0, 49, 16), np.arange(0, 49, 8), {})
    known = None if encoded is None else np.array(encoded)
    return TestView.of(split, Codes(offsets, positions, values), STRINGS, skip_positions=1, encoded=known)


# Latent 0 fires on "a" but for those of windows 4 and 8 (there at 17 it is "b"), and strongly on 10;
# latent 1, its neighbour, on "b"; latent 2 never; latent 3 on every token of window 7; latent 4 where 1 does and on 42.
FIRINGS = [
    {1: 1.0, 2: 0.2, 9: 3.0, 10: 4.0, 13: 2.0},
    {2: 1.0, 17: 5.0, 18: 1.0, 19: 2.0, 37: 1.0},
    {},
    {28: 1.0, 29: 1.0, 30: 1.0, 31: 1.0},
    {18: 1.0, 38: 1.0, 42: 1.0},
]


@pytest.fixture
def grid() -> Grid[TestView]:
    return Grid.cut(view_of(FIRINGS), 4)


def of_kind(items: Items, kind: str) -> Items:
    return items.take(np.flatnonzero(items.kinds == KINDS.index(kind)))


def marks(items: Items) -> dict[int, list[int]]:
    """Marked positions by window."""
    parts = np.split(items.marks.flat, items.marks.offsets[1:-1])
    return {int(window): own.tolist() for window, own in zip(items.windows, parts, strict=True)}


def test_contexts_are_cut_into_windows_side_by_side(grid):
    assert grid.starts.tolist() == list(range(0, 48, 4))
    assert grid.stops.tolist() == list(range(4, 49, 4))
    assert grid.of[[0, 3, 4, 47]].tolist() == [0, 0, 1, 11]
    wider = Grid.cut(view_of(FIRINGS), 5)  # the second window of a context is shorter
    assert wider.starts.tolist()[:4] == [0, 5, 8, 13]
    assert wider.stops.tolist()[:4] == [5, 8, 13, 16]


def test_windows_that_were_not_encoded_are_none():
    some = Grid.cut(view_of(FIRINGS, encoded=[1, 2, 3, 4, 5, 6, 7, 25, 26]), 4)
    assert some.starts.tolist() == [0, 4, 24]
    assert some.of[[0, 4, 8, 24, 28]].tolist() == [0, 1, -1, 2, -1]
    assert some.fired(0).windows.tolist() == [0]


def test_the_windows_in_which_a_latent_fires(grid):
    fired = grid.fired(0)
    assert fired.windows.tolist() == [0, 2, 3]
    assert fired.peaks.tolist() == [1, 10, 13]
    assert fired.values.tolist() == [1, 4, 2]
    weak_too, strong = fired.marks(np.arange(3), 0.0), fired.marks(np.arange(3), 0.3)
    assert weak_too.offsets.tolist() == [0, 2, 4, 5]
    assert strong.flat.tolist() == [1, 9, 10, 13]  # at 2 it fires, but below 0.3 of the strongest
    assert len(grid.fired(2).windows) == 0
    assert grid.fired(3).peaks.tolist() == [28]  # the first of equals


def test_the_true_items_have_their_firings_marked(grid):
    assert marks(of_kind(sample(grid, 0, [1], CFG), "fires")) == {0: [1], 2: [9, 10], 3: [13]}


def test_a_silent_window_of_the_same_trigger_has_a_token_that_a_true_one_peaks_at(grid):
    """Peaks are a, a, d. Silent windows with an `a` are 5 (at 20) and 8 (at 33), with a `d` 1 (at 4) and 9 (at 36)."""
    found = marks(of_kind(sample(grid, 0, [1], CFG), "same_trigger"))
    assert found == {5: [20], 8: [33], 1: [4], 9: [36]}
    # of three, two are of the trigger of two true items, one of that of one: no stand-in is needed
    fewer = marks(of_kind(sample(grid, 0, [1], replace(CFG, per_kind=3)), "same_trigger"))
    assert sorted(TOKENS[position] for (position,) in fewer.values()) == [A, A, D]


def test_a_silent_window_of_a_neighbour_has_its_firings_marked(grid):
    """The neighbour fires in windows 0, 4 and 9; in 0 the latent fires too. At 18 it fires too weakly."""
    assert marks(of_kind(sample(grid, 0, [1], CFG), "neighbour")) == {4: [17, 19], 9: [37]}
    # where the nearest has too few the next stands in; a window counts once
    assert set(marks(of_kind(sample(grid, 0, [1, 3], CFG), "neighbour"))) == {4, 9, 7}
    both = of_kind(sample(grid, 0, [1, 4], CFG), "neighbour")
    assert sorted(both.windows.tolist()) == [4, 9, 10]
    assert marks(both) == {4: [17, 19], 9: [37], 10: [42]}  # what the nearest fires on is marked
    assert len(of_kind(sample(grid, 0, [2], CFG), "neighbour")) == 0


def test_random_windows_are_silent_and_distinct(grid):
    every = of_kind(sample(grid, 0, [1], replace(CFG, per_kind=50)), "random")
    assert sorted(every.windows.tolist()) == [1, 4, 5, 6, 7, 8, 9, 10, 11]
    four = of_kind(sample(grid, 0, [1], CFG), "random")
    assert len(set(four.windows.tolist())) == 4
    # as many marks as the true items have in turn: 1, 2, 1, 1
    assert np.diff(four.marks.offsets).tolist() == [1, 2, 1, 1]
    assert grid.view.valid[four.marks.flat].all()
    assert (grid.of[four.marks.flat] == np.repeat(four.windows, [1, 2, 1, 1])).all()


def test_marks_elsewhere_are_where_the_latent_is_silent(grid):
    found = marks(of_kind(sample(grid, 0, [1], CFG), "elsewhere"))
    assert found.keys() == {0, 2, 3}
    assert found[0] == [3]  # 0 does not count, and 2 is a weak firing
    assert found[2] == [11]  # two are marked in the true item, but it is silent at one only
    assert found[3][0] in {12, 14, 15}
    assert len(of_kind(sample(grid, 3, [], CFG), "elsewhere")) == 0  # it fires on all of its window


def test_a_latent_without_a_firing_is_asked_nothing(grid):
    assert len(sample(grid, 2, [0, 1], CFG)) == 0


def test_the_same_items_every_time_and_others_for_another_latent():
    firings = [{position: 1.0 for position in range(1, 8)}] * 2
    grid = Grid.cut(view_of(firings), 4)
    one, again, other = (sample(grid, latent, [], replace(CFG, per_kind=3)) for latent in (0, 0, 1))
    assert one.windows.tolist() == again.windows.tolist()
    assert one.marks.flat.tolist() == again.marks.flat.tolist()
    assert one.windows.tolist() != other.windows.tolist()


def test_true_items_are_spread_over_tenths_of_strength():
    """100 windows of strengths 1 to 100 in any order: five of each tenth; of 13, two of some tenths; all of a few."""
    values = np.random.default_rng(0).permutation(100).astype(np.float32) + 1
    fired = replace(Grid.cut(view_of(FIRINGS), 4).fired(0), windows=np.arange(100), values=values)
    drawn = values[spread_over_strength(fired, 7, 50)]
    assert np.bincount(((drawn - 1) // 10).astype(int)).tolist() == [5] * 10
    thirteen = np.bincount(((values[spread_over_strength(fired, 7, 13)] - 1) // 10).astype(int))
    assert thirteen.sum() == 13
    assert set(thirteen.tolist()) == {1, 2}
    assert len(spread_over_strength(fired, 7, 1000)) == 100


# --- answers ---


def test_a_rule_detects_what_it_predicts_anywhere_and_agrees_with_marks_if_it_predicts_each(grid):
    """A rule that predicts 10, 13, 20 and 33."""
    judge = rule(np.array([10, 13, 20, 33]))
    items = sample(grid, 0, [1], CFG)
    assert of_kind(items, "fires").windows.tolist() == [0, 2, 3]
    assert judge(of_kind(items, "fires"), "detection").tolist() == [NO, YES, YES]
    assert judge(of_kind(items, "fires"), "fuzzing").tolist() == [NO, NO, YES]  # of 9 and 10 it predicts one only
    trigger = of_kind(items, "same_trigger")
    answers = dict(zip(trigger.windows.tolist(), judge(trigger, "fuzzing").tolist(), strict=True))
    assert answers == {5: YES, 8: YES, 1: NO, 9: NO}
    assert judge(items.take(np.zeros(0, int)), "fuzzing").tolist() == []


def test_scores_by_hand(grid):
    """Of three true items two are found. Of four same-trigger windows two are mistaken, of the two of the neighbour
    none is; of four random ones those that hold 20 or 33 are."""
    items = sample(grid, 0, [1], CFG).of("detection")
    documents, draws = grid.documents(items.windows), resamples(3, 50, 0)
    found = score(items, rule(np.array([10, 13, 20, 33]))(items, "detection"), "detection", documents, draws)
    assert found.keys() == {"random", "same_trigger", "neighbour"}
    trigger = found["same_trigger"]
    assert (trigger.n_fires, trigger.n_silent, trigger.n_true_yes, trigger.n_true_no, trigger.n_failed) == (
        3,
        4,
        2,
        2,
        0,
    )
    assert trigger.balanced_accuracy == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert trigger.accuracy == pytest.approx(4 / 7)
    assert trigger.f1 == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    assert found["neighbour"].balanced_accuracy == pytest.approx((2 / 3 + 1) / 2)
    random = of_kind(items, "random").windows.tolist()
    wrong = len({5, 8} & set(random))
    assert found["random"].balanced_accuracy == pytest.approx((2 / 3 + (4 - wrong) / 4) / 2)
    assert trigger.low <= trigger.balanced_accuracy <= trigger.high


def test_the_interval_is_of_documents_drawn_anew(grid):
    """With one document it has no width; each draw is scored as if its documents were all there are."""
    items = sample(grid, 0, [1], CFG).of("detection")
    answers = rule(np.array([10, 13, 20, 33]))(items, "detection")
    one = score(items, answers, "detection", np.zeros(len(items), int), resamples(1, 50, 0))["same_trigger"]
    assert one.low == one.high == one.balanced_accuracy
    documents, draws = grid.documents(items.windows), np.array([[2.0, 1, 0]])
    drawn = score(items, answers, "detection", documents, draws)["same_trigger"]
    # document 0 has windows 0 to 3, 1 has 4 to 7: true items 0, 2, 3 twice; of the silent ones 1 (right) twice, 5 once
    assert drawn.low == drawn.high == pytest.approx((4 / 6 + 2 / 3) / 2)


def test_questions_without_an_answer_are_counted(grid):
    items = sample(grid, 0, [1], CFG).of("detection")
    answers = np.where(items.fires, YES, NO)
    answers[0] = UNANSWERED
    found = score(items, answers, "detection", grid.documents(items.windows), resamples(3, 10, 0))["neighbour"]
    assert (found.n_fires, found.n_true_yes, found.n_failed, found.balanced_accuracy) == (3, 2, 1, 1.0)
    none = np.full(len(items), UNANSWERED)
    found = score(items, none, "detection", grid.documents(items.windows), resamples(3, 10, 0))["neighbour"]
    assert (found.n_failed, found.balanced_accuracy, found.low) == (5, None, None)


# --- judges whose score is known ---


@pytest.fixture(scope="module")
def crowd() -> tuple[Grid[TestView], Items]:
    """Some thousand items: a latent that fires on a tenth of 40,000 windows."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 8, 160_000)
    fired = np.flatnonzero(rng.random(len(tokens)) < 0.03)
    split = TokenSplit("test", tokens.astype(np.uint16), np.arange(0, 160_001, 1600), np.arange(0, 160_001, 8), {})
    other = np.flatnonzero(rng.random(len(tokens)) < 0.03)
    offsets = np.array([0, len(fired), len(fired) + len(other)])
    values = 1 + rng.random(offsets[-1]).astype(np.float32)
    codes = Codes(offsets, np.concatenate([fired, other]).astype(np.int32), values)
    grid = Grid.cut(TestView.of(split, codes, STRINGS, skip_positions=0), 4)
    return grid, sample(grid, 0, [1], replace(CFG, per_kind=1000))


def scores_of(judge, crowd) -> dict[tuple[str, str], WindowScores]:
    grid, items = crowd
    rows = grade(0, items, judge, {}, grid, resamples(grid.view.n_documents, 100, 0))
    return {(row.task, row.negatives): row.scores for row in rows}


def test_there_are_as_many_items_of_each_kind_as_were_asked_for(crowd):
    _, items = crowd
    assert [items.count(kind) for kind in KINDS] == [1000] * 5
    for kind in KINDS:
        assert len(set(of_kind(items, kind).windows.tolist())) == 1000


def test_same_trigger_windows_have_the_triggers_of_the_true_ones_as_often(crowd):
    grid, _ = crowd
    items = sample(grid, 0, [], replace(CFG, per_kind=150))
    fired = grid.fired(0)
    peaks = fired.peaks[np.searchsorted(fired.windows, of_kind(items, "fires").windows)]
    wanted = np.bincount(grid.view.tokens[peaks], minlength=8)
    found = np.bincount(grid.view.tokens[of_kind(items, "same_trigger").marks.flat], minlength=8)
    assert wanted.tolist() == found.tolist()
    assert len(set(wanted.tolist())) > 3


def test_a_perfect_judge_scores_1_and_one_that_never_changes_its_mind_exactly_half(crowd):
    perfect = scores_of(lambda items, _: np.where(items.fires, YES, NO), crowd)
    assert len(perfect) == 7
    assert all((s.balanced_accuracy, s.f1, s.accuracy, s.low, s.high) == (1, 1, 1, 1, 1) for s in perfect.values())
    for answer in (YES, NO):
        same = scores_of(lambda items, _, answer=answer: np.full(len(items), answer), crowd)
        assert {(s.balanced_accuracy, s.low, s.high) for s in same.values()} == {(0.5, 0.5, 0.5)}


def test_a_judge_that_tosses_a_coin_scores_about_half(crowd):
    """1,000 and 1,000 tosses: the standard deviation of balanced accuracy is sqrt(1 / 8000) = 0.011."""
    rng = np.random.default_rng(0)
    tossed = scores_of(lambda items, _: rng.integers(0, 2, len(items)), crowd)
    for found in tossed.values():
        assert abs(found.balanced_accuracy - 0.5) < 0.045
        assert found.low < 0.5 + 0.03
        assert found.high > 0.5 - 0.03


# --- rules of a whole split ---


def test_rules_are_graded_with_another_latents_label_as_null(town, ids):
    """Latent 0 fires on " town", 1 on " dog", 2 at random, 3 never; the first two have perfect rules."""

    def fires(tokens):
        noise = np.random.default_rng(len(tokens)).random(len(tokens)) < 0.02
        return [tokens == ids[" town"], tokens == ids[" dog"], noise, np.zeros(len(tokens), bool)]

    fit, select, test = town(fires)
    records = labels(fit, select, test, LabelConfig(resamples=10))
    rules = {record.latent: Label.of_json(record.rule) for record in records if record.rule}
    indexed = Indexed(test, Vocabulary.of(test.strings))
    for latent, label in rules.items():  # what was written down predicts what was scored
        assert len(label.predict(indexed)[0]) == records[latent].scores.n_predicted
    known = Known(
        vocabulary=Vocabulary.of(fit.strings),
        statuses=[record.status for record in records],
        sentences=[record.text for record in records],
        rules=rules,
        others=[record.other_latent for record in records],
        neighbours=[[1], [0], [0, 1], [0]],
        promoted=[[]] * 4,
    )
    rows = grade_rules(known, fit, test, replace(CFG, width=12, per_kind=10))
    assert len(rows) == 4 * 7
    found = {(row.latent, row.task, row.negatives): row for row in rows}
    own = found[0, "detection", "random"]
    assert (own.scores.balanced_accuracy, own.n_fires, own.n_silent) == (1.0, 10, 10)
    assert own.token == 1.0  # its rule is that token
    assert own.other < 0.8
    assert own.margin == 0
    assert found[0, "detection", "neighbour"].other < 0.5  # " dog" is where its neighbour fires
    assert found[0, "fuzzing", "elsewhere"].scores.balanced_accuracy == 1.0
    assert found[0, "detection", "same_trigger"].n_silent == 0  # it fires on every " town"
    assert found[0, "detection", "same_trigger"].scores.balanced_accuracy is None
    assert found[2, "detection", "random"].scores is None
    assert found[2, "detection", "random"].token is None
    assert found[3, "detection", "random"].n_fires == 0
    summed = facts(rows, 10)
    assert summed["detection"]["random"]["n_scored"] == 2
    assert summed["detection"]["same_trigger"]["n_short_of_windows"] == 2
    assert summed["fuzzing"]["elsewhere"]["median_balanced_accuracy"] == 1.0
    assert summed["fuzzing"]["elsewhere"]["median_token"] == 1.0
    with pytest.raises(DataError, match="document 0 of test is document 0 of fit, token for token"):
        grade_rules(known, FitView(**{**vars(test), "split": "fit"}), test, CFG)


def test_the_single_token_is_the_best_of_the_fit_split(town, ids):
    """Fires on " town" and on half of " dog": as a judge it says yes where " town" stands, on the test split."""

    def fires(tokens):
        rng = np.random.default_rng(len(tokens))
        return [(tokens == ids[" town"]) | ((tokens == ids[" dog"]) & (rng.random(len(tokens)) < 0.5)), tokens < 0]

    fit, _, test = town(fires)
    judge, none = token_judges(fit, test)
    assert none is None
    grid = Grid.cut(test, 12)
    items = sample(grid, 0, [], replace(CFG, per_kind=30)).of("detection")
    has_town = [
        (test.tokens[a:b] == ids[" town"])[test.valid[a:b]].any()
        for a, b in zip(items.starts, items.stops, strict=True)
    ]
    assert judge(items, "detection").tolist() == has_town
    assert 0 < sum(has_town) < len(items)


@pytest.mark.parametrize(
    ("own", "token", "other", "margin"),
    [(0.8, 0.7, 0.6, 0.1), (0.8, 0.3, None, 0.3), (0.4, None, None, -0.1), (None, 0.7, 0.6, None)],
)
def test_a_margin_is_over_the_best_of_token_other_and_chance(own, token, other, margin):
    scores = WindowScores(1, 1, 1, 1, 0, own, None, None, None, None)
    found = WindowRecord(0, "detection", "random", 1, 1, scores, token, other).margin
    assert found == pytest.approx(margin) if margin is not None else found is None


def test_a_table_is_the_same_bytes_every_time(tmp_path, crowd):
    grid, items = crowd
    draws = resamples(grid.view.n_documents, 10, 0)
    for name in ("one", "two"):
        judge = rule(np.arange(0, 160_000, 5))
        write(list(grade(0, items, judge, {"other": judge, "token": None}, grid, draws)), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    row = pq.read_table(tmp_path / "one").to_pylist()[0]
    assert (row["task"], row["negatives"], row["n_fires"], row["token"], row["rule"]) == (
        *("detection", "random", 1000),
        *(None, None),
    )
    assert row["balanced_accuracy"] == row["other"]
    assert row["margin"] == pytest.approx(0, abs=1e-6) or row["other"] < 0.5
