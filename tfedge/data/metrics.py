"""Judge predictions by a figure of merit, for any task."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tfedge.data import figures
from tfedge.data.functions import find_function, is_reference
from tfedge.errors import MissingExtraError, SettingsError, did_you_mean

_CHUNK = 4096  # samples that a Keras metric is given at once
_TOP_K = re.compile(r"top_?(\d+)(_accuracy)?")

_NUMPY: dict[str, tuple[bool, Callable[..., float]]] = {
    "accuracy": (True, figures.accuracy),
    "acc": (True, figures.accuracy),
    "sparse_categorical_accuracy": (True, figures.accuracy),
    "categorical_accuracy": (True, figures.accuracy),
    "binary_accuracy": (True, figures.binary_accuracy),
    "top_k_categorical_accuracy": (True, figures.top_k_accuracy),
    "sparse_top_k_categorical_accuracy": (True, figures.top_k_accuracy),
    "mean_iou": (True, figures.mean_iou),
    "mae": (False, figures.mean_absolute_error),
    "mean_absolute_error": (False, figures.mean_absolute_error),
    "mse": (False, figures.mean_squared_error),
    "mean_squared_error": (False, figures.mean_squared_error),
    "rmse": (False, figures.root_mean_squared_error),
    "root_mean_squared_error": (False, figures.root_mean_squared_error),
}

# Name as Keras takes it: (higher is better, settings); found without regard to case and `_`.
_KERAS: dict[str, tuple[bool, dict[str, Any]]] = {
    "auc": (True, {}),
    "precision": (True, {}),
    "recall": (True, {}),
    "true_positives": (True, {}),
    "true_negatives": (True, {}),
    "false_positives": (False, {}),
    "false_negatives": (False, {}),
    "f1_score": (True, {"average": "macro"}),
    "fbeta_score": (True, {"average": "macro"}),
    "binary_io_u": (True, {}),
    "r2_score": (True, {}),
    "cosine_similarity": (True, {}),
    "pearson_correlation": (True, {}),
    "concordance_correlation": (True, {}),
    "mean_absolute_percentage_error": (False, {}),
    "mape": (False, {}),
    "mean_squared_logarithmic_error": (False, {}),
    "msle": (False, {}),
    "log_cosh_error": (False, {}),
    "poisson": (False, {}),
    "kl_divergence": (False, {}),
    "hinge": (False, {}),
    "squared_hinge": (False, {}),
    "categorical_hinge": (False, {}),
    "bce": (False, {}),
    "binary_crossentropy": (False, {}),
    "categorical_crossentropy": (False, {}),
    "sparse_categorical_crossentropy": (False, {}),
}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of merit with its direction.

    Attributes:
        name: What to call it.
        higher_is_better: Whether more is better.
        function: `function(y_true, y_pred) -> float` on whole arrays, first axis the samples. Where
            it has an argument `sample_weight`, it is given the weights.

    Example:
        >>> metric = find_metric("accuracy")
        >>> metric.worse_by(0.98, 0.97) > 0
        True
    """

    name: str
    higher_is_better: bool
    function: Callable[..., float]

    def worse_by(self, reference: float, candidate: float) -> float:
        """How much worse the candidate is, in the metric's unit; negative if it is better."""
        return reference - candidate if self.higher_is_better else candidate - reference


def find_metric(metric: str | Callable[..., float] | Metric) -> Metric:
    """A metric by name, by function, or as it is.

    Args:
        metric: One of

            - `"accuracy"`, which reads class numbers, one-hot and binary labels; also
              `"binary_accuracy"`, `"top_5_accuracy"` (or another number), `"mean_iou"`, `"mae"`,
              `"mse"`, `"rmse"`: these are NumPy and need no TensorFlow;
            - another Keras metric by name (`"auc"`, `"f1_score"`, …), computed by Keras;
            - `"max:module:function"` or `"min:module:function"`, with the direction. It can be left
              out where the function has an attribute `higher_is_better`;
            - such a function itself, or a `Metric`.

    Raises:
        SettingsError: There is no such metric, or its direction is not known.

    Example:
        >>> find_metric("mae").higher_is_better
        False
        >>> find_metric("top_2_accuracy").function(
        ...     np.array([2, 0]), np.array([[0.1, 0.5, 0.4], [0.1, 0.5, 0.4]])
        ... )
        0.5
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        _refuse_keras_object(metric)
        name = getattr(metric, "__name__", type(metric).__name__)
        return Metric(
            name=name, higher_is_better=_own_direction(metric, name, None), function=metric
        )
    if not isinstance(metric, str):
        raise SettingsError(
            f"A metric is a name, `module:function` or a function. Received: {metric!r}."
        )
    stated, text = _split_direction(metric)
    if is_reference(text):
        function = find_function(text)
        return Metric(
            name=text, higher_is_better=_own_direction(function, text, stated), function=function
        )
    return _named_metric(text, stated)


def _named_metric(text: str, stated: bool | None) -> Metric:
    key = _squash(text)
    top = _TOP_K.fullmatch(text.lower())
    if top:
        function: Callable[..., float] = partial(figures.top_k_accuracy, k=int(top[1]))
        return Metric(name=text, higher_is_better=_agreed(text, True, stated), function=function)
    for name, (higher, function) in _NUMPY.items():
        if _squash(name) == key:
            higher = _agreed(text, higher, stated)
            return Metric(name=text, higher_is_better=higher, function=function)
    for name, (higher, settings) in _KERAS.items():
        if _squash(name) == key:
            higher = _agreed(text, higher, stated)
            function = partial(_keras_figure, name, settings)
            return Metric(name=text, higher_is_better=higher, function=function)
    if stated is not None:
        _keras_metric(text, {})
        return Metric(name=text, higher_is_better=stated, function=partial(_keras_figure, text, {}))
    known = [*_NUMPY, *_KERAS, "top_5_accuracy"]
    raise SettingsError(
        f"There is no metric {text!r} whose direction is known.{did_you_mean(text, known)} Name "
        f"another Keras metric with its direction, `max:{text}` or `min:{text}`, or give "
        "`module:function`."
    )


def _refuse_keras_object(metric: Any) -> None:
    """A Keras `Metric` object keeps state and is called with a batch: ask for a function."""
    if any(base.__name__ == "Metric" for base in type(metric).__mro__):
        raise SettingsError(
            f"A metric is a function of all labels and predictions. Received: the Keras object "
            f"{type(metric).__name__}. Give its name, or a function that makes one anew."
        )


def _keras_figure(
    name: str,
    settings: dict[str, Any],
    y_true: np.ndarray,
    y_pred: np.ndarray,
    sample_weight: np.ndarray | None = None,
) -> float:
    """A figure that Keras computes, a chunk of samples at a time."""
    metric = _keras_metric(name, settings)
    for start in range(0, len(y_true), _CHUNK):
        part = slice(start, start + _CHUNK)
        weight = None if sample_weight is None else sample_weight[part]
        metric.update_state(y_true[part], y_pred[part], sample_weight=weight)
    return np.asarray(metric.result())  # type: ignore[return-value]  # its size is checked


def _keras_metric(name: str, settings: dict[str, Any]) -> Any:
    try:
        import keras
    except ImportError as error:
        raise MissingExtraError(
            f'The metric {name!r} is computed by Keras: pip install "tfedge[train]".'
        ) from error
    try:
        metric = keras.metrics.get({"class_name": name, "config": settings} if settings else name)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"Keras has no metric {name!r} that works without settings ({error}). Write a function "
            "that calls it, and give `max:module:function` or `min:module:function`."
        ) from error
    return metric


def _split_direction(text: str) -> tuple[bool | None, str]:
    for prefix, higher in (("max:", True), ("min:", False)):
        if text.startswith(prefix) and len(text) > len(prefix):
            return higher, text[len(prefix) :]
    return None, text


def _own_direction(function: Any, name: str, stated: bool | None) -> bool:
    own = getattr(function, "higher_is_better", None)  # an attribute that functions may carry
    if own is None and stated is None:
        raise SettingsError(
            f"The direction of the metric {name!r} must be said: name it as `max:module:function` "
            "or `min:module:function`, give the function an attribute `higher_is_better`, or pass "
            "`Metric(name=…, higher_is_better=…, function=…)`."
        )
    return _agreed(name, own if own is not None else stated, stated)


def _agreed(name: str, known: Any, stated: bool | None) -> bool:
    if stated is not None and bool(known) != stated:
        right = "max" if known else "min"
        raise SettingsError(
            f"The metric {name!r} is better when {'higher' if known else 'lower'}. Received: "
            f"{'max' if stated else 'min'}:{name}. Write {right}:{name}."
        )
    return bool(known)


def _squash(name: str) -> str:
    return name.replace("_", "").lower()
