"""Examine a model together with data: what it is for, what can be done with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfedge.convert import convert
from tfedge.convert._signature import InputSpec, input_specs, takes_dict
from tfedge.data import Data, Split, check_data, find_metric
from tfedge.errors import DataError, ModelError, SettingsError, UnsupportedModelError
from tfedge.models import (
    check_finite,
    check_rebuildable,
    import_keras,
    is_compiled,
    keras_of,
    layers_of,
)
from tfedge.recipe.judge import Judge, is_relative
from tfedge.recipe.tasks import RELATIVE, Task, expected_task, is_distribution, task_of

LOOKED_AT = 256  # samples that outputs are read from
TRIAL_SAMPLES = 8  # samples of the trial conversion to int8


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found out about a model and its data.

    Attributes:
        keras: `"keras"` (Keras 3) or `"tf_keras"`.
        name: Name of the model.
        layers: Number of its layers.
        parameters: Number of its weights.
        inputs: Its inputs.
        outputs: Shape of one sample of each output by name; the name is empty for a sole output.
        named: Whether several outputs have names.
        loss: Name of the loss of each output, where it was compiled with one.
        compiled: Whether it was compiled with a loss.
        tasks: What each output that has labels is for; without data, what it probably is for.
        labels: `"y"`, `"inputs"` for an autoencoder, or empty without labels.
        classes: Whether all outputs are probabilities of classes.
        samples: Samples by split, e.g. `{"training": 1000, "evaluation": 200}`; empty without data.
        ranges: Smallest and largest value of the inputs.
        figures: What the model reaches as it is, on `LOOKED_AT` evaluation samples at most.
        fractions: Names of those figures that are fractions.
        constant: Whether it does no better than the best constant answer.
        no_training: Why it cannot be trained; empty where it can.
        no_pruning: Why nothing can be pruned; empty where it can.
        float_layers: Layers that have no integer form.
        notes: What the data say of their splits.
    """

    keras: str
    name: str
    layers: int
    parameters: int
    inputs: tuple[InputSpec, ...]
    outputs: Mapping[str, tuple[int, ...]]
    named: bool
    loss: Mapping[str, str]
    compiled: bool
    tasks: Mapping[str, Task]
    labels: str
    classes: bool
    samples: Mapping[str, int] = field(default_factory=dict)
    ranges: tuple[float, float] = (0.0, 0.0)
    figures: Mapping[str, float] = field(default_factory=dict)
    fractions: tuple[str, ...] = ()
    constant: bool = False
    no_training: str = ""
    no_pruning: str = ""
    float_layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def examine(model: Any, data: Data | None, metric: Any = None) -> Findings:
    """Look at a model and its data.

    Args:
        model: A Keras model of either Keras, built.
        data: Its data, if they are known.
        metric: The figure of merit, as in a recipe, where the user chose one.

    Returns:
        What was found.

    Raises:
        ModelError: The model has no known input shape, or is quantised already.
        ConversionError: It cannot be converted, e.g. because of an open size.
        DataError: The data do not fit it; what to do is said.
        SettingsError: The metric is not known, or does not fit the outputs.
    """
    check_finite(model)
    specs = input_specs(model)
    _check_plain(model)
    rows = (noise_for(model, specs),) if data is None else _some(_judged_by(data))
    if data is not None:
        _check_inputs(model, data)
    predicted = _predictions(model, rows[0])
    names, named = _names(model, predicted)
    outputs = dict(zip(names, _parts(predicted), strict=True))
    _check_form(metric, outputs)
    x, y = rows[0], rows[1] if len(rows) > 1 else None
    labels = "inputs" if _is_autoencoder(x, y, predicted) else "" if y is None else "y"
    trouble = _check_labels(model, data, metric) if data is not None and labels == "y" else ""
    y = x if labels == "inputs" else y
    compiled = bool(is_compiled(model) and (model.loss or model.losses))
    loss = {name: _loss_of(model, name) for name in names}
    tasks: dict[str, Task] = {}
    if labels == "inputs":
        tasks = {"": _own_inputs(loss[""])}
    elif y is not None and named and not trouble:
        tasks = _tasks(model, _labels(y, names), outputs)
    elif data is None:
        tasks = {name: expected_task(output, loss[name]) for name, output in outputs.items()}
    judged = _judged(model, data, labels, tasks, outputs, y, metric)
    return Findings(
        keras=keras_of(model),
        name=model.name,
        layers=len(layers_of(model)),
        parameters=int(sum(np.prod(weight.shape) for weight in model.weights)),
        inputs=specs,
        outputs={name: tuple(output.shape[1:]) for name, output in outputs.items()},
        named=named,
        loss=loss,
        compiled=compiled,
        tasks=tasks,
        labels=labels,
        classes=all(is_distribution(output) for output in outputs.values()),
        samples={} if data is None else _counts(data),
        ranges=(float(min(map(np.min, _parts(x)))), float(max(map(np.max, _parts(x))))),
        no_training=_no_training(model, data, labels, tasks, compiled) or trouble,
        no_pruning=_no_pruning(model),
        float_layers=_float_layers(model, x),
        notes=() if data is None else data.notes,
        **judged,
    )


def _check_plain(model: Any) -> None:
    """Refuse a model that was trained quantization-aware: it has no float file to compare with."""
    if keras_of(model) == "keras":
        from tfedge.engines.native.quantize import is_quantized as is_aware
    else:
        from tfedge.engines.tfmot import is_quantize_aware as is_aware
    if is_aware(model):
        raise UnsupportedModelError(
            f"A recipe starts from a model in float. Received: `{model.name}`, which was trained "
            "quantization-aware. Convert it by `tfedge convert --mode int8`, or give the model "
            "from before."
        )


def _check_form(metric: Any, outputs: Mapping[str, np.ndarray]) -> None:
    if isinstance(metric, Mapping) and "" in outputs:
        raise SettingsError(
            "A metric by output name is for models of several outputs. This one has one. "
            f"Received: {dict(metric)}. Name the metric alone."
        )


def _judged_by(data: Data) -> Split:
    if data.evaluation is None:
        raise DataError(
            "A recipe is judged on evaluation data. Received: data without any. Give `x_test` "
            "(and `y_test`), or `x` (and `y`) that a part can be set aside of."
        )
    if data.calibration is None and (data.train is None or not data.train.is_stream):
        raise DataError(
            "Ranges of integer files come from training or calibration samples. Received: "
            "evaluation data only. Give `x_train` or `x_calibration` too."
        )
    return data.evaluation


def _some(split: Split) -> tuple[Any, ...]:
    """Some rows of a split; of a stream, its first ones."""
    return next(split.batches(LOOKED_AT)) if split.is_stream else split.take(LOOKED_AT).rows


def noise_for(model: Any, specs: tuple[InputSpec, ...]) -> Any:
    """Inputs of the right form where there are no data: uniform in [0, 1), whole numbers 0."""
    random = np.random.RandomState(0)
    arrays = [
        random.random_sample((TRIAL_SAMPLES, *(size or 1 for size in spec.shape[1:]))).astype(
            spec.dtype
        )
        for spec in specs
    ]
    if takes_dict(model):
        return {spec.name: array for spec, array in zip(specs, arrays, strict=True)}
    return tuple(arrays) if len(arrays) > 1 else arrays[0]


def _check_inputs(model: Any, data: Data) -> None:
    for what in ("train", "evaluation", "calibration"):
        split = getattr(data, what)
        if split is not None:
            rows = next(split.batches(LOOKED_AT)) if split.is_stream else split.rows
            check_data(model, Split(rows[0]), what="training" if what == "train" else what)


def _check_labels(model: Any, data: Data, metric: Any) -> str:
    """Why labels that do not fit the outputs rule training out; an error where they must fit."""
    if not isinstance(metric, str) or ":" not in metric:
        _check_splits(model, data)
        return ""
    try:
        _check_splits(model, data)
    except DataError as error:  # a metric of one's own may read labels of another form
        return f"the labels are for the metric alone: {error}"
    return ""


def _check_splits(model: Any, data: Data) -> None:
    outputs = getattr(model, "outputs", None)  # a subclassed model of Keras 3 has none
    for what, split in (("training", data.train), ("evaluation", data.evaluation)):
        if split is None or (not split.is_stream and split.y is None):
            continue
        if isinstance(split.y, dict) and outputs and len(outputs) == 1:
            raise DataError(
                f"The model has one output, so its labels are one array. Received: {what} labels "
                f"by name: {', '.join(split.y)}. Call the array `y`."
            )
        check_data(model, split, what=what)


def _predictions(model: Any, x: Any) -> Any:
    predicted = model.predict(list(x) if isinstance(x, tuple) else x, batch_size=64, verbose=0)
    return tuple(predicted) if isinstance(predicted, list) else predicted


def _parts(arrays: Any) -> list[np.ndarray]:
    if isinstance(arrays, dict):  # in the order in which Keras flattens it
        return [np.asarray(arrays[name]) for name in sorted(arrays)]
    return [np.asarray(part) for part in arrays] if isinstance(arrays, tuple) else [arrays]


def _names(model: Any, predicted: Any) -> tuple[list[str], bool]:
    """Names of the outputs (empty for a sole one), and whether they are the model's."""
    if isinstance(predicted, dict):
        return sorted(predicted), True
    if not isinstance(predicted, tuple):
        return [""], True
    known = getattr(model, "output_names", None)  # a subclassed model has none
    if known is not None and len(known) == len(predicted):
        return list(known), True
    return [str(index) for index in range(len(predicted))], False


def _labels(y: Any, names: list[str]) -> dict[str, np.ndarray]:
    if isinstance(y, dict):
        return y
    return dict(zip(names, _parts(y), strict=True))


def _tasks(
    model: Any, labels: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> dict[str, Task]:
    keras = import_keras(keras_of(model))
    return {name: task_of(keras, labels[name], outputs[name]) for name in outputs if name in labels}


def _own_inputs(loss: str) -> Task:
    absolute = loss in ("mae", "mean_absolute_error")
    return Task(
        kind="values",
        metric="mae" if absolute else "mse",
        max_drop=RELATIVE,
        loss="mae" if absolute else "mse",
        why="an autoencoder: the outputs have the form of the inputs",
    )


def usual_metric(tasks: Mapping[str, Task]) -> str | dict[str, str]:
    """The metric of a recipe for these tasks: one name, or one by output name."""
    if list(tasks) == [""]:
        return tasks[""].metric
    return {name: task.metric for name, task in tasks.items()}


def _is_autoencoder(x: Any, y: Any, predicted: Any) -> bool:
    """Whether the outputs have the form of the inputs, and no other labels say otherwise."""
    if not isinstance(x, np.ndarray) or not isinstance(predicted, np.ndarray):
        return False
    if x.shape != predicted.shape or x.ndim < 2 or (is_distribution(predicted) and y is None):
        return False
    return y is None or (isinstance(y, np.ndarray) and np.array_equal(x, y))


def _loss_of(model: Any, output: str) -> str:
    loss = getattr(model, "loss", None)  # absent before a model is compiled
    if isinstance(loss, dict):
        loss = loss.get(output)
    elif isinstance(loss, list | tuple):
        names = list(getattr(model, "output_names", ()))
        place = names.index(output) if output in names else 0
        loss = loss[place] if place < len(loss) else None
    if isinstance(loss, str) or loss is None:
        return loss or ""
    return str(getattr(loss, "name", None) or getattr(loss, "__name__", ""))  # class or function


def _counts(data: Data) -> dict[str, int]:
    splits = {"training": data.train, "evaluation": data.evaluation}
    counts = {what: len(split) for what, split in splits.items() if split is not None}
    if data.calibration is not None:
        counts["calibration"] = len(data.calibration)
    return counts


def _judged(
    model: Any,
    data: Data | None,
    labels: str,
    tasks: Mapping[str, Task],
    outputs: Mapping[str, np.ndarray],
    y: Any,
    metric: Any,
) -> dict[str, Any]:
    """Figures of the model as it is, and whether a constant answer would do as well."""
    if data is None or (not tasks and metric is None) or is_relative(metric):
        return {}
    rows = _some(_judged_by(data))
    split = Split(rows[0], rows[0]) if labels == "inputs" else Split(*rows)
    chosen = metric or usual_metric(tasks)
    _check_metric(chosen)
    judge = Judge(split, chosen, model)
    figures = judge.model(model)
    fractions = tuple(f.name for f in judge.budget(figures, None).figures if f.fraction)
    constant = list(tasks) == [""] and _is_constant(tasks[""], y, outputs[""])
    return {"figures": figures, "fractions": fractions, "constant": constant}


def _check_metric(metric: Any) -> None:
    for name in metric.values() if isinstance(metric, Mapping) else (metric,):
        find_metric(name)


def _is_constant(task: Task, y: Any, outputs: np.ndarray) -> bool:
    """Whether the model is no better than always giving the commonest class, or the median."""
    y = np.asarray(y)
    if task.kind == "classes":
        numbers = y.argmax(axis=-1) if y.shape == outputs.shape else y.reshape(outputs.shape[:-1])
        right = float((outputs.argmax(axis=-1) == numbers).mean())
        counts: np.ndarray = np.unique(numbers, return_counts=True)[1]
        return right <= float(np.max(counts)) / numbers.size
    if task.kind != "values" or y.size != outputs.size:
        return False
    error = np.abs(y.reshape(outputs.shape) - outputs).mean()
    return bool(error >= np.abs(y - np.median(y, axis=0)).mean())


def _no_training(
    model: Any, data: Data | None, labels: str, tasks: Mapping[str, Task], compiled: bool
) -> str:
    """Why stages that train are out; empty where they are not."""
    try:
        check_rebuildable(model, "Prune")
    except UnsupportedModelError as error:
        return str(error)
    if data is not None:
        if not labels:
            return "there are no labels"
        train = data.train
        if train is None:
            return "there are no training samples"
        if labels == "y" and not train.is_stream and train.y is None:
            return "the training samples have no labels"
    if compiled:
        return ""
    several = len(tasks) > 1 or is_compiled(model)
    for name, task in tasks.items():
        if task.loss is None and (several or task.said):
            output = f"the output `{name}`" if name else "its output"
            return (
                f"the model is not compiled with a loss, and {output} gives logits, whose loss no "
                "name says. Compile it, e.g. with `BinaryCrossentropy(from_logits=True)`, and save "
                "it again"
            )
    if labels == "y" and len(tasks) < len(getattr(model, "outputs", None) or tasks):
        return "the model is not compiled with a loss, and some of its outputs have no labels"
    return ""


def _no_pruning(model: Any) -> str:
    from tfedge.engines.native.kernels import find_kernels
    from tfedge.engines.native.prune_settings import Pruning

    try:
        find_kernels(model, Pruning(sparsity=0.5), training=True)
    except ModelError as error:
        return str(error)
    return ""


def _float_layers(model: Any, x: Any) -> tuple[str, ...]:
    """Layers that have no integer form, from a trial conversion."""
    few = Split(x).take(TRIAL_SAMPLES).x
    _, report = convert(model, mode="int8", calibration=few, allow_float=True)
    layers = [row.layer or row.name for row in report.float_operators]
    return tuple(dict.fromkeys(layers))
