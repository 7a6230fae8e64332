"""The table of a sweep, and its plot: what each dictionary loses at how many active latents.

Both are functions of the figures alone, down to the bytes: no times, no random identifiers.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sae.files import publish, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
"""Of the architectures, in the order of the list (Okabe & Ito 2008, then two more); told apart by all eyes."""
GREY, INK = "#8a8a8a", "#333333"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that the text is the same everywhere
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "axes.titlepad": 8,
    "axes.ymargin": 0.08,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.constrained_layout.w_pad": 0.08,
    "svg.hashsalt": "sae",
}
CAPTION = (
    "Filled: no other dictionary is as good with as few active latents. A line joins the best of an architecture and "
    "width.\nPCA: the best linear map with as many components."
)


class Row(NamedTuple):
    """A dictionary of a sweep. The figures are of the test documents; see docs/glossary.md."""

    name: str
    type: str
    site: str
    n_latents: int
    l0: float
    fvu: float
    explained_variance: float
    pca_fvu: float
    """FVU of the best linear map with as many components as the dictionary has active latents."""
    ce_recovered: float
    kl: float
    dead_fraction: float
    steps: int
    is_on_front: bool
    """No other dictionary of this site is as low in L0 and in FVU, and lower in one."""


def front(costs: Sequence[float], losses: Sequence[float]) -> list[bool]:
    """Which points no other beats, by being as low in both and lower in one."""
    points = list(zip(costs, losses, strict=True))
    return [not any(c <= cost and x <= loss and (c, x) != (cost, loss) for c, x in points) for cost, loss in points]


def mark_front(rows: Sequence[Row]) -> list[Row]:
    """The rows with `is_on_front` as it is among those of their site."""
    marked = {}
    for site in dict.fromkeys(row.site for row in rows):
        own = [row for row in rows if row.site == site]
        is_on = front([row.l0 for row in own], [row.fvu for row in own])
        marked |= {row.name: row._replace(is_on_front=on) for row, on in zip(own, is_on, strict=True)}
    return [marked[row.name] for row in rows]


def write(rows: Sequence[Row], out: Path) -> None:
    """`table.csv`, `table.json`, `pareto.svg` and `pareto.png`."""
    import matplotlib

    def write_csv(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Row._fields)
            writer.writerows(rows)

    publish(out / "table.csv", write_csv)
    write_json(out / "table.json", [row._asdict() for row in rows])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's own style
        matplotlib.rcParams.update(STYLE)
        figure = plot(rows)
        no_date = {"Date": None, "Creator": None}
        publish(out / "pareto.svg", lambda path: figure.savefig(path, format="svg", metadata=no_date))
        publish(out / "pareto.png", lambda path: figure.savefig(path, format="png", dpi=200))


def plot(rows: Sequence[Row]) -> "Figure":
    """Two panels a site: FVU and cross-entropy recovered against L0."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.l0 > 0]  # without an active latent there is no place on the axis
    sites = list(dict.fromkeys(row.site for row in rows))
    colours = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(dict.fromkeys(row.type for row in rows))}
    figure = Figure(figsize=(7.2, 0.3 + 2.9 * max(1, len(sites))), layout="constrained")
    for site, (left, right) in zip(sites, figure.subplots(len(sites) or 1, 2, squeeze=False), strict=False):
        own = sorted((row for row in rows if row.site == site), key=lambda row: (row.l0, row.fvu))
        left.set(title=f"Variance unexplained (FVU) at {site}", yscale="log")
        _draw_pca(left, own)
        _draw(left, own, [row.fvu for row in own], 1, colours)
        _ticks(left.yaxis, [value for row in own for value in (row.fvu, row.pca_fvu)])
        right.set(title=f"Cross-entropy recovered at {site}")
        _draw(right, own, [row.ce_recovered for row in own], -1, colours)
        for panel in (left, right):
            panel.set(xscale="log", xlabel="L0 (active latents a token)")
            _ticks(panel.xaxis, [row.l0 for row in own])
    figure.supxlabel(CAPTION, x=0.01, horizontalalignment="left", fontsize=7, color=GREY)
    for panel in figure.axes:
        _place_labels(figure, panel)
    return figure


def _draw(panel: "Axes", rows: Sequence[Row], y: Sequence[float], sign: int, colours: Mapping[str, str]) -> None:
    """The dictionaries at heights `y`; `sign` is -1 where more is better."""
    points = {row.name: (row.l0, value) for row, value in zip(rows, y, strict=True)}
    of_all = _best(rows, points, sign)
    _line(panel, [points[name] for name in of_all], color=INK, alpha=0.12, linewidth=6, solid_capstyle="round")
    for kind, n_latents in dict.fromkeys((row.type, row.n_latents) for row in rows):
        own = [row for row in rows if (row.type, row.n_latents) == (kind, n_latents)]
        line = [points[name] for name in _best(own, points, sign)]
        _line(panel, line, color=colours[kind], linewidth=1.2)
        for row in own:
            face = colours[kind] if row.name in of_all else "white"
            _line(panel, [points[row.name]], marker="o", markersize=4.5, color=colours[kind], markerfacecolor=face)
        has_widths = len({row.n_latents for row in rows if row.type == kind}) > 1
        _label(panel, f"{kind} {n_latents:,}" if has_widths else kind, line[-1], colours[kind])


def _best(rows: Sequence[Row], points: Mapping[str, tuple[float, float]], sign: int) -> list[str]:
    """Names of the rows on the front of `rows`, by L0."""
    is_on = front([row.l0 for row in rows], [sign * points[row.name][1] for row in rows])
    return [row.name for row, on in zip(rows, is_on, strict=True) if on]


def _draw_pca(panel: "Axes", rows: Sequence[Row]) -> None:
    points = sorted({(float(max(1, round(row.l0))), row.pca_fvu) for row in rows})
    _line(panel, points, color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    _label(panel, "PCA", points[-1], GREY)


def _line(panel: "Axes", points: Sequence[tuple[float, float]], **style: Any) -> None:
    panel.plot(*zip(*points, strict=True), **style)


def _label(panel: "Axes", text: str, at: tuple[float, float], colour: str) -> None:
    leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "linestyle": ":", "shrinkA": 2, "shrinkB": 4}
    panel.annotate(text, at, color=colour, verticalalignment="center", arrowprops=leader).set_in_layout(False)


def _ticks(axis: "Axis", values: Sequence[float]) -> None:
    """Plain numbers where there are values: 1, 2, 5, 10, … over a wide range, round steps over a narrow one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    locator = LogLocator(subs=(1, 2, 5)) if high > 6 * low else MaxNLocator(5, steps=[1, 2, 5, 10])
    axis.set_ticks([tick for tick in locator.tick_values(low / 1.05, high * 1.05) if low / 1.2 <= tick <= high])
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _place_labels(figure: "Figure", panel: "Axes") -> None:
    """Move the labels to the right of all points, in one column, apart from each other."""
    from matplotlib.text import Annotation

    labels = sorted((text for text in panel.texts if isinstance(text, Annotation)), key=lambda label: label.xy[1])
    if not labels:
        return
    figure.draw_without_rendering()
    extents, gap = [label.get_window_extent() for label in labels], 18.0
    first, last = math.log(panel.get_xlim()[0]), math.log(panel.dataLim.x1)
    share = (max(extent.width for extent in extents) + gap) / panel.get_window_extent().width
    panel.set_xlim(right=math.exp((last - share * first) / (1 - share)))
    panel.spines["bottom"].set_bounds(math.exp(first), math.exp(last))  # labels stand beyond the axis
    to_pixels = panel.transData
    x = to_pixels.transform((math.exp(last), 1))[0] + gap
    heights = [to_pixels.transform(label.xy)[1] for label in labels]
    for label, y in zip(labels, spread(heights, extents[0].height), strict=True):
        left, height = to_pixels.inverted().transform((x, y))
        label.set_position((left, height))


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, moved as little as can be (least squares) until they are `gap` apart.

    Height - i gap must not fall: isotonic regression, by pooling neighbours that are in the wrong order.
    """
    pools: list[tuple[float, int]] = []  # (sum, count)
    for i, height in enumerate(heights):
        total, n = height - i * gap, 1
        while pools and pools[-1][0] / pools[-1][1] > total / n:
            total, n = total + pools[-1][0], n + pools.pop()[1]
        pools.append((total, n))
    level = [total / n for total, n in pools for _ in range(n)]
    return [height + i * gap for i, height in enumerate(level)]
