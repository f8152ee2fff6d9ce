"""What a recipe's targets ask of its model, stages and files, before any training.

An accelerator is a target like a delegate, with constraints of its own: the model is converted to
int8 as it is, and that file goes through the accelerator's pre-flight. What cannot run there at all
is refused; what stays on the CPU is said, with the `rewrite` step that would change it.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tfedge.errors import (
    FloatOperatorsError,
    ModelError,
    SettingsError,
    TfedgeWarning,
    UnsupportedModelError,
)
from tfedge.report import Record
from tfedge.runtime import check_delegate

ACCELERATORS: Final = ("edgetpu",)
MODE: Final = "int8"  # of the files that accelerators run
NAMED: Final = 4  # operators that are named one by one
TRIAL_SAMPLES: Final = 8  # of the conversion before any training

# Patterns of `Rewrite` that take activations away which are not in Coral's table of supported
# operations (https://coral.ai/docs/edgetpu/models-intro). SiLU is there, as LOGISTIC and MUL;
# HARD_SWISH is not, so the patterns that lead to hard_silu are of no use here.
EDGETPU_PATTERNS: Final = ("gelu_to_relu6", "elu_to_relu", "selu_to_relu", "softplus_to_relu")


def check_targets(
    targets: Sequence[str], modes: Sequence[str], limits: Mapping[str, float]
) -> None:
    """Check that the targets exist, and that the recipe makes files for them.

    Args:
        targets: Delegates and accelerators.
        modes: Modes of the files.
        limits: What a file may cost, by name.

    Raises:
        SettingsError: There is no such target, or the recipe makes nothing that runs on it.
        DelegateError: A delegate is not supported.
    """
    for target in targets:
        if target not in ACCELERATORS:
            check_delegate(target)
        elif MODE not in modes:
            raise SettingsError(
                f"The target `{target}` runs {MODE} files. Received: convert={list(modes)}. Add "
                f"`{MODE}`, or leave the target out."
            )
    if targets and targets[0] in ACCELERATORS and "latency_ms" in limits:
        raise SettingsError(
            "`limits.latency_ms` is measured here, on the first of `targets`. Received: "
            f"{targets[0]} first, whose files are compiled after the limits were judged. Put "
            "`xnnpack` first, or leave the limit out."
        )


def default_modes(targets: Sequence[str]) -> tuple[str, ...]:
    """The modes of a recipe that names none: what its targets run; empty for delegates.

    Example:
        >>> default_modes(["edgetpu"]), default_modes(["xnnpack", "edgetpu"])
        (('int8',), ())
    """
    return (MODE,) if targets and all(target in ACCELERATORS for target in targets) else ()


def measured(targets: Sequence[str]) -> tuple[str, ...]:
    """The targets that are delegates of this machine."""
    return tuple(target for target in targets if target not in ACCELERATORS)


@dataclass(frozen=True, kw_only=True)
class TargetFit(Record):
    """How a model, as it is, fits an accelerator.

    Attributes:
        target: E.g. `"edgetpu"`.
        mapped: Operators of its int8 file that the pre-flight expects on the accelerator.
        unmapped: Operators that it expects on the CPU.
        unknown: Operators of which it does not know.
        notes: Sentences on what does not fit.
        patterns: Patterns of `Rewrite` after which fewer operators stay on the CPU.
    """

    target: str
    mapped: int
    unmapped: int
    unknown: int
    notes: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


def fit_of(target: str, model: Any, samples: Any, *, strict: bool = True) -> TargetFit:
    """How a model fits an accelerator, from a trial conversion of it as it is.

    Args:
        target: One of `ACCELERATORS`.
        model: A Keras model.
        samples: A few inputs as it takes them.
        strict: Whether a model that fits only after `patterns` is refused.

    Returns:
        The fit.

    Raises:
        ModelError: Its shapes are open, or nothing of it would run there.
        FloatOperatorsError: Layers of it have no integer form.
    """
    _check_static(target, model)
    foreseen = _trial(model, samples)
    refusal = _refusal(target, model, foreseen)
    patterns = _helpful(model, samples, foreseen) if refusal or foreseen.unmapped else ()
    if refusal is not None and (strict or not patterns):
        raise type(refusal)(" ".join([str(refusal), *_offer(patterns)]))
    return TargetFit(
        target=target,
        mapped=foreseen.mapped,
        unmapped=foreseen.unmapped,
        unknown=foreseen.unknown,
        notes=_notes(target, foreseen, patterns),
        patterns=patterns,
    )


def _refusal(target: str, model: Any, foreseen: Any) -> ModelError | FloatOperatorsError | None:
    """Why the model cannot run on the accelerator as it is; `None` where it can."""
    if not foreseen.fully_integer:
        floats = foreseen.float_layers or foreseen.float_tensors
        names = ", ".join(f"`{name}`" for name in floats[:NAMED])
        return FloatOperatorsError(
            f"The target `{target}` runs integers only, from input to output. Received: "
            f"`{model.name}`, of which {names} have no integer form. Replace these layers, then "
            "train."
        )
    if foreseen.refusals or not (foreseen.mapped or foreseen.unknown):
        reasons = " ".join(foreseen.refusals) or f"{_left(foreseen)}."
        return ModelError(
            f"Nothing of `{model.name}` would run on the target `{target}`: {reasons} "
            f"{' '.join(foreseen.changes)}".rstrip()
        )
    return None


def _check_static(target: str, model: Any) -> None:
    from tfedge.convert._signature import input_specs

    for spec in input_specs(model):
        if None in spec.shape[1:]:
            shape = ", ".join("?" if size is None else str(size) for size in spec.shape[1:])
            raise ModelError(
                f"The target `{target}` takes static shapes. Received: input {spec.name!r} of "
                f"shape ({shape}), with sizes that are open. Build the model with a fixed input "
                "shape, e.g. `keras.Input((224, 224, 3))`, and load its weights into it."
            )


def _trial(model: Any, samples: Any) -> Any:
    """The pre-flight of the model's int8 file, converted from it as it is."""
    from tfedge.accelerators.edgetpu.preflight import preflight
    from tfedge.convert import convert

    content, _ = convert(model, mode=MODE, calibration=samples, allow_float=True)
    return preflight(content)


def _helpful(model: Any, samples: Any, foreseen: Any) -> tuple[str, ...]:
    """Patterns of `Rewrite` that the model has a use for, if it fits better after them."""
    from tfedge.stages.rewrite import Rewrite

    stage = Rewrite(patterns=EDGETPU_PATTERNS, max_drop=None)
    try:
        rewritten, report = stage.apply(model)
    except (UnsupportedModelError, SettingsError):  # of tf_keras, or without a graph
        return ()
    used = [name for name in EDGETPU_PATTERNS if report.metrics["patterns"][name]["layers"]]
    if not used:
        return ()
    after = _trial(rewritten, samples)
    if not after.fully_integer or after.refusals:
        return ()
    fitted = foreseen.fully_integer and not foreseen.refusals
    return () if fitted and after.unmapped >= foreseen.unmapped else tuple(used)


def _offer(patterns: Sequence[str]) -> list[str]:
    """The sentence that offers a step of the recipe; empty without patterns."""
    if not patterns:
        return []
    step = f"`- rewrite: {{patterns: [{', '.join(patterns)}]}}`"
    does = "replaces activations that are not run there; training then makes up for it"
    return [f"The step {step}, put first, {does}."]


def _notes(target: str, foreseen: Any, patterns: Sequence[str]) -> tuple[str, ...]:
    notes = [*foreseen.refusals]
    if foreseen.unmapped:
        notes.append(
            f"{foreseen.unmapped} of {len(foreseen.operators)} operators would stay on the CPU "
            f"beside the target `{target}`: {_left(foreseen)}."
        )
    return (*notes, *_offer(patterns), *(foreseen.changes if notes else ()))


def _left(foreseen: Any) -> str:
    rows = [row for row in foreseen.operators if row.mapped is False]
    layers = [f"{row.name}{f' (`{row.layer}`)' if row.layer else ''}" for row in rows[:NAMED]]
    named = [
        f"{layer}{f', {row.reason}' if row.reason else ''}"
        for layer, row in zip(layers, rows, strict=False)
    ]
    more = f"; and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return "; ".join(named) + more


def fit_recipe(recipe: Any, model: Any, data: Any, *, warn: bool = False) -> tuple[TargetFit, ...]:
    """How the model of a recipe fits its accelerators, once its `rewrite` steps are done.

    Args:
        recipe: The `Recipe`.
        model: Its model.
        data: Its data.
        warn: Whether what does not fit is also given as warnings, before any training.

    Raises:
        ModelError: Its shapes are open, or nothing of it would run there.
        FloatOperatorsError: Layers of it have no integer form.
    """
    wanted = [target for target in recipe.targets if target in ACCELERATORS]
    if not wanted:
        return ()
    samples = few_of(data)
    rewritten = _rewritten(recipe, model)
    fits = tuple(fit_of(target, rewritten, samples) for target in wanted)
    said = " ".join(note for fit in fits for note in fit.notes)
    if warn and said:
        warnings.warn(said, TfedgeWarning, stacklevel=2)
    return fits


def few_of(data: Any) -> Any:
    """A few inputs out of the data of a recipe, as its model takes them."""
    split = data.calibration or data.train or data.evaluation
    rows = next(split.batches(TRIAL_SAMPLES)) if split.is_stream else split.take(TRIAL_SAMPLES).rows
    return rows[0]


def _rewritten(recipe: Any, model: Any) -> Any:
    """The model after the recipe's `rewrite` steps, without their training."""
    from tfedge.recipe.steps import make_stage

    for step in recipe.steps:
        if step.stage == "rewrite":
            model, _ = make_stage(step, max_drop=None).apply(model)
    return model
