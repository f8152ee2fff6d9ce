"""Run a layer with other weights than its own, inside a wrapper that is otherwise that layer."""

from collections.abc import Mapping
from typing import Any

import keras
from keras.saving import deserialize_keras_object, serialize_keras_object

from tfedge.engines.native import _private


class AbstractStandIn(keras.layers.Layer):
    """A wrapper around a layer, by its name and dtype policy, that computes with other weights.

    Args:
        layer: The layer. Its own weights are what trains, unless the wrapper says otherwise.
    """

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        kwargs.setdefault("name", layer.name)
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(**kwargs)
        self.layer = layer
        self.supports_masking = layer.supports_masking
        self._takes_training = _private.takes_training(layer)

    def call_with(self, weights: Mapping[int, Any], *args: Any, **kwargs: Any) -> Any:
        """The outputs of the layer with stand-ins for some of its weights.

        What the layer itself changes while it runs, such as moving statistics, it keeps; gradients
        reach whatever the stand-ins were computed from.

        Args:
            weights: `id` of a variable of the layer to the tensor that stands in for it.
            args: Of the call.
            kwargs: Of the call.
        """
        others = [v for v in self.layer.non_trainable_variables if id(v) not in weights]
        mapping = [(v, weights.get(id(v), v.value)) for v in self.layer.variables]
        with keras.StatelessScope(mapping) as scope:
            outputs = self.layer(*args, **kwargs)
        for variable in others:
            updated = scope.get_current_value(variable)
            if updated is not None:
                variable.assign(updated)
        return outputs

    def compute_output_spec(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {**super().get_config(), "layer": serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """A wrapper of these arguments."""
        return cls(**{**config, "layer": deserialize_keras_object(config["layer"])})
