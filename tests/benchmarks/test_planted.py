"""Planted features: rules and counts by hand, a network that obeys its rules, and marks of labels."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from analysis.config import LabelConfig
from benchmarks.planted.__main__ import CONFIG, figures, read
from benchmarks.planted.counters import FAR, Marks, counts, recently
from benchmarks.planted.kinds import KINDS, rules
from benchmarks.planted.learnt import Found, Learnt
from benchmarks.planted.network import build, firings, save
from benchmarks.planted.plant import LEAST, NOTHING, mark, plant
from benchmarks.planted.rules import Condition, Rule, Text
from benchmarks.planted.section import right, section
from sae.run import Run
from sae.run_config import load_config
from sae.tokens import TokenSplit

STRINGS = ("<s>", " dog", " cat", ".", "\n", "\n\n", " (", ")", ' "', '"', "s", " of")
ID = {text: token for token, text in enumerate(STRINGS)}


def ids(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[ID[text] for text in texts]])


def count_of(name: str, texts: list[str]) -> list[int]:
    return counts(ids(texts), Marks.of(STRINGS, 0))[name][0].tolist()


def test_counts_by_hand():
    text = ["<s>", " dog", " (", " cat", ")", ".", "\n", " dog", ' "', " of", '"', "\n\n", " cat"]
    assert count_of("document", text) == list(range(13))
    assert count_of("line", text) == [0, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0]
    assert count_of("sentence", text) == [0, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0]
    assert count_of("brackets", text) == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert count_of("quotes", text) == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert count_of("quotes_before", text) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0]
    assert count_of("gap", text) == [0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 9]
    assert count_of("pair_gap", [" dog", " cat", " dog", " dog", " cat"]) == [0, 0, 0, 0, 3]
    assert count_of("document", [" dog", "<s>", " dog"]) == [FAR + 1, 0, 1]
    is_dog = ids([" cat", " dog", " cat", " cat"]) == ID[" dog"]
    assert recently(is_dog)[0].tolist()[1:] == [0, 1, 2]
    assert recently(is_dog)[0, 0] >= FAR


def text_of(documents: list[tuple[str, list[str]]], width: int) -> Text:
    tokens = np.array([ID[text] for _, document in documents for text in document], dtype=np.uint16)
    bounds = np.cumsum([0, *(len(document) for _, document in documents)])
    contexts = np.append(np.arange(0, len(tokens), width), len(tokens))
    names = {"source": [source for source, _ in documents]}
    return Text(TokenSplit("fit", tokens, bounds, contexts, names), STRINGS, 0)


def among(*texts: str) -> np.ndarray:
    return np.isin(np.arange(len(STRINGS)), [ID[text] for text in texts])


def where(text: Text, *conditions: Condition) -> list[int]:
    return np.flatnonzero(text.holds(Rule("", "", conditions))).tolist()


def test_where_rules_hold():
    text = text_of([("austen", ["<s>", " dog", " of", " dog", " cat"]), ("bible", ["<s>", " dog", " dog"])], 5)
    dog, after = Condition({0: among(" dog")}), Condition({-1: among(" dog", " of")})
    assert where(text, dog) == [1, 3, 6, 7]
    assert where(text, after) == [2, 3, 4, 7]
    assert where(text, dog & after) == [3, 7]
    assert where(text, dog & Condition(sources=("bible",))) == [6, 7]
    assert where(text, Condition({1: among(" dog")})) == [2, 6], "within the context; its first position does not count"
    assert where(text, Condition(bounds=(("gap", 1, FAR),))) == [3, 7]
    assert where(text, Condition(soon=(among(" of"), 2)), Condition({0: among(" cat")})) == [2, 3, 4]
    both = after & Condition({-1: among(" dog")})
    assert where(text, both) == [2, 4, 7], "both tables at one offset"
    assert dog.is_causal and not Condition({1: among(" dog")}).is_causal
    assert not Condition(sources=("bible",)).is_causal


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(load_config(CONFIG), tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def texts(run) -> dict[str, Text]:
    return read(run, run.subject.tokenizer)


@pytest.mark.slow
def test_rules_are_drawn_from_the_text(texts):
    found = rules(texts["train"], 2, 0, lambda _: True)
    assert {rule.kind for rule in found} == set(KINDS)
    assert found == sorted(found, key=lambda rule: list(KINDS).index(rule.kind))
    again = rules(texts["train"], 2, 0, lambda _: True, ["two tokens in a row"])
    assert [rule.text for rule in again] == [rule.text for rule in found if rule.kind == "two tokens in a row"]
    for rule in again:
        assert texts["train"].holds(rule).any(), "a pair is drawn where it stands"


@pytest.mark.slow
def test_labels_of_what_is_planted(texts):
    kinds = ["a token", "an ending", "two tokens in a row", "near a start"]
    planted = plant(texts, 1, 0, kinds)
    assert [(each.kind, each.is_noisy) for each in planted[:8]] == [
        (k, noisy) for k in kinds for noisy in (False, True)
    ]
    assert [each.kind for each in planted[8:]] == list(NOTHING)
    for clean, noisy in zip(planted[0:8:2], planted[1:8:2], strict=True):
        for name, least in LEAST.items():
            rule, fires = noisy.rule[name], noisy.fires[name]
            assert (clean.fires[name] == rule).all()
            assert rule.sum() >= least
            assert (fires & ~rule).sum() == int(0.1 * rule.sum())
    marks = mark(planted, texts, LabelConfig())
    assert all(each.is_right for each in marks)
    assert [each.f1 for each in marks[:8]] == pytest.approx([1] * 8, abs=0.05)
    assert [each.reported for each in marks[0:8:2]] == [each.f1 for each in marks[0:8:2]], "clean: firings are the rule"
    assert all(0.8 < each.ceiling < 0.97 for each in marks[1:8:2])
    assert [each.status for each in marks[8:]] == ["abstained"] * 3
    made = figures(
        marks, Learnt(3, 4, [Found("a token", "x", None, False, 0.0), Found("a token", "y", "y", True, 1.0)])
    )
    one = {"n": 1, "n_right": 1}
    assert made["kinds"]["an ending"] == {"is_rule": True, "clean": one, "noisy": one}
    assert made["network"] == {"n_features": 3, "n_found": 2, "n_latents": 2, "n_right": 1}
    assert [each["planted"] for each in made["wrong"]] == ["x"]
    page = section({**made, "seed": 0})
    assert "| an ending | 1 | 100% | 100% |" in page
    assert "labels 50.0% (9.5% to 90.5%) are right" in page


@pytest.mark.slow
def test_a_network_does_what_its_rules_say(run, texts, tmp_path):
    tokenizer, test = run.subject.tokenizer, texts["test"]
    drawn = [rule for rule in rules(texts["train"], 2, 3, lambda rule: rule.is_causal)]
    model = build(drawn, tokenizer, 16, 0)
    save(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    held = firings(loaded, test)
    for number, rule in enumerate(drawn):
        assert (held[:, number] == test.holds(rule)).all(), rule.text
    seen: list[torch.Tensor] = []
    loaded.stream.register_forward_hook(lambda _, __, x: seen.append(x))
    tokens = test.grid[:2]
    loaded(tokens)
    acts, directions = loaded.features(tokens), loaded.write.weight.detach().T
    assert ((acts > 0) == loaded.features.holds(tokens)).all()
    assert directions.norm(dim=1).numpy() == pytest.approx(np.ones(len(drawn)), abs=1e-5)
    background = (seen[0] - torch.einsum("bwf,fd->bwd", acts, directions)).detach()
    assert background.std().item() == pytest.approx(0.02, rel=0.1)


def test_wilsons_interval():
    """8 of 10, by hand: centre (.8 + 1.92 / 10) / 1.384 = .717, half width 1.96 sqrt(.016 + .0096) / 1.384 = .227."""
    assert right(8, 10) == "80.0% (49.0% to 94.3%)"
