"""One side of a verification: a Keras model or a `.tflite` file, asked for outputs and tensors."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfedge.errors import DataError, DelegateError, ModelError

Tensors = list[tuple[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Side:
    """A model that can be asked for its outputs.

    Attributes:
        inputs: Names of the inputs, in the model's order.
        outputs: Names of the outputs, in the model's order.
        predict: From a list of input arrays to a list of float32 output arrays.
        delegate: What runs a file; `None` for a Keras model.
        adapter: The device of a GPU that runs it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    predict: Callable[[list[np.ndarray]], list[np.ndarray]]
    delegate: str | None = None
    adapter: str | None = None


def is_file(model: Any) -> bool:
    """Whether `model` is the path or the content of a `.tflite` file.

    Example:
        >>> is_file("model.tflite"), is_file(b"TFL3"), is_file(object())
        (True, True, False)
    """
    return isinstance(model, str | bytes | bytearray | os.PathLike)


@contextlib.contextmanager
def opened(model: Any, notes: list[str], on: Mapping[str, Any] | None = None) -> Iterator[Side]:
    """`model` as a `Side`; what is worth knowing about it is added to `notes`.

    Args:
        model: A Keras model, or a file.
        notes: Gains sentences.
        on: How a file is opened (see `open_model`), and not otherwise. Default: on XNNPACK, or
            without it, with a note, where that takes nothing.
    """
    if not is_file(model):
        yield _keras_side(model)
        return
    from tfedge.runtime import open_model

    try:
        running = open_model(model, **(on or {"delegate": "xnnpack"}))
    except DelegateError as error:
        if on:
            raise
        notes.append(f"Run without a delegate: {error}")
        running = open_model(model, delegate="none")
    notes += running.notes
    with running:
        yield Side(
            delegate=running.actual,
            adapter=running.adapter,
            inputs=tuple(info.label for info in running.inputs),
            outputs=tuple(info.label for info in running.outputs),
            predict=lambda arrays: listed(running.predict(arrays)),
        )


def _keras_side(model: Any) -> Side:
    from tfedge.data import Split, check_data
    from tfedge.models import keras_of

    keras_of(model)  # refuses what is no Keras model
    names = input_names(model)
    by_key = _dict_end(model, "input") is not None

    def predict(arrays: list[np.ndarray]) -> list[np.ndarray]:
        given = arrays[0] if len(arrays) == 1 else tuple(arrays)
        check_data(model, Split(given), what="verification")
        fed = dict(zip(names, arrays, strict=True)) if by_key else given
        try:
            results = model.predict(fed, batch_size=64, verbose=0)
        except Exception as error:  # layers, those of a damaged file too, can raise anything
            raise ModelError(_cannot_run(model, error)) from error
        if isinstance(results, Mapping):  # in the order in which files hold them
            results = [results[key] for key in sorted(results)]
        return listed(results)

    outputs = sorted(_dict_end(model, "output") or ()) or getattr(model, "output_names", None) or ()
    return Side(inputs=names, outputs=tuple(map(str, outputs)), predict=predict)


def _cannot_run(model: Any, error: Exception) -> str:
    cause = " ".join(str(error).partition("Arguments received")[0].split())
    return (
        f"The Keras model `{model.name}` must run on inputs of its own shape. It raised "
        f"{type(error).__name__}: {cause[:300]} Try `model.predict` on a batch in Python; a file "
        "that is damaged must be saved again."
    )


def _dict_end(model: Any, side: str) -> Mapping[str, Any] | None:
    """The dict of a functional model's inputs or outputs, where it is one."""
    from tfedge.models import import_keras, is_functional, keras_of

    sequential = import_keras(keras_of(model)).Sequential  # may not know its ends, and has no dicts
    if not is_functional(model) or isinstance(model, sequential):
        return None
    end = model.input if side == "input" else model.output
    return end if isinstance(end, Mapping) else None


def input_names(model: Any) -> tuple[str, ...]:
    """What the inputs of a Keras model are called, in the order of `model.inputs`.

    A model that is called with a dict names them by its keys.
    """
    tensors = tuple(getattr(model, "inputs", None) or ())
    named = _dict_end(model, "input") or {}
    keys = {id(tensor): str(key) for key, tensor in named.items()}
    return tuple(keys.get(id(t), str(t.name).split(":")[0]) for t in tensors)


def listed(outputs: Any) -> list[np.ndarray]:
    """The outputs of a model as a list of float32 arrays, whatever they came in."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    rows = outputs if isinstance(outputs, list | tuple) else [outputs]
    return [np.asarray(row, np.float32) for row in rows]


def arranged(inputs: Any, names: Sequence[str]) -> list[np.ndarray]:
    """Inputs as a list in the order of `names`.

    Args:
        inputs: One array, a sequence of arrays in order, or a dict by name.
        names: The model's names of its inputs; a name of a file (`serving_default_image:0`) is
            found by the part that equals the key.

    Raises:
        DataError: There are more or fewer inputs than names, or a key fits none of them.

    Example:
        >>> [a.tolist() for a in arranged({"b": [2], "a": [1]}, ["serving_default_a:0", "b"])]
        [[1], [2]]
    """
    if not isinstance(inputs, Mapping):
        rows = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        if names and len(rows) != len(names):
            raise DataError(
                f"The model takes {len(names)} input(s) ({', '.join(names)}). "
                f"Received: {len(rows)}. Give one array for each."
            )
        return [np.asarray(row) for row in rows]
    if len(inputs) != len(names):
        raise DataError(
            f"The model takes the inputs {', '.join(names)}. "
            f"Received: {', '.join(map(str, inputs))}."
        )
    if set(map(str, inputs)) == set(names):
        return [np.asarray(inputs[name]) for name in names]
    by_part = {str(key): np.asarray(value) for key, value in inputs.items()}
    found = [_key_of(name, list(by_part)) for name in names]
    if None not in found and len(set(found)) == len(names):
        return [by_part[key] for key in found if key is not None]
    if all(
        name.startswith(("keras_tensor", "args_", "serving_default_keras_tensor")) for name in names
    ):
        return list(by_part.values())
    raise DataError(
        f"The model takes the inputs {', '.join(names)}. Received: {', '.join(by_part)}. "
        "Name them alike, or give a list in the model's order."
    )


def _key_of(name: str, keys: list[str]) -> str | None:
    bare = name.split(":")[0]
    for lead in ("serving_default_", "args_"):
        bare = bare.removeprefix(lead)
    return bare if bare in keys else None


def some(inputs: Any, chosen: np.ndarray) -> Any:
    """The chosen samples of every input, in the form that `inputs` has."""
    if isinstance(inputs, Mapping):
        return {name: np.asarray(rows)[chosen] for name, rows in inputs.items()}
    if isinstance(inputs, list | tuple):
        return [np.asarray(rows)[chosen] for rows in inputs]
    return np.asarray(inputs)[chosen]


def count(inputs: Any) -> int:
    """Number of samples.

    Raises:
        DataError: There is none, or the inputs differ in their number.
    """
    if isinstance(inputs, Mapping):
        rows = list(inputs.values())
    else:
        rows = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    counts = sorted({len(np.atleast_1d(np.asarray(row))) for row in rows})
    if len(counts) != 1 or counts[0] == 0:
        raise DataError(
            "Every input needs the same number of samples, at least one. "
            f"Received: {', '.join(map(str, counts)) or 'none'}."
        )
    return counts[0]
