"""Compare the inner tensors of two models, layer by layer."""

import re
from collections import Counter
from typing import Any

import numpy as np

from tfedge.verify._sides import Tensors, arranged, input_names, is_file, listed


def inner_tensors(model: Any, inputs: Any, notes: list[str]) -> Tensors:
    """Names and values of the tensors inside a model, in the order of computation.

    Args:
        model: A functional Keras model, or a `.tflite` file.
        inputs: A few samples.
        notes: Gains a sentence when the tensors cannot be read.

    Returns:
        Layer names with outputs (Keras; without those that are the model's outputs), tensor names
        with dequantised values (file); empty when they cannot be read.
    """
    return _file_tensors(model, inputs) if is_file(model) else _keras_tensors(model, inputs, notes)


def _keras_tensors(model: Any, inputs: Any, notes: list[str]) -> Tensors:
    from tfedge.models import is_functional, keras_of

    if not is_functional(model):
        notes.append("Inner tensors were not compared: a subclassed model does not show them.")
        return []
    rows = arranged(inputs, input_names(model))
    return (
        _keras3_tensors(model, rows)
        if keras_of(model) == "keras"
        else _tf_keras_tensors(model, rows)
    )


def _keras3_tensors(model: Any, rows: list[np.ndarray]) -> Tensors:
    """Call the layers one by one on real values, nested models inlined."""
    from keras import ops, tree

    from tfedge.engines.native.graph import Ref, read_graph

    graph = read_graph(model)
    values: dict[int, Any] = {
        index: ops.convert_to_tensor(row, graph.specs[index].dtype)
        for index, row in zip(graph.inputs, rows, strict=True)
    }
    calls = Counter(call.name for call in graph.calls)
    found = []
    for call in graph.calls:
        args, kwargs = tree.map_structure(
            lambda value: values[value.index] if isinstance(value, Ref) else value,
            (call.args, call.kwargs),
        )
        results = tree.flatten(call.operation(*args, **kwargs))
        values.update(zip(call.outputs, results, strict=True))
        if len(results) == calls[call.name] == 1 and call.outputs[0] not in graph.outputs:
            found.append((call.name, np.asarray(ops.convert_to_numpy(results[0]))))
    return found


def _tf_keras_tensors(model: Any, rows: list[np.ndarray]) -> Tensors:
    """Make the outputs of all layers that are called once outputs of the model."""
    from tfedge.engines.tfmot import flatten
    from tfedge.models import import_keras

    flat = flatten(model)
    final = [id(output) for output in flat.outputs]
    wanted = [
        (layer.name, layer.output)
        for layer in flat.layers
        if type(layer).__name__ != "InputLayer" and not _is_shared(layer)
    ]
    wanted = [
        (name, output)
        for name, output in wanted
        if not isinstance(output, list | tuple | dict) and id(output) not in final
    ]
    if not wanted:
        return []
    keras = import_keras("tf_keras")
    probe = keras.Model(flat.inputs, [output for _, output in wanted])
    values = listed(probe.predict(rows[0] if len(rows) == 1 else rows, verbose=0))
    return [(name, value) for (name, _), value in zip(wanted, values, strict=True)]


def _is_shared(layer: Any) -> bool:
    """Whether a tf_keras layer is called more than once."""
    try:
        layer.get_output_at(1)
    except ValueError:
        return False
    return True


def _file_tensors(model: Any, inputs: Any) -> Tensors:
    from tfedge.inspection import inspect_model
    from tfedge.runtime import open_model

    with open_model(model, keep_tensors=True) as running:
        infos = {info.index: info for info in running.tensors}
        written = [op.outputs[0] for op in inspect_model(model).operators if op.subgraph == 0]
        wanted = [infos[index] for index in written if index in infos and _is_real(infos[index])]
        rows: list[list[np.ndarray]] = [[] for _ in wanted]
        for sample in _samples(arranged(inputs, [info.label for info in running.inputs])):
            running.predict(sample)
            for info, values in zip(wanted, rows, strict=True):
                values.append(_real_value(running.tensor(info.index), info))
    return [(info.name, np.concatenate(values)) for info, values in zip(wanted, rows, strict=True)]


def _is_real(info: Any) -> bool:
    """Whether a tensor stands for real numbers: floats, or integers with a scale."""
    return info.dtype.startswith("float") or bool(info.scale)


def _real_value(stored: np.ndarray, info: Any) -> np.ndarray:
    from tfedge.runtime import dequantize

    value = dequantize(stored, info.scale, info.zero_point) if info.scale else stored
    return np.atleast_1d(np.asarray(value, np.float32))


def _samples(rows: list[np.ndarray]) -> list[list[np.ndarray]]:
    return [[row[i : i + 1] for row in rows] for i in range(len(rows[0]))]


def paired(reference: Tensors, candidate: Tensors) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Pair the tensors of two models by name and shape, in the candidate's order.

    A file's tensor is named by a path, after fusion by several (`model/bn/add;model/conv/Conv2D`);
    it stands for the last layer of the reference that its name mentions. Keras 3 numbers the layers
    in such paths (`model_1/conv_1/Conv2D` for `conv`): names are taken as they are, or without the
    number, whichever finds more layers.

    Args:
        reference: Names and values.
        candidate: Names and values.

    Returns:
        `(name, reference value, candidate value)` rows; each name once.

    Example:
        >>> conv, relu = np.zeros((1, 2)), np.ones((1, 2))
        >>> [name for name, _, _ in paired([("conv", conv), ("relu", relu)],
        ...                                [("m/relu/Relu;m/conv/Conv2D", relu)])]
        ['relu']
    """
    as_they_are, unnumbered = (_pairs(reference, candidate, cut) for cut in (False, True))
    return unnumbered if len(unnumbered) > len(as_they_are) else as_they_are


def _pairs(
    reference: Tensors, candidate: Tensors, cut_number: bool
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    places = {name: place for place, (name, _) in enumerate(reference)}
    rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, value in candidate:
        mentioned = [places[part] for part in _parts(name, cut_number) if part in places]
        if mentioned and _same_shape(reference[max(mentioned)][1], value):
            layer, expected = reference[max(mentioned)]
            rows.pop(layer, None)  # the last tensor of a layer is its output
            rows[layer] = (expected, value)
    return [(name, a, b.reshape(a.shape)) for name, (a, b) in rows.items()]


def _parts(name: str, cut_number: bool) -> set[str]:
    """What a tensor's name may be called: itself, its paths, the layers on its paths."""
    paths = name.split(";")
    layers = {part for path in paths for part in path.split("/")[1:-1]}
    if cut_number:
        layers = {re.sub(r"_\d+$", "", layer) for layer in layers}
    return {name, *paths, *layers}


def _same_shape(first: np.ndarray, second: np.ndarray) -> bool:
    return [n for n in first.shape if n != 1] == [n for n in second.shape if n != 1]
