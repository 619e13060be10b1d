"""matplotlib's SVG made fit for a page: colours follow light and dark, and what is drawn tells its name."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from justforward.reporting.colours import LIGHT, css

_NAME = "name:"  # begins the gids of `tell`; matplotlib's own ids hold no colon
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAMES = {light: name for name, light in LIGHT.items()}
_STYLE = 'text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif !important; }\n'


def shown(text: str) -> str:
    """A text as a figure can hold it: on one line, without characters that XML has not."""
    return _NOT_XML.sub("\ufffd", " ".join(text.split()))


def tell(artist: Artist, text: str) -> None:
    """Let a part of a figure say this when it is pointed at."""
    artist.set_gid(_NAME + shown(text))


def save(figure: Figure, file: Path | io.BytesIO, **more: Any) -> None:
    """Figure.savefig, silent on characters that the font has not: a browser has other fonts, and a PNG shows boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure.savefig(file, **more)


def inline(figure: Figure, title: str, salt: str) -> str:
    """SVG for the inside of a page that has `colours.css`; as wide as there is room.

    Args:
        figure: what `figures` draws, in the light colours.
        title: of the whole, for those who cannot see it.
        salt: another one for each figure of a page, so that their ids differ.
    """
    return ET.tostring(_restyled(figure, title, salt), encoding="unicode")


def standalone(figure: Figure, title: str) -> str:
    """SVG for a file of its own, on a background of its own."""
    root = _restyled(figure, title, "")
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "width": width, "height": height}
    root.insert(1, _element("style", css() + _STYLE))
    return ET.tostring(root, encoding="unicode")


def _restyled(figure: Figure, title: str, salt: str) -> ET.Element:
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        save(figure, file, format="svg")
    drawn = ET.fromstring(file.getvalue())
    for element in drawn.iter():
        # HTML knows SVG's names without their namespaces.
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if "style" in element.attrib:
            element.set("style", re.sub("#[0-9a-f]{6}", lambda m: f"var(--{_NAMES[m[0]]})", element.attrib["style"]))
        gid = element.attrib.pop("id", "") if element.tag == "g" else ""
        if gid.startswith(_NAME):
            element.insert(0, _element("title", gid.removeprefix(_NAME)))
    root = ET.Element("svg", {"viewBox": drawn.attrib["viewBox"], "role": "img"})
    root.append(_element("title", shown(title)))
    root.extend(drawn.findall("g"))  # without the date, and the style sheet, which would be the whole page's
    return root


def _element(tag: str, text: str) -> ET.Element:
    made = ET.Element(tag)
    made.text = text
    return made
