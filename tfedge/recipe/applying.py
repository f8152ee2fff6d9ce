"""Apply the stage of a step to a model, training as the recipe says."""

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfedge.data import Data, find_function
from tfedge.models import import_keras, keras_of
from tfedge.recipe.settings import Recipe
from tfedge.recipe.steps import Step, make_stage
from tfedge.report import StageReport
from tfedge.stages._base import Context, Fit
from tfedge.stages._fit import make_fit


@dataclass(frozen=True)
class Kept:
    """What earlier steps gave a model.

    Attributes:
        zeros: Whether it was pruned.
        clusters: Whether it was clustered.
    """

    zeros: bool = False
    clusters: bool = False

    def settings(self, step: Step) -> dict[str, bool]:
        """The settings of quantisation that keep it, unless the step says otherwise."""
        if step.stage != "quantize":
            return {}
        given = {"keep_sparsity": self.zeros, "keep_clusters": self.clusters}
        return {name: True for name, value in given.items() if value and name not in step.settings}


def quantized_by_calibration(step: Step, model: Any, data: Data, kept: Kept, seed: int) -> Any:
    """A model ready for int8, without training.

    Args:
        step: The step `quantize`.
        model: The model; comes out as it was.
        data: Holds the calibration samples.
        kept: What earlier steps gave the model.
        seed: Of the stage.
    """
    stage = make_stage(step, **kept.settings(step))
    prepared, _ = stage.apply(model, Context(data=Data(calibration=data.calibration), seed=seed))
    return prepared


def applied(
    step: Step, strength: Mapping[str, float], model: Any, context: Context, kept: Kept
) -> tuple[Any, StageReport]:
    """A model after a step, and what the stage did.

    Args:
        step: The step.
        strength: The setting that the budget moves, with its value.
        model: The model; comes out as it was.
        context: What the stage may use.
        kept: What earlier steps gave the model, for quantisation to keep.
    """
    changes: dict[str, Any] = {**strength, **kept.settings(step)}
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


# Of a setting that the budget moves: how a step with it is called.
TITLES: Mapping[str, Callable[[str, float], str]] = {
    "sparsity": lambda stage, value: f"prune to {100 * value:.4g} % zeros",
    "threshold": lambda stage, value: f"prune weights below {value:.3g}",
    "number_of_clusters": lambda stage, value: f"cluster to {value:g} values",
    "flops": lambda stage, value: f"{stage.replace('_', ' ')} to {100 * value:.4g} % of the MACs",
    "params": lambda stage, value: f"{stage.replace('_', ' ')} to {100 * value:.4g} % of weights",
}


def title_of(step: Step, strength: Mapping[str, float]) -> str:
    """What a step does, for people.

    Example:
        >>> title_of(Step(stage="prune", settings={"sparsity": 0.8}), {"sparsity": 0.8})
        'prune to 80 % zeros'
    """
    taught = " with a teacher" if step.distill else ""
    for name, value in strength.items():
        if name in TITLES:
            return f"{TITLES[name](step.stage, value)}{taught}"
    names = {"finetune": "train on", "quantize": "quantization-aware training"}
    return f"{names.get(step.stage, step.stage.replace('_', ' '))}{taught}"


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
