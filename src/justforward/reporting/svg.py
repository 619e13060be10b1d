"""Charts as inline SVG. Colours are the page's CSS variables, so they follow light and dark."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from justforward.reporting.charts import Chart, Comparison, Line, Mark

COLOURS = 8
"""As many as the style sheet has (.s0, .s1, ...); further series are dashed."""
WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 42
ROW, COMPARISON_WIDTH, LETTER = 24, 400, 6.6
"""Of comparisons: a row's height, the whole width, and about the width of a letter."""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from below `low` to above `high`."""
    if not high > low:
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.75)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_label(value: float) -> str:
    """Short: 0.05, 200, 2.5k, 20k."""
    if abs(value) >= 1000:
        shown = f"{value / 1000:.10g}k" if abs(value) < 1e7 else f"{value:.0e}"
    else:
        shown = f"{value:.6g}" if abs(value) < 1e-12 or abs(value) >= 1e-3 else f"{value:.0e}"
    return shown.replace("-", "−")


def line_chart(chart: Chart) -> str:
    """Lines over two axes; each names itself when pointed at."""
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points]
    left, right = min(xs) if chart.filled else 0.0, max(xs) or 1.0
    across, up = ticks(left, right, 4), ticks(0.0 if chart.filled else min(ys), max(ys), 4)
    root = _root(WIDTH, HEIGHT, chart.title, "plot")

    def place(x: float, y: float) -> tuple[float, float]:
        inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return (
            LEFT + (x - left) / (right - left) * inner_width,
            TOP + (up[-1] - y) / (up[-1] - up[0]) * inner_height,
        )

    for tick in up:
        y = place(left, tick)[1]
        _add(root, "line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, cls="grid")
        _text(root, LEFT - 6, y + 4, tick_label(tick), "end")
    for tick in across:
        if left <= tick <= right:
            _text(root, place(tick, 0)[0], HEIGHT - BOTTOM + 16, tick_label(tick), "middle")
    _text(root, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, chart.x, "middle")
    for line in chart.lines:
        _draw(root, line, [place(x, y) for x, y in line.points], base=place(left, up[0])[1] if chart.filled else None)
    return ET.tostring(root, encoding="unicode")


def _draw(root: ET.Element, line: Line, places: Sequence[tuple[float, float]], base: float | None) -> None:
    group = _add(root, "g", cls=series_class(line.series))
    ET.SubElement(group, "title").text = line.label
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    if base is not None:
        corners = f"{places[0][0]:.1f},{base:.1f} {path} {places[-1][0]:.1f},{base:.1f}"
        _add(group, "polygon", points=corners, cls="area")
    _add(group, "polyline", points=path, cls="curve")
    if len(places) <= 20 and base is None:
        for x, y in places:
            _add(group, "circle", cx=x, cy=y, r=2.5, cls="dot")


def series_class(series: int) -> str:
    """The style of a series: a colour, and dashes once all colours are in use."""
    return f"s{series % COLOURS}" + (" dashed" if series >= COLOURS else "")


def comparison_chart(comparison: Comparison) -> str:
    """A row per method: a dot with its interval for these runs, a ring for the published number."""
    label_width = 12 + LETTER * max(len(mark.label) for mark in comparison.marks)
    left, right = min(label_width, COMPARISON_WIDTH * 0.55), COMPARISON_WIDTH - 14
    height = TOP + ROW * len(comparison.marks) + 24
    root = _root(COMPARISON_WIDTH, height, f"These runs and the published numbers on {comparison.task}")

    def place(value: float) -> float:
        return left + min(max(value, 0.0), 100.0) / 100 * (right - left)

    bottom = TOP + ROW * len(comparison.marks)
    for tick in (0, 25, 50, 75, 100):
        _add(root, "line", x1=place(tick), x2=place(tick), y1=TOP, y2=bottom, cls="grid")
        _text(root, place(tick), bottom + 16, str(tick), "middle")
    for i, mark in enumerate(comparison.marks):
        _mark(root, mark, TOP + ROW * (i + 0.5), left, place)
    return ET.tostring(root, encoding="unicode")


def _mark(root: ET.Element, mark: Mark, y: float, left: float, place) -> None:
    letters = int((left - 8) / LETTER)
    shown = mark.label if len(mark.label) <= letters else mark.label[: letters - 1] + "…"
    _text(root, left - 10, y + 4, shown, "end", "label" if mark.mean is not None else "label muted")
    row = _add(root, "g")
    told = [f"published {mark.published:.1f}"] if mark.published is not None else []
    if mark.mean is not None:
        half = "" if mark.half is None else f" ± {mark.half:.1f}"
        told.insert(0, f"{mark.mean:.1f}{half}")
    ET.SubElement(row, "title").text = f"{mark.label}: {', '.join(told)}"
    if mark.published is not None:
        _add(row, "circle", cx=place(mark.published), cy=y, r=4.5, cls="ring")
    if mark.mean is not None:
        if mark.half is not None:
            ends = place(mark.mean - mark.half), place(mark.mean + mark.half)
            _add(row, "line", x1=ends[0], x2=ends[1], y1=y, y2=y, cls="interval")
        _add(row, "circle", cx=place(mark.mean), cy=y, r=4.5, cls="ours")


def _root(width: float, height: float, title: str, cls: str = "") -> ET.Element:
    root = ET.Element("svg", {"viewBox": f"0 0 {width} {height:g}", "role": "img", "class": cls})
    ET.SubElement(root, "title").text = title
    return root


def _add(parent: ET.Element, tag: str, cls: str = "", **attributes: float | str) -> ET.Element:
    values = {name: value if isinstance(value, str) else f"{value:.1f}" for name, value in attributes.items()}
    return ET.SubElement(parent, tag, {**({"class": cls} if cls else {}), **values})


def _text(parent: ET.Element, x: float, y: float, text: str, anchor: str, cls: str = "") -> None:
    _add(parent, "text", cls, x=x, y=y, **{"text-anchor": anchor}).text = text
