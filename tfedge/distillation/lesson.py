"""What a student learns in a training step: labels, what the teacher says, its layers."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from tfedge.distillation import losses
from tfedge.distillation.forms import Form
from tfedge.distillation.projections import Projection
from tfedge.distillation.recording import Recorder
from tfedge.distillation.settings import Distillation
from tfedge.errors import SettingsError
from tfedge.models import import_keras, keras_of, scope_of

# What a batch's y holds where more than labels travels with the samples.
LABELS, WEIGHTS, LABELLED, TEACHERS = (
    f"tfedge_{name}" for name in ("labels", "weights", "labelled", "teachers")
)
NO_LABEL = -1


@dataclass(frozen=True)
class Parts:
    """What a batch brings.

    Attributes:
        labels: As the user gave them; class number 0 where there is none. `None` without labels.
        weights: Sample weights times class weights; `None` for ones.
        labelled: (samples,), 1.0 where there is a label, else 0.0; `None` where there always is.
        teachers: For each teacher what it says, outputs then features; `None` where it is asked in
            the step.
    """

    labels: Any = None
    weights: Any = None
    labelled: Any = None
    teachers: Any = None


class Lesson:
    """The loss and the logs of one `fit` with a teacher.

    Args:
        settings: The distillation.
        model: What is trained.
        teachers: Open teachers.
        forms: Of each output of the student in flat order: its own form, and each teacher's.
        orders: For each teacher, the place among its outputs of each of the student's.
        recorder: Listens to the layers of the student.
        projections: For each feature the projection that its student's side goes through, or none.
        class_weight: As `fit` takes it.
        all_labelled: Whether every sample that is trained on is known to have a label.
    """

    def __init__(
        self,
        settings: Distillation,
        model: Any,
        *,
        teachers: Sequence[Any],
        forms: Sequence[tuple[Form, Sequence[Form]]],
        orders: Sequence[Sequence[int]],
        recorder: Recorder,
        projections: Sequence[Projection | None],
        class_weight: Mapping[int, float] | None = None,
        all_labelled: bool = False,
    ) -> None:
        self._settings = settings
        self._model = model
        self._teachers = teachers
        self._forms = forms
        self._orders = orders
        self._recorder = recorder
        self._projections = projections
        self._class_weight = class_weight
        self._all_labelled = all_labelled
        self._keras = import_keras(keras_of(model))
        self.steps = self.lessons = 0  # traced, of the training step and of the loss in it
        self._now = threading.local()  # every replica is traced in a thread of its own
        names = ["label_loss", "teacher_loss"]
        names += ["feature_loss"] if settings.features else []
        if keras_of(model) == "tf_keras":  # whose own `loss` is that of the labels
            names.append("loss")
        config = model.get_compile_config()  # Keras reads variables for it: not while tracing
        self._has_metrics = bool(config.get("metrics") or config.get("weighted_metrics"))
        with scope_of(model):
            self._means = _means_of(self._keras, names)

    # ------------------------------------------------------------------ in place of Keras's own

    def train_step(self, step: Callable[..., Any], data: Any) -> Any:
        """Keras's training step on the labels, with what the teacher says kept for the loss."""
        x, y, weights = self._keras.utils.unpack_x_y_sample_weight(data)
        parts = self._parts(y, weights, self._all_labelled)
        if parts.teachers is None:  # before the tape, which need not watch a teacher
            said = [teacher(x) for teacher in self._teachers]
            parts = replace(parts, teachers=tuple((*outs, *seen) for outs, seen in said))
        self._now.parts = parts
        self._recorder.start()
        self.steps += 1
        try:
            pack = self._keras.utils.pack_x_y_sample_weight
            return step(pack(x, parts.labels, parts.weights))
        finally:
            self._now.parts = None

    def compute_loss(self, compute: Callable[..., Any], x: Any, y: Any, **others: Any) -> Any:
        """The student's own loss, and in training the teacher's with it."""
        taught = vars(self._now).get("parts")
        parts = taught or self._parts(y, others["sample_weight"])
        others["sample_weight"] = _times(parts.weights, parts.labelled)
        if taught is None:
            return compute(x=x, y=parts.labels, **others)
        self.lessons += 1
        settings, regularisation = self._settings, _sum(self._model.losses) / _replicas()
        own = regularisation
        if parts.labels is not None:
            own = tf.cast(compute(x=x, y=parts.labels, **others), tf.float32)
        student = tf.nest.flatten(others["y_pred"])
        rows = {"label_loss": own, "teacher_loss": self._against_teachers(student, parts)}
        total = settings.label_weight * own + settings.teacher_weight * rows["teacher_loss"]
        if self._model.losses:  # counts in full, whatever the labels' share is
            total += (1 - settings.label_weight) * regularisation
        if settings.features:
            rows["feature_loss"] = self._against_features(parts)
            total += rows["feature_loss"]
        self._note({"loss": total, **rows}, tf.shape(student[0])[0])
        return total

    def compute_metrics(
        self, compute: Callable[..., Any], x: Any, y: Any, y_pred: Any, sample_weight: Any
    ) -> dict[str, Any]:
        """The student's own metrics on samples with labels, and in training the losses."""
        taught = vars(self._now).get("parts")
        parts = taught or self._parts(y, sample_weight)
        given = (x, parts.labels, y_pred, parts.weights)
        if parts.labels is None:
            logs = self.all_losses()
        elif parts.labelled is None:
            logs = dict(compute(*given))
        elif self._model.jit_compile:
            self._check_no_metrics()
            logs = dict(compute(*given))
        else:
            there = parts.labelled > 0
            logs = dict(compute(x, *(_only(value, there) for value in given[1:])))
        if taught is not None:
            logs |= self.losses()
        return logs

    def all_losses(self) -> dict[str, Any]:
        """The same with the whole loss, for an epoch without metrics."""
        own = {m.name: m.result() for m in self._model.metrics if m.name == "loss"}
        return own | self.losses()

    def _check_no_metrics(self) -> None:
        if self._has_metrics:
            raise SettingsError(
                "Metrics leave out samples without a label, and XLA knows no batches whose size "
                "depends on their content. Received: metrics, samples without labels and "
                "jit_compile=True. Compile with `jit_compile=False`, or without metrics."
            )

    def losses(self) -> dict[str, Any]:
        """The mean losses of the epoch so far, by name."""
        return dict(self._means.result())

    def reset_metrics(self, reset: Callable[[], None]) -> None:
        """As Keras does before an epoch."""
        reset()
        self._means.reset_state()

    # ------------------------------------------------------------------ parts of a batch

    def _parts(self, y: Any, weights: Any, all_labelled: bool = False) -> Parts:
        if not isinstance(y, Mapping) or not _is_packed(y):
            parts = Parts(y, weights)
        else:
            parts = Parts(y.get(LABELS), y.get(WEIGHTS), y.get(LABELLED), y.get(TEACHERS))
        if not all_labelled and self._by_number(parts.labels):
            there = tf.not_equal(parts.labels, NO_LABEL)
            mask = tf.cast(tf.reshape(there, [tf.shape(there)[0], -1])[:, 0], tf.float32)
            labels = tf.where(there, parts.labels, tf.zeros_like(parts.labels))
            parts = replace(parts, labels=labels, labelled=_times(parts.labelled, mask))
        if self._class_weight is not None:
            by_class = _class_weights(self._class_weight, parts.labels, parts.labelled)
            parts = replace(parts, weights=_times(parts.weights, by_class))
        return parts

    def _by_number(self, labels: Any) -> bool:
        """Whether labels are class numbers, one for each sample."""
        if labels is None or isinstance(labels, Mapping | list | tuple) or len(self._forms) > 1:
            return False
        single = len(labels.shape) == 1 or (len(labels.shape) == 2 and labels.shape[1] == 1)
        is_int = tf.as_dtype(labels.dtype).is_integer and not tf.as_dtype(labels.dtype).is_unsigned
        return self._forms[0][0].kind == "classes" and single and is_int

    # ------------------------------------------------------------------ losses

    def _against_teachers(self, student: Sequence[Any], parts: Parts) -> Any:
        settings = self._settings
        total = tf.zeros(())
        for place, (output, (form, theirs)) in enumerate(zip(student, self._forms, strict=True)):
            said = [
                _raw(outputs[order[place]], their)
                for outputs, order, their in zip(parts.teachers, self._orders, theirs, strict=True)
            ]
            own, shares = _raw(output, form), settings.teacher_weights
            if form.kind == "values":
                rows = losses.value_loss(own, said, weights=shares)
            else:
                soft = losses.soft_label_loss
                soft = losses.soft_binary_loss if form.kind == "binary" else soft
                rows = soft(own, said, temperature=settings.temperature, weights=shares)
            total += losses.weighted_mean(rows, _of_output(parts.weights, place))
        return total / _replicas()

    def _against_features(self, parts: Parts) -> Any:
        features = self._settings.features
        ours = self._recorder.outputs([feature.student for feature in features])
        teacher = self._teachers[0]
        behind = len(self._orders[0])  # a teacher's outputs come before its features
        total = tf.zeros(())
        for feature, own, projection in zip(features, ours, self._projections, strict=True):
            said = parts.teachers[0][behind + teacher.features.index(feature.teacher)]
            weights = _of_output(parts.weights, 0)
            if projection is None:
                rows = losses.FEATURE_LOSSES[feature.loss](own, said)
            else:
                rows = projection.losses(own, said, weights)
            total += feature.weight * losses.weighted_mean(rows, weights)
        return total / _replicas()

    def _note(self, rows: Mapping[str, Any], samples: Any) -> None:
        shares = {name: tf.cast(value, tf.float32) * _replicas() for name, value in rows.items()}
        self._means.update_state(shares, tf.cast(samples, tf.float32))  # each was a replica's share


def _means_of(keras: Any, names: Sequence[str]) -> Any:
    """A metric that holds the means of several losses in one variable, which is faster."""

    class Means(keras.metrics.Metric):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(name="tfedge_losses", dtype="float32")
            shape = (len(names) + 1,)  # the sums, and the number of samples
            self.sums = self.add_weight(shape=shape, initializer="zeros", name="sums")

        def update_state(self, losses: Mapping[str, Any], samples: Any) -> None:
            seen = [losses[name] * samples for name in names]
            self.sums.assign_add(tf.stack([*seen, samples]))

        def result(self) -> dict[str, Any]:
            sums = tf.unstack(tf.convert_to_tensor(self.sums))
            return {
                n: tf.math.divide_no_nan(v, sums[-1]) for n, v in zip(names, sums[:-1], strict=True)
            }

        def reset_state(self) -> None:
            self.sums.assign(tf.zeros(len(names) + 1))

    return Means()


def _is_packed(y: Mapping[str, Any]) -> bool:
    return TEACHERS in y or LABELLED in y


def _raw(outputs: Any, form: Form) -> Any:
    if form.kind == "values":
        return outputs
    return losses.logits_of(outputs, probabilities=form.probabilities, binary=form.kind == "binary")


def _replicas() -> float:
    return float(tf.distribute.get_strategy().num_replicas_in_sync)


def _sum(values: Sequence[Any]) -> Any:
    return tf.add_n([tf.cast(tf.reduce_sum(v), tf.float32) for v in values]) if values else 0.0


def _times(weights: Any, factor: Any) -> Any:
    """Sample weights, alone or by output, times one factor per sample."""
    if weights is None or factor is None:
        return factor if weights is None else weights

    def multiplied(weight: Any) -> Any:
        weight = tf.cast(weight, tf.float32)
        ones = [1] * (weight.shape.rank - 1)
        return weight * tf.reshape(factor, [-1, *ones])

    return tf.nest.map_structure(multiplied, weights)


def _of_output(weights: Any, place: int) -> Any:
    flat = [] if weights is None else tf.nest.flatten(weights)
    return None if not flat else flat[place if len(flat) > 1 else 0]


def _only(values: Any, there: Any) -> Any:
    if values is None:
        return None
    return tf.nest.map_structure(lambda value: tf.boolean_mask(value, there), values)


def _class_weights(table: Mapping[int, float], labels: Any, labelled: Any) -> Any:
    """The weight of each sample's class; of samples without a label, 1."""
    if labels.shape.rank > 1 and labels.shape[-1] != 1:
        labels = tf.argmax(labels, axis=-1)
    numbers = tf.cast(tf.reshape(labels, [-1]), tf.int32)
    size = max(table) + 1
    known = tf.constant([table.get(number, 1.0) for number in range(size)], tf.float32)
    inside = tf.logical_and(numbers >= 0, numbers < size)
    found = tf.where(inside, tf.gather(known, tf.where(inside, numbers, 0)), 1.0)
    return found if labelled is None else tf.where(labelled > 0, found, 1.0)
