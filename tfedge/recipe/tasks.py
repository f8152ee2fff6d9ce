"""Tell what each output of a model is for, from its labels and what it says of the same samples."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfedge.report import Record
from tfedge.stages._fit import choose_loss

POINTS = 1.0  # of a percent
RELATIVE = "5 %"
LOSSES = {
    "SparseCategoricalCrossentropy": "sparse_categorical_crossentropy",
    "CategoricalCrossentropy": "categorical_crossentropy",
    "BinaryCrossentropy": "binary_crossentropy",
}


@dataclass(frozen=True, kw_only=True)
class Task(Record):
    """What an output is for, and how it is judged.

    Attributes:
        kind: `"classes"`, `"yes or no"`, `"several classes at once"` or `"values"`.
        metric: The usual figure of merit.
        max_drop: What may be lost of it, as in a recipe.
        loss: Name of the loss that labels and outputs call for; `None` where it has to be a loss on
            logits, which no name says.
        why: How that was found, a sentence.
        logits: Whether yes-or-no outputs lie outside of [0, 1].
        said: Whether a recipe has to name the loss, because training would choose another one.
    """

    kind: str
    metric: str
    max_drop: float | str
    loss: str | None
    why: str
    logits: bool = False
    said: bool = False


def task_of(keras: Any, y: np.ndarray, outputs: np.ndarray) -> Task:
    """The task of one output.

    Args:
        keras: The model's Keras.
        y: Labels of some samples, (samples, …).
        outputs: What the model says of them, (samples, …).

    Example:
        >>> import keras
        >>> task_of(keras, np.array([0.2, 1.7]), np.array([[0.1], [1.5]])).metric
        'mae'
    """
    outputs = np.asarray(outputs, np.float32)
    if outputs.ndim == 1:
        outputs = outputs[:, np.newaxis]
    loss, _ = choose_loss(keras, y, outputs)
    name = LOSSES.get(type(loss).__name__)
    if name is None:
        return _several_or_values(y, outputs)
    logits = bool(loss.get_config().get("from_logits"))
    form = "logits" if logits else "probabilities"
    known = None if logits else name
    if name == "binary_crossentropy":
        why = f"the labels are 0 and 1, the output is one {'logit' if logits else 'probability'}"
        return Task(
            kind="yes or no",
            metric="accuracy",
            max_drop=POINTS,
            loss=known,
            why=why,
            logits=logits,
        )
    labels = "class numbers" if name.startswith("sparse") else "one-hot"
    if logits and outputs.min() >= 0 and outputs.max() <= 1:
        return Task(
            kind="classes",
            metric="accuracy",
            max_drop=POINTS,
            loss=name if name.startswith("sparse") else "binary_crossentropy",
            why=f"the labels are {labels}, the outputs {outputs.shape[-1]} sigmoids",
            said=True,
        )
    why = f"the labels are {labels}, the outputs {form} of {outputs.shape[-1]} classes"
    return Task(kind="classes", metric="accuracy", max_drop=POINTS, loss=known, why=why)


def _several_or_values(y: np.ndarray, outputs: np.ndarray) -> Task:
    several = outputs.shape[-1] > 1 and y.shape == outputs.shape
    if several and set(np.unique(y).tolist()) == {0, 1}:
        logits = bool(outputs.min() < 0 or outputs.max() > 1)
        return Task(
            kind="several classes at once",
            metric="binary_accuracy",
            max_drop=POINTS,
            loss=None if logits else "binary_crossentropy",
            why=f"the labels are rows of 0 and 1 for {outputs.shape[-1]} outputs",
            logits=logits,
            said=True,
        )
    return Task(
        kind="values",
        metric="mae",
        max_drop=RELATIVE,
        loss="mse",
        why=f"the labels are values from {np.min(y):.4g} to {np.max(y):.4g}",
    )


def expected_task(outputs: np.ndarray, loss: str) -> Task:
    """The task that an output probably has, where there are no labels to tell.

    Args:
        outputs: What the model says of some inputs, (samples, …).
        loss: Name of the loss that it was compiled with; empty without.
    """
    loss = loss.replace("_", "").lower()
    probabilities = is_distribution(outputs)
    if probabilities or "categorical" in loss:
        why = "its outputs are probabilities that add up to 1" if probabilities else f"loss {loss}"
        return Task(
            kind="classes",
            metric="accuracy",
            max_drop=POINTS,
            loss="sparse_categorical_crossentropy" if probabilities else None,
            why=why,
        )
    if "binarycrossentropy" in loss:
        return Task(
            kind="yes or no" if outputs.shape[-1] == 1 else "several classes at once",
            metric="binary_accuracy",
            max_drop=POINTS,
            loss="binary_crossentropy",
            why="it was trained with binary_crossentropy",
        )
    return Task(
        kind="values",
        metric="mae",
        max_drop=RELATIVE,
        loss="mse",
        why="its outputs are no probabilities of classes",
    )


def is_distribution(outputs: np.ndarray) -> bool:
    """Whether outputs look like a softmax: probabilities of two classes or more that sum to 1.

    Example:
        >>> is_distribution(np.array([[0.25, 0.75]])), is_distribution(np.array([[0.5, 3.0]]))
        (True, False)
    """
    if outputs.ndim < 2 or outputs.shape[-1] < 2 or outputs.min() < 0:
        return False
    return bool(np.allclose(outputs.sum(axis=-1), 1, atol=1e-3))
