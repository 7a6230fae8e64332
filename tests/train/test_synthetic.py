"""Synthetic: frequencies, pairs and magnitudes against formulas written out or integrated by scipy.

A frequency counted on n rows may differ from its chance p by 5 sqrt(p (1 - p) / n), of which one in
1.7 million would by accident; seeds are fixed, so what passes once passes always.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import multivariate_normal, norm

from sae.config import parse
from sae.errors import ConfigError
from sae.latents import Latents
from sae.store import DTYPES
from train import synthetic as module
from train.synthetic import SMALL, SYNTH_SAE_BENCH_16K, Synthetic, SyntheticConfig, orthogonalise, store

ROWS = 4096


def tiny(**choices) -> SyntheticConfig:
    """14 features in d = 8, independent unless asked: two trees of 2 children and 4 grandchildren."""
    plain = {"n_features": 14, "d_in": 8, "p_max": 0.4, "p_min": 0.05, "rank": 0, "orthogonal_steps": 0}
    return SyntheticConfig(**{**plain, "n_roots": 2, "branching": 2, "depth": 2, **choices})


def fires(world: Synthetic, n_batches: int) -> torch.Tensor:
    """`[n_batches * ROWS, n_features]`: where features fire."""
    return magnitudes(world, n_batches) > 0


def magnitudes(world: Synthetic, n_batches: int) -> torch.Tensor:
    return torch.cat([world.sample(step, ROWS).features.dense() for step in range(n_batches)])


def agree(found: torch.Tensor, chance) -> None:
    """Frequencies in the columns of `found` (bool) are those of `chance`."""
    p, n = torch.as_tensor(np.asarray(chance)), len(found)
    z = (found.double().mean(0) - p) / (p * (1 - p) / n).sqrt().clamp_min(1e-12)
    assert z.abs().max() < 5, f"{z.abs().max():.1f} standard errors away"


# --- the world ---


def test_zipf():
    # 1/rank: 1, 1/2, 1/3, 1/4 -> less 1/4, over 3/4: 1, 1/3, 1/9, 0 -> .1 + .3 of these
    cfg = SyntheticConfig(n_features=4, d_in=2, p_max=0.4, p_min=0.1, zipf=1.0, n_roots=0)
    expected = torch.tensor([0.4, 0.2, 0.1 + 0.1 / 3, 0.1], dtype=torch.float64)
    torch.testing.assert_close(Synthetic(cfg, 0).probabilities, expected)


def test_a_forest_is_numbered_breadth_first():
    cfg = tiny(n_features=16)
    assert (cfg.n_parents, cfg.n_tree) == (6, 14)  # 2 roots and 4 children; with 8 grandchildren
    assert Synthetic(cfg, 0).parents.tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, -1, -1]


def test_compensation():
    # a root of p = .5 with children .2, .05: chances .4 and .1 where it fires; .4 * 1.1 and .1 * 1.4 if exclusive
    def chances(**choices) -> torch.Tensor:
        cfg = tiny(n_features=3, n_roots=1, depth=1, **choices)
        return module._given_parent(cfg, torch.tensor([0.5, 0.2, 0.05], dtype=torch.float64))

    for choices, expected in (
        ({}, [0.5, 0.44, 0.14]),
        ({"is_exclusive": False}, [0.5, 0.4, 0.1]),
        ({"is_compensated": False}, [0.5, 0.2, 0.05]),
    ):
        torch.testing.assert_close(chances(**choices), torch.tensor(expected, dtype=torch.float64))


def test_a_chance_is_at_most_1():
    # child .3 of a parent .4, sibling .3: .75 * 1.75
    cfg = tiny(n_features=3, n_roots=1, depth=1)
    given_parent = module._given_parent(cfg, torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64))
    assert given_parent.tolist() == [0.4, 1.0, 1.0]


def test_common_factors_leave_a_feature_some_variance_of_its_own():
    cfg = SyntheticConfig(n_features=50, d_in=2, n_roots=0, rank=4, correlation=0.5)
    common = Synthetic(cfg, 0).loadings.square().sum(1)  # 1 on average
    assert common.max().item() == pytest.approx(0.99)
    assert (common < 0.98).any()


@pytest.mark.slow
def test_the_benchmark():
    cfg = SYNTH_SAE_BENCH_16K
    assert (cfg.n_parents, cfg.n_tree) == (128 * (1 + 4 + 16), 128 * (1 + 4 + 16 + 64))
    world = Synthetic(SyntheticConfig(orthogonal_steps=0), 42)
    assert world.means[[0, -1]].tolist() == [5.0, 4.0]
    # |N(.5, .5^2)|: mean .5 (1 + 2 (phi(1) - (1 - Phi(1)))) = .58332, mean square .5
    assert world.stds.mean().item() == pytest.approx(0.58332, abs=0.01)
    assert world.stds.square().mean().item() == pytest.approx(0.5, abs=0.015)
    assert world.bias.norm().item() == pytest.approx(0.5)
    n = torch.stack([world.sample(step, 1024).features.firing_counts() for step in range(20)]).sum(0) / (20 * 1024)
    # published: about 34, and 25 of the most frequent 4,096; sae-lens itself counts 34.4 and 25.1
    assert n.sum().item() == pytest.approx(34.4, abs=0.3)
    assert n[:4096].sum().item() == pytest.approx(25.1, abs=0.3)


# --- firing ---


@pytest.mark.parametrize("rare", [1e-6, 1 / 64, 0.2, 0.999])
def test_features_fire_as_often_as_they_should(monkeypatch, rare):
    """However many of the entries are drawn by skips: at 1e-6 none is, at .999 all are."""
    monkeypatch.setattr(module, "RARE", rare)
    world = Synthetic(SMALL, 1)
    agree(fires(world, 25), world.probabilities)


def test_independent_features_fire_independently():
    world = Synthetic(SMALL, 2)
    found, p = fires(world, 25).double(), world.probabilities
    pairs = found.T @ found / len(found)
    expected = p.outer(p)
    z = (pairs - expected) / (expected * (1 - expected) / len(found)).sqrt()
    assert z[~torch.eye(64, dtype=torch.bool)].abs().max() < 5.5  # of 2,016 pairs


def both_exceed(world: Synthetic, i: int, j: int) -> float:
    """Chance that two standard normal numbers exceed the thresholds of i and j, by scipy's integral."""
    rho = float(world.loadings[i] @ world.loadings[j])
    upper = norm.ppf(world.given_parent[[i, j]].numpy())  # both below -> both above, by symmetry
    return float(multivariate_normal([0, 0], [[1, rho], [rho, 1]], allow_singular=True).cdf(upper))


@pytest.mark.parametrize("rare", [1e-6, 1 / 64, 0.999])
def test_pairs_fire_together_as_the_copula_says(monkeypatch, rare):
    monkeypatch.setattr(module, "RARE", rare)
    cfg = SyntheticConfig(n_features=12, d_in=4, p_max=0.4, p_min=0.01, n_roots=0, rank=3, correlation=0.4)
    world = Synthetic(cfg, 3)
    found = fires(world, 25)
    agree(found, world.probabilities)
    pairs = [(i, j) for i in range(12) for j in range(i)]
    together = torch.stack([found[:, i] & found[:, j] for i, j in pairs], dim=1)
    expected = np.array([both_exceed(world, i, j) for i, j in pairs])
    p = world.probabilities.numpy()
    lift = expected / np.array([p[i] * p[j] for i, j in pairs])
    assert lift.min() < 0.5, "some pairs avoid each other"
    assert lift.max() > 3, "and some are found together"
    agree(together, expected)


# --- hierarchy ---


def test_compensated_children_fire_as_often_as_zipf_says():
    world = Synthetic(tiny(is_exclusive=False), 4)
    agree(fires(world, 25), world.probabilities)


def test_without_compensation_chances_multiply():
    world = Synthetic(tiny(is_exclusive=False, is_compensated=False), 5)
    p = world.probabilities.tolist()
    agree(fires(world, 25)[:, [2, 6]], [p[0] * p[2], p[0] * p[2] * p[6]])


def test_children_are_correlated_with_their_parents():
    world = Synthetic(tiny(is_exclusive=False, rank=2, correlation=0.5, std_magnitude=(0, 0)), 6)
    found = fires(world, 25)
    expected = [both_exceed(world, int(world.parents[child]), child) for child in range(2, 6)]
    agree(found[:, 2:6], expected)
    lift = np.array(expected) / world.probabilities[2:6].numpy()
    assert max(abs(lift - 1)) > 0.1, "compensation takes them for independent"


def test_of_siblings_each_that_would_fire_has_the_same_chance():
    cfg = tiny(n_features=10, n_roots=2, branching=4, depth=1)
    world = Synthetic(cfg, 7)
    p, chances = world.probabilities, world.given_parent
    expected = []
    for parent, children in ((0, range(2, 6)), (1, range(6, 10))):
        wins = np.zeros(4)
        for would in product((0, 1), repeat=4):  # every set of children that would fire
            weight = np.prod([chances[c] if w else 1 - chances[c] for c, w in zip(children, would, strict=True)])
            wins += weight * np.array(would) / max(1, sum(would))
        expected.extend(p[parent].item() * wins)
    agree(fires(world, 25)[:, 2:], expected)


@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_children_need_their_parents(seed, is_exclusive, is_compensated, branching, depth, rank):
    n_tree = 2 * sum(branching**level for level in range(depth + 1))
    cfg = tiny(
        n_features=n_tree + 3,
        is_exclusive=is_exclusive,
        is_compensated=is_compensated,
        branching=branching,
        depth=depth,
        rank=rank,
        correlation=0.5,
        std_magnitude=(3, 3),  # many magnitudes are 0
    )
    world = Synthetic(cfg, seed)
    assert cfg.n_tree == n_tree
    fired = world.sample(0, 300).features.dense() > 0
    child = world.parents >= 0
    assert not (fired[:, child] & ~fired[:, world.parents[child]]).any()
    assert fired[:, child].any()
    if is_exclusive:
        siblings = fired[:, child].view(300, -1, branching)
        assert siblings.sum(2).max() <= 1


# --- magnitudes ---


def test_magnitudes_are_rectified_normal():
    """A feature of magnitude 0 has not fired: it fires p Phi(m/s) of the time, with mean m + s phi/Phi."""
    world = Synthetic(tiny(n_roots=0, mean_magnitude=(2.0, 1.0), std_magnitude=(1.5, 0.5)), 8)
    values = magnitudes(world, 25)
    m, s = world.means.double().numpy(), world.stds.double().numpy()
    positive = norm.cdf(m / s)
    agree(values > 0, world.probabilities.numpy() * positive)
    hazard = norm.pdf(m / s) / positive
    mean, variance = m + s * hazard, s**2 * (1 - hazard * (hazard + m / s))
    for i in range(14):
        fired = values[:, i][values[:, i] > 0].double()
        assert fired.mean().item() == pytest.approx(mean[i], abs=5 * (variance[i] / len(fired)) ** 0.5)
        assert fired.var().item() == pytest.approx(variance[i], rel=0.1)


def test_a_magnitude_without_spread_is_its_mean():
    world = Synthetic(tiny(n_roots=0, std_magnitude=(0, 0)), 9)
    values = magnitudes(world, 1)
    assert all(values[:, i].unique().tolist() == [0, world.means[i]] for i in range(14))


def test_a_child_follows_its_parent():
    world = Synthetic(tiny(), 10)
    world.stds[2:] = 0  # children and grandchildren have no spread of their own
    values, means = magnitudes(world, 2), world.means
    for child, root in ((3, 0), (8, 0), (13, 1)):
        both = values[:, child] > 0
        assert both.any()
        torch.testing.assert_close(values[both, child], means[child] * values[both, root] / means[root])


def test_or_does_not():
    world = Synthetic(tiny(is_scaled_by_parent=False), 10)
    world.stds[2:] = 0
    assert magnitudes(world, 2)[:, 3].unique().tolist() == [0, world.means[3]]


# --- directions and activations ---


def cosines(rows: torch.Tensor) -> torch.Tensor:
    return (rows @ rows.T).fill_diagonal_(0)


def test_a_step_goes_down_the_sum_over_all_pairs():
    rows = torch.nn.functional.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    leaf = rows.clone().requires_grad_()
    products = leaf @ leaf.T
    off = ~torch.eye(6, dtype=torch.bool)
    (products[off].square().sum() + 6 * (products.diagonal() - 1).square().sum()).backward()
    # the first step of Adam is lr in the direction of the gradient's signs
    expected = torch.nn.functional.normalize(rows - 0.1 * leaf.grad.sign(), dim=1)
    torch.testing.assert_close(orthogonalise(rows, 1, 0.1), expected, rtol=1e-5, atol=1e-6)


def test_directions_are_pushed_apart():
    random = Synthetic(SyntheticConfig(n_features=64, d_in=32, n_roots=0, orthogonal_steps=0), 0).directions
    pushed = Synthetic(SMALL, 0).directions
    torch.testing.assert_close(pushed.norm(dim=1), torch.ones(64))
    # 64 unit vectors in 32 dimensions: no sum of squares is below 64^2 / 32 - 64 = 64 (Welch 1974)
    assert cosines(random).square().sum().item() == pytest.approx(64 * 63 / 32, rel=0.05)
    assert cosines(pushed).square().sum().item() == pytest.approx(64, rel=0.01)
    assert cosines(pushed).abs().amax(1).mean() < 0.9 * cosines(random).abs().amax(1).mean()


def test_as_many_directions_as_dimensions_become_orthogonal():
    cfg = SyntheticConfig(n_features=16, d_in=16, n_roots=0, orthogonal_steps=500, orthogonal_lr=0.01)
    assert cosines(Synthetic(cfg, 0).directions).abs().max() < 1e-3


def test_anisotropy():
    directions = Synthetic(SyntheticConfig(n_features=4000, d_in=4, n_roots=0, anisotropy=1.0), 0).directions
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(4000))
    sizes = directions.square().mean(0).sqrt()
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    assert sizes[0] / sizes[3] > 2


@pytest.mark.parametrize("cfg", [SMALL, tiny(rank=3, n_features=20)])
def test_activations_are_sums_of_directions(cfg):
    world = Synthetic(cfg, 11)
    x, features = world.sample(3, 100).x, world.sample(3, 100).features
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, features.dense() @ world.directions + world.bias)


def test_noise_is_added_and_changes_nothing_else():
    plain, noisy = Synthetic(SMALL, 12), Synthetic(replace(SMALL, noise=0.3), 12)
    a, b = plain.sample(0, ROWS), noisy.sample(0, ROWS)
    assert torch.equal(a.features.values, b.features.values)
    assert (b.x - a.x).std().item() == pytest.approx(0.3, rel=0.01)
    assert (b.x - a.x).mean().item() == pytest.approx(0, abs=0.005)


def test_features_are_sorted_sparse_entries():
    features = Synthetic(tiny(n_features=20, rank=2), 13).sample(0, 200).features
    assert isinstance(features, Latents)
    assert (features.batch, features.n_latents) == (200, 20)
    assert (features.values > 0).all()
    assert torch.equal(features.values, features.pre_acts)
    keys = features.rows() * 20 + features.indices
    assert (keys.diff() > 0).all()


def test_rows_without_a_feature_are_the_bias():
    world = Synthetic(SyntheticConfig(n_features=2, d_in=3, p_max=2e-9, p_min=1e-9, n_roots=0), 0)
    batch = world.sample(0, 2)
    assert len(batch.features.values) == 0
    assert torch.equal(batch.x, world.bias.expand(2, 3))


def test_a_feature_may_always_fire():
    world = Synthetic(SyntheticConfig(n_features=2, d_in=3, p_max=1.0, n_roots=0, rank=1, std_magnitude=(0, 0)), 0)
    assert fires(world, 1)[:, 0].all()


# --- randomness ---


def test_a_batch_depends_on_seed_and_step_alone():
    cfg = tiny(n_features=20, rank=2)
    world, again = Synthetic(cfg, 14), Synthetic(cfg, 14)
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = [world.sample(step, 50) for step in (0, 1, 2)]
    for step in (2, 0, 1):
        batch = again.sample(step, 50)
        assert torch.equal(batch.x, first[step].x)
        assert torch.equal(batch.features.indices, first[step].features.indices)
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])


def test_seeds_and_steps_differ():
    cfg = tiny(rank=2, orthogonal_steps=3)
    one, two = Synthetic(cfg, 0), Synthetic(cfg, 1)
    for name in ("directions", "bias", "loadings", "stds"):
        assert not torch.equal(getattr(one, name), getattr(two, name))
    assert not torch.equal(one.sample(0, 50).x, one.sample(1, 50).x)


def test_batches_longer_than_a_chunk_are_no_different(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)
    world = Synthetic(SMALL, 15)
    found = world.sample(0, 20_001).features.dense() > 0
    agree(found, world.probabilities)
    agree(found[-7 * 500 :], world.probabilities)


@given(st.integers(0, 10**6), st.integers(0, 300), st.floats(0.001, 0.999))
def test_skips_are_places(seed, n, chance):
    places = module._skips(np.random.default_rng(seed), n, chance)
    assert (np.diff(places) > 0).all()
    assert all(0 <= place < n for place in places)


def test_every_place_is_as_likely():
    rng = np.random.default_rng(0)
    found = torch.zeros(20_000, 50, dtype=torch.bool)
    for row in found:
        row[torch.from_numpy(module._skips(rng, 50, 0.3))] = True
    agree(found, [0.3] * 50)
    agree(found[:, 1:] & found[:, :-1], [0.09] * 49)


# --- errors ---


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"n_features": 1, "n_roots": 0}, "synthetic.n_features = 1: must be at least 2"),
        ({"p_min": 0.0}, "synthetic.p_min = 0.0: must be more than 0 and less than p_max = 0.4"),
        ({"p_min": 0.4}, "synthetic.p_min = 0.4: must be more than 0 and less than p_max = 0.4"),
        (
            {"n_features": 10879},
            "synthetic.n_roots = 128: trees of branching 4 and depth 3 have 10880 features; "
            "must be at most n_features = 10879",
        ),
        ({"branching": 0}, "synthetic.branching = 0: must be greater than 0"),
    ],
)
def test_what_cannot_be_is_refused(choices, message):
    with pytest.raises(ConfigError) as caught:
        parse(SyntheticConfig, choices, "synthetic")
    assert str(caught.value) == message
    with pytest.raises(ValidationError):
        SyntheticConfig(**choices)


# --- files ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_rows_are_sampled_rows(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(module, "STEP_ROWS", 10)
    monkeypatch.setattr(module, "SHARD_STEPS", 4)
    world = Synthetic(SMALL, 16)
    stored = store(world, {"train": 95, "select": 20}, tmp_path / "box", dtype)
    files = sorted(path.name for path in (tmp_path / "box" / "synthetic").iterdir())
    assert files == ["select-00000.safetensors", *(f"train-0000{i}.safetensors" for i in range(3))]
    train, select = (stored.split(["synthetic"], name) for name in ("train", "select"))
    assert (train.n_rows, select.n_rows) == (95, 20)

    def sampled(steps) -> torch.Tensor:
        return torch.cat([world.sample(step, 10).x for step in steps]).to(DTYPES[dtype]).float()

    rows = sampled(range(10))[:95]
    assert torch.equal(train.read(0, 95), rows)
    assert torch.equal(select.read(0, 20), sampled((10, 11)))
    facts = stored.box.facts["sites"]["synthetic"]
    assert (facts["d_in"], facts["rows"]) == (32, 95)
    torch.testing.assert_close(torch.tensor(facts["mean"]), rows.mean(0))
    assert facts["mean_norm"] == pytest.approx(rows.norm(dim=1).mean().item(), rel=1e-5)
    assert facts["mean_square"] == pytest.approx(rows.square().sum(1).mean().item(), rel=1e-5)


def test_a_store_is_made_once(tmp_path):
    path, files = tmp_path / "box", lambda: {file: file.stat().st_mtime_ns for file in path.rglob("*.safetensors")}
    first = store(Synthetic(SMALL, 17), {"train": 50}, path)
    made = files()
    assert store(Synthetic(SMALL, 17), {"train": 50}, path).box.digest == first.box.digest
    assert files() == made
    assert store(Synthetic(SMALL, 18), {"train": 50}, path).box.digest != first.box.digest


def test_a_store_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STEP_ROWS", 10)
    monkeypatch.setattr(module, "SHARD_STEPS", 1)
    world, sampled = Synthetic(SMALL, 19), []
    sample = world.sample

    def dies_at_step_2(step: int, batch: int):
        if step == 2 and step not in sampled:
            sampled.append(step)
            raise KeyboardInterrupt
        sampled.append(step)
        return sample(step, batch)

    monkeypatch.setattr(world, "sample", dies_at_step_2)
    with pytest.raises(KeyboardInterrupt):
        store(world, {"train": 30}, tmp_path / "box")
    resumed = store(world, {"train": 30}, tmp_path / "box")
    assert sampled == [0, 1, 2, 2], "the first two files are not made again"
    assert resumed.box.digest == store(Synthetic(SMALL, 19), {"train": 30}, tmp_path / "other").box.digest


def test_stores_of_one_world_can_share_no_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STEP_ROWS", 10)
    world = Synthetic(SMALL, 20)
    stored = store(world, {"train": 20, "select": 10}, tmp_path / "box", "float32", first_step=100)
    train, select = (stored.split(["synthetic"], name) for name in ("train", "select"))
    assert torch.equal(train.read(0, 20), torch.cat([world.sample(step, 10).x for step in (100, 101)]))
    assert torch.equal(select.read(0, 10), world.sample(102, 10).x)
    first = store(world, {"train": 20, "select": 10}, tmp_path / "box", "float32")
    assert first.box.digest != stored.box.digest
