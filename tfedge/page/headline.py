"""Say the result in words and in a handful of figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tfedge.page.cells import Metric, baseline_file, best_file
from tfedge.page.formats import (
    format_ms,
    format_percent,
    format_relative,
    format_size,
    format_times,
)
from tfedge.page.latency import baseline_latency, first_latency, number, setting_of
from tfedge.report import FileRecord, RunReport

MOST_METRICS = 3


@dataclass(frozen=True, kw_only=True)
class KeyFigure:
    """One of the figures at the top.

    Attributes:
        label: What it is.
        value: Its value now.
        before: What it was, and how it changed.
        allowed: What the recipe allows.
        detail: How it was measured.
    """

    label: str
    value: str
    before: str = ""
    allowed: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The top of the page.

    Attributes:
        state: `"good"` or `"bad"`.
        status: One or two words.
        title: The result in one line.
        lead: The same with its numbers.
        best: Path of the file that it is about; empty without one.
        figures: The key figures.
    """

    state: str
    status: str
    title: str
    lead: tuple[str, ...]
    best: str
    figures: tuple[KeyFigure, ...]


def headline_of(report: RunReport, metrics: Sequence[Metric]) -> Headline:
    """The result of a run."""
    best, before = best_file(report), baseline_file(report)
    limited = bool(report.budget or report.limits)
    status = ("fits" if limited else "done") if report.fits else "does not fit"
    return Headline(
        state="good" if report.fits else "bad",
        status=status,
        title=_title(report, metrics, best, before),
        lead=tuple(_lead(report, metrics, best, before)),
        best=best.path if best else "",
        figures=tuple(_figures(report, metrics, best, before)) if best else (),
    )


def _title(
    report: RunReport,
    metrics: Sequence[Metric],
    best: FileRecord | None,
    before: FileRecord | None,
) -> str:
    if best is None:
        return "No file was made" if report.fits else "No file stays within the budget"
    if best is before:
        return "Only the float32 file of the baseline stays within the budget"
    figures = ", ".join(
        f"{metric.name} {metric.show(best.figures.get(metric.name))}"
        + _brackets(metric.change_in_words(best.drops.get(metric.name)))
        for metric in metrics[:MOST_METRICS]
    )
    times = format_times(best.gzip_bytes, before.gzip_bytes if before else None)
    size = times[:1].upper() + times[1:] if times else format_size(best.gzip_bytes)
    return f"{size}, {figures}" if figures else size


def _lead(
    report: RunReport,
    metrics: Sequence[Metric],
    best: FileRecord | None,
    before: FileRecord | None,
) -> Iterator[str]:
    """Sentences; the first goes on from the name of the best file."""
    if best is not None:
        yield _sizes(best, before)
        for metric in metrics:
            yield _figure(report, metric, best, before)
        if not report.fits:
            yield f"Yet it does not fit: {best.reason}." if best.reason else "Yet it does not fit."
    else:
        rejected = [row for row in report.files if row.outcome == "rejected" and row.reason]
        for row in rejected[:MOST_METRICS]:
            yield f"{row.path} was rejected: {row.reason}."
    if report.spent_by:
        yield f"The step {report.spent_by} spent the budget."


def _sizes(best: FileRecord, before: FileRecord | None) -> str:
    if before is None or best is before:
        return (
            f"is {format_size(best.gzip_bytes)} after gzip -9 and "
            f"{format_size(best.size_bytes)} raw."
        )
    return (
        f"is {format_size(best.gzip_bytes)} after gzip -9 (was {format_size(before.gzip_bytes)}, "
        f"{format_times(best.gzip_bytes, before.gzip_bytes)}) and "
        f"{format_size(best.size_bytes)} raw (was {format_size(before.size_bytes)}, "
        f"{format_times(best.size_bytes, before.size_bytes)})."
    )


def _figure(report: RunReport, metric: Metric, best: FileRecord, before: FileRecord | None) -> str:
    text = f"Its {metric.name} is {metric.show(best.figures.get(metric.name))}"
    if before is not None and best is not before:
        was = f"was {metric.show(before.figures.get(metric.name))}"
        change = metric.change_in_words(best.drops.get(metric.name))
        text += _brackets(f"{was}, {change}" if change else was)
    if not metric.higher_is_better:
        text += "; lower is better"
    return text + "."


def _figures(
    report: RunReport, metrics: Sequence[Metric], best: FileRecord, before: FileRecord | None
) -> Iterator[KeyFigure]:
    for metric in metrics[:MOST_METRICS]:
        yield _metric_figure(report, metric, best, before)
    for label, now, was, limit in (
        ("gzip -9", best.gzip_bytes, before.gzip_bytes if before else None, "gzip_bytes"),
        ("raw size", best.size_bytes, before.size_bytes if before else None, "size_bytes"),
    ):
        allowed = report.limits.get(limit)
        yield KeyFigure(
            label=label,
            value=format_size(now),
            before="" if best is before else _was(format_size(was), format_times(now, was)),
            allowed="" if allowed is None else f"at most {format_size(allowed)}",
        )
    zeros = format_percent(before.sparsity) if before and best is not before else ""
    yield KeyFigure(
        label="zeros in kernels", value=format_percent(best.sparsity), before=_was(zeros, "")
    )
    yield from _latency_figure(report, best)


def _metric_figure(
    report: RunReport, metric: Metric, best: FileRecord, before: FileRecord | None
) -> KeyFigure:
    allowed = report.budget.get(metric.name)
    was = ""
    if before is not None and best is not before:
        was = _was(
            metric.show(before.figures.get(metric.name)),
            metric.change_in_words(best.drops.get(metric.name)),
        )
    return KeyFigure(
        label=metric.name,
        value=metric.show(best.figures.get(metric.name)),
        before=was,
        allowed="" if allowed is None else metric.limit(allowed),
    )


def _latency_figure(report: RunReport, best: FileRecord) -> Iterator[KeyFigure]:
    row = first_latency(report, best.path)
    if row is None:
        return
    before = baseline_latency(report, row)
    was = ""
    if before is not None and before is not row:
        old = number(before, "p50_ms")
        was = _was(format_ms(old), format_relative(number(row, "p50_ms"), old))
    limit = report.limits.get("latency_ms")
    yield KeyFigure(
        label="median latency",
        detail=setting_of(row),
        value=format_ms(number(row, "p50_ms")),
        before=was,
        allowed="" if limit is None else f"at most {format_ms(limit)}",
    )


def _was(value: str, change: str) -> str:
    return f"was {value}{_brackets(change)}" if value else ""


def _brackets(text: str) -> str:
    return f" ({text})" if text else ""
