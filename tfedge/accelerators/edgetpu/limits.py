"""Documented limits of single operators of the Edge TPU: what breaks each, in words.

Source: column "Known limitations" of "Supported operations"
(https://coral.ai/docs/edgetpu/models-intro/#supported-operations). Every function takes an operator
whose parameters are constants, and gives what breaks the limit, or `None`.
"""

import math
from typing import Final

import numpy as np

from tfedge.accelerators.edgetpu.graph import Operand, Operator

MAX_SOFTMAX: Final = 16_000
DEPTH_STEP: Final = 4


def no_fused_activation(operator: Operator) -> str | None:
    """Poolings and concatenations take no fused activation."""
    number = operator.options.get("fused_activation_function", 0)
    return "it has a fused activation" if number else None


def zero_padding(operator: Operator) -> str | None:
    """With a constant, a concatenation takes two inputs, the constant being zeros."""
    constants = [operand for operand in operator.inputs if operand and operand.is_constant]
    if not constants:
        return None
    if len(operator.inputs) != 2:
        return f"it has a constant among its {len(operator.inputs)} inputs, 2 are allowed"
    if any((operand.values() != operand.zero_point).any() for operand in constants):
        return "it joins a constant that is not all zeros"
    return None


def same_dilation(operator: Operator) -> str | None:
    """A convolution is dilated alike in x and y."""
    x = operator.options.get("dilation_w_factor", 1)
    y = operator.options.get("dilation_h_factor", 1)
    return None if x == y else f"its dilation is {y} in y and {x} in x"


def default_weights(operator: Operator) -> str | None:
    """The weights of a dense layer are in the default format."""
    if operator.options.get("weights_format", 0):
        return "its weights are in the shuffled format"
    return None


def flat_output(operator: Operator) -> str | None:
    """The output of a dense layer has one dimension."""
    return _not_flat(operator.outputs[0], "output")


def flat_softmax(operator: Operator) -> str | None:
    """A softmax takes one dimension of up to 16,000 elements."""
    operand = _first(operator)
    if operand.elements > MAX_SOFTMAX:
        return f"it has {operand.elements:,} elements, up to {MAX_SOFTMAX:,} are allowed"
    return _not_flat(operand, "input")


def flat_slope(operator: Operator) -> str | None:
    """The slope of a PReLU differs between channels only."""
    slope = operator.input(1)
    return None if slope is None else _not_flat(slope, "slope")


def no_batch_reduction(operator: Operator) -> str | None:
    """A reduction leaves the batch alone."""
    if 0 in reduced_axes(operator) and len(_first(operator).shape) > 1:
        return "it reduces the batch"
    return None


def depth_in_fours(operator: Operator) -> str | None:
    """A mean over channels takes a multiple of four channels."""
    shape = _first(operator).shape
    if len(shape) - 1 in reduced_axes(operator) and shape[-1] % DEPTH_STEP:
        return f"it reduces {shape[-1]} channels, which is no multiple of {DEPTH_STEP}"
    return None


def no_batch_packing(operator: Operator) -> str | None:
    """Tensors are not packed along the batch."""
    axis = operator.options.get("axis", 0) % max(len(operator.outputs[0].shape), 1)
    return "it packs along the batch" if axis == 0 else None


def no_batch_padding(operator: Operator) -> str | None:
    """The batch is not padded."""
    padding = operator.input(1)
    before_and_after = padding.values()[:2] if padding is not None else np.zeros(2)
    if len(_first(operator).shape) > 1 and np.any(before_and_after):
        return "it pads the batch"
    return None


def no_batch_split(operator: Operator) -> str | None:
    """The batch is not split."""
    axis, operand = operator.input(0), operator.input(1)
    if axis is None or operand is None or len(operand.shape) < 2:
        return None
    return "it splits the batch" if 0 in _normal(axis.values(), len(operand.shape)) else None


def unit_strides(operator: Operator) -> str | None:
    """A strided slice has strides of 1, no ellipsis and no new axis."""
    strides = operator.input(3)
    if strides is not None and np.any(strides.values() != 1):
        return f"its strides are {strides.values()[:8].tolist()}, only 1 is allowed"
    for mask in ("ellipsis_mask", "new_axis_mask"):
        if operator.options.get(mask, 0):
            return f"it has an {mask}" if mask[0] == "e" else f"it has a {mask}"
    return None


def reduced_axes(operator: Operator) -> frozenset[int]:
    """The axes that a reduction reduces, counted from 0."""
    axes = operator.input(1)
    return frozenset() if axes is None else _normal(axes.values(), len(_first(operator).shape))


def _normal(axes: np.ndarray, rank: int) -> frozenset[int]:
    return frozenset(np.unique(axes % max(rank, 1)).tolist())


def _first(operator: Operator) -> Operand:
    return next(operand for operand in operator.inputs if operand is not None)


def _not_flat(operand: Operand, what: str) -> str | None:
    if math.prod(operand.shape[:-1]) > 1:
        shape = "x".join(map(str, operand.shape))
        return f"its {what} is {shape}, only the last dimension may be more than 1"
    return None
