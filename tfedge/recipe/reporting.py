"""Put together what a run did, and write it down."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfedge.benchmark import benchmark, host_facts
from tfedge.errors import DelegateError
from tfedge.files import write_whole
from tfedge.recipe.accelerating import accelerate, latency_there, sentences
from tfedge.recipe.settings import Recipe
from tfedge.recipe.targets import measured
from tfedge.recipe.work import Work, versions
from tfedge.report import FileRecord, LayerRecord, RunReport, StepRecord

if TYPE_CHECKING:
    from tfedge.recipe.loop import Outcome

BINS = 24


def assemble(
    recipe: Recipe,
    work: Work,
    *,
    outcome: "Outcome",
    steps: Sequence[StepRecord],
    rejected: Sequence[FileRecord],
    started: float,
    anonymous: bool,
    measure_latency: bool,
) -> RunReport:
    """The report of a run.

    Args:
        recipe: The recipe.
        work: Its model, data and budget.
        outcome: Where the run ended.
        steps: Every trial, in order of time.
        rejected: Files that were made on the way and given up.
        started: When the run began, seconds since 1970.
        anonymous: Whether the machine's name is left out.
        measure_latency: Whether the files are timed.
    """
    accelerators = accelerate(recipe.targets, work.directory.path)
    rows, verdicts = _latency(recipe, work, outcome) if measure_latency else ((), ())
    there, said = latency_there(accelerators, work.directory.path) if measure_latency else ((), ())
    files = [_published(record, rows, recipe) for record, _, _ in outcome.files]
    wanted = [f for f in files if f.mode != "float32"] or files
    fitting = [f for f in wanted if f.outcome == "accepted"]
    best = _best(work, files, fitting)
    states = (*outcome.states, *(state for _, _, state in outcome.files))
    way = {state.record.title for state in states}
    final = {id(row) for row in steps if row.title in way and row.outcome != "rejected"}
    marked = tuple(dataclasses.replace(row, final=id(row) in final) for row in steps)
    notes = [*work.data.notes, *sentences(accelerators)]
    if work.chooser is not work.judge:
        notes.append(
            f"Trials were judged on {len(work.chooser.split)} samples set aside from training, the "
            f"files on {len(work.judge.split)} evaluation samples."
        )
    elif any(row.outcome == "rejected" for row in steps):
        notes.append(
            f"The same {len(work.judge.split)} evaluation samples judged {len(steps) - 1} trials: "
            "the figures of the one that was chosen are a little optimistic. "
            "`data: {validation: 0.2}` chooses by other samples."
        )
    report = RunReport(
        name=recipe.name or Path(recipe.model).stem,
        fits=bool(fitting),
        best=best.path,
        spent_by="" if fitting else outcome.spent_by or _limit_breaker(wanted),
        verdicts=(),
        metrics=tuple(
            {
                "name": figure.name,
                "higher_is_better": figure.metric.higher_is_better,
                "unit": "points" if figure.fraction else "",
            }
            for figure in work.final_budget.figures
        ),
        budget={f.name: f.worst for f in work.final_budget.figures if f.worst is not None},
        limits=recipe.limits.given(),
        steps=marked,
        files=(work.baseline_file, *files, *rejected),
        latency=(*rows, *there),
        latency_verdicts=(*verdicts, *said),
        layers=_layers(work, outcome),
        data=_data(work),
        recipe=recipe.to_dict(),
        hashes=work.hashes,
        versions=versions(),
        host=_host(anonymous),
        inputs=_inputs(work, best),
        accelerators=accelerators,
        notes=tuple(notes),
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        seconds=sum(row.seconds for row in steps) + sum(row.seconds for row in (*files, *rejected)),
    )
    return dataclasses.replace(report, verdicts=tuple(_verdicts(report)))


def write_report(report: RunReport, path: Path) -> None:
    """Write `report.json` and `report.html` into a run directory."""
    from tfedge.page import render

    values = report.to_dict()
    write_whole(path / "report.html", render(values))
    write_whole(path / "report.json", json.dumps(values, indent=2, allow_nan=False) + "\n")


def _published(record: FileRecord, rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> FileRecord:
    """A file under its name in the run directory, judged by the limit on latency too."""
    record = dataclasses.replace(record, path=f"model_{record.mode}.tflite")
    most = recipe.limits.latency_ms
    timed = [row for row in rows if row["delegate"] == recipe.targets[0]]
    row = next((row for row in timed if row["model"] == record.path), None)
    if most is None or row is None or row["p50_ms"] <= most or record.outcome == "rejected":
        return record
    reason = f"latency {row['p50_ms']:.3g} ms is above the limit of {most:g} ms"
    return dataclasses.replace(record, outcome="rejected", reason=reason)


def _best(work: Work, files: Sequence[FileRecord], fitting: Sequence[FileRecord]) -> FileRecord:
    """The smallest file that fits; without one, the smallest within what may be lost."""
    within = [f for f in files if not work.final_budget.broken(f.figures)]
    chosen = list(fitting) or within or [work.baseline_file]
    return min(chosen, key=lambda f: f.gzip_bytes)


def _limit_breaker(files: Sequence[FileRecord]) -> str:
    return f"convert to {files[-1].mode}" if files else ""


def _latency(
    recipe: Recipe, work: Work, outcome: "Outcome"
) -> tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]:
    """All files timed side by side, the baseline's among them."""
    delegates = measured(recipe.targets)
    if not delegates:
        return (), ()
    work.say("measuring latency")
    path = work.directory.path
    models = {work.baseline_file.path: path / work.baseline_file.path}
    models |= {
        f"model_{record.mode}.tflite": path / f"model_{record.mode}.tflite"
        for record, _, _ in outcome.files
    }
    try:
        report = benchmark(
            models, delegates=delegates, allow_software=recipe.allow_software, seconds=2.0
        )
    except DelegateError as error:
        if recipe.limits.latency_ms is not None:
            raise
        return (), (f"Latency was not measured: {error}",)
    missing = [row for row in report.failures if row.delegate == recipe.targets[0]]
    if missing and recipe.limits.latency_ms is not None:
        raise DelegateError(missing[0].reason)
    failures = [
        f"Latency of {row.model} on {row.delegate} was not measured: {row.reason}"
        for row in report.failures
    ]
    sentences = (*failures, *report.verdicts, *report.notes)
    return tuple(row.to_dict() for row in report.rows), sentences


def _layers(work: Work, outcome: "Outcome") -> tuple[LayerRecord, ...]:
    """The kernels of the model as it came and of the last model in float."""
    before = _kernels(work.model)
    after = _kernels(work.load(outcome.states[-1].path))
    rows = []
    for name, (kind, kernel) in before.items():
        final = after.get(name, (kind, None))[1]
        top = float(max(np.abs(k).max() for k in (kernel, final) if k is not None)) or 1.0
        edges = np.linspace(-top, top, BINS + 1)
        rows.append(
            LayerRecord(
                layer=name,
                kind=kind,
                shape=tuple(kernel.shape),
                sparsity_before=float((kernel == 0).mean()),
                sparsity_after=None if final is None else float((final == 0).mean()),
                edges=tuple(edges.tolist()),
                before=_bins(kernel, edges),
                after=() if final is None else _bins(final, edges),
            )
        )
    return tuple(rows)


def _kernels(model: Any) -> dict[str, tuple[str, np.ndarray]]:
    """Layer to its class and its kernel, for layers with one of two or more dimensions."""
    from tfedge.engines.native.kernels import kernels_of
    from tfedge.models import layers_of

    kernels = [k for layer in layers_of(model) for k in kernels_of(layer, depthwise=True)]
    found: dict[str, tuple[str, np.ndarray]] = {}
    for kernel in kernels:
        name = kernel.layer.name
        if name in found:
            name = f"{name} {kernel.variable.name}"
        found[name] = (type(kernel.layer).__name__, kernel.variable.numpy())
    return found


def _bins(kernel: np.ndarray, edges: np.ndarray) -> tuple[int, ...]:
    return tuple(np.histogram(kernel[kernel != 0], edges)[0].tolist())


def _data(work: Work) -> dict[str, Any]:
    def count(split: Any) -> int | None:
        return None if split is None else len(split)

    return {
        "name": work.data.name,
        "train_samples": count(work.data.train),
        "evaluation_samples": count(work.judge.split),
        "calibration_samples": count(work.data.calibration),
        "notes": list(work.data.notes),
        "sha256": work.hashes["data"],
    }


def _host(anonymous: bool) -> dict[str, Any]:
    import platform

    facts = host_facts().to_dict()
    del facts["load_average"]  # of that minute, not of the machine
    return facts if anonymous else {"name": platform.node(), **facts}


def _inputs(work: Work, best: FileRecord) -> tuple[Mapping[str, Any], ...]:
    from tfedge.runtime import open_model

    with open_model(work.directory.path / best.path, delegate="none") as model:
        return tuple(
            {
                "label": info.label,
                "dtype": info.dtype,
                "shape": list(info.shape),
                "scale": info.scale,
            }
            for info in model.inputs
        )


def _verdicts(report: RunReport) -> list[str]:
    """Whether the budget holds, in sentences."""
    if not report.fits:
        rejected = [file for file in report.files if file.outcome == "rejected"]
        return [
            f"No file fits the budget: `{report.spent_by}` spent it.",
            *(f"{_made(file)} does not fit: {file.reason}." for file in rejected),
        ]
    return ["The result fits the budget."] if report.budget or report.limits else []


def _made(file: FileRecord) -> str:
    return f"{file.mode} by {file.way}" if file.way else file.mode
