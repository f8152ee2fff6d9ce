"""Draw with matplotlib and put the drawing into a page as SVG that follows the page's colours."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any, Final
from xml.etree import ElementTree

import matplotlib.style
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-ins that matplotlib draws with, and the custom properties of the page that replace them.
INK: Final = "#010203"
MUTED: Final = "#010204"
RULE: Final = "#010205"
ACCENT: Final = "#010206"
SECOND: Final = "#010207"
WASH: Final = "#010208"
PAPER: Final = "#010209"
PROPERTIES: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    WASH: "var(--band)",
    PAPER: "var(--paper)",
}

_STYLE: Final[dict[str, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 1.0,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "font.size": 12,
    "grid.color": RULE,
    "grid.linewidth": 1.0,
    "lines.linewidth": 1.75,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "tfedge",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.color": RULE,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 11,
    "ytick.major.size": 0,
}
_LONG_FRACTION: Final = re.compile(r"-?\d+\.\d{2,}")
_FONT: Final = re.compile(r"font:\s*(bold )?\S*?([\d.]+px)[^;]*|font-family:[^;]*;?\s*")
_NO_TURN: Final = re.compile(r"rotate\(-?0 [^)]*\)")


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Within it, figures have the page's style, whatever the user's own settings are."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # Names may hold letters that matplotlib's font lacks; the reader's browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def blank(width: int, height: int, margins: tuple[int, int, int, int]) -> tuple[Figure, Axes]:
    """A figure with one pair of axes.

    Args:
        width: In CSS pixels, as all lengths here.
        height: Of the figure.
        margins: Room left, right, below and above the axes.
    """
    left, right, below, above = margins
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes(
        (
            left / width,
            below / height,
            (width - left - right) / width,
            (height - below - above) / height,
        )
    )
    return figure, axes


def to_svg(figure: Figure, *, key: str, title: str, kind: str = "") -> Markup:
    """A figure as an `<svg>` element for the body of a page.

    Args:
        figure: The figure; it was made within `drawing`.
        key: Makes the element's ids unique on the page.
        title: What it shows, for those who do not see it.
        kind: Class of the element.

    Returns:
        Markup without a namespace, style sheet or date; every text is escaped.
    """
    stream = io.StringIO()
    figure.savefig(
        stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    root = ElementTree.fromstring(stream.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        _rewrite(element, key)
    label = ElementTree.Element("title", {"id": f"{key}-title"})
    label.text = title
    root.insert(0, label)
    root.attrib = {
        "class": f"chart {kind}".strip(),
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{key}-title",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _rewrite(element: ElementTree.Element, key: str) -> None:
    """Local names, own ids, short numbers, colours of the page."""
    element.tag = _local(element.tag)
    element.tail = None
    if element.tag != "text":
        element.text = None
    attributes = {_local(name): value for name, value in element.attrib.items()}
    if element.tag == "g" and attributes.pop("id", "") == "label":
        attributes |= {"class": "label", "paint-order": "stroke"}
    for name, value in attributes.items():
        if name == "id":
            attributes[name] = f"{key}-{value}"
        elif name == "href":
            attributes[name] = f"#{key}-{value.removeprefix('#')}"
        elif name == "clip-path":
            attributes[name] = value.replace("url(#", f"url(#{key}-")
        else:
            attributes[name] = _LONG_FRACTION.sub(_shorten, _NO_TURN.sub("", _style(value)))
    element.attrib = {name: value for name, value in attributes.items() if value}


def _style(value: str) -> str:
    for stand_in, replacement in PROPERTIES.items():
        value = value.replace(stand_in, replacement)
    return _FONT.sub(lambda font: f"font-size: {font[2]}" if font[2] else "", value)


def _shorten(match: re.Match[str]) -> str:
    text = f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _local(name: str) -> str:
    return name.rpartition("}")[2]
