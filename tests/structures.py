"""Small networks with the structures that channels have to be followed through.

Each function returns a built, uncompiled Keras 3 model with seeded weights; none of its biases, and
none of its batch statistics, is the neutral one::

    model = STRUCTURES["squeeze_excite"]()
    x = inputs_of(model)
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from models import inputs_of as inputs_of

SIDE = 6


def stir(model: Any, seed: int = 0) -> Any:
    """Give every weight a value that matters."""
    draw = np.random.default_rng(seed)
    for layer in (leaf for leaf in model._flatten_layers() if not hasattr(leaf, "layers")):
        values = []
        for weight in layer.weights:
            low, high = (0.5, 1.5) if weight.name in {"gamma", "moving_variance"} else (-0.5, 0.5)
            value = draw.uniform(low, high, weight.shape) if len(weight.shape) else np.array(weight)
            values.append(value.astype("float32"))
        layer.set_weights(values)
    return model


def image(channels: int = 3) -> Any:
    return keras.Input((SIDE, SIDE, channels), name="image")


def ended(inputs: Any, x: Any, name: str = "model") -> Any:
    """The model with a pooled head of three classes."""
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return stir(keras.Model(inputs, layers.Dense(3, name="head")(x), name=name))


def conv(x: Any, filters: int, kernel: int = 3, **settings: Any) -> Any:
    return layers.Conv2D(filters, kernel, padding="same", **settings)(x)


def conv_bn(x: Any, filters: int, kernel: int = 3, *, relu: bool = True, **settings: Any) -> Any:
    x = layers.BatchNormalization()(conv(x, filters, kernel, use_bias=False, **settings))
    return layers.ReLU()(x) if relu else x


def flatten_dense() -> Any:
    x = conv(i := image(), 6, activation="relu")
    x = layers.Dense(8, activation="relu")(layers.Flatten()(layers.MaxPooling2D()(x)))
    return ended(i, x)


def squeeze_excite() -> Any:
    x = conv_bn(i := image(), 8)
    s = layers.GlobalAveragePooling2D()(x)
    s = layers.Reshape((1, 1, 8))(s)
    s = conv(s, 6, 1, activation="silu")
    s = conv(s, 8, 1, activation="sigmoid")
    return ended(i, conv_bn(layers.Multiply()([x, s]), 8, 1))


def squeeze_excite_kept_dims() -> Any:
    x = conv_bn(i := image(), 8)
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Dense(8, activation="sigmoid")(layers.Dense(4, activation="relu")(s))
    return ended(i, conv_bn(layers.Multiply()([x, s]), 8, 1))


def inverted_residual() -> Any:
    """MobileNetV2 and EfficientNet: expand, depthwise, squeeze-excite, project, shortcut."""
    x = conv_bn(i := image(), 8)
    for _ in range(2):
        y = conv_bn(x, 16, 1)
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
        y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
        s = layers.Reshape((1, 1, 16))(layers.GlobalAveragePooling2D()(y))
        s = conv(conv(s, 8, 1, activation="silu"), 16, 1, activation="sigmoid")
        y = conv_bn(layers.Multiply()([y, s]), 8, 1, relu=False)
        y = layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(y)
        x = layers.Add()([x, y])
    return ended(i, x)


def bottleneck() -> Any:
    """ResNet: bottleneck blocks, the shortcut of the first with a stride and a projection."""
    x = conv_bn(i := image(), 8)
    for stride in (2, 1):
        y = conv_bn(x, 8, 1, strides=stride)
        y = conv_bn(conv_bn(y, 8, 3), 16, 1, relu=False)
        shortcut = conv_bn(x, 16, 1, strides=stride, relu=False) if stride > 1 else x
        x = layers.ReLU()(layers.Add()([y, shortcut]))
    return ended(i, x)


def dense_block() -> Any:
    """DenseNet: every layer reads all that were before it, and a transition follows."""
    x = conv(i := image(), 8)
    for _ in range(3):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        y = conv_bn(y, 16, 1)
        x = layers.Concatenate()([x, conv(y, 8)])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.AveragePooling2D(2)(conv(x, 16, 1))
    return ended(i, layers.ReLU()(layers.BatchNormalization()(x)))


def concat_then_add() -> Any:
    i = image()
    joined = layers.Concatenate()([conv(i, 5), conv(i, 4, activation="relu"), conv(i, 5)])
    return ended(i, layers.Add()([joined, conv(i, 14)]))


def joined_twice() -> Any:
    x = conv(i := image(), 5, activation="relu")
    return ended(i, conv(layers.Concatenate()([x, x, conv(x, 4)]), 6))


def joined_in_height() -> Any:
    i = image()
    x = layers.Concatenate(axis=1)([conv(i, 6), conv(i, 6)])
    return ended(i, conv(x, 5, activation="relu"))


def grouped() -> Any:
    x = conv(i := image(), 8, activation="relu")
    x = conv(x, 12, groups=4, activation="relu")
    return ended(i, conv(x, 6, 1))


def grouped_one_each() -> Any:
    x = conv(i := image(), 6)
    return ended(i, conv(conv(x, 12, groups=6, activation="relu"), 5))


def depth_multiplier() -> Any:
    x = conv(i := image(), 6)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(x)
    return ended(i, conv(x, 5, 1))


def separable() -> Any:
    x = layers.SeparableConv2D(8, 3, activation="relu", depth_multiplier=2)(i := image())
    return ended(i, layers.SeparableConv2D(6, 3, padding="same")(x))


def channel_shuffle() -> Any:
    """ShuffleNet: grouped convolutions with the channels mixed between them."""
    x = conv(conv(i := image(), 12), 12, groups=2, activation="relu")
    x = layers.Reshape((SIDE, SIDE, 2, 6))(x)
    x = layers.Reshape((SIDE, SIDE, 12))(layers.Permute((1, 2, 4, 3))(x))
    x = conv(x, 8, groups=2, activation="relu")
    return ended(i, x)


def decoder() -> Any:
    """Dense to image to transposed convolutions."""
    i = keras.Input((5,), name="code")
    x = layers.Reshape((3, 3, 8))(layers.Dense(72, activation="relu")(i))
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.UpSampling2D()(layers.ZeroPadding2D()(layers.Cropping2D()(x)))
    return stir(keras.Model(i, layers.Conv2DTranspose(2, 3)(x)))


def prelu() -> Any:
    x = layers.PReLU(shared_axes=[1, 2])(conv(i := image(), 6))
    return ended(i, conv(layers.PReLU()(conv(x, 5)), 4))


def spatial_attention() -> Any:
    """One map laid over all channels."""
    x = conv(i := image(), 6, activation="relu")
    attention = conv(x, 1, activation="sigmoid")
    return ended(i, conv(layers.Multiply()([x, attention]), 5))


def sequence() -> Any:
    i = keras.Input((12, 3), name="samples")
    x = layers.Conv1D(8, 3, activation="relu", padding="causal")(i)
    x = layers.MaxPooling1D()(layers.SeparableConv1D(6, 3, padding="same")(x))
    x = layers.DepthwiseConv1D(3)(x)
    return ended(i, layers.GlobalMaxPooling1D()(layers.Dense(7, activation="gelu")(x)))


def volume() -> Any:
    i = keras.Input((4, 4, 4, 2), name="volume")
    x = layers.BatchNormalization()(layers.Conv3D(6, 2, activation="relu")(i))
    x = layers.Conv3DTranspose(5, 2, activation="elu")(layers.MaxPooling3D(padding="same")(x))
    return ended(i, layers.GlobalAveragePooling3D()(x))


def called_twice() -> Any:
    """One layer on its own output: what it reads and what it writes go together."""
    layer = layers.Conv2D(6, 3, padding="same", activation="relu", name="twice")
    return ended(i := image(), conv(layer(layer(conv(i, 6))), 4))


def operations() -> Any:
    """`keras.ops` where others use layers."""
    x = conv(i := image(), 8)
    a, b = ops.split(x, 2, axis=-1)
    x = ops.concatenate([ops.relu(a) * 0.5, ops.silu(b) + a], axis=-1)
    x = ops.pad(x[:, 1:, :, :], ((0, 0), (1, 0), (0, 0), (0, 0)))
    gate = ops.sigmoid(conv(ops.mean(x, axis=(1, 2), keepdims=True), 8, 1))
    x = ops.transpose(ops.reshape(x * gate, (-1, SIDE * SIDE, 8)), (0, 2, 1))
    x = ops.squeeze(ops.max(ops.expand_dims(x, 1), axis=-1), 1)
    return ended(i, layers.Dense(6, activation="tanh")(x))


def nested_twice() -> Any:
    a = keras.Input((SIDE, SIDE, 4))
    inner = keras.Model(a, conv_bn(a, 4), name="inner")
    b = keras.Input((SIDE, SIDE, 4))
    outer = keras.Model(b, inner(inner(b)), name="outer")
    i = image()
    return ended(i, conv(outer(conv(i, 4)), 5))


STRUCTURES: dict[str, Callable[[], Any]] = {
    build.__name__: build
    for build in (
        flatten_dense,
        squeeze_excite,
        squeeze_excite_kept_dims,
        inverted_residual,
        bottleneck,
        dense_block,
        concat_then_add,
        joined_twice,
        joined_in_height,
        grouped,
        grouped_one_each,
        depth_multiplier,
        separable,
        channel_shuffle,
        decoder,
        prelu,
        spatial_attention,
        sequence,
        volume,
        called_twice,
        operations,
        nested_twice,
    )
}
