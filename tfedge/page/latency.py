"""Show what the benchmark measured."""

import math
from collections.abc import Mapping
from typing import Any

from tfedge.page.cells import Cell, Column, Group, Row, Table, baseline_file
from tfedge.page.formats import MISSING, format_count, format_ms, format_relative, format_size
from tfedge.report import RunReport

Measured = Mapping[str, Any]


def number(row: Measured, name: str) -> float | None:
    """A number of a row of the benchmark; `None` where it has none."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def delegate_of(row: Measured) -> str:
    """What ran a file, and on how many threads."""
    threads = number(row, "threads")
    if row.get("adapter"):
        return f"{row.get('actual', '')}, {row['adapter']}"
    if threads is None:
        return str(row.get("actual", ""))
    return f"{row.get('actual', '')}, {threads:g} thread" + ("" if threads == 1 else "s")


def setting_of(row: Measured) -> str:
    """Runtime, delegate and threads of a measurement."""
    return f"{row.get('runtime', '')}, {delegate_of(row)}".strip(", ")


def first_latency(report: RunReport, path: str | None) -> Measured | None:
    """The first measurement of a file, in the setting that the baseline was measured in first."""
    return next((row for row in report.latency if row.get("model") == path), None)


def baseline_latency(report: RunReport, row: Measured) -> Measured | None:
    """The baseline's file, measured in the same setting as `row`."""
    baseline = baseline_file(report)
    if baseline is None:
        return None
    for other in report.latency:
        if other.get("model") == baseline.path and setting_of(other) == setting_of(row):
            return other
    return None


def latency_cell(report: RunReport, path: str | None) -> Cell:
    """Median latency of a file with its change."""
    row = first_latency(report, path)
    if row is None:
        return Cell(text=MISSING)
    return p50_cell(report, row)


def p50_cell(report: RunReport, row: Measured) -> Cell:
    """Median latency of one measurement with its change."""
    before = baseline_latency(report, row)
    change = ""
    if before is not None and before is not row:
        change = format_relative(number(row, "p50_ms"), number(before, "p50_ms"))
    return Cell(text=format_ms(number(row, "p50_ms")), change=change)


def latency_column(report: RunReport) -> Column:
    """The column of the median latency; its note says where it was measured."""
    rows = [first_latency(report, row.path) for row in report.files]
    settings = {setting_of(row) for row in rows if row is not None}
    return Column(title="latency (median)", note=settings.pop() if len(settings) == 1 else "")


def latency_table(report: RunReport) -> Table:
    """All rows of the benchmark."""
    columns = (
        Column(title="file", words=True),
        Column(title="runs on", words=True),
        Column(title="median"),
        Column(title="90 %"),
        Column(title="99 %"),
        Column(title="start"),
        Column(title="peak memory"),
        Column(title="operators delegated"),
        Column(title="runs"),
    )
    rows = tuple(_row(report, row) for row in report.latency)
    return Table(
        caption="Time of one run of each file",
        note="In brackets: change against the baseline's file in the same setting",
        columns=columns,
        groups=(Group(rows=rows),),
    )


def _row(report: RunReport, row: Measured) -> Row:
    taken, total = number(row, "nodes_delegated"), number(row, "nodes_total")
    runs = number(row, "runs")
    return Row(
        state="best" if row.get("model") == report.best else "",
        cells=(
            Cell(text=str(row.get("model", "")), code=True),
            Cell(text=delegate_of(row), detail=str(row.get("runtime", ""))),
            p50_cell(report, row),
            Cell(text=format_ms(number(row, "p90_ms"))),
            Cell(text=format_ms(number(row, "p99_ms"))),
            Cell(text=format_ms(number(row, "init_ms"))),
            Cell(text=format_size(number(row, "peak_memory_bytes"))),
            Cell(text=MISSING if taken is None or total is None else f"{taken:g} of {total:g}"),
            Cell(text=MISSING if runs is None else format_count(runs)),
        ),
    )
