"""Report what a `.tflite` file holds: operators, element types, sizes, zeros, what stays float."""

import gzip
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from tfedge.errors import FileFormatError
from tfedge.inspection.decode import Fields
from tfedge.inspection.layout import FLOAT_DTYPES, words
from tfedge.inspection.soundness import (
    buffer_bytes,
    check_sound,
    dtype_of,
    operator_name,
    shape_of,
    tensor_bytes,
)
from tfedge.inspection.weights import count_zeros
from tfedge.report import Record, format_bytes

# Kinds that combine a constant element by element: their constants are no kernels.
ELEMENTWISE: Final = frozenset(
    words("""ADD ADD_N CONCATENATION DIV EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL MAXIMUM MINIMUM
    MUL NOT_EQUAL PACK PAD PADV2 POW PRELU SELECT SELECT_V2 SQUARED_DIFFERENCE SUB""")
)

# Scopes that stand for no layer.
NO_LAYERS: Final = ("StatefulPartitionedCall", "PartitionedCall", "arith.constant")


@dataclass(frozen=True, kw_only=True)
class TensorRecord(Record):
    """A tensor of the file.

    Attributes:
        index: Its number in its subgraph.
        name: Its name.
        shape: As stored; a dimension that may change is stored as 1.
        dtype: Element type, e.g. `"int8"`.
        scale: One scale, or one for each channel; empty when not quantized.
        zero_point: As many as `scale`.
        axis: The axis of the channels; `None` when there is one scale or none.
        size_bytes: Its size in memory; of a constant, its size in the file.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    axis: int | None = None
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class OperatorRecord(Record):
    """An operator of the file.

    Attributes:
        index: Its number in its subgraph, in order of execution.
        name: Its kind, e.g. `"CONV_2D"`, or the name of a custom operator.
        inputs: Indices of its input tensors; -1 for one that is left out.
        outputs: Indices of its output tensors.
        input_dtypes: Element types of the inputs that are there.
        output_dtypes: Element types of the outputs.
        macs: Multiply-accumulates of one run; 0 for kinds that have none.
        output_name: Name of its first output tensor, which often holds the layer's name.
        subgraph: Number of its subgraph; 0 is the model, others are branches and loops.
    """

    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_dtypes: tuple[str, ...]
    output_dtypes: tuple[str, ...]
    macs: int
    output_name: str
    subgraph: int = 0


@dataclass(frozen=True, kw_only=True)
class WeightRecord(Record):
    """A constant tensor that an operator computes with: kernel, bias, table, factor.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: Element type as stored.
        size_bytes: Its size in the file.
        zeros: Elements that are zero; of stored integers, that equal the zero point.
        sparsity: `zeros` as a fraction of all its elements.
        distinct: Number of distinct stored values.
        operator: Index of the first operator that uses it.
        constant_of: That operator's kind. A DEQUANTIZE or DENSIFY in between is looked through.
        is_kernel: Whether it counts for the model's sparsity: rank 2 or more, and not combined
            element by element.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    zeros: int
    sparsity: float
    distinct: int
    operator: int
    constant_of: str
    is_kernel: bool


@dataclass(frozen=True, kw_only=True)
class InspectionReport(Record):
    """What a `.tflite` file holds.

    Attributes:
        path: The file; `None` when bytes were given.
        size_bytes: Size of the file.
        gzip_bytes: Its size after `gzip -9`.
        description: The text that the converter left.
        runtime_version: Oldest runtime that can run it, as the converter noted; `None` without.
        inputs: The model's inputs.
        outputs: The model's outputs.
        tensors: All tensors of the model itself (subgraph 0), by their index.
        operators: All operators, subgraph by subgraph.
        weights: All constants that operators compute with.
        parameters: Elements of `weights`.
        macs: Multiply-accumulates of one run.
        sparsity: Zeros as a fraction of all elements of the kernels (`WeightRecord.is_kernel`).
        float_operators: Operators with a float activation, QUANTIZE and DEQUANTIZE excepted.
        quantize_operators: Number of QUANTIZE operators.
        dequantize_operators: Number of DEQUANTIZE operators.
        islands: Number of QUANTIZE and DEQUANTIZE operators between float and integer that stand
            neither at an input, nor at an output, nor behind a constant.
        custom_operators: Kinds of custom operators.
    """

    path: str | None
    size_bytes: int
    gzip_bytes: int
    description: str
    runtime_version: str | None
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    tensors: tuple[TensorRecord, ...]
    operators: tuple[OperatorRecord, ...]
    weights: tuple[WeightRecord, ...]
    parameters: int
    macs: int
    sparsity: float
    float_operators: tuple[OperatorRecord, ...]
    quantize_operators: int
    dequantize_operators: int
    islands: int
    custom_operators: tuple[str, ...]

    @property
    def is_integer(self) -> bool:
        """Whether all computation between the inputs and the outputs is on integers."""
        return not self.float_operators and self.islands == 0

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values, `is_integer` among them."""
        return {**super().to_dict(), "is_integer": self.is_integer}

    def __str__(self) -> str:
        kind = "integer" if self.is_integer else f"{len(self.float_operators)} float operators"
        return (
            f"{self.path or 'model'}: {format_bytes(self.size_bytes)} "
            f"({format_bytes(self.gzip_bytes)} gzipped), {len(self.operators)} operators, {kind}, "
            f"{self.parameters:,} parameters, {self.sparsity:.1%} zeros, {self.macs:,} MACs"
        )


def layer_of(tensor_name: str) -> str:
    """The layer of the model that a tensor comes from, as far as its name says.

    Converters name a tensor by scopes, of which the layer is the last, and the operation in it, and
    join the names of what they fused with `;`.

    Args:
        tensor_name: Of the output of an operator, say.

    Returns:
        The innermost scope, or an empty string where the name has none.

    Example:
        >>> layer_of("model/relu_1/Relu;model/conv_1/BiasAdd"), layer_of("tfl.quantize")
        ('relu_1', '')
    """
    scopes = tensor_name.split(";")[0].split("/")[:-1]
    return scopes[-1] if scopes and not scopes[-1].startswith(NO_LAYERS) else ""


def load_bytes(model: bytes | str | os.PathLike[str]) -> tuple[bytes, str | None]:
    """The content of a `.tflite` file, and its path if it is one.

    Raises:
        FileFormatError: No such file, or it cannot be read.
    """
    if isinstance(model, bytes | bytearray | memoryview):
        return bytes(model), None
    path = Path(model)
    try:
        return path.read_bytes(), str(path)
    except FileNotFoundError as error:
        raise FileFormatError(f"There is no such file: `{path}`. Check the path.") from error
    except OSError as error:
        raise FileFormatError(
            f"Could not read `{path}`: {error.strerror or error}. Give a `.tflite` file."
        ) from error


def inspect_model(model: bytes | str | os.PathLike[str]) -> InspectionReport:
    """Read a `.tflite` file without running it.

    Args:
        model: Path of the file, or its content.

    Returns:
        What it holds.

    Raises:
        FileFormatError: There is no such file, or it is not sound.

    Example:
        >>> report = inspect_model("model_int8.tflite")  # doctest: +SKIP
        >>> report.is_integer, report.sparsity  # doctest: +SKIP
        (True, 0.86)
    """
    data, path = load_bytes(model)
    fields = check_sound(data)
    buffers = [buffer_bytes(data, fields, i) for i in range(len(fields["buffers"]))]
    main = fields["subgraphs"][0]
    tensors = _tensor_records(main, buffers)
    return InspectionReport(
        path=path,
        size_bytes=len(data),
        gzip_bytes=len(gzip.compress(data, 9, mtime=0)),
        description=fields["description"] or "",
        runtime_version=_runtime_version(fields, buffers),
        inputs=tuple(tensors[i] for i in _indices(main["inputs"])),
        outputs=tuple(tensors[i] for i in _indices(main["outputs"])),
        tensors=tensors,
        custom_operators=_custom_operators(fields),
        **_operator_facts(fields, buffers),
    )


def unique_values(model: bytes | str | os.PathLike[str]) -> dict[str, int]:
    """How many distinct values each kernel of a `.tflite` file stores.

    Args:
        model: Path of the file, or its content.

    Returns:
        Name of each kernel's tensor to the number; tensors of one name go by the larger one.

    Raises:
        FileFormatError: There is no such file, or it is not sound.
    """
    found: dict[str, int] = {}
    for weight in inspect_model(model).weights:
        if weight.is_kernel:
            found[weight.name] = max(found.get(weight.name, 0), weight.distinct)
    return found


def _operator_facts(fields: Fields, buffers: list[np.ndarray]) -> dict[str, Any]:
    """The fields of `InspectionReport` that are gathered operator by operator."""
    operators: list[OperatorRecord] = []
    weights: list[WeightRecord] = []
    floats: list[OperatorRecord] = []
    islands = 0
    for number, subgraph in enumerate(fields["subgraphs"]):
        count = len(subgraph["operators"] or [])
        records = [_operator_record(fields, subgraph, index, number) for index in range(count)]
        constants = _constants(subgraph, buffers)
        operators += records
        floats += [record for record in records if _is_float(record, subgraph, constants)]
        islands += sum(_is_island(record, subgraph, constants) for record in records)
        weights += _weight_records(subgraph, records, buffers)
    kernels = [weight for weight in weights if weight.is_kernel]
    elements = sum(math.prod(weight.shape) for weight in kernels)
    return {
        "operators": tuple(operators),
        "weights": tuple(weights),
        "parameters": sum(math.prod(weight.shape) for weight in weights),
        "macs": sum(record.macs for record in operators),
        "sparsity": sum(weight.zeros for weight in kernels) / elements if elements else 0.0,
        "float_operators": tuple(floats),
        "quantize_operators": sum(record.name == "QUANTIZE" for record in operators),
        "dequantize_operators": sum(record.name == "DEQUANTIZE" for record in operators),
        "islands": islands,
    }


def _runtime_version(fields: Fields, buffers: list[np.ndarray]) -> str | None:
    for entry in fields["metadata"] or []:
        if entry["name"] == "min_runtime_version":
            text = buffers[entry["buffer"]].tobytes().split(b"\0")[0]
            return text.decode("utf-8", "replace") or None
    return None


def _custom_operators(fields: Fields) -> tuple[str, ...]:
    used = {
        operator["opcode_index"]
        for subgraph in fields["subgraphs"]
        for operator in subgraph["operators"] or []
    }
    codes = [fields["operator_codes"][index] for index in sorted(used)]
    return tuple(code["custom_code"] for code in codes if code["builtin_code"] == 32
                 or code["deprecated_builtin_code"] == 32)  # fmt: skip


def _indices(vector: np.ndarray | None) -> tuple[int, ...]:
    return () if vector is None else tuple(vector.tolist())


def _tensor_records(subgraph: Fields, buffers: list[np.ndarray]) -> tuple[TensorRecord, ...]:
    records = []
    for index, tensor in enumerate(subgraph["tensors"] or []):
        quantization = tensor["quantization"] or {}
        scale = _indices(quantization.get("scale"))
        stored = len(buffers[tensor["buffer"]])
        records.append(
            TensorRecord(
                index=index,
                name=tensor["name"] or "",
                shape=shape_of(tensor),
                dtype=dtype_of(tensor),
                scale=scale,
                zero_point=_indices(quantization.get("zero_point")) if scale else (),
                axis=quantization["quantized_dimension"] if len(scale) > 1 else None,
                size_bytes=stored or tensor_bytes(tensor),
            )
        )
    return tuple(records)


def _operator_record(fields: Fields, subgraph: Fields, index: int, number: int) -> OperatorRecord:
    operator, tensors = subgraph["operators"][index], subgraph["tensors"] or []
    name = operator_name(fields, operator)
    inputs, outputs = _indices(operator["inputs"]), _indices(operator["outputs"])
    shapes = [shape_of(tensors[i]) if i >= 0 else () for i in inputs]
    return OperatorRecord(
        index=index,
        name=name,
        inputs=inputs,
        outputs=outputs,
        input_dtypes=tuple(dtype_of(tensors[i]) for i in inputs if i >= 0),
        output_dtypes=tuple(dtype_of(tensors[i]) for i in outputs),
        macs=count_macs(
            name,
            shapes,
            shape_of(tensors[outputs[0]]) if outputs else (),
            operator["builtin_options"],
        ),  # fmt: skip
        output_name=(tensors[outputs[0]]["name"] or "") if outputs else "",
        subgraph=number,
    )


def count_macs(
    name: str,
    inputs: list[tuple[int, ...]],
    output: tuple[int, ...],
    options: Fields | None = None,
) -> int:
    """Multiply-accumulates of one run of an operator.

    Args:
        name: Kind of the operator. Convolutions, FULLY_CONNECTED and BATCH_MATMUL are counted.
        inputs: Shapes of its inputs in LiteRT's layout.
        output: Shape of its output.
        options: Decoded options; `adj_x` of BATCH_MATMUL is used.

    Returns:
        The count; 0 for every other kind.

    Example:
        >>> count_macs("CONV_2D", [(1, 8, 8, 3), (16, 3, 3, 3), (16,)], (1, 8, 8, 16))
        27648
    """
    if len(inputs) < 2:
        return 0
    if name in ("CONV_2D", "FULLY_CONNECTED"):
        return math.prod(output) * math.prod(inputs[1][1:])
    if name == "DEPTHWISE_CONV_2D":
        return math.prod(output) * math.prod(inputs[1][1:3])
    if name == "CONV_3D":
        return math.prod(output) * math.prod(inputs[1][:4])
    if name == "TRANSPOSE_CONV":
        return math.prod(inputs[2]) * math.prod(inputs[1][:3])
    if name == "BATCH_MATMUL" and len(inputs[0]) >= 2:
        adjoint = options is not None and bool(options.get("adj_x"))
        return math.prod(output) * inputs[0][-2 if adjoint else -1]
    return 0


def _constants(subgraph: Fields, buffers: list[np.ndarray]) -> set[int]:
    tensors = subgraph["tensors"] or []
    return {i for i, tensor in enumerate(tensors) if len(buffers[tensor["buffer"]])}


def _float_tensors(indices: Iterable[int], subgraph: Fields, constants: set[int]) -> list[int]:
    return [
        i
        for i in indices
        if i >= 0 and i not in constants and dtype_of(subgraph["tensors"][i]) in FLOAT_DTYPES
    ]


def _is_float(record: OperatorRecord, subgraph: Fields, constants: set[int]) -> bool:
    if record.name in ("QUANTIZE", "DEQUANTIZE"):
        return False
    return bool(_float_tensors(record.inputs + record.outputs, subgraph, constants))


def _is_island(record: OperatorRecord, subgraph: Fields, constants: set[int]) -> bool:
    if record.name == "QUANTIZE":
        inside = set(record.inputs) - set(_indices(subgraph["inputs"])) - constants
        return bool(_float_tensors(inside, subgraph, constants))
    if record.name == "DEQUANTIZE":
        inside = set(record.outputs) - set(_indices(subgraph["outputs"]))
        return bool(inside) and not constants.issuperset(record.inputs)
    return False


def _weight_records(
    subgraph: Fields, records: list[OperatorRecord], buffers: list[np.ndarray]
) -> list[WeightRecord]:
    tensors, behind = subgraph["tensors"] or [], _users_behind(records)
    weights, seen = [], set()
    for record in records:
        for index in record.inputs:
            if index < 0 or index in seen or not _is_weight(tensors[index], buffers):
                continue
            seen.add(index)
            tensor, user = tensors[index], behind.get(record.index, record)
            shape, raw = shape_of(tensor), buffers[tensor["buffer"]]
            zeros, distinct = count_zeros(tensor, raw)
            weights.append(
                WeightRecord(
                    name=tensor["name"] or "",
                    shape=shape,
                    dtype=dtype_of(tensor),
                    size_bytes=len(raw),
                    zeros=zeros,
                    sparsity=zeros / math.prod(shape) if math.prod(shape) else 0.0,
                    distinct=distinct,
                    operator=user.index,
                    constant_of=user.name,
                    is_kernel=len(shape) >= 2 and user.name not in ELEMENTWISE,
                )
            )
    return weights


def _is_weight(tensor: Fields, buffers: list[np.ndarray]) -> bool:
    """Floats and quantized or narrow integers are weights; plain int32 are shapes and axes."""
    dtype = dtype_of(tensor)
    if not len(buffers[tensor["buffer"]]) or dtype in ("string", "resource", "variant", "bool"):
        return False
    quantization = tensor["quantization"]
    quantized = quantization is not None and quantization["scale"] is not None
    plain = ("int32", "int64", "uint32", "uint64")
    return dtype not in plain or (quantized and len(quantization["scale"]) > 0)


def _users_behind(records: list[OperatorRecord]) -> dict[int, OperatorRecord]:
    """For each DEQUANTIZE or DENSIFY by index, the operator that computes with what it gives."""
    readers: dict[int, OperatorRecord] = {}
    behind: dict[int, OperatorRecord] = {}
    for record in reversed(records):
        if record.name in ("DEQUANTIZE", "DENSIFY"):
            reader = readers.get(record.outputs[0], record)
            behind[record.index] = behind.get(reader.index, reader)
        for index in record.inputs:
            readers[index] = record
    return behind
