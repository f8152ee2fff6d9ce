"""Convert a Keras model to the bytes of a `.tflite` (LiteRT) file.

data, report = convert(model, mode="int8", calibration=images)

mode           weights   activations   needs
float32        float32   float32       nothing
float16        float16   float32       nothing
dynamic_int8   int8      float32       nothing
int8           int8      int8          a model from `Quantize`, or calibration samples
int16x8        int8      int16         calibration samples

Weights that `Quantize` trained with fewer than 8 bits, or with learned steps, keep their integers
in an int8 file; dense ones of at most 4 bits are packed as int4.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tfedge.convert._calibration import Samples, as_samples
from tfedge.convert._origin import FloatOperator, float_operators
from tfedge.convert._request import Request
from tfedge.convert._signature import input_specs, takes_dict
from tfedge.errors import (
    ConversionError,
    DataError,
    FloatOperatorsError,
    SettingsError,
    did_you_mean,
)
from tfedge.inspection import InspectionReport, inspect_model
from tfedge.models import check_finite, is_functional, keras_of
from tfedge.report import Record
from tfedge.verify import VerificationReport, verify

MODES = ("float32", "float16", "dynamic_int8", "int8", "int16x8")
INTEGER_MODES = ("int8", "int16x8")
CHECKED_SAMPLES = 16
LOWEST_FLOAT_SQNR_DB = 30.0

TensorType = Literal["int8", "uint8", "int16", "float32"]
_TYPES = {"int8": ("int8", "uint8", "float32"), "int16x8": ("int16", "float32")}


@dataclass(frozen=True, kw_only=True)
class ConversionReport(Record):
    """What a conversion made.

    Attributes:
        mode: One of `MODES`.
        size_bytes: Size of the file.
        gzip_bytes: Its size after `gzip -9`.
        float_operators: Operators that compute in float, with the Keras layer each came from.
        islands: QUANTIZE and DEQUANTIZE operators inside the graph.
        inspection: All operators, tensors and weights of the file.
        verification: The file against the model, on real inputs where there were any.
        seconds: How long the conversion took.
        notes: Sentences for the reader.
    """

    mode: str
    size_bytes: int
    gzip_bytes: int
    float_operators: tuple[FloatOperator, ...]
    islands: int
    inspection: InspectionReport
    verification: VerificationReport
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        operators = len(self.inspection.operators)
        return (
            f"{self.mode}: {self.size_bytes} bytes (gzip {self.gzip_bytes}), "
            f"{operators} operators, {len(self.float_operators)} in float"
        )


def convert(
    model: Any,
    *,
    mode: str = "int8",
    calibration: Any = None,
    input_type: TensorType | None = None,
    output_type: TensorType | None = None,
    allow_float: bool = False,
    progress: Callable[[str], None] | None = None,
) -> tuple[bytes, ConversionReport]:
    """Convert a Keras model to the bytes of a `.tflite` file, and prove it against the model.

    The file takes one sample at a time: batch 1 and static shapes.

    Args:
        model: A Keras 3 or tf_keras model; from `Quantize.prepare`, it needs no calibration.
        mode: One of `MODES`.
        calibration: Representative samples as the model takes them, `(samples, …)`; a sequence or
            dict of them for several inputs; a `Split`. Take some hundred, of every class.
        input_type: Type of the file's float inputs in the integer modes. Default: `"int8"`
            (`"int16"` for int16x8).
        output_type: Type of its float outputs. Default: as `input_type`.
        allow_float: Whether an integer file may hold float operators.
        progress: Called with a sentence when a step begins.

    Returns:
        The bytes of the file, and the report.

    Raises:
        SettingsError: A mode or type that does not exist.
        DataError: Calibration samples are missing or do not fit the model.
        ModelError: The model has weights that are not finite.
        FloatOperatorsError: An integer file would hold float operators.
        ConversionError: The converter failed, or the file does not do what the model does.

    Example:
        >>> data, report = convert(model, mode="int8", calibration=x)  # doctest: +SKIP
        >>> write_whole("model.tflite", data)  # doctest: +SKIP
    """
    started = time.perf_counter()
    say = progress or (lambda message: None)
    types = _io_types(mode, input_type, output_type)
    check_finite(model)
    samples = None if calibration is None else as_samples(calibration, model)
    aware = _is_quantization_aware(model)
    _check_mode(mode, aware, samples, model)
    notes: list[str] = []
    say("Preparing the model")
    source, request = _source(model, aware, mode, types, samples, notes)
    say("Converting")
    from tfedge.convert._lite import write_file  # imports TensorFlow

    data = write_file(source, request)
    if request.levels:
        data = _with_levels(data, request, notes)
    say("Checking the file")
    inspection = inspect_model(data)
    floats = float_operators(inspection, model) if mode in INTEGER_MODES else ()
    if floats and not allow_float:
        raise FloatOperatorsError(_float_message(mode, floats))
    if mode == "dynamic_int8" and not any(w.dtype == "int8" for w in inspection.weights):
        notes.append(
            "Nothing was quantised: in this mode the converter leaves kernels of fewer than 1,024 "
            "values as they are."
        )
    if aware:
        _check_kept(model, inspection, notes)
    verification = _verified(model, data, mode, samples)
    return data, ConversionReport(
        mode=mode,
        size_bytes=len(data),
        gzip_bytes=inspection.gzip_bytes,
        float_operators=floats,
        islands=inspection.islands,
        inspection=inspection,
        verification=verification,
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def _check_kept(model: Any, inspection: InspectionReport, notes: list[str]) -> None:
    """Check that the zeros and clusters that a fake-quantised model keeps are in its file."""
    from tfedge.engines.kept import doubled, kept_kernels, lost_in_file

    kept = kept_kernels(model)
    missing = lost_in_file(kept, inspection.weights)
    if missing:
        raise ConversionError(
            f"The file of `{model.name}` lost what `Quantize` kept: {missing}. That is the "
            "converter's doing: please report it with the model, or keep the layer float with "
            "`keep_float`."
        )
    notes.extend(doubled(kept))


def _io_types(mode: str, input_type: str | None, output_type: str | None) -> tuple[str, str]:
    if mode not in MODES:
        raise SettingsError(
            f"`mode` is one of {', '.join(MODES)}. Received: {mode!r}.{did_you_mean(mode, MODES)}"
        )
    allowed = _TYPES.get(mode, ("float32",))
    types = (input_type or allowed[0], output_type or input_type or allowed[0])
    for name, value in zip(("input_type", "output_type"), types, strict=True):
        if value not in allowed:
            raise SettingsError(
                f"`{name}` of a {mode} file is one of {', '.join(allowed)}. Received: {value!r}."
            )
    return types


def _is_quantization_aware(model: Any) -> bool:
    if keras_of(model) == "keras":
        from tfedge.engines.native.quantize import is_quantized

        return is_quantized(model)
    from tfedge.engines import tfmot

    if tfmot.is_pruning(model):
        raise ConversionError(
            f"`{model.name}` still wears the wrappers of pruning. Take them off with "
            "`Prune.finish(model)` and convert what it returns."
        )
    return tfmot.is_quantize_aware(model)


def _check_mode(mode: str, aware: bool, samples: Samples | None, model: Any) -> None:
    if aware and mode != "int8":
        raise ConversionError(
            f"`{model.name}` was trained for int8: its weights and ranges only fit `mode='int8'`. "
            f"Received: mode={mode!r}. Convert the model from before `Quantize` instead."
        )
    if mode in INTEGER_MODES and not aware and samples is None:
        raise DataError(
            f"`mode={mode!r}` needs `calibration=` samples: the ranges of the activations are "
            "taken from them. Received: none. Give some hundred real inputs, or train with "
            "`tfedge.Quantize` first."
        )


def _source(
    model: Any,
    aware: bool,
    mode: str,
    types: tuple[str, str],
    samples: Samples | None,
    notes: list[str],
) -> tuple[Any, Request]:
    """The Keras model to hand to the converter, and what to ask of it."""
    request = Request(mode=mode, input_type=types[0], output_type=types[1], samples=samples)
    if mode != "int8":
        return _in_float32(model), request
    if keras_of(model) != "keras":
        if not aware:
            return model, request
        from tfedge.engines import tfmot

        return tfmot.bake(model), request.with_ranges_in_graph()
    if not aware and not is_functional(model):
        notes.append(f"Ranges from {len(samples or ())} samples, by the TFLite converter.")
        return model, request
    from tfedge.engines.native.export import export_model
    from tfedge.engines.native.levels import stored_levels
    from tfedge.engines.native.quantize import calibrate, prepare_quantization, unknown_layers

    if not aware and samples is not None:
        model, _ = prepare_quantization(model)
        calibrate(model, samples.batches(32))
        notes.append(f"Ranges from {len(samples)} calibration samples.")
    inner = unknown_layers(model)
    if inner and samples is not None:
        notes.append(
            f"There is no rule for the inside of {', '.join(inner)}: ranges there come from "
            f"{len(samples)} calibration samples, loops stay float."
        )
    request = request.with_ranges_in_graph(inner if samples is not None else ())
    return export_model(model), dataclasses.replace(request, levels=stored_levels(model))


def _with_levels(data: bytes, request: Request, notes: list[str]) -> bytes:
    """The file with the integers of training in its kernels; `notes` says what was packed."""
    from tfedge.convert._int4 import with_levels

    data, packed = with_levels(data, request.levels)
    if packed:
        notes.append(f"Packed as int4, two weights in a byte: {', '.join(packed)}.")
    for bits in sorted({row.bits for row in request.levels}):
        names = [row.layer for row in request.levels if row.bits == bits]
        stored = [name for name in names if name not in packed]
        if stored and bits < 8:
            notes.append(f"Weights of {bits} bits in int8: {', '.join(stored)}.")
    return data


def _in_float32(model: Any) -> Any:
    """The model computing in float32, as LiteRT does, where tfedge can rebuild it so."""
    if keras_of(model) != "keras" or not is_functional(model) or not model.built:
        return model
    from tfedge.engines.native.export import in_float32

    return in_float32(model)


def _float_message(mode: str, floats: tuple[FloatOperator, ...]) -> str:
    rows = "".join(
        f"\n  operator {row.index} {row.name} of layer `{row.layer}`: {row.reason}"
        for row in floats[:8]
    )
    more = f"\n  and {len(floats) - 8} more" if len(floats) > 8 else ""
    return (
        f"A {mode} file holds integer operators only, and {len(floats)} would stay float:"
        f"{rows}{more}\nReplace those layers, or accept them with `allow_float=True` "
        "(`--allow-float`)."
    )


def _verified(model: Any, data: bytes, mode: str, samples: Samples | None) -> VerificationReport:
    """The file against its model; float files must agree closely."""
    inputs = samples.take(CHECKED_SAMPLES) if samples is not None else _noise(model)
    report = verify(model, data, inputs, tensors=False)
    if mode in ("float32", "float16") and not report.sqnr_db >= LOWEST_FLOAT_SQNR_DB:
        raise ConversionError(
            f"The {mode} file does not do what `{model.name}` does: {report.sqnr_db:.1f} dB "
            f"between their outputs on {report.samples} samples, {LOWEST_FLOAT_SQNR_DB:.0f} dB "
            "expected. "
            "A layer that behaves differently while exporting is the usual cause."
        )
    return report


def _noise(model: Any) -> Any:
    """Seeded inputs for a check without real ones, uniform in [0, 1)."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.random((CHECKED_SAMPLES, *(size or 1 for size in spec.shape[1:]))).astype(spec.dtype)
        for spec in input_specs(model)
    ]
    if takes_dict(model):
        return {spec.name: a for spec, a in zip(input_specs(model), arrays, strict=True)}
    return arrays if len(arrays) > 1 else arrays[0]
