"""The table and the plot of a sweep."""

import csv
import json
import math
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from train.pareto import Row, front, mark_front, plot, spread, write

pytestmark = pytest.mark.slow

ROW = Row("a", "topk", "mlp_out.1", 64, 8.0, 0.3, 0.7, 0.6, 0.9, 0.01, 0.0, 100, False)


def rows(*figures: tuple[str, str, str, int, float, float]) -> list[Row]:
    """Rows from (name, type, site, n_latents, l0, fvu)."""
    return mark_front(
        [
            ROW._replace(name=n, type=t, site=s, n_latents=w, l0=float(l0), fvu=fvu, ce_recovered=1 - fvu)
            for n, t, s, w, l0, fvu in figures
        ]
    )


SWEEP = rows(
    ("a", "topk", "x", 64, 8, 0.30),
    ("b", "topk", "x", 64, 16, 0.20),
    ("c", "relu", "x", 64, 16, 0.25),  # beaten by b, with as many latents
    ("d", "relu", "x", 128, 30, 0.19),
    ("e", "topk", "y", 64, 8, 0.90),  # alone at its site
)


FEW = st.integers(0, 6).map(float)


def test_the_front_of_a_worked_example():
    costs, losses = [1.0, 2.0, 3.0, 3.0, 4.0], [5.0, 5.0, 2.0, 2.0, 2.0]
    # the first beats the second; the third and the fourth are equal and beat the last
    assert front(costs, losses) == [True, False, True, True, False]
    assert front([], []) == []


@given(st.lists(st.tuples(FEW, FEW), min_size=1))
def test_what_is_off_the_front_is_beaten_by_something_on_it(points):
    is_on = front([c for c, _ in points], [x for _, x in points])
    best = {point for point, on in zip(points, is_on, strict=True) if on}
    assert best
    for (cost, loss), on in zip(points, is_on, strict=True):
        beaten = any(c <= cost and x <= loss and (c, x) != (cost, loss) for c, x in best)
        assert on != beaten


def test_fronts_are_of_a_site():
    assert [row.is_on_front for row in SWEEP] == [True, True, False, True, True]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the table and the plots of the sweep."""
    out = tmp_path_factory.mktemp("sweep")
    write(SWEEP, out)
    return out


def test_the_table_holds_every_figure(written):
    records = json.loads((written / "table.json").read_text())
    assert records == [row._asdict() for row in SWEEP]
    with (written / "table.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == list(Row._fields)
    assert lines[1] == ["a", "topk", "x", "64", "8.0", "0.3", "0.7", "0.6", "0.7", "0.01", "0.0", "100", "True"]
    assert len(lines) == 6


def test_the_same_figures_give_the_same_bytes_whatever_the_users_style(written, tmp_path):
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 10, "svg.hashsalt": None}):
        write(SWEEP, tmp_path)
    for name in ("table.csv", "table.json", "pareto.svg", "pareto.png"):
        assert (written / name).read_bytes() == (tmp_path / name).read_bytes(), name
    svg = (written / "pareto.svg").read_text()
    assert "<dc:date>" not in svg


def test_a_site_has_two_panels_and_a_label_for_each_line():
    figure = plot(SWEEP)
    assert [panel.get_title() for panel in figure.axes] == [
        "Variance unexplained (FVU) at x",
        "Cross-entropy recovered at x",
        "Variance unexplained (FVU) at y",
        "Cross-entropy recovered at y",
    ]
    labels = [{text.get_text() for text in panel.texts} for panel in figure.axes]
    assert labels == [
        {"PCA", "topk", "relu 64", "relu 128"},
        {"topk", "relu 64", "relu 128"},
        {"PCA", "topk"},
        {"topk"},
    ]
    colours = [{text.get_text(): text.get_color() for text in panel.texts} for panel in figure.axes]
    assert colours[0]["topk"] == colours[2]["topk"] != colours[0]["relu 64"] == colours[0]["relu 128"]


def test_filled_points_are_the_front():
    panel = plot(SWEEP).axes[0]
    points = [line for line in panel.lines if line.get_marker() == "o"]
    hollow = [tuple(line.get_xydata()[0]) for line in points if line.get_markerfacecolor() == "white"]
    assert len(points) == 4
    assert hollow == [(16, 0.25)]


def test_labels_stand_inside_the_panel_and_apart():
    close = rows(*((f"r{i}", f"type{i}", "x", 64, 20 + i / 10, 0.2 + i / 1000) for i in range(8)))
    figure = plot(close)
    figure.draw_without_rendering()
    for panel in figure.axes:
        texts = (Text.get_window_extent(label) for label in panel.texts)  # without the leaders
        extents = sorted(texts, key=lambda extent: extent.y0)
        assert all(extent.x1 <= panel.get_window_extent().x1 + 1 for extent in extents)
        assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(extents))


@pytest.mark.parametrize("l0", [[20.0], [0.0], [20.0, 0.0], [3.0, 3.0]])
def test_few_points_are_drawn_too(l0, tmp_path):
    write(rows(*((f"r{i}", "topk", "x", 64, value, 0.2) for i, value in enumerate(l0))), tmp_path)
    assert (tmp_path / "pareto.png").stat().st_size > 0


def test_spreading_a_worked_example():
    # 10 and 11 meet in the middle, 10.5 ± 2; 30 is far enough
    assert spread([10.0, 11.0, 30.0], 4.0) == [8.5, 12.5, 30]
    assert spread([], 4.0) == []


@given(st.lists(st.integers(0, 50).map(float)), st.integers(1, 10).map(float))
def test_spread_heights_are_apart_in_order_and_not_moved_on_the_whole(heights, gap):
    heights = sorted(heights)
    moved = spread(heights, gap)
    assert all(high - low >= gap - 1e-9 for low, high in pairwise(moved))
    assert math.isclose(sum(moved), sum(heights), abs_tol=1e-6)
    if all(high - low >= gap for low, high in pairwise(heights)):
        assert moved == pytest.approx(heights)
