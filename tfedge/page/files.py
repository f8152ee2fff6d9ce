"""Show the files of a run: how each was made, how far it is from its model, what stays float."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfedge.page.cells import (
    Cell,
    Column,
    Group,
    Metric,
    Row,
    Table,
    metric_column,
)
from tfedge.page.formats import MISSING, format_count, format_percent, format_size
from tfedge.page.steps import file_state
from tfedge.report import FileRecord, RunReport

MOST_OPERATORS = 40


def files_table(report: RunReport, metrics: Sequence[Metric]) -> Table:
    """Every file with what was measured on it."""
    columns = (
        Column(title="file", words=True),
        Column(title="mode", words=True),
        *map(metric_column, metrics),
        Column(title="gzip -9"),
        Column(title="raw"),
        Column(title="zeros"),
        Column(title="operators"),
        Column(title="agreement"),
        Column(title="SQNR"),
    )
    kept = [place for place, column in enumerate(columns) if _has(report, column)]
    rows = []
    for row in report.files:
        cells = _cells(row, metrics)
        state, status = file_state(report, row)
        rows.append(
            Row(
                cells=tuple(cells[place] for place in kept),
                state=state,
                status=status,
                reason=row.reason,
            )
        )
    return Table(
        caption="What was measured on each file",
        note="Agreement (same class) and SQNR compare a file with the Keras model that it was made "
        "from",
        columns=tuple(columns[place] for place in kept),
        groups=(Group(rows=tuple(rows)),),
    )


def _has(report: RunReport, column: Column) -> bool:
    if column.title == "agreement":
        return any(row.agreement is not None for row in report.files)
    if column.title == "SQNR":
        return any(row.sqnr_db is not None for row in report.files)
    return True


def _cells(row: FileRecord, metrics: Sequence[Metric]) -> list[Cell]:
    floats, total = len(row.float_operators), row.operators
    return [
        Cell(text=row.path, code=True),
        Cell(text=row.mode, detail=row.way),
        *(Cell(text=metric.show(row.figures.get(metric.name))) for metric in metrics),
        Cell(text=format_size(row.gzip_bytes)),
        Cell(text=format_size(row.size_bytes)),
        Cell(text=format_percent(row.sparsity)),
        Cell(text=format_count(total), detail=f"{floats or 'none'} in float" if row.way else ""),
        Cell(text=format_percent(row.agreement, 2)),
        Cell(text=MISSING if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB"),
    ]


@dataclass(frozen=True, kw_only=True)
class FileNote:
    """What there is to say about one file.

    Attributes:
        path: Its path.
        verdict: How it compares with its model, in words.
        macs: Multiply-accumulates of one run.
        operators: Rows (layer, operator, index, reason) of those left in float.
        left_out: How many more there are.
    """

    path: str
    verdict: str
    macs: str
    operators: tuple[tuple[str, str, str, str], ...]
    left_out: int


def file_notes(report: RunReport) -> tuple[FileNote, ...]:
    """Verdict of each file, and the operators that an integer file left in float."""
    notes = []
    for row in report.files:
        floats = row.float_operators if row.way else ()
        if row.verdict or floats:
            notes.append(
                FileNote(
                    path=row.path,
                    verdict=row.verdict,
                    macs=format_count(row.macs),
                    operators=tuple(map(_operator, floats[:MOST_OPERATORS])),
                    left_out=max(0, len(floats) - MOST_OPERATORS),
                )
            )
    return tuple(notes)


def _operator(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    layer, name, index, reason = (row.get(key) for key in ("layer", "name", "index", "reason"))
    return str(layer or MISSING), str(name), str(index), str(reason or "")
