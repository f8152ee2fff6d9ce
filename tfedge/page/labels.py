"""Write labels beside the marks of a chart, where they cover neither marks nor each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes

from tfedge.page.drawing import MUTED

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels

# Where a label may stand: pixels right and up from its mark, and the side that it is aligned to.
NEAR: Final = (
    (11, 0, "left"),
    (-11, 0, "right"),
    (0, 15, "center"),
    (0, -15, "center"),
    (9, 11, "left"),
    (-9, 11, "right"),
    (9, -11, "left"),
    (-9, -11, "right"),
)
FAR: Final = tuple(
    (x, sign * y, align)
    for y in (29, 45, 61)
    for sign in (1, -1)
    for x, align in ((0, "center"), (13, "left"), (-13, "right"))
)
REACH: Final = 15  # labels further up or down than this get a line to their mark
MARK: Final = 7  # half of a mark's size


@dataclass(frozen=True, kw_only=True)
class Label:
    """A label and the mark that it belongs to.

    Attributes:
        x: Of the mark, in data units.
        y: Of the mark.
        text: What to write.
        colour: In what colour.
        bold: Whether it is the one that matters most.
        needed: Whether it must be there, even far from its mark.
    """

    x: float
    y: float
    text: str
    colour: str
    bold: bool = False
    needed: bool = True


def write_labels(
    axes: Axes, labels: Sequence[Label], *, texts: Sequence[Box], lines: Sequence[Box]
) -> None:
    """Write labels; one that is not needed is left out where there is no room.

    Args:
        axes: Their limits and scales are settled.
        labels: Those that come first choose first.
        texts: What no label may cover, besides the marks.
        lines: What a label covers only when there is no other place.
    """
    spots = [axes.transData.transform((label.x, label.y)) for label in labels]
    marks = [(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in spots]
    left, bottom, right, top = axes.bbox.extents
    frame = (left - 8, bottom + 1, axes.figure.bbox.width - 1, top + 8)
    written: list[Box] = [*texts]
    for number, (label, (x, y)) in enumerate(zip(labels, spots, strict=True)):
        others = marks[:number] + marks[number + 1 :]
        for blocked in (
            [*written, *others, *lines],
            *([[*written, *others]] if label.needed else []),
        ):
            place = _first_free(label, x, y, frame, blocked)
            if place is not None:
                _write(axes, label, place)
                written.append(box_of(label.text, x + place[0], y + place[1], place[2]))
                break


def _first_free(
    label: Label, x: float, y: float, frame: Box, blocked: Sequence[Box]
) -> tuple[float, float, str] | None:
    for dx, dy, align in (*NEAR, *(FAR if label.needed else ())):
        box = box_of(label.text, x + dx, y + dy, align)
        inside = frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2]
        if inside and box[3] <= frame[3] and not any(overlap(box, other) for other in blocked):
            return dx, dy, align
    return None


def _write(axes: Axes, label: Label, place: tuple[float, float, str]) -> None:
    far = abs(place[1]) > REACH
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 1, "shrinkB": 6}
    axes.annotate(
        label.text,
        (label.x, label.y),
        place[:2],
        textcoords="offset points",
        ha=place[2],
        va="center" if far else "center_baseline",
        color=label.colour,
        fontsize=12.5 if label.needed else 11,
        fontweight="bold" if label.bold else "normal",
        arrowprops=line if far else None,
        zorder=7,
        gid="label",
    )


def box_of(text: str, x: float, y: float, align: str) -> Box:
    """About what a label covers whose middle is at the height `y`.

    Example:
        >>> box_of("int8", 100, 50, "left")
        (100.0, 43, 128.0, 57)
    """
    width = width_of(text)
    start = x - {"left": 0.0, "center": 0.5, "right": 1.0}[align] * width
    return (start, y - 7, start + width, y + 7)


def width_of(text: str) -> float:
    """About how wide a label is, in pixels; ideographs are twice as wide as letters."""
    return sum(7.0 if ord(letter) < 0x2E80 else 13.0 for letter in text)


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share more than an edge."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
