"""The patterns of `Rewrite`: which layer may be replaced by which, exactly or approximately."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import layers, ops

from tfedge.engines.native.export import over_channels
from tfedge.engines.native.factors import (
    composed,
    depthwise_and_pointwise,
    diagonal_blocks,
    relative_error,
    two_threes,
    whole_kernel,
)
from tfedge.engines.native.fake_quant import folded_offset, folded_scale
from tfedge.engines.native.graph import Call, Graph, copy_layer
from tfedge.engines.native.lower import (
    ACTIVATED,
    activation_name,
    depthwise_half,
    one_by_one,
    pointwise_half,
)
from tfedge.engines.native.place import LINEAR, folded_batch_norm
from tfedge.engines.native.rewriting import Pattern, Replacement

DROPOUTS = frozenset(
    ["Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout"]
    + ["GaussianDropout", "GaussianNoise"]
)
NO_SAVING = "it would not take fewer multiply-accumulates"
CHANNELS_FIRST = "its channels come first, which TensorFlow computes on GPUs only"
TO_MAP = frozenset({"Flatten", "GlobalAveragePooling2D", "GlobalMaxPooling2D"})

# Pattern to (activations, as Keras names them, and classes of layers and operations; the new
# activation; what it is good for).
ACTIVATIONS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "silu_to_hard_silu": (
        ("silu", "swish", "Silu", "Swish"),
        "hard_silu",
        "x · sigmoid(x) becomes x · relu6(x + 3) / 6, for accelerators; XNNPACK has no int8 kernel",
    ),
    "mish_to_hard_silu": (
        ("mish", "Mish"),
        "hard_silu",
        "Mish, which no integer kernel computes, becomes x · relu6(x + 3) / 6",
    ),
    "gelu_to_relu6": (
        ("gelu", "Gelu"),
        "relu6",
        "GELU becomes ReLU6, which every accelerator fuses into the layer before it",
    ),
    "gelu_to_relu": (
        ("gelu", "Gelu"),
        "relu",
        "GELU becomes ReLU, which is nearer to it than ReLU6 above 6",
    ),
    "sigmoid_to_hard_sigmoid": (
        ("sigmoid", "Sigmoid"),
        "hard_sigmoid",
        "gates by sigmoid become relu6(x + 3) / 6",
    ),
    "elu_to_relu": (("elu", "ELU", "Elu"), "relu", "ELU becomes ReLU, which the Edge TPU maps"),
    "selu_to_relu": (("selu", "Selu"), "relu", "SELU becomes ReLU, which the Edge TPU maps"),
    "softplus_to_relu": (
        ("softplus", "Softplus"),
        "relu",
        "softplus becomes ReLU, which the Edge TPU maps",
    ),
}


# ---------------------------------------------------------------------------- activations


def _has_activation(sources: tuple[str, ...], graph: Graph, call: Call) -> bool:
    if call.kind in ACTIVATED or call.kind == "Activation":
        return activation_name(call) in sources
    return call.kind in sources


def _ends_model(graph: Graph, call: Call) -> str:
    calls = [other for other in graph.calls if other.operation is call.operation]
    if any(index in graph.outputs for other in calls for index in other.outputs):
        return "it is an output of the model, whose values mean something to those who read it"
    return ""


def _with_activation(target: str, graph: Graph, call: Call) -> Replacement:
    if call.is_layer and call.kind != "ELU":
        layer = copy_layer(
            call.operation, name=call.name, trainable=call.trainable, activation=target
        )
    else:
        policy = call.operation.dtype_policy if call.is_layer else None
        layer = layers.Activation(target, name=call.name, dtype=policy)
    return Replacement(layers=(layer,))


def _activation_pattern(name: str, sources: tuple[str, ...], target: str, does: str) -> Pattern:
    return Pattern(
        name=name,
        exact=False,
        does=does,
        concerns=functools.partial(_has_activation, sources),
        hindrance=_ends_model if "sigmoid" in sources else _nothing,
        replace=functools.partial(_with_activation, target),
    )


def _nothing(graph: Graph, call: Call) -> str:
    return ""


# ---------------------------------------------------------------------------- convolutions


def _is_wide(graph: Graph, call: Call) -> bool:
    return call.kind in {"Conv1D", "Conv2D"} and max(call.operation.kernel_size) > 1


def _not_separable(graph: Graph, call: Call) -> str:
    layer = call.operation
    places, (inputs, outputs) = int(np.prod(layer.kernel_size)), layer.kernel.shape[-2:]
    if layer.groups != 1:
        return "its channels are in groups already"
    if layer.padding == "causal":
        return "depthwise convolutions have no causal padding"
    if layer.data_format != "channels_last":
        return CHANNELS_FIRST
    if len(set(layer.strides)) > 1:
        return f"depthwise convolutions have one stride, and its strides are {layer.strides}"
    if places * inputs + inputs * outputs >= places * inputs * outputs:
        return NO_SAVING
    return ""


def _separable(graph: Graph, call: Call) -> Replacement:
    layer = call.operation
    kernel = ops.convert_to_numpy(layer.kernel)
    depthwise, pointwise = depthwise_and_pointwise(kernel)
    cls = layers.DepthwiseConv1D if call.kind == "Conv1D" else layers.DepthwiseConv2D
    first = cls(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        depthwise_regularizer=layer.kernel_regularizer,
        trainable=call.trainable,
        name=f"{call.name}_depthwise",
        dtype=layer.dtype_policy,
    )
    first.build(_input_shape(layer))
    first.set_weights([depthwise])
    second = _convolution(call, pointwise, kernel_size=1, strides=1, dilation_rate=1)
    error = relative_error(kernel, depthwise * pointwise)
    return Replacement(layers=(first, second), error=error)


def _is_five(graph: Graph, call: Call) -> bool:
    return call.kind == "Conv2D" and tuple(call.operation.kernel_size) == (5, 5)


def _not_two_threes(graph: Graph, call: Call) -> str:
    layer = call.operation
    inputs, outputs = layer.kernel.shape[-2:]
    if layer.groups != 1:
        return "its channels are in groups"
    if set(layer.dilation_rate) != {1}:
        return "it is dilated"
    if layer.data_format != "channels_last":
        return CHANNELS_FIRST
    middle, places = min(inputs, outputs), int(np.prod(layer.strides))
    if 9 * middle * (inputs * places + outputs) >= 25 * inputs * outputs:
        return NO_SAVING
    return ""


def _two_threes(graph: Graph, call: Call) -> Replacement:
    layer = call.operation
    kernel = ops.convert_to_numpy(layer.kernel)
    first, second = two_threes(kernel)
    leading = layers.Conv2D(
        first.shape[-1],
        3,
        padding=layer.padding,
        use_bias=False,
        kernel_regularizer=layer.kernel_regularizer,
        trainable=call.trainable,
        name=f"{call.name}_first",
        dtype=layer.dtype_policy,
    )
    leading.build(_input_shape(layer))
    leading.set_weights([first])
    between = leading.compute_output_shape(_input_shape(layer))
    trailing = _convolution(call, second, input_shape=between, kernel_size=3)
    error = relative_error(kernel, composed(first, second))
    return Replacement(layers=(leading, trailing), error=error)


def _is_convolution(graph: Graph, call: Call) -> bool:
    return call.kind in {"Conv1D", "Conv2D"}


def _not_in_groups(groups: int, graph: Graph, call: Call) -> str:
    layer = call.operation
    inputs, outputs = layer.kernel.shape[-2:]
    if layer.groups != 1:
        return "its channels are in groups already"
    if inputs % groups or outputs % groups:
        return f"its {inputs} input and {outputs} output channels do not divide by {groups}"
    if layer.data_format != "channels_last":
        return CHANNELS_FIRST
    return ""


def _in_groups(groups: int, graph: Graph, call: Call) -> Replacement:
    kernel = ops.convert_to_numpy(call.operation.kernel)
    blocks = diagonal_blocks(kernel, groups)
    layer = _convolution(call, blocks, groups=groups)
    return Replacement(layers=(layer,), error=relative_error(kernel, whole_kernel(blocks, groups)))


def _convolution(call: Call, kernel: np.ndarray, *, input_shape: Any = None, **changes: Any) -> Any:
    """A convolution with a new kernel; bias, activation and the rest are those of `call`."""
    source = call.operation
    own = {"name": call.name, "trainable": call.trainable, "filters": kernel.shape[-1]}
    layer = getattr(layers, call.kind).from_config({**source.get_config(), **own, **changes})
    layer.build(_input_shape(source) if input_shape is None else input_shape)
    bias = [ops.convert_to_numpy(source.bias)] if source.use_bias else []
    layer.set_weights([kernel, *bias])
    return layer


def _input_shape(layer: Any) -> Any:
    return tuple(layer.get_build_config()["input_shape"])


# ---------------------------------------------------------------------------- exact ones


def _has_batch_norm(graph: Graph, call: Call) -> bool:
    reader = graph.only_reader(call)
    return call.kind in LINEAR and reader is not None and reader.kind == "BatchNormalization"


def _not_foldable(graph: Graph, call: Call) -> str:
    reader = graph.only_reader(call)
    if graph.is_shared(call) or (reader is not None and graph.is_shared(reader)):
        return "it or the BatchNormalization behind it is called elsewhere too"
    if activation_name(call) != "linear":
        return "an activation stands between it and the BatchNormalization"
    found = folded_batch_norm(graph, call)
    if found is None:
        return "the BatchNormalization behind it is not over its output channels"
    if found.kwargs.get("training"):
        return "the BatchNormalization behind it is called with `training=True`"
    return ""


def _fold(graph: Graph, call: Call) -> Replacement:
    reader, layer = folded_batch_norm(graph, call), call.operation
    assert reader is not None  # `_not_foldable` has seen it
    scale = ops.convert_to_numpy(folded_scale(reader.operation))
    offset = ops.convert_to_numpy(folded_offset(reader.operation))
    kernel = ops.convert_to_numpy(layer.kernel).astype(np.float32)
    bias = ops.convert_to_numpy(layer.bias).astype(np.float32) if layer.use_bias else 0.0
    folded = copy_layer(
        layer,
        name=reader.name if reader.outputs[0] in graph.outputs else call.name,
        trainable=call.trainable,
        use_bias=True,
        weights=[kernel * over_channels(layer, kernel, scale), bias * scale + offset],
    )
    return Replacement(layers=(folded,), absorbed=(reader.name,))


def _is_separable(graph: Graph, call: Call) -> bool:
    return call.kind in {"SeparableConv1D", "SeparableConv2D"}


def _not_splittable(graph: Graph, call: Call) -> str:
    if call.operation.padding == "causal":
        return "depthwise convolutions have no causal padding"
    return ""


def _split(graph: Graph, call: Call) -> Replacement:
    pointwise = pointwise_half(call)
    pointwise.activation = call.operation.activation
    return Replacement(layers=(depthwise_half(call), pointwise))


def _is_dense(graph: Graph, call: Call) -> bool:
    return call.kind == "Dense"


def _not_on_a_map(graph: Graph, call: Call) -> str:
    rank = len(_input_shape(call.operation))
    if rank in (3, 4):
        return ""
    before = graph.producers.get(call.inputs[0])
    on_map = rank == 2 and before is not None and before.kind in TO_MAP
    if on_map and before is not None and before.kind == "Flatten":
        on_map = tuple(graph.specs[before.inputs[0]].shape[1:-1]) == (1, 1)
    return "" if on_map else "its input is neither a map nor made of a map of 1×1"


def _as_convolution(graph: Graph, call: Call) -> Replacement:
    layer, shape = call.operation, _input_shape(call.operation)
    settings = {
        "activation": layer.activation,
        "kernel_regularizer": layer.kernel_regularizer,
        "bias_regularizer": layer.bias_regularizer,
        "kernel_constraint": layer.kernel_constraint,
        "bias_constraint": layer.bias_constraint,
    }
    if len(shape) in (3, 4):
        return Replacement(layers=(one_by_one(call, layer.units, shape, layer.kernel, **settings),))
    policy, image = layer.dtype_policy, (1, 1, shape[-1])
    settings["name"] = f"{call.name}_conv"
    made = one_by_one(call, layer.units, (None, *image), layer.kernel, **settings)
    before = layers.Reshape(image, name=f"{call.name}_map", dtype=policy)
    after = layers.Reshape((layer.units,), name=call.name, dtype=policy)
    return Replacement(layers=(before, made, after))


def _is_identity(graph: Graph, call: Call) -> bool:
    layer, kind = call.operation, call.kind
    if not call.is_layer:
        return False
    if kind == "Activation":
        return activation_name(call) == "linear"
    if kind in DROPOUTS:
        return (layer.stddev if kind == "GaussianNoise" else layer.rate) == 0
    if kind in {"Reshape", "Flatten"}:
        shapes = [graph.specs[i].shape for i in (call.inputs[0], call.outputs[0])]
        return shapes[0] == shapes[1] and None not in shapes[0][1:]
    if kind in {"ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"}:
        return not np.any(layer.padding)
    if kind in {"Cropping1D", "Cropping2D", "Cropping3D"}:
        return not np.any(layer.cropping)
    if kind in {"UpSampling1D", "UpSampling2D", "UpSampling3D"}:
        return bool(np.all(np.asarray(layer.size) == 1))
    return kind == "Identity"


def _is_dropout(graph: Graph, call: Call) -> bool:
    return call.kind in DROPOUTS


def _not_droppable(graph: Graph, call: Call) -> str:
    if call.kwargs.get("training"):
        return "it is called with `training=True`, at inference too"
    if _ends_model(graph, call):
        return "it is an output of the model"
    return ""


def _passed_on(graph: Graph, call: Call) -> Replacement:
    return Replacement(layers=())


# ---------------------------------------------------------------------------- the table


def _grouped(groups: int) -> Pattern:
    return Pattern(
        name=f"conv_to_{groups}_groups",
        exact=False,
        does=f"a convolution keeps the {groups} blocks on the diagonal of its kernel: 1/{groups} "
        "of its weights and multiply-accumulates",
        concerns=_is_convolution,
        hindrance=functools.partial(_not_in_groups, groups),
        replace=functools.partial(_in_groups, groups),
    )


_ALL = (
    Pattern(
        name="drop_identity",
        exact=True,
        does="layers that pass their input on, while training too, are left out",
        concerns=_is_identity,
        hindrance=_not_droppable,
        replace=_passed_on,
    ),
    Pattern(
        name="drop_dropout",
        exact=True,
        does="dropout and noise are left out: for models that are not trained any more",
        concerns=_is_dropout,
        hindrance=_not_droppable,
        replace=_passed_on,
    ),
    Pattern(
        name="split_separable",
        exact=True,
        does="a SeparableConv becomes a depthwise and a 1×1 convolution, which other stages reach",
        concerns=_is_separable,
        hindrance=_not_splittable,
        replace=_split,
    ),
    Pattern(
        name="fold_batch_norm",
        exact=True,
        does="a BatchNormalization is folded into the convolution or dense layer before it",
        concerns=_has_batch_norm,
        hindrance=_not_foldable,
        replace=_fold,
    ),
    Pattern(
        name="dense_to_conv1x1",
        exact=True,
        does="a dense layer on maps becomes a 1×1 convolution, which accelerators and sparse "
        "kernels are made for",
        concerns=_is_dense,
        hindrance=_not_on_a_map,
        replace=_as_convolution,
    ),
    Pattern(
        name="conv_to_separable",
        exact=False,
        does="a k×k convolution becomes a depthwise and a 1×1 convolution, the nearest there are",
        concerns=_is_wide,
        hindrance=_not_separable,
        replace=_separable,
    ),
    Pattern(
        name="conv5_to_two_conv3",
        exact=False,
        does="a 5×5 convolution becomes two of 3×3 in a row, fitted by least squares",
        concerns=_is_five,
        hindrance=_not_two_threes,
        replace=_two_threes,
    ),
    *(_grouped(groups) for groups in (2, 4, 8)),
    *(_activation_pattern(name, *row) for name, row in ACTIVATIONS.items()),
)

PATTERNS: Mapping[str, Pattern] = {pattern.name: pattern for pattern in _ALL}
# Exact, and of use to every model; the other exact ones are applied where they are asked for.
DEFAULT = ("drop_identity", "split_separable", "fold_batch_norm")
