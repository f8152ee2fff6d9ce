"""What a table of the page is made of: columns, groups of rows, cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tfedge.page.formats import (
    MISSING,
    format_change,
    format_figure,
    format_percent,
    format_relative,
    format_size,
)
from tfedge.report import FileRecord, RunReport, StepRecord

MARKS: Final = {"kept": "✓", "within": "○", "rejected": "✕", "skipped": "–", "best": "★"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell.

    Attributes:
        text: What it holds.
        change: How that differs from the baseline; shown in brackets.
        detail: A second, smaller line.
        code: Whether the text is a name of code: a path, a layer.
    """

    text: str
    change: str = ""
    detail: str = ""
    code: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """Head of a column.

    Attributes:
        title: Its name.
        note: A second, smaller line.
        words: Whether its cells hold words, which stand at the left.
    """

    title: str
    note: str = ""
    words: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: its first cell heads it.

    Attributes:
        cells: As many as there are columns.
        state: `"kept"`, `"within"`, `"rejected"`, `"skipped"`, `"best"` or empty.
        status: The state in words.
        reason: Why, where it was rejected or skipped.
    """

    cells: tuple[Cell, ...]
    state: str = ""
    status: str = ""
    reason: str = ""

    @property
    def mark(self) -> str:
        """The sign of its state."""
        return MARKS.get(self.state, "")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that belong together, with an optional heading."""

    rows: tuple[Row, ...]
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; without rows it is not shown.

    Attributes:
        caption: What it shows.
        note: How to read it.
        columns: Its columns; the first heads the rows.
        groups: Its rows.
    """

    caption: str
    note: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]

    def __bool__(self) -> bool:
        return any(group.rows for group in self.groups)

    def room(self, place: int) -> int:
        """How many letters the longest change of a column has with its brackets; 0 without any."""
        rows = (row for group in self.groups for row in group.rows)
        longest = max((len(row.cells[place].change) for row in rows), default=0)
        return longest + 2 if longest else 0


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of merit, as `RunReport.metrics` names it."""

    name: str
    higher_is_better: bool
    unit: str

    def show(self, value: float | None) -> str:
        """A value of it."""
        return format_figure(value, self.unit)

    def change(self, drop: float | None) -> str:
        """A drop of it as a signed change."""
        return format_change(drop, self.unit, self.higher_is_better)

    def change_in_words(self, drop: float | None) -> str:
        """The same with its unit."""
        text = self.change(drop)
        return f"{text} points" if text and self.unit == "points" else text

    def limit(self, value: float | None) -> str:
        """The worst value that is allowed."""
        return f"{'at least' if self.higher_is_better else 'at most'} {self.show(value)}"

    @property
    def direction(self) -> str:
        """Which way is better."""
        return "higher is better" if self.higher_is_better else "lower is better"


def metrics_of(report: RunReport) -> tuple[Metric, ...]:
    """The figures of merit of a run: those it names, else those that its steps have."""
    rows: Sequence[Mapping[str, Any]] = report.metrics
    if not rows:
        names = dict.fromkeys(name for row in report.steps for name in row.figures)
        rows = [{"name": name} for name in names]
    return tuple(
        Metric(
            name=str(row.get("name")),
            higher_is_better=bool(row.get("higher_is_better", True)),
            unit=str(row.get("unit") or ""),
        )
        for row in rows
    )


def metric_column(metric: Metric) -> Column:
    """The column of a figure of merit."""
    return Column(title=metric.name, note="" if metric.higher_is_better else "lower is better")


def metric_cell(metric: Metric, row: StepRecord | FileRecord) -> Cell:
    """A figure of merit of a step or file, with its change."""
    text = metric.show(row.figures.get(metric.name))
    if row.outcome == "baseline" or text == MISSING:
        return Cell(text=text)
    return Cell(text=text, change=metric.change(row.drops.get(metric.name)))


def size_cell(now: float | None, before: float | None, *, baseline: bool = False) -> Cell:
    """A size, with its change."""
    change = "" if baseline or now == before else format_relative(now, before)
    return Cell(text=format_size(now), change=change)


def sparsity_cell(now: float | None, before: float | None) -> Cell:
    """A fraction of zeros; its change in points where the baseline had zeros too."""
    if now is None or not before or format_percent(before) == format_percent(now):
        return Cell(text=format_percent(now))
    return Cell(text=format_percent(now), change=f"{100 * (now - before):+.1f}".replace("-", "−"))


def baseline_file(report: RunReport) -> FileRecord | None:
    """The float32 file of the model that came in."""
    return next((row for row in report.files if row.outcome == "baseline"), None)


def best_file(report: RunReport) -> FileRecord | None:
    """The file that the run recommends."""
    return next((row for row in report.files if row.path == report.best), None)
