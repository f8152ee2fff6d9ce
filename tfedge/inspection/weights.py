"""Read the constants of a `.tflite` file: values, zeros, distinct values."""

import math
from typing import Final

import numpy as np

from tfedge.inspection.decode import Fields
from tfedge.inspection.layout import BITS
from tfedge.inspection.soundness import dtype_of, shape_of

_NUMPY: Final = {
    "float32": "<f4", "float16": "<f2", "float64": "<f8", "bfloat16": "<u2",
    "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4",
    "uint32": "<u4", "int64": "<i8", "uint64": "<u8", "bool": "?",
    "complex64": "<c8", "complex128": "<c16", "float8_e4m3fn": "u1", "float8_e5m2": "u1",
}  # fmt: skip
# A minus zero is a zero: the bits that are left when the sign is masked out.
_MAGNITUDE: Final = {"bfloat16": 0x7FFF, "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7F}


def stored_values(raw: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """The elements of a constant as stored, flat; 4-bit and 2-bit integers unpacked to 8 bits.

    Types that numpy lacks (bfloat16, float8) come as their bit patterns.

    Args:
        raw: The bytes of the buffer, uint8.
        dtype: Element type, e.g. `"int4"`.
        count: Number of elements.

    Returns:
        Array of shape (count,).

    Example:
        >>> stored_values(np.array([0x2F, 0x01], np.uint8), "int4", 3)
        array([-1,  2,  1], dtype=int8)
    """
    bits = BITS[dtype]
    if bits >= 8:
        width = bits // 8
        return np.frombuffer(raw[: len(raw) // width * width], _NUMPY[dtype])[:count]
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    unsigned = ((raw[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[:count].astype(np.int8)
    if dtype.startswith("u"):
        return unsigned.view(np.uint8)
    return np.where(unsigned >= 2 ** (bits - 1), unsigned - 2**bits, unsigned).astype(np.int8)


def count_zeros(tensor: Fields, raw: np.ndarray) -> tuple[int, int]:
    """Zeros of a constant tensor, and how many distinct values it holds.

    A stored integer is a zero if it equals the zero point (of its channel). Weights in LiteRT's
    sparse format count the elements that are not stored as zeros.

    Args:
        tensor: The decoded tensor.
        raw: Its bytes, uint8.

    Returns:
        Number of zeros and number of distinct stored values.
    """
    dtype, shape = dtype_of(tensor), shape_of(tensor)
    count = math.prod(shape)
    values = stored_values(raw, dtype, count)
    sparse = tensor["sparsity"] is not None
    magnitude = values & _MAGNITUDE[dtype] if dtype in _MAGNITUDE else values
    zero = zero_point_of(tensor, shape)
    if isinstance(zero, np.ndarray):
        magnitude, zero = (magnitude, zero.flat[0]) if sparse else (magnitude.reshape(shape), zero)
    kept = int(np.count_nonzero(magnitude != zero))
    distinct = _distinct(values)
    if sparse and count > len(values) and kept == len(values):
        distinct += 1
    return count - kept, distinct


def zero_point_of(tensor: Fields, shape: tuple[int, ...]) -> np.ndarray | int:
    """Zero point of a tensor: 0 without quantization, else one number, or one per channel."""
    quantization = tensor["quantization"]
    points = None if quantization is None else quantization["zero_point"]
    if points is None or not np.any(points):
        return 0
    if len(points) == 1:
        return int(points[0])
    axis = quantization["quantized_dimension"]
    return points.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _distinct(values: np.ndarray) -> int:
    if values.dtype.itemsize == 1:
        return int(np.count_nonzero(np.bincount(values.view(np.uint8), minlength=256)))
    return len(np.unique(values))
