"""What a recipe can say: model, data, stages, conversion, budget."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tfedge.convert import MODES
from tfedge.data import InputContract
from tfedge.errors import SettingsError, did_you_mean
from tfedge.recipe.steps import Step, steps_of
from tfedge.recipe.targets import check_targets, default_modes

FORBID = {"extra": "forbid", "arbitrary_types_allowed": True}  # for pydantic
QUANTIZED = ("int8", "int16x8")


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where the data come from.

    Attributes:
        source: As `load_dataset` takes it: a name, a file, a folder or `module:function`.
        labels: `"inputs"` for an autoencoder, whose targets are its inputs. Default: the data's.
        image_size: For folders of images: height and width. Default: the model's.
        validation: Fraction of the training samples that is set aside to choose by; the evaluation
            data are then read for reporting only. Default: 0, the evaluation data decide.
    """

    __pydantic_config__: ClassVar[Any] = FORBID

    source: str
    labels: str | None = None
    image_size: tuple[int, ...] | None = None
    validation: float = 0.0

    def __post_init__(self) -> None:
        if self.labels not in (None, "inputs"):
            raise SettingsError(
                f"`data.labels` is `inputs` or left out. Received: {self.labels!r}. Labels come "
                "with the data, as array `y`."
            )
        if not 0 <= self.validation <= 0.5:
            raise SettingsError(
                "`data.validation` is a fraction of the training samples, from 0 to 0.5. "
                f"Received: {self.validation!r}."
            )


@dataclass(frozen=True, kw_only=True)
class Training:
    """How stages train, unless a step says otherwise.

    Attributes:
        epochs: Passes over the training data, for each step that trains.
        batch_size: Samples per step.
        learning_rate: Default: the model's own; 1e-3 for a model that is not compiled.
        optimizer: Name of an optimizer. Default: the model's own, else Adam.
        loss: Name of a loss; by output name for several outputs. Default: the model's own, else
            by the labels.
        metrics: Names of metrics to log.
    """

    __pydantic_config__: ClassVar[Any] = FORBID

    epochs: int = 5
    batch_size: int = 32
    learning_rate: float | None = None
    optimizer: str | None = None
    loss: str | dict[str, str] | None = None
    metrics: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingsError(
                    f"`train.{name}` is a whole number from 1. Received: {getattr(self, name)!r}."
                )
        rate = self.learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise SettingsError(f"`train.learning_rate` is a positive number. Received: {rate!r}.")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may cost, beside the loss of quality.

    Attributes:
        size_bytes: Size of the file.
        gzip_bytes: Its size after `gzip -9`.
        latency_ms: Median of one run here, on the first of `targets`, one thread.
    """

    __pydantic_config__: ClassVar[Any] = FORBID

    size_bytes: float | None = None
    gzip_bytes: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if not 0 < value < math.inf:
                raise SettingsError(f"`limits.{name}` is a positive number. Received: {value!r}.")

    def given(self) -> dict[str, float]:
        """Those that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """From a Keras model to `.tflite` files: what to do, and what it may cost.

    Attributes:
        model: A `.keras` or `.h5` file, or `module:function` that returns a Keras model.
        data: A `DataSource`, or its `source` alone.
        name: What to call it. Default: the model's file name.
        imports: Modules that define layers of one's own.
        unsafe: Whether a model file that carries code is loaded.
        input: How samples become what the model takes. Default: as they are.
        metric: Figure of merit; a dict by output name for several outputs; `"agreement"` or
            `"sqnr_db"` with the model itself where there are no labels.
        max_drop: How much of it may be lost against the float32 file of `model`: a number of points
            of a percent for figures that are fractions, of the figure's own unit for others; or
            text such as `"2 %"` of what the float32 file reaches; by output name for several.
            Default: no limit.
        limits: What a file may cost.
        train: How stages train.
        fit: Instead: `module:function`, a function `fit(model, callbacks)` that compiles and
            trains.
        stages: Steps in their order, or the name of a recipe such as `"prune80_w8a8"`.
        convert: Modes of the files. Default: what the recipe's name says, else float32 and int8.
        targets: Delegates that latency is measured on, and accelerators (`edgetpu`) whose
            constraints the model is held to before any training.
        allow_software: Whether a GPU among them may be a program on the CPU.
        seed: Seed of everything random.

    Raises:
        SettingsError: A setting is out of its range, or two contradict each other.

    Example:
        >>> recipe = Recipe(model="model.keras", data="digits", stages="prune80_w8a8")
        >>> [step.stage for step in recipe.stages], recipe.convert
        (['prune', 'quantize'], ('float32', 'int8'))
    """

    __pydantic_config__: ClassVar[Any] = FORBID

    model: str
    data: DataSource | str
    name: str = ""
    imports: tuple[str, ...] = ()
    unsafe: bool = False
    input: InputContract | None = None
    metric: str | dict[str, str] = "accuracy"
    max_drop: float | str | dict[str, float | str] | None = None
    limits: Limits = field(default_factory=Limits)
    train: Training = field(default_factory=Training)
    fit: str | None = None
    stages: Any = ()
    convert: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("xnnpack",)
    allow_software: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            object.__setattr__(self, "data", DataSource(source=self.data))
        steps, modes = steps_of(self.stages)
        object.__setattr__(self, "stages", steps)
        quantized = any(step.stage == "quantize" for step in steps)
        default = modes or default_modes(self.targets)
        default = default or (("float32", "int8") if quantized or not steps else ("float32",))
        object.__setattr__(self, "convert", tuple(dict.fromkeys(self.convert or default)))
        self._check_modes(quantized)
        check_targets(self.targets, self.convert, self.limits.given())
        if self.allow_software and "gpu" not in self.targets:
            raise SettingsError(
                "`allow_software` goes with the target `gpu`. Received: "
                f"targets={list(self.targets)}. Add `gpu`, or leave it out."
            )
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"`seed` is from 0 to 2³² − 1. Received: {self.seed!r}.")
        for text in self._drops():
            drop_of(text, 1.0, fraction=True)
        auto = next((step for step in steps if step.is_searched), None)
        if auto is not None and self.max_drop is None:
            raise SettingsError(
                f"`{auto.stage}: auto` takes the strongest setting within `max_drop`. Received: "
                "no `max_drop`. Say what may be lost, e.g. `max_drop: 0.5`."
            )

    def _check_modes(self, quantized: bool) -> None:
        for mode in self.convert:
            if mode not in MODES:
                raise SettingsError(
                    f"`convert` lists modes: {', '.join(MODES)}. Received: {mode!r}."
                    f"{did_you_mean(mode, MODES)}"
                )
        if quantized and "int8" not in self.convert:
            raise SettingsError(
                "The step `quantize` makes an int8 file. Received: convert="
                f"{list(self.convert)}. Add `int8`, or leave the step out."
            )

    def _drops(self) -> list[float | str]:
        if self.max_drop is None:
            return []
        return (
            list(self.max_drop.values()) if isinstance(self.max_drop, Mapping) else [self.max_drop]
        )

    @property
    def source(self) -> DataSource:
        """`data` as a `DataSource`."""
        return self.data if isinstance(self.data, DataSource) else DataSource(source=self.data)

    @property
    def steps(self) -> tuple[Step, ...]:
        """`stages` as steps."""
        return tuple(self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, settings that were left out left out."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        own["data"] = _given(self.source)
        own["stages"] = [step.to_dict() for step in self.steps]
        own["limits"] = self.limits.given()
        own["train"] = _given(self.train)
        own["input"] = None if self.input is None else _given(self.input)
        if list(own["data"]) == ["source"]:
            own["data"] = own["data"]["source"]
        kept = ("convert", "targets", "seed", "metric")
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in own.items()
            if key in kept or value not in (None, "", (), [], {}, False)
        }


def _given(settings: Any) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, as plain values."""
    return {
        f.name: list(value) if isinstance(value, tuple) else value
        for f in dataclasses.fields(settings)
        if (value := getattr(settings, f.name)) != f.default
    }


def drop_of(text: float | str, reference: float, *, fraction: bool) -> float:
    """How much may be lost, in the unit of a figure.

    Args:
        text: A number: points of a percent where the figure is a fraction, else its own unit; or
            text that ends in `%`: of the reference.
        reference: What the reference reaches.
        fraction: Whether the figure is a fraction, such as an accuracy.

    Raises:
        SettingsError: It is neither, or negative.

    Example:
        >>> drop_of(0.5, 0.98, fraction=True), drop_of("5 %", 40.0, fraction=False)
        (0.005, 2.0)
    """
    relative = isinstance(text, str) and text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%") if isinstance(text, str) else text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise SettingsError(
            "`max_drop` is a number from 0 (points of a percent for accuracy and the like), or "
            f"text such as `2 %` of what the float32 file reaches. Received: {text!r}."
        )
    if relative:
        return abs(reference) * value / 100
    return value / 100 if fraction else value
