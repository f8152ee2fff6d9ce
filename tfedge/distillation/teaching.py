"""Let every `fit` of a model learn from a teacher, and leave the model as it was."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from tfedge.data.nests import Arrays, map_leaves
from tfedge.distillation import packing
from tfedge.distillation.caching import TeacherCache
from tfedge.distillation.forms import Form, ports_of, student_form, teacher_form
from tfedge.distillation.lesson import Lesson
from tfedge.distillation.lookup import known_samples
from tfedge.distillation.matching import check_fit, match_outputs
from tfedge.distillation.projections import Projection
from tfedge.distillation.recording import Recorder, replaced
from tfedge.distillation.settings import Distillation, Feature
from tfedge.distillation.teachers import open_teacher
from tfedge.errors import DataError, SettingsError, TrainingError
from tfedge.models import is_compiled, keras_of

PROBED = 64  # samples that the form of outputs and the shapes of layers are read from


class Teaching:
    """A student and its teachers, checked to fit together; trains with the loss of both.

    The loss is put into the model's own training step, so that what looks at `callback.model`,
    constraints and wrappers finds the model that it knows.

    Args:
        settings: The distillation.
        model: What is trained.
        student: The model in it that has the graph. Default: `model` itself.
        matrices: Projections to go on from, by place of the feature.

    Attributes:
        fits: Trainings so far.

    Raises:
        SettingsError: Teacher and student do not fit together.
    """

    def __init__(
        self,
        settings: Distillation,
        model: Any,
        student: Any = None,
        matrices: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        self._settings, self._model = settings, model
        self._student = model if student is None else student
        self._teachers = _open(settings)
        check_fit(self._teachers, self._student, settings)
        self._matrices = dict(matrices or {})
        self._projections: Sequence[Projection | None] = ()
        self.fits = 0

    def fit(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call Keras's `fit` of the model, with the teacher.

        Args:
            original: It.
            *args: Its arguments, as Keras takes them.
            **kwargs: Its arguments, as Keras takes them.
        """
        self.fits += 1
        if not is_compiled(self._model):
            return original(*args, **kwargs)  # which says so
        training = _Training(
            self._settings,
            self._model,
            self._student,
            self._teachers,
            inspect.signature(original).bind(*args, **kwargs).arguments,
            self._matrices,
        )
        self._projections = training.projections
        return training.run(original)

    def matrices(self) -> dict[int, np.ndarray]:
        """The projections that the last training left, by place of the feature."""
        found = {place: p.matrix for place, p in enumerate(self._projections) if p is not None}
        return {**self._matrices, **found}


@contextmanager
def taught(settings: Distillation, student: Any) -> Iterator[Teaching]:
    """While the block runs, every `student.fit` learns from the teacher.

    Args:
        settings: The distillation.
        student: A model of either Keras.

    Raises:
        SettingsError: Teacher and student do not fit together.
    """
    keras_of(student)
    teaching = Teaching(settings, student)
    fit = functools.partial(teaching.fit, student.fit)
    with replaced((student, "fit", fit)):
        yield teaching


def _open(settings: Distillation) -> list[Any]:
    """The teachers of a distillation, opened once, and the cache that goes with it."""
    opened = settings.opened
    if not opened:
        wanted = list(dict.fromkeys(feature.teacher for feature in settings.features))
        folder = None if isinstance(settings.cache, bool) else settings.cache
        teachers = [open_teacher(source).with_features(wanted) for source in settings.sources()]
        opened |= {"teachers": teachers, "cache": TeacherCache(folder)}
    return list(opened["teachers"])


class _Training:
    """One `fit`: its arguments with what the teacher says, and the lesson for its steps."""

    def __init__(
        self,
        settings: Distillation,
        model: Any,
        student: Any,
        teachers: Sequence[Any],
        arguments: Mapping[str, Any],
        matrices: Mapping[int, np.ndarray],
    ) -> None:
        self._settings, self._model, self._student = settings, model, student
        self._teachers = teachers
        self._recorder = Recorder(student, [f.student for f in settings.features], "student")
        cache = None if settings.cache is False else settings.opened["cache"]
        self._pack = packing.Pack(dict(arguments), teachers, cache, settings.unlabelled)
        self._probe = packing.first_samples(self._pack.x, PROBED)
        self._said = self._what_teachers_say()
        self._student_says: list[np.ndarray] | None = None
        orders = [match_outputs(teacher, student, settings) for teacher in teachers]
        forms = self._forms(orders)
        self.projections = [
            self._projection(place, feature, len(orders[0]), matrices)
            for place, feature in enumerate(settings.features)
        ]
        self._lesson = Lesson(
            settings,
            model,
            teachers=teachers,
            forms=forms,
            orders=orders,
            recorder=self._recorder,
            projections=self.projections,
            class_weight=self._pack.class_weight,
            all_labelled=self._pack.all_labelled,
        )

    def run(self, original: Callable[..., Any]) -> Any:
        """Train."""
        model, lesson = self._model, self._lesson
        with ExitStack() as stack:
            stack.callback(_forget_traces, model)  # last: traced anew without the teacher
            stack.enter_context(self._recorder.listening())
            for teacher in self._teachers if self._pack.asks_in_step else ():
                stack.enter_context(teacher.listening())
            stack.enter_context(replaced(*_methods(model, lesson)))
            if not self._pack.has_labels:  # nor are there metrics
                stack.enter_context(replaced((model, "get_metrics_result", lesson.all_losses)))
            stack.enter_context(known_samples())
            _forget_traces(model)
            result = original(**self._pack.arguments)
        if lesson.steps and not lesson.lessons:
            raise TrainingError(
                "Distillation works in `compute_loss`. Received: "
                f"`{model.name}`, whose class `{type(model).__name__}` has a `train_step` that "
                "computes its loss without it, so that the teacher was not heard. Call "
                "`self.compute_loss(x=…, y=…, y_pred=…, sample_weight=…)` in it."
            )
        return result

    # ------------------------------------------------------------------ looking before training

    def _what_teachers_say(self) -> list[list[np.ndarray]] | None:
        """Outputs, then features, of each teacher for the probe."""
        if self._probe is None:
            return None
        probe: Arrays = self._probe
        if self._pack.said is not None:
            return [[np.asarray(part[:PROBED]) for part in said] for said in self._pack.said]
        return [teacher.outputs(probe) for teacher in self._teachers]

    def _forms(self, orders: Sequence[Sequence[int]]) -> list[tuple[Form, list[Form]]]:
        ports = ports_of(self._student)
        count = len(ports) if ports is not None else len(orders[0])
        by_output = _losses(self._model, ports, count)
        found = []
        for place in range(count):
            port = None if ports is None else ports[place]
            said = None
            if port is None or port.activation not in ("softmax", "sigmoid", "linear"):
                outputs = self._student_outputs()
                said = None if outputs is None else outputs[place]
            form = student_form(port, by_output[place], said, self._settings.kind)
            theirs = []
            for number, (teacher, order) in enumerate(zip(self._teachers, orders, strict=True)):
                their_port = None if teacher.ports is None else teacher.ports[order[place]]
                heard = None if self._said is None else self._said[number][order[place]]
                theirs.append(teacher_form(their_port, form.kind, heard))
            found.append((form, theirs))
        return found

    def _student_outputs(self) -> list[np.ndarray] | None:
        """What the student says of the probe, which its layers are listened to for."""
        if self._probe is None:
            return None
        if self._student_says is None:
            given = map_leaves(tf.convert_to_tensor, self._probe)
            self._recorder.start()
            with self._recorder.listening():
                said = self._student(
                    list(given) if isinstance(given, tuple) else given, training=False
                )
            self._student_says = [np.asarray(part) for part in tf.nest.flatten(said)]
        return self._student_says

    def _projection(
        self, place: int, feature: Feature, outputs: int, matrices: Mapping[int, np.ndarray]
    ) -> Projection | None:
        if self._student_outputs() is None or self._said is None:
            raise DataError(
                "`features` looks at the shapes of layers on the first samples, which this data "
                "does not give twice. Give arrays or a `tf.data.Dataset`."
            )
        own = tuple(self._recorder.outputs([feature.student])[0].shape)
        names = self._teachers[0].features
        theirs = self._said[0][outputs + names.index(feature.teacher)].shape
        if feature.loss == "attention" and min(len(own), len(theirs)) < 3:
            raise SettingsError(
                "The loss 'attention' compares maps, (samples, height, width, channels). Received: "
                f"{feature.student!r} of shape {own} and {feature.teacher!r} of {theirs}. Take "
                "'mse' or 'relational'."
            )
        if feature.loss != "mse":
            return None
        if len(own) != len(theirs):
            raise SettingsError(
                f"The loss 'mse' compares layers of as many axes. Received: {feature.student!r} of "
                f"shape {own} and {feature.teacher!r} of {theirs}. Take 'relational', or other "
                "layers."
            )
        if own[-1] == theirs[-1]:
            return None
        if self._model.distribute_strategy.num_replicas_in_sync > 1:
            raise SettingsError(
                "A learned projection trains on one device: its updates and the student's would "
                f"wait for each other on several. Received: {feature.student!r} with {own[-1]} "
                f"channels, {feature.teacher!r} with {theirs[-1]}, under a strategy of "
                f"{self._model.distribute_strategy.num_replicas_in_sync} replicas. Take layers of "
                "as many channels, or 'attention' or 'relational'."
            )
        projection = Projection(self._model, own[-1], theirs[-1], seed=place)
        if place in matrices:
            projection.set_matrix(matrices[place])
        return projection


def _methods(model: Any, lesson: Lesson) -> list[tuple[Any, str, Callable[..., Any]]]:
    """What stands in for the methods of a model that Keras calls while it trains."""
    step, compute, score, reset = (
        model.train_step,
        model.compute_loss,
        model.compute_metrics,
        model.reset_metrics,
    )
    has_training = "training" in inspect.signature(compute).parameters

    def compute_loss(
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        others = {"y_pred": y_pred, "sample_weight": sample_weight}
        others |= {"training": training} if has_training else {}
        return lesson.compute_loss(compute, x, y, **others)

    def compute_metrics(x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return lesson.compute_metrics(score, x, y, y_pred, sample_weight)

    return [
        (model, "train_step", lambda data: lesson.train_step(step, data)),
        (model, "compute_loss", compute_loss),
        (model, "compute_metrics", compute_metrics),
        (model, "reset_metrics", lambda: lesson.reset_metrics(reset)),
    ]


def _forget_traces(model: Any) -> None:
    """Have the steps traced anew: Keras keeps the functions of an earlier fit."""
    model.make_train_function(force=True)
    model.make_test_function(force=True)


def _losses(model: Any, ports: Any, count: int) -> list[Any]:
    """The loss that each output is compiled with, in flat order."""
    loss = model.loss
    if isinstance(loss, Mapping):
        names = [None] * count if ports is None else [port.name for port in ports]
        return [loss.get(name) for name in names]
    if isinstance(loss, list | tuple):
        return list(loss) if len(loss) == count else [None] * count
    return [loss] * count
