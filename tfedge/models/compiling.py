"""Compile one Keras model as another is compiled."""

import types
import warnings
from collections.abc import Mapping
from typing import Any

from tfedge.errors import TfedgeWarning
from tfedge.models.looking import KERASES, import_keras, is_functional, keras_of, scope_of

# Parts of Keras objects that hold no classes of the user's, and much else.
NOT_SEARCHED = frozenset({"KerasTensor", "Node", "Variable", "Tracker", "History"})


def compile_like(model: Any, source: Any) -> Any:
    """Compile a model as another is compiled, with a fresh optimizer of the same configuration.

    Optimizer, loss, loss weights, metrics, weighted metrics, `run_eagerly`, `steps_per_execution`
    and `jit_compile` are taken over. What cannot be made again leaves the model uncompiled, with a
    warning that says why.

    Args:
        model: The model to compile; it must be of the same Keras.
        source: The model to take the settings from. Nothing is done if it is not compiled.

    Returns:
        `model`.
    """
    if keras_of(model) == "tf_keras" and is_functional(model) and source.output_names:
        model.output_names = list(source.output_names)  # wrappers around the ends rename them
    if not is_compiled(source):
        return model
    saving = import_keras(keras_of(source)).saving
    try:
        config = dict(source.get_compile_config())
        if not isinstance(source.loss, str):
            config.pop("loss", None)  # the objects themselves will do: they hold no state
        with scope_of(model):
            arguments = saving.deserialize_keras_object(
                config, custom_objects=own_objects(source), safe_mode=False
            )
            model.compile(**{"loss": source.loss, **arguments})
    except Exception as error:  # losses, metrics and optimizers of one's own may raise anything
        cause = " ".join(str(error).split())[:200]
        warnings.warn(
            f"`{model.name}` was left uncompiled: the optimizer, loss or metrics of "
            f"`{source.name}` could not be made again ({type(error).__name__}: {cause}). Compile "
            "it before training.",
            TfedgeWarning,
            stacklevel=2,
        )
    return model


def is_compiled(model: Any) -> bool:
    """Whether a model of either Keras was compiled."""
    if keras_of(model) == "keras":
        return bool(model.compiled)
    return bool(model.get_compile_config())  # tf_keras has no public flag


def own_objects(model: Any) -> dict[str, Any]:
    """The classes and functions of the user's that the objects of a model are made of, by name.

    Args:
        model: A Keras model, with layers, losses or metrics that no Keras has registered.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()
    waiting: list[Any] = [model]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, types.FunctionType) and _package(value) not in KERASES:
            found.setdefault(value.__name__, value)
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set):
            waiting.extend(value)
        elif _is_part_of_keras(value):
            if _package(type(value)) not in KERASES:
                found.setdefault(type(value).__name__, type(value))
            waiting += vars(value).values()
    return {name: value for name, value in found.items() if name != "<lambda>"}


def _package(value: Any) -> str:
    return str(value.__module__).split(".")[0]


def _is_part_of_keras(value: Any) -> bool:
    """Whether a value is an object of a Keras class, or of the user's class derived from one."""
    ancestors = type(value).__mro__
    return (
        isinstance(getattr(value, "__dict__", None), dict)
        and not isinstance(value, type | types.ModuleType)
        and any(_package(cls) in KERASES for cls in ancestors)
        and not any(cls.__name__ in NOT_SEARCHED for cls in ancestors)
    )
