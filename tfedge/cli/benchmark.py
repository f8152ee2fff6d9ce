"""`tfedge benchmark`: how fast `.tflite` files are on this machine."""

from pathlib import Path
from typing import Any

import click

from tfedge.cli._guard import guarded
from tfedge.cli._show import (
    common_options,
    gpu_options,
    print_json,
    print_table,
    print_text,
    progress_bar,
)
from tfedge.report import format_bytes


def _words(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(word) for word in _words(ctx, parameter, value)))
    except ValueError as error:
        raise click.BadParameter(f"expected numbers such as 1,2. Received: {value!r}.") from error


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--delegate",
    "delegates",
    default="xnnpack",
    show_default=True,
    callback=_words,
    help="One or several of none, xnnpack, gpu and edgetpu, as in none,xnnpack.",
)
@click.option(
    "--threads",
    default="1",
    show_default=True,
    callback=_numbers,
    help="One or several numbers of threads, as in 1,2.",
)
@click.option(
    "--runs", type=click.IntRange(1), default=200, show_default=True, help="Timed runs of a row."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=5.0,
    show_default=True,
    help="A row ends earlier when its runs have taken this long.",
)
@gpu_options
@guarded("files")
@common_options
def benchmark(
    files: tuple[Path, ...],
    delegates: tuple[str, ...],
    threads: tuple[int, ...],
    runs: int,
    seconds: float,
    precision: str,
    allow_software: bool,
    as_json: bool,
) -> None:
    """Measure the .tflite FILES side by side: latency, start-up, memory, size."""
    from tfedge.benchmark import benchmark as measure

    with progress_bar(quiet=as_json) as advance:
        advance("starting", 0.0)
        report = measure(
            files,
            delegates=delegates,
            threads=threads,
            runs=runs,
            seconds=seconds,
            precision=precision,
            allow_software=allow_software,
            progress=lambda done, planned: advance("measuring", done / planned),
        )
    if as_json:
        print_json(report)
    else:
        show_benchmark(report)
    if report.failures:
        click.get_current_context().exit(1)


def show_benchmark(report: Any) -> None:
    """Print the rows of a `BenchmarkReport`, those that failed, and its verdicts."""
    columns = [
        "model",
        "delegate",
        "threads",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "start ms",
        "peak memory",
        "size",
        "delegated",
    ]
    rows: list[tuple[Any, ...]] = [_row(row) for row in report.rows]
    missing = (None,) * (len(columns) - 3)
    rows += [(row.model, row.delegate, row.threads, *missing) for row in report.failures]
    print_table("Latency on this machine", columns, rows)
    adapters = {(row.adapter, row.precision): None for row in report.rows if row.adapter}
    for adapter, precision in adapters:
        print_text(f"gpu: {adapter}, {precision}")
    for failure in report.failures:
        print_text(f"{failure.model} did not run on {failure.delegate}: {failure.reason}")
    for sentence in (*report.verdicts, *report.notes):
        print_text(sentence)


def _row(row: Any) -> tuple[Any, ...]:
    return (
        row.model,
        row.actual,
        row.threads,
        f"{row.p50_ms:.3f}",
        f"{row.p90_ms:.3f}",
        f"{row.p99_ms:.3f}",
        f"{row.init_ms:.1f}",
        format_bytes(row.peak_memory_bytes),
        format_bytes(row.size_bytes),
        f"{row.nodes_delegated}/{row.nodes_total}",
    )
