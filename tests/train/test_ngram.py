"""The trigram baseline: a hand-computed case, the formula written out, and that it is a probability."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.subjects.ngram import Trigram


def written_out(stream: list[int], vocabulary: int, history: tuple[int, ...], c: int) -> float:
    """Interpolated Kneser-Ney by dictionaries: Chen & Goodman 1999, equation 20, for 1, 2 or 3 tokens."""
    n = len(history) + 1
    triples = Counter(zip(stream, stream[1:], stream[2:], strict=False))
    counts = {
        3: triples,
        2: Counter(gram[1:] for gram in set(triples)),
        1: Counter(gram[1:] for gram in set(pairwise(stream))),
    }[n]
    n1, n2 = (sum(value == times for value in counts.values()) for times in (1, 2))
    discount = n1 / (n1 + 2 * n2) if n1 else 0.5
    of_history = {gram: value for gram, value in counts.items() if gram[:-1] == history}
    lower = written_out(stream, vocabulary, history[1:], c) if n > 1 else 1 / vocabulary
    if not of_history:
        return lower
    total = sum(of_history.values())
    discounted = max(of_history.get((*history, c), 0) - discount, 0)
    return discounted / total + discount * len(of_history) / total * lower


def probability(model: Trigram, a: int, b: int, c: int) -> float:
    return float(np.exp(-model.losses(np.array([a, b, c])))[0])


def test_by_hand():
    # 0 0 1 0 0 1 0 1. Triples: 001 twice, 010 twice, 100, 101: D3 = 2 / (2 + 2*2) = 1/3.
    # Different tokens before a pair: 01 two, 10 one, 00 one: D2 = 2 / (2 + 2*1) = 1/2.
    # Different tokens before a token: 0 two, 1 one: D1 = 1 / (1 + 2*1) = 1/3.
    # P(1) = (1 - 1/3)/3 + (1/3)(2/3)(1/2) = 1/3;  P(1|0) = (2 - 1/2)/3 + (1/2)(2/3) P(1) = 11/18
    # P(1|00) = (2 - 1/3)/2 + (1/3)(1/2) P(1|0) = 101/108
    model = Trigram(np.array([0, 0, 1, 0, 0, 1, 0, 1]), 2)
    assert probability(model, 0, 0, 1) == pytest.approx(101 / 108, rel=1e-12)
    assert probability(model, 0, 0, 0) == pytest.approx(7 / 108, rel=1e-12)


def test_an_unseen_history_falls_back():
    # 11 never occurs before a token: P(1|11) = P(1|1); after 1 only 0 is known: (0 - ..) + (1/2)(1/1) P(1) = 1/6
    model = Trigram(np.array([0, 0, 1, 0, 0, 1, 0, 1]), 2)
    assert probability(model, 1, 1, 1) == pytest.approx(1 / 6, rel=1e-12)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=30), st.tuples(st.integers(0, 4), st.integers(0, 4)))
def test_it_is_the_formula_and_sums_to_1(stream, history):
    model = Trigram(np.array(stream), 5)
    found = [probability(model, *history, c) for c in range(5)]
    assert found == pytest.approx([written_out(stream, 5, history, c) for c in range(5)], rel=1e-9)
    assert sum(found) == pytest.approx(1, rel=1e-12)
    assert min(found) >= 0


def test_a_stream_is_scored_token_by_token():
    stream = np.random.default_rng(0).integers(0, 4, 40)
    model = Trigram(stream[:20], 4)
    found = model.losses(stream)
    assert found == pytest.approx([-np.log(probability(model, *stream[i : i + 3])) for i in range(38)])


def test_counts_do_not_wrap_at_the_size_of_the_vocabulary():
    model = Trigram(np.array([8191, 8190, 8191, 8190, 8191], dtype=np.uint16), 8192)
    assert probability(model, 8191, 8190, 8191) > 0.3
