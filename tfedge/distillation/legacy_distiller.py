"""The tf_keras model that trains its student with a teacher."""

import tf_keras

from tfedge.distillation.distilling import DistillingModel


@tf_keras.saving.register_keras_serializable("tfedge")
class LegacyDistiller(DistillingModel, tf_keras.Model):
    """A tf_keras model that trains its student with a teacher.

    All is as for `Distiller`, of which this is the counterpart for models of tf_keras.

    Example:
        >>> distiller = LegacyDistiller(student, "teacher.h5", temperature=3)     # doctest: +SKIP
        >>> distiller.compile("adam", "sparse_categorical_crossentropy")          # doctest: +SKIP
        >>> distiller.fit(x, y, epochs=5)                                         # doctest: +SKIP
    """

    keras_name = "tf_keras"
