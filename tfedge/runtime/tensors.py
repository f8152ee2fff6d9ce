"""Move arrays between real numbers and the tensors of a `.tflite` file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfedge.affine import dequantize_values, quantize_values
from tfedge.errors import DataError, did_you_mean
from tfedge.inspection.decode import Fields
from tfedge.inspection.soundness import dtype_of, shape_of
from tfedge.report import Record

Inputs = np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class TensorInfo(Record):
    """A tensor of an open model.

    Attributes:
        index: Its number.
        name: Its name in the file.
        shape: Its shape, as the file gives it.
        dtype: Element type, e.g. `"int8"`.
        scale: `real = scale * (stored - zero_point)`; 0.0 if it is not quantized.
        zero_point: The integer that means zero.
        signature_name: Its name in the file's signature (often that of the Keras layer), or `None`.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0
    signature_name: str | None = None

    @property
    def label(self) -> str:
        """What to call it: its signature's name, else its own without those fused into it."""
        return self.signature_name or self.name.split(";")[0]


def quantize(array: np.ndarray, scale: float, zero_point: int, dtype: str) -> np.ndarray:
    """Real numbers as stored integers: rounded half up, clipped to the range of `dtype`.

    The arithmetic is that of the fake quantisation which models train with, in float32: pixels
    scaled to -1 … 1 lie halfway between two integers, and the choice between them must be the same.

    Args:
        array: Real numbers, any shape.
        scale: Positive.
        zero_point: The integer that means zero.
        dtype: An integer type, e.g. `"int8"`.

    Returns:
        Array of the same shape and of type `dtype`.

    Raises:
        DataError: A number is not-a-number.

    Example:
        >>> quantize(np.array([-1.0, 0.0, 0.26, 9.0]), 0.5, -1, "int8")
        array([-3, -1,  0, 17], dtype=int8)
    """
    real = np.asarray(array, np.float32)
    if np.isnan(real).any():
        raise DataError(
            "Inputs must be numbers. Received not-a-number (NaN). Clean the data first."
        )
    kind = np.dtype(dtype)
    return quantize_values(
        real,
        scale=scale,
        zero_point=zero_point,
        bits=8 * kind.itemsize,
        signed=kind.kind == "i",
    )


def dequantize(array: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Stored integers as real numbers, float32.

    Example:
        >>> dequantize(np.array([-3, -1, 17], np.int8), 0.5, -1)
        array([-1.,  0.,  9.], dtype=float32)
    """
    return dequantize_values(array, scale=scale, zero_point=zero_point)


def to_stored(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Real numbers as the tensor stores them.

    Raises:
        DataError: They are no real numbers, or a tensor of integers cannot hold them.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"Input {info.label!r} takes real numbers. Received: an array of {array.dtype}."
        )
    if info.scale:
        return quantize(array, info.scale, info.zero_point, info.dtype)
    if array.dtype.kind == "f" and np.dtype(info.dtype).kind in "iu" and array.size:
        limits = np.iinfo(info.dtype)
        whole = np.rint(array) == array  # false for not-a-number
        if not (whole & (array >= limits.min) & (array <= limits.max)).all():
            raise DataError(
                f"Input {info.label!r} takes whole numbers that {info.dtype} can hold. Received: "
                f"{array.min()} to {array.max()}, or fractions."
            )
    return np.ascontiguousarray(array, dtype=info.dtype)


def to_real(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Stored values as real numbers; integers without a scale stay as they are."""
    if info.scale:
        return dequantize(array, info.scale, info.zero_point)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def join_runs(pieces: list[np.ndarray], batch: int, count: int) -> np.ndarray:
    """The outputs of several runs as one array of `count` samples."""
    if pieces[0].ndim and pieces[0].shape[0] == batch:
        return np.concatenate(pieces)[:count]
    return np.stack(pieces)


def tensor_infos(
    subgraph: Fields, indices: Sequence[int] | np.ndarray | None, names: Mapping[int, str]
) -> tuple[TensorInfo, ...]:
    """The tensors of these indices."""
    infos = []
    for index in [] if indices is None else [int(i) for i in indices]:
        tensor = subgraph["tensors"][index]
        q: Fields = tensor["quantization"] or {}
        scale, zero_point = q.get("scale"), q.get("zero_point")
        if scale is None or len(scale) != 1:
            scale, zero_point = [0.0], None
        infos.append(
            TensorInfo(
                index=index,
                name=tensor["name"] or "",
                shape=shape_of(tensor),
                dtype=dtype_of(tensor),
                scale=float(scale[0]),
                zero_point=0 if zero_point is None else int(zero_point[0]),
                signature_name=names.get(index),
            )
        )
    return tuple(infos)


def signature_names(fields: Fields, side: str) -> dict[int, str]:
    """Names by tensor index that the first signature gives to the inputs or outputs."""
    for signature in fields["signature_defs"] or []:
        if signature["subgraph_index"] == 0:
            return {entry["tensor_index"]: entry["name"] for entry in signature[side] or []}
    return {}


def arrays_by_name(
    inputs: Mapping[str, np.ndarray], infos: Sequence[TensorInfo]
) -> list[np.ndarray]:
    """The arrays in the order of `infos`, found by signature or tensor name."""
    names = [info.label for info in infos]
    known = set(names) | {info.name for info in infos}
    for name in inputs:
        if name not in known:
            raise DataError(
                f"The inputs of the model are {names}. Received: {name!r}."
                f"{did_you_mean(name, known)}"
            )
    arrays = []
    for info, name in zip(infos, names, strict=True):
        key = name if name in inputs else info.name
        if key not in inputs:
            raise DataError(f"Input {name!r} is missing. Received: {sorted(inputs)}.")
        arrays.append(np.asarray(inputs[key]))
    return arrays
