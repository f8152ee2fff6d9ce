"""Measure `.tflite` models side by side: latency, start-up, memory, size.

Every row (model, delegate, threads) is a fresh child process, so that start-up and peak memory are
those of this model alone. The children take turns in short batches of runs, each round in the
opposite order, so that a host that slows down or heats up slows all of them.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from tfedge.benchmark.host import HostFacts, host_facts
from tfedge.benchmark.process import Child
from tfedge.benchmark.records import BenchmarkFailure, BenchmarkReport, BenchmarkRow
from tfedge.benchmark.verdicts import verdicts_of
from tfedge.errors import DelegateError, SettingsError
from tfedge.inspection import load_bytes
from tfedge.runtime import check_delegate, check_precision

__all__ = [
    "BenchmarkFailure",
    "BenchmarkReport",
    "BenchmarkRow",
    "HostFacts",
    "benchmark",
    "host_facts",
]

Model = bytes | str | os.PathLike[str]
BATCH_SECONDS: Final = 0.05


def benchmark(
    models: Model | Sequence[Model] | Mapping[str, Model],
    *,
    delegates: Sequence[str] = ("xnnpack",),
    threads: Sequence[int] = (1,),
    runs: int = 200,
    warmup: int = 10,
    seconds: float = 5.0,
    precision: str = "fp32",
    allow_software: bool = False,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> BenchmarkReport:
    """Measure models side by side on this machine.

    Args:
        models: One model, several, or a dict by name: paths or contents of `.tflite` files.
        delegates: Each model runs on each of them.
        threads: Each model runs with each of these numbers of threads; on a GPU once.
        runs: Timed runs of each row.
        warmup: Runs before them that are not counted.
        seconds: A row stops earlier when its timed runs have taken so long.
        precision: What a GPU computes floats in, `"fp32"` or `"fp16"`.
        allow_software: Whether a GPU that is a program on the CPU counts.
        progress: Called with (timed runs done, timed runs planned).
        seed: Seed of the random inputs.

    Returns:
        A row for each model, delegate and number of threads, with verdicts in words. Where several
        were asked for, one that cannot run becomes one of `failures`.

    Raises:
        SettingsError: A setting out of its range.
        FileFormatError: A file is not there or not sound.
        DelegateError: No row can run.

    Example:
        >>> report = benchmark({"float32": "f.tflite", "int8": "i.tflite"})  # doctest: +SKIP
        >>> report.verdicts  # doctest: +SKIP
        ('int8 is 1.7× slower than float32 on this host (xnnpack, 1 thread)',)
    """
    _check_settings(delegates, threads, runs, warmup, seconds)
    _check_gpu_settings(delegates, precision, allow_software)
    gpu = {"precision": precision, "allow_software": allow_software}
    host = host_facts()
    contents = {name: load_bytes(model)[0] for name, model in _named(models).items()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tfedge-")))
        jobs = list(_jobs(contents, delegates, threads, folder, seed, gpu))
        children, failures = _start(jobs, stack, warmup)
        times = _take_turns(children, runs, seconds, progress)
        rows = tuple(
            _row(child, times[i], len(contents[child.job["name"]]))
            for i, child in enumerate(children)
        )
    return BenchmarkReport(
        rows=rows,
        host=host,
        verdicts=verdicts_of(rows),
        notes=tuple(_notes(host, threads, rows)),
        failures=failures,
    )


def _start(
    jobs: Sequence[dict[str, Any]], stack: ExitStack, warmup: int
) -> tuple[list[Child], tuple[BenchmarkFailure, ...]]:
    """A child for each job that has run `warmup` times, and the jobs that could not."""
    children: list[Child] = []
    failures: list[BenchmarkFailure] = []
    for job in jobs:
        child = stack.enter_context(Child(job))
        try:
            child.open()
            child.run(warmup)
        except DelegateError as error:
            if len(jobs) == len(failures) + 1:
                raise
            failures.append(
                BenchmarkFailure(
                    model=job["name"],
                    delegate=job["delegate"],
                    threads=job["threads"],
                    reason=str(error),
                )
            )
        else:
            children.append(child)
    return children, tuple(failures)


def _check_gpu_settings(delegates: Sequence[str], precision: str, allow_software: bool) -> None:
    check_precision(precision)
    if "gpu" not in delegates and (precision != "fp32" or allow_software):
        given = "allow_software=True" if allow_software else f"precision={precision!r}"
        raise SettingsError(
            f"`precision` and `allow_software` are settings of the delegate 'gpu'. Received: "
            f"{given} and delegates={list(delegates)}. Add 'gpu', or leave it out."
        )


def _check_settings(
    delegates: Sequence[str], threads: Sequence[int], runs: int, warmup: int, seconds: float
) -> None:
    if isinstance(delegates, str) or not delegates:
        raise SettingsError(
            f"`delegates` is a sequence such as ('xnnpack', 'none'). Received: {delegates!r}."
        )
    for delegate in delegates:
        check_delegate(delegate)
    if isinstance(threads, int) or not threads or not all(map(_is_count, threads)):
        raise SettingsError(
            "`threads` is a sequence of numbers of at least 1, such as (1, 2). "
            f"Received: {threads!r}."
        )
    for name, value, lowest in (("runs", runs, 1), ("warmup", warmup, 1)):
        if not _is_count(value) or value < lowest:
            raise SettingsError(
                f"`{name}` is a whole number of at least {lowest}. Received: {value!r}."
            )
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise SettingsError(f"`seconds` must be above 0. Received: {seconds!r}.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _named(models: Model | Sequence[Model] | Mapping[str, Model]) -> dict[str, Model]:
    if isinstance(models, Mapping):
        named = {str(name): model for name, model in models.items()}
    else:
        single = isinstance(models, bytes | bytearray | str | os.PathLike)
        given: list[Any] = [models] if single else list(models)  # type: ignore[arg-type]
        paths = [model for model in given if not isinstance(model, bytes | bytearray)]
        stems = [Path(path).stem for path in paths]
        named = {}
        for index, model in enumerate(given):
            if isinstance(model, bytes | bytearray):
                name = f"model {index + 1}"
            else:
                name = str(model) if stems.count(Path(model).stem) > 1 else Path(model).stem
            if name in named:
                raise SettingsError(f"Each model is given once. Received twice: {name!r}.")
            named[name] = model
    if not named:
        raise SettingsError("`benchmark` needs at least one model. Received: none.")
    return named


def _jobs(
    contents: Mapping[str, bytes],
    delegates: Sequence[str],
    threads: Sequence[int],
    folder: Path,
    seed: int,
    gpu: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    for index, content in enumerate(contents.values()):
        (folder / f"{index}.tflite").write_bytes(content)
    for delegate in delegates:
        for count in (1,) if delegate == "gpu" else threads:
            for index, name in enumerate(contents):
                request: dict[str, Any] = {"delegate": delegate, "threads": count}
                yield {
                    "name": name,
                    "path": str(folder / f"{index}.tflite"),
                    "delegate": delegate,
                    "threads": count,
                    "seed": seed,
                    "request": request | (dict(gpu) if delegate == "gpu" else {}),
                }


def _take_turns(
    children: Sequence[Child],
    runs: int,
    seconds: float,
    progress: Callable[[int, int], None] | None,
) -> list[list[int]]:
    """Times in nanoseconds of each child; the children run in turns."""
    times: list[list[int]] = [[] for _ in children]
    left = list(range(len(children)))
    while left:
        for index in left:
            child, taken = children[index], times[index]
            size = max(1, min(runs - len(taken), int(BATCH_SECONDS * 1e9 / child.last_ns)))
            taken += child.run(size)
            if progress is not None:
                progress(sum(map(len, times)), runs * len(children))
        left = [i for i in reversed(left) if len(times[i]) < runs and sum(times[i]) < seconds * 1e9]
    return times


def _row(child: Child, times_ns: Sequence[int], size_bytes: int) -> BenchmarkRow:
    milliseconds = np.asarray(times_ns) / 1e6
    p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99))
    return BenchmarkRow(
        model=child.job["name"],
        delegate=child.job["delegate"],
        threads=child.job["threads"],
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        mean_ms=float(milliseconds.mean()),
        runs=len(times_ns),
        peak_memory_bytes=child.finish(),
        size_bytes=size_bytes,
        **child.facts,
    )


def _notes(host: HostFacts, threads: Sequence[int], rows: Sequence[BenchmarkRow]) -> Iterator[str]:
    for row in rows:
        yield from (f"{row.model}: {note}" for note in row.notes)
    if any(row.adapter for row in rows):
        yield "On a GPU a run is timed from the input arrays to the output arrays, read back."
    if host.load_average is not None and host.load_average > 0.5 * host.cores:
        yield (
            f"The host was busy (load {host.load_average:.1f} on {host.cores} cores): trust "
            "ratios, not milliseconds."
        )
    if max(threads) > host.cores:
        yield f"{max(threads)} threads were asked for on {host.cores} cores."
