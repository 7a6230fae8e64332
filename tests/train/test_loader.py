"""Loader: an endless shuffle in which every epoch holds every row once, as a function of the step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.store import ActivationSplit
from train import loader as module
from train.loader import RUN_ROWS, Loader


class Numbered(ActivationSplit):
    """Row r is (r,), made when it is read."""

    widths = (1,)

    def __init__(self, n: int) -> None:
        self.n_rows = n

    def stored(self, start: int, stop: int):
        return torch.arange(start, min(stop, self.n_rows), dtype=torch.float32)[:, None]


def stream(loader: Loader, n_batches: int) -> list[int]:
    return torch.cat([loader.batch(step) for step in range(n_batches)]).flatten().int().tolist()


@pytest.fixture
def short_runs(monkeypatch):
    """Runs of 8 rows, so that small splits have many."""
    monkeypatch.setattr(module, "RUN_ROWS", 8)


@pytest.mark.usefixtures("short_runs")
@given(n=st.integers(1, 70), batch=st.integers(1, 90), window=st.integers(1, 50), seed=st.integers(0, 9))
def test_every_epoch_holds_every_row_once(n, batch, window, seed):
    """Batches may be larger than an epoch and lie across its end."""
    rows = stream(Loader(Numbered(n), batch, window, seed), -(-3 * n // batch))
    for epoch in range(3):
        assert sorted(rows[epoch * n : (epoch + 1) * n]) == list(range(n))


@pytest.mark.slow
@pytest.mark.usefixtures("short_runs")
@given(n=st.integers(1, 70), batch=st.integers(1, 20), window=st.integers(1, 50), steps=st.lists(st.integers(0, 30)))
def test_a_batch_depends_on_its_step_alone(n, batch, window, steps):
    in_order = Loader(Numbered(n), batch, window, seed=1)
    expected = [in_order.batch(step).tolist() for step in range(31)]
    out_of_order = Loader(Numbered(n), batch, window, seed=1)
    for step in steps:
        assert out_of_order.batch(step).tolist() == expected[step]


@pytest.mark.usefixtures("short_runs")
def test_rows_are_shuffled_across_a_window_and_epochs_differ():
    rows = stream(Loader(Numbered(64), 64, 64, seed=0), 2)
    first, second = rows[:64], rows[64:]
    assert first != second
    for epoch in (first, second):
        assert epoch != sorted(epoch)
        assert len({row // 8 for row in epoch[:8]}) > 2, "the first 8 rows come from several runs"


@pytest.mark.usefixtures("short_runs")
def test_seeds_differ():
    one, two = (stream(Loader(Numbered(64), 64, 64, seed), 1) for seed in (0, 1))
    assert one != two


@pytest.mark.usefixtures("short_runs")
def test_no_more_rows_are_in_memory_than_a_window():
    loader = Loader(Numbered(100), 7, window_rows=24, seed=0)
    for step in range(40):
        loader.batch(step)
        assert len(loader._window.rows) <= 24


@pytest.mark.usefixtures("short_runs")
def test_a_window_smaller_than_a_run_holds_one_run():
    loader = Loader(Numbered(20), 5, window_rows=1, seed=0)
    for step in range(12):
        loader.batch(step)
        assert len(loader._window.rows) <= 8


@pytest.mark.usefixtures("short_runs")
def test_a_window_is_read_once():
    reads = []

    class Counted(Numbered):
        def stored(self, start: int, stop: int):
            reads.append(start)
            return super().stored(start, stop)

    loader = Loader(Counted(64), 4, window_rows=16, seed=0)
    stream(loader, 16)
    assert sorted(reads) == list(range(0, 64, 8))
    stream(Loader(Counted(64), 4, window_rows=64, seed=0), 48)
    assert len(reads) == 16, "three epochs of one window are read once"


def test_rows_wait_as_they_are_stored(make_rows):
    split = make_rows(torch.arange(20, dtype=torch.float32)[:, None])
    object.__setattr__(split, "stored", lambda start, stop: type(split).stored(split, start, stop).bfloat16())
    loader = Loader(split, 5, 20, seed=0)
    assert loader.batch(0).dtype == torch.float32
    assert loader._window.rows.dtype == torch.bfloat16


def test_runs_of_the_true_size(make_rows):
    n = 2 * RUN_ROWS + 100
    split = make_rows(torch.arange(n, dtype=torch.float32)[:, None], shard_rows=3000)
    rows = stream(Loader(split, 1000, RUN_ROWS, seed=3), -(-n // 1000))
    assert sorted(rows[:n]) == list(range(n))
