"""Open a teacher: a Keras model of either Keras, a file of one, or a `.tflite`."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tfedge.data.nests import leaves, map_leaves
from tfedge.distillation.forms import Port, ports_of
from tfedge.distillation.recording import Recorder
from tfedge.errors import SettingsError, TrainingError
from tfedge.models import check_finite, import_keras, is_model, load_model
from tfedge.runtime import open_model

BATCH = 256  # samples that a teacher sees at once where its outputs are kept


def open_teacher(source: Any) -> "KerasTeacher | FileTeacher":
    """A teacher from what a user has of one.

    Args:
        source: A Keras model of either Keras; the path of a `.keras`, `.h5` or `.tflite` file; or
            the content of a `.tflite` file.

    Raises:
        SettingsError: It is none of these.
        ModelError: The file cannot be loaded, or weights are not finite.
        FileFormatError: The `.tflite` is not sound.
    """
    if is_model(source):
        return KerasTeacher(source)
    if isinstance(source, bytes):
        return FileTeacher(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix == ".tflite":
            return FileTeacher(path)
        return KerasTeacher(load_model(path))
    raise SettingsError(
        "A teacher is a Keras model, the path of one (`.keras`, `.h5`, `.tflite`), or the content "
        f"of a `.tflite` file. Received: {str(source)[:80]!r} of type `{type(source).__name__}`."
    )


class KerasTeacher:
    """A Keras model that teaches. Weights, flags and compile state of it stay as they are.

    Args:
        model: Of either Keras.
        features: Names of the layers whose outputs are wanted beside its own.

    Raises:
        ModelError: Weights are not finite.
        SettingsError: It has no layer of such a name.
    """

    in_graph = True

    def __init__(self, model: Any, features: Sequence[str] = ()) -> None:
        check_finite(model)
        self.model = model
        self.name = str(model.name)
        self.ports: tuple[Port, ...] | None = ports_of(model)
        self.features = tuple(dict.fromkeys(features))
        self.recorder = Recorder(model, self.features, "teacher")
        self._tf = import_keras("tensorflow")
        self._graphs: dict[str, Any] = {}

    def with_features(self, features: Sequence[str]) -> "KerasTeacher":
        """The same teacher, whose layers of these names speak too."""
        return KerasTeacher(self.model, features)

    @property
    def input_shapes(self) -> list[tuple[int | None, ...]] | None:
        """Shapes of its inputs without the batch axis; `None` for a model without a graph."""
        if self.ports is None:
            return None
        return [tuple(tensor.shape[1:]) for tensor in self.model.inputs]

    def __call__(self, x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Outputs, in flat order, and features, as tensors; while `listening`."""
        tf = self._tf
        self.recorder.start()
        outputs = tf.nest.flatten(self.model(x, training=False))
        seen = self.recorder.outputs(self.features)
        return tuple(map(tf.stop_gradient, outputs)), tuple(map(tf.stop_gradient, seen))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the block runs, the teacher can be called."""
        with self.recorder.listening():
            yield

    def outputs(self, x: Any) -> list[np.ndarray]:
        """Outputs, then features, of some samples (at most a batch) as arrays.

        Args:
            x: An array, or a tuple or dict of them.
        """
        tensors = map_leaves(self._tf.convert_to_tensor, x)
        given: Any = list(tensors) if isinstance(tensors, tuple) else tensors
        with self.listening():
            said, seen = self._traced(given)(given)
        return [tensor.numpy() for tensor in (*said, *seen)]

    def _traced(self, given: Any) -> Any:
        """The teacher as one graph for any number of samples of this shape and type."""
        tf = self._tf
        specs = tf.nest.map_structure(
            lambda part: tf.TensorSpec((None, *part.shape[1:]), part.dtype), given
        )
        if repr(specs) not in self._graphs:
            function = tf.function(self.__call__, autograph=False)
            self._graphs[repr(specs)] = function.get_concrete_function(specs)
        return self._graphs[repr(specs)]

    def identity(self, sample: Any) -> bytes:
        """A digest that another teacher does not have: of weights, and of what it says."""
        digest = hashlib.blake2b(digest_size=20)
        for weight in self.model.get_weights():
            _digest_array(digest, weight)
        for values in self.outputs(sample):  # the function counts, too
            _digest_array(digest, values)
        digest.update(repr(self.features).encode())
        return digest.digest()


class FileTeacher:
    """A `.tflite` file that teaches: it runs in LiteRT, outside of the training step.

    Args:
        source: Path, or content.
    """

    in_graph = False
    features: tuple[str, ...] = ()

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        self._content = source if isinstance(source, bytes) else Path(source).read_bytes()
        self._model = open_model(source)
        self.name = "the .tflite teacher" if isinstance(source, bytes) else Path(source).name
        self.ports: tuple[Port, ...] | None = tuple(
            Port(info.label, tuple(info.shape[1:])) for info in self._model.outputs
        )

    def with_features(self, features: Sequence[str]) -> "FileTeacher":
        """The same teacher.

        Raises:
            SettingsError: Features are asked for.
        """
        if features:
            raise SettingsError(
                f"`features` compares layers, which a `.tflite` teacher does not show. Received: "
                f"{features[0]!r}. Leave `features` out, or teach with the Keras model."
            )
        return self

    @property
    def input_shapes(self) -> list[tuple[int | None, ...]] | None:
        """Shapes of its inputs without the batch axis."""
        return [tuple(info.shape[1:]) for info in self._model.inputs]

    def outputs(self, x: Any) -> list[np.ndarray]:
        """Outputs of some samples, as real numbers."""
        said = self._model.predict(x)
        return list(said) if isinstance(said, list) else [said]

    def identity(self, sample: Any) -> bytes:
        """A digest of the file."""
        return hashlib.blake2b(self._content, digest_size=20).digest()


def check_finite_outputs(values: Sequence[np.ndarray], teacher: Any, start: int) -> None:
    """Refuse a teacher that says NaN or infinity.

    Args:
        values: Its outputs for some samples.
        teacher: It.
        start: Number of the first of these samples.

    Raises:
        TrainingError: It does; the sample is named.
    """
    for array in values:
        bad = ~np.isfinite(np.asarray(array, np.float32)).reshape(len(array), -1).all(axis=1)
        if bad.any():
            raise TrainingError(
                "A teacher's outputs must be finite numbers. Received: NaN or infinity from "
                f"`{teacher.name}` for sample {start + int(np.argmax(bad))}. Check the teacher "
                "with `tfedge.verify`, and that the data are scaled as it was trained."
            )


def digest_of(x: Any) -> bytes:
    """A digest of arrays: shapes, types and every value."""
    digest = hashlib.blake2b(digest_size=20)
    if isinstance(x, dict):
        digest.update(repr(sorted(x)).encode())
        x = {name: x[name] for name in sorted(x)}
    for leaf in leaves(x):
        _digest_array(digest, leaf)
    return digest.digest()


def _digest_array(digest: Any, array: np.ndarray) -> None:
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
