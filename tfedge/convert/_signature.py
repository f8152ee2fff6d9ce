"""The inputs of a Keras model, in its order."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfedge.errors import ConversionError
from tfedge.models import import_keras, is_functional, keras_of


@dataclass(frozen=True)
class InputSpec:
    """One input of a model: its name, shape (batch first, `None` where it is open) and type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def input_specs(model: Any) -> tuple[InputSpec, ...]:
    """The inputs that a model takes.

    Args:
        model: A Keras model. A subclassed one must have been called once, so that its input shape
            is known.

    Raises:
        ConversionError: The input shape is not known.
    """
    specs: list[InputSpec] = []
    if is_functional(model):
        keys = _keys(model)
        for tensor in model.inputs if model.built else ():
            name = keys.get(id(tensor), tensor.name.partition(":")[0])
            specs.append(InputSpec(name, tuple(tensor.shape), _dtype(tensor.dtype)))
    elif keras_of(model) == "keras":
        shapes = _flat_shapes((model.get_build_config() or {}).get("input_shape"))
        specs = [InputSpec(f"input_{i}", shape, "float32") for i, shape in enumerate(shapes)]
    else:
        specs = _saved_specs(model)
    if not specs:
        raise ConversionError(
            f"`{model.name}` has no input shape that is known: call it once on a batch of inputs "
            "first. A subclassed model of a dict: wrap it, `keras.Model(inputs, model(inputs))`."
        )
    return tuple(specs)


def takes_dict(model: Any) -> bool:
    """Whether a model is called with a dict of inputs by name."""
    return is_functional(model) and bool(_keys(model))


def _keys(model: Any) -> dict[int, str]:
    """Identity of each input tensor to its key, of a functional model that takes a dict."""
    sequential = import_keras(keras_of(model)).Sequential  # has no `input` before its first call
    if isinstance(model, sequential) or not isinstance(model.input, dict):
        return {}
    return {id(tensor): key for key, tensor in model.input.items()}


def _flat_shapes(shapes: Any) -> list[tuple[int | None, ...]]:
    if not shapes or isinstance(shapes, dict):
        return []
    if all(isinstance(size, int | None) for size in shapes):
        return [tuple(shapes)]
    return [tuple(shape) for shape in shapes]


def _saved_specs(model: Any) -> list[InputSpec]:
    if model.save_spec() is None:
        return []
    import tensorflow as tf

    specs = tf.nest.flatten(model.save_spec()[0])
    return [InputSpec(f"input_{i}", tuple(s.shape), s.dtype.name) for i, s in enumerate(specs)]


def _dtype(dtype: Any) -> str:
    return np.dtype(dtype if isinstance(dtype, str) else dtype.name).name
