"""A small zoo: the shapes of network that every stage must hold, for both Kerases.

Each function takes the Keras to build with (`keras` or `tf_keras`) and returns a built, uncompiled
model with seeded weights and batch statistics that are not the neutral ones::

    model = ZOO["residual"](keras)
    x = inputs_of(model, count=8)
    y = model(x, training=False)
"""

from collections.abc import Callable
from typing import Any

import numpy as np

CLASSES = 4
SIDE = 12


def dense(k: Any) -> Any:
    """Two hidden dense layers in a Sequential."""
    k.utils.set_random_seed(0)
    layers = [
        k.layers.Input((16,), name="features"),
        k.layers.Dense(24, activation="relu", name="hidden_1"),
        k.layers.Dense(16, activation="relu", name="hidden_2"),
        k.layers.Dense(CLASSES, activation="softmax", name="classes"),
    ]
    return _settle(k.Sequential(layers, name="dense"))


def conv_bn_relu(k: Any) -> Any:
    """Two convolutions, each followed by batch normalisation and ReLU."""
    k.utils.set_random_seed(1)
    image = k.Input((SIDE, SIDE, 3), name="image")
    x = _conv_bn_relu(k, image, 8, "1")
    x = k.layers.MaxPooling2D(name="pool")(x)
    x = _conv_bn_relu(k, x, 12, "2")
    return _settle(k.Model(image, _head(k, x), name="conv_bn_relu"))


def depthwise(k: Any) -> Any:
    """A depthwise and a pointwise convolution, as MobileNet has them."""
    k.utils.set_random_seed(2)
    image = k.Input((SIDE, SIDE, 3), name="image")
    x = _conv_bn_relu(k, image, 8, "1")
    x = k.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = k.layers.BatchNormalization(name="depthwise_bn")(x)
    x = k.layers.ReLU(6.0, name="depthwise_relu6")(x)
    x = _conv_bn_relu(k, x, 12, "pointwise", kernel=1)
    return _settle(k.Model(image, _head(k, x), name="depthwise"))


def residual(k: Any) -> Any:
    """An identity shortcut around two convolutions."""
    k.utils.set_random_seed(3)
    image = k.Input((SIDE, SIDE, 3), name="image")
    x = _conv_bn_relu(k, image, 8, "1")
    y = _conv_bn_relu(k, x, 8, "2")
    y = k.layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv_3")(y)
    y = k.layers.BatchNormalization(name="bn_3")(y)
    y = k.layers.Add(name="shortcut")([x, y])
    y = k.layers.ReLU(name="relu_3")(y)
    return _settle(k.Model(image, _head(k, y), name="residual"))


def concat(k: Any) -> Any:
    """Two branches of unlike kernels, concatenated."""
    k.utils.set_random_seed(4)
    image = k.Input((SIDE, SIDE, 3), name="image")
    small = k.layers.Conv2D(6, 1, activation="relu", name="branch_1x1")(image)
    large = k.layers.Conv2D(6, 3, padding="same", activation="relu", name="branch_3x3")(image)
    x = k.layers.Concatenate(name="join")([small, large])
    x = _conv_bn_relu(k, x, 8, "1")
    return _settle(k.Model(image, _head(k, x), name="concat"))


def two_inputs(k: Any) -> Any:
    """An image and a vector, joined before the head."""
    k.utils.set_random_seed(5)
    image = k.Input((SIDE, SIDE, 3), name="image")
    extra = k.Input((6,), name="extra")
    x = _conv_bn_relu(k, image, 8, "1")
    x = k.layers.GlobalAveragePooling2D(name="pool_image")(x)
    y = k.layers.Dense(8, activation="relu", name="dense_extra")(extra)
    x = k.layers.Concatenate(name="join")([x, y])
    x = k.layers.Dense(CLASSES, activation="softmax", name="classes")(x)
    return _settle(k.Model([image, extra], x, name="two_inputs"))


def nested(k: Any) -> Any:
    """A functional block and a Sequential block inside a functional model."""
    k.utils.set_random_seed(6)
    inner_in = k.Input((SIDE, SIDE, 3), name="block_input")
    block = k.Model(inner_in, _conv_bn_relu(k, inner_in, 8, "block"), name="block")
    tail = k.Sequential(
        [
            k.layers.Input((SIDE, SIDE, 8), name="tail_input"),
            k.layers.Conv2D(8, 3, strides=2, activation="relu", name="conv_tail"),
            k.layers.Flatten(name="flatten"),
        ],
        name="tail",
    )
    image = k.Input((SIDE, SIDE, 3), name="image")
    x = tail(block(image))
    x = k.layers.Dense(CLASSES, activation="softmax", name="classes")(x)
    return _settle(k.Model(image, x, name="nested"))


def shared_layer(k: Any) -> Any:
    """One convolution applied to two inputs."""
    k.utils.set_random_seed(7)
    left = k.Input((SIDE, SIDE, 3), name="left")
    right = k.Input((SIDE, SIDE, 3), name="right")
    convolve = k.layers.Conv2D(8, 3, padding="same", activation="relu", name="shared_conv")
    x = k.layers.Concatenate(name="join")([convolve(left), convolve(right)])
    return _settle(k.Model([left, right], _head(k, x), name="shared_layer"))


def frozen_backbone(k: Any) -> Any:
    """A frozen backbone called with `training=False`, plus a head that trains."""
    k.utils.set_random_seed(8)
    inner_in = k.Input((SIDE, SIDE, 3), name="backbone_input")
    x = _conv_bn_relu(k, inner_in, 8, "1")
    backbone = k.Model(inner_in, _conv_bn_relu(k, x, 8, "2"), name="backbone")
    backbone.trainable = False
    image = k.Input((SIDE, SIDE, 3), name="image")
    x = backbone(image, training=False)
    return _settle(k.Model(image, _head(k, x), name="frozen_backbone"))


ZOO: dict[str, Callable[[Any], Any]] = {
    build.__name__: build
    for build in (
        dense,
        conv_bn_relu,
        depthwise,
        residual,
        concat,
        two_inputs,
        nested,
        shared_layer,
        frozen_backbone,
    )
}


def inputs_of(model: Any, count: int = 8, seed: int = 0) -> Any:
    """Seeded samples in [0, 1) for `model`: one array, or a list of them for several inputs.

    Args:
        model: A model of the zoo.
        count: Samples.
        seed: Seed of the draw.
    """
    draw = np.random.default_rng(seed)
    arrays = []
    for tensor in model.inputs:
        shape = tuple(tensor.shape[1:])
        hue = draw.random((count, *(1,) * (len(shape) - 1), shape[-1]))
        arrays.append((0.6 * hue + 0.4 * draw.random((count, *shape))).astype(np.float32))
    return arrays[0] if len(arrays) == 1 else arrays


def labels_of(count: int = 8, seed: int = 1) -> np.ndarray:
    """Seeded integer labels, shape `(count,)`, below `CLASSES`."""
    return np.random.default_rng(seed).integers(0, CLASSES, count)


def weights_of(model: Any) -> list[np.ndarray]:
    """Copies of all weights, to compare bit by bit later."""
    return [np.array(value) for value in model.get_weights()]


def _conv_bn_relu(k: Any, x: Any, filters: int, tag: str, kernel: int = 3) -> Any:
    x = k.layers.Conv2D(filters, kernel, padding="same", use_bias=False, name=f"conv_{tag}")(x)
    x = k.layers.BatchNormalization(name=f"bn_{tag}")(x)
    return k.layers.ReLU(name=f"relu_{tag}")(x)


def _head(k: Any, x: Any) -> Any:
    x = k.layers.GlobalAveragePooling2D(name="pool_all")(x)
    return k.layers.Dense(CLASSES, activation="softmax", name="classes")(x)


def _settle(model: Any) -> Any:
    """Weights as after training: batch statistics that matter, classes that stand apart."""
    for index, layer in enumerate(_leaves(model)):
        draw = np.random.default_rng(index)
        if type(layer).__name__ == "BatchNormalization":
            ranges = ((0.5, 1.5), (-0.3, 0.3), (-0.3, 0.3), (0.5, 1.5))  # gamma beta mean variance
            shape = layer.get_weights()[0].shape
            layer.set_weights([draw.uniform(*limits, shape).astype("float32") for limits in ranges])
        elif layer.name == "classes":
            kernel, bias = layer.get_weights()
            layer.set_weights([6 * kernel, draw.normal(0, 0.2, bias.shape).astype("float32")])
    return model


def _leaves(model: Any) -> list[Any]:
    found = []
    for layer in model.layers:
        found += _leaves(layer) if isinstance(getattr(layer, "layers", None), list) else [layer]
    return found
