"""Check that a teacher fits a student, and which of its outputs belongs to which."""

from collections.abc import Sequence
from typing import Any

from tfedge.distillation.forms import ports_of
from tfedge.distillation.recording import find_layer
from tfedge.distillation.settings import Distillation
from tfedge.errors import SettingsError
from tfedge.models import is_functional

Shape = tuple[int | None, ...]


def check_fit(teachers: Sequence[Any], student: Any, settings: Distillation) -> None:
    """Check all that can be known of teachers and student before there are data.

    Args:
        teachers: Open teachers.
        student: The model that learns.
        settings: The distillation.

    Raises:
        SettingsError: Inputs, outputs or classes differ, or a layer is not there.
    """
    for teacher, source in zip(teachers, settings.sources(), strict=True):
        if source is student:
            raise SettingsError(
                "A student learns from another model than itself. Received: "
                f"`{student.name}` as teacher and student. Teach with a copy made before: "
                "`keras.models.clone_model`, or the path of a saved one."
            )
        if settings.cache is False and not teacher.in_graph:
            raise SettingsError(
                "`cache=False` runs the teacher in the training step, which a `.tflite` cannot. "
                f"Received: `{teacher.name}`. Leave `cache` on."
            )
        _check_inputs(teacher, student)
        match_outputs(teacher, student, settings)
    for feature in settings.features:
        find_layer(student, feature.student, "student")


def match_outputs(teacher: Any, student: Any, settings: Distillation) -> list[int]:
    """The place among the teacher's outputs of each output of the student, in flat order.

    They are matched by name where both have the same names, else in their order.

    Raises:
        SettingsError: Their number or their shapes differ.
    """
    ours, theirs = ports_of(student), teacher.ports
    if ours is None or theirs is None:
        known = ours or theirs
        return list(range(1 if known is None else len(known)))
    names = [port.name for port in theirs]
    if len(ours) != len(theirs):
        raise SettingsError(
            f"Teacher and student have the same outputs. Received: {len(theirs)} of "
            f"`{teacher.name}` ({', '.join(names)}) and {len(ours)} of `{student.name}` "
            f"({', '.join(port.name for port in ours)}). Make a model of the outputs that both "
            "have: `keras.Model(inputs, outputs)`."
        )
    by_name = len(set(names)) == len(names) and {port.name for port in ours} == set(names)
    order = [names.index(port.name) if by_name else place for place, port in enumerate(ours)]
    for port, place in zip(ours, order, strict=True):
        if not _agree(port.shape, theirs[place].shape):
            raise SettingsError(_other_outputs(port, theirs[place], teacher, student))
    return order


def _check_inputs(teacher: Any, student: Any) -> None:
    shapes = teacher.input_shapes
    if shapes is None or not is_functional(student) or not student.built:
        return
    ours = [tuple(tensor.shape[1:]) for tensor in student.inputs]
    same = len(ours) == len(shapes) and all(map(_agree, ours, shapes))
    if not same and sorted(map(str, ours)) != sorted(map(str, shapes)):
        raise SettingsError(
            f"Teacher and student see the same inputs. Received: shapes {shapes} of "
            f"`{teacher.name}` and {ours} of `{student.name}`. Put what makes one from the other "
            "(resizing, another scale) into a model around the teacher."
        )


def _agree(first: Shape, second: Shape) -> bool:
    return len(first) == len(second) and all(
        a is None or b is None or a == b for a, b in zip(first, second, strict=True)
    )


def _other_outputs(port: Any, theirs: Any, teacher: Any, student: Any) -> str:
    if port.shape[:-1] == theirs.shape[:-1]:
        return (
            "Teacher and student tell the same classes apart. Received: "
            f"{theirs.shape[-1]} of `{teacher.name}` ({theirs.name}) and {port.shape[-1]} of "
            f"`{student.name}` ({port.name}). Give the student as many, or cut the teacher's "
            "outputs to those of the student."
        )
    return (
        f"Teacher and student have outputs of the same shape. Received: {theirs.shape} of "
        f"`{teacher.name}` ({theirs.name}) and {port.shape} of `{student.name}` ({port.name})."
    )
