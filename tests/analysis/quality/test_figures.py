"""Figures under SAEBench's names: worked numbers, their intervals, and what has none."""

import numpy as np
import pytest
import torch

from analysis.quality.figures import Figure, intervals, of_densities, of_network, of_rows, plain, values
from analysis.quality.geometry import geometry, spread
from sae.architectures.configs import MatchingPursuitConfig, TopKConfig
from sae.architectures.matching_pursuit import MatchingPursuitSAE
from sae.architectures.topk import TopKSAE
from sae.dictionary import Shape
from sae.latents import Latents
from sae.metrics import Reconstruction
from sae.sums import Sums


def one_latent(values: list[float]) -> Latents:
    n = len(values)
    return Latents(torch.tensor(values), torch.zeros(n, dtype=torch.long), torch.arange(n + 1), torch.tensor(values), 1)


def test_rows_under_saebenchs_names():
    # documents of two rows each; every row has a norm of 1, and 0, 0, 1, 1 of it is lost
    found = Reconstruction(torch.zeros(2, dtype=torch.float64), n_groups=2)
    x = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    recon = torch.tensor([[1.0, 0], [-1, 0], [0, 0], [0, 0]])
    found.update(x, recon, one_latent([2.0, 2.0, 0.0, 4.0]), torch.tensor([0, 0, 1, 1]))
    figures = of_rows(found, np.array([[1.0, 1.0], [2, 0], [0, 2]]))
    quality = figures["reconstruction_quality"]
    assert quality["explained_variance"].value == quality["fvu"].value == 0.5
    # of the draws .5, 0 and 1: the quantiles of three numbers lie a twentieth from the ends
    assert quality["fvu"].interval == pytest.approx((0.025, 0.975))
    assert quality["mse"].value == 0.5
    assert quality["cossim"].value == 0.5
    assert figures["shrinkage"]["l2_norm_in"].value == 1
    assert figures["shrinkage"]["l2_norm_in"].interval == (1, 1)
    assert figures["shrinkage"]["relative_reconstruction_bias"].value == 1
    assert figures["sparsity"]["l0"].value == 0.75
    assert figures["sparsity"]["l1"].value == 2


def test_the_network_against_both_ablations():
    sums = Sums(2)
    one = torch.ones(4, dtype=torch.float64)
    terms = {"clean": 2 * one, "spliced": 2.5 * one, "mean_ablated": 4 * one, "zero_ablated": 7 * one, "tokens": one}
    kl = {"kl_spliced": 0.25 * one, "kl_mean_ablated": one, "kl_zero_ablated": 2 * one}
    sums.add({**terms, **kl}, torch.tensor([0, 0, 1, 1]))
    figures = of_network(sums, np.array([[1.0, 1], [2, 0]]))
    performance = {name: figure.value for name, figure in figures["model_performance_preservation"].items()}
    assert performance == {
        **{"ce_loss_score": 0.9, "ce_loss_with_ablation": 7, "ce_loss_with_sae": 2.5, "ce_loss_without_sae": 2},
        **{"ce_loss_score_mean_ablation": 0.75, "ce_loss_with_mean_ablation": 4, "ce_loss_added": 0.5},
    }
    behaviour = {name: figure.value for name, figure in figures["model_behavior_preservation"].items()}
    assert behaviour == {
        **{"kl_div_score": 0.875, "kl_div_with_ablation": 2, "kl_div_with_sae": 0.25},
        **{"kl_div_score_mean_ablation": 0.75, "kl_div_with_mean_ablation": 1},
    }
    assert figures["model_performance_preservation"]["ce_loss_added"].interval == (0.5, 0.5)


def test_the_interval_of_a_difference_is_of_the_same_tokens():
    """Losses of two documents differ by 4 nats, what the dictionary adds hardly at all."""
    sums = Sums(2)
    clean = torch.tensor([1.0, 5.0], dtype=torch.float64)
    terms = {"clean": clean, "spliced": clean + 0.1, "mean_ablated": clean + 1, "zero_ablated": clean + 2}
    kl = {"kl_spliced": clean, "kl_mean_ablated": clean, "kl_zero_ablated": clean}
    sums.add({**terms, **kl, "tokens": torch.ones(2)}, torch.tensor([0, 1]))
    figures = of_network(sums, np.array([[2.0, 0], [0, 2], [1, 1]]))["model_performance_preservation"]
    assert figures["ce_loss_without_sae"].interval == pytest.approx((1.1, 4.9))
    assert figures["ce_loss_added"].interval == pytest.approx((0.1, 0.1))
    assert figures["ce_loss_score"].interval == pytest.approx((0.95, 0.95))


def test_an_ablation_that_does_no_harm_leaves_nothing_to_recover():
    sums = Sums(1)
    names = ("clean", "spliced", "mean_ablated", "zero_ablated", "tokens")
    sums.add({**{name: torch.ones(3) for name in names}, **dict.fromkeys(KL, torch.zeros(3))})
    figures = of_network(sums, np.ones((4, 1)))
    assert figures["model_performance_preservation"]["ce_loss_score"] == Figure(None, None)
    assert figures["model_behavior_preservation"]["kl_div_score"] == Figure(None, None)


KL = ("kl_spliced", "kl_mean_ablated", "kl_zero_ablated")


def test_shares_of_latents():
    # densities 0, .5 %, 2 %, 20 %, in all .225; two fire on more than 1 %, one on more than 10 %
    shares = of_densities(np.array([0.0, 0.005, 0.02, 0.2]))
    assert shares["frac_alive"].value == 0.75
    assert (shares["freq_over_1_percent"].value, shares["freq_over_10_percent"].value) == (0.5, 0.25)
    assert shares["normalized_freq_over_1_percent"].value == pytest.approx(0.22 / 0.225)
    assert shares["normalized_freq_over_10_percent"].value == pytest.approx(0.2 / 0.225)
    assert shares["frac_alive"].interval is None
    assert of_densities(np.zeros(2))["normalized_freq_over_1_percent"].value == 0


def test_numbers_and_intervals_apart():
    figures = plain({"a": {"x": Figure(1.0, (0.5, 1.5)), "y": Figure(2.0)}, "b": {"z": Figure(None)}})
    assert values(figures) == {"a": {"x": 1.0, "y": 2.0}, "b": {"z": None}}
    assert intervals(figures) == {"a": {"x": [0.5, 1.5]}}


# --- geometry ---


def topk(W_enc: list[list[float]], W_dec: list[list[float]]) -> TopKSAE:
    dictionary = TopKSAE(TopKConfig(n_latents=len(W_enc), k=1), Shape((2,)))
    dictionary.W_enc.data, dictionary.W_dec.data = torch.tensor(W_enc), torch.tensor(W_dec)
    return dictionary


def test_directions_by_hand():
    # rows at 0°, 60° and 180°: the nearest are at 60°, 60° and 120°
    half = 3**0.5 / 2
    found = geometry(topk([[1.0, 0], [0, 2], [1, 0]], [[3.0, 0], [0.5, half], [-1, 0]]))
    assert found.max_decoder_cosine_sim.tolist() == pytest.approx([0.5, 0.5, -0.5], abs=1e-6)
    assert found.max_encoder_cosine_sim is not None
    assert found.max_encoder_cosine_sim.tolist() == pytest.approx([1, 0, 1], abs=1e-6)
    assert found.encoder_decoder_cosine_sim is not None
    assert found.encoder_decoder_cosine_sim.tolist() == pytest.approx([1, half, -1], abs=1e-6)


def test_what_a_dictionary_has_not_is_not_told():
    transcoder = TopKSAE(TopKConfig(n_latents=4, k=1, pre_bias=False), Shape((2,), (3,)))
    assert sorted(geometry(transcoder).columns()) == ["max_decoder_cosine_sim", "max_encoder_cosine_sim"]
    pursuit = MatchingPursuitSAE(MatchingPursuitConfig(n_latents=4, k=1), Shape((2,)))
    assert sorted(geometry(pursuit).columns()) == ["max_decoder_cosine_sim"]


def test_a_spread():
    found = spread(np.array([-1.0, 0.0, 0.04, 1.0, 1.0000001]))
    assert (found["counts"][0], found["counts"][20], found["counts"][-1]) == (1, 2, 2)
    assert sum(found["counts"]) == 5
    assert found["edges"][0] == -1 and found["edges"][20] == 0 and found["edges"][-1] == 1
    assert found["quantiles"]["0.5"] == 0.04
    assert found["mean"] == pytest.approx(0.208)
