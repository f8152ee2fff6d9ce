"""`tfedge inspect`: what a `.tflite` file holds."""

from pathlib import Path
from typing import Any

import click

from tfedge.cli._guard import guarded
from tfedge.cli._show import common_options, print_json, print_table, print_text, short_name
from tfedge.report import format_bytes


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--operators", is_flag=True, help="List every operator.")
@guarded("file")
@common_options
def inspect(file: Path, operators: bool, as_json: bool) -> None:
    """Show sizes, operators, quantisation and zeros of the .tflite file FILE. Runs nothing."""
    from tfedge.accelerators.edgetpu.compiled import inspect_compiled
    from tfedge.inspection import inspect_model

    report, compiled = inspect_model(file), inspect_compiled(file)
    if as_json:
        extra = {} if compiled is None else {"edgetpu": compiled.to_dict()}
        print_json({**report.to_dict(), **extra})
        return
    _show_summary(file, report)
    _show_counts(report)
    _show_weights(report)
    if operators:
        rows = [
            (
                row.index,
                row.name,
                ", ".join(row.input_dtypes),
                ", ".join(row.output_dtypes),
                f"{row.macs:,}",
                short_name(row.output_name),
            )
            for row in report.operators
        ]
        print_table("Operators", ("#", "operator", "inputs", "outputs", "MACs", "output"), rows)
    if report.float_operators:
        names = sorted({row.name for row in report.float_operators})
        print_text(
            f"{len(report.float_operators)} operator(s) compute in float: {', '.join(names)}."
        )
    if compiled is not None:
        for sentence in (str(compiled), *compiled.notes):
            print_text(sentence)


def _show_summary(file: Path, report: Any) -> None:
    rows = [
        ("size", format_bytes(report.size_bytes)),
        ("size after gzip -9", format_bytes(report.gzip_bytes)),
        ("parameters", f"{report.parameters:,}"),
        ("multiply-accumulates", f"{report.macs:,}"),
        ("zeros in kernels", f"{report.sparsity:.1%}"),
        ("integer only", "yes" if report.is_integer else "no"),
        ("QUANTIZE / DEQUANTIZE", f"{report.quantize_operators} / {report.dequantize_operators}"),
        ("islands", report.islands),
        *((f"input {short_name(row.name)}", _tensor(row)) for row in report.inputs),
        *((f"output {short_name(row.name)}", _tensor(row)) for row in report.outputs),
    ]
    print_table(str(file), ("", ""), rows, words=2)


def _tensor(row: Any) -> str:
    text = f"{row.dtype} {list(row.shape)}"
    if len(row.scale) == 1:
        text += f" scale {row.scale[0]:.4g} zero point {row.zero_point[0]}"
    return text


def _show_counts(report: Any) -> None:
    counts: dict[tuple[str, str], list[int]] = {}
    for row in report.operators:
        key = row.name, next(iter(row.output_dtypes), "")
        counts.setdefault(key, []).append(row.macs)
    rows = [(name, dtype, len(macs), f"{sum(macs):,}") for (name, dtype), macs in counts.items()]
    print_table("Operators by kind", ("operator", "output", "count", "MACs"), rows)


def _show_weights(report: Any) -> None:
    rows = [
        (
            short_name(row.name),
            row.dtype,
            list(row.shape),
            format_bytes(row.size_bytes),
            f"{row.sparsity:.1%}",
            row.distinct,
        )
        for row in report.weights
    ]
    print_table("Weights", ("tensor", "dtype", "shape", "size", "zeros", "distinct"), rows)
