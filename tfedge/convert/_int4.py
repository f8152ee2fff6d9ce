"""Put the integers that a model was trained with into its file, dense kernels of 4 bits packed.

The converter stores every kernel as 8-bit integers of a step of its own choice. Here the kernels
get the integers and steps of training, biases the step that follows from them, and dense kernels of
at most 4 bits the type INT4, two in a byte, the low half first. LiteRT has INT4 kernels for
FULLY_CONNECTED; a convolution in INT4 would fall out of XNNPACK, so these stay INT8.
"""

import copy
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfedge.affine import dequantize_values, integer_limits
from tfedge.engines.native.levels import Levels
from tfedge.errors import ConversionError
from tfedge.inspection import read_model

PACKED_BITS = 4
PACKED_VERSION = 10  # of FULLY_CONNECTED: the first that takes INT4 weights for INT8 inputs
ALIGNMENT = 16  # of buffers, in bytes
TOLERANCE = 0.51  # of the converter's step: half a step of rounding, and float32
OPERATORS = schema.BuiltinOperator
# Operator to the place of its bias; that of its weights is 1.
BIASES = {
    OPERATORS.CONV_2D: 2,
    OPERATORS.DEPTHWISE_CONV_2D: 2,
    OPERATORS.FULLY_CONNECTED: 2,
    OPERATORS.TRANSPOSE_CONV: 3,
}
INPUTS = {OPERATORS.TRANSPOSE_CONV: 2}  # place of the activations where it is not 0


class AlignedBuffer(schema.BufferT):
    """A buffer whose first byte is aligned, as LiteRT reads it in place."""

    def Pack(self, builder: Any) -> Any:  # noqa: N802  # a hook of the generated schema
        """Write the buffer."""
        if self.data is not None:
            builder.Prep(ALIGNMENT, len(self.data))
        return super().Pack(builder)


def with_levels(data: bytes, levels: Sequence[Levels]) -> tuple[bytes, tuple[str, ...]]:
    """A file whose kernels hold the integers of training.

    Args:
        data: An int8 file as the converter wrote it.
        levels: The kernels to put right. They are found by their values.

    Returns:
        The file, and the names of the layers whose kernels are packed as INT4.

    Raises:
        ConversionError: A kernel is not in the file.
    """
    work = _Rewriting(read_model(data), levels)
    packed = work.run()
    return work.packed_file(), packed


def pack_int4(integers: np.ndarray) -> np.ndarray:
    """4-bit integers two in a byte, the first in the low half; an odd last one alone.

    Args:
        integers: From -8 to 7, any shape.

    Returns:
        Uint8 array of half the size, rounded up.

    Example:
        >>> pack_int4(np.array([-1, 2, 1])).tolist()
        [47, 1]
    """
    halves = np.asarray(integers).ravel().astype(np.uint8) & 0x0F
    halves = np.pad(halves, (0, halves.size % 2))
    return halves[0::2] | (halves[1::2] << 4)


class _Rewriting:
    """One file on its way from the converter's integers to those of training."""

    def __init__(self, model: Any, levels: Sequence[Levels]) -> None:
        self.model = model
        self.levels = levels
        self.graph = model.subgraphs[0]
        self.done: dict[int, Levels] = {}  # tensor to what it holds now

    def run(self) -> tuple[str, ...]:
        packed = []
        for operator in self.graph.operators:
            kind = self._kind(operator)
            if kind not in BIASES:
                continue
            index = int(operator.inputs[1])
            level = self.done.get(index) or self._matching(kind, self.graph.tensors[index])
            if level is None:
                continue
            if index not in self.done:
                self._rewrite(kind, index, level)
            self._rewrite_bias(operator, kind, index)
            if self.graph.tensors[index].type == schema.TensorType.INT4:
                operator.opcodeIndex = self._packed_code()
                packed.append(level.layer)
        self._check_all_found()
        return tuple(dict.fromkeys(packed))

    def _kind(self, operator: Any) -> int:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return int(max(code.builtinCode, code.deprecatedBuiltinCode))

    def _matching(self, kind: int, tensor: Any) -> Levels | None:
        data = self.model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.INT8 or data is None or len(data) == 0:
            return None
        stored = np.asarray(data, np.uint8).view(np.int8).reshape(tensor.shape)
        rows = _channels_first(kind, stored)
        scale = np.asarray(tensor.quantization.scale, np.float32)
        real = dequantize_values(rows, scale=scale, axis=0)
        for level in self.levels:
            if level.integers.shape != rows.shape:
                continue
            wanted = dequantize_values(level.integers, scale=level.steps, axis=0)
            if np.all(np.abs(real - wanted) <= TOLERANCE * scale.reshape(-1, 1)):
                return level
        return None

    def _rewrite(self, kind: int, index: int, level: Levels) -> None:
        tensor = self.graph.tensors[index]
        old = np.asarray(tensor.quantization.scale, np.float32)
        steps = np.broadcast_to(level.steps, old.shape)
        tensor.quantization.scale = np.where(steps > 0, steps, old).astype(np.float32)
        stored = _as_in_file(kind, level.integers, tensor.shape)
        low, high = integer_limits(PACKED_BITS)
        fits = stored.min() >= low and stored.max() <= high
        if kind == OPERATORS.FULLY_CONNECTED and level.is_dense and fits:
            tensor.type = schema.TensorType.INT4
            self._set_data(tensor, pack_int4(stored))
        else:
            self._set_data(tensor, stored.astype(np.int8).ravel().view(np.uint8))
        self.done[index] = level

    def _rewrite_bias(self, operator: Any, kind: int, weights: int) -> None:
        place = BIASES[kind]
        if len(operator.inputs) <= place or operator.inputs[place] < 0:
            return
        tensor = self._own_tensor(operator, place)
        data = self.model.buffers[tensor.buffer].data
        if data is None or tensor.quantization is None or tensor.quantization.scale is None:
            return
        feeding = self.graph.tensors[operator.inputs[INPUTS.get(kind, 0)]]
        old = np.asarray(tensor.quantization.scale, np.float64)
        steps = np.asarray(self.graph.tensors[weights].quantization.scale, np.float32)
        new = np.float32(feeding.quantization.scale[0]) * steps
        real = np.asarray(data, np.uint8).view(np.int32) * old
        low, high = integer_limits(32)
        whole = np.clip(np.rint(real / new.astype(np.float64)), low, high)
        tensor.quantization.scale = new
        self._set_data(tensor, whole.astype(np.int32).view(np.uint8))

    def _own_tensor(self, operator: Any, place: int) -> Any:
        """An operand of an operator, copied first if other operators read it too."""
        index = int(operator.inputs[place])
        readers = sum(index in other.inputs for other in self.graph.operators)
        if readers > 1:
            self.graph.tensors.append(copy.deepcopy(self.graph.tensors[index]))
            operator.inputs = np.array(operator.inputs, np.int32)
            operator.inputs[place] = index = len(self.graph.tensors) - 1
        return self.graph.tensors[index]

    def _set_data(self, tensor: Any, data: np.ndarray) -> None:
        users = sum(
            other.buffer == tensor.buffer
            for graph in self.model.subgraphs
            for other in graph.tensors
        )
        if users > 1:
            self.model.buffers.append(schema.BufferT())
            tensor.buffer = len(self.model.buffers) - 1
        self.model.buffers[tensor.buffer].data = data

    def _packed_code(self) -> int:
        """The operator code of FULLY_CONNECTED with INT4 weights."""
        codes = self.model.operatorCodes
        for place, code in enumerate(codes):
            if self._is_packed(code):
                return place
        kind = OPERATORS.FULLY_CONNECTED
        codes.append(
            schema.OperatorCodeT(
                builtinCode=kind, deprecatedBuiltinCode=kind, version=PACKED_VERSION
            )
        )
        return len(codes) - 1

    def _is_packed(self, code: Any) -> bool:
        return code.builtinCode == OPERATORS.FULLY_CONNECTED and code.version >= PACKED_VERSION

    def _check_all_found(self) -> None:
        found = {level.layer for level in self.done.values()}
        missing = [level.layer for level in self.levels if level.layer not in found]
        if missing:
            raise ConversionError(
                f"The kernels of {', '.join(missing)} are not in the file as they were trained: "
                "the converter turned their operators into others. Train those layers with 8 bits "
                "and without `range='lsq'`, or keep them float with `keep_float`."
            )

    def packed_file(self) -> bytes:
        self.model.buffers = [
            AlignedBuffer(data=buffer.data, offset=buffer.offset, size=buffer.size)
            for buffer in self.model.buffers
        ]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _channels_first(kind: int, stored: np.ndarray) -> np.ndarray:
    """A kernel of a file as `(channels, weights of a channel)`."""
    if kind == OPERATORS.DEPTHWISE_CONV_2D:
        stored = np.moveaxis(stored, -1, 0)
    return stored.reshape(stored.shape[0], -1)


def _as_in_file(kind: int, rows: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The inverse of `_channels_first`."""
    sizes = [int(size) for size in shape]
    if kind == OPERATORS.DEPTHWISE_CONV_2D:
        return np.moveaxis(rows.reshape(sizes[-1], *sizes[:-1]), 0, -1)
    return rows.reshape(sizes)
