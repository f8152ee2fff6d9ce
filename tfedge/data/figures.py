"""Compute figures of merit in NumPy, without TensorFlow."""

import math
import warnings

import numpy as np

from tfedge.data.sampling import is_one_hot
from tfedge.errors import DataError, TfedgeWarning


def sqnr_db(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Signal to quantisation noise ratio in decibels: 10 log10(Σ reference² / Σ difference²).

    Args:
        reference: Outputs of the original.
        candidate: Outputs of the other, of the same shape.

    Returns:
        The ratio; infinite where both are equal, minus infinite where only the reference is zero.

    Example:
        >>> round(sqnr_db(np.array([10.0, 0.0]), np.array([9.0, 0.0])), 6)
        20.0
    """
    reference, candidate = _same_shape(reference, candidate)
    signal = float(np.square(reference).sum())
    noise = float(np.square(reference - candidate).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def agreement(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Fraction of samples (or pixels) for which both outputs choose the same class.

    Args:
        reference: Outputs of the original; classes along the last axis. A last axis of one is a
            binary output, decided at 0.5.
        candidate: Outputs of the other, of the same shape.

    Example:
        >>> agreement(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[0.4, 0.6], [0.3, 0.7]]))
        0.5
    """
    reference, candidate = _same_shape(reference, candidate)
    return float((_decisions(reference) == _decisions(candidate)).mean())


def accuracy(
    y_true: np.ndarray, y_pred: np.ndarray, sample_weight: np.ndarray | None = None
) -> float:
    """Fraction of right decisions, for class numbers, one-hot and binary labels.

    Args:
        y_true: Class numbers `(…)` or `(…, 1)`, one-hot `(…, classes)`, or 0 and 1 for a binary
            output.
        y_pred: Scores `(…, classes)`; or `(…, 1)` or `(…)`, decided at 0.5 as Keras does.
        sample_weight: Weight of each sample. Default: all one.

    Raises:
        DataError: The shapes do not go together, or labels name several classes at once.
    """
    if y_pred.ndim < 2 or y_pred.shape[-1] == 1:
        return binary_accuracy(y_true, y_pred, sample_weight)
    return _weighted(_class_labels(y_true, y_pred) == y_pred.argmax(axis=-1), sample_weight)


def binary_accuracy(
    y_true: np.ndarray, y_pred: np.ndarray, sample_weight: np.ndarray | None = None
) -> float:
    """Fraction of right yes-or-no decisions, each output decided at 0.5 as Keras does.

    Warns:
        TfedgeWarning: Predictions lie outside of [0, 1] and look like logits.
    """
    y_true, y_pred = _aligned(y_true, y_pred)
    if y_pred.size and (y_pred.min() < 0 or y_pred.max() > 1):
        warnings.warn(
            f"Binary predictions range over [{y_pred.min():.4g}, {y_pred.max():.4g}] and look like "
            "logits; they are decided at 0.5. Give the model a sigmoid, or a metric of your own.",
            TfedgeWarning,
            stacklevel=2,
        )
    return _weighted((y_true > 0.5) == (y_pred > 0.5), sample_weight)


def top_k_accuracy(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    sample_weight: np.ndarray | None = None,
    *,
    k: int = 5,
) -> float:
    """Fraction of samples whose class is among the `k` highest scores."""
    labels = _class_labels(y_true, y_pred)
    score = np.take_along_axis(y_pred, labels[..., np.newaxis], axis=-1)
    return _weighted((y_pred > score).sum(axis=-1) < k, sample_weight)


def mean_iou(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Mean over classes of intersection over union, for segmentation.

    Args:
        y_true: Class of each pixel `(samples, …)` or `(samples, …, 1)`, or one-hot.
        y_pred: Scores `(samples, …, classes)`.

    Returns:
        The mean over the classes that occur in labels or predictions.
    """
    labels, guesses = _class_labels(y_true, y_pred).reshape(-1), y_pred.argmax(axis=-1).reshape(-1)
    classes = y_pred.shape[-1]
    both = np.bincount(labels[labels == guesses], minlength=classes)
    union = np.bincount(labels, minlength=classes) + np.bincount(guesses, minlength=classes) - both
    return float((both[union > 0] / union[union > 0]).mean())


def mean_absolute_error(
    y_true: np.ndarray, y_pred: np.ndarray, sample_weight: np.ndarray | None = None
) -> float:
    """Mean of |label − prediction|."""
    y_true, y_pred = _aligned(y_true, y_pred)
    return _weighted(np.abs(y_true - y_pred), sample_weight)


def mean_squared_error(
    y_true: np.ndarray, y_pred: np.ndarray, sample_weight: np.ndarray | None = None
) -> float:
    """Mean of (label − prediction)²."""
    y_true, y_pred = _aligned(y_true, y_pred)
    return _weighted(np.square(y_true - y_pred), sample_weight)


def root_mean_squared_error(
    y_true: np.ndarray, y_pred: np.ndarray, sample_weight: np.ndarray | None = None
) -> float:
    """Root of the mean of (label − prediction)²."""
    return math.sqrt(mean_squared_error(y_true, y_pred, sample_weight))


def _weighted(values: np.ndarray, sample_weight: np.ndarray | None) -> float:
    """Mean over all values, each sample's own mean counted by its weight."""
    if sample_weight is None:
        return float(np.mean(values, dtype=np.float64))
    each = values.reshape(len(values), -1).mean(axis=1, dtype=np.float64)
    weight = np.asarray(sample_weight, np.float64).reshape(-1)
    if len(weight) != len(each) or weight.sum() <= 0:
        raise DataError(
            f"`sample_weight` must hold one weight for each of the {len(each)} samples, not all "
            f"zero. Received: {len(weight)} that sum to {weight.sum():.4g}."
        )
    return float((each * weight).sum() / weight.sum())


def _class_labels(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Class numbers of labels in any form, of shape `y_pred.shape[:-1]`, int64."""
    classes = y_pred.shape[-1]
    if y_true.shape == y_pred.shape:
        if y_true.dtype.kind in "biu" and not is_one_hot(y_true):
            raise DataError(
                "Labels name several classes at once, or none, in some row. Judge such outputs by "
                "the metric `binary_accuracy`."
            )
        return y_true.argmax(axis=-1)
    if y_true.shape not in (y_pred.shape[:-1], (*y_pred.shape[:-1], 1)):
        raise DataError(
            f"Labels must have the shape {y_pred.shape[:-1]} (class numbers) or {y_pred.shape} "
            f"(one-hot) for predictions {y_pred.shape}. Received: {y_true.shape}."
        )
    labels = y_true.reshape(y_pred.shape[:-1]).astype(np.int64)
    if labels.size and (np.min(labels) < 0 or np.max(labels) >= classes):
        raise DataError(
            f"Labels must be class numbers from 0 to {classes - 1} for {classes} scores. Received: "
            f"{np.min(labels)} to {np.max(labels)}. Number the classes from 0, or give data made "
            "for this model."
        )
    return labels


def _aligned(y_true: np.ndarray, y_pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 of one shape; a last axis of one may be missing in one of them."""
    if y_true.shape != y_pred.shape and y_pred.shape in ((*y_true.shape, 1), y_true.shape[:-1]):
        y_true = y_true.reshape(y_pred.shape)
    return _same_shape(y_true, y_pred, "Labels and predictions")


def _same_shape(
    first: np.ndarray, second: np.ndarray, what: str = "Both outputs"
) -> tuple[np.ndarray, np.ndarray]:
    if np.shape(first) != np.shape(second):
        raise DataError(
            f"{what} must have one shape. Received: {np.shape(first)} and {np.shape(second)}."
        )
    return np.asarray(first, np.float64), np.asarray(second, np.float64)


def _decisions(outputs: np.ndarray) -> np.ndarray:
    if outputs.ndim < 2 or outputs.shape[-1] == 1:
        return outputs > 0.5
    return outputs.argmax(axis=-1)
