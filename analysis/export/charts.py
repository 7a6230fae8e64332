"""Two charts as SVG: columns of a histogram, and points with whiskers. Their colours are the page's classes."""

import html
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, BOTTOM = 340, 150, 34, 26
LINE = 24  # height of a line of points
Number = float | int


def columns(edges: Sequence[Number], counts: Sequence[int], ticks: Sequence[tuple[Number, str]], title: str) -> str:
    """A histogram with the counts of the bins between `edges`; `ticks` are places on its axis and what stands there."""
    top, low, high = max([*counts, 1]), edges[0], edges[-1]
    width, height = WIDTH - LEFT, HEIGHT - BOTTOM - 8

    def x(value: Number) -> float:
        return LEFT + width * (value - low) / (high - low)

    parts = [_line(LEFT, 8, WIDTH, 8), _line(LEFT, 8 + height, WIDTH, 8 + height)]
    parts += [_text(LEFT - 6, 12, "end", f"{top:,}"), _text(LEFT - 6, 12 + height, "end", "0")]
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            tall = max(height * count / top, 1)
            parts.append(
                f'<rect class="column" x="{x(left) + 0.5:.2f}" y="{8 + height - tall:.2f}" '
                f'width="{max(x(right) - x(left) - 1, 0.5):.2f}" height="{tall:.2f}">'
                f"<title>{left:.3g} to {right:.3g}: {count:,}</title></rect>"
            )
    parts += [_text(x(value), HEIGHT - 8, "middle", name) for value, name in ticks]
    return _svg(HEIGHT, title, parts)


Point = tuple[str, float, tuple[float, float] | None]
"""Class, value, interval."""


def points(
    rows: Sequence[tuple[str, Sequence[Point]]], low: float, high: float, ticks: Sequence[float], title: str
) -> str:
    """A line for each name with its points, from `low` to `high`."""
    left, width = 150, 680
    height = LINE * len(rows) + BOTTOM

    def x(value: Number) -> float:
        return left + (width - left - 8) * (min(max(value, low), high) - low) / (high - low)

    parts = []
    for tick in ticks:
        parts += [_line(x(tick), 0, x(tick), height - BOTTOM), _text(x(tick), height - 8, "middle", f"{tick:g}")]
    for number, (name, own) in enumerate(rows):
        y = LINE * number + LINE / 2
        parts.append(_text(left - 12, y + 4, "end", name if len(name) < 24 else name[:22] + "…"))
        for offset, (kind, value, bounds) in enumerate(own):
            at = y + 5 * (offset - (len(own) - 1) / 2)
            if bounds is not None:
                parts.append(
                    f'<line class="whisker {kind}" x1="{x(bounds[0]):.2f}" x2="{x(bounds[1]):.2f}" '
                    f'y1="{at:.2f}" y2="{at:.2f}"/>'
                )
            parts.append(f'<circle class="dot {kind}" cx="{x(value):.2f}" cy="{at:.2f}" r="3.5"/>')
    return _svg(height, title, parts, width)


def _svg(height: Number, title: str, parts: Sequence[str], width: Number = WIDTH) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _line(x1: Number, y1: Number, x2: Number, y2: Number) -> str:
    return f'<line class="grid" x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"/>'


def _text(x: Number, y: Number, anchor: str, text: str) -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{html.escape(text)}</text>'
