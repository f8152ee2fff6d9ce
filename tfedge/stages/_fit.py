"""Make the `fit(model, callbacks)` that stages train with."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfedge.data import Data, Metric, Split, check_data, evaluate
from tfedge.distillation.forms import are_probabilities
from tfedge.errors import DataError, SettingsError, TrainingError
from tfedge.models import check_strategy, import_keras, is_compiled, keras_of, own_objects
from tfedge.stages._base import Context, Fit

Progress = Callable[[int, int, dict[str, Any]], None]

LEARNING_RATE = 1e-3
PROBED = 8  # samples that the form of the outputs is read from


def make_fit(
    data: Data,
    *,
    epochs: int,
    batch_size: int = 32,
    learning_rate: float | None = None,
    optimizer: Any = None,
    loss: Any = None,
    metrics: Sequence[Any] | None = None,
    seed: int = 0,
    verbose: int = 0,
    progress: Progress | None = None,
) -> Fit:
    """A function `fit(model, callbacks)` that compiles a model if it must, and trains it.

    A compiled model keeps its own optimizer, loss and metrics, unless others are given here. An
    uncompiled one gets Adam and the loss that labels and outputs call for.

    Args:
        data: Holds the training split. The evaluation split is not touched.
        epochs: Passes over the training split.
        batch_size: Samples per step.
        learning_rate: Of the optimizer. Default: the model's own; 1e-3 for an uncompiled one.
        optimizer: Name or optimizer of the model's Keras; each fit makes a fresh one of its
            configuration. Default: the model's own, else `"adam"`.
        loss: As `compile` takes it. Default: the model's own, else chosen by the labels.
        metrics: As `compile` takes them. Default: the model's own; accuracy where the loss is
            chosen here, for classes.
        seed: Of the order of samples, dropout and the like; set anew for every fit.
        verbose: Keras's own progress: 0 for none, 1 for a bar, 2 for a line per epoch.
        progress: Called after each epoch with (epochs done, epochs, logs).

    Returns:
        `fit(model, callbacks) -> History`. It raises `TrainingError` if the loss becomes NaN or
        infinite, and leaves the model with the weights of the last epoch before that; `DataError`
        if the data do not fit the model.

    Raises:
        SettingsError: A setting is out of range.
        DataError: There is no training split, or it has no labels.
    """
    check_count(epochs, "epochs")
    check_count(batch_size, "batch_size")
    check_learning_rate(learning_rate)
    train = data.train
    if train is None:
        raise DataError("Training needs `Data.train`. Received: train=None.")

    def fit(model: Any, callbacks: Sequence[Any] = ()) -> Any:
        keras = import_keras(keras_of(model))
        check_strategy(model)
        check_data(model, train)
        keras.utils.set_random_seed(seed)
        _compile(keras, model, train, learning_rate, optimizer, loss, metrics)
        good: list[Any] = []
        watch = _watch(keras, model, good, epochs, progress)
        history = model.fit(
            **train.fit_arguments(batch_size, seed=seed),
            epochs=epochs,
            verbose=verbose,
            callbacks=[watch, *callbacks],
        )
        _check_losses(history.history.get("loss", ()), model, good)
        return history

    return fit


def remember_keras(stage: Any, model: Any) -> None:
    """Note of which Keras the model is that a stage prepares, for `last_keras`."""
    object.__setattr__(stage, "_last_keras", keras_of(model))  # no setting: stages are frozen


def last_keras(stage: Any) -> str:
    """Of which Keras the model was that a stage prepared last; Keras 3 if there was none."""
    return str(vars(stage).get("_last_keras", "keras"))


def measured(model: Any, context: Context, when: str) -> dict[str, float]:
    """The context's metric on its evaluation data, named `<metric>_<when>`; nothing without them.

    Args:
        model: A model of either Keras.
        context: Metric and data.
        when: `"before"`, `"trained"` and the like.
    """
    data = context.data
    if context.metric is None or data is None or data.evaluation is None:
        return {}
    return {f"{context.metric.name}_{when}": scored(model, data.evaluation, context.metric)}


def scored(model: Any, split: Split, metric: Metric, *, batch_size: int | None = None) -> float:
    """A metric of a model of either Keras on labelled data.

    Args:
        model: The model.
        split: Samples with labels.
        metric: The metric.
        batch_size: Samples that the model takes at once. Default: Keras's.
    """

    def predict(x: Any) -> Any:
        return model.predict(_as_model_takes(x), batch_size=batch_size, verbose=0)

    return evaluate(predict, split, metric)


def check_count(value: Any, name: str) -> None:
    """Refuse what is not a whole number from 1.

    Raises:
        SettingsError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingsError(f"`{name}` is a whole number from 1. Received: {value!r}.")


def check_learning_rate(value: Any) -> None:
    """Refuse what is not a positive finite number, `None` aside.

    Raises:
        SettingsError: It is not.
    """
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise SettingsError(f"`learning_rate` is a positive number. Received: {value!r}.")


def choose_loss(keras: Any, y: Any, outputs: Any) -> tuple[Any, list[str]]:
    """The loss and the metrics that labels and outputs call for.

    Args:
        keras: The model's Keras.
        y: Some labels, (samples, …).
        outputs: What the model says of the same samples, (samples, …).

    Returns:
        A loss object, and `["accuracy"]` for classes or nothing for values.

    Example:
        >>> import keras
        >>> loss, metrics = choose_loss(keras, np.array([0, 2]), np.array([[9., 0, 0], [0, 0, 9.]]))
        >>> type(loss).__name__, loss.from_logits, metrics
        ('SparseCategoricalCrossentropy', True, ['accuracy'])
    """
    y, outputs = np.asarray(y), np.asarray(outputs, np.float32)
    classes = outputs.shape[-1]
    whole = bool(np.all(y == np.round(y)))
    if classes > 1 and y.ndim in (outputs.ndim - 1, outputs.ndim):
        logits = not are_probabilities(outputs, "classes")
        indices = y.ndim == outputs.ndim - 1 or y.shape[-1] == 1
        if whole and indices and y.min() >= 0 and y.max() < classes:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
            return loss, ["accuracy"]
        if y.shape == outputs.shape and y.min() >= 0 and np.allclose(y.sum(axis=-1), 1, atol=1e-3):
            return keras.losses.CategoricalCrossentropy(from_logits=logits), ["accuracy"]
    if classes == 1 and whole and set(np.unique(y).tolist()) <= {0, 1}:
        logits = not are_probabilities(outputs, "binary")
        return keras.losses.BinaryCrossentropy(from_logits=logits), ["accuracy"]
    return keras.losses.MeanSquaredError(), []


def _compile(
    keras: Any,
    model: Any,
    train: Any,
    learning_rate: float | None,
    optimizer: Any,
    loss: Any,
    metrics: Sequence[Any] | None,
) -> None:
    compiled = is_compiled(model)
    if compiled and optimizer is None and loss is None and metrics is None:
        if learning_rate is not None:
            _set_learning_rate(model.optimizer, learning_rate)
        return
    chosen = _fresh(keras, optimizer, model.optimizer if compiled else None)
    if learning_rate is not None:
        _set_learning_rate(chosen, learning_rate)
    settings = _own_settings(keras, model) if compiled else {}
    if loss is None and not compiled:
        loss, settings["metrics"] = _loss_by_data(keras, model, train)
    given = {"optimizer": chosen, "loss": loss, "metrics": metrics}
    settings |= {name: value for name, value in given.items() if value is not None}
    model.compile(**settings)


def _own_settings(keras: Any, model: Any) -> dict[str, Any]:
    """What a model is compiled with, optimizer aside: metrics, loss weights and the rest."""
    config = dict(model.get_compile_config())
    del config["optimizer"]
    config.pop("loss", None)
    objects = own_objects(model)
    settings = keras.saving.deserialize_keras_object(
        config, custom_objects=objects, safe_mode=False
    )
    return {**settings, "loss": model.loss}


def _loss_by_data(keras: Any, model: Any, train: Any) -> tuple[Any, list[str]]:
    rows = next(train.batches(PROBED, shuffle=True))
    if len(rows) < 2:
        raise DataError(
            "Training needs labels. Received: a training split with `x` only. Give `y` too."
        )
    outputs = model(_as_model_takes(rows[0]), training=False)
    if isinstance(outputs, dict | list | tuple) or isinstance(rows[1], dict | list | tuple):
        raise SettingsError(
            f"The loss of a model with several outputs is yours to say: `{model.name}` is not "
            "compiled. Give `loss=` to `make_fit`, or compile the model."
        )
    return choose_loss(keras, rows[1], outputs)


def _as_model_takes(x: Any) -> Any:
    return list(x) if isinstance(x, tuple) else x


def _fresh(keras: Any, optimizer: Any, own: Any) -> Any:
    """An optimizer of its own for every fit."""
    wanted = optimizer if optimizer is not None else own
    if wanted is None:
        return keras.optimizers.Adam(LEARNING_RATE)
    if isinstance(wanted, str):
        return keras.optimizers.get(wanted)
    if not isinstance(wanted, keras.optimizers.Optimizer):
        raise SettingsError(
            f"`optimizer` is a name or an optimizer of `{keras.__name__}`, as the model is. "
            f"Received: {type(wanted).__module__}.{type(wanted).__name__}."
        )
    return type(wanted).from_config(wanted.get_config())


def _set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    try:
        optimizer.learning_rate = learning_rate
    except TypeError:  # Keras's own refusal where a schedule sets the rate
        raise SettingsError(
            f"`learning_rate={learning_rate}` cannot be set: the optimizer "
            f"`{type(optimizer).__name__}` follows a learning rate schedule. Give `optimizer=` "
            "too, or leave `learning_rate` out."
        ) from None


def _watch(keras: Any, model: Any, good: list[Any], epochs: int, progress: Progress | None) -> Any:
    """The callback that ends a training whose loss is lost, and reports how far it is.

    `good` gets the weights of the last epoch whose loss was finite; first those from before.
    """

    def begin(logs: dict[str, Any] | None) -> None:
        good[:] = model.get_weights()

    def after_epoch(epoch: int, logs: dict[str, Any] | None) -> None:
        logs = logs or {}
        if not math.isfinite(logs.get("loss", 0.0)):
            model.stop_training = True
            return
        weights = model.get_weights()
        if _finite(weights):  # the last step may have spoiled them, after the loss was taken
            good[:] = weights
        if progress is not None:
            progress(epoch + 1, epochs, logs)

    return keras.callbacks.LambdaCallback(on_train_begin=begin, on_epoch_end=after_epoch)


def _finite(weights: Sequence[Any]) -> bool:
    return all(np.isfinite(w).all() for w in weights if w.dtype.kind == "f")


def _check_losses(losses: Sequence[float], model: Any, good: Sequence[Any]) -> None:
    for epoch, loss in enumerate(losses):
        if not math.isfinite(loss):
            model.set_weights(good)
            raise TrainingError(
                f"The loss of `{model.name}` became {loss} in epoch {epoch + 1}. The weights are "
                "back as they were before that epoch. Lower the learning rate, and check that "
                "inputs and labels are finite and scaled."
            )
