"""`tfedge convert`: a Keras model file to a `.tflite` file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tfedge.cli._show import (
    common_options,
    print_json,
    print_table,
    print_text,
    progress_bar,
)
from tfedge.convert import MODES
from tfedge.errors import DelegateError, SettingsError
from tfedge.report import format_bytes

TYPES = ("int8", "uint8", "int16", "float32")


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--mode", type=click.Choice(MODES), default="int8", show_default=True)
@click.option(
    "--calibration",
    metavar="DATA",
    help="Representative inputs: an .npz (array `x`, or the only one), an .npy, a folder of "
    "images, a data set's name or module:function. Needed by int8 and int16x8, unless the model "
    "was trained quantization-aware.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write.  [default: MODEL_MODE.tflite beside the model]",
)
@click.option("--input-type", type=click.Choice(TYPES), help="[default: the mode's own]")
@click.option("--output-type", type=click.Choice(TYPES), help="[default: as the input]")
@click.option("--allow-float", is_flag=True, help="Accept float operators in an integer file.")
@click.option(
    "--import",
    "imports",
    metavar="MODULE",
    multiple=True,
    help="Import this module first; its layer classes are known when the model is loaded.",
)
@click.option("--unsafe", is_flag=True, help="Load model files that carry code, and run it.")
@common_options
def convert(
    model: Path,
    mode: str,
    calibration: str | None,
    output: Path | None,
    input_type: str | None,
    output_type: str | None,
    allow_float: bool,
    imports: tuple[str, ...],
    unsafe: bool,
    as_json: bool,
) -> None:
    """Convert the Keras model in MODEL (.keras, .h5) to a .tflite file.

    The file is verified against the model before it is written.
    """
    target = output or model.with_name(f"{model.stem}_{mode}.tflite")
    if target.suffix != ".tflite":
        raise SettingsError(
            f"`--output` is the name of a `.tflite` file. Received: {str(target)!r}. "
            f"Write {str(target.with_suffix('.tflite'))!r}."
        )
    from tfedge.convert import convert as convert_model
    from tfedge.data import load_calibration
    from tfedge.files import check_writable, write_whole
    from tfedge.models import load_model

    check_writable(target)
    if target.exists() and target.samefile(model):
        raise SettingsError(
            f"`--output` is another file than the model. Received: {str(target)!r} for both. "
            "Choose another name."
        )
    with progress_bar(quiet=as_json) as advance:
        advance(f"loading {model.name}", 0.05)
        loaded = load_model(model, unsafe=unsafe, imports=imports)
        samples = None if calibration is None else load_calibration(calibration, model=loaded)
        fractions = iter((0.3, 0.5, 0.8))
        content, report = convert_model(
            loaded,
            mode=mode,
            calibration=samples,
            input_type=input_type,  # type: ignore[arg-type]  # click checked it
            output_type=output_type,  # type: ignore[arg-type]
            allow_float=allow_float,
            progress=lambda sentence: advance(sentence, next(fractions, 0.9)),
        )
        write_whole(target, content)
    if as_json:
        print_json({"path": str(target), **report.to_dict()})
    else:
        _show(target, report)


def _show(target: Path, report: Any) -> None:
    delegate, inputs, outputs = _ends(target)
    rows = [
        ("mode", report.mode),
        ("size", format_bytes(report.size_bytes)),
        ("size after gzip -9", format_bytes(report.gzip_bytes)),
        ("operators", len(report.inspection.operators)),
        ("of them in float", len(report.inspection.float_operators)),
        ("islands of QUANTIZE/DEQUANTIZE", report.islands),
        *((f"input {info.label}", _shape(info)) for info in inputs),
        *((f"output {info.label}", _shape(info)) for info in outputs),
        ("seconds", f"{report.seconds:.1f}"),
    ]
    print_table(str(target), ("", ""), rows, words=2)
    if report.float_operators:
        print_table(
            "Operators left in float",
            ("layer", "operator", "index", "reason"),
            [(row.layer, row.name, row.index, row.reason) for row in report.float_operators],
        )
    for note in report.notes:
        print_text(f"Note: {note}")
    print_text(f"Against the Keras model: {report.verification.verdict}")
    print_text(f"\nRun it:\n\n{run_snippet(target, inputs, delegate)}")


def _ends(path: Path) -> tuple[str, Sequence[Any], Sequence[Any]]:
    """The delegate that runs a file, its inputs and its outputs."""
    from tfedge.runtime import open_model

    try:
        model = open_model(path)
    except DelegateError:
        model = open_model(path, delegate="none")
    with model:
        return model.actual, model.inputs, model.outputs


def _shape(info: Any) -> str:
    return f"{info.dtype} {list(info.shape)}"


def run_snippet(path: Path, inputs: Sequence[Any], delegate: str = "xnnpack") -> str:
    """Six lines of Python that run a file.

    Args:
        path: The `.tflite` file.
        inputs: Its inputs, as `OpenModel.inputs`.
        delegate: The delegate that runs it.

    Returns:
        Python source; it needs the base install only.
    """
    arrays = [_zeros(info) for info in inputs]
    given = arrays[0]
    if len(arrays) > 1:
        named = zip(inputs, arrays, strict=True)
        given = "{" + ", ".join(f"{info.label!r}: {array}" for info, array in named) + "}"
    choice = "" if delegate == "xnnpack" else f", delegate={delegate!r}"
    lines = (
        "import numpy as np",
        "import tfedge",
        "",
        f"inputs = {given}  # your samples, scaled as for training",
        f"with tfedge.open_model({str(path)!r}{choice}) as model:",
        "    print(model.predict(inputs))",
    )
    return "\n".join(lines)


def _zeros(info: Any) -> str:
    """Source of an array for one input; `predict` takes real numbers for quantized ones."""
    dtype = "float32" if info.scale or info.dtype.startswith("float") else info.dtype
    return f"np.zeros({info.shape}, np.{'bool_' if dtype == 'bool' else dtype})"
