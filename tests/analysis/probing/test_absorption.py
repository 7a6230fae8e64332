"""Absorption that was planted: its rate, its absence, and a network that cannot spell."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn.functional import normalize

from analysis.probing.absorption import Words, absorbed, absorption, words_of
from analysis.quality.sample import sample
from sae.architectures.configs import ReLUConfig
from sae.architectures.relu import ReLUSAE
from sae.dictionary import Dictionary, InputStats, Shape, Step
from sae.latents import Latents
from sae.store import Pairs, Places
from sae.tokens import TokenSplit

LETTERS = "abcdefghijkl"
N_WORDS, N_TESTED = 40, 8  # of each letter; the last are only tested on
D = 20  # of what a word is beside its letter
WORD = np.arange(len(LETTERS) * N_WORDS)
LETTER = WORD // N_WORDS
IS_ABSORBED = np.isin(WORD % N_WORDS, [0, 1, 2, 3, N_WORDS - 2, N_WORDS - 1])
"""Six of each letter's words, two of them among the eight that are tested."""


def meanings() -> torch.Tensor:
    return normalize(torch.randn(len(WORD), D, generator=torch.Generator().manual_seed(0)), dim=1)


def spelling(knows: bool = True) -> torch.Tensor:
    """A row for each word: its letter, and what else it is; in a network that cannot spell any letter."""
    letters = LETTER if knows else np.random.default_rng(0).permutation(LETTER)
    return torch.cat([torch.eye(len(LETTERS))[torch.from_numpy(letters)], meanings()], dim=1)


class Planted(Dictionary):
    """A latent for each letter and for each word. Where it is absorbing, that of a letter is silent on the absorbed
    words, whose own latents write the letter too."""

    def __init__(self, is_absorbing: bool) -> None:
        super().__init__()
        self.shape, self.is_absorbing = Shape((len(LETTERS) + D,)), is_absorbing

    @property
    def directions(self) -> Tensor:
        words = torch.cat([torch.zeros(len(WORD), len(LETTERS)), meanings()], dim=1)
        if self.is_absorbing:
            absorbed = WORD[IS_ABSORBED]
            words[absorbed, LETTER[absorbed]] = 1.0
        return torch.cat([torch.eye(len(LETTERS), len(LETTERS) + D), words])

    def encode(self, x: Tensor) -> Latents:
        words = (x[:, len(LETTERS) :] @ meanings().T).argmax(1).numpy()
        is_silent = IS_ABSORBED[words] if self.is_absorbing else np.zeros(len(words), dtype=bool)
        values = torch.ones(len(x), 2)
        values[torch.from_numpy(is_silent), 0] = 0.0
        indices = torch.from_numpy(np.stack([LETTER[words], len(LETTERS) + words], axis=1)).flatten()
        offsets = torch.arange(0, 2 * len(x) + 1, 2)
        return Latents(values.flatten(), indices, offsets, values.flatten(), len(LETTERS) + len(WORD))

    def decode(self, latents: Latents) -> Tensor:
        return latents.dense() @ self.directions

    def initialise(self, stats: InputStats, generator: torch.Generator) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor, target: Tensor, step: Step):
        raise NotImplementedError


@pytest.fixture(scope="module")
def run(make_rows: Callable) -> Callable[..., dict]:
    """`run(is_absorbing, knows)`: the record of words that each stand once in fit or in test."""

    def of(is_absorbing: bool, knows: bool = True) -> dict:
        is_test = WORD % N_WORDS >= N_WORDS - N_TESTED
        x, rows, words = spelling(knows), {}, {}
        for split, kept in (("fit", ~is_test), ("test", is_test)):
            n = int(kept.sum())
            rows[split] = Pairs(make_rows(x[torch.from_numpy(kept)]), ("x",), Places(("x",)))
            words[split] = Words(np.arange(n), WORD[kept], np.array(list(LETTERS))[LETTER[kept]])
        return absorption(Planted(is_absorbing), rows, words, n_resamples=200, seed=0)

    return of


def test_what_was_planted_is_found(run):
    found = run(is_absorbing=True)
    assert found["is_meaningful"]
    assert len(found["eval_result_details"]) == len(LETTERS)
    for number, detail in enumerate(found["eval_result_details"]):
        assert detail["probe_f1"] == 1
        assert detail["split_latents"] == [number]
        assert (detail["num_full_absorption"], detail["num_probe_true_positives"]) == (2, 8)
        assert detail["mean_absorption_fraction"] == pytest.approx(0.25)
    assert found["eval_result_metrics"]["mean"] == {
        **{"mean_absorption_fraction_score": 0.25, "std_dev_absorption_fraction_score": 0},
        **{"mean_full_absorption_score": 0.25, "std_dev_full_absorption_score": 0},
        **{"mean_num_split_features": 1, "std_dev_num_split_features": 0},
    }
    pooled = found["eval_result_unstructured"]["over_all_words"]["full_absorption"]
    assert pooled["value"] == 0.25
    # of 96 words: .25 ± 1.96 sqrt(.25 * .75 / 96)
    assert pooled["interval"] == pytest.approx([0.25 - 0.087, 0.25 + 0.087], abs=0.03)


def test_nothing_is_found_where_nothing_was_planted(run):
    found = run(is_absorbing=False)
    assert found["is_meaningful"]
    assert found["eval_result_metrics"]["mean"]["mean_full_absorption_score"] == 0
    assert found["eval_result_metrics"]["mean"]["mean_absorption_fraction_score"] == 0


def test_a_network_that_cannot_spell_has_nothing_to_absorb(run):
    found = run(is_absorbing=True, knows=False)
    assert not found["is_meaningful"]
    assert found["eval_result_metrics"] == {"mean": {}}
    assert "with an F1 of 0.6 at least, for 0 of 12 letters" in found["why_not"]


def test_a_transcoder_is_not_asked():
    transcoder = ReLUSAE(ReLUConfig(n_latents=4, pre_bias=False), Shape((2,), (2,)))
    assert "writes elsewhere" in absorption(transcoder, {}, {}, 10, 0)["why_not"]


def test_fractions_by_hand():
    """p = (1, 0). Latent 0 is the letter's, 1 and 2 write along p too, 3 against it, 4 across."""
    own = ReLUSAE(ReLUConfig(n_latents=5, normalise="none"), Shape((2,)))
    own.W_dec.data = torch.tensor([[1.0, 0], [0.6, 0.8], [0.5, 0], [-1, 0], [0, 1]])
    values = np.array(
        [
            [1.0, 0, 0, 0, 0],  # the letter's latent says it all
            [0.5, 1.0, 0, 0, 0],  # 0.6 of others, of which 0.5 are wanting: 0.5 / (0.5 + 0.5)
            [0, 1.0, 0, 0, 1.0],  # silent; 0.6 of x . p = 1 is one other's: full
            [0, 0.5, 0.2, 0, 0],  # silent; 0.3 + 0.1 of others are just enough, but no one's
            [0, 0.5, 0, 0, 2.0],  # silent, but the others write 0.3 of 1: no absorption
            [0.2, 0, 0, 3.0, 0],  # what writes against p is no absorber
        ]
    )
    full, fractions = absorbed(own, np.array([1.0, 0]), np.array([0]), csr_matrix(values), np.ones((6, 2)))
    assert full.tolist() == [False, False, True, False, False, False]
    assert fractions.tolist() == pytest.approx([0, 0.5, 1, 1, 0, 0])


def test_words_where_they_stand():
    strings = ("<s>", " sea", " Sea", "sea", " see", " a", " 12", " sun", " sky", " tea")
    tokens = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 6, dtype=np.uint16)
    starts = np.array([0, 30, 60])
    text = sample(TokenSplit("fit", tokens, starts, starts, {}), 1, 100)
    both = [words_of(text, strings, 1, 0, is_test) for is_test in (False, True)]
    seen = [set(tokens[own.rows + 1 + (own.rows >= 29)].tolist()) for own in both]
    assert seen[0] | seen[1] == {1, 2, 4, 7, 8, 9}, "word beginnings of two letters at least"
    assert not seen[0] & seen[1]
    for own in both:
        assert np.bincount(own.words).max(initial=0) <= 8, "“sea” and “Sea”, one word, stand twelve times"
        assert (np.diff(own.rows) > 0).all()
    assert set(both[0].letters) | set(both[1].letters) == {"s", "t"}
