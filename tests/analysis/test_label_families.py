import numpy as np
import pytest

from analysis.config import LabelConfig
from analysis.label.choose import Choice, choose
from analysis.label.columns import Vocabulary
from analysis.label.indexed import Indexed
from analysis.label.protocol import Label
from analysis.label.sentence import sentence
from analysis.score import counts

CFG = LabelConfig()


@pytest.fixture(scope="module")
def planted(town):
    """Plant one rule in the town; returns its choice, its F1 on the test split, and its sentence."""

    def run(rule, cfg: LabelConfig = CFG) -> tuple[Choice, float, str]:
        fit, select, test = town(lambda tokens: [rule(tokens)])
        vocabulary = Vocabulary.of(fit.strings)
        choice = choose(Indexed(fit, vocabulary), Indexed(select, vocabulary), 0, cfg)
        if choice.label is None:
            return choice, 0.0, ""
        positions, _ = choice.label.predict(Indexed(test, vocabulary))
        return choice, counts(positions, test.firing(0)[0]).f1, sentence(choice.label, vocabulary)

    return run


def inside_brackets(tokens: np.ndarray, ids: dict[str, int]) -> np.ndarray:
    """After an opening bracket, up to the closing one; the town has one pair a document."""
    steps = (tokens == ids[" ("]).astype(int) - (tokens == ids[")"])
    return np.cumsum(steps) - steps > 0


def of_law(tokens: np.ndarray, ids: dict[str, int]) -> np.ndarray:
    """In a document of law, as the town has every third one."""
    legal = [ids[word] for word in (" court", " judge", " plaintiff", " statute")]
    return np.repeat(np.isin(tokens.reshape(-1, 96), legal).any(axis=1), 96)


def test_one_token(planted, ids):
    choice, f1, text = planted(lambda tokens: tokens == ids[" town"])
    assert choice.label == choice.token
    assert (choice.label.family, f1, text) == ("token", 1.0, "Fires on \u201ctown\u201d.")


def test_a_token_in_all_its_forms(planted, ids):
    dogs = [ids[" dog"], ids["Dog"], ids[" dogs"]]
    choice, f1, text = planted(lambda tokens: np.isin(tokens, dogs))
    assert (choice.label.family, choice.label.n_atoms, f1) == ("token", 1, 1.0)
    assert text == "Fires on \u201cdog\u201d, \u201cDog\u201d or \u201cdogs\u201d."


def test_a_form(planted, ids):
    numbers = [ids[f" {n}"] for n in range(100, 130)]
    choice, f1, text = planted(lambda tokens: np.isin(tokens, numbers))
    assert (choice.label.family, f1, text) == ("form", 1.0, "Fires on numbers.")


def test_a_token_after_another(planted, ids):
    choice, f1, text = planted(lambda t: (t == ids[" of"]) & (np.roll(t, 1) == ids[" University"]))
    assert (choice.label.family, f1, text) == ("context", 1.0, "Fires on \u201cof\u201d after \u201cUniversity\u201d.")


def test_any_token_after_another(planted, ids):
    choice, f1, text = planted(lambda tokens: np.roll(tokens, 1) == ids[" town"])
    assert (choice.label.family, f1, text) == ("context", 1.0, "Fires on any token after \u201ctown\u201d.")


def test_a_place(planted, ids):
    choice, f1, text = planted(lambda tokens: inside_brackets(tokens, ids))
    assert choice.label.family == "place"
    assert f1 > 0.97  # the closing bracket is inside, here and there alike
    assert text == "Fires on any token, inside brackets."


def test_a_token_before_another(planted, ids):
    choice, f1, text = planted(lambda tokens: np.roll(tokens, -1) == ids[" dog"])
    assert choice.label.family == "next"
    assert f1 > 0.99  # the last token of a context has no next one in it
    assert text == "Fires on any token just before \u201cdog\u201d."


def test_a_topic(planted, ids):
    choice, f1, text = planted(lambda tokens: of_law(tokens, ids))
    assert choice.label.family == "topic"
    assert f1 > 0.99
    assert text.startswith("Fires on any token, in passages with words such as")
    assert "court" in text


def test_a_token_within_a_topic(planted, ids):
    choice, f1, text = planted(lambda tokens: of_law(tokens, ids) & (tokens == ids[" the"]))
    assert choice.label.family == "topic"
    assert f1 > 0.99
    assert text.startswith("Fires on \u201cthe\u201d, in documents with words such as")


def test_a_token_at_a_place(planted, ids):
    choice, f1, text = planted(lambda tokens: inside_brackets(tokens, ids) & (tokens == ids[" of"]))
    assert choice.label.family == "combination"
    assert f1 > 0.95
    assert text == "Fires on \u201cof\u201d, inside brackets."


def test_tokens_soon_after_a_word(planted, ids):
    def soon(tokens: np.ndarray) -> np.ndarray:
        is_town = np.pad((tokens == ids[" town"]).reshape(-1, 96), ((0, 0), (4, 0)))
        return np.lib.stride_tricks.sliding_window_view(is_town, 5, axis=1).any(axis=2).reshape(-1)

    choice, f1, text = planted(soon)
    assert choice.label.family == "recent"
    assert f1 == 1.0
    assert text == "Fires on any token, in the 5 tokens from \u201ctown\u201d on."
    _, f1, text = planted(lambda tokens: soon(tokens) & (tokens == ids[" the"]))
    assert f1 == 1.0
    assert text == "Fires on \u201cthe\u201d, in the 5 tokens from \u201ctown\u201d on."


def test_two_meanings(planted, ids):
    numbers = [ids[f" {n}"] for n in range(100, 130)]
    rule = lambda tokens: np.isin(tokens, numbers) | inside_brackets(tokens, ids)  # noqa: E731
    choice, f1, text = planted(rule)
    assert {part.family for part in choice.label.parts} == {"form", "place"}
    assert f1 > 0.95
    assert "; or on " in text
    alone, f1_alone, _ = planted(rule, LabelConfig(max_parts=1))
    assert len(alone.label.parts) == 1
    assert f1_alone < f1


@pytest.mark.parametrize("seed", range(4))
def test_noise_gets_no_label(planted, seed):
    choice, _, _ = planted(lambda tokens: np.random.default_rng(seed).random(len(tokens)) < 0.03)
    assert (choice.status, choice.label) == ("abstained", None)


def test_noise_over_the_whole_text_gets_no_label(planted):
    choice, _, _ = planted(lambda tokens: np.random.default_rng(7).random(len(tokens)) < 0.5)
    assert choice.label is None


def test_few_firings_get_no_label(planted, ids):
    def rule(tokens):
        fires = tokens == ids[" town"]
        return fires & (np.cumsum(fires) <= 10)

    choice, _, _ = planted(rule)
    assert (choice.status, choice.label) == ("rare", None)
    assert choice.token is not None


def test_a_rule_with_noise_is_found_and_not_adorned(planted, ids):
    rng = np.random.default_rng(1)
    choice, f1, text = planted(
        lambda t: (t == ids[" town"]) & (rng.random(len(t)) < 0.9) | (rng.random(len(t)) < 0.002)
    )
    assert text == "Fires on \u201ctown\u201d."
    assert 0.8 < f1 < 0.97
    assert isinstance(choice.label, Label)


def test_scores_are_chances(town, ids):
    # " of" fires half the time after " University" and never else; " town" always
    def rule(tokens):
        after = (tokens == ids[" of"]) & (np.roll(tokens, 1) == ids[" University"])
        return (tokens == ids[" town"]) | after & (np.cumsum(after) % 2 == 0)

    fit, select, test = town(lambda tokens: [rule(tokens)])
    vocabulary = Vocabulary.of(fit.strings)
    choice = choose(Indexed(fit, vocabulary), Indexed(select, vocabulary), 0, CFG)
    positions, scores = choice.label.predict(Indexed(test, vocabulary))
    assert scores[test.tokens[positions] == ids[" town"]].min() > 0.98
    assert scores[test.tokens[positions] == ids[" of"]] == pytest.approx(0.5, abs=0.05)
