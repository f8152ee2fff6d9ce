"""Fill the page's template."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import jinja2
import yaml
from markupsafe import Markup

from tfedge.page.accelerators import accelerators_table
from tfedge.page.cells import Metric, best_file, metrics_of
from tfedge.page.drawing import drawing
from tfedge.page.files import file_notes, files_table
from tfedge.page.formats import format_count, format_seconds
from tfedge.page.headline import headline_of
from tfedge.page.latency import latency_table
from tfedge.page.layers import layers_of
from tfedge.page.snippets import litert_snippet, tfedge_snippet
from tfedge.page.steps import notes_of, skipped_steps, steps_table, trainings_of
from tfedge.page.tradeoff import draw_tradeoff, marks_of
from tfedge.report import RunReport, plain

_UNITS: Final = re.compile(
    r"(\d|(?<=\d )min|(?<=\d )h|gzip) (?=[\d%-]|KiB|MiB|B\b|ms|µs|s\b|min\b|h\b|dB|points)"
)
SAMPLES: Final = {
    "train_samples": "training samples",
    "calibration_samples": "calibration samples",
    "evaluation_samples": "evaluation samples",
}


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """The chart of one figure of merit, for a desk and for a phone."""

    metric: Metric
    wide: Markup
    narrow: Markup
    marks: frozenset[str]


def write_page(report: RunReport) -> str:
    """The page of a report that was read with `read_report`."""
    metrics = metrics_of(report)
    best = best_file(report)
    with drawing():
        charts = {
            "tradeoffs": tuple(_tradeoffs(report, metrics)),
            "trainings": trainings_of(report),
            "layers": layers_of(report),
        }
    return _environment().get_template("page.html.jinja").render(
        report=report,
        headline=headline_of(report, metrics),
        steps=steps_table(report, metrics),
        files=files_table(report, metrics),
        file_notes=file_notes(report),
        latency=latency_table(report),
        accelerators=accelerators_table(report),
        skipped=skipped_steps(report),
        notes=notes_of(report),
        snippets=_snippets(best.path, report.inputs) if best and report.inputs else {},
        recipe=_yaml(report.recipe),
        facts=_facts(report),
        byline=tuple(_byline(report)),
        **charts,
    )  # fmt: skip


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfedge.page", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = _keep_units
    return environment


def _keep_units(text: str) -> str:
    """A text whose numbers do not part from their units at the end of a line.

    Example:
        >>> _keep_units("13.6 KiB, 3 min 35 s").split(" ")
        ['13.6\\xa0KiB,', '3\\xa0min\\xa035\\xa0s']
    """
    return _UNITS.sub("\\1\u00a0", text)


def _tradeoffs(report: RunReport, metrics: Sequence[Metric]) -> Iterator[Tradeoff]:
    for place, metric in enumerate(metrics):
        wide = draw_tradeoff(report, metric, key=f"tradeoff-{place}", narrow=False)
        narrow = draw_tradeoff(report, metric, key=f"tradeoff-{place}n", narrow=True)
        if wide is not None and narrow is not None:
            yield Tradeoff(metric=metric, wide=wide, narrow=narrow, marks=marks_of(report, metric))


def _snippets(path: str, inputs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {
        "With tfedge": tfedge_snippet(path, inputs),
        "With ai-edge-litert alone": litert_snippet(path, inputs),
    }


def _yaml(value: Mapping[str, Any]) -> str:
    if not value:
        return ""
    return yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=88)


def _byline(report: RunReport) -> Iterator[str]:
    """When, how long, on what data."""
    if report.started:
        yield _when(report.started)
    if report.seconds:
        yield f"took {format_seconds(report.seconds)}"
    samples = report.data.get("evaluation_samples")
    if isinstance(samples, int):
        name = f" of {report.data['name']}" if report.data.get("name") else ""
        yield f"judged on {format_count(samples)} samples{name}"


def _when(text: str) -> str:
    """A moment to the minute; a text that is none stays as it is.

    Example:
        >>> _when("2026-05-04T10:22:41Z")
        '2026-05-04 10:22 UTC'
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment:%Y-%m-%d %H:%M}" + (" UTC" if moment.utcoffset() == timedelta() else "")


def _facts(report: RunReport) -> dict[str, dict[str, str]]:
    """Groups of small facts: data, host, versions, hashes."""
    data = {
        SAMPLES.get(name, name): value for name, value in report.data.items() if name != "notes"
    }
    hashes = {**report.hashes, **{row.path: row.sha256 for row in report.files if row.sha256}}
    groups: dict[str, Mapping[str, Any]] = {
        "Data": data,
        "Host": report.host,
        "Versions": report.versions,
        "SHA-256": hashes,
    }
    return {
        title: {name.replace("_", " ") if title == "Host" else name: _fact(item)
                for name, item in rows.items() if item not in (None, "", [], {})}
        for title, rows in groups.items()
        if rows
    }  # fmt: skip


def _fact(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return format_count(value) if isinstance(value, int) else f"{value:.4g}"
