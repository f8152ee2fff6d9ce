"""Import TFMOT, and leave the process as it was.

TensorFlow Model Optimization (TFMOT) 0.8.1 sets `TF_USE_LEGACY_KERAS=1` when it is imported. Left
standing, `tf.keras` would be tf_keras for all later code and for every child process.
"""

import contextlib
import functools
import importlib
import os
import warnings
from typing import Any

from tfedge.errors import MissingExtraError

_VARIABLE = "TF_USE_LEGACY_KERAS"


@functools.cache
def tfmot() -> Any:
    """The module `tensorflow_model_optimization`, imported once.

    `tf.keras` is resolved before the import and `os.environ` is put back after it.

    Raises:
        MissingExtraError: TensorFlow, tf_keras or TFMOT is not installed.
    """
    tensorflow = _import("tensorflow")
    with contextlib.suppress(ImportError):  # no Keras 3 here: there is nothing to protect
        _ = tensorflow.keras.__version__
    before = os.environ.get(_VARIABLE)
    try:
        _import("tf_keras")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TFMOT uses `distutils`
            return _import("tensorflow_model_optimization")
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before


def tf_keras() -> Any:
    """The module `tf_keras` (Keras 2), the one that TFMOT works on.

    Raises:
        MissingExtraError: It is not installed.
    """
    return _import("tf_keras")


def internals(name: str) -> Any:
    """A module of TFMOT that its public API does not name, such as `"quantize_wrapper"`.

    Args:
        name: Dotted path below `tensorflow_model_optimization.python.core`.
    """
    tfmot()
    return importlib.import_module(f"tensorflow_model_optimization.python.core.{name}")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise MissingExtraError(
            f"tf_keras models are pruned and quantized by TFMOT, and `{missing}` could not be "
            f'imported ({error}). Install it with `pip install "tfedge[train]"`.'
        ) from error
