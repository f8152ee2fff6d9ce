"""Compare the outputs of two Keras models on random inputs."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfedge.models.looking import layers_of, output_names

SAMPLES = 4
OPEN_SIDE = 32  # what a side of the input is taken as where the model leaves it open


def output_differences(model: Any, other: Any, seed: int = 0) -> Iterator[tuple[str, float]]:
    """How far each output of two models is apart at inference, on the same random batch.

    Args:
        model: A functional or Sequential model of either Keras.
        other: Another one of the same inputs and outputs; the two may be of unlike Kerases.
        seed: Seed of the batch.

    Yields:
        Name of the output, and the largest difference in any sample as a part of the largest value
        of that sample.
    """
    draw = np.random.default_rng(seed)
    indices = any(type(layer).__name__ == "Embedding" for layer in layers_of(model))
    batch = [_random(draw, tensor, indices) for tensor in model.inputs]
    keys = _keys(model)
    inputs: Any = dict(zip(keys, batch, strict=True)) if keys else batch
    if len(batch) == 1 and not keys:
        inputs = batch[0]
    ours, theirs = (_outputs(m(inputs, training=False)) for m in (model, other))
    for name, (a, b) in zip(output_names(model), zip(ours, theirs, strict=True), strict=True):
        yield name, relative_difference(a, b)


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference in any sample, as a part of the largest value of that sample.

    Args:
        a: Values, (samples, …).
        b: Others of the same shape; another shape is infinitely far.

    Example:
        >>> relative_difference(np.array([[1.0, 4.0]]), np.array([[1.0, 3.0]]))
        0.25
    """
    if a.shape != b.shape:
        return float("inf")
    a, b = (value.reshape(len(value), -1) for value in (a, b))
    largest = np.maximum(np.abs(a).max(axis=1, initial=0.0), np.finfo(np.float32).tiny)
    return float((np.abs(a - b).max(axis=1, initial=0.0) / largest).max(initial=0.0))


def _is_sequential(model: Any) -> bool:
    return any(cls.__name__ == "Sequential" for cls in type(model).__mro__)


def _keys(model: Any) -> list[str]:
    """The names of the inputs of a model that takes a dict of them, in its own order."""
    structure = None if _is_sequential(model) else model.input  # none before its first call
    if not isinstance(structure, Mapping):
        return []
    names = {id(tensor): name for name, tensor in structure.items()}
    return [names[id(tensor)] for tensor in model.inputs]


def _random(draw: np.random.Generator, tensor: Any, indices: bool) -> np.ndarray:
    """A random batch for one input, its samples of unlike range, as models expect them.

    Inputs that take integers, and all those of a model with embeddings, get zeros and ones, which
    are indices wherever there are any.
    """
    shape = (SAMPLES, *(OPEN_SIDE if side is None else int(side) for side in tensor.shape[1:]))
    kind = str(getattr(tensor.dtype, "name", tensor.dtype))
    if indices or kind.startswith(("int", "uint", "bool")):
        return draw.integers(0, 2, shape).astype(kind)
    samples = [
        draw.random(shape[1:]),
        draw.normal(0.0, 1.0, shape[1:]),
        draw.normal(0.0, 10.0, shape[1:]),
        draw.uniform(0.0, 255.0, shape[1:]),
    ]
    return np.stack(samples).astype(np.float32)


def _outputs(outputs: Any) -> list[np.ndarray]:
    if isinstance(outputs, Mapping):
        outputs = [outputs[key] for key in sorted(outputs)]
    values = outputs if isinstance(outputs, list | tuple) else [outputs]
    return [np.asarray(value, np.float64) for value in values]
