"""Let every `fit` of a model learn from a teacher, and leave the model as it was."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfedge.data.nests import Arrays, leaves, map_leaves
from tfedge.distillation import packing
from tfedge.distillation.caching import TeacherCache
from tfedge.distillation.forms import Form, ports_of, student_form, teacher_form
from tfedge.distillation.lesson import Lesson
from tfedge.distillation.matching import check_fit, match_outputs
from tfedge.distillation.projections import Projection
from tfedge.distillation.recording import Recorder, replaced
from tfedge.distillation.settings import Distillation, Feature
from tfedge.distillation.teachers import open_teacher
from tfedge.errors import DataError, SettingsError
from tfedge.models import is_compiled, keras_of

PROBED = 64  # samples that the form of outputs and the shapes of layers are read from


@dataclass
class Session:
    """A student with a teacher.

    Attributes:
        fits: Trainings so far.
        projections: Of the last training, by place of the feature.
    """

    fits: int = 0
    projections: Sequence[Projection | None] = ()


@contextmanager
def taught(
    settings: Distillation,
    model: Any,
    student: Any = None,
    matrices: Sequence[np.ndarray | None] = (),
) -> Iterator[Session]:
    """While the block runs, every `model.fit` learns from the teacher.

    The loss is put into the model's own training step, so that what looks at `callback.model`,
    constraints and wrappers finds the model that it knows.

    Args:
        settings: The distillation.
        model: What is trained.
        student: The model in it that has the graph. Default: `model` itself.
        matrices: Projections to go on from, by place of the feature.

    Raises:
        SettingsError: Teacher and student do not fit together.
    """
    student = model if student is None else student
    keras_of(model)
    teachers = _open(settings)
    check_fit(teachers, student, settings)
    session = Session()
    original = model.fit

    def fit(*args: Any, **kwargs: Any) -> Any:  # as Keras's own is called
        bound = inspect.signature(original).bind(*args, **kwargs)
        session.fits += 1
        if not is_compiled(model):
            return original(*args, **kwargs)  # which says so
        training = _Training(settings, model, student, teachers, bound.arguments, matrices)
        session.projections = training.projections
        return training.run(original)

    with replaced((model, "fit", fit)):
        yield session


def _open(settings: Distillation) -> list[Any]:
    """The teachers of a distillation, opened once, and the cache that goes with it."""
    opened = settings._opened
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
        matrices: Sequence[np.ndarray | None],
    ) -> None:
        self._settings, self._model, self._student = settings, model, student
        self._teachers = teachers
        self._recorder = Recorder(student, [f.student for f in settings.features], "student")
        cache = None if settings.cache is False else settings._opened["cache"]
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
        )

    def run(self, original: Callable[..., Any]) -> Any:
        """Train."""
        model, lesson = self._model, self._lesson
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
            if has_training:
                others["training"] = training
            return lesson.compute_loss(compute, x, y, **others)

        def compute_metrics(x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            return lesson.compute_metrics(score, x, y, y_pred, sample_weight)

        with ExitStack() as stack:
            stack.callback(_forget_traces, model)  # last: traced anew without the teacher
            stack.enter_context(self._recorder.listening())
            for teacher in self._teachers if self._pack.asks_in_step else ():
                stack.enter_context(teacher.listening())
            stack.enter_context(
                replaced(
                    (model, "train_step", lambda data: lesson.train_step(step, data)),
                    (model, "compute_loss", compute_loss),
                    (model, "compute_metrics", compute_metrics),
                    (model, "reset_metrics", lambda: lesson.reset_metrics(reset)),
                )
            )
            _forget_traces(model)
            return original(**self._pack.arguments)

    # ------------------------------------------------------------------ looking before training

    def _what_teachers_say(self) -> list[list[np.ndarray]] | None:
        """Outputs, then features, of each teacher for the probe."""
        if self._probe is None:
            return None
        probe: Arrays = self._probe
        if self._pack.said is not None:
            count = len(leaves(probe)[0])
            return [[np.asarray(part[:count]) for part in said] for said in self._pack.said]
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
        self, place: int, feature: Feature, outputs: int, matrices: Sequence[np.ndarray | None]
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
        projection = Projection(self._model, own[-1], theirs[-1], seed=place)
        before = matrices[place] if place < len(matrices) else None
        if before is not None:
            projection.set_matrix(before)
        return projection


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
