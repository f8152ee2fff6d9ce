"""Rewrite a graph into simple layers that quantisation has rules for; outputs stay equal.

Nested models are inlined, activations taken out of layers, separable convolutions split, dense
layers on images and sequences written as 1×1 convolutions, sums of many inputs as sums of two, silu
as x · sigmoid(x), hard sigmoid as a clipped line, and chains of Rescaling and Normalization as one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfedge.engines.native.graph import Call, Copies, Graph, build_model, copy_layer

ACTIVATED = frozenset(
    [
        "Dense",
        "Conv1D",
        "Conv2D",
        "Conv3D",
        "DepthwiseConv1D",
        "DepthwiseConv2D",
        "Conv1DTranspose",
        "Conv2DTranspose",
        "Conv3DTranspose",
        "SeparableConv1D",
        "SeparableConv2D",
    ]
)
AFFINE = frozenset({"Rescaling", "Normalization"})


def activation_name(call: Call) -> str:
    """Keras's name of the activation of a call, `"linear"` where it has none.

    A function that Keras does not know gives an empty string.
    """
    function = getattr(call.operation, "activation", None)
    if function is None:
        return "linear"
    serialized = keras.activations.serialize(function)
    return serialized if isinstance(serialized, str) else ""


def lower(graph: Graph, *, keep: frozenset[str] = frozenset()) -> Any:
    """Build a Keras model of simple layers that computes what `graph` computes.

    Args:
        graph: What to rewrite.
        keep: Names of layers to copy as they are.

    Returns:
        A Keras model with own copies of all layers.
    """
    work = _Lowering(graph)

    def emit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.name in keep:
            return work.copies.of(call)(*args, **kwargs)
        return work.emit(call, args, kwargs)

    return build_model(graph, emit)


@dataclass
class _Lowering:
    graph: Graph

    def __post_init__(self) -> None:
        self.copies = Copies()
        self.extra: dict[str, Any] = {}
        self.writers = self.graph.producers

    def emit(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind = call.kind
        if kind in AFFINE and self._emits_affine(call):
            return self._affine(call, args)
        if kind in {"SeparableConv1D", "SeparableConv2D"}:
            return self._activate(call, self._separable(call, args[0]))
        if kind == "Dense" and len(args[0].shape) in (3, 4):
            return self._activate(call, self.once(call.name, lambda: pointwise(call))(args[0]))
        if kind in {"Add", "Multiply", "Maximum", "Minimum"} and call.is_layer:
            return self._pairwise(call, args[0])
        if kind in ACTIVATED and activation_name(call) != "linear":
            return self._activate(call, self.copies.of(call, activation="linear")(*args, **kwargs))
        if kind == "Activation" and activation_name(call):
            return self._activate(call, args[0])
        if kind == "Average" and call.is_layer:
            return self._average(call, args[0])
        if kind in {"Silu", "Swish"} and not call.is_layer:
            return self._silu(call.name, args[0])
        if kind == "HardSigmoid" and not call.is_layer:
            return self._hard_sigmoid(call.name, args[0])
        return self.copies.of(call)(*args, **kwargs)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The layer of that name, made on the first call (layers may be shared)."""
        if name not in self.extra:
            self.extra[name] = make()
        return self.extra[name]

    def _activate(self, call: Call, x: Any) -> Any:
        activation = activation_name(call)
        name = (
            call.name if call.kind == "Activation" else f"{call.name}_{activation or 'activation'}"
        )
        dtype = call.operation.dtype_policy
        if activation == "linear":
            return x
        if activation in {"silu", "swish"}:
            return self._silu(name, x)
        if activation == "hard_sigmoid":
            return self._hard_sigmoid(name, x)
        if activation in {"relu", "relu6"}:
            top = 6.0 if activation == "relu6" else None
            return self.once(name, lambda: layers.ReLU(top, name=name, dtype=dtype))(x)
        return self.once(
            name, lambda: layers.Activation(call.operation.activation, name=name, dtype=dtype)
        )(x)

    def _silu(self, name: str, x: Any) -> Any:
        gate = self.once(
            f"{name}_sigmoid", lambda: layers.Activation("sigmoid", name=f"{name}_sigmoid")
        )
        return self.once(name, lambda: layers.Multiply(name=name))([x, gate(x)])

    def _hard_sigmoid(self, name: str, x: Any) -> Any:
        line = self.once(f"{name}_line", lambda: layers.Rescaling(1 / 6, 0.5, name=f"{name}_line"))
        return self.once(name, lambda: layers.ReLU(1.0, name=name))(line(x))

    def _pairwise(self, call: Call, inputs: Any) -> Any:
        total, *rest = inputs if isinstance(inputs, list | tuple) else [inputs]
        for number, other in enumerate(rest, start=1):
            last = number == len(rest)
            name = call.name if last else f"{call.name}_{number}"
            make = functools.partial(copy_layer, call.operation, name=name)
            total = self.once(name, make)([total, other])
        return total

    def _average(self, call: Call, inputs: list[Any]) -> Any:
        name, dtype = call.name, call.operation.dtype_policy
        total = self.once(f"{name}_sum", lambda: layers.Add(name=f"{name}_sum", dtype=dtype))
        share = 1.0 / len(inputs)
        return self.once(name, lambda: layers.Rescaling(share, name=name, dtype=dtype))(
            total(inputs)
        )

    def _separable(self, call: Call, x: Any) -> Any:
        depthwise = self.once(f"{call.name}_depthwise", lambda: depthwise_half(call))
        return self.once(call.name, lambda: pointwise_half(call))(depthwise(x))

    def _emits_affine(self, call: Call) -> bool:
        scale, _ = affine_of(call.operation)
        return bool(np.all(np.isfinite(scale)))

    def _is_merged(self, call: Call) -> bool:
        """Whether an affine call is left to the affine call that alone reads it."""
        reader = self.graph.only_reader(call)
        return reader is not None and reader.kind in AFFINE

    def _affine(self, call: Call, args: tuple[Any, ...]) -> Any:
        if self._is_merged(call):
            return args[0]  # the next one does the work of both
        scale, offset = affine_of(call.operation)
        before = self.writers.get(call.inputs[0])
        while before is not None and before.kind in AFFINE and self._is_merged(before):
            inner_scale, inner_offset = affine_of(before.operation)
            offset = offset + scale * inner_offset
            scale = scale * inner_scale
            before = self.writers.get(before.inputs[0])
        dtype = call.operation.dtype_policy
        return self.once(
            call.name,
            lambda: layers.Rescaling(_plain(scale), _plain(offset), name=call.name, dtype=dtype),
        )(args[0])


TRAINING_ONLY = frozenset(
    [
        "Dropout",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "AlphaDropout",
        "GaussianDropout",
        "GaussianNoise",
        "ActivityRegularization",
        "Identity",
        "RandomFlip",
        "RandomRotation",
        "RandomTranslation",
        "RandomZoom",
        "RandomContrast",
        "RandomBrightness",
    ]
)


def _plain(value: np.ndarray) -> float | list[float]:
    return value.reshape(-1).tolist() if value.size > 1 else float(value.reshape(()))


def affine_of(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of a Rescaling or Normalization layer: `y = scale · x + offset`.

    Args:
        layer: A built `keras.layers.Rescaling` or `Normalization`.

    Returns:
        Two float32 arrays, scalars or one value per channel.
    """
    if isinstance(layer, layers.Rescaling):
        return np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)
    mean = np.asarray(ops.convert_to_numpy(layer.mean), np.float32).reshape(-1)
    variance = np.asarray(ops.convert_to_numpy(layer.variance), np.float32).reshape(-1)
    spread = np.maximum(np.sqrt(variance), keras.config.epsilon())
    if layer.invert:
        return spread, mean
    return 1.0 / spread, -mean / spread


def depthwise_half(call: Call) -> Any:
    """The depthwise convolution inside a separable one, with its weights."""
    source = call.operation
    cls = layers.DepthwiseConv1D if call.kind == "SeparableConv1D" else layers.DepthwiseConv2D
    layer = cls(
        source.kernel_size,
        strides=source.strides,
        padding=source.padding,
        data_format=source.data_format,
        dilation_rate=source.dilation_rate,
        depth_multiplier=source.depth_multiplier,
        use_bias=False,
        depthwise_regularizer=source.depthwise_regularizer,
        depthwise_constraint=source.depthwise_constraint,
        trainable=call.trainable,
        name=f"{call.name}_depthwise",
        dtype=source.dtype_policy,
    )
    layer.build(source.get_build_config()["input_shape"])
    layer.set_weights([ops.convert_to_numpy(source.depthwise_kernel)])
    return layer


def pointwise(call: Call) -> Any:
    """A Dense layer on the last axis of images or sequences, as a 1×1 convolution."""
    source = call.operation
    return one_by_one(
        call,
        source.units,
        source.get_build_config()["input_shape"],
        source.kernel,
        kernel_regularizer=source.kernel_regularizer,
        kernel_constraint=source.kernel_constraint,
    )


def pointwise_half(call: Call) -> Any:
    """The 1×1 convolution inside a separable one, with its weights and bias."""
    source = call.operation
    shape = list(source.get_build_config()["input_shape"])
    shape[-1 if source.data_format == "channels_last" else 1] = source.pointwise_kernel.shape[-2]
    return one_by_one(
        call,
        source.filters,
        tuple(shape),
        source.pointwise_kernel,
        data_format=source.data_format,
        kernel_regularizer=source.pointwise_regularizer,
        kernel_constraint=source.pointwise_constraint,
    )


def one_by_one(
    call: Call, filters: int, input_shape: tuple[int | None, ...], kernel: Any, **settings: Any
) -> Any:
    """A 1×1 convolution with a kernel and the bias of a layer.

    Args:
        call: Of the layer that it stands for, or is a part of.
        filters: Output channels.
        input_shape: Of a sequence (rank 3) or of images (rank 4), batch first.
        kernel: Values in the order of its own kernel, of any shape.
        **settings: Of the layer, beside or instead of those of the layer that it stands for.
    """
    source = call.operation
    cls = layers.Conv1D if len(input_shape) == 3 else layers.Conv2D
    own = {
        "use_bias": source.use_bias,
        "trainable": call.trainable,
        "name": call.name,
        "dtype": source.dtype_policy,
    }
    layer = cls(filters, 1, **{**own, **settings})
    layer.build(input_shape)
    weights = [ops.reshape(kernel, layer.kernel.shape)]
    layer.set_weights([*weights, *([source.bias] if source.use_bias else [])])
    return layer
