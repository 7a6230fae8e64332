"""A small town of texts in which the rule behind every latent is known."""

from collections.abc import Callable

import numpy as np
import pytest

from analysis.codes import Codes
from analysis.splits import FitView, SelectView, TestView, View
from sae.tokens import TokenSplit

FILLER = [
    " the",
    " a",
    " man",
    " woman",
    " ran",
    " and",
    " said",
    " house",
    " saw",
    " red",
    " cat",
    " it",
    " very",
    ".",
]
STRINGS = (
    "<|endoftext|>",
    *FILLER,
    *(f" {n}" for n in range(100, 130)),
    *(" dog", "Dog", " dogs", " of", " University", " town", " (", ")", "\n"),
    *(" court", " judge", " plaintiff", " statute"),
)
ID = {text: token for token, text in enumerate(STRINGS)}
LEGAL = [ID[text] for text in (" court", " judge", " plaintiff", " statute")]
NUMBERS = [ID[f" {n}"] for n in range(100, 130)]
LENGTH = 96
VIEWS = {"fit": FitView, "select": SelectView, "test": TestView}


def tokens_of(n_documents: int, seed: int) -> np.ndarray:
    """`[n_documents, LENGTH]`: every third document is of law."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice([ID[text] for text in FILLER], size=(n_documents, LENGTH))
    rare = [ID[text] for text in (" dog", "Dog", " dogs", " of", " University", " town", "\n")]
    tokens = np.where(rng.random(tokens.shape) < 0.25, rng.choice(rare, size=tokens.shape), tokens)
    tokens = np.where(rng.random(tokens.shape) < 0.1, rng.choice(NUMBERS, size=tokens.shape), tokens)
    law = (np.arange(n_documents) % 3 == 0)[:, None] & (rng.random(tokens.shape) < 0.15)
    tokens = np.where(law, rng.choice(LEGAL, size=tokens.shape), tokens)
    after_university = rng.random(tokens.shape) < 0.6
    after_university[:, 0] = False
    tokens = np.where(after_university & (np.roll(tokens, 1, axis=1) == ID[" University"]), ID[" of"], tokens)
    for document in tokens:
        start = rng.integers(20, 60)
        inner = document[start + 1 : start + 12]
        document[start], document[start + 12] = ID[" ("], ID[")"]
        inner[inner == ID["\n"]] = ID[" the"]
    tokens[:, 0] = 0
    return tokens


def codes_of(fires: list[np.ndarray], seed: int) -> Codes:
    """Codes from masks `[n]`, one a latent; activations are drawn from [1, 2)."""
    positions = [np.flatnonzero(mask) for mask in fires]
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in positions])])
    values = 1 + np.random.default_rng(seed).random(offsets[-1])
    return Codes(offsets, np.concatenate(positions).astype(np.int32), values.astype(np.float32))


def view_of(name: str, tokens: np.ndarray, fires: Callable[[np.ndarray], list[np.ndarray]], seed: int = 0) -> View:
    """A view over documents `[d, LENGTH]`, a context each, with the latents `fires(tokens)`."""
    starts = np.arange(len(tokens) + 1) * LENGTH
    flat = tokens.reshape(-1)
    split = TokenSplit(name, flat.astype(np.uint16), starts, starts, {})
    return VIEWS[name].of(split, codes_of(fires(flat), seed), STRINGS, skip_positions=1)


@pytest.fixture(scope="session")
def town() -> Callable[..., tuple[View, View, View]]:
    """`town(fires)`: the fit, select and test views of latents that fire where `fires` says."""

    def build(fires: Callable[[np.ndarray], list[np.ndarray]]) -> tuple[View, View, View]:
        sizes = {"fit": 60, "select": 40, "test": 40}
        fit, select, test = (view_of(name, tokens_of(n, i), fires, i) for i, (name, n) in enumerate(sizes.items()))
        return fit, select, test

    return build


@pytest.fixture(scope="session")
def ids() -> dict[str, int]:
    return ID
