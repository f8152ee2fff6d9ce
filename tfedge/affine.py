"""Between real numbers and integers: the affine formula of quantisation, as array functions.

`real = scale * (stored - zero_point)`, as in B. Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, equation 1. The rounding is
that of TensorFlow's `fake_quant_with_min_max_vars`, in float32, because a file must round what it
is given as its model did while it trained.
"""

from typing import Any

import numpy as np

from tfedge.errors import SettingsError

WIDEST = 32
EXACT_AFTER = 3  # float32 needs a second and a third turn now and then


def quantize_values(
    values: Any,
    *,
    scale: Any,
    zero_point: Any = 0,
    bits: int = 8,
    narrow_range: bool = False,
    signed: bool = True,
    axis: int | tuple[int, ...] | None = None,
) -> np.ndarray:
    """Real numbers as integers: rounded half up, clipped to what the integers can hold.

    Args:
        values: Real numbers, any shape. Not-a-number has no integer: keep it out.
        scale: Real size of one integer step, positive; with `axis`, one per index.
        zero_point: The integer that means zero; with `axis`, one for all or one per index.
        bits: Width of the integers, from 2 to 32. Default: 8.
        narrow_range: Whether the lowest integer is left out (-127 … 127), as LiteRT does for
            weights. Default: False.
        signed: Whether the integers are signed (-128 … 127) or not (0 … 255). Default: True.
        axis: Axis, or axes, that `scale` has one value for each index of. Default: one scale.

    Returns:
        Array of the shape of `values`, of the smallest NumPy integer type of at least `bits`.

    Raises:
        SettingsError: `bits` is out of range.

    Example:
        >>> quantize_values([-1.0, 0.0, 0.26, 9.0], scale=0.5, zero_point=-1)
        array([-3, -1,  0, 17], dtype=int8)
        >>> quantize_values([[0.2, -3.0], [0.2, -3.0]], scale=[0.1, 1.0], axis=0, bits=4)
        array([[ 2, -8],
               [ 0, -3]], dtype=int8)
    """
    real = np.asarray(values, np.float32)
    low, high = integer_limits(bits, narrow_range=narrow_range, signed=signed)
    step = along(np.asarray(scale, np.float32), real.ndim, axis, real.shape)
    zero = along(np.asarray(zero_point, np.int64), real.ndim, axis, real.shape)
    lowest = (low - zero).astype(np.float32) * step
    highest = (high - zero).astype(np.float32) * step
    steps = (np.clip(real, lowest, highest) - lowest) / step
    whole = np.floor(steps - (zero - low).astype(np.float32) + np.float32(0.5))
    stored = np.clip(whole.astype(np.float64) + zero, low, high)
    return stored.astype(integer_type(bits, signed=signed))


def dequantize_values(
    stored: Any, *, scale: Any, zero_point: Any = 0, axis: int | tuple[int, ...] | None = None
) -> np.ndarray:
    """Integers as the real numbers that they stand for, float32.

    Args:
        stored: Integers, any shape.
        scale: As for `quantize_values`.
        zero_point: Likewise.
        axis: Likewise.

    Returns:
        Float32 array of the same shape.

    Example:
        >>> dequantize_values([-3, -1, 17], scale=0.5, zero_point=-1)
        array([-1.,  0.,  9.], dtype=float32)
    """
    integers = np.asarray(stored)
    step = along(np.asarray(scale, np.float32), integers.ndim, axis, integers.shape)
    zero = along(np.asarray(zero_point, np.int64), integers.ndim, axis, integers.shape)
    return (integers.astype(np.float32) - zero.astype(np.float32)) * step


def integer_limits(
    bits: int, *, narrow_range: bool = False, signed: bool = True
) -> tuple[int, int]:
    """The lowest and the highest integer of a width.

    Raises:
        SettingsError: `bits` is out of range.

    Example:
        >>> integer_limits(4), integer_limits(4, narrow_range=True), integer_limits(4, signed=False)
        ((-8, 7), (-7, 7), (0, 15))
    """
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= WIDEST:
        raise SettingsError(f"`bits` is a whole number from 2 to {WIDEST}. Received: {bits!r}.")
    low = -(2 ** (bits - 1)) if signed else 0
    return low + narrow_range, low + 2**bits - 1


def integer_type(bits: int, *, signed: bool = True) -> np.dtype:
    """The smallest NumPy integer type of at least `bits`."""
    width = next(size for size in (8, 16, 32) if bits <= size)
    return np.dtype(f"{'int' if signed else 'uint'}{width}")


def whole_zero_point(low: Any, high: Any, bits: int) -> tuple[np.float32, np.float32]:
    """A range with its ends moved to where its zero point is a whole number.

    Zero must be one of the levels, since padding and ReLU write it (Jacob et al. 2018, section
    2.1). TensorFlow moves the ends inside its fake quantisation in the same way.

    Args:
        low: Lowest real number, at most 0.
        high: Highest, at least 0.
        bits: Width of the integers.

    Returns:
        Both ends in float32; an empty range as it is.

    Example:
        >>> [round(float(end), 4) for end in whole_zero_point(-1.0, 1.0, 8)]
        [-0.9961, 1.0039]
    """
    low, high = np.float32(low), np.float32(high)
    top = np.float32(2**bits - 1)
    for _ in range(EXACT_AFTER if high > low else 0):
        scale = (high - low) / top
        zero_point = np.clip(np.floor(-low / scale + np.float32(0.5)), 0, top)
        low, high = -zero_point * scale, (top - zero_point) * scale
    return low, high


def symmetric_scale(
    values: Any, *, bits: int = 8, axis: int | tuple[int, ...] | None = None
) -> np.ndarray:
    """The scale at which the largest magnitude is the highest narrow-range integer.

    Args:
        values: Real numbers, any shape.
        bits: Width of the integers.
        axis: Axis, or axes, to have one scale for each index of. Default: one scale.

    Returns:
        Float32 array of shape `()`, or with the sizes of those axes.

    Example:
        >>> symmetric_scale([[1.0, -254.0], [0.5, 127.0]], axis=0).tolist()
        [2.0, 1.0]
    """
    real = np.asarray(values, np.float32)
    kept = _axes(axis, real.ndim)
    others = tuple(i for i in range(real.ndim) if i not in kept)
    _, high = integer_limits(bits, narrow_range=True)
    return np.asarray(np.abs(real).max(axis=others) / np.float32(high))


def along(
    numbers: np.ndarray, rank: int, axis: int | tuple[int, ...] | None, shape: tuple[int, ...]
) -> np.ndarray:
    """Numbers, one per index of some axes, shaped to multiply an array of that rank and shape."""
    kept = _axes(axis, rank)
    if not kept or numbers.size == 1:
        return numbers.reshape(())
    return numbers.reshape([shape[i] if i in kept else 1 for i in range(rank)])


def _axes(axis: int | tuple[int, ...] | None, rank: int) -> set[int]:
    if axis is None:
        return set()
    return {i % rank for i in ((axis,) if isinstance(axis, int) else axis)}
