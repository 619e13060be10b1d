"""What the charts look like, read from their SVG."""

import math
import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from justforward.reporting.charts import Chart, Line
from justforward.reporting.colours import COLOURS, LIGHT, SERIES, css, series_style
from justforward.reporting.figures import HEIGHT, WIDTH, line_chart, write_learning_curves

HISTORY = [
    *({"step": s, "loss": 1 / s, "projected_grad": 1.0} for s in range(10, 101, 10)),
    *({"step": s, "eval_accuracy": 0.5 + s / 400, "eval_loss": 0.5} for s in (50, 100)),
    {"step": 100, "train_loss": 0.5, "train_runtime": 3.0},
]
HELD_OUT = {"zero-shot": 0.5031, "fine-tuned": 0.82}


def chart(*series, **more):
    lines = [Line(f"line {i}", i, [(float(x), float(y)) for x, y in points]) for i, points in enumerate(series)]
    return Chart("Title", "step", "loss", lines, **more)


def drawn(*series, **more):
    return ET.fromstring(line_chart(chart(*series, **more), "task"))


def value(text):
    return float(text.replace("−", "-"))


def named(root, title):
    """The curve that tells this when pointed at; the area below it holds no path of its own."""
    (found,) = (path for g in root.iter("g") if g.findtext("title") == title for path in g.findall("path"))
    return found


def places(path):
    """Where a curve goes, in the drawing's own units."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])]


@pytest.mark.parametrize("size", [1, 60])
@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0.2, 0.81), (-3, 17), (5, 5), (0, 0), (1e-9, 3e-9), (0, 20000), (0.69312, 0.69315), (-1e7, 1e7)],
)
def test_ticks_are_few_short_and_around_the_data(low, high, size):
    ys = [low + (high - low) * (i % 2) for i in range(size)]
    root = drawn([(10 * i, y) for i, y in enumerate(ys)])
    texts = {"text-anchor: end": [], "text-anchor: middle": [], "text-anchor: start": []}
    for text in root.iter("text"):
        (place,) = re.findall(r"text-anchor: \w+", text.attrib["style"])
        texts[place].append(text.text)
    up, across, powers = texts.values()
    assert across.pop() == "step"
    assert len(powers) <= 1  # a power of ten above the axis, by which its labels are to be multiplied
    for labels in (up, across):
        assert 2 <= len(labels) <= 9
        assert all(len(label) <= 8 for label in labels)
        assert [value(t) for t in labels] == sorted({value(t) for t in labels})
    power = value(powers[0]) if powers else 1
    assert value(up[0]) * power <= min(ys) + abs(low) * 1e-6
    assert value(up[-1]) * power >= max(ys) - abs(high) * 1e-6
    assert value(across[0]) == 0


@pytest.mark.parametrize("filled", [False, True])
def test_curves_stay_inside_their_box_and_follow_their_values(filled):
    ys = [1 + math.sin(i) for i in range(60)]
    root = drawn(list(enumerate(ys)), [(i, 0.5) for i in range(30)], filled=filled)
    assert root.attrib["viewBox"] == f"0 0 {WIDTH} {HEIGHT}"
    curve = places(named(root, "line 0"))
    for x, y in [*curve, *places(named(root, "line 1"))]:
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
    assert len(curve) == (60 if not filled else 60 + 59)  # a step has a corner more
    assert [x for x, _ in curve] == sorted(x for x, _ in curve)
    assert min(curve, key=lambda place: place[1]) == curve[ys.index(max(ys)) * (1 + filled)]  # SVG's y points down


def test_short_curves_have_dots():
    assert len(list(drawn([(1, 2), (2, 3), (3, 1)]).iter("use"))) == 3
    assert not list(drawn([(i, i) for i in range(50)]).iter("use"))


def test_series_keep_apart_beyond_the_colours():
    styles = [series_style(i) for i in range(2 * SERIES)]
    assert len(set(styles)) == 2 * SERIES
    assert {name for name, _ in styles} <= set(COLOURS)
    first, same = (named(drawn(*[[(0, 1), (1, 2)]] * (SERIES + 1)), f"line {i}") for i in (0, SERIES))
    assert "stroke-dasharray" not in first.attrib["style"]
    assert "stroke-dasharray" in same.attrib["style"]


def test_every_colour_has_its_dark_one():
    assert len(set(LIGHT.values())) == len(LIGHT)
    light, dark = css().split("prefers-color-scheme: dark")
    for name, (day, night) in COLOURS.items():
        assert f"--{name}: {day};" in light
        assert f"--{name}: {night};" in dark


def contrast(one, other):
    """Of two colours, as WCAG 2 defines it."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(
            weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
            for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_curves_can_be_told_from_the_paper(scheme):
    paper = COLOURS["paper"][scheme]
    for name in ["ink", "soft", *(f"c{i}" for i in range(SERIES))]:
        assert contrast(COLOURS[name][scheme], paper) >= 4.5, name


def test_the_users_own_look_of_plots_changes_nothing():
    asked = chart([(1, 2), (2, 3)])
    expected = line_chart(asked, "task")
    with matplotlib.rc_context({"axes.facecolor": "red", "lines.linewidth": 9, "svg.fonttype": "path", "font.size": 3}):
        assert line_chart(asked, "task") == expected
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_learning_curves_of_a_training(tmp_path):
    path = tmp_path / "curves.svg"
    write_learning_curves(HISTORY, HELD_OUT, path)
    root = ET.parse(path).getroot()
    plain = ET.fromstring(path.read_text(encoding="utf-8").replace(' xmlns="http://www.w3.org/2000/svg"', ""))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in (plain.findtext("style") or "")
    assert len(places(named(plain, "training"))) == 10
    assert len(places(named(plain, "development set"))) == 2
    texts = [text.text for text in plain.iter("text")]
    for label in ("development set", "held out, zero-shot: 50.3 %", "held out, fine-tuned: 82.0 %"):
        assert label in texts
    assert not re.search(r"url\(|href=\"(?!#)|https?://(?!www\.w3\.org/2000/svg\")", path.read_text(encoding="utf-8"))
    background = next(plain.iter("path"))
    assert background.attrib["style"] == "fill: var(--paper)"
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again.svg"
    write_learning_curves(HISTORY, HELD_OUT, again)
    for suffix in (".svg", ".png"):
        assert again.with_suffix(suffix).read_bytes() == path.with_suffix(suffix).read_bytes()


def test_levels_are_where_their_values_are(tmp_path):
    history = [{"step": 1, "loss": 1.0}, {"step": 1, "eval_accuracy": 0.5}, {"step": 2, "eval_accuracy": 0.8}]
    write_learning_curves(history, {"before": 0.5, "after": 0.8}, tmp_path / "a.svg")
    source = (tmp_path / "a.svg").read_text(encoding="utf-8").replace(' xmlns="http://www.w3.org/2000/svg"', "")
    root = ET.fromstring(source)
    low, high = (y for _, y in places(named(root, "development set")))
    for title, y in ("held out, before: 50.0 %", low), ("held out, after: 80.0 %", high):
        assert {round(found, 3) for _, found in places(named(root, title))} == {round(y, 3)}


@pytest.mark.parametrize("history", [[], [{"step": 5, "loss": float("nan")}, {"step": 6, "loss": 1.0}]])
def test_a_training_that_left_little_is_drawn_all_the_same(history, tmp_path):
    write_learning_curves(history, {}, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").is_file()
