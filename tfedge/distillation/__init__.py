"""Distil: a student learns from a teacher, under every stage, in both Kerases.

    fit = Distillation("teacher.keras", temperature=4).wrap(make_fit(data, epochs=5))
    student, report = Prune(sparsity=0.8).apply(student, Context(fit=fit))

    distiller = Distiller(student, teacher)              # in a Keras 3 script of one's own
    distiller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    distiller.fit(x, y, epochs=5)
    distiller.student.save("student.keras")

    with Distillation(teacher).teaching(student):        # the same for a model of either Keras
        student.fit(x, y, epochs=5)

The teacher is asked once for each sample, and then left alone: an epoch costs what it costs the
student. Importing this loads neither TensorFlow nor Keras; the losses and `Distiller` do.
"""

import importlib
from typing import Any

from tfedge.distillation.settings import Distillation, Feature

_LAZY = {
    "Distiller": "tfedge.distillation.distiller",
    "LegacyDistiller": "tfedge.distillation.legacy_distiller",
    "angle_loss": "tfedge.distillation.losses",
    "attention_loss": "tfedge.distillation.losses",
    "distance_loss": "tfedge.distillation.losses",
    "feature_loss": "tfedge.distillation.losses",
    "relational_loss": "tfedge.distillation.losses",
    "soft_binary_loss": "tfedge.distillation.losses",
    "soft_label_loss": "tfedge.distillation.losses",
    "value_loss": "tfedge.distillation.losses",
}

__all__ = ["Distillation", "Feature", *_LAZY]  # noqa: PLE0604  # names that __getattr__ loads


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tfedge.distillation' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
