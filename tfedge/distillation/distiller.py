"""The Keras 3 model that trains its student with a teacher."""

import keras

from tfedge.distillation.distilling import DistillingModel


@keras.saving.register_keras_serializable("tfedge")
class Distiller(DistillingModel, keras.Model):
    """A Keras 3 model that trains its student with a teacher.

    `compile`, `fit`, `evaluate`, `predict` and `save` are called as Keras's own. The student is
    what you keep: `distiller.student.save("student.keras")`.

    A saved distiller holds the student, the optimizer, the settings and the projections of
    features. A teacher given as a path is stored as that path; any other is left out, and given
    back with `give_teacher` before training goes on. Unlabelled samples are not stored.

    Args:
        student: The model that learns.
        teacher: As for `Distillation`; `None` to give it later.
        temperature: As for `Distillation`, like all that follow.
        alpha: Share of the teacher in the loss.
        weights: Instead of `alpha`.
        features: Layers that learn from layers.
        teacher_weights: Of several teachers.
        cache: Whether and where what the teacher says is kept.
        unlabelled: Further samples without labels.
        kind: What the outputs are.
        name: Of the model.

    Raises:
        SettingsError: A setting is wrong; in `fit`: teacher and student do not fit together.

    Example:
        >>> distiller = Distiller(student, "teacher.keras", temperature=3)        # doctest: +SKIP
        >>> distiller.compile("adam", "sparse_categorical_crossentropy")          # doctest: +SKIP
        >>> distiller.fit(x, y, epochs=5)                                         # doctest: +SKIP
        >>> distiller.save("distiller.keras")                                     # doctest: +SKIP
        >>> again = tfedge.load_model("distiller.keras")                          # doctest: +SKIP
        >>> again.fit(x, y, initial_epoch=5, epochs=8)                            # doctest: +SKIP
    """

    keras_name = "keras"
