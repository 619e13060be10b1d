"""A Mermaid graph as SVG, for the site: GitHub draws such a block, a page would fetch the script from a server."""

from __future__ import annotations

import functools
import html
import itertools
import re
import statistics
from collections import defaultdict

ROW = re.compile(r"^ *(\w+) --> (\w+(?: & \w+)*)$", re.MULTILINE)
APART, DOWN, WIDTH, HEIGHT = 116, 66, 104, 30
SWEEPS = 24
STYLE = "max-width: 44rem; display: block; margin: auto; font: 13px monospace; color: var(--md-default-fg-color)"

Point = str | tuple[str, str, int]
"""A room, or the place where an arrow passes a row: (from, to, row)."""


def arrows(source: str) -> list[tuple[str, str]]:
    """(from, to) of a graph whose lines read "a --> b & c"."""
    return [(start, end) for start, ends in ROW.findall(source) for end in ends.split(" & ")]


def drawn(source: str) -> str:
    """The graph as SVG, every arrow downwards: what rests on nothing is in the lowest row."""
    ends = arrows(source)
    below = defaultdict(list)
    for start, end in ends:
        below[start].append(end)

    @functools.cache
    def row(room: str) -> int:
        return 1 + max(map(row, below[room]), default=-1)

    lines: list[list[Point]] = [[a, *((a, b, n) for n in range(row(a) - 1, row(b), -1)), b] for a, b in ends]
    rows: dict[int, list[Point]] = defaultdict(list)
    for point in dict.fromkeys(itertools.chain(*lines)):
        rows[row(point) if isinstance(point, str) else point[2]].append(point)
    across = _across(rows, lines)
    width, height = APART * (max(map(len, rows.values()))), DOWN * len(rows)
    place = {point: (width / 2 + across[point] * APART, height - DOWN * (n + 0.5)) for n in rows for point in rows[n]}
    paths = [_curve([place[point] for point in line]) for line in lines]
    boxes = [_box(room, *place[room]) for room in dict.fromkeys(itertools.chain(*ends))]
    return f'<svg viewBox="0 0 {width} {height}" role="img" style="{STYLE}">{"".join(paths + boxes)}</svg>'


def _across(rows: dict[int, list[Point]], lines: list[list[Point]]) -> dict[Point, float]:
    """Where each point stands in its row, counted from the middle: near those that it is joined to."""
    joined = defaultdict(list)
    for upper, lower in itertools.chain(*map(itertools.pairwise, lines)):
        joined[upper].append(lower)
        joined[lower].append(upper)
    across: dict[Point, float] = {}
    for _ in range(SWEEPS):
        for points in rows.values():
            points.sort(key=lambda point: statistics.fmean(across.get(other, 0) for other in joined[point]))
            across |= {point: n - (len(points) - 1) / 2 for n, point in enumerate(points)}
    return across


def _curve(places: list[tuple[float, float]]) -> str:
    """An arrow from the lower edge of the first box through these places to the upper edge of the last."""
    (start, top), *between, (end, bottom) = places
    points = [(start, top + HEIGHT / 2), *between, (end, bottom - HEIGHT / 2)]
    path = "M{} {}".format(*points[0])
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        middle = (y + to_y) / 2
        path += f"C{x} {middle} {to_x} {middle} {to_x} {to_y}"
    return f'<path d="{path}m-4 -7l4 7l4 -7" fill="none" stroke="currentColor" opacity=".6"/>'


def _box(room: str, x: float, y: float) -> str:
    return (
        f'<rect x="{x - WIDTH / 2}" y="{y - HEIGHT / 2}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
        'fill="var(--md-code-bg-color)" stroke="currentColor"/>'
        f'<text x="{x}" y="{y + 4}" text-anchor="middle" fill="currentColor">{html.escape(room)}</text>'
    )
