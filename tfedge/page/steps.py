"""Show the steps of a run: every trial, what each skipped, how each trained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tfedge.page.cells import (
    Cell,
    Column,
    Group,
    Metric,
    Row,
    Table,
    baseline_file,
    metric_cell,
    metric_column,
    size_cell,
    sparsity_cell,
)
from tfedge.page.formats import MISSING, format_seconds
from tfedge.page.latency import latency_cell, latency_column
from tfedge.page.small_charts import draw_curves, pair_curves
from tfedge.report import FileRecord, RunReport, StepRecord

MOST_CURVES = 24


def steps_table(report: RunReport, metrics: Sequence[Metric]) -> Table:
    """Baseline, every trial of every step, and the files made in the end."""
    columns = [Column(title="model", words=True), *map(metric_column, metrics)]
    columns += [Column(title="gzip -9"), Column(title="raw"), Column(title="zeros")]
    if report.latency:
        columns.append(latency_column(report))
    columns.append(Column(title="took"))
    groups = []
    for name in dict.fromkeys(row.step for row in report.steps):
        own = [row for row in report.steps if row.step == name]
        rows = tuple(_step_row(report, row, metrics) for row in own)
        groups.append(Group(title="" if own[0].outcome == "baseline" else name, rows=rows))
    files = [row for row in report.files if row.outcome != "baseline"]
    made = tuple(_file_row(report, row, metrics) for row in files)
    groups += [Group(title="files", rows=made)] if made else []
    return Table(
        caption="Baseline, every trial of every step, and the files",
        note=_note(metrics),
        columns=tuple(columns),
        groups=tuple(groups),
    )


def _note(metrics: Sequence[Metric]) -> str:
    points = any(metric.unit == "points" for metric in metrics)
    return (
        "In brackets: change against the baseline's float32 file"
        + (", of figures in percent in points. " if points else ". ")
        + "Sizes of steps are those of their float32 files"
    )


def _step_row(report: RunReport, row: StepRecord, metrics: Sequence[Metric]) -> Row:
    is_baseline = row.outcome == "baseline"
    before = baseline_file(report)
    first = report.steps[0]
    gzip = before.gzip_bytes if before else first.gzip_bytes
    size = before.size_bytes if before else first.size_bytes
    sparsity = before.sparsity if before else first.sparsity
    state, status = _state(row)
    cells = [Cell(text=row.title or row.step)]
    cells += [metric_cell(metric, row) for metric in metrics]
    cells += [
        size_cell(row.gzip_bytes, gzip, baseline=is_baseline),
        size_cell(row.size_bytes, size, baseline=is_baseline),
        sparsity_cell(row.sparsity, None if is_baseline else sparsity),
    ]
    if report.latency:
        path = before.path if before and is_baseline else None
        cells.append(latency_cell(report, path))
    cells.append(Cell(text=format_seconds(row.seconds) if row.seconds else MISSING))
    return Row(cells=tuple(cells), state=state, status=status, reason=row.reason)


def _state(row: StepRecord) -> tuple[str, str]:
    if row.outcome == "accepted":
        return ("kept", "kept") if row.final else ("within", "within the budget, not used")
    return {
        "baseline": ("", ""),
        "rejected": ("rejected", "rejected"),
        "skipped": ("skipped", "skipped"),
    }.get(row.outcome, ("", row.outcome))


def _file_row(report: RunReport, row: FileRecord, metrics: Sequence[Metric]) -> Row:
    before = baseline_file(report)
    cells = [Cell(text=row.path, code=True)]
    cells += [metric_cell(metric, row) for metric in metrics]
    cells += [
        size_cell(row.gzip_bytes, before.gzip_bytes if before else None),
        size_cell(row.size_bytes, before.size_bytes if before else None),
        sparsity_cell(row.sparsity, before.sparsity if before else None),
    ]
    if report.latency:
        cells.append(latency_cell(report, row.path))
    cells.append(Cell(text=format_seconds(row.seconds) if row.seconds else MISSING))
    state, status = file_state(report, row)
    return Row(cells=tuple(cells), state=state, status=status, reason=row.reason)


def file_state(report: RunReport, row: FileRecord) -> tuple[str, str]:
    """State and status of a file's row."""
    if row.path == report.best:
        return "best", "best" if report.fits else "nearest, does not fit"
    if row.outcome == "rejected":
        return "rejected", "rejected"
    return ("", "baseline") if row.outcome == "baseline" else ("kept", "fits")


@dataclass(frozen=True, kw_only=True)
class SkippedGroup:
    """Layers that a step left alone for one reason."""

    reason: str
    layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SkippedStep:
    """What one step left alone."""

    step: str
    title: str
    changed: int
    groups: tuple[SkippedGroup, ...]


def skipped_steps(report: RunReport) -> tuple[SkippedStep, ...]:
    """What each step on the way to the files left alone, by reason."""
    found = []
    for row in _final(report):
        if row.stage is None or not row.stage.skipped:
            continue
        groups: dict[str, list[str]] = {}
        for skipped in row.stage.skipped:
            groups.setdefault(skipped.reason, []).append(skipped.layer)
        found.append(
            SkippedStep(
                step=row.step,
                title=row.title,
                changed=len(row.stage.changed),
                groups=tuple(
                    SkippedGroup(reason=reason, layers=tuple(layers))
                    for reason, layers in groups.items()
                ),
            )
        )
    return tuple(found)


def notes_of(report: RunReport) -> tuple[str, ...]:
    """Sentences of the run, its data and its steps, each once."""
    data = report.data.get("notes")
    notes = [*report.notes, *(map(str, data) if isinstance(data, list) else ())]
    for row in _final(report):
        notes += [f"{row.step}: {note}" for note in (row.stage.notes if row.stage else ())]
    return tuple(dict.fromkeys(note for note in notes if note))


def _final(report: RunReport) -> list[StepRecord]:
    """The steps on the way to the files; where none is, the last trial of each step."""
    rows = [row for row in report.steps if row.final]
    return rows or list({row.step: row for row in report.steps}.values())


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The chart of one quantity."""

    name: str
    drawing: Markup


@dataclass(frozen=True, kw_only=True)
class Training:
    """The charts of one step."""

    title: str
    status: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """Charts of the steps that were kept, of the others, and how many charts were left out."""

    kept: tuple[Training, ...]
    others: tuple[Training, ...]
    left_out: int


def trainings_of(report: RunReport) -> Trainings:
    """How each step trained, those on the way to the files first."""
    final = _final(report)
    kept = [row for row in final if row.epochs]
    others = [row for row in report.steps if row.epochs and row not in kept]
    room = iter(range(MOST_CURVES))
    drawn = [_training(row, number, room) for number, row in enumerate([*kept, *others])]
    total = sum(len(list(pair_curves(row.epochs))) for row in (*kept, *others))
    return Trainings(
        kept=tuple(training for training in drawn[: len(kept)] if training.curves),
        others=tuple(training for training in drawn[len(kept) :] if training.curves),
        left_out=total - sum(len(training.curves) for training in drawn),
    )


def _training(row: StepRecord, number: int, room: Iterator[int]) -> Training:
    curves = tuple(
        Curve(
            name=name, drawing=draw_curves(name, curve, step=row.title, key=f"curve-{number}-{at}")
        )
        for (name, curve), at in zip(pair_curves(row.epochs), room, strict=False)
    )
    return Training(title=row.title or row.step, status=_state(row)[1], curves=curves)
