"""Penalties that push weights of Keras 3 models towards zero while they train.

They are regularisers of variables, so that Keras adds each of them to the loss once, however often
a layer is called, in float32 under mixed precision and in one share per replica.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from tfedge.engines.native.graph import Graph
from tfedge.engines.native.kernels import kernels_of
from tfedge.models import layers_of
from tfedge.report import Skipped

GROUPS = ("outputs", "inputs", "weights")
# Class of a layer to the axes that stay apart in the groups of its kernel: outputs, inputs.
AXES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "Dense": ((-1,), (-2,)),
    "Conv1DTranspose": ((-2,), (-1,)),
    "Conv2DTranspose": ((-2,), (-1,)),
    "Conv3DTranspose": ((-2,), (-1,)),
    "Conv1D": ((-1,), (-2,)),
    "Conv2D": ((-1,), (-2,)),
    "Conv3D": ((-1,), (-2,)),
    "SeparableConv1D": ((-1,), (-2,)),
    "SeparableConv2D": ((-1,), (-2,)),
    "DepthwiseConv1D": ((-2, -1), (-2,)),
    "DepthwiseConv2D": ((-2, -1), (-2,)),
}


def group_shape(layer: Any, shape: Sequence[int], groups: str) -> tuple[int, ...] | None:
    """The shape of one value per group of a kernel, ready to be multiplied with it.

    Args:
        layer: The layer that computes with the kernel.
        shape: Of the kernel.
        groups: `"outputs"` (filters, neurons), `"inputs"` (channels read) or `"weights"`.

    Returns:
        `None` where it is not known which axes of the kernel are which.

    Example:
        >>> import keras
        >>> group_shape(keras.layers.Conv2D(8, 3), (3, 3, 4, 8), "outputs")
        (1, 1, 1, 8)
    """
    if groups == "weights":
        return tuple(shape)
    for base in type(layer).__mro__:
        if base.__name__ in AXES:
            kept = {axis % len(shape) for axis in AXES[base.__name__][groups == "inputs"]}
            return tuple(size if axis in kept else 1 for axis, size in enumerate(shape))
    return None


def absolute_sum(weights: Any, shape: Sequence[int] = ()) -> Any:
    """Sum of magnitudes, for L1 and, on the scales of BatchNormalization, network slimming.

    Groups, and so `shape`, make no difference to it.

    Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming",
    arXiv:1708.06519.

    Example:
        >>> float(absolute_sum(np.float32([1.0, -2.0])))
        3.0
    """
    return ops.sum(ops.abs(weights))


def group_norms(weights: Any, shape: Sequence[int]) -> Any:
    """The Euclidean norm of each group; its gradient is 0 for a group of zeros.

    Args:
        weights: A kernel.
        shape: Of one value per group, as `group_shape` gives it.
    """
    axes = [axis for axis, size in enumerate(shape) if size == 1]
    squares = ops.sum(ops.square(weights), axis=axes, keepdims=True) if axes else weights**2
    positive = squares > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, squares, 1.0)), 0.0)


def group_lasso(weights: Any, shape: Sequence[int]) -> Any:
    """Sum over the groups of their norm times the square root of their size.

    Yuan and Lin 2006, "Model selection and estimation in regression with grouped variables"; on
    filters and channels of networks Wen et al. 2016, "Learning Structured Sparsity in Deep Neural
    Networks", arXiv:1608.03665.

    Args:
        weights: A kernel.
        shape: Of one value per group.

    Example:
        >>> round(float(group_lasso(np.float32([[3.0, 0.0], [4.0, 0.0]]), (1, 2))), 4)
        7.0711
    """
    members = int(np.prod(weights.shape)) / int(np.prod(shape))
    return float(np.sqrt(members)) * ops.sum(group_norms(weights, shape))


class Penalty:
    """A regulariser that adds a penalty to the one that a variable has already.

    Args:
        strength: Factor of the penalty.
        formula: Function of the variable that gives a scalar.
        others: The regulariser that the variable had before, if any.
    """

    def __init__(self, strength: float, formula: Callable[[Any], Any], others: Any) -> None:
        self.strength = strength
        self.formula = formula
        self.others = others

    def __call__(self, variable: Any) -> Any:
        """Both penalties together."""
        value = self.strength * self.formula(variable)
        return value if self.others is None else value + self.others(variable)


@dataclass(frozen=True)
class Target:
    """A variable that a penalty is put on.

    Attributes:
        layer: The leaf layer of the model that it is reported under.
        owner: The layer that computes with it; differs from `layer` inside composite layers.
        name: Attribute of `owner` that holds it.
        variable: The variable.
        shape: Of one value per group.
    """

    layer: Any
    owner: Any
    name: str
    variable: Any
    shape: tuple[int, ...]

    def magnitudes(self) -> np.ndarray:
        """Root mean square of each group, which for a single weight is its magnitude."""
        values = np.asarray(ops.convert_to_numpy(self.variable), np.float64)
        axes = tuple(axis for axis, size in enumerate(self.shape) if size != values.shape[axis])
        return np.sqrt(np.mean(values**2, axis=axes, keepdims=True))


def find_targets(
    model: Any, *, kind: str, groups: str, chosen: Collection[int], graph: Graph | None
) -> tuple[list[Target], list[Skipped]]:
    """The variables that a penalty is put on, and every layer that is left alone.

    Args:
        model: A Keras 3 model, built.
        kind: `"batch_norm"` for the scales of BatchNormalization; kernels for any other.
        groups: How the weights of a kernel go together.
        chosen: Ids of the layers that may take part.
        graph: Of the model, where whole outputs may go: those that the model returns are kept.
    """
    ends = output_layers(graph) if graph is not None else set()
    targets: list[Target] = []
    skipped: list[Skipped] = []
    seen: set[int] = set()
    for layer in layers_of(model):
        own = _scales(layer) if kind == "batch_norm" else _kernels(layer, groups, kind == "l0")
        reason = _why_not(layer, own, kind, chosen, ends)
        if reason is not None:
            skipped.append(Skipped(layer.name, reason))
            continue
        targets += [target for target in own if id(target.variable) not in seen]
        seen |= {id(target.variable) for target in own}
    return targets, skipped


def output_layers(graph: Graph) -> set[int]:
    """Ids of the layers whose channels are those of the model's outputs.

    From the outputs back to the first kernels.
    """
    found: set[int] = set()
    waiting = list(graph.outputs)
    visited: set[int] = set()
    while waiting:
        index = waiting.pop()
        call = graph.producers.get(index)
        if call is None or index in visited:
            continue
        visited.add(index)
        found.add(id(call.operation))
        if not call.is_layer or not kernels_of(call.operation):
            waiting += call.inputs
    return found


def _scales(layer: Any) -> list[Target]:
    is_norm = any(base.__name__ == "BatchNormalization" for base in type(layer).__mro__)
    gamma = getattr(layer, "gamma", None) if is_norm else None
    if gamma is None:
        return []
    return [Target(layer, layer, "gamma", gamma, tuple(gamma.shape))]


def _kernels(layer: Any, groups: str, gated: bool) -> list[Target]:
    """The kernels of a layer; those of inner layers cannot be gated."""
    found = []
    for kernel in kernels_of(layer, depthwise=True):
        shape = group_shape(kernel.owner, tuple(kernel.variable.shape), groups)
        if gated and (kernel.owner is not layer or not _has_axes(layer)):
            shape = None
        if shape is not None:
            found.append(Target(layer, kernel.owner, kernel.name, kernel.variable, shape))
    return found


def _has_axes(layer: Any) -> bool:
    return any(base.__name__ in AXES for base in type(layer).__mro__)


def _why_not(
    layer: Any, own: Sequence[Target], kind: str, chosen: Collection[int], ends: Collection[int]
) -> str | None:
    if id(layer) not in chosen:
        return "not among the layers that were chosen"
    if not own and kind == "batch_norm":
        return "no scale of a BatchNormalization"
    if not own:
        return "no kernel that the penalty knows"
    if not all(target.variable.trainable for target in own) or not layer.trainable:
        return "frozen (`trainable=False`): a penalty cannot move it"
    if id(layer) in ends:
        return "its outputs are the model's: none of them may go"
    return None


def add_penalties(targets: Sequence[Target], strength: float, formula: Callable[..., Any]) -> None:
    """Put a penalty on each variable, beside the regulariser that it has.

    Args:
        targets: Of a model that was not trained yet: a traced training step would not see them.
        strength: Factor of the penalty.
        formula: Function of a variable and `shape`, that of its groups.
    """
    for target in targets:
        of_variable = functools.partial(formula, shape=target.shape)
        target.variable.regularizer = Penalty(strength, of_variable, target.variable.regularizer)


def penalty_of(model: Any) -> float | None:
    """The value of all penalties on a model now; `None` where there are none."""
    values = [
        float(v.regularizer.strength * v.regularizer.formula(v))
        for v in model.trainable_variables
        if isinstance(v.regularizer, Penalty)
    ]
    return sum(values) if values else None


def zero_below(targets: Sequence[Target], threshold: float) -> int:
    """Set groups whose root mean square is at most a threshold to zero; returns how many weights.

    Only those count that were not zero before.
    """
    count = 0
    for target in targets:
        values = ops.convert_to_numpy(target.variable)
        zeroed = np.where(target.magnitudes() <= threshold, 0, values).astype(values.dtype)
        count += int(np.count_nonzero(values) - np.count_nonzero(zeroed))
        target.variable.assign(zeroed)
    return count
