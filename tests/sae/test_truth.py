"""Recovery: a worked example for each figure, then the same by dense loops over every row.

Example E, in three dimensions. Features e0, e1, e2 are the axes; latents

    w0 = (2,0,0)   w1 = (.6,.8,0)   w2 = (0,.6,.8)   w3 = (0,-1,0)   w4 = 0

have best features e0 (1), e1 (.8), e2 (.8), e1 (|-1|), e0 (0, of equals the first); the features'
best latents are w0, w3, w2. Rows, with magnitudes:

    features        latents
    e0 1, e1 2      w0 .4, w1 1
    e1 1            w1 .5, w3 .5
    e0 3, e2 1      w0 1.2, w2 .5
    -               w0 1
    e2 2            -
"""

from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.errors import DataError
from sae.latents import Latents
from sae.metrics import Reconstruction
from sae.truth import Recovery, mcc, nearest
from train.synthetic import Synthetic, SyntheticConfig

AXES = torch.eye(3)
ROWS = torch.tensor([[2.0, 0, 0], [0.6, 0.8, 0], [0, 0.6, 0.8], [0, -1, 0], [0, 0, 0]])
FEATURES = torch.tensor([[1.0, 2, 0], [0, 1, 0], [3, 0, 1], [0, 0, 0], [0, 0, 2]])
LATENTS = torch.tensor([[0.4, 1, 0, 0, 0], [0, 0.5, 0, 0.5, 0], [1.2, 0, 0.5, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])


def sparse(dense: torch.Tensor) -> Latents:
    """The entries that are not 0, those of a row from the last to the first: their order is not promised."""
    rows, backwards = dense.flip(1).nonzero(as_tuple=True)
    indices = dense.shape[1] - 1 - backwards
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), (dense != 0).sum(1).cumsum(0)])
    values = dense[rows, indices]
    return Latents(values, indices, offsets, values, dense.shape[1])


def recover(true, rows, features, latents, parents=None, batch: int = 100) -> Recovery:
    recovery = Recovery(true, rows, None if parents is None else torch.tensor(parents))
    for part, ours in zip(features.split(batch), latents.split(batch), strict=True):
        recovery.update(sparse(part), sparse(ours))
    return recovery


# --- example E ---


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_figures(batch):
    assert recover(AXES, ROWS, FEATURES, LATENTS, batch=batch).result() == pytest.approx(
        {
            "true_l0": 6 / 5,
            "mcc": (1 + 1 + 0.8) / 3,  # e0-w0, e1-w3, e2-w2
            "mmcs_features": (1 + 0.8 + 0.8) / 3,  # e1 to w1: w3 points away from it
            "mmcs_latents": (1 + 0.8 + 0.8 + 0 + 0) / 5,
            "uniqueness": 3 / 5,
            "precision": (2 / 3 + 1 + 1 + 1 + 0) / 5,
            "recall": (1 + 1 + 1 / 2 + 1 / 2 + 0) / 5,
            "f1": (4 / 5 + 1 + 2 / 3 + 2 / 3 + 0) / 5,
            "feature_f1": (4 / 5 + 2 / 3 + 2 / 3) / 3,
            "dead_fraction": 1 / 5,
            "learnt_fraction": 1.0,
            "split_fraction": 1 / 3,  # e1, by w1 and w3
            # e0: (1 * .4 * 2 + 3 * 1.2 * 2) / (1 + 9) = .8; e1: 1 * .5 / 1; e2: 1 * .5 / 1
            "slope": (0.8 + 0.5 + 0.5) / 3,
        },
        abs=1e-6,
    )


def test_counts():
    recovery = recover(AXES, ROWS, FEATURES, LATENTS)
    assert recovery.fired.tolist() == [3, 2, 1, 1, 0]
    assert recovery.hits.tolist() == [2, 2, 1, 1, 0]
    assert recovery.present.tolist() == [2, 2, 2]
    assert recovery.found.tolist() == [2, 1, 1]
    assert recovery.per_latent().precision.tolist() == pytest.approx([2 / 3, 1, 1, 1, 0])
    assert recovery.per_feature().recall.tolist() == pytest.approx([1, 1 / 2, 1 / 2])


def test_selected_but_silent_latents_do_not_fire():
    values, indices, offsets = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0, 1, 2]), torch.tensor([0, 3])
    recovery = Recovery(AXES, AXES)
    recovery.update(sparse(torch.ones(1, 3)), Latents(values, indices, offsets, values, 3))
    assert recovery.fired.tolist() == [1, 0, 0]


def test_a_feature_that_never_fires_has_no_f1():
    figures = recover(AXES, AXES, torch.tensor([[1.0, 0, 0]]), torch.tensor([[1.0, 0, 0]])).result()
    assert figures["feature_f1"] == 1, "mean over the one that fires"
    assert figures["f1"] == pytest.approx(1 / 3), "mean over all latents"


@pytest.mark.parametrize(("cosine", "is_near"), [(0.49, False), (0.51, True)])
def test_latents_that_are_near_nothing_claim_nothing(cosine, is_near):
    rows = torch.tensor([[cosine, (1 - cosine**2) ** 0.5]]).repeat(2, 1)  # two, and e0 is all there is
    figures = recover(torch.tensor([[1.0, 0]]), rows, torch.ones(4, 1), torch.ones(4, 2)).result()
    assert (figures["learnt_fraction"], figures["split_fraction"]) == (is_near, is_near)
    assert figures["slope"] == pytest.approx(float(is_near))
    assert figures["f1"] == 1, "which asks for no nearness"


def test_dead_latents_claim_nothing():
    figures = recover(AXES, torch.cat([AXES, AXES[:1]]), torch.eye(3), torch.eye(4)[:3]).result()
    assert figures["dead_fraction"] == 1 / 4
    assert figures["split_fraction"] == 0, "the copy of e0 never fires"
    assert figures["f1"] == pytest.approx(3 / 4)
    silent = recover(AXES, AXES, torch.eye(3), torch.zeros(3, 3)).result()
    assert (silent["f1"], silent["dead_fraction"], silent["learnt_fraction"], silent["slope"]) == (0, 1, 0, 0)
    assert silent["mcc"] == 1, "which looks at directions alone"


# --- absorption ---

LINE = [-1, 0, 1]  # e0 has the child e1, and that e2


def absorbed(rows, features, latents) -> tuple[list[int], float]:
    recovery = recover(AXES, torch.tensor(rows), torch.tensor(features), torch.tensor(latents), LINE)
    return recovery.absorbed.tolist(), recovery.result()["absorbed_fraction"]


def test_absorption():
    counts, fraction = absorbed(
        [[1.0, 0, 0], [0.6, 0.8, 0], [0.05, 0, 1]],  # w1 has taken up e0; w2 has a little of it, less than .1
        [[1.0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]],
        [
            [1.0, 0, 0],  # found
            [0, 1, 0],  # absorbed
            [1, 1, 0],  # found all the same
            [0, 0, 0],  # missed
            [0, 1, 1],  # absorbed, by w1
            [0, 0, 1],  # missed
            [0, 1, 0],  # missed: w1 fires where its own feature does not
        ],
    )
    assert counts == [2, 0, 0]
    assert fraction == 2 / (7 + 5)  # of the firings of the parents e0 and e1


def test_a_grandchild_absorbs_too():
    counts, _ = absorbed([[1.0, 0, 0], [0, 1, 0], [0.6, 0, 0.8]], [[1.0, 1, 1]], [[0.0, 0, 1]])
    assert counts == [1, 0, 0], "e1 is only missed"


def test_a_firing_is_absorbed_once():
    rows = [[1.0, 0, 0], [0.6, 0.8, 0], [0.6, 0, 0.8]]
    assert absorbed(rows, [[1.0, 1, 1]], [[0.0, 1, 1]])[0] == [1, 0, 0]


def test_what_was_never_learnt_is_not_absorbed():
    # e0's best latent is dead in one case, and is that of e1 in the other
    rows, features = [[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]], [[1.0, 1, 0], [1, 1, 0]]
    assert absorbed(rows, features, [[0.0, 1, 0], [0, 1, 0]])[1] == 0
    assert absorbed(rows[1:], features, [[1.0, 0], [1, 0]]) == ([0, 0, 0], 0)


def test_true_directions_that_overlap_are_not_absorption():
    true = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # a child with cos .6 to its parent, learnt as it is
    features, latents = torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    figures = recover(true, true, features, latents, [-1, 0]).result()
    assert figures["absorbed_fraction"] == 0


def test_without_a_hierarchy():
    assert "absorbed_fraction" not in recover(AXES, ROWS, FEATURES, LATENTS).result()
    assert recover(AXES, ROWS, FEATURES, LATENTS, [-1, -1, -1]).result()["absorbed_fraction"] == 0


# --- directions ---


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
def test_mcc_is_the_best_of_all_matches(seed, n, m):
    a, b = normal(seed, n, 3), normal(seed + 1, m, 3)
    cosines = torch.cosine_similarity(a[:, None].double(), b[None].double(), dim=2).abs()
    if n > m:
        cosines = cosines.T
    best = max(
        sum(cosines[i, j].item() for i, j in enumerate(match)) for match in permutations(range(max(n, m)), min(n, m))
    )
    assert mcc(a, b) == pytest.approx(best / min(n, m), abs=1e-6)
    assert mcc(b, a) == pytest.approx(mcc(a, b), abs=1e-6)


def test_one_latent_serves_one_feature():
    # e0 and its neighbour both want w0; greedily they would have .99 each
    true, rows = torch.tensor([[1.0, 0], [0.99, 0.141067]]), torch.tensor([[1.0, 0], [0, 1]])
    assert mcc(true, rows) == pytest.approx((1 + 0.141067) / 2, abs=1e-4)


def test_of_equals_the_first_is_nearest():
    best = nearest(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, -1.0]]))
    assert best.which.tolist() == [0, 0]
    assert best.size.tolist() == pytest.approx([0.5**0.5, 0])
    assert best.cosine.tolist() == pytest.approx([0.5**0.5, 0])


def test_nearest_by_blocks(monkeypatch):
    whole = nearest(normal(0, 50, 4), normal(1, 30, 4))
    monkeypatch.setattr("sae.truth.BLOCK", 7)
    for part, all_at_once in zip(nearest(normal(0, 50, 4), normal(1, 30, 4)), whole, strict=True):
        torch.testing.assert_close(part, all_at_once)


def test_random_directions_are_the_control():
    """64 random directions against 64 in 32 dimensions have an MCC of about .42: what learning must beat."""
    values = torch.tensor([mcc(normal(seed, 64, 32), normal(seed + 100, 64, 32)) for seed in range(8)])
    assert values.mean().item() == pytest.approx(0.42, abs=0.01)


# --- whole dictionaries ---


def test_a_perfect_dictionary():
    cfg = SyntheticConfig(n_features=40, d_in=40, n_roots=4, branching=2, depth=2, rank=3, bias_norm=0)
    world = Synthetic(cfg, 0)
    world.directions = torch.eye(40)  # exactly orthogonal, so that x . d_i is a_i to the last bit
    recovery, reconstruction = Recovery(world.directions, world.directions, world.parents), Reconstruction()
    for step in range(4):
        batch = world.sample(step, 500)
        latents = sparse((batch.x @ world.directions.T).relu())
        recovery.update(batch.features, latents)
        reconstruction.update(batch.x, latents.dense() @ world.directions, latents)
    assert (recovery.present > 0).all()
    figures = recovery.result()
    ones = ("mcc", "mmcs_features", "mmcs_latents", "uniqueness", "precision", "recall", "f1", "feature_f1", "slope")
    assert {name: figures[name] for name in ones} == dict.fromkeys(ones, 1.0)
    zeros = ("dead_fraction", "split_fraction", "absorbed_fraction")
    assert {name: figures[name] for name in zeros} == dict.fromkeys(zeros, 0.0)
    assert figures["true_l0"] == reconstruction.result()["l0"]
    assert reconstruction.result()["explained_variance"] == 1


def activity(seed: int, n_rows: int, n: int) -> torch.Tensor:
    """Dense magnitudes, half of them 0."""
    return normal(seed, n_rows, n).relu()


def f1(fired: list[bool], present: list[bool]) -> float:
    hits = sum(a and b for a, b in zip(fired, present, strict=True))
    precision, recall = hits / max(1, sum(fired)), hits / max(1, sum(present))
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def by_loops(true, rows, features, latents, parents) -> dict[str, float]:
    """The figures on firings, pair by pair and row by row, from cosines in float64."""
    cosines = torch.cosine_similarity(rows[:, None].double(), true[None].double(), dim=2).tolist()  # [latent][feature]
    between = torch.cosine_similarity(true[:, None].double(), true[None].double(), dim=2).tolist()
    n_features, n_latents = len(true), len(rows)
    feature_of = [max(range(n_features), key=lambda i: abs(cosines[m][i])) for m in range(n_latents)]
    latent_of = [max(range(n_latents), key=lambda m: abs(cosines[m][i])) for i in range(n_features)]
    on, fires = (features > 0).T.tolist(), (latents > 0).T.tolist()  # [feature][row], [latent][row]
    above: list[set[int]] = []
    for parent in parents:  # which come before their children
        above.append(set() if parent < 0 else {parent} | above[parent])
    n_lost = n_firings = 0
    for p in set(parents) - {-1}:
        own = latent_of[p]
        if any(fires[own]) and abs(cosines[own][p]) >= 0.5:
            for row in range(len(features)):
                n_firings += on[p][row]
                n_lost += (
                    on[p][row]
                    and not fires[own][row]
                    and any(
                        fires[m][row] and on[c][row] and p in above[c] and cosines[m][p] - between[c][p] >= 0.1
                        for m, c in enumerate(feature_of)
                    )
                )
    per_latent = [f1(fires[m], on[c]) for m, c in enumerate(feature_of)]
    per_feature = [f1(fires[m], on[i]) for i, m in enumerate(latent_of) if any(on[i])]
    return {
        "f1": sum(per_latent) / n_latents,
        "feature_f1": sum(per_feature) / max(1, len(per_feature)),
        "absorbed_fraction": n_lost / max(1, n_firings),
    }


@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7), st.integers(1, 12), st.data())
def test_figures_are_those_of_dense_loops(seed, n_features, n_latents, n_rows, data):
    parents = [data.draw(st.integers(-1, i - 1)) for i in range(n_features)]
    true = normal(seed, n_features, 3)
    rows = (true[data.draw(st.integers(0, n_features - 1))] + normal(seed + 1, n_latents, 3)) / 2
    features, latents = activity(seed + 2, n_rows, n_features), activity(seed + 3, n_rows, n_latents)
    figures = recover(true, rows, features, latents, parents).result()
    expected = by_loops(true, rows, features, latents, parents)
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 12), st.lists(st.integers(1, 11), max_size=4))
def test_batches_do_not_matter(seed, n, cuts):
    true, rows = normal(seed, 6, 4), normal(seed + 1, 5, 4)
    features, latents = activity(seed + 2, n, 6), activity(seed + 3, n, 5)
    parents = torch.tensor([-1, -1, 0, 0, 1, 2])
    whole, parts = Recovery(true, rows, parents), Recovery(true, rows, parents)
    whole.update(sparse(features), sparse(latents))
    for a, b in pairwise([0, *sorted({cut for cut in cuts if cut < n}), n]):
        parts.update(sparse(features[a:b]), sparse(latents[a:b]))
    assert parts.result() == pytest.approx(whole.result(), rel=1e-12)


@given(st.integers(0, 10**6), st.permutations(range(5)), st.lists(st.floats(0.1, 10), min_size=5, max_size=5))
def test_order_and_scale_of_latents_do_not_matter(seed, order, scales):
    """A latent may be divided by what its decoder row is multiplied by."""
    true, rows = normal(seed, 6, 4), normal(seed + 1, 5, 4)
    features, latents, scale = activity(seed + 2, 9, 6), activity(seed + 3, 9, 5), torch.tensor(scales)
    parents = [-1, -1, 0, 0, 1, 2]
    expected = recover(true, rows, features, latents, parents).result()
    changed = recover(true, (rows * scale[:, None])[order], features, (latents / scale)[:, order], parents).result()
    assert changed == pytest.approx(expected, rel=1e-5, abs=1e-6)


# --- errors ---


def test_what_does_not_fit_is_refused():
    recovery = Recovery(AXES, ROWS)
    for features, latents, message in (
        (torch.ones(2, 4), torch.ones(2, 5), "features.n_latents = 4: must be 3, the true features"),
        (torch.ones(2, 3), torch.ones(2, 3), "latents.n_latents = 3: must be 5, the decoder's rows"),
        (torch.ones(1, 3), torch.ones(2, 5), "features.batch = 1: must be 2, the rows of the latents"),
    ):
        with pytest.raises(DataError) as caught:
            recovery.update(sparse(features), sparse(latents))
        assert str(caught.value) == message
    with pytest.raises(DataError) as caught:
        recovery.result()
    assert str(caught.value) == "recovery: 0 rows were compared: there must be at least one"
