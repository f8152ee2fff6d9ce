"""Decide which tensors of a graph of simple layers are quantised, and with which range.

TFMOT's default 8-bit scheme: every tensor that an integer operator writes has a range, except those
that a LiteRT operator keeps to itself (between a convolution, its batch normalisation and its
ReLU), and those that only pass values on.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from tfedge.engines.native.graph import Call, Graph
from tfedge.engines.native.lower import TRAINING_ONLY, activation_name

# Layer class to the axis of the per-channel scales of each weight; None is per-tensor.
WEIGHTS: Mapping[str, Mapping[str, Any]] = {
    "Dense": {"kernel": None},
    "Conv1D": {"kernel": 2},
    "Conv2D": {"kernel": 3},
    "DepthwiseConv1D": {"kernel": (1, 2)},
    "DepthwiseConv2D": {"kernel": (2, 3)},
    "Conv1DTranspose": {"kernel": 1},
    "Conv2DTranspose": {"kernel": 2},
    "Embedding": {"embeddings": None},
}
LINEAR = frozenset(WEIGHTS) - {"Embedding"}
PASSES = TRAINING_ONLY | frozenset(
    [
        "MaxPooling1D",
        "MaxPooling2D",
        "AveragePooling1D",
        "AveragePooling2D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
        "Reshape",
        "Flatten",
        "Permute",
        "RepeatVector",
        "ZeroPadding1D",
        "ZeroPadding2D",
        "Cropping1D",
        "Cropping2D",
        "UpSampling1D",
        "UpSampling2D",
        "Transpose",
        "GetItem",
        "Squeeze",
        "ExpandDims",
        "Pad",
        "MaxPool",
        "AveragePool",
        "Split",
        "Max",
        "Min",
        "Repeat",
        "Tile",
    ]
)
SUMS = frozenset({"Add", "Subtract", "Multiply"})  # layers and operations of keras.ops
JOINS = frozenset({"Concatenate"})
# What gives no negative value where none goes in.
KEEPS_SIGN = (
    (PASSES - TRAINING_ONLY)
    | JOINS
    | {"Dropout", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "Mean", "Add", "Multiply"}
)
LINES = frozenset({"BatchNormalization", "Rescaling", "Normalization"})
KNOWN = (
    frozenset(WEIGHTS)
    | PASSES
    | SUMS
    | JOINS
    | LINES
    | frozenset(
        [
            "ReLU",
            "LeakyReLU",
            "PReLU",
            "Softmax",
            "Activation",
            "Maximum",
            "Minimum",
            "GlobalAveragePooling1D",
            "GlobalAveragePooling2D",
            "Divide",
            "TrueDivide",
            "Relu",
            "Relu6",
            "Sigmoid",
            "Tanh",
            "LeakyRelu",
            "HardSilu",
            "HardSwish",
            "HardSigmoid",
            "Gelu",
            "Mean",
            "Negative",
        ]
    )
)
KNOWN_ACTIVATIONS = frozenset(
    [
        "linear",
        "relu",
        "relu6",
        "sigmoid",
        "tanh",
        "softmax",
        "leaky_relu",
        "hard_silu",
        "hard_swish",
        "hard_sigmoid",
        "gelu",
    ]
)
FIXED_RANGES: Mapping[str, tuple[float, float]] = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}


@dataclass(frozen=True, kw_only=True)
class LayerRule:
    """How to quantise a layer of one's own.

    Attributes:
        weights: Attribute of the layer to the axis of its per-channel scales; `None` is per-tensor.
        activations: Whether its output is quantised.
        fixed_range: Range of its output, where that is known beforehand.
    """

    weights: Mapping[str, int | tuple[int, int] | None]
    activations: bool = True
    fixed_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What is quantised in a graph.

    Attributes:
        tensors: Tensor index to the fixed range of its values, or `None` for a learned one.
        weights: Name of a layer to its weights' scale axes.
        batch_norms: Name of a Dense layer to the name of the BatchNormalization folded into it.
        reasons: Name of a call that has no quantised output of its own, to why.
        non_negative: Tensors that hold no value below zero.
        after_float: Those of `tensors` that an operator kept float writes.
        ranged: Names of calls whose output has a range.
        unknown: Names of calls that there is no rule for: inside, they may compute in float.
        notes: Sentences for the reader.
    """

    tensors: Mapping[int, tuple[float, float] | None]
    weights: Mapping[str, Mapping[str, Any]]
    batch_norms: Mapping[str, str]
    reasons: Mapping[str, str]
    non_negative: frozenset[int]
    after_float: frozenset[int]
    ranged: frozenset[str]
    unknown: frozenset[str]
    notes: tuple[str, ...] = ()


def place(
    graph: Graph,
    *,
    keep_float: Collection[str] = (),
    rules: Mapping[type, LayerRule] | None = None,
    unfolded: Collection[str] = (),
) -> Placement:
    """Decide what is quantised.

    Args:
        graph: A graph of simple layers, as `lower` builds it.
        keep_float: Names of calls whose operators stay float.
        rules: Class of an own layer to how it is quantised.
        unfolded: Names of linear calls into which no batch normalisation is to be folded.

    Returns:
        The placement. Calls that nothing is known about get a range for their output, and a reason.
    """
    return _Placer(graph, frozenset(keep_float), rules or {}, frozenset(unfolded)).place()


class _Placer:
    def __init__(
        self,
        graph: Graph,
        keep_float: frozenset[str],
        rules: Mapping[type, LayerRule],
        unfolded: frozenset[str],
    ) -> None:
        self.graph = graph
        self.keep_float = keep_float
        self.rules = rules
        self.unfolded = unfolded
        self.readers = graph.consumers

    def place(self) -> Placement:
        tensors: dict[int, tuple[float, float] | None] = {}
        weights: dict[str, Mapping[str, Any]] = {}
        batch_norms: dict[str, str] = {}
        reasons: dict[str, str] = {}
        unknown: set[str] = set()
        after_float: set[int] = set()
        for index in self.graph.inputs:
            if self._is_float(index) and self._read_by_quantised(index):
                tensors[index] = None
        for call in self.graph.calls:
            if call.name in self.keep_float:
                reasons[call.name] = "kept float on request"
                leaving = [i for i in call.outputs if self._is_float(i) and self._leaves_float(i)]
                tensors.update(dict.fromkeys(leaving))
                after_float.update(leaving)
                continue
            axes = self.weights_of(call)
            if axes:
                weights[call.name] = axes
                batch_norm = self._folded_batch_norm(call)
                if batch_norm is not None and call.kind == "Dense":
                    batch_norms[call.name] = batch_norm.name
            reason = self._without_range(call)
            if reason:
                reasons[call.name] = reason
                continue
            if not self.is_known(call):
                unknown.add(call.name)
                reasons[call.name] = (
                    f"no rule for `{type(call.operation).__name__}`: its output has a range, its "
                    "inside is float unless LiteRT has an integer operator for it"
                )
            fixed = self._fixed_range(call)
            tensors.update({index: fixed for index in call.outputs if self._is_float(index)})
        return Placement(
            tensors=tensors,
            weights=weights,
            batch_norms=batch_norms,
            reasons=reasons,
            non_negative=non_negative(self.graph),
            after_float=frozenset(after_float),
            ranged=frozenset(call.name for call in self.graph.calls if call.outputs[0] in tensors),
            unknown=frozenset(unknown),
        )

    def weights_of(self, call: Call) -> Mapping[str, Any]:
        rule = self.rules.get(type(call.operation))
        if rule is not None:
            return rule.weights
        return WEIGHTS.get(call.kind, {}) if call.is_layer else {}

    def is_known(self, call: Call) -> bool:
        if type(call.operation) in self.rules:
            return True
        if call.kind == "Activation":
            return activation_name(call) in KNOWN_ACTIVATIONS
        return call.kind in KNOWN

    def _without_range(self, call: Call) -> str | None:
        """Why the output of a call has no range of its own, or `None` where it has one."""
        rule = self.rules.get(type(call.operation))
        if rule is not None:
            return None if rule.activations else "the rule given for it leaves its output alone"
        if call.kind in TRAINING_ONLY:
            return "acts only while training"
        if call.kind in PASSES or (call.kind == "Activation" and activation_name(call) == "linear"):
            return "passes values on: it keeps the range of its input"
        if not any(self._is_float(index) for index in call.outputs):
            return "its output is not float"
        reader = self.graph.only_reader(call)
        if reader is None or reader.name in self.keep_float:
            return None
        if reader is self._folded_batch_norm(call) or (
            is_fusable_relu(reader) and self._fuses_relu(call)
        ):
            return f"computed in one operator with `{reader.name}`, whose output has the range"
        if reader.kind in JOINS and self._fixed_range(call) is None:
            return f"written straight into `{reader.name}`, whose output has the range"
        return None

    def _folded_batch_norm(self, call: Call) -> Call | None:
        if call.name in self.unfolded:
            return None
        reader = folded_batch_norm(self.graph, call)
        return None if reader is None or reader.name in self.keep_float else reader

    def _fuses_relu(self, call: Call) -> bool:
        return call.kind in LINEAR or call.kind in SUMS or call.kind in LINES

    def _fixed_range(self, call: Call) -> tuple[float, float] | None:
        rule = self.rules.get(type(call.operation))
        if rule is not None:
            return rule.fixed_range
        clip = clip_of(call)
        if clip is not None:
            return (0.0, clip)
        name = activation_name(call) if call.kind == "Activation" else call.kind.lower()
        return FIXED_RANGES.get(name)

    def _is_float(self, index: int) -> bool:
        return keras.backend.is_float_dtype(self.graph.specs[index].dtype)

    def _leaves_float(self, index: int) -> bool:
        readers = self.readers[index]
        return any(call.name not in self.keep_float for call in readers)

    def _read_by_quantised(self, index: int) -> bool:
        readers = self.readers[index]
        return not readers or any(
            call.name not in self.keep_float and call.kind != "Embedding" for call in readers
        )


def is_fusable_relu(call: Call) -> bool:
    """Whether LiteRT computes this call inside the operator before it.

    That is ReLU and ReLU6, and any other clipped ReLU, whose clip is the top of its integer range.
    """
    if not call.is_layer:
        return call.kind in {"Relu", "Relu6"}
    if call.kind == "Activation":
        return activation_name(call) in {"relu", "relu6"}
    layer = call.operation
    return call.kind == "ReLU" and not float(layer.negative_slope) and not float(layer.threshold)


def non_negative(graph: Graph) -> frozenset[int]:
    """The tensors that hold no value below zero: behind a ReLU, and what keeps to such values."""
    found: set[int] = set()
    for call in graph.calls:
        if is_fusable_relu(call):
            found.add(call.outputs[0])
        elif call.kind in KEEPS_SIGN and call.inputs and found.issuperset(call.inputs):
            found.update(call.outputs)
    return frozenset(found)


def clip_of(call: Call) -> float | None:
    """Where a ReLU clips by the top of its integer range: its `max_value`, unless that is 6."""
    if call.kind != "ReLU" or not call.is_layer or not is_fusable_relu(call):
        return None
    top = call.operation.max_value
    return None if top is None or float(top) == 6.0 else float(top)


def folded_batch_norm(graph: Graph, call: Call, layer: Any = None) -> Call | None:
    """The BatchNormalization that is computed in one operator with a linear layer before it.

    Args:
        graph: Where both are called; a layer that is called elsewhere too cannot be folded.
        call: The call of the linear layer, or of a wrapper around it.
        layer: The linear layer, where `call` calls a wrapper.
    """
    layer = call.operation if layer is None else layer
    reader = graph.only_reader(call)
    if type(layer).__name__ not in LINEAR or reader is None or reader.kind != "BatchNormalization":
        return None
    if graph.is_shared(call) or graph.is_shared(reader):
        return None
    channels_last = type(layer).__name__ == "Dense" or layer.data_format == "channels_last"
    rank = len(reader.operation.get_build_config()["input_shape"])
    return reader if channels_last and reader.operation.axis in (-1, rank - 1) else None
