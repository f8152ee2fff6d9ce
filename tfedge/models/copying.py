"""Make an own copy of a Keras model: same graph, weights, flags and compile state."""

import sys
import tempfile
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfedge.errors import UnsupportedModelError
from tfedge.models.compiling import compile_like, own_objects
from tfedge.models.looking import (
    KERASES,
    import_keras,
    is_functional,
    keras_of,
    layers_of,
    scope_of,
)


def copy_model(model: Any) -> Any:
    """An own copy of a model, of the same Keras.

    Weights are bit-equal, names and `trainable` flags the same, layers shared where they were
    shared, and nested models called as they were called (`training=False` stays). A compiled model
    comes back compiled, with a fresh optimizer of the same configuration.

    Args:
        model: A Keras 3 or tf_keras model. It is not changed.

    Returns:
        The copy, which shares no layer and no variable with `model`.

    Raises:
        ModelError: It is not a Keras model.
        UnsupportedModelError: The model cannot be copied; the reason is said.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> bool((copy_model(model).get_weights()[0] == model.get_weights()[0]).all())
        True
    """
    keras = import_keras(keras_of(model))
    objects = own_objects(model)
    rebuild = _rebuild if is_functional(model) else _through_file
    try:
        with warnings.catch_warnings(), scope_of(model):
            warnings.simplefilter("ignore")
            copy = rebuild(keras, model, objects)
    except UnsupportedModelError:
        raise
    except Exception as error:  # get_config and from_config of any layer may raise anything
        cause = " ".join(str(error).split())[:300]
        raise UnsupportedModelError(
            f"A model is copied by way of its configuration, and that of `{model.name}` does not "
            f"lead back to the model ({type(error).__name__}: {cause}). Give each layer class of "
            "your own a `get_config()` that returns all its constructor arguments."
        ) from error
    if model.built:
        _check_weights(model, copy)
    return compile_like(copy, model)


# ---------------------------------------------------------------------------- graphs


def _rebuild(keras: types.ModuleType, model: Any, objects: Mapping[str, Any]) -> Any:
    """Rebuild a functional or Sequential model from its configuration, and set its weights."""
    config = without_compile_state(keras.saving.serialize_keras_object(model))
    lambdas: dict[str, Any] = {}
    _name_lambdas(config, model, lambdas)
    copy = keras.saving.deserialize_keras_object(
        config, custom_objects={**objects, **lambdas}, safe_mode=False
    )
    _check_layers(model, copy)
    copy_flags(layer_pairs(model, copy))  # before the weights: they are in the order of the flags
    if model.built:
        copy.set_weights(model.get_weights())
        for layer in layers_of(copy):
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()  # its constants are derived from its weights
    return copy


def without_compile_state(config: Any) -> Any:
    """A serialised model, its nested models included, as if it had not been compiled."""
    if isinstance(config, Mapping):
        rest = {k: v for k, v in config.items() if k != "compile_config"}
        return {key: without_compile_state(value) for key, value in rest.items()}
    if isinstance(config, list | tuple):
        return type(config)(without_compile_state(item) for item in config)
    return config


def _name_lambdas(config: Mapping[str, Any], model: Any, named: dict[str, Any]) -> None:
    """Let `Lambda` entries refer to the functions in memory, whose globals marshalling would lose.

    Args:
        config: Serialised form of `model`; changed in place.
        model: The model.
        named: Receives the functions by the names that the entries now refer to.
    """
    layers = {layer.name: layer for layer in model.layers}
    for entry in config["config"]["layers"]:
        settings = entry["config"]
        layer = layers.get(settings.get("name"))
        if layer is None:
            continue
        if "layers" in settings and _is_graph(layer):
            _name_lambdas(entry, layer, named)
        elif type(layer).__name__ == "Lambda":
            name = f"{layer.function.__name__}>{id(layer)}"
            named[name] = layer.function
            if "function_type" in settings:  # tf_keras
                settings.update(function=name, function_type="function")
            else:
                settings["function"] = _function_entry(name)


def _function_entry(name: str) -> dict[str, str]:
    return {"module": "builtins", "class_name": "function", "config": name, "registered_name": name}


def _is_graph(layer: Any) -> bool:
    """Whether a layer is itself a functional or Sequential model."""
    models = [sys.modules[name].Model for name in KERASES if name in sys.modules]
    return isinstance(layer, tuple(models)) and is_functional(layer)


# ---------------------------------------------------------------------------- subclassed models


def _through_file(keras: types.ModuleType, model: Any, objects: Mapping[str, Any]) -> Any:
    """Copy a subclassed model by saving it to a temporary `.keras` file and loading that."""
    if not model.built:
        raise UnsupportedModelError(
            f"A subclassed model is copied with its weights. Received: `{model.name}`, which has "
            "none yet. Call it on a batch of data first."
        )
    with tempfile.TemporaryDirectory(prefix="tfedge-") as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        copy = keras.models.load_model(
            path, custom_objects=dict(objects), compile=False, safe_mode=False
        )
    _check_layers(model, copy)
    copy_flags(layer_pairs(model, copy))
    return copy


# ---------------------------------------------------------------------------- checks and flags


def _check_layers(model: Any, copy: Any) -> None:
    ours, theirs = layers_of(copy), layers_of(model)
    if [layer.name for layer in ours] != [layer.name for layer in theirs]:
        raise UnsupportedModelError(
            f"The configuration of `{model.name}` leads to other layers than the model has: "
            f"{len(ours)} in place of {len(theirs)}. A layer that is used both inside and outside "
            "a nested model, or in two nested models, cannot be copied: use it in one of them."
        )


def _check_weights(model: Any, copy: Any) -> None:
    pairs = zip(model.get_weights(), copy.get_weights(), strict=False)
    equal = len(model.weights) == len(copy.weights) and all(
        a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs
    )
    if not equal:
        raise UnsupportedModelError(
            f"A copy of `{model.name}` did not come out with the same weights. Its class "
            f"`{type(model).__name__}` makes variables that its configuration does not tell: "
            "make them in `build()`."
        )


def copy_flags(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Set `trainable` of each second to that of its first; models must come before their layers.

    Setting it on a model sets it on all its layers.
    """
    for theirs, ours in pairs:
        if ours.trainable != theirs.trainable:
            ours.trainable = theirs.trainable


def layer_pairs(model: Any, copy: Any) -> Iterator[tuple[Any, Any]]:
    """Each model and layer of `model` with its counterpart in `copy`, from the outside in.

    Input layers are left out: the two Kerases do not list them alike.
    """
    yield model, copy
    base = sys.modules[keras_of(model)].Model
    counterparts = {layer.name: layer for layer in copy.layers}
    for theirs in model.layers:
        ours = counterparts.get(theirs.name)
        if isinstance(theirs, base):
            yield from layer_pairs(theirs, ours)
        elif type(theirs).__name__ != "InputLayer":
            yield theirs, ours
