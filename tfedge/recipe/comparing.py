"""Compare runs by their reports: what was asked, what came of it, which is better in what."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfedge import __version__
from tfedge.errors import DataError, SettingsError
from tfedge.page.reading import read_report
from tfedge.report import FileRecord, Record, RunReport, format_bytes

LARGEST_BYTES = 200_000_000
SAME_SIZE, SAME_TIME = 1.005, 1.05  # values whose ratio is smaller count as one
HOST = ("name", "cpu", "cores", "arch")  # `name` is left out of anonymous reports


@dataclass(frozen=True, kw_only=True)
class Row(Record):
    """One line of a comparison.

    Attributes:
        what: What is compared.
        values: The value of each run, in their order, for people; `None` where there is none.
        numbers: The same as numbers, where they are.
    """

    what: str
    values: tuple[str | None, ...]
    numbers: tuple[float | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """Runs side by side.

    Attributes:
        runs: What to call each run.
        warnings: Why figures must not be compared; empty where they may.
        settings: Keys of the recipes that differ.
        figures: What came of them.
        verdicts: Which is better in what, in sentences.
        notes: What is not compared, and why.
    """

    runs: tuple[str, ...]
    warnings: tuple[str, ...]
    settings: tuple[Row, ...]
    figures: tuple[Row, ...]
    verdicts: tuple[str, ...]
    notes: tuple[str, ...]


def read_run(path: Path) -> RunReport:
    """The report of a run.

    Args:
        path: A run directory, or its `report.json`.

    Raises:
        SettingsError: There is no report.
        DataError: It is damaged, something else, or of a version that wrote it otherwise.
    """
    source = path / "report.json" if path.is_dir() else path
    if not source.is_file():
        unfinished = (path / "steps").is_dir()
        move = (
            "The run has not ended: give its command again, and it goes on."
            if unfinished
            else "Give a directory that `tfedge optimize` wrote."
        )
        raise SettingsError(f"A run that has ended holds `report.json`. No file `{source}`. {move}")
    if source.stat().st_size > LARGEST_BYTES:
        raise DataError(f"`{source}` is too large for a report: {source.stat().st_size:,} bytes.")
    try:
        values = json.loads(source.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"`{source}` is damaged or is no JSON ({' '.join(str(error).split())[:200]}). Run the "
            "recipe again into the same directory: what is done is not done anew."
        ) from None
    try:
        return read_report(values)
    except DataError as error:
        raise DataError(f"`{source}`: {error}{_other_version(values)}") from None


def _other_version(values: Any) -> str:
    versions = values.get("versions") if isinstance(values, Mapping) else None
    written = versions.get("tfedge") if isinstance(versions, Mapping) else None
    if written in (None, __version__):
        return ""
    return f" It was written by tfedge {str(written)[:40]}; this is {__version__}."


def compare(runs: Mapping[str, RunReport]) -> Comparison:
    """Runs side by side.

    Args:
        runs: What to call each run, to its report; two at least.

    Raises:
        SettingsError: There are fewer than two.
    """
    if len(runs) < 2:
        raise SettingsError(
            f"Two runs or more are compared. Received: {', '.join(runs) or 'none'}. Name another."
        )
    names, reports = list(runs), list(runs.values())
    warnings = tuple(_warnings(reports))
    judged = not (_data_differ(reports) or _differ(_metrics(report) for report in reports))
    figures = list(_figures(reports, names))
    latency, notes = _latency(reports, names)
    figures += latency
    return Comparison(
        runs=tuple(names),
        warnings=warnings,
        settings=tuple(_settings(reports)),
        figures=tuple(figures),
        verdicts=tuple(_verdicts(reports, names, figures, judged=judged)),
        notes=(*notes, *_versions(reports)),
    )


# ---------------------------------------------------------------------------- what was asked


def _warnings(reports: Sequence[RunReport]) -> Iterable[str]:
    if _data_differ(reports):
        yield (
            "The runs used different data (their hashes differ), so their figures of merit are not "
            "comparable: another evaluation set, or another part of it."
        )
    if _differ(report.hashes.get("model", "") for report in reports):
        yield (
            "The runs started from different models (their hashes differ): what each lost is "
            "against its own baseline."
        )
    metrics = [_metrics(report) for report in reports]
    if _differ(metrics):
        yield f"The runs were judged by different metrics: {'; '.join(metrics)}."


def _data_differ(reports: Sequence[RunReport]) -> bool:
    return _differ(report.hashes.get("data", "") for report in reports)


def _metrics(report: RunReport) -> str:
    return ", ".join(str(row["name"]) for row in report.metrics)


def _settings(reports: Sequence[RunReport]) -> Iterable[Row]:
    """Keys of the recipes that differ, nested ones as `train.epochs`."""
    flat = [dict(_flat(report.recipe)) for report in reports]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    for key in keys:
        values = tuple(settings.get(key) for settings in flat)
        if _differ(values):
            yield Row(what=key, values=values)


def _flat(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    """Leaves of nested settings.

    Example:
        >>> dict(_flat({"train": {"epochs": 5}, "stages": ["finetune", {"quantize": "auto"}]}))
        {'train.epochs': '5', 'stages.1': 'finetune', 'stages.2.quantize': 'auto'}
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value, start=1):
            yield from _flat(item, f"{key}.{index}")
    else:
        yield key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _versions(reports: Sequence[RunReport]) -> Iterable[str]:
    packages = dict.fromkeys(name for report in reports for name in report.versions)
    for package in packages:
        versions = [report.versions.get(package, "none") for report in reports]
        if _differ(versions):
            yield f"{package} differs: {', '.join(versions)}."


def _differ(values: Iterable[Any]) -> bool:
    values = list(values)
    return any(value != values[0] for value in values)


# ---------------------------------------------------------------------------- what came of it


def _figures(reports: Sequence[RunReport], names: Sequence[str]) -> Iterable[Row]:
    yield Row(what="fits its budget", values=tuple("yes" if r.fits else "no" for r in reports))
    yield Row(what="best file", values=tuple(report.best for report in reports))
    metrics = {str(row["name"]): row for report in reports for row in report.metrics}
    files = [best_file(report) for report in reports]
    for name, row in metrics.items():
        percent = row["unit"] == "points"
        show = _percent if percent else _number
        yield _row(f"{name} of the baseline", [_figure(_baseline(r), name) for r in reports], show)
        yield _row(f"{name} of the best file", [_figure(file, name) for file in files], show)
    yield _row("size", [_of(file, "size_bytes") for file in files], format_bytes)
    yield _row("size after gzip -9", [_of(file, "gzip_bytes") for file in files], format_bytes)
    yield _row("zeros in kernels", [_of(file, "sparsity") for file in files], _percent)
    trials = [float(sum(s.outcome in ("accepted", "rejected") for s in r.steps)) for r in reports]
    yield _row("trials", trials, lambda value: f"{value:.0f}")
    yield _row("seconds", [report.seconds for report in reports], lambda value: f"{value:.0f}")


def best_file(report: RunReport) -> FileRecord | None:
    """The file that a run calls its best; `None` without any."""
    return next((file for file in report.files if file.path == report.best), None)


def _baseline(report: RunReport) -> FileRecord | None:
    return next((file for file in report.files if file.outcome == "baseline"), None)


def _figure(file: FileRecord | None, name: str) -> float | None:
    value = None if file is None else file.figures.get(name)
    return None if value is None or math.isnan(value) else value


def _of(file: FileRecord | None, field: str) -> float | None:
    return None if file is None else float(getattr(file, field))


def _row(what: str, numbers: Sequence[float | None], show: Callable[[float], str]) -> Row:
    values = tuple(None if number is None else show(number) for number in numbers)
    return Row(what=what, values=values, numbers=tuple(numbers))


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _latency(reports: Sequence[RunReport], names: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Latency of the best files where it was measured in the same way; else why not."""
    measured = [_measured(report) for report in reports]
    without = [name for name, rows in zip(names, measured, strict=True) if not rows]
    if without:
        return [], [f"Latency is not compared: it was not measured in {', '.join(without)}."]
    hosts = [_host(report, reports) for report in reports]
    if _differ(hosts):
        return [], [f"Latency is not compared: the runs were on different hosts ({_list(hosts)})."]
    shared = [key for key in measured[0] if all(key in rows for rows in measured)]
    if not shared:
        ways = ["; ".join(map(_way, rows)) for rows in measured]
        return [], [f"Latency is not compared: it was measured in different ways ({_list(ways)})."]
    notes = []
    busy = [n for n, report in zip(names, reports, strict=True) if _was_busy(report)]
    if busy:
        notes.append(f"The host was busy during {', '.join(busy)}: trust large differences only.")
    return [
        _row(
            f"p50 latency, {_way(key)}",
            [rows[key] for rows in measured],
            lambda value: f"{value:.3g} ms",
        )
        for key in shared
    ], notes


def _measured(report: RunReport) -> dict[tuple[str, str, str], float]:
    """Delegate, threads and runtime to the median of the best file."""
    return {
        (str(row["actual"]), str(row["threads"]), str(row["runtime"])): float(row["p50_ms"])
        for row in report.latency
        if row.get("model") == report.best
        and {"actual", "threads", "runtime", "p50_ms"} <= set(row)
    }


def _way(key: tuple[str, str, str]) -> str:
    delegate, threads, runtime = key
    return f"{delegate}, {threads} thread{'' if threads == '1' else 's'}, {runtime}"


def _host(report: RunReport, reports: Sequence[RunReport]) -> str:
    """What tells hosts apart, of what all reports say."""
    known = [key for key in HOST if all(key in other.host for other in reports)]
    return ", ".join(f"{report.host[key]}{' cores' if key == 'cores' else ''}" for key in known)


def _was_busy(report: RunReport) -> bool:
    load, cores = report.host.get("load_average"), report.host.get("cores")
    return isinstance(load, int | float) and isinstance(cores, int) and load > cores


def _list(texts: Sequence[str]) -> str:
    return " / ".join(text or "not said" for text in texts)


# ---------------------------------------------------------------------------- which is better


def _verdicts(
    reports: Sequence[RunReport], names: Sequence[str], figures: Sequence[Row], *, judged: bool
) -> Iterable[str]:
    fitting = [name for name, report in zip(names, reports, strict=True) if report.fits]
    if 0 < len(fitting) < len(names):
        yield f"Within its budget: only {', '.join(fitting)}."
    elif not fitting:
        yield "No run fits its budget."
    if judged:
        for metric in reports[0].metrics:
            yield from _on_metric(reports, names, metric, figures)
    by_name = {row.what: row for row in figures}
    for what, best in (("size", "Smallest"), ("size after gzip -9", "Smallest after gzip -9")):
        yield from _ranked(names, by_name[what], best, "larger", SAME_SIZE)
    for row in figures:
        if row.what.startswith("p50 latency"):
            best = f"Fastest ({row.what.partition(', ')[2]})"
            yield from _ranked(names, row, best, "slower", SAME_TIME)


def _on_metric(
    reports: Sequence[RunReport],
    names: Sequence[str],
    metric: Mapping[str, Any],
    figures: Sequence[Row],
) -> Iterable[str]:
    name = str(metric["name"])
    row = next(row for row in figures if row.what == f"{name} of the best file")
    if None in row.numbers:
        return
    sign = -1 if metric["higher_is_better"] else 1
    order = sorted(range(len(names)), key=lambda i: sign * row.numbers[i])  # type: ignore[operator]
    first = order[0]
    if not _differ(row.numbers):
        yield f"Same {name}: {row.values[first]}."
        return
    word = "Highest" if metric["higher_is_better"] else "Lowest"
    others = ", ".join(f"{names[i]} {row.values[i]}" for i in order[1:])
    sentence = f"{word} {name}: {names[first]} {row.values[first]}; {others}."
    samples = reports[0].data.get("evaluation_samples")
    if metric["unit"] == "points" and isinstance(samples, int):
        gap = abs(row.numbers[order[1]] - row.numbers[first])  # type: ignore[operator]
        sentence += f" To the next one that is {round(gap * samples)} of {samples} samples."
    yield sentence


def _ranked(names: Sequence[str], row: Row, best: str, worse: str, same: float) -> Iterable[str]:
    """Who is first where less is better, and how far the others are behind."""
    if None in row.numbers:
        return
    numbers: list[float] = [number for number in row.numbers if number is not None]
    order = sorted(range(len(names)), key=lambda i: numbers[i])
    low = numbers[order[0]]
    if low <= 0 or numbers[order[-1]] / low < same:
        yield f"{best}: no difference, {row.values[order[0]]}."
        return
    others = ", ".join(
        f"{names[i]} {row.values[i]} ({numbers[i] / low:.2f}× {worse})" for i in order[1:]
    )
    yield f"{best}: {names[order[0]]} {row.values[order[0]]}; {others}."
