"""Find channels that a layer writes the same everywhere on the data."""

from typing import Any

import keras
import numpy as np
from keras import tree

from tfedge.data import Data, Split, check_data
from tfedge.engines.native.graph import Graph
from tfedge.errors import DataError

SAMPLES = 128
BATCH = 32
WRITERS = ("Conv1D", "Conv2D", "Conv3D", "Dense", "ReLU", "Activation", "BatchNormalization")


def as_split(data: Any) -> Split:
    """A sample of the training or calibration part of the data.

    Args:
        data: A `Data`, a `Split`, or inputs as the model takes them.

    Raises:
        DataError: There are no samples that may be looked at.
    """
    split = data
    if isinstance(data, Data):
        split = data.train or data.calibration
        if split is None:
            raise DataError(
                "An analysis looks at training or calibration data. Received: `Data` with neither."
            )
    if not isinstance(split, Split):
        split = Split(tuple(data) if isinstance(data, list) else data)
    return split.take(SAMPLES)


def constant_channels(model: Any, graph: Graph, split: Split) -> dict[str, int]:
    """How many channels of each layer have one value at every place of every sample.

    Args:
        model: A functional Keras 3 model with the layers of `graph`, by name and each called once
            for the layers that are looked at.
        graph: The flat graph of `model`.
        split: Samples.

    Returns:
        Layer to count, for convolutions, dense layers, normalisation and activations.
    """
    check_data(model, split)
    calls = [c for c in graph.calls if c.is_layer and c.kind in WRITERS and not graph.is_shared(c)]
    layers = {layer.name: layer for layer in model.layers}
    calls = [call for call in calls if call.name in layers and call.outputs[0] not in graph.inputs]
    if not calls:
        return {}
    probe = keras.Model(model.inputs, [layers[call.name].output for call in calls])
    low: list[np.ndarray | None] = [None] * len(calls)
    high: list[np.ndarray | None] = [None] * len(calls)
    for rows in split.batches(BATCH):
        outputs = tree.flatten(probe(_in_order(model, rows[0]), training=False))
        for place, output in enumerate(outputs):
            values = np.asarray(output, np.float32).reshape(-1, output.shape[-1])
            low[place] = _joined(np.minimum, low[place], values.min(axis=0))
            high[place] = _joined(np.maximum, high[place], values.max(axis=0))
    return {
        call.name: int(np.sum(np.equal(low[place], high[place])))  # type: ignore[arg-type]
        for place, call in enumerate(calls)
    }


def _joined(join: Any, before: np.ndarray | None, now: np.ndarray) -> np.ndarray:
    return now if before is None else join(before, now)


def _in_order(model: Any, x: Any) -> list[Any]:
    """Inputs as a list in the order of the model."""
    if not isinstance(x, dict):
        return list(x) if isinstance(x, tuple) else [x]
    named = model.input if isinstance(model.input, dict) else {t.name: t for t in model.inputs}
    places = {id(tensor): name for name, tensor in named.items()}
    return [x[places[id(tensor)]] for tensor in model.inputs]
