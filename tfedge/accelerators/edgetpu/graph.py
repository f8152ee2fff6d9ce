"""The operators of a `.tflite` file with their tensors, as the rules of the Edge TPU see them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tfedge.inspection import layer_of
from tfedge.inspection.decode import Fields
from tfedge.inspection.layout import OPERATORS
from tfedge.inspection.soundness import buffer_bytes, dtype_of, operator_name, shape_of
from tfedge.inspection.weights import stored_values

_CUSTOM: Final = OPERATORS.index("CUSTOM")
_NO_BYTES: Final = np.empty(0, np.uint8)


@dataclass(frozen=True, kw_only=True)
class Operand:
    """A tensor that an operator reads or writes.

    Attributes:
        index: Its number in the file.
        name: Its name in the file.
        dtype: Element type, e.g. `"int8"`.
        shape: Its shape as stored.
        signature: Its shape with -1 for what may change; equal to `shape` where nothing may.
        raw: Bytes of a constant; empty for every other tensor.
        is_constant: Whether the file stores its content.
        is_variable: Whether it is a state that outlives a run.
        scales: How many scales it has: 0 where it is not quantized, one for each channel or one.
        zero_point: Its first zero point.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    raw: np.ndarray
    is_constant: bool
    is_variable: bool
    scales: int
    zero_point: int

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)

    def values(self) -> np.ndarray:
        """Stored elements of a constant, flat."""
        return stored_values(self.raw, self.dtype, self.elements)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator of the main subgraph.

    Attributes:
        index: Its number in the file, in order of execution.
        name: Its kind, e.g. `"CONV_2D"`; custom operators by their own name.
        is_custom: Whether it is a custom operator.
        version: Its version.
        inputs: What it reads; `None` for an operand that is left out.
        outputs: What it writes.
        options: Its decoded options by name; empty without.
        custom_options: A view of the bytes of a custom operator's options.
    """

    index: int
    name: str
    is_custom: bool = False
    version: int = 1
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand, ...]
    options: Mapping[str, Any]
    custom_options: memoryview = memoryview(b"")

    def input(self, number: int) -> Operand | None:
        """An input by its place, `None` where there is none."""
        return self.inputs[number] if number < len(self.inputs) else None

    @property
    def layer(self) -> str:
        """The layer that it came from, as far as the names of its tensors say."""
        return next((layer for out in self.outputs if (layer := layer_of(out.name))), "")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The main subgraph of a file.

    Attributes:
        operators: In order of execution.
        tensors: All its tensors, by index.
        inputs: Indices of what goes in.
        outputs: Indices of what comes out.
        subgraphs: How many subgraphs the file has; those after the first are not looked at.
    """

    operators: tuple[Operator, ...]
    tensors: tuple[Operand, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    subgraphs: int = 1


def read_graph(data: bytes, fields: Fields) -> Graph:
    """The main subgraph of a file.

    Args:
        data: The file.
        fields: The same decoded and checked (`check_sound`).
    """
    main = fields["subgraphs"][0]
    buffers = [buffer_bytes(data, fields, i) for i in range(len(fields["buffers"]))]
    tensors = tuple(
        _operand(index, tensor, buffers) for index, tensor in enumerate(main["tensors"] or [])
    )
    return Graph(
        operators=tuple(
            _operator(index, fields, operator, tensors)
            for index, operator in enumerate(main["operators"] or [])
        ),
        tensors=tensors,
        inputs=_indices(main["inputs"]),
        outputs=_indices(main["outputs"]),
        subgraphs=len(fields["subgraphs"]),
    )


def used_tensors(graph: Graph) -> tuple[Operand, ...]:
    """What operators read or write and what goes in or out, by index."""
    indices = {*graph.inputs, *graph.outputs}
    for operator in graph.operators:
        indices.update(operand.index for operand in operator.inputs if operand is not None)
        indices.update(operand.index for operand in operator.outputs)
    return tuple(graph.tensors[index] for index in sorted(indices) if index >= 0)


def _operand(index: int, tensor: Fields, buffers: list[np.ndarray]) -> Operand:
    raw = buffers[tensor["buffer"]]
    shape = shape_of(tensor)
    quantization = tensor["quantization"] or {}
    scale, zero_point = quantization.get("scale"), quantization.get("zero_point")
    return Operand(
        index=index,
        name=tensor["name"] or "",
        dtype=dtype_of(tensor),
        shape=shape,
        signature=_indices(tensor["shape_signature"]) or shape,
        raw=raw if len(raw) else _NO_BYTES,
        is_constant=bool(len(raw)),
        is_variable=bool(tensor["is_variable"]),
        scales=0 if scale is None else len(scale),
        zero_point=int(zero_point[0]) if zero_point is not None and len(zero_point) else 0,
    )


def _operator(
    index: int, fields: Fields, operator: Fields, tensors: tuple[Operand, ...]
) -> Operator:
    code = fields["operator_codes"][operator["opcode_index"]]
    custom = operator["custom_options"]
    options = operator["builtin_options"] or {}
    return Operator(
        index=index,
        name=operator_name(fields, operator),
        is_custom=max(code["builtin_code"], code["deprecated_builtin_code"]) == _CUSTOM,
        version=code["version"],
        inputs=tuple(tensors[i] if i >= 0 else None for i in _indices(operator["inputs"])),
        outputs=tuple(tensors[i] for i in _indices(operator["outputs"]) if i >= 0),
        options={name: value for name, value in options.items() if name},
        custom_options=memoryview(b"") if custom is None else custom.data,
    )


def _indices(vector: np.ndarray | None) -> tuple[int, ...]:
    return () if vector is None else tuple(vector.tolist())
