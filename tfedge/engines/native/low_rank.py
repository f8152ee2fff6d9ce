"""Factorise dense and convolution kernels by truncated singular value decomposition.

Two schemes make two small layers of one, and both are exact at full rank:

`"channel"`
    A kernel of `rank` channels, then a 1×1 one: Dense → two Dense, k×k convolution → k×k and 1×1.
    Denton et al. 2014, "Exploiting Linear Structure Within Convolutional Networks for Efficient
    Evaluation", arXiv:1404.0736; Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks
    for Classification and Detection", arXiv:1505.06798.
`"spatial"`
    A k×1 convolution of `rank` channels, then a 1×k one: Jaderberg et al. 2014, "Speeding up
    Convolutional Neural Networks with Low Rank Expansions", arXiv:1405.3866; in closed form by Tai
    et al. 2016, "Convolutional Neural Networks with Low-rank Regularization", arXiv:1511.06067.

The matrix that is cut has the smallest Frobenius error of its rank (Eckart and Young 1936).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from tfedge.engines.native.costs import macs_of
from tfedge.engines.native.graph import Call, Copies, Graph, build_model
from tfedge.errors import UnsupportedModelError

SCHEMES = ("channel", "spatial")
CONVOLUTIONS = frozenset({"Conv1D", "Conv2D", "Conv3D"})
REASONS: Mapping[str, str] = {
    "DepthwiseConv1D": "depthwise: its kernel has one input channel, there is no rank to cut",
    "DepthwiseConv2D": "depthwise: its kernel has one input channel, there is no rank to cut",
    "SeparableConv1D": "separable: it is a product of two kernels already",
    "SeparableConv2D": "separable: it is a product of two kernels already",
    "Conv1DTranspose": "transposed convolutions are not factorised",
    "Conv2DTranspose": "transposed convolutions are not factorised",
    "Conv3DTranspose": "transposed convolutions are not factorised",
}


def as_matrix(kernel: np.ndarray, scheme: str) -> np.ndarray:
    """The matrix whose rank a scheme cuts.

    Args:
        kernel: `(…, inputs, outputs)`; `(height, width, inputs, outputs)` for `"spatial"`.
        scheme: `"channel"` or `"spatial"`.

    Returns:
        `(… · inputs, outputs)`, or `(height · inputs, width · outputs)`, in float64.

    Example:
        >>> as_matrix(np.zeros((3, 3, 4, 8)), "channel").shape
        (36, 8)
        >>> as_matrix(np.zeros((3, 3, 4, 8)), "spatial").shape
        (12, 24)
    """
    kernel = np.asarray(kernel, np.float64)
    if scheme == "channel":
        return kernel.reshape(-1, kernel.shape[-1])
    height, width, inputs, outputs = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(height * inputs, width * outputs)


def spectrum(kernel: np.ndarray, scheme: str) -> np.ndarray:
    """The singular values of `as_matrix(kernel, scheme)`, largest first.

    From the eigenvalues of the smaller Gram matrix: many times faster than a decomposition of the
    kernel, and exact to 1e-16 of its energy, which is all that a rank is chosen by.
    """
    matrix = as_matrix(kernel, scheme)
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))


def energy_kept(values: np.ndarray) -> np.ndarray:
    """The fraction of squared singular values that each rank keeps, from rank 1.

    Example:
        >>> energy_kept(np.array([3.0, 4.0]))
        array([0.36, 1.  ])
    """
    total = float(np.sum(values**2))
    return np.cumsum(values**2) / total if total else np.ones(len(values))


def factorize(kernel: np.ndarray, rank: int, scheme: str) -> tuple[np.ndarray, np.ndarray]:
    """The two kernels of the given rank that come closest to one.

    The singular values are shared out evenly, so that both train at the same pace.

    Args:
        kernel: As for `as_matrix`.
        rank: From 1 to the full rank.
        scheme: `"channel"` or `"spatial"`.

    Returns:
        Kernels `(…, inputs, rank)` and `(1, …, rank, outputs)`; for `"spatial"`
        `(height, 1, inputs, rank)` and `(1, width, rank, outputs)`. Float32.

    Example:
        >>> first, second = factorize(np.float32([[2.0, 0.0], [0.0, 1.0]]), 1, "channel")
        >>> np.abs(first @ second).round(3).tolist()
        [[2.0, 0.0], [0.0, 0.0]]
    """
    u, values, v = np.linalg.svd(as_matrix(kernel, scheme), full_matrices=False)
    root = np.sqrt(values[:rank])
    first, second = u[:, :rank] * root, root[:, None] * v[:rank]
    if scheme == "channel":
        first = first.reshape(*kernel.shape[:-1], rank)
        second = second.reshape(*(1,) * (kernel.ndim - 2), rank, kernel.shape[-1])
    else:
        height, width, inputs, outputs = kernel.shape
        first = first.reshape(height, 1, inputs, rank)
        second = second.reshape(rank, width, outputs).transpose(1, 0, 2)[None]
    return first.astype(np.float32), second.astype(np.float32)


@dataclass(frozen=True)
class Option:
    """One way to factorise a layer.

    Attributes:
        scheme, rank: How.
        kept: Fraction of the squared singular values that stays.
        parameters: Weights of the two kernels.
        macs: Multiply-accumulates of all calls of the two; `None` where a size is not known.
    """

    scheme: str
    rank: int
    kept: float
    parameters: int
    macs: int | None


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer whose kernel can be factorised.

    Attributes:
        name: Of its calls in the flat graph.
        layer: The layer itself.
        parameters: Weights of its kernel.
        macs: Multiply-accumulates of all its calls; `None` where a size is not known.
        options: The ways that make it smaller and cheaper, by scheme, rank 1 first.
        spectra: Scheme to singular values, largest first.
    """

    name: str
    layer: Any
    parameters: int
    macs: int | None
    options: Mapping[str, tuple[Option, ...]] = field(default_factory=dict)
    spectra: Mapping[str, np.ndarray] = field(default_factory=dict)

    def full_rank(self, scheme: str) -> int:
        """The rank at which a scheme is exact."""
        return len(self.spectra[scheme])


def why_not(call: Call) -> str | None:
    """Why the layer of a call cannot be factorised; `None` where it can."""
    layer = call.operation
    if call.kind not in CONVOLUTIONS | {"Dense"}:
        return REASONS.get(call.kind, "no dense or convolution kernel")
    if layer.quantization_mode is not None:
        return "its kernel was quantised by Keras"
    if layer.lora_enabled:
        return "its kernel is the sum of two variables (LoRA)"
    if call.kind != "Dense" and layer.groups > 1:
        return "grouped: its kernel is several small ones"
    return None


def candidate_of(graph: Graph, call: Call, schemes: Sequence[str] = SCHEMES) -> Candidate:
    """A layer with the ways to factorise it.

    Args:
        graph: The graph of `call`; all calls of the same layer count.
        call: Of a layer that `why_not` has nothing against.
        schemes: Those to look at. A kernel without two sides has `"channel"` only.
    """
    kernel = np.asarray(keras.ops.convert_to_numpy(call.operation.kernel), np.float64)
    calls = [other for other in graph.calls if other.operation is call.operation]
    macs = _summed([_macs(graph, other) for other in calls])
    two_sided = kernel.ndim == 4 and min(kernel.shape[:2]) > 1
    usable = schemes if two_sided else ("channel",)
    spectra = {scheme: spectrum(kernel, scheme) for scheme in usable}
    options = {
        scheme: tuple(_options(graph, calls, kernel, scheme, values, macs))
        for scheme, values in spectra.items()
    }
    return Candidate(call.name, call.operation, kernel.size, macs, options, spectra)


def _options(
    graph: Graph,
    calls: Sequence[Call],
    kernel: np.ndarray,
    scheme: str,
    values: np.ndarray,
    macs: int | None,
) -> list[Option]:
    """The ranks at which two layers are both smaller and cheaper than one."""
    rows, columns = as_matrix(kernel, scheme).shape
    each = _summed([_macs_per_rank(graph, call, rows, columns, scheme) for call in calls])
    found = []
    for rank, kept in enumerate(energy_kept(values), start=1):
        parameters = rank * (rows + columns)
        cost = None if each is None else rank * each
        cheaper = cost is None or macs is None or cost < macs
        if parameters < kernel.size and cheaper:
            found.append(Option(scheme, rank, float(kept), parameters, cost))
    return found


def _macs_per_rank(graph: Graph, call: Call, rows: int, columns: int, scheme: str) -> int | None:
    before = _sides(call, graph.specs[call.inputs[0]])
    after = _sides(call, graph.specs[call.outputs[0]])
    if None in before or None in after:
        return None
    if scheme == "channel":
        return math.prod(after) * (rows + columns)
    return after[0] * before[1] * rows + math.prod(after) * columns


def _sides(call: Call, spec: Any) -> tuple[Any, ...]:
    """The sizes of the axes that a kernel is moved along."""
    last = call.kind == "Dense" or call.operation.data_format == "channels_last"
    return tuple(spec.shape[1:-1] if last else spec.shape[2:])


def _macs(graph: Graph, call: Call) -> int | None:
    try:
        return macs_of(graph, call)
    except UnsupportedModelError:  # an axis without a size
        return None


def _summed(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


# ---------------------------------------------------------------------------- building


def build_factorized(graph: Graph, plan: Mapping[int, Option]) -> Any:
    """Build the model of a graph with some of its layers in two.

    The second layer keeps the name, bias and activation; the first is called `<name>_in`, numbered
    where that is taken. Both keep dtype policy, `trainable` and the kernel's regulariser; a
    constraint of the kernel means nothing for its factors and goes.

    Args:
        graph: Of a Keras 3 model, which is not changed.
        plan: Id of a layer to how it is factorised.

    Returns:
        A Keras model with own copies of all layers, not compiled.
    """
    copies = Copies()
    taken = {call.name for call in graph.calls} | {graph.specs[i].name for i in graph.inputs}
    pairs: dict[int, tuple[Any, Any]] = {}

    def emit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        option = plan.get(id(call.operation))
        if option is None:
            return copies.of(call)(*args, **kwargs)
        if id(call.operation) in pairs:
            first, second = pairs[id(call.operation)]
            return second(first(*args, **kwargs))
        first, second = pair_of(call, option, _free_name(f"{call.name}_in", taken))
        pairs[id(call.operation)] = (first, second)
        outputs = second(first(*args, **kwargs))
        _set_weights(call.operation, option, first, second)
        return outputs

    return build_model(graph, emit)


def pair_of(call: Call, option: Option, first_name: str) -> tuple[Any, Any]:
    """The two layers that stand in for the one of a call, not built yet."""
    layer, config = call.operation, call.operation.get_config()
    width = "units" if call.kind == "Dense" else "filters"
    plain = {"trainable": call.trainable, "kernel_constraint": None}
    first: dict[str, Any] = {
        **plain,
        "name": first_name,
        width: option.rank,
        "use_bias": False,
        "activation": "linear",
        "activity_regularizer": None,
    }
    second: dict[str, Any] = {**plain, "name": call.name}
    if call.kind != "Dense":
        sides = layer.rank
        for setting in ("kernel_size", "strides", "dilation_rate"):
            value = tuple(getattr(layer, setting))
            spatial = option.scheme == "spatial"
            first[setting] = (value[0], 1) if spatial else value
            second[setting] = (1, value[1]) if spatial else (1,) * sides
    cls = type(layer)
    return cls.from_config({**config, **first}), cls.from_config({**config, **second})


def _set_weights(layer: Any, option: Option, first: Any, second: Any) -> None:
    kernel = np.asarray(keras.ops.convert_to_numpy(layer.kernel))
    inner, outer = factorize(kernel, option.rank, option.scheme)
    bias = [keras.ops.convert_to_numpy(layer.bias)] if layer.use_bias else []
    first.set_weights([inner])
    second.set_weights([outer, *bias])


def _free_name(name: str, taken: set[str]) -> str:
    base, count = name, 1
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    taken.add(name)
    return name
