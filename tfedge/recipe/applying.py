"""Apply the stage of a step to a model, training as the recipe says."""

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfedge.data import Data, find_function
from tfedge.models import import_keras, keras_of
from tfedge.recipe.settings import Recipe
from tfedge.recipe.steps import Step, make_stage
from tfedge.report import StageReport
from tfedge.stages._base import Context, Fit
from tfedge.stages._fit import make_fit


def applied(
    step: Step, strength: Mapping[str, float], model: Any, context: Context, sparse: bool
) -> tuple[Any, StageReport]:
    """A model after a step, and what the stage did.

    Args:
        step: The step.
        strength: The setting that the budget moves, with its value.
        model: The model; comes out as it was.
        context: What the stage may use.
        sparse: Whether the model was pruned: its zeros are kept.
    """
    changes: dict[str, Any] = dict(strength)
    if step.stage == "quantize" and sparse:
        changes["keep_sparsity"] = step.settings.get("keep_sparsity", True)
    stage = make_stage(step, **changes)
    if step.stage == "finetune" or (step.stage == "prune" and stage.at_once):
        if step.stage == "finetune":
            model = stage.prepare(model)
        else:
            model, _ = stage.apply(model, context)
        if context.fit is not None:
            context.fit(model, stage.callbacks())
        return stage.finish(model)
    return stage.apply(model, context)


def title_of(step: Step, strength: Mapping[str, float]) -> str:
    """What a step does, for people.

    Example:
        >>> title_of(Step(stage="prune", settings={"sparsity": 0.8}), {"sparsity": 0.8})
        'prune to 80 % zeros'
    """
    if "sparsity" in strength:
        return f"prune to {100 * strength['sparsity']:.4g} % zeros"
    if "threshold" in strength:
        return f"prune weights below {strength['threshold']:.3g}"
    names = {"finetune": "train on", "quantize": "quantization-aware training"}
    return names.get(step.stage, step.stage)


def fit_of(
    recipe: Recipe, step: Step, data: Data, seed: int, progress: Callable[[float], None]
) -> Fit:
    """The `fit(model, callbacks)` of a step.

    Args:
        recipe: Says how stages train.
        step: May say otherwise.
        data: Holds the training samples.
        seed: Of the order of samples, dropout and the like.
        progress: Called after each epoch with the fraction that is done.
    """
    if recipe.fit is not None:
        own: Fit = find_function(recipe.fit)
        return own
    settings = {**vars(recipe.train), **step.train}
    if step.stage == "finetune":
        for name in ("epochs", "learning_rate", "batch_size"):
            settings[name] = step.settings.get(name, settings[name])
    return make_fit(
        data, seed=seed, progress=lambda done, epochs, logs: progress(done / epochs), **settings
    )


def logged(fit: Fit, folder: Path, histories: list[Any]) -> Fit:
    """`fit` that logs for TensorBoard and keeps what it returned.

    Args:
        fit: `fit(model, callbacks)`.
        folder: Where logs go; what is there is removed.
        histories: Gets Keras's `History` of each call.
    """

    def fit_and_log(model: Any, callbacks: Sequence[Any] = ()) -> Any:
        history = fit(model, [*callbacks, *_tensorboard(model, folder)])
        histories.append(history)
        return history

    return fit_and_log


def _tensorboard(model: Any, folder: Path) -> list[Any]:
    """The callback that writes logs for TensorBoard, where that is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return []
    shutil.rmtree(folder, ignore_errors=True)
    keras = import_keras(keras_of(model))
    return [keras.callbacks.TensorBoard(str(folder), write_graph=False)]


def curves_of(histories: Sequence[Any]) -> dict[str, tuple[float, ...]]:
    """What Keras logged, epoch by epoch, over all fits of a step."""
    curves: dict[str, tuple[float, ...]] = {}
    for history in histories:
        for name, values in (history.history if history is not None else {}).items():
            curves[name] = (*curves.get(name, ()), *(float(value) for value in values))
    return curves
