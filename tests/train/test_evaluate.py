"""Evaluation: what a perfect, a useless and a linear dictionary must score."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import Dictionary, InputStats, Step
from sae.latents import Latents
from sae.model import Subject
from train import evaluate


class Basis(Dictionary):
    """One latent a dimension: what is decoded is `gain * x + offset`."""

    def __init__(self, d: int, gain: float = 1.0, offset: Tensor | None = None) -> None:
        super().__init__()
        self.gain, self.offset = gain, torch.zeros(d) if offset is None else offset
        self.saw_autocast: list[bool] = []

    @property
    def directions(self) -> Tensor:
        return torch.eye(len(self.offset))

    def initialise(self, stats: InputStats, generator: torch.Generator) -> None:
        raise NotImplementedError

    def encode(self, x: Tensor) -> Latents:
        self.saw_autocast.append(torch.is_autocast_enabled("cpu"))
        n, d = x.shape
        flat = x.flatten()
        return Latents(flat, torch.arange(d).repeat(n), torch.arange(0, n * d + 1, d), flat, d)

    def decode(self, latents: Latents) -> Tensor:
        return self.gain * latents.dense() + self.offset

    def forward(self, x: Tensor, step: Step):
        raise NotImplementedError


SITE = "mlp_out.1"


@pytest.fixture(scope="module")
def rows(activation_store):
    return activation_store.split(SITE, "test")


@pytest.fixture(scope="module")
def mean(activation_store) -> Tensor:
    return torch.tensor(activation_store.box.facts["sites"][SITE]["mean"])


def splice(subject, dictionary, mean, tokens, skip=1, max_tokens=10_000):
    return evaluate.splice(subject, dictionary, SITE, mean, tokens.split("test"), skip, max_tokens, 64)


# --- reconstruct ---


def test_a_perfect_dictionary_has_no_error(rows):
    figures = evaluate.reconstruct(Basis(16), rows, torch.device("cpu")).result()
    assert figures["fvu"] == 0
    assert figures["cosine"] == pytest.approx(1)
    x = rows.read(0, rows.n_rows)
    assert figures["l0"] == pytest.approx((x > 0).sum().item() / len(x))


def test_figures_are_over_all_rows_however_they_are_read(rows, monkeypatch):
    dictionary = TopKSAE(TopKConfig(n_latents=32, k=4), 16)
    dictionary.initialise(InputStats(1.0, 1.0, torch.zeros(16)), torch.Generator().manual_seed(0))
    whole = evaluate.reconstruct(dictionary, rows, torch.device("cpu")).result()
    monkeypatch.setattr(evaluate, "ROWS", 7)
    assert evaluate.reconstruct(dictionary, rows, torch.device("cpu")).result() == pytest.approx(whole, rel=1e-6)
    x = rows.read(0, rows.n_rows)
    recon = dictionary.decode(dictionary.encode(x)).detach().double()
    expected = (x.double() - recon).square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert whole["fvu"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_limit_means_the_first_rows(rows):
    assert evaluate.reconstruct(Basis(16), rows, torch.device("cpu"), limit=10).moments.n_rows == 10
    assert evaluate.reconstruct(Basis(16), rows, torch.device("cpu"), limit=10**9).moments.n_rows == rows.n_rows


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was(rows, training):
    dictionary = Basis(16).train(training)
    evaluate.reconstruct(dictionary, rows, torch.device("cpu"))
    assert dictionary.training == training


# --- the linear rival ---


@pytest.mark.parametrize("k", [1, 3, 16, 40])
def test_pca_against_a_singular_value_decomposition(activation_store, rows, k, monkeypatch):
    monkeypatch.setattr(evaluate, "ROWS", 50)
    train = activation_store.split(SITE, "train")
    x, y = (s.read(0, s.n_rows).double().numpy() for s in (train, rows))
    centre = x.mean(0)
    components = np.linalg.svd(x - centre, full_matrices=False)[2][:k]
    rest = (y - centre) - (y - centre) @ components.T @ components
    expected = (rest**2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert evaluate.pca_fvu(train, rows, k) == pytest.approx(expected, rel=1e-8, abs=1e-12)


# --- splice ---


def test_the_identity_changes_nothing(subject, token_store, mean):
    figures = splice(subject, Basis(16), mean, token_store)
    assert figures["ce"]["spliced"] == figures["ce"]["clean"], "bit for bit"
    assert figures["ce_recovered"] == figures["ce_recovered_zero"] == 1
    assert figures["kl"] == 0
    assert figures["ce"]["mean_ablated"] != figures["ce"]["clean"]


def test_the_mean_recovers_nothing(subject, token_store, mean):
    figures = splice(subject, Basis(16, gain=0.0, offset=mean), mean, token_store)
    assert figures["ce"]["spliced"] == figures["ce"]["mean_ablated"]
    assert figures["ce_recovered"] == 0
    assert figures["kl"] == figures["kl_mean_ablated"] > 0


def test_zero_recovers_nothing_against_zero(subject, token_store, mean):
    figures = splice(subject, Basis(16, gain=0.0), mean, token_store)
    assert figures["ce"]["spliced"] == figures["ce"]["zero_ablated"]
    assert figures["ce_recovered_zero"] == 0


def test_clean_loss_is_that_of_a_plain_forward_pass(subject, token_store, mean):
    split = token_store.split("test")
    n = len(split.tokens) // 16
    ids = torch.from_numpy(split.tokens[: 16 * n].astype(np.int64)).view(n, 16)
    logits = subject.model(input_ids=ids).logits[:, :-1].double()
    expected = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    figures = splice(subject, Basis(16), mean, token_store)
    assert figures["ce"]["clean"] == pytest.approx(expected.item(), rel=1e-5)
    assert figures["tokens"] == n * 15


def test_the_effect_of_a_half_by_hand(subject, token_store, mean, gpt2):
    """Half the MLP's output on all but the first position of each context."""
    split = token_store.split("test")
    n = len(split.tokens) // 16
    ids = torch.from_numpy(split.tokens[: 16 * n].astype(np.int64)).view(n, 16)

    def halve(_module, _args, out):
        return torch.cat([out[:, :1], out[:, 1:] / 2], dim=1)

    clean = subject.model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
    handle = gpt2.transformer.h[1].mlp.register_forward_hook(halve)
    changed = subject.model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
    handle.remove()
    figures = splice(subject, Basis(16, gain=0.5), mean, token_store)
    loss = -changed.gather(-1, ids[:, 1:, None]).mean().item()
    assert figures["ce"]["spliced"] == pytest.approx(loss, rel=1e-5)
    kl = (clean.exp() * (clean - changed)).sum(-1).mean().item()
    assert figures["kl"] == pytest.approx(kl, rel=1e-4)


def test_skipping_every_position_but_the_last_changes_no_prediction(subject, token_store, mean):
    """The last position predicts nothing, so what is put in there is not seen."""
    split = token_store.split("test")
    assert np.diff(split.context_starts).max() == 16
    with pytest.raises(ZeroDivisionError):
        splice(subject, Basis(16, gain=0.0), mean, token_store, skip=15)


def test_no_more_tokens_than_asked_for(subject, token_store, mean):
    assert splice(subject, Basis(16), mean, token_store, max_tokens=40)["tokens"] == 30, "2 contexts of 15 predictions"
    assert splice(subject, Basis(16), mean, token_store, max_tokens=1)["tokens"] == 15, "one at least"


def test_the_dictionary_computes_in_float32_whatever_the_network_does(subject, token_store, mean):
    half = Subject("tiny", subject.model, subject.tokenizer, subject.digest, "bfloat16", subject.device)
    dictionary = Basis(16)
    figures = splice(half, dictionary, mean, token_store, max_tokens=32)
    assert figures["ce"]["spliced"] == figures["ce"]["clean"]
    assert dictionary.saw_autocast == [False]
