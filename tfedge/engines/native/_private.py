"""Every private hook of Keras 3 and TensorFlow that the native engine relies on."""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfedge.errors import UnsupportedModelError

TESTED = "Keras 3.15 and TensorFlow 2.21"


def _missing(hook: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"`{hook}` is not where tfedge expects it: tested with {TESTED}, installed are Keras "
        f"{keras.__version__} and TensorFlow {tf.__version__}. Install the tested versions: "
        'pip install "tfedge[train]".'
    )


def functional_class() -> Any:
    """The class of models built from `keras.Model(inputs, outputs)`."""
    try:
        from keras.src.models.functional import Functional
    except ImportError:
        raise _missing("keras.src.models.functional.Functional") from None
    return Functional


def nodes_in_order(model: Any) -> Iterator[Any]:
    """The call nodes of a built Functional or Sequential model, inputs first.

    Each node has `operation`, `arguments`, `input_tensors` and `outputs`.
    """
    functional = model._functional if isinstance(model, keras.Sequential) else model
    try:
        by_depth = functional._nodes_by_depth
    except AttributeError:
        raise _missing("Functional._nodes_by_depth") from None
    for depth in sorted(by_depth, reverse=True):
        yield from by_depth[depth]


def call_arguments(node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of one call, tensors as `KerasTensor`."""
    try:
        return node.arguments.args, node.arguments.kwargs
    except AttributeError:
        raise _missing("Node.arguments") from None


def structures(model: Any) -> tuple[Any, Any]:
    """The nested structures of a model's input and output tensors, as its author gave them."""
    functional = model._functional if isinstance(model, keras.Sequential) else model
    try:
        return functional._inputs_struct, functional._outputs_struct
    except AttributeError:
        raise _missing("Functional._inputs_struct") from None


def takes_training(layer: Any) -> bool:
    """Whether the `call` of a layer has a `training` argument."""
    try:
        return bool(layer._call_has_training_arg)
    except AttributeError:
        raise _missing("Layer._call_has_training_arg") from None


def per_tensor_dense(converter: Any) -> None:
    """Make a `TFLiteConverter` quantise dense kernels per tensor, as TFMOT's scheme does."""
    flag = "_experimental_disable_per_channel_quantization_for_dense_layers"
    if flag not in dir(converter):
        raise _missing(f"TFLiteConverter.{flag}")
    setattr(converter, flag, True)
