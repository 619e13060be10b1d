"""Every colour of the page and its charts, in light and in dark."""

from __future__ import annotations

COLOURS = {
    "paper": ("#ffffff", "#14171b"),
    "panel": ("#f6f7f9", "#1d2126"),
    "ink": ("#16191d", "#e8eaed"),
    "soft": ("#59616b", "#a3acb6"),
    "rule": ("#dfe3e8", "#31373e"),
    "strong-rule": ("#9aa3ad", "#5d6670"),
    "warn": ("#8a4b00", "#f2bf73"),
    "warn-panel": ("#fff6e6", "#2b2418"),
    "c0": ("#1f5fbf", "#83b1ff"),
    "c1": ("#c2410c", "#ff9d66"),
    "c2": ("#15803d", "#62cf88"),
    "c3": ("#a21caf", "#e790f2"),
    "c4": ("#0e7490", "#52c9e0"),
    "c5": ("#b91c1c", "#ff8a8a"),
    "c6": ("#6d28d9", "#b9a1ff"),
    "c7": ("#856404", "#dfb94f"),
}
"""Name -> (light, dark). Figures are drawn in the light ones, by which `svg` finds the names: no two are the same."""
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
SERIES = sum(name[1:].isdigit() for name in COLOURS)
"""Colours for series of a chart; further series are dashed."""


def series_style(series: int) -> tuple[str, str]:
    """A series' colour, by name, and its line: solid, or dashed once all colours are in use."""
    return f"c{series % SERIES}", "dashed" if series >= SERIES else "solid"


def css() -> str:
    """The colours as CSS variables that follow the reader's scheme."""
    light, dark = ("".join(f"--{name}: {pair[i]}; " for name, pair in COLOURS.items()) for i in (0, 1))
    return (
        f":root {{ color-scheme: light dark; {light}}}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"
    )
