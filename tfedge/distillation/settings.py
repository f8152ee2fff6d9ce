"""Settings of a distillation, and the way to fit that they make."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from tfedge.distillation.forms import check_kind
from tfedge.errors import SettingsError, TrainingError, did_you_mean

LOSSES = ("mse", "attention", "relational")
ALPHA = 0.9

Fit = Callable[[Any, Sequence[Any]], Any]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A layer of the student that learns from a layer of the teacher.

    Args:
        student: Name of the student's layer.
        teacher: Name of the teacher's layer.
        loss: `"mse"` (through a learned projection where channels differ), `"attention"` (where a
            layer is active; maps only) or `"relational"` (distances and angles between the samples
            of a batch; shapes need not agree).
        weight: What its loss is multiplied by.

    Raises:
        SettingsError: A setting is out of range.

    Example:
        >>> Feature(student="conv_2", teacher="conv_5", loss="attention").weight
        1.0
    """

    student: str
    teacher: str
    loss: str = "mse"
    weight: float = 1.0

    def __post_init__(self) -> None:
        for side in ("student", "teacher"):
            if not isinstance(getattr(self, side), str):
                raise SettingsError(
                    f"`Feature.{side}` is the name of a layer. Received: {getattr(self, side)!r}."
                )
        if self.loss not in LOSSES:
            raise SettingsError(
                f"`Feature.loss` is one of {', '.join(map(repr, LOSSES))}. Received: "
                f"{self.loss!r}.{did_you_mean(self.loss, LOSSES)}"
            )
        _check_positive(self.weight, "Feature.weight")


@dataclass(frozen=True, eq=False)
class Distillation:
    """Teach a student what a teacher says of the same samples, while it trains in any way.

    The loss of a step is `(1 − alpha) · labels + alpha · teacher + Σ weight · feature`, where
    `labels` is the loss that the student is compiled with, and `teacher` compares its outputs with
    the teacher's: classes by the Kullback-Leibler divergence at a temperature (Hinton et al.,
    2015), values by the mean squared error. Sample and class weights count in every part. Metrics
    see labels and predictions as without a teacher; `label_loss` and `teacher_loss` (and
    `feature_loss`) appear beside `loss` in the logs.

    Samples without a label train on the teacher alone: those given as `unlabelled`, and those
    whose class number is −1. They add nothing to `labels` (whose mean is still taken over all
    samples of a batch) and are left out of the metrics.

    Args:
        teacher: A Keras model of either Keras, the path of one (`.keras`, `.h5`, `.tflite`), the
            content of a `.tflite`; or a list of these, whose softened probabilities are averaged.
        temperature: Above 1, small probabilities count for more. Default: 4.
        alpha: Share of the teacher in the loss, in [0, 1]. Default: 0.9.
        weights: Instead of `alpha`: factors of labels and teacher that need not sum to one.
        features: `Feature`s, or a mapping of the student's layers to the teacher's.
        teacher_weights: Of several teachers. Default: all alike.
        cache: `True` asks the teacher once for each sample and keeps that in memory; a folder keeps
            it on disk, for later runs; `False` runs the teacher in every step, as data need that
            are augmented anew in every epoch.
        unlabelled: Further samples without labels, in the form of the training inputs (arrays).
        kind: What the outputs are: `"classes"`, `"binary"` or `"values"`. Default: found out by the
            loss that the student is compiled with, and by its last activation.

    Raises:
        SettingsError: A setting is out of range, or two of them contradict each other.

    Example:
        >>> distillation = Distillation(teacher, temperature=3, alpha=0.8)   # doctest: +SKIP
        >>> fit = distillation.wrap(make_fit(data, epochs=5))                # doctest: +SKIP
        >>> student, report = Prune(sparsity=0.8).apply(student, Context(fit=fit))  # doctest: +SKIP

        In a training script of one's own, of either Keras:

        >>> with distillation.teaching(student):                             # doctest: +SKIP
        ...     student.fit(x, y, epochs=5)
    """

    teacher: Any
    _: KW_ONLY
    temperature: float = 4.0
    alpha: float | None = None
    weights: tuple[float, float] | None = None
    features: Any = ()
    teacher_weights: Sequence[float] | None = None
    cache: bool | str | os.PathLike[str] = True
    unlabelled: Any = None
    kind: str | None = None
    opened: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_positive(self.temperature, "temperature")
        check_kind(self.kind)
        self._check_weights()
        object.__setattr__(self, "features", as_features(self.features))
        self._check_teachers()
        if not isinstance(self.cache, bool | str | os.PathLike):
            raise SettingsError(
                "`cache` is True (memory), False (the teacher runs in every step) or a folder. "
                f"Received: {self.cache!r}."
            )
        if self.unlabelled is not None:
            from tfedge.data.nests import as_arrays

            object.__setattr__(self, "unlabelled", as_arrays(self.unlabelled, "unlabelled"))

    @property
    def label_weight(self) -> float:
        """What the loss of the labels is multiplied by."""
        return 1 - self._share() if self.weights is None else float(self.weights[0])

    @property
    def teacher_weight(self) -> float:
        """What the loss against the teacher is multiplied by."""
        return self._share() if self.weights is None else float(self.weights[1])

    def sources(self) -> list[Any]:
        """The teachers, as they were given."""
        return list(self.teacher) if isinstance(self.teacher, list | tuple) else [self.teacher]

    def wrap(self, fit: Fit) -> Fit:
        """A way to fit that distils: for the `Context` of any stage, under both Kerases.

        Args:
            fit: `fit(model, callbacks)` that trains with `model.fit`: `make_fit(…)`, or a function
                of one's own. The model keeps its optimizer, loss and metrics.

        Returns:
            `fit(model, callbacks)` of the same result. It raises `TrainingError` if the function
            did not call `model.fit`, and `SettingsError` or `ModelError` if teacher and student do
            not fit together.

        Example:
            >>> fit = Distillation("teacher.keras").wrap(make_fit(data, epochs=5))  # doctest: +SKIP
        """

        def distilling(model: Any, callbacks: Sequence[Any] = ()) -> Any:
            with self.teaching(model) as teaching:
                result = fit(model, callbacks)
            if not teaching.fits:
                raise TrainingError(
                    "Distillation works in the `fit` of the model that it is given. Received: a "
                    "function that did not call `model.fit` of that model (it trains a copy, or in "
                    f"a loop of its own): `{getattr(fit, '__qualname__', fit)}`. Train with "
                    "`model.fit`, or write the loss with `tfedge.distillation.soft_label_loss`."
                )
            return result

        return distilling

    @contextmanager
    def teaching(self, student: Any) -> Iterator[Any]:
        """While the block runs, every `student.fit` learns from the teacher.

        Args:
            student: A Keras 3 or tf_keras model. Its class, optimizer, loss and metrics stay.

        Returns:
            A context manager of a record whose `fits` counts the trainings.

        Raises:
            SettingsError: Teacher and student do not fit together.
        """
        from tfedge.distillation.teaching import taught

        with taught(self, student) as teaching:
            yield teaching

    def _share(self) -> float:
        return ALPHA if self.alpha is None else float(self.alpha)

    def _check_weights(self) -> None:
        if self.alpha is not None:
            is_number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
            if not is_number or not 0 <= self.alpha <= 1:
                raise SettingsError(
                    f"`alpha` is the share of the teacher in the loss, in [0, 1]. Received: "
                    f"{self.alpha!r}. Factors that need not sum to one: `weights=(1.0, 2.0)`."
                )
            if self.weights is not None:
                raise SettingsError(
                    "`alpha` and `weights` both say how labels and teacher are summed. Received "
                    f"both: alpha={self.alpha!r}, weights={self.weights!r}. Leave one out."
                )
        if self.weights is None:
            return
        if len(self.weights) != 2 or not all(_is_weight(weight) for weight in self.weights):
            raise SettingsError(
                "`weights` are two factors from 0, of labels and of the teacher. Received: "
                f"{self.weights!r}."
            )

    def _check_teachers(self) -> None:
        sources = self.sources()
        if self.teacher is None or not sources:
            raise SettingsError("`Distillation` needs a teacher. Received: none.")
        if len(sources) > 1 and self.features:
            raise SettingsError(
                "`features` compares the layers of one teacher. Received: "
                f"{len(sources)} teachers. Leave `features` out, or give one teacher."
            )
        weights = self.teacher_weights
        if weights is None:
            return
        fits = len(weights) == len(sources) and all(_is_weight(weight) for weight in weights)
        if not fits or sum(weights) <= 0:
            raise SettingsError(
                f"`teacher_weights` holds a factor from 0 for each of {len(sources)} teachers. "
                f"Received: {weights!r}."
            )


def as_features(given: Any) -> tuple[Feature, ...]:
    """Features as a user may give them: one, several, or a mapping of layer to layer.

    Raises:
        SettingsError: They are something else.
    """
    if isinstance(given, Mapping):
        return tuple(Feature(student=ours, teacher=theirs) for ours, theirs in given.items())
    if isinstance(given, Feature):
        return (given,)
    if isinstance(given, str) or not all(isinstance(item, Feature) for item in given):
        raise SettingsError(
            "`features` are `Feature`s, or a mapping of the student's layers to the teacher's. "
            f"Received: {given!r}. Write `features={{'conv_2': 'conv_5'}}`."
        )
    return tuple(given)


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf


def _check_positive(value: Any, name: str) -> None:
    if not _is_weight(value) or value <= 0:
        raise SettingsError(f"`{name}` is a positive number. Received: {value!r}.")
