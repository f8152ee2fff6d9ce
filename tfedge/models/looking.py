"""Look into a Keras model: which Keras, which layers, what can be done with it."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tfedge.errors import (
    MissingExtraError,
    ModelError,
    SettingsError,
    UnsupportedModelError,
    did_you_mean,
)

KERASES = ("keras", "tf_keras")
OWN_STEPS = ("train_step", "compute_loss", "call")


def import_keras(name: str) -> ModuleType:
    """The module `keras`, `tf_keras` or another of the `train` install.

    Args:
        name: Name of the package.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: The package, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"Working on Keras models needs the package `{name}`, which cannot be imported here "
            f'({error}). Install it: pip install "tfedge[train]"'
        ) from error


def is_model(value: Any) -> bool:
    """Whether `value` is a model of either Keras. Imports none of them."""
    loaded = [sys.modules[name] for name in KERASES if name in sys.modules]
    return any(isinstance(value, module.Model) for module in loaded)


def keras_of(model: Any) -> str:
    """Which Keras a model is of.

    Args:
        model: A Keras model.

    Returns:
        `"keras"` (Keras 3) or `"tf_keras"`.

    Raises:
        ModelError: It is not a Keras model.
    """
    for name in KERASES:
        if name in sys.modules and isinstance(model, sys.modules[name].Model):
            return name
    move = (
        " Load the file first: `tfedge.load_model(path)`."
        if isinstance(model, str) or hasattr(model, "__fspath__")
        else ""
    )
    raise ModelError(
        f"A Keras model is needed here, of Keras 3 or of tf_keras. "
        f"Received: {str(model)[:80]!r} of type `{type(model).__name__}`.{move}"
    )


def output_names(model: Any) -> tuple[str, ...]:
    """What the outputs of a built model are called, in the order of their flat structure.

    Args:
        model: A model of either Keras.

    Returns:
        The keys of a dict of outputs; else the names of the layers that end the model, and of one
        without a graph that of its last layer.
    """
    sequential = sys.modules[keras_of(model)].Sequential
    if isinstance(model, sequential) or not is_functional(model):
        return tuple(layer.name for layer in model.layers[-1:])
    by_name = isinstance(model.output, Mapping)
    return tuple(sorted(model.output) if by_name else model.output_names)


def scope_of(model: Any) -> Any:
    """The scope of the distribution strategy that a model was made in, to make its like in.

    Args:
        model: A model of either Keras.

    Returns:
        A context manager; it does nothing for a model that was made without a strategy.
    """
    return model.distribute_strategy.scope()


def check_strategy(model: Any) -> None:
    """Refuse a way of using several devices that Keras or TensorFlow cannot train under.

    Args:
        model: A model of either Keras, about to be trained.

    Raises:
        UnsupportedModelError: The reason, and what works.
    """
    strategy = model.distribute_strategy
    name = type(strategy).__name__
    if "CollectiveAllReduce" in name and keras_of(model) == "keras":
        raise UnsupportedModelError(
            "Keras 3.15 cannot `fit` under `MultiWorkerMirroredStrategy`: it fails to read the "
            f"first batch, with or without tfedge. Received: `{model.name}`, made in its scope. "
            "Use `MirroredStrategy` on one machine, or a tf_keras model, which trains on several."
        )
    if strategy.num_replicas_in_sync < 2 or model.jit_compile is not True:
        return
    if "CPU" in strategy.extended.worker_devices[0]:
        raise UnsupportedModelError(
            "TensorFlow's XLA cannot reach the variables of a second CPU device. Received: "
            f"`{model.name}`, compiled with `jit_compile=True` under `{name}`. Compile it with "
            "`jit_compile=False`."
        )


def is_functional(model: Any) -> bool:
    """Whether the model is a graph of layers: functional or Sequential, in either Keras."""
    keras = sys.modules[keras_of(model)]
    # Neither Keras exports its class `Functional`.
    ancestors = {cls.__name__ for cls in type(model).__mro__}
    return isinstance(model, keras.Sequential) or "Functional" in ancestors


def check_keras3(model: Any, stage: str) -> None:
    """Refuse a tf_keras model where only Keras 3 is served.

    Args:
        model: A Keras model.
        stage: Name of the stage, for the message.

    Raises:
        UnsupportedModelError: It is a tf_keras model; the message has the way out.
    """
    if keras_of(model) != "keras":
        raise UnsupportedModelError(
            f"`{stage}` works on Keras 3 models. Received: `{model.name}`, a tf_keras model. "
            "Convert it first: `tfedge.to_keras3(model)`."
        )


def check_rebuildable(model: Any, stage: str) -> None:
    """Check that `stage` can rebuild the graph of `model`.

    Args:
        model: A Keras model.
        stage: Name of the stage, for the message.

    Raises:
        ModelError: It is not a Keras model.
        UnsupportedModelError: The model has no graph of layers, is not built, or overrides a step
            of training that a rebuilt model would lose.
    """
    base = sys.modules[keras_of(model)].Model
    rule = f"`{stage}` rebuilds the graph of a model, so it takes functional and Sequential models"
    if not is_functional(model):
        raise UnsupportedModelError(
            f"{rule}. Received: `{model.name}`, a subclassed model (`{type(model).__name__}`), "
            "whose graph exists only as Python code. Rebuild it with the functional API; "
            "`convert` and `PruneWhileTraining` take it as it is."
        )
    own = [step for step in OWN_STEPS if _overrides(type(model), base, step)]
    if own:
        raise UnsupportedModelError(
            f"{rule} that train in Keras's own way. Received: `{model.name}`, whose class "
            f"`{type(model).__name__}` overrides `{own[0]}`, which a rebuilt model would lose. "
            "Pass a plain model of the same layers; `convert` and `PruneWhileTraining` take it as "
            "it is."
        )
    if not model.built or not model.inputs:
        raise UnsupportedModelError(
            f"{rule} of known input shape. Received: `{model.name}`, which is not built. Add an "
            "`Input` as its first layer."
        )


def _overrides(cls: type, base: type, method: str) -> bool:
    """Whether a class of the user's, and not Keras itself, defines `method`."""
    owner = next(ancestor for ancestor in cls.__mro__ if method in vars(ancestor))
    return owner.__module__.split(".")[0] not in KERASES and issubclass(owner, base)


def layers_of(model: Any) -> list[Any]:
    """All leaf layers, nested models entered, each layer once, in the order of the model.

    Input layers are left out. A layer that is made of other layers (`Bidirectional`, a composite
    of one's own) is one leaf; only models are entered.

    Args:
        model: A Keras model.

    Returns:
        The layer objects themselves.
    """
    base = sys.modules[keras_of(model)].Model
    found: dict[int, Any] = {}

    def enter(nested: Any) -> None:
        for layer in nested.layers:
            if isinstance(layer, base):
                enter(layer)
            elif type(layer).__name__ != "InputLayer":
                found.setdefault(id(layer), layer)

    enter(model)
    return list(found.values())


def choose_layers(model: Any, names: Sequence[str] | None) -> list[Any]:
    """The leaf layers of these names; the name of a nested model stands for all its layers.

    Args:
        model: A Keras model.
        names: Names of layers or nested models; all layers for `None`.

    Returns:
        The layers in the order of the model, each once.

    Raises:
        SettingsError: A name is not in the model; the nearest one is offered.
    """
    layers = layers_of(model)
    if names is None:
        return layers
    if isinstance(names, str):
        raise SettingsError(
            f"Layers are chosen by a list of names. Received: {names!r}. Write [{names!r}]."
        )
    named: dict[str, list[Any]] = {}
    for layer in layers:
        named.setdefault(layer.name, []).append(layer)
    for nested in _nested_models(model):
        named.setdefault(nested.name, []).extend(layers_of(nested))
    for name in names:
        if name not in named:
            raise SettingsError(
                f"The model `{model.name}` has no layer {name!r}.{did_you_mean(name, named)} "
                f"Its layers: {_some([layer.name for layer in layers])}."
            )
    chosen = {id(layer) for name in names for layer in named[name]}
    return [layer for layer in layers if id(layer) in chosen]


def _nested_models(model: Any) -> list[Any]:
    base = sys.modules[keras_of(model)].Model
    found = []
    for layer in model.layers:
        if isinstance(layer, base):
            found += [layer, *_nested_models(layer)]
    return found


def _some(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def check_finite(model: Any) -> None:
    """Check that no weight is NaN or infinite.

    Args:
        model: A Keras model.

    Raises:
        ModelError: A weight is not finite; the layer is named.
    """
    for layer in layers_of(model):
        for weight, value in zip(layer.weights, layer.get_weights(), strict=True):
            if value.dtype.kind in "iub" or np.isfinite(np.asarray(value, np.float64)).all():
                continue
            bad = int((~np.isfinite(np.asarray(value, np.float64))).sum())
            raise ModelError(
                f"Weights must be finite. Received: layer `{layer.name}` of `{model.name}` holds "
                f"{bad} NaN or infinite values of {value.size} in `{weight.name}`. Train again "
                "with a lower learning rate, or load an earlier checkpoint."
            )
