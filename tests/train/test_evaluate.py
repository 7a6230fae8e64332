"""Evaluation: what a perfect, a useless and a linear dictionary must score."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae.architectures.configs import TopKConfig
from sae.architectures.topk import TopKSAE
from sae.dictionary import Dictionary, InputStats, Shape, Step
from sae.latents import Latents
from sae.metrics import Reconstruction
from sae.model import Subject
from sae.scaling import SiteStats
from sae.store import Pairs, Places
from train import evaluate


class Basis(Dictionary):
    """One latent a dimension: what is decoded is `gain * x + offset`."""

    def __init__(self, d: int, gain: float = 1.0, offset: Tensor | None = None) -> None:
        super().__init__()
        self.shape = Shape((d,))
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

    def forward(self, x: Tensor, target: Tensor, step: Step):
        raise NotImplementedError


SITE = "mlp_out.1"
AT = Places((SITE,))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(activation_store) -> Pairs:
    return activation_store.pairs(AT, "test")


@pytest.fixture(scope="module")
def mean(activation_store) -> Tensor:
    return activation_store.mean(SITE)


def splice(subject, dictionary, mean, tokens, skip=1, max_tokens=10_000):
    return evaluate.splice(subject, dictionary, AT, {SITE: mean}, tokens.split("test"), skip, max_tokens, 64)


# --- reconstruct ---


def test_a_perfect_dictionary_has_no_error(rows):
    figures = evaluate.reconstruct(Basis(16), rows, CPU).result()
    assert figures["fvu"] == 0
    assert figures["cosine"] == pytest.approx(1)
    x, _ = rows.read(0, rows.n_rows)
    assert figures["l0"] == pytest.approx((x > 0).sum().item() / len(x))


def test_figures_are_over_all_rows_however_they_are_read(rows, monkeypatch):
    dictionary = TopKSAE(TopKConfig(n_latents=32, k=4), Shape((16,)))
    x, _ = rows.read(0, rows.n_rows)
    site = (SiteStats(16, mean_norm=4.0, mean_square=16.0),)
    dictionary.initialise(InputStats(site, site, x, x), torch.Generator().manual_seed(0))
    whole = evaluate.reconstruct(dictionary, rows, CPU).result()
    monkeypatch.setattr(evaluate, "ROWS", 7)
    assert evaluate.reconstruct(dictionary, rows, CPU).result() == pytest.approx(whole, rel=1e-6)
    recon = dictionary.decode(dictionary.encode(x)).detach().double()
    expected = (x.double() - recon).square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert whole["fvu"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_limit_means_the_first_rows(rows):
    assert evaluate.reconstruct(Basis(16), rows, CPU, limit=10).moments.n_rows == 10
    assert evaluate.reconstruct(Basis(16), rows, CPU, limit=10**9).moments.n_rows == rows.n_rows


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was(rows, training):
    dictionary = Basis(16).train(training)
    evaluate.reconstruct(dictionary, rows, CPU)
    assert dictionary.training == training


# --- the linear rival ---


@pytest.mark.parametrize("k", [1, 3, 16, 40])
def test_pca_against_a_singular_value_decomposition(activation_store, rows, k, monkeypatch):
    monkeypatch.setattr(evaluate, "ROWS", 50)
    train = activation_store.pairs(AT, "train")
    x, y = (pairs.read(0, pairs.n_rows)[0].double().numpy() for pairs in (train, rows))
    centre = x.mean(0)
    components = np.linalg.svd(x - centre, full_matrices=False)[2][:k]
    rest = (y - centre) - (y - centre) @ components.T @ components
    expected = (rest**2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert evaluate.pca_fvu(train, rows, k) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("k", [1, 5, 16])
def test_a_transcoders_linear_rival_against_reduced_rank_regression(activation_store, k, monkeypatch):
    """Least squares on the rows themselves, then the best rank-k approximation of what is predicted for them."""
    monkeypatch.setattr(evaluate, "ROWS", 50)
    places = Places(("resid_post.0",), (SITE,))
    train, held_out = (activation_store.pairs(places, split) for split in ("train", "test"))
    (x, y), (x_new, y_new) = ([part.double().numpy() for part in p.read(0, p.n_rows)] for p in (train, held_out))
    full = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=None)[0]
    top = np.linalg.svd((x - x.mean(0)) @ full, full_matrices=False)[2][:k]
    rest = y_new - y.mean(0) - (x_new - x.mean(0)) @ full @ top.T @ top
    expected = (rest**2).sum() / ((y_new - y_new.mean(0)) ** 2).sum()
    assert evaluate.pca_fvu(train, held_out, k) == pytest.approx(expected, rel=1e-6)


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


# --- splice at other places ---

BOTH = Places(("resid_post.0", SITE))


def splice_at(places, subject, dictionary, store, tokens, **choice):
    means = {site: store.mean(site) for site in places.written}
    arguments = {"skip": 1, "max_tokens": 10_000, "batch_tokens": 64, **choice}
    return evaluate.splice(subject, dictionary, places, means, tokens.split("test"), **arguments)


def test_the_identity_on_two_sites_changes_nothing(subject, token_store, activation_store):
    figures = splice_at(BOTH, subject, Basis(32), activation_store, token_store)
    assert figures["ce"]["spliced"] == figures["ce"]["clean"], "bit for bit"
    assert figures["ce_recovered"] == 1


def test_the_means_of_two_sites_recover_nothing(subject, token_store, activation_store):
    offset = torch.cat([activation_store.mean(site) for site in BOTH.inputs])
    figures = splice_at(BOTH, subject, Basis(32, 0.0, offset), activation_store, token_store)
    assert figures["ce"]["spliced"] == figures["ce"]["mean_ablated"]
    assert figures["ce_recovered"] == 0


def test_two_sites_are_read_in_the_clean_run_and_written_at_once(subject, token_store, activation_store, gpt2):
    """Half of both. The MLP sees a halved stream, but what is written for it is half of its clean output."""
    split = token_store.split("test")
    n = len(split.tokens) // 16
    ids = torch.from_numpy(split.tokens[: 16 * n].astype(np.int64)).view(n, 16)
    block, mlp, seen = gpt2.transformer.h[0], gpt2.transformer.h[1].mlp, []
    handle = mlp.register_forward_hook(lambda _module, _args, out: seen.append(out))
    subject.model(input_ids=ids)
    handle.remove()

    def half(new, old):
        return torch.cat([old[:, :1], new[:, 1:] / 2], dim=1)

    handles = [
        block.register_forward_hook(
            lambda _module, _args, out: half(out, out) if torch.is_tensor(out) else (half(out[0], out[0]), *out[1:])
        ),
        mlp.register_forward_hook(lambda _module, _args, out: half(seen[0], out)),
    ]
    changed = subject.model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    figures = splice_at(BOTH, subject, Basis(32, 0.5), activation_store, token_store)
    loss = -changed.gather(-1, ids[:, 1:, None]).mean().item()
    assert figures["ce"]["spliced"] == pytest.approx(loss, rel=1e-5)


def test_a_transcoder_writes_at_its_target(subject, token_store, activation_store, mean):
    """One that writes the target's mean whatever it reads is the ablation by the mean."""
    places = Places(("resid_post.0",), (SITE,))
    figures = splice_at(places, subject, Basis(16, 0.0, mean), activation_store, token_store)
    assert figures["ce"]["spliced"] == figures["ce"]["mean_ablated"]
    plain = splice(subject, Basis(16, 0.0, mean), mean, token_store)
    assert figures["ce"]["mean_ablated"] == plain["ce"]["mean_ablated"]


# --- by document ---


def test_chosen_rows_in_groups(rows):
    """Rows 2:5 and 8:11 of the split, of groups 0 0 0 1 1 1."""
    bounds, groups = [(2, 5), (8, 11)], torch.tensor([0, 0, 0, 1, 1, 1])
    figures = Reconstruction(n_groups=2)
    evaluate.compare(Basis(16, gain=0.5), rows, bounds, figures, CPU, groups)
    x = torch.cat([rows.read(*bound)[0] for bound in bounds]).double()
    lost = (0.5 * x).square().sum(1).view(2, 3).sum(1)
    assert figures.sums.by_group["error"].tolist() == pytest.approx(lost.tolist(), rel=1e-6)
    assert figures.moments.n_rows == 6


def test_a_rival_on_some_rows_only(activation_store, rows):
    train = activation_store.pairs(AT, "train")
    some = evaluate.pca_fvu(train, rows, 3, bounds=[(0, 20)])
    assert some != evaluate.pca_fvu(train, rows, 3) == evaluate.pca_fvu(train, rows, 3, bounds=[(0, rows.n_rows)])


def test_losses_belong_to_the_document_of_the_token_that_is_predicted(subject, token_store, mean):
    split = token_store.split("test")
    contexts, documents = np.arange(split.n_contexts), split.locate(np.arange(len(split.tokens)))[0]
    sums = evaluate.spliced(
        subject, Basis(16, gain=0.5), AT, {SITE: mean}, split, 1, 64, contexts, torch.from_numpy(documents)
    )
    n, clean = np.zeros(4), np.zeros(4)
    for start, stop in zip(split.context_starts[:-1], split.context_starts[1:], strict=True):
        ids = torch.from_numpy(split.tokens[start:stop].astype(np.int64))[None]
        losses = cross_entropy(subject.model(input_ids=ids).logits[0, :-1].double(), ids[0, 1:], reduction="none")
        np.add.at(n, documents[start + 1 : stop], 1)
        np.add.at(clean, documents[start + 1 : stop], losses.numpy())
    assert sums.by_group["tokens"].tolist() == n.tolist()
    assert sums.by_group["clean"].tolist() == pytest.approx(clean.tolist(), rel=1e-5)
    assert len(set(np.diff(split.context_starts))) > 1, "the last context is shorter, and counts"
    whole = evaluate.spliced(subject, Basis(16, gain=0.5), AT, {SITE: mean}, split, 1, 1000, contexts)
    for name, total in whole.total().items():
        assert sums.total()[name] == pytest.approx(total, rel=1e-5), name
