"""Take TFMOT's wrappers off a tf_keras model."""

from collections.abc import Callable
from typing import Any

from tfedge.engines.tfmot._library import tf_keras
from tfedge.engines.tfmot.flattening import own_classes
from tfedge.models import compile_like, scope_of


def unwrapped(
    model: Any, is_wrapper: Callable[[Any], bool], weights_of: Callable[[Any], list[Any]]
) -> Any:
    """An own copy of a model in which the layers inside wrappers stand for these.

    Args:
        model: A functional or Sequential tf_keras model. It is not changed.
        is_wrapper: Whether a layer is a wrapper, with `layer` inside.
        weights_of: What the copy of a layer, or of the one inside a wrapper, holds.

    Returns:
        A model of plain layers under their first names, compiled with a fresh optimizer if `model`
        is compiled.
    """
    with scope_of(model), own_classes(model):
        copies: dict[str, Any] = {}

        def unwrap(layer: Any) -> Any:
            inner = layer.layer if is_wrapper(layer) else layer
            copies[layer.name] = type(inner).from_config(inner.get_config())
            return copies[layer.name]

        plain = tf_keras().models.clone_model(model, clone_function=unwrap)
        for layer in model.layers:
            if layer.name in copies:
                copies[layer.name].set_weights(weights_of(layer))
        return compile_like(plain, model)
