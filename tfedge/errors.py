"""Every error that tfedge raises.

    TfedgeError                  the work failed                    (exit code 1)
    ├── SettingsError            a setting out of its range         (exit code 2, also ValueError)
    ├── MissingExtraError        an optional install is absent      (also ImportError)
    ├── ModelError               a model cannot be loaded or used   (also ValueError)
    │   ├── UnsafeModelError     a model file carries code
    │   └── UnsupportedModelError  a stage cannot rebuild this kind of model
    ├── DataError                data do not fit the model          (also ValueError)
    ├── TrainingError            training did not do what was asked (also RuntimeError)
    ├── ConversionError          no `.tflite` could be made         (also RuntimeError)
    │   └── FloatOperatorsError  an integer file would hold float operators
    ├── FileFormatError          a `.tflite` file is not sound      (also ValueError)
    ├── DelegateError            the delegate asked for did not run (also RuntimeError)
    ├── CompilationError         no accelerator file could be made  (also RuntimeError)
    ├── VerificationError        a file does not match its model    (also AssertionError)
    └── FileWriteError           a file could not be written whole  (also OSError)

Messages state the rule, what was received, and the next move::

    try:
        tfedge.convert(model, mode="int8", calibration=images)
    except tfedge.TfedgeError as error:
        print(error)
"""

import difflib
from collections.abc import Iterable


class TfedgeError(Exception):
    """Base class of all errors that tfedge raises on purpose."""

    exit_code = 1


class SettingsError(TfedgeError, ValueError):
    """A setting is out of its range, or names something that does not exist."""

    exit_code = 2


class MissingExtraError(TfedgeError, ImportError):
    """A package of an optional install (`pip install "tfedge[...]"`) is missing."""


class ModelError(TfedgeError, ValueError):
    """A model cannot be loaded or used."""


class UnsafeModelError(ModelError):
    """A model file carries code and `unsafe=True` was not given."""


class UnsupportedModelError(ModelError):
    """A stage cannot rebuild this kind of model."""


class DataError(TfedgeError, ValueError):
    """Data do not fit the model, or cannot be read."""


class TrainingError(TfedgeError, RuntimeError):
    """Training did not do what was asked of it."""


class ConversionError(TfedgeError, RuntimeError):
    """No `.tflite` file could be made of the model."""


class FloatOperatorsError(ConversionError):
    """An integer file was asked for and float operators would be left in it."""


class FileFormatError(TfedgeError, ValueError):
    """A `.tflite` file is damaged or is something else."""


class DelegateError(TfedgeError, RuntimeError):
    """The delegate that was asked for cannot run this model here."""


class CompilationError(TfedgeError, RuntimeError):
    """An accelerator's compiler is absent, or did not make a file."""


class VerificationError(TfedgeError, AssertionError):
    """A file does not do what the model it came from does."""


class FileWriteError(TfedgeError, OSError):
    """A file could not be written whole; what stood there before is untouched."""


class TfedgeWarning(UserWarning):
    """Something worth a look that did not stop the work."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The sentence that offers the nearest option, or an empty string.

    Args:
        name: What the user wrote.
        options: What would have been right.

    Example:
        >>> did_you_mean("dense_l", ["conv", "dense_1"])
        " Did you mean 'dense_1'?"
        >>> did_you_mean("zebra", ["conv", "dense_1"])
        ''
    """
    near = difflib.get_close_matches(str(name), [str(option) for option in options], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
