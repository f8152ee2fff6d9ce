"""`tfedge verify`: how far a file is from the model it came from."""

from pathlib import Path
from typing import Any

import click

from tfedge.cli._guard import guarded, read_first
from tfedge.cli._show import (
    SEED,
    common_options,
    gpu_options,
    print_json,
    print_table,
    print_text,
    progress_bar,
)
from tfedge.errors import VerificationError

SHOWN_LAYERS = 40


@click.command()
@click.argument("reference", type=click.Path(exists=True, path_type=Path))
@click.argument("candidate", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="Inputs, with labels if there are: an .npz (`x`, `y`), an .npy, a folder of images, a "
    "data set's name or module:function. Its evaluation split, where it has one; else all of it.",
)
@click.option(
    "--metric",
    help="A metric's name or module:function.  [default: accuracy, or the mean absolute error]",
)
@click.option(
    "--samples", type=click.IntRange(2), default=1000, show_default=True, help="Samples at most."
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    help="Fail (exit code 1) when the argmax agreement is lower.",
)
@click.option(
    "--delegate",
    metavar="NAME",
    help="What runs CANDIDATE, a .tflite: none, xnnpack, gpu or edgetpu.  [default: xnnpack, or "
    "none where that takes nothing]",
)
@gpu_options
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--import", "imports", metavar="MODULE", multiple=True, help="Import it first.")
@click.option("--unsafe", is_flag=True, help="Load model files that carry code, and run it.")
@guarded("reference", "candidate", "data")
@common_options
def verify(
    reference: Path,
    candidate: Path,
    data: str,
    metric: str | None,
    samples: int,
    min_agreement: float | None,
    delegate: str | None,
    precision: str,
    allow_software: bool,
    seed: int,
    imports: tuple[str, ...],
    unsafe: bool,
    as_json: bool,
) -> None:
    """Send the same inputs through REFERENCE and CANDIDATE (.keras, .h5 or .tflite)."""
    from tfedge.data import load_evaluation
    from tfedge.verify import verify as verify_models

    with progress_bar(quiet=as_json) as advance:
        advance("loading", 0.0)
        models = [_model(path, unsafe, imports) for path in (reference, candidate)]
        split = load_evaluation(data).take(samples, seed)
        advance("comparing", 0.4)
        report = verify_models(
            models[0],
            models[1],
            split.x,
            labels=split.y,
            metric=metric,
            seed=seed,
            delegate=delegate,
            precision=precision,
            allow_software=allow_software,
        )
    if as_json:
        print_json(report)
    else:
        _show(report)
    if min_agreement is not None:
        _check_agreement(report, min_agreement)


def _check_agreement(report: Any, lowest: float) -> None:
    rule = f"The argmax agreement must be at least {lowest:.2%}."
    if report.agreement is None:
        raise VerificationError(
            f"{rule} Received: outputs without classes, which have none. Leave `--min-agreement` "
            "out, and read the SQNR."
        )
    if report.agreement < lowest:
        where = f" Look at `{report.first_parting}` first." if report.first_parting else ""
        raise VerificationError(f"{rule} Received: {report.agreement:.2%}.{where}")
    if not report.proven:
        raise VerificationError(
            f"{rule} Received: {report.agreement:.2%}, which proves nothing: permuted samples "
            f"agree in {report.control_agreement:.2%}. Give inputs on which the outputs differ."
        )


def _model(path: Path, unsafe: bool, imports: tuple[str, ...]) -> Any:
    if path.suffix == ".tflite":
        return path
    from tfedge.models import check_finite, load_model

    read_first(path)
    model = load_model(path, unsafe=unsafe, imports=imports)
    check_finite(model)
    return model


def _show(report: Any) -> None:
    rows = [
        (
            row.name,
            _percent(row.agreement),
            _percent(row.control_agreement),
            f"{row.max_error:.4g}",
            f"{row.mean_error:.4g}",
            f"{row.sqnr_db:.1f}",
        )
        for row in report.outputs
    ]
    columns = ("output", "agreement", "permuted", "max error", "mean error", "SQNR dB")
    print_table(f"{report.samples} samples", columns, rows)
    if report.layers:
        shown = [
            (row.name, f"{row.sqnr_db:.1f}", f"{row.max_error:.4g}")
            for row in report.layers[:SHOWN_LAYERS]
        ]
        print_table("Inner tensors", ("layer", "SQNR dB", "max error"), shown)
        left = len(report.layers) - len(shown)
        if left > 0:
            print_text(f"and {left} more (--json shows all).")
    if report.adapter:
        print_text(f"The candidate ran on the {report.delegate}: {report.adapter}.")
    for note in report.notes:
        print_text(f"Note: {note}")
    print_text(report.verdict)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.2%}"
