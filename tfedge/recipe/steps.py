"""The steps of a recipe, and the names that stand for several of them."""

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfedge.errors import SettingsError, did_you_mean
from tfedge.recipe.strengths import AUTO, STRENGTHS, strength_of

BASELINE = "baseline"  # the teacher that is the model as it came
WAYS = ("auto", "calibrate", "train")  # of `quantize`
OVERRIDES = ("epochs", "batch_size", "learning_rate")  # of a step's `train`


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a recipe.

    Attributes:
        stage: One of `STAGES`.
        settings: Fields of the stage's class; `"auto"` where the budget chooses the value.
        way: Of `quantize`: `"calibrate"`, `"train"`, or `"auto"`, the first that meets the budget.
        train: What this step trains with instead of the recipe's `train`.
        distill: Who teaches while this step trains: `teacher`, a file or `"baseline"` for the model
            as it came, and other settings of `Distillation`; empty for nobody.
    """

    stage: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    way: str = ""
    train: Mapping[str, Any] = field(default_factory=dict)
    distill: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_searched(self) -> bool:
        """Whether the budget is to choose a strength."""
        return AUTO in self.settings.values()

    def to_dict(self) -> Any:
        """The step as it stands in YAML."""
        inner: dict[str, Any] = dict(self.settings)
        if self.train:
            inner["train"] = dict(self.train)
        if self.distill:
            inner["distill"] = dict(self.distill)
        if self.way:
            if not inner:
                return {self.stage: self.way}
            inner["way"] = self.way
        return {self.stage: inner} if inner else self.stage


@dataclass(frozen=True)
class Plan:
    """Steps and the modes of the files that they lead to. Plans add up.

    Example:
        >>> plan = prune(80) + w8a8()
        >>> [step.stage for step in plan.steps], plan.modes
        (['prune', 'quantize'], ('float32', 'int8'))
    """

    steps: tuple[Step, ...] = ()
    modes: tuple[str, ...] = ()

    def __add__(self, other: "Plan") -> "Plan":
        modes = tuple(dict.fromkeys((*self.modes, *other.modes)))
        return Plan((*self.steps, *other.steps), modes)


def prune(percent: int | None = None) -> Plan:
    """`prune80`: prune to 80 % zeros; `prune`: as far as the budget allows."""
    if percent is not None and not 0 < percent < 100:
        raise SettingsError(f"`prune` takes a percentage from 1 to 99. Received: prune{percent}.")
    sparsity = AUTO if percent is None else percent / 100
    return Plan((Step(stage="prune", settings={"sparsity": sparsity}),))


def cluster(clusters: int | None = None) -> Plan:
    """`cluster16`: 16 distinct values in each kernel; `cluster`: as few as the budget allows."""
    if clusters is not None and clusters < 2:
        raise SettingsError(f"`cluster` takes at least 2 clusters. Received: cluster{clusters}.")
    count = AUTO if clusters is None else clusters
    return Plan((Step(stage="cluster", settings={"number_of_clusters": count}),))


def structured(percent: int | None = None) -> Plan:
    """`structured50`: filters go until 50 % of the multiply-accumulates are gone."""
    return Plan(
        (Step(stage="structured_prune", settings={"flops": _remains(percent, "structured")}),)
    )


def lowrank(percent: int | None = None) -> Plan:
    """`lowrank30`: kernels are factorised until 30 % of the multiply-accumulates are gone."""
    left = _remains(percent, "lowrank")
    return Plan((Step(stage="low_rank", settings={"flops": left}),))


def _remains(percent: int | None, name: str) -> float | str:
    if percent is None:
        return AUTO
    if not 0 < percent < 100:
        raise SettingsError(f"`{name}` takes a percentage from 1 to 99. Received: {percent}.")
    return round(1 - percent / 100, 2)


def finetune(epochs: int | None = None) -> Plan:
    """`finetune3`: train on for 3 epochs; `finetune`: for as many as the recipe's `train` says."""
    settings = {} if epochs is None else {"epochs": epochs}
    return Plan((Step(stage="finetune", settings=settings),))


def w8a8() -> Plan:
    """`w8a8`: int8 weights and activations, by calibration or, where that costs too much, QAT."""
    return Plan((Step(stage="quantize", way="auto"),), ("float32", "int8"))


def qat() -> Plan:
    """`qat`: int8 weights and activations by quantization-aware training."""
    return Plan((Step(stage="quantize", way="train"),), ("float32", "int8"))


def w8a16() -> Plan:
    """`w8a16`: int8 weights and int16 activations, by calibration."""
    return Plan((), ("float32", "int16x8"))


def w8() -> Plan:
    """`w8`: int8 weights, activations computed in float."""
    return Plan((), ("float32", "dynamic_int8"))


def fp16() -> Plan:
    """`fp16`: float16 weights."""
    return Plan((), ("float32", "float16"))


def fp32() -> Plan:
    """`fp32`: a float32 file."""
    return Plan((), ("float32",))


PARTS: Mapping[str, Callable[..., Plan]] = {
    part.__name__: part
    for part in (
        structured,
        lowrank,
        prune,
        cluster,
        finetune,
        w8a8,
        qat,
        w8a16,
        w8,
        fp16,
        fp32,
    )
}
NUMBERED = ("structured", "lowrank", "prune", "cluster", "finetune")


def named(name: str) -> Plan:
    """The plan that a name stands for: parts joined by `_`, in their order.

    Args:
        name: E.g. `"prune80_w8a8"`; parts are `structured`, `lowrank`, `prune`, `cluster`,
            `finetune` (all with an optional number), `w8a8`, `qat`, `w8a16`, `w8`, `fp16`, `fp32`.

    Raises:
        SettingsError: A part is not known.

    Example:
        >>> named("prune90_finetune2_w8a8") == prune(90) + finetune(2) + w8a8()
        True
    """
    plan = Plan()
    for part in name.split("_"):
        match = re.fullmatch(rf"({'|'.join(NUMBERED)})(\d+)", part)
        if match:
            plan += PARTS[match[1]](int(match[2]))
        elif part in PARTS:
            plan += PARTS[part]()
        else:
            raise SettingsError(
                "The name of a recipe is made of parts such as `prune80_w8a8`: "
                f"{', '.join(PARTS)}, joined by `_`. Received: {name!r}."
                f"{did_you_mean(part, PARTS)}"
            )
    return plan


def steps_of(stages: Any) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """Steps, and modes where a name says them.

    Args:
        stages: A name, a `Plan`, or a list of steps: `Step`, the name of a stage, or a mapping from
            it to its settings.

    Raises:
        SettingsError: There is no such stage or setting, or the order is impossible.
    """
    if isinstance(stages, str):
        stages = named(stages)
    if isinstance(stages, Plan):
        steps, modes = stages.steps, stages.modes
    elif isinstance(stages, list | tuple):
        steps, modes = tuple(_step(entry) for entry in stages), ()
    else:
        raise SettingsError(
            f"`stages` is a list of steps, or a name such as `prune80_w8a8`. Received: {stages!r}."
        )
    places = [place for place, step in enumerate(steps) if step.stage == "quantize"]
    if places and (len(places) > 1 or places[0] != len(steps) - 1):
        raise SettingsError(
            "`quantize` is the last step and the only one of its kind: its wrappers stay until "
            f"conversion. Received: {', '.join(step.stage for step in steps)}."
        )
    return steps, modes


def _step(entry: Any) -> Step:
    if isinstance(entry, Step):
        step = entry
    elif isinstance(entry, str):
        step = _with_settings(entry, None)
    elif isinstance(entry, Mapping) and len(entry) == 1:
        step = _with_settings(*next(iter(entry.items())))
    else:
        raise SettingsError(
            "A step is the name of a stage, or `stage: {setting: value}`, one stage in each item "
            f"of the list. Received: {entry!r}."
        )
    fields = stage_fields(step.stage)
    for name in step.settings:
        if name not in fields:
            raise SettingsError(
                f"`{step.stage}` has no setting {name!r}. It has: {', '.join(fields)}, train, "
                f"distill.{did_you_mean(str(name), [*fields, 'train', 'distill'])}"
            )
    _check_step(step)
    return step


def _with_settings(stage: Any, given: Any) -> Step:
    if stage not in STAGES:
        raise SettingsError(
            f"A stage is one of {', '.join(STAGES)}. Received: {stage!r}."
            f"{did_you_mean(str(stage), STAGES)}"
        )
    if given is None:
        given = {}
    if isinstance(given, str) and stage == "quantize":
        given = {"way": given}
    if given == AUTO and stage in STRENGTHS:
        given = {STRENGTHS[stage][0].setting: AUTO}
    if not isinstance(given, Mapping):
        raise SettingsError(f"The settings of `{stage}` are a mapping. Received: {given!r}.")
    settings = dict(given)
    train = settings.pop("train", {})
    distill = settings.pop("distill", {})
    if isinstance(distill, str):
        distill = {"teacher": distill}
    way = settings.pop("way", "train" if settings else AUTO) if stage == "quantize" else ""
    return Step(stage=stage, settings=settings, way=way, train=train, distill=distill)


def _check_step(step: Step) -> None:
    if step.stage == "quantize" and step.way not in WAYS:
        raise SettingsError(
            f"`quantize` is done by one of {', '.join(WAYS)}. Received: {step.way!r}."
            f"{did_you_mean(str(step.way), WAYS)}"
        )
    if not isinstance(step.train, Mapping) or set(step.train) - set(OVERRIDES):
        raise SettingsError(
            f"`train` of a step holds {', '.join(OVERRIDES)}. Received: {step.train!r}."
        )
    if step.distill:
        distillation_of(step, BASELINE)
    searched = [name for name, value in step.settings.items() if value == AUTO]
    movable = [strength.setting for strength in STRENGTHS.get(step.stage, ())]
    if searched and (len(searched) > 1 or searched[0] not in movable):
        raise SettingsError(
            f"`auto` stands for one setting that the budget moves: {_movable()}. Received: "
            f"{step.stage}: {', '.join(searched)}."
        )
    make_stage(step)


def distillation_of(step: Step, baseline: Any) -> Any:
    """The `Distillation` of a step, its settings checked.

    Args:
        step: A step with `distill`.
        baseline: The model as it came, where it is the teacher.

    Raises:
        SettingsError: A setting is not known or out of its range.
    """
    from tfedge.distillation import Distillation

    if not isinstance(step.distill, Mapping):
        raise SettingsError(
            "`distill` of a step is a teacher, or a mapping with `teacher`. Received: "
            f"{step.distill!r}."
        )
    settings = dict(step.distill)
    known = [f.name for f in dataclasses.fields(Distillation) if f.init and f.name != "unlabelled"]
    for name in settings:
        if name not in known:
            raise SettingsError(
                f"`distill` has no setting {name!r}. It has: {', '.join(known)}."
                f"{did_you_mean(str(name), known)}"
            )
    teacher = settings.pop("teacher", BASELINE)
    return Distillation(baseline if teacher == BASELINE else teacher, **settings)


def _movable() -> str:
    """All settings that may be `auto`, for people."""
    return ", ".join(
        f"`{strength.setting}` of `{stage}`"
        for stage, strengths in STRENGTHS.items()
        for strength in strengths
    )


def stage_fields(stage: str) -> tuple[str, ...]:
    """Names of the settings of a stage."""
    return tuple(f.name for f in dataclasses.fields(stage_class(stage)))


def stage_class(stage: str) -> Any:
    """The class of a stage."""
    module, _, name = STAGES[stage].partition(":")
    return getattr(importlib.import_module(module), name)


# Name of a stage to the module and class that do it, in an order that usually works.
STAGES: Mapping[str, str] = {
    "rewrite": "tfedge.stages.rewrite:Rewrite",
    "drop_layers": "tfedge.stages.drop_layers:DropLayers",
    "low_rank": "tfedge.stages.low_rank:LowRank",
    "structured_prune": "tfedge.stages.structured:StructuredPrune",
    "remove_dead": "tfedge.stages.remove_dead:RemoveDead",
    "sparsity_penalty": "tfedge.stages.sparsity_penalty:SparsityPenalty",
    "prune": "tfedge.stages.prune:Prune",
    "cluster": "tfedge.stages.cluster:Cluster",
    "finetune": "tfedge.stages.finetune:FineTune",
    "quantize": "tfedge.stages.quantize:Quantize",
}


def make_stage(step: Step, *, epochs: int = 1, **changes: Any) -> Any:
    """The stage of a step, its settings checked.

    Args:
        step: The step. A setting that is `auto` gets a usual value, unless `changes` has one.
        epochs: Of `finetune`, where its settings do not say.
        changes: Settings to use instead.

    Raises:
        SettingsError: A setting is out of its range.
    """
    settings = {**step.settings, **changes}
    moved = strength_of(step.stage, step.settings)
    if moved is not None and settings[moved.setting] == AUTO:
        settings[moved.setting] = moved.usual
    if step.stage == "finetune":
        settings.setdefault("epochs", epochs)
    for key, value in settings.items():
        if isinstance(value, list):
            settings[key] = tuple(value)
    try:
        return stage_class(step.stage)(**settings)
    except TypeError as error:  # a setting of a wrong type, which the stage compares
        raise SettingsError(
            f"A setting of `{step.stage}` has the wrong type. Received: {settings!r} ({error})."
        ) from error
