"""Note what layers give while a model runs, without running it a second time."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tfedge.errors import SettingsError, TrainingError, did_you_mean
from tfedge.models import keras_of, layers_of


def find_layer(model: Any, name: str, role: str) -> Any:
    """The layer of a model, nested ones included, that has a name.

    A wrapper of TFMOT's goes by the name of the layer in it, too.

    Args:
        model: A Keras model.
        name: Of the layer.
        role: `"student"` or `"teacher"`, for the message.

    Raises:
        SettingsError: There is none.
    """
    named: dict[str, Any] = {}
    for layer in (*_nested(model), *layers_of(model)):
        inner = vars(layer).get("layer")
        if inner is not None and type(layer).__module__.startswith("tensorflow_model_optimization"):
            named.setdefault(inner.name, layer)
        named.setdefault(layer.name, layer)
    if name not in named:
        raise SettingsError(
            f"`features` names layers of the {role}. Received: {name!r}, which `{model.name}` does "
            f"not have.{did_you_mean(name, named)}"
        )
    return named[name]


def _nested(model: Any) -> Iterator[Any]:
    base = sys.modules[keras_of(model)].Model
    for layer in model.layers:
        if isinstance(layer, base):
            yield layer
            yield from _nested(layer)


class Recorder:
    """Notes the outputs of some layers of a model while it is traced or runs.

    Args:
        model: A Keras model.
        names: Of the layers.
        role: `"student"` or `"teacher"`, for messages.
    """

    def __init__(self, model: Any, names: Sequence[str], role: str) -> None:
        self._layers = {name: find_layer(model, name, role) for name in dict.fromkeys(names)}
        self._seen = threading.local()  # every replica is traced in a thread of its own

    def start(self) -> None:
        """Forget what was noted before."""
        self._seen.outputs = {}

    def outputs(self, names: Sequence[str]) -> list[Any]:
        """What the layers gave since `start`; of one that ran more than once, the last.

        Raises:
            TrainingError: A layer did not run.
        """
        for name in names:
            if name not in self._seen.outputs:
                raise TrainingError(
                    f"The layer {name!r} of `features` did not run in the model's forward pass. "
                    "Name a layer that the model calls."
                )
        return [self._seen.outputs[name] for name in names]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the block runs, the layers are listened to."""
        with replaced(
            *(
                (layer, "call", self._noting(name, layer.call))
                for name, layer in self._layers.items()
            )
        ):
            yield

    def _noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:  # as Keras calls the layer
            outputs = call(*args, **kwargs)
            vars(self._seen).setdefault("outputs", {})[name] = outputs
            return outputs

        return noting


@contextmanager
def replaced(*methods: tuple[Any, str, Callable[..., Any]]) -> Iterator[None]:
    """While the block runs, objects have other methods of these names.

    They are put past Keras's own `__setattr__`, which would look for weights in them.

    Args:
        *methods: Object, name of the method, what stands in for it.
    """
    absent = object()
    before = [(owner, name, vars(owner).get(name, absent)) for owner, name, _ in methods]
    try:
        for owner, name, function in methods:
            vars(owner)[name] = function
        yield
    finally:
        for owner, name, function in reversed(before):
            if function is absent:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = function
