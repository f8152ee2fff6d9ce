"""Turn a fake-quantised model into plain layers with baked weights, ready to convert."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfedge.engines.native.cluster_keeping import FixedScales, held_scales, is_held
from tfedge.engines.native.fake_quant import (
    FakeQuantize,
    QuantizedWeights,
    folded_offset,
    folded_scale,
)
from tfedge.engines.native.graph import Call, Graph, build_model, copy_layer, read_graph
from tfedge.engines.native.lower import TRAINING_ONLY, affine_of
from tfedge.engines.native.place import WEIGHTS, clip_of, folded_batch_norm
from tfedge.errors import ConversionError
from tfedge.models import layers_of

WIDTH = 8  # bits of the integers in a file


def export_model(model: Any) -> Any:
    """An own copy of a fake-quantised model in plain layers, for inference only.

    Weights carry their rounded values, batch normalisation is folded into the layer before it or
    written as a 1×1 depthwise convolution (both are exact in int8), training-only layers are gone.
    What remains of quantisation are the `FakeQuantize` layers of the activations.

    Args:
        model: A model from `prepare_quantization`, trained or calibrated.

    Returns:
        A float32 Keras model whose outputs equal those of `model` at inference.

    Raises:
        ConversionError: A range was never learned.
    """
    graph = read_graph(model)
    unknown = [
        call.name
        for call in graph.calls
        if isinstance(call.operation, FakeQuantize) and not call.operation.has_range
    ]
    if unknown:
        raise ConversionError(
            f"{len(unknown)} activation ranges were never learned, the first is {unknown[0]!r}. "
            "Train the model from `Quantize.prepare`, or calibrate it with data first."
        )
    return build_model(_with_index_inputs(graph), _Exporter(graph).emit)


def in_float32(model: Any) -> Any:
    """A copy of a model that computes in float32; the model itself where it does so already.

    LiteRT's kernels compute in float32: what was trained in `mixed_float16` is rebuilt for them.

    Args:
        model: A Functional or Sequential Keras 3 model.
    """
    if all(layer.compute_dtype in ("float32", None) for layer in layers_of(model)):
        return model
    graph = read_graph(model)
    made: dict[str, Any] = {}

    def emit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.is_layer and call.name not in made:
            made[call.name] = float32(call.operation)
        return made.get(call.name, call.operation)(*args, **kwargs)

    return build_model(dataclasses.replace(graph, strategy=None), emit)


def _with_index_inputs(graph: Graph) -> Graph:
    """The graph with int32 inputs where only an Embedding reads them."""
    readers = graph.consumers
    specs = dict(graph.specs)
    for index in graph.inputs:
        if readers[index] and all(
            isinstance(linear(call), layers.Embedding) for call in readers[index]
        ):
            spec = specs[index]
            specs[index] = keras.KerasTensor(spec.shape, dtype="int32", name=spec.name)
    return dataclasses.replace(graph, specs=specs, strategy=None)


class _Exporter:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made: dict[str, Any] = {}
        behind = {call.name: folded_batch_norm(graph, call, linear(call)) for call in graph.calls}
        self.folded = {name: call.operation for name, call in behind.items() if call is not None}
        self.absorbed = {call.name for call in behind.values() if call is not None}

    def emit(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.kind in TRAINING_ONLY or call.name in self.absorbed:
            return args[0]
        if call.name not in self.made:
            self.made[call.name] = self._make(call)
        made = self.made[call.name]
        kwargs = {k: v for k, v in kwargs.items() if k != "training" and v is not None}
        return made(*args, **kwargs)

    def _make(self, call: Call) -> Any:
        layer = call.operation
        if not call.is_layer:
            return layer
        batch_norm = self.folded.get(call.name)
        if isinstance(layer, FakeQuantize):
            return exact_range(layer)
        if isinstance(layer, QuantizedWeights):
            return baked(layer, layer.batch_norm or batch_norm)
        if batch_norm is not None:
            return with_batch_norm(layer, batch_norm, {})
        if call.kind == "BatchNormalization" and _last_axis(call):
            scale, offset = folded_scale(layer), folded_offset(layer)
            return affine_layer(call, ops.convert_to_numpy(scale), ops.convert_to_numpy(offset))
        if call.kind in {"Rescaling", "Normalization"}:
            scale, offset = affine_of(layer)
            return affine_layer(call, scale, offset)
        if self._is_clipped_by_range(call):
            return float32(layer, max_value=None)
        if call.kind == "UpSampling2D" and layer.interpolation == "nearest":
            return enlarge(layer)
        return float32(layer)

    def _is_clipped_by_range(self, call: Call) -> bool:
        clip, reader = clip_of(call), self.graph.only_reader(call)
        if clip is None or reader is None or not isinstance(reader.operation, FakeQuantize):
            return False
        return reader.operation.fixed_range == (0.0, clip)


def exact_range(layer: FakeQuantize) -> Any:
    """The range of a layer with its ends moved to where its zero point is a whole number.

    TensorFlow does so inside the fake quantisation, the converter does it again; near a half, as
    for -1 … 1, the two may choose different zero points. After this there is nothing to choose.

    Fewer than 8 bits become 8-bit integers of the same step that end where the range ends: whatever
    is above saturates there. What is below is cut off by the ReLU before the range, or else by a
    maximum of its own.
    """
    low, high = layer.exact_ends()
    if layer.bits == WIDTH:
        range_ = _fixed(layer.name, low, high)
    elif layer.non_negative:
        range_ = _fixed(layer.name, _floor_of(layer), high)
    else:
        range_ = _cut_off(layer.name, low, _floor_of(layer), high)
    return (lambda x: range_(fenced(x))) if layer.after_float else range_


def _fixed(name: str, low: np.float32, high: np.float32) -> FakeQuantize:
    return FakeQuantize(fixed_range=(float(low), float(high)), name=name, dtype="float32")


def _floor_of(layer: FakeQuantize) -> np.float32:
    """Where 8-bit integers of the step of a narrower range begin if they end as it does."""
    low, high = layer.exact_ends()
    return high - (high - low) / np.float32(2**layer.bits - 1) * np.float32(2**WIDTH - 1)


def _cut_off(name: str, low: np.float32, floor: np.float32, high: np.float32) -> Any:
    outer = _fixed(name, floor, high)
    inner = _fixed(f"{name}_low_range", floor, high)
    maximum = AtLeastOutput(float(low), name=f"{name}_low", dtype="float32")
    return lambda x: inner(maximum(outer(x)))


@keras.saving.register_keras_serializable("tfedge")
class AtLeastOutput(layers.Layer):
    """Raise values below a number to it."""

    def __init__(self, least: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.least = least

    def call(self, inputs: Any) -> Any:
        """The values, raised where they are too low."""
        return ops.maximum(inputs, self.least)

    def get_config(self) -> dict[str, Any]:
        """Settings of the layer."""
        return {**super().get_config(), "least": self.least}


def fenced(x: Any) -> Any:
    """`x` itself, by way of an operator that the converter never makes integer.

    Without it the converter would make an integer operator of the float one that wrote `x`: it does
    so wherever input and output have ranges. Turning an axis of length 1 around changes nothing.
    """
    return ops.squeeze(ops.flip(ops.expand_dims(x, 0), 0), 0)


def enlarge(layer: Any) -> Any:
    """An UpSampling2D as one nearest-neighbour resize instead of a chain of tiles."""
    rows, columns = layer.size

    def apply(x: Any) -> Any:
        return ops.image.resize(
            x,
            (x.shape[1] * rows, x.shape[2] * columns),
            interpolation="nearest",
            data_format=layer.data_format,
        )

    return apply


def linear(call: Call) -> Any:
    """The layer that computes: the one inside a wrapper, else the one that is called."""
    return call.operation.layer if isinstance(call.operation, QuantizedWeights) else call.operation


def _last_axis(call: Call) -> bool:
    shape = call.operation.get_build_config()["input_shape"]
    return call.operation.axis in (-1, len(shape) - 1) and len(shape) in (2, 3, 4)


def float32(layer: Any, **changes: Any) -> Any:
    """A copy of a layer that computes in float32, for inference."""
    return copy_layer(layer, dtype="float32", trainable=False, **changes)


def baked(wrapper: QuantizedWeights, batch_norm: Any) -> Any:
    """The layer inside a wrapper, its weights rounded, a batch normalisation folded in.

    Args:
        wrapper: A built `QuantizedWeights`.
        batch_norm: The BatchNormalization that takes its output, or `None`.
    """
    rounded = {
        name: ops.convert_to_numpy(value) for name, value in wrapper.effective_weights().items()
    }
    if batch_norm is not None:
        layer = with_batch_norm(wrapper.layer, batch_norm, rounded)
    else:
        layer = float32(wrapper.layer)
        for name, value in rounded.items():
            getattr(layer, name).assign(value)
    if not is_held(wrapper):
        return layer
    factors = 1 if batch_norm is None else ops.convert_to_numpy(folded_scale(batch_norm))
    return FixedScales(layer, held_scales(wrapper, factors))


def with_batch_norm(layer: Any, batch_norm: Any, weights: dict[str, np.ndarray]) -> Any:
    """A copy of a linear layer with the batch normalisation behind it folded in.

    Args:
        layer: A built Dense or convolution with linear activation.
        batch_norm: A built BatchNormalization over its output channels.
        weights: `{"kernel": values}` to use instead of the layer's own kernel.
    """
    scale = ops.convert_to_numpy(folded_scale(batch_norm))
    offset = ops.convert_to_numpy(folded_offset(batch_norm))
    kernel = weights.get("kernel", ops.convert_to_numpy(layer.kernel)).astype(np.float32)
    bias = ops.convert_to_numpy(layer.bias).astype(np.float32) if layer.use_bias else 0.0
    kernel = kernel * over_channels(layer, kernel, scale)
    return float32(layer, use_bias=True, weights=[kernel, bias * scale + offset])


def over_channels(layer: Any, kernel: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """`scale`, one value per output channel, shaped to multiply a kernel."""
    axis = WEIGHTS[type(layer).__name__]["kernel"]
    shape = [1] * kernel.ndim
    if isinstance(axis, tuple):  # depthwise: input channel × multiplier
        shape[-2:] = kernel.shape[-2:]
    else:
        shape[-1 if axis is None else axis] = scale.size
    return scale.reshape(shape)


def affine_layer(call: Call, scale: np.ndarray, offset: np.ndarray) -> Any:
    """`scale · x + offset` per channel as a 1×1 depthwise convolution, exact in int8.

    Args:
        call: The Rescaling, Normalization or BatchNormalization call that it stands for.
        scale: Scalar or one value per channel.
        offset: Likewise.

    Returns:
        A callable on a tensor of rank 2, 3 or 4; other ranks keep a plain multiplication.
    """
    channels = (
        call.operation.get_build_config()["input_shape"][-1] if call.operation.built else None
    )

    def apply(x: Any) -> Any:
        size = channels or x.shape[-1]
        if len(x.shape) not in (2, 3, 4) or size is None or any(n is None for n in x.shape[1:]):
            return layers.Rescaling(scale.tolist(), offset.tolist(), name=call.name)(x)
        layer = layers.DepthwiseConv2D(1, name=call.name, dtype="float32", trainable=False)
        shape = tuple(x.shape[1:])
        image = shape if len(shape) == 3 else (1,) * (3 - len(shape)) + shape
        layer.build((None, *image))
        layer.set_weights(
            [
                np.broadcast_to(scale, (size,)).reshape(1, 1, size, 1),
                np.broadcast_to(offset, (size,)),
            ]
        )
        if image == shape:
            return layer(x)
        y = layer(layers.Reshape(image, name=f"{call.name}_image")(x))
        return layers.Reshape(shape, name=f"{call.name}_shape")(y)

    return apply
