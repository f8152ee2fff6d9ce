"""Rebuild a tf_keras model in Keras 3, and prove that it computes the same."""

import inspect
import json
import types
import warnings
from collections.abc import Mapping
from typing import Any

from tfedge.errors import ModelError
from tfedge.models.compiling import own_objects
from tfedge.models.copying import copy_flags, layer_pairs, without_compile_state
from tfedge.models.equality import output_differences
from tfedge.models.looking import check_rebuildable, import_keras, keras_of, layers_of

TOLERANCE = 1e-5  # of the largest output of a sample
BASE_SETTINGS = frozenset({"name", "trainable", "dtype", "activity_regularizer"})
RENAMED = {
    "InputLayer": {"batch_input_shape": "batch_shape"},
    "LeakyReLU": {"alpha": "negative_slope"},
}
MODELS = ("Functional", "Sequential")
TENSORFLOW_LAYERS = ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod")


def to_keras3(model: Any, *, seed: int = 0) -> Any:
    """The same model in Keras 3.

    Settings that Keras 3 does not have (`groups` of a depthwise convolution, `time_major`) are left
    out; the comparison of outputs shows whether that changed anything.

    Args:
        model: A functional or Sequential tf_keras model. A Keras 3 model is returned as it is.
        seed: Seed of the random batch on which the two are compared.

    Returns:
        A Keras 3 model of the same layers, names and weights, not compiled.

    Raises:
        UnsupportedModelError: The model is subclassed, or trains in a way of its own.
        ModelError: Keras 3 lacks one of its layers, or the outputs of the two differ by more than
            1e-5 of the largest output of a sample.
    """
    if keras_of(model) == "keras":
        return model
    check_rebuildable(model, "to_keras3")
    _check_layers(model)
    keras = import_keras("keras")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rebuilt = _rebuild(keras, model)
    except Exception as error:  # Keras 3 refuses a configuration in every way there is
        cause = " ".join(str(error).split())
        raise ModelError(
            f"`{model.name}` is a tf_keras model that Keras 3 cannot rebuild "
            f"({type(error).__name__}: {cause[:160]} … {cause[-160:]}). Build it with Keras 3 in "
            "Python and set its weights, or stay with tf_keras."
        ) from error
    _check_equal(model, rebuilt, seed)
    return rebuilt


def _check_layers(model: Any) -> None:
    for layer in layers_of(model):
        if type(layer).__name__ in TENSORFLOW_LAYERS:
            raise ModelError(
                "Keras 3 has no layer for a TensorFlow function called on a layer's output. "
                f"Received: `{layer.name}` in `{model.name}`. Use a Keras layer in place of it "
                "(`Add`, `Multiply`, `Rescaling`, `ReLU`, …), or stay with tf_keras."
            )


def _rebuild(keras: types.ModuleType, model: Any) -> Any:
    saving = import_keras("tf_keras").saving
    config = without_compile_state(json.loads(json.dumps(saving.serialize_keras_object(model))))
    rebuilt = keras.saving.deserialize_keras_object(
        _adapted(keras, config), custom_objects=own_objects(model)
    )
    for theirs, ours in zip(layers_of(model), layers_of(rebuilt), strict=True):
        ours.set_weights(theirs.get_weights())
        if isinstance(ours, keras.layers.Normalization):
            ours.finalize_state()  # its constants are derived from its weights
    copy_flags(layer_pairs(model, rebuilt))
    return rebuilt


def _adapted(keras: types.ModuleType, config: Any) -> Any:
    """The entries of a tf_keras configuration in the terms of Keras 3."""
    if isinstance(config, list):
        return [_adapted(keras, item) for item in config]
    if not isinstance(config, Mapping):
        return config
    entry = {key: _adapted(keras, value) for key, value in config.items() if key != "build_config"}
    kind = str(entry.get("class_name", ""))
    if kind in MODELS:
        public = "Model" if kind == "Functional" else kind
        _renumber_nodes(entry["config"])
        return {**entry, "module": "keras", "class_name": public, "registered_name": None}
    if entry.get("module") == "keras.layers" and isinstance(entry.get("config"), Mapping):
        entry["config"] = _settings(getattr(keras.layers, kind, None), entry["config"])
    return entry


def _renumber_nodes(settings: dict[str, Any]) -> None:
    """Count the calls of a nested model from 0: tf_keras counts its own graph as the first.

    Args:
        settings: Configuration of a model whose layers are adapted already; changed in place.
    """
    kinds = {entry["config"].get("name"): entry["class_name"] for entry in settings["layers"]}
    for entry in settings["layers"]:
        for node in entry.get("inbound_nodes", ()):
            for call in [node] if node and isinstance(node[0], str) else node:
                call[1] -= kinds.get(call[0]) in ("Model", "Sequential")
    for key in ("input_layers", "output_layers"):
        ends = settings.get(key, [])
        ends = [ends] if ends and isinstance(ends[0], str) else ends
        for end in ends:  # Keras 3 itself subtracts for functional ones
            end[1] -= kinds.get(end[0]) == "Sequential"
        if len(ends) == 1:
            settings[key] = ends[0]  # one tensor, not a list of one


def _settings(layer: type | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the layer class of Keras 3 takes."""
    kept = dict(settings)
    if layer is None:
        return kept
    for old, new in RENAMED.get(layer.__name__, {}).items():
        kept.setdefault(new, kept.pop(old, None))
    parameters = inspect.signature(layer).parameters
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = set(parameters) | (BASE_SETTINGS if is_open else set())
    axis = kept.get("axis")
    if isinstance(axis, list) and len(axis) == 1:
        kept["axis"] = axis[0]
    return {key: value for key, value in kept.items() if key in known}


def _check_equal(model: Any, rebuilt: Any, seed: int) -> None:
    for name, error in output_differences(model, rebuilt, seed):
        if not error <= TOLERANCE:
            raise ModelError(
                f"The Keras 3 form of `{model.name}` must compute the same as the model. Its "
                f"output `{name}` differs by {error:.2g} of its largest value, with "
                f"{TOLERANCE:.0e} allowed. One of its layers means something else in Keras 3; "
                "stay with tf_keras."
            )
