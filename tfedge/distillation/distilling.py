"""A model that trains its student with a teacher: what the `Distiller`s of both Kerases share."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from tfedge.distillation.forms import ports_of
from tfedge.distillation.settings import Distillation, Feature, as_features
from tfedge.distillation.teaching import Teaching
from tfedge.errors import SettingsError
from tfedge.models import import_keras, keras_of

OTHER = {"keras": "LegacyDistiller", "tf_keras": "Distiller"}


class DistillingModel:
    """Stands before `keras.Model` in the classes of a `Distiller`.

    Args:
        student: The model that learns, of the class's Keras.
        teacher: As for `Distillation`; `None` to give it later.
        temperature: As for `Distillation`.
        alpha: As for `Distillation`.
        weights: As for `Distillation`.
        features: As for `Distillation`.
        teacher_weights: As for `Distillation`.
        cache: As for `Distillation`.
        unlabelled: As for `Distillation`.
        kind: As for `Distillation`.
        name: Of the model.
    """

    keras_name: ClassVar[str]

    def __init__(
        self,
        student: Any,
        teacher: Any = None,
        *,
        temperature: float = 4.0,
        alpha: float | None = None,
        weights: tuple[float, float] | None = None,
        features: Any = (),
        teacher_weights: Sequence[float] | None = None,
        cache: bool | str | os.PathLike[str] = True,
        unlabelled: Any = None,
        kind: str | None = None,
        name: str = "distiller",
    ) -> None:
        super().__init__(name=name)  # type: ignore[call-arg]  # Keras's
        if keras_of(student) != self.keras_name:
            raise SettingsError(
                f"This `Distiller` trains a student of `{self.keras_name}`. Received: a model of "
                f"`{keras_of(student)}`. Take `{OTHER[self.keras_name]}` of `tfedge.distillation`."
            )
        self.student = student
        self._settings = _Settings(
            {
                "temperature": temperature,
                "alpha": alpha,
                "weights": weights,
                "features": features,
                "teacher_weights": teacher_weights,
                "cache": cache,
                "unlabelled": unlabelled,
                "kind": kind,
            }
        )
        if teacher is not None:
            self.give_teacher(teacher)
        ports = ports_of(student)
        if ports is not None and len(ports) > 1:
            self.output_names = [port.name for port in ports]
        self.built = bool(student.built)

    def give_teacher(self, teacher: Any) -> None:
        """Learn from this teacher from now on.

        Args:
            teacher: As for `Distillation`.

        Raises:
            SettingsError: A setting of this distiller is wrong.
        """
        self._settings.distillation = Distillation(teacher, **self._settings.given)

    def call(self, inputs: Any, training: Any = None) -> Any:
        """What the student says."""
        return self.student(inputs, training=training)  # type: ignore[operator]  # Keras sets it

    def fit(self, *args: Any, **kwargs: Any) -> Any:  # as Keras's own is called
        """Train the student; arguments and result are those of Keras's `fit`.

        Raises:
            SettingsError: There is no teacher, or it does not fit the student.
        """
        if self._settings.distillation is None:
            raise SettingsError(
                "A distiller trains with a teacher. Received: none; of a saved distiller's "
                "teacher only the path is stored. Give it back: `distiller.give_teacher(teacher)`."
            )
        teaching = Teaching(
            self._settings.distillation, self, self.student, self._settings.matrices
        )
        result = teaching.fit(super().fit, *args, **kwargs)  # type: ignore[misc]  # Keras's
        self._settings.matrices = teaching.matrices()
        return result

    def get_config(self) -> dict[str, Any]:
        """The student and the settings; of the teacher, the path."""
        saving = import_keras(self.keras_name).saving
        given = self._settings.given
        own = {key: given[key] for key in ("temperature", "alpha", "teacher_weights", "kind")}
        return {
            **own,
            "weights": None if given["weights"] is None else list(given["weights"]),
            "features": [asdict(feature) for feature in as_features(given["features"])],
            "cache": given["cache"] if isinstance(given["cache"], bool) else str(given["cache"]),
            "teacher": self._settings.teacher_paths(),
            "student": saving.serialize_keras_object(self.student),
            "name": self.name,  # type: ignore[attr-defined]  # Keras's
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Any:
        """The distiller of a configuration."""
        saving = import_keras(cls.keras_name).saving
        given = dict(config)
        student = saving.deserialize_keras_object(
            given.pop("student"), custom_objects=custom_objects
        )
        given["features"] = [Feature(**feature) for feature in given["features"]]
        given["weights"] = None if given["weights"] is None else tuple(given["weights"])
        return cls(student, **given)

    def save_own_variables(self, store: Any) -> None:
        """The projections of features; Keras saves the student and the optimizer."""
        for place, matrix in self._settings.matrices.items():
            store[f"projection_{place}"] = matrix

    def load_own_variables(self, store: Any) -> None:
        """The projections of features."""
        names = [name for name in store.keys() if name.startswith("projection_")]  # noqa: SIM118
        self._settings.matrices = {
            int(name.removeprefix("projection_")): np.array(store[name]) for name in names
        }


class _Settings:
    """What Keras must not look into for weights: teacher, settings, projections."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.distillation: Distillation | None = None
        self.matrices: dict[int, np.ndarray] = {}

    def teacher_paths(self) -> Any:
        """The paths of the teachers; `None` if one is not a path."""
        if self.distillation is None:
            return None
        sources = self.distillation.sources()
        if not all(isinstance(source, str | os.PathLike) for source in sources):
            return None
        return [os.fspath(source) for source in sources]
