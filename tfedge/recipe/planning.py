"""Say beforehand what a recipe would do: steps, skipped layers, time and disk."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfedge.data import Data, check_data, find_function
from tfedge.data.functions import is_reference
from tfedge.errors import SettingsError
from tfedge.models import check_finite, copy_model, load_model
from tfedge.recipe.judge import Judge
from tfedge.recipe.loading import can_train, load_data
from tfedge.recipe.loop import MOST_TRIALS
from tfedge.recipe.settings import Recipe
from tfedge.recipe.steps import Step, make_stage
from tfedge.recipe.targets import fit_recipe
from tfedge.report import Record, Skipped
from tfedge.stages._base import AbstractTrainedStage, Context
from tfedge.stages._fit import make_fit

TIMED_SAMPLES = 256
CONVERSION_SECONDS = 1e-6  # per weight, on top of a second


@dataclass(frozen=True, kw_only=True)
class PlannedStep(Record):
    """One step of a recipe before it is done.

    Attributes:
        step: Its name.
        what: What it does.
        changes: Layers that it changes; `None` where it changes none by itself.
        skips: Layers that it leaves alone.
        reasons: Why, to the names of the layers.
        training_steps: Optimizer steps at most.
        seconds: Time at most, from a short training here.
        disk_bytes: Disk at most.
    """

    step: str
    what: str
    changes: int | None = None
    skips: int | None = None
    reasons: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    training_steps: int = 0
    seconds: float = 0.0
    disk_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class PlanReport(Record):
    """What a recipe would do.

    Attributes:
        name: Name of the recipe.
        rows: One per step and file.
        seconds: Sum of the rows.
        disk_bytes: Sum of the rows.
        notes: Sentences for the reader.
    """

    name: str
    rows: tuple[PlannedStep, ...]
    seconds: float
    disk_bytes: int
    notes: tuple[str, ...]


def plan(recipe: Recipe, *, progress: Callable[[str, float], None] | None = None) -> PlanReport:
    """What a recipe would do, without doing it. Writes nothing.

    Args:
        recipe: The recipe.
        progress: Called with a sentence and the fraction that is done.

    Returns:
        The steps with what each changes and skips, and estimates of time and disk at most.

    Raises:
        TfedgeError: What `run` would refuse before its first step.
    """
    say = progress or (lambda what, fraction: None)
    say("loading the model", 0.1)
    model = _model(recipe)
    check_finite(model)
    say("loading the data", 0.3)
    data, _ = load_data(recipe, model)
    notes = list(data.notes)
    Judge(data.evaluation, recipe.metric, model)  # type: ignore[arg-type]  # `load_data` saw it
    for fit in fit_recipe(recipe, model, data):
        notes += fit.notes
    trains = can_train(recipe, data)
    if not trains:
        notes.append("There are no labelled training data: steps that train cannot be done.")
    if data.train is not None and trains:
        check_data(model, data.train)
    say("timing some training steps", 0.5)
    pace = _seconds_per_step(recipe, model, data) if trains and recipe.fit is None else None
    if recipe.fit is not None:
        notes.append(f"Training is yours (`{recipe.fit}`): its time is not estimated.")
    weights = model.count_params()
    rows = [
        _planned(recipe, index, step, model, data, pace, weights)
        for index, step in enumerate(recipe.steps)
    ]
    for mode in recipe.convert:
        size = {"float32": 4, "float16": 2}.get(mode, 1) * weights
        seconds = 1 + CONVERSION_SECONDS * weights
        rows.append(PlannedStep(step="convert", what=mode, seconds=seconds, disk_bytes=2 * size))
    return PlanReport(
        name=recipe.name or Path(recipe.model).stem,
        rows=tuple(rows),
        seconds=sum(row.seconds for row in rows),
        disk_bytes=sum(row.disk_bytes for row in rows) + 4 * weights,
        notes=tuple(notes),
    )


def _model(recipe: Recipe) -> Any:
    if is_reference(recipe.model) and not Path(recipe.model).exists():
        return find_function(recipe.model)()
    return load_model(recipe.model, unsafe=recipe.unsafe, imports=recipe.imports)


def _seconds_per_step(recipe: Recipe, model: Any, data: Data) -> float:
    """Time of an optimizer step, from one epoch on some samples after one to get ready."""
    few = Data(train=data.train.take(TIMED_SAMPLES, recipe.seed))  # type: ignore[union-attr]
    settings = {**vars(recipe.train), "epochs": 1}
    copy = copy_model(model)
    fit = make_fit(few, seed=recipe.seed, **settings)
    fit(copy, [])
    started = time.perf_counter()
    fit(copy, [])
    steps = math.ceil(len(few.train) / settings["batch_size"])  # type: ignore[arg-type]
    return (time.perf_counter() - started) / steps


def _planned(
    recipe: Recipe,
    index: int,
    step: Step,
    model: Any,
    data: Data,
    pace: float | None,
    weights: int,
) -> PlannedStep:
    settings = {**vars(recipe.train), **step.train}
    stage = make_stage(step)
    epochs = step.settings.get("epochs", settings["epochs"]) if stage.trains else 0
    samples = 0 if data.train is None else len(data.train)
    trials = MOST_TRIALS if step.is_searched else 1
    calibrated = step.stage == "quantize" and step.way == "calibrate"
    steps = 0 if calibrated else trials * epochs * math.ceil(samples / settings["batch_size"])
    cost = 2.0 if step.stage == "quantize" else 1.1  # of a step, against plain training
    changed, skipped = _layers(step, stage, model, data)
    reasons: dict[str, tuple[str, ...]] = {}
    for row in skipped:
        reasons[row.reason] = (*reasons.get(row.reason, ()), row.layer)
    return PlannedStep(
        step=f"{index + 1}-{step.stage}",
        what=_what(step, epochs, trials, calibrated),
        changes=changed,
        skips=len(skipped),
        reasons=reasons,
        training_steps=steps if pace is not None or recipe.fit else 0,
        seconds=steps * cost * (pace or 0.0) + trials * (2 + CONVERSION_SECONDS * weights),
        disk_bytes=trials * 12 * weights,  # weights and two moments of the optimizer
    )


def _what(step: Step, epochs: int, trials: int, calibrated: bool) -> str:
    if calibrated:
        return "by calibration"
    given = ", ".join(f"{name} {value}" for name, value in step.settings.items())
    once = f"{epochs} epochs" if epochs else "without training"
    if trials > 1:
        once = f"{once}, at most {trials} trials"
    if step.way == "auto":
        once = f"by calibration, else {once}"
    return f"{given}, {once}" if given else once


def _layers(step: Step, stage: Any, model: Any, data: Data) -> tuple[int | None, Sequence[Skipped]]:
    """How many layers a step would change, and which it would skip."""
    if step.stage == "prune":
        from tfedge.engines.native.kernels import find_kernels
        from tfedge.engines.native.prune_settings import Pruning

        chosen = Pruning(sparsity=0.5, layers=stage.layers)
        kernels, skipped = find_kernels(model, chosen, training=not stage.at_once)
        return len({kernel.layer.name for kernel in kernels}), skipped
    if step.stage == "quantize" and step.way == "calibrate":
        return None, ()
    if isinstance(stage, AbstractTrainedStage):
        _, report = stage.finish(stage.prepare(model))
        return len(report.changed), report.skipped
    try:
        _, report = stage.apply(model, Context(data=data))
    except SettingsError:
        if step.is_searched:  # the usual strength is more than this model can take
            return None, ()
        raise
    return len(report.changed), report.skipped
