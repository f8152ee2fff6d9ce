"""Draw size against a figure of merit: every file and trial of a run, with the budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from markupsafe import Markup
from matplotlib.axes import Axes

from tfedge.page.axes import scale_sizes, scale_values
from tfedge.page.cells import Metric, baseline_file
from tfedge.page.drawing import ACCENT, INK, MUTED, PAPER, SECOND, WASH, blank, to_svg
from tfedge.page.formats import format_size
from tfedge.page.labels import Box, Label, width_of, write_labels
from tfedge.report import FileRecord, RunReport, StepRecord

LONGEST: Final = 30  # letters of a label
DOTS: Final = 60  # by which a line is kept free of labels


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mark in the chart.

    Attributes:
        size: Size after gzip, in bytes.
        value: Figure of merit.
        label: What to write beside it.
        mark: `"best"`, `"file"`, `"step"`, `"within"` or `"rejected"`.
        needed: Whether its label must be there.
    """

    size: float
    value: float
    label: str
    mark: str
    needed: bool


_MARKS: Final[dict[str, dict[str, Any]]] = {
    "best": {"marker": "D", "s": 92, "facecolors": ACCENT, "edgecolors": ACCENT, "zorder": 6},
    "file": {"marker": "D", "s": 52, "facecolors": PAPER, "edgecolors": ACCENT, "zorder": 5},
    "step": {"marker": "o", "s": 52, "facecolors": INK, "edgecolors": INK, "zorder": 4},
    "within": {"marker": "o", "s": 40, "facecolors": PAPER, "edgecolors": INK, "zorder": 3},
    "rejected": {"marker": "x", "s": 40, "facecolors": SECOND, "zorder": 3},
}


def draw_tradeoff(report: RunReport, metric: Metric, *, key: str, narrow: bool) -> Markup | None:
    """The chart of one figure of merit.

    Args:
        report: The run.
        metric: The figure of merit.
        key: Makes the ids of the drawing unique.
        narrow: Draw for a phone.

    Returns:
        The drawing; `None` with fewer than two marks, as one compares with nothing.
    """
    points = _points(report, metric)
    if len(points) < 2:
        return None
    figure, axes = blank(*((380, 360) if narrow else (1040, 430)), (54, 12, 46, 14))
    budget = report.budget.get(metric.name, math.nan)
    scale_sizes(axes, [point.size for point in points], report.limits.get("gzip_bytes"))
    kept = [point.value for point in points if point.mark != "rejected"]
    kept += [budget] if math.isfinite(budget) else []
    scale_values(axes, kept, [point.value for point in points], metric.unit)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("size after gzip -9", labelpad=6)
    drawn = [
        *_draw_budget(axes, metric, budget),
        *_draw_limit(axes, report.limits.get("gzip_bytes")),
        *_draw_path(axes, report, metric.name),
    ]
    inside = [_clip(axes, point, metric) for point in points]
    for point in inside:
        axes.scatter([point.size], [point.value], linewidths=1.75, **_MARKS[point.mark])
    write_labels(
        axes,
        [_label(point) for point in sorted(inside, key=_rank)],
        texts=[box for box in drawn if not _is_line(box)],
        lines=[box for box in drawn if _is_line(box)],
    )
    title = _sentence(points, metric, budget)
    return to_svg(figure, key=key, title=title, kind="narrow" if narrow else "wide")


def marks_of(report: RunReport, metric: Metric) -> frozenset[str]:
    """The kinds of marks that the chart of a figure of merit holds."""
    return frozenset(point.mark for point in _points(report, metric))


def _points(report: RunReport, metric: Metric) -> list[Point]:
    """One mark for each file and for each step that is not a file too; the files last."""
    files = [_file_point(report, row, metric.name) for row in report.files]
    files = [point for point in files if _is_there(point)]
    steps = [_step_point(row, metric.name) for row in report.steps]
    return [p for p in steps if _is_there(p) and not any(_same(p, q) for q in files)] + files


def _same(one: Point, other: Point) -> bool:
    return one.size == other.size and math.isclose(one.value, other.value, rel_tol=1e-4)


def _is_there(point: Point) -> bool:
    return math.isfinite(point.value) and point.size > 0


def _file_point(report: RunReport, row: FileRecord, name: str) -> Point:
    twins = [other for other in report.files if other.mode == row.mode]
    label = row.mode if len(twins) == 1 or not row.way else f"{row.mode}, {row.way}"
    mark = "rejected" if row.outcome == "rejected" else "file"
    return Point(
        size=row.gzip_bytes,
        value=row.figures.get(name, math.nan),
        label="baseline" if row.outcome == "baseline" else _cut(label),
        mark="best" if row.path == report.best else mark,
        needed=True,
    )


def _step_point(row: StepRecord, name: str) -> Point:
    marks = {"baseline": "step", "accepted": "step" if row.final else "within"}
    label = ", ".join(_strength(*item) for item in row.strength.items()) or row.title
    return Point(
        size=row.gzip_bytes or 0,
        value=row.figures.get(name, math.nan),
        label="baseline" if row.outcome == "baseline" else _cut(label),
        mark=marks.get(row.outcome, "rejected"),
        needed=row.final or row.outcome == "baseline",
    )


def _strength(name: str, value: float) -> str:
    """A setting of a step in a label.

    Example:
        >>> _strength("sparsity", 0.915), _strength("rank", 8.0)
        ('91.5 % zeros', 'rank 8')
    """
    if name == "sparsity":
        return f"{100 * value:.3g} % zeros"
    return f"{name.replace('_', ' ')} {value:.4g}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"


def _clip(axes: Axes, point: Point, metric: Metric) -> Point:
    """A mark that lies outside goes to the edge, with its value in the label."""
    low, high = axes.get_ylim()
    if low <= point.value <= high:
        return point
    room = 0.04 * (high - low)
    arrow, value = ("↓", low + room) if point.value < low else ("↑", high - room)
    label = f"{arrow} {metric.show(point.value)} ({point.label})"
    return replace(point, value=value, label=label, needed=True)


def _draw_budget(axes: Axes, metric: Metric, budget: float) -> list[Box]:
    """The worst value that is allowed, with what is worse shaded; the boxes that this covers."""
    low, high = axes.get_ylim()
    if not math.isfinite(budget):
        return []
    axes.axhspan(
        *((low, budget) if metric.higher_is_better else (budget, high)),
        facecolor=WASH,
        linewidth=0,
        zorder=0,
    )
    axes.axhline(budget, color=SECOND, linewidth=1.5, zorder=1)
    text = f"allowed: {metric.limit(budget)}"
    left, right = axes.get_xlim()
    start, y = axes.transData.transform((left, budget))
    end = axes.transData.transform((right, budget))[0]
    rise = -15 if metric.higher_is_better else 6
    _write_limit(axes, text, (right, budget), (-5, rise), "right")
    text_box = (end - 5 - width_of(text), y + rise - 2, end, y + rise + 12)
    return [text_box, (start, y - 1, end, y + 1)]


def _draw_limit(axes: Axes, limit: float | None) -> list[Box]:
    """The largest size that is allowed, as the budget."""
    left, right = axes.get_xlim()
    if limit is None or not left < limit < right:
        return []
    axes.axvspan(limit, right, facecolor=WASH, linewidth=0, zorder=0)
    axes.axvline(limit, color=SECOND, linewidth=1.5, zorder=1)
    text = f"allowed: at most {format_size(limit)}"
    low, high = axes.get_ylim()
    x, top = axes.transData.transform((limit, high))
    bottom = axes.transData.transform((limit, low))[1]
    at_left = x + width_of(text) + 8 > axes.bbox.x1
    _write_limit(
        axes, text, (limit, high), (-6 if at_left else 6, -11), "right" if at_left else "left"
    )
    start = x - width_of(text) - 6 if at_left else x + 6
    return [(start, top - 13, start + width_of(text), top), (x - 1, bottom, x + 1, top)]


def _write_limit(
    axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], align: str
) -> None:
    axes.annotate(
        text,
        place,
        offset,
        textcoords="offset points",
        ha=align,
        color=SECOND,
        fontsize=11.5,
        gid="label",
    )


def _is_line(box: Box) -> bool:
    return box[2] - box[0] <= 2 or box[3] - box[1] <= 2


def _draw_path(axes: Axes, report: RunReport, name: str) -> list[Box]:
    """A line from the baseline by way of the kept steps to the best file; boxes along it."""
    baseline = baseline_file(report)
    rows: list[Any] = [] if baseline is None else [baseline]
    rows += [row for row in report.steps if row.final and row.outcome == "accepted"]
    rows += [row for row in report.files if row.path == report.best]
    places = [
        (row.gzip_bytes, row.figures[name])
        for row in rows
        if row.gzip_bytes and math.isfinite(row.figures.get(name, math.nan))
    ]
    if len(places) < 2:
        return []
    axes.plot(*zip(*places, strict=True), color=MUTED, linewidth=1, zorder=2)
    corners = axes.transData.transform(places)
    dots = [
        start + (end - start) * part / DOTS
        for start, end in zip(corners, corners[1:], strict=False)
        for part in range(DOTS + 1)
    ]
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in dots]


def _rank(point: Point) -> tuple[bool, bool, bool]:
    """What is labelled first: the best file, then files and kept steps, then trials."""
    return (point.mark != "best", not point.needed, point.mark == "rejected")


def _label(point: Point) -> Label:
    colour = SECOND if point.mark == "rejected" else INK
    return Label(
        x=point.size,
        y=point.value,
        text=point.label,
        colour=colour if point.needed else MUTED,
        bold=point.mark == "best",
        needed=point.needed,
    )


def _sentence(points: Sequence[Point], metric: Metric, budget: float) -> str:
    rows = "; ".join(
        f"{point.label}: {format_size(point.size)}, {metric.show(point.value)}" for point in points
    )
    allowed = f" Allowed: {metric.limit(budget)}." if math.isfinite(budget) else ""
    return f"{metric.name} against size after gzip. {rows}.{allowed}"
