"""Evaluate predictions on labelled data."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from tfedge.data.metrics import Metric, find_metric
from tfedge.data.nests import Arrays, as_arrays, concatenate, named_leaves
from tfedge.data.splits import Split
from tfedge.errors import DataError, TfedgeError, TfedgeWarning, did_you_mean


@overload
def evaluate(
    predict: Callable[[Any], Any],
    split: Split,
    metric: Metric | str,
    *,
    batch_size: int = ...,
    output_names: Sequence[str] | None = ...,
) -> float: ...
@overload
def evaluate(
    predict: Callable[[Any], Any],
    split: Split,
    metric: Mapping[str, Metric | str],
    *,
    batch_size: int = ...,
    output_names: Sequence[str] | None = ...,
) -> dict[str, float]: ...
def evaluate(
    predict: Callable[[Any], Any],
    split: Split,
    metric: Metric | str | Mapping[str, Metric | str],
    *,
    batch_size: int = 1024,
    output_names: Sequence[str] | None = None,
) -> float | dict[str, float]:
    """The figure of merit of predictions on labelled data.

    Args:
        predict: Takes a batch of inputs as `split.x` has them, returns the predictions: an array, a
            list of arrays (one per output) or a dict by output name.
        split: Samples with labels.
        metric: The metric, or its name; for several outputs a dict from output name to metric.
        batch_size: Samples per call of `predict`. Default: 1024.
        output_names: Names of the outputs in the order of a list that `predict` returns; needed
            where `metric` is a dict and predictions are a list.

    Returns:
        The figure; a dict of figures by output name if `metric` is a dict.

    Raises:
        DataError: There are no labels, outputs do not fit the metric, or the figure is nan.

    Example:
        >>> split = Split(np.array([[0.2], [0.9]]), np.array([0, 1]))
        >>> evaluate(lambda x: x, split, "accuracy")
        1.0
    """
    y_true, y_pred, weight = _predictions(predict, split, batch_size)
    if isinstance(metric, Mapping):
        truths = _by_name(y_true, output_names, "labels")
        guesses = _by_name(y_pred, output_names, "predictions")
        return {
            name: _figure(find_metric(m), _output(truths, name), _output(guesses, name), weight)
            for name, m in metric.items()
        }
    return _figure(find_metric(metric), y_true, y_pred, weight)


def _predictions(
    predict: Callable[[Any], Any], split: Split, batch_size: int
) -> tuple[Arrays, Arrays, np.ndarray | None]:
    """Labels, predictions and weights of all samples, in one order."""
    truths: list[Arrays] = []
    guesses: list[Arrays] = []
    weights: list[Arrays] = []
    for rows in split.batches(batch_size):
        if len(rows) == 1:
            raise DataError(
                "Evaluation needs labels. Received: data without `y`. Compare two models by "
                "`sqnr_db` and `agreement` instead."
            )
        guesses.append(as_arrays(predict(rows[0]), "predictions"))
        truths.append(rows[1])
        weights.extend(rows[2:])
    y_true, y_pred = concatenate(truths), concatenate(guesses)
    for label, array in named_leaves(y_pred, "predictions"):
        if array.shape[:1] != (len(split),):
            raise DataError(
                f"`predict` must return one row for each of the {len(split)} samples. Received: "
                f"`{label}` of shape {array.shape}."
            )
    weight = concatenate(weights) if weights else None
    return y_true, y_pred, weight  # type: ignore[return-value]  # weights are one array


def _by_name(
    arrays: Arrays, output_names: Sequence[str] | None, what: str
) -> dict[str, np.ndarray]:
    if isinstance(arrays, dict):
        return arrays
    parts = arrays if isinstance(arrays, tuple) else (arrays,)
    if output_names is None or len(output_names) != len(parts):
        raise DataError(
            f"Metrics by output name need a name for each of the {len(parts)} arrays of {what}. "
            f"Received: output_names={output_names!r}."
        )
    return dict(zip(output_names, parts, strict=True))


def _output(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise DataError(
            f"There is no output {name!r}. Outputs: {', '.join(arrays)}."
            f"{did_you_mean(name, arrays)}"
        )
    return arrays[name]


def _figure(
    metric: Metric, y_true: Arrays, y_pred: Arrays, sample_weight: np.ndarray | None
) -> float:
    given = {}
    if sample_weight is not None:
        if _takes_weights(metric.function):
            given = {"sample_weight": sample_weight}
        else:
            warnings.warn(
                f"The metric {metric.name!r} has no argument `sample_weight`: the weights of the "
                "data do not count in it.",
                TfedgeWarning,
                stacklevel=4,
            )
    try:
        figure = metric.function(y_true, y_pred, **given)
    except (TfedgeError, Warning):
        raise
    except Exception as error:  # a metric of the user's or of Keras can raise anything
        raise DataError(
            f"The metric {metric.name!r} failed on labels {_shapes(y_true)} and predictions "
            f"{_shapes(y_pred)}: {type(error).__name__}: {error}."
        ) from error
    if np.size(figure) != 1:
        raise DataError(
            f"The metric {metric.name!r} must give one number. Received: shape {np.shape(figure)}."
        )
    figure = float(np.reshape(np.asarray(figure), ()))
    if math.isnan(figure):
        raise DataError(
            f"The metric {metric.name!r} came out as nan. Look for nan in the predictions, or for "
            "a class without samples."
        )
    return figure


def _takes_weights(function: Callable[..., float]) -> bool:
    try:
        return "sample_weight" in inspect.signature(function).parameters
    except ValueError:  # functions written in C have no signature
        return False


def _shapes(arrays: Arrays) -> str:
    return ", ".join(str(array.shape) for _, array in named_leaves(arrays, ""))
