"""Tell what the outputs of a model are: logits, probabilities, or values."""

import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfedge.errors import DataError, SettingsError
from tfedge.models import is_functional, keras_of, layers_of, output_names
from tfedge.models.looking import KERASES

KINDS = ("classes", "binary", "values")
PASSING = frozenset({
    "FakeQuantize", "QuantizeLayer", "Reshape", "Flatten", "Dropout", "Identity",
})  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What one output is.

    Attributes:
        kind: `"classes"` (one of several), `"binary"` (a yes or no per unit) or `"values"`.
        probabilities: Whether they are probabilities rather than logits; of values, never.
    """

    kind: str
    probabilities: bool = False


@dataclass(frozen=True)
class Port:
    """One output of a model.

    Attributes:
        name: Its name.
        shape: Without the batch axis; open axes are `None`.
        activation: Name of the activation that ends it; `None` where the graph does not say.
    """

    name: str
    shape: tuple[int | None, ...]
    activation: str | None = None


def ports_of(model: Any) -> tuple[Port, ...] | None:
    """The outputs of a model in the order of its flat structure; `None` if it has no graph.

    Args:
        model: A Keras model.
    """
    if not is_functional(model) or not model.built:
        return None
    tensors = list(model.outputs)
    ends = _ends(model)
    single = len(tensors) == 1
    return tuple(
        Port(
            name,
            tuple(tensor.shape[1:]),
            _last_activation(model) if single else _activation_of(model, end),
        )
        for name, end, tensor in zip(output_names(model), ends, tensors, strict=True)
    )


def _ends(model: Any) -> list[str]:
    """Names of the layers that end a model, in the flat order of its outputs."""
    sequential = sys.modules[keras_of(model)].Sequential
    return [model.layers[-1].name] if isinstance(model, sequential) else list(model.output_names)


def _last_activation(model: Any) -> str | None:
    """The activation of the layer that ends a model of one output."""
    for layer in reversed(layers_of(model)):
        if type(layer).__name__ not in PASSING:
            return _activation(layer)
    return None


def _activation_of(model: Any, name: str) -> str | None:
    """The activation of the layer after which an output of several is named."""
    found = [layer for layer in layers_of(model) if layer.name == name]
    return _activation(found[0]) if found else None


def _activation(layer: Any) -> str | None:
    while "layer" in vars(layer):  # a wrapper
        layer = vars(layer)["layer"]
    if type(layer).__name__ == "Softmax":
        return "softmax"
    function = vars(layer).get("activation")
    if isinstance(function, types.FunctionType):
        return function.__name__
    # TFMOT puts an object around the activation of a layer that it quantises
    inner = None if function is None else vars(function).get("activation")
    return inner.__name__ if isinstance(inner, types.FunctionType) else None


def student_form(
    port: Port | None, loss: Any, outputs: np.ndarray | None, kind: str | None = None
) -> Form:
    """What an output of the student is, by its loss and the activation that ends it.

    Args:
        port: The output; `None` where the model has no graph.
        loss: What it is compiled with: a name, function or loss object.
        outputs: Some of its outputs, for where neither says it.
        kind: What the user says it is.
    """
    activation = None if port is None else port.activation
    kind = kind or _kind_by_loss(loss) or _kind_by_activation(activation)
    if kind is None:
        looks = outputs is not None and are_probabilities(outputs, "classes")
        kind = "classes" if looks else "values"
    if kind == "values":
        return Form("values")
    if activation in ("softmax", "sigmoid"):
        return Form(kind, True)
    if activation == "linear":
        return Form(kind)
    if (by_loss := _from_logits(loss)) is not None:
        return Form(kind, not by_loss)
    return Form(kind, are_probabilities(_needed(outputs, "student"), kind))


def teacher_form(port: Port | None, kind: str, outputs: np.ndarray | None) -> Form:
    """What an output of the teacher is, given what the student's is.

    Args:
        port: The output; `None` where the teacher is no Keras graph.
        kind: Of the student's output.
        outputs: Some of the teacher's outputs.
    """
    activation = None if port is None else port.activation
    if kind == "values":
        return Form("values")
    if activation in ("softmax", "sigmoid", "linear"):
        return Form(kind, activation != "linear")
    return Form(kind, are_probabilities(_needed(outputs, "teacher"), kind))


def check_kind(kind: Any) -> None:
    """Refuse what is not a kind of output, `None` aside.

    Raises:
        SettingsError: It is not.
    """
    if kind is not None and kind not in KINDS:
        raise SettingsError(
            f"`kind` says what outputs are: one of {', '.join(map(repr, KINDS))}, or None to have "
            f"it found out. Received: {kind!r}."
        )


def _needed(outputs: np.ndarray | None, role: str) -> np.ndarray:
    if outputs is None:
        raise DataError(
            f"Whether the {role} gives logits or probabilities must be looked up in its outputs, "
            "and the first samples of this data cannot be looked at twice. Give arrays or a "
            "`tf.data.Dataset`."
        )
    return outputs


def are_probabilities(outputs: np.ndarray, kind: str) -> bool:
    """Whether values look like probabilities rather than logits.

    Args:
        outputs: Shape (samples, …, classes).
        kind: `"classes"`, which sum to one, or `"binary"`.
    """
    outputs = np.asarray(outputs, np.float32)
    in_unit = bool(outputs.min() >= 0 and outputs.max() <= 1)
    return in_unit and (kind == "binary" or np.allclose(outputs.sum(axis=-1), 1, atol=0.05))


def _kind_by_loss(loss: Any) -> str | None:
    names = [loss] if isinstance(loss, str) else [cls.__name__ for cls in type(loss).__mro__]
    if isinstance(loss, types.FunctionType):
        names = [loss.__name__]
    squashed = " ".join(names).replace("_", "").lower()
    if "binarycrossentropy" in squashed or "binaryfocal" in squashed:
        return "binary"
    if "categorical" in squashed or "kldivergence" in squashed or "kullback" in squashed:
        return "classes"
    values = ("mean", "mse", "mae", "mape", "msle", "huber", "logcosh")
    return "values" if any(word in squashed for word in values) else None


def _kind_by_activation(activation: str | None) -> str | None:
    return {"softmax": "classes", "sigmoid": "binary"}.get(activation or "")


def _from_logits(loss: Any) -> bool | None:
    """What a loss of Keras's takes; of others, `None`."""
    if isinstance(loss, str):
        return False if _kind_by_loss(loss) else None
    bases: list[Any] = [sys.modules[name].losses.Loss for name in KERASES if name in sys.modules]
    own = isinstance(loss, tuple(bases))
    config: dict[str, Any] = loss.get_config() if own else {}
    return config.get("from_logits")
