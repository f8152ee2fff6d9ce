"""Run a layer with other weights than its own."""

from collections.abc import Mapping
from typing import Any

import keras


def call_with(layer: Any, weights: Mapping[int, Any], *args: Any, **kwargs: Any) -> Any:
    """The outputs of a layer that computes with stand-ins for some of its weights.

    What the layer itself changes while it runs, such as moving statistics, it keeps; gradients
    reach whatever the stand-ins were computed from.

    Args:
        layer: A built Keras 3 layer.
        weights: `id` of a variable of the layer to the tensor that stands in for it.
        args: Of the call.
        kwargs: Of the call.
    """
    others = [v for v in layer.non_trainable_variables if id(v) not in weights]
    mapping = [(v, weights.get(id(v), v.value)) for v in layer.variables]
    with keras.StatelessScope(mapping) as scope:
        outputs = layer(*args, **kwargs)
    for variable in others:
        updated = scope.get_current_value(variable)
        if updated is not None:
            variable.assign(updated)
    return outputs
