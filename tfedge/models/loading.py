"""Load Keras models of every format; files that carry code are refused."""

import importlib
import logging
import os
import re
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tfedge.errors import (
    MissingExtraError,
    ModelError,
    SettingsError,
    TfedgeWarning,
    UnsafeModelError,
)
from tfedge.files import working_directory_importable
from tfedge.models.looking import import_keras, is_model
from tfedge.models.reading import FORMATS, ModelFile, read_file
from tfedge.models.safety import Named, find_classes, find_code, find_named, find_oversized

log = logging.getLogger("tfedge")

TFMOT_CLASSES = frozenset({"QuantizeWrapperV2", "QuantizeLayer", "QuantizeAwareActivation"})
UNKNOWN_NAME = re.compile(
    r"(?:Could not locate (?:class|function)|Unknown [a-z ]+:?) '?(?:[\w.]+>)?(\w+)'?"
)


def load_model(
    path: str | os.PathLike[str],
    *,
    custom_objects: Mapping[str, Any] | None = None,
    unsafe: bool = False,
    imports: Sequence[str] = (),
) -> Any:
    """Load a Keras model from a `.keras` file, an `.h5` file or a SavedModel folder.

    A `.keras` file is loaded by the Keras that wrote it, an `.h5` file by Keras 3 where that can,
    else by tf_keras. The logger `tfedge` says which. What tf_keras saved and Keras 3 loads comes
    uncompiled: the two do not share optimizers. Files that carry code (a `Lambda` layer, a
    marshalled function) are refused before any Keras sees them.

    Args:
        path: The file or folder.
        custom_objects: Classes and functions of one's own, by name.
        unsafe: Load a file that carries code, or a SavedModel. Loading it runs that code.
        imports: Modules that define classes of one's own, e.g. `("my_pkg.layers",)`. They are
            imported, and their classes and functions known by name.

    Returns:
        The model, of Keras 3 or tf_keras; compiled if it was saved so.

    Raises:
        UnsafeModelError: The file carries code and `unsafe` is not set.
        ModelError: There is no such file, it is damaged, it holds only weights, or it uses a class
            that is not known.
        MissingExtraError: Keras is not installed.

    Example:
        >>> model = load_model("classifier.keras", imports=["my_pkg.layers"])  # doctest: +SKIP
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(f"A model is loaded from a file that exists. Received: `{path}`.")
    objects = {**_imported(imports), **(custom_objects or {})}
    if path.is_dir():
        return _load_saved_model(path, objects, unsafe)
    file = read_file(path)
    if not unsafe:
        _check_safe(file)
    _check_size(file)
    with _scope_of(file):
        if not unsafe:
            _check_known(file, objects)
        return _load_file(file, objects, unsafe)


def _imported(modules: Sequence[str]) -> dict[str, Any]:
    """The classes and functions of these modules, by name."""
    if isinstance(modules, str):
        raise SettingsError(
            f"`imports` is a list of modules. Received: {modules!r}. Write [{modules!r}]."
        )
    objects: dict[str, Any] = {}
    for name in modules:
        try:
            with working_directory_importable():
                module = importlib.import_module(name)
        except Exception as error:  # the module is the user's: anything can go wrong in it
            raise ModelError(
                f"The module `{name}` of `imports` could not be imported "
                f"({type(error).__name__}: {error}). Install it, or run where Python finds it "
                "(`PYTHONPATH`)."
            ) from error
        package = name.split(".")[0]
        for key, value in vars(module).items():
            is_object = isinstance(value, type | types.FunctionType)
            if is_object and value.__module__.split(".")[0] == package:
                objects[key] = value
    return objects


# ---------------------------------------------------------------------------- checking


def _check_safe(file: ModelFile) -> None:
    found = find_code(file.config)
    if found:
        raise UnsafeModelError(
            f"A model file must not carry code. `{file.path}` carries {found}, which runs when the "
            "model is loaded or used. If you trust whoever made this file, pass `unsafe=True` "
            "(`--unsafe`); better, save the model again with a layer class in place of it."
        )


def _check_size(file: ModelFile) -> None:
    """No layer needs more weights than the file holds: building it could fill the memory."""
    found = find_oversized(file.config, file.stored)
    if found:
        raise ModelError(
            f"A model file holds the weights of its layers. `{file.path}` has {found}. It is "
            "damaged or hostile: fetch it or save it again."
        )


def _check_known(file: ModelFile, objects: Mapping[str, Any]) -> None:
    """Every class from outside Keras is one that this process has been given."""
    for named in find_named(file.config):
        if named.module.split(".")[0] == "tfedge":
            _register_own(file.path, named)
        elif not _is_known(named, file.kerases, objects):
            raise ModelError(_unknown(file.path, named.name, named.module))


def _scope_of(file: ModelFile) -> AbstractContextManager[Any]:
    """The scope in which TFMOT's wrappers of a quantize-aware tf_keras model are known."""
    if "tf_keras" in file.kerases and not TFMOT_CLASSES.isdisjoint(find_classes(file.config)):
        engine = importlib.import_module("tfedge.engines.tfmot")  # by name: it lies above this
        return engine.quantize_scope()
    return nullcontext()


def _register_own(path: Path, named: Named) -> None:
    """Import the part of tfedge that registers a layer class of its own."""
    try:
        importlib.import_module(named.module)
    except ImportError as error:
        raise ModelError(
            f"`{path}` uses `{named.name}` of `{named.module}`, which this version of tfedge lacks "
            f"({error}). Load it with the version that wrote it."
        ) from error


def _is_known(named: Named, kerases: Sequence[str], objects: Mapping[str, Any]) -> bool:
    if named.name in objects or named.registered in objects:
        return True
    registries = [import_keras(name).saving for name in kerases]
    return any(r.get_registered_object(named.registered) is not None for r in registries)


def _unknown(path: Path, name: str, module: str = "my_pkg.module") -> str:
    return (
        f"`{path}` uses `{name}`, which neither Keras nor this process knows. Name the "
        f"module that defines it, `--import {module}` (in Python `imports=[{module!r}]`), or "
        f"pass `custom_objects={{{name!r}: {name}}}`."
    )


# ---------------------------------------------------------------------------- loading


def _load_file(file: ModelFile, objects: Mapping[str, Any], unsafe: bool) -> Any:
    failures: list[tuple[str, Exception]] = []
    for name in file.kerases:
        try:
            keras = import_keras(name)
        except MissingExtraError as error:
            if not failures and name == file.kerases[-1]:
                raise
            failures.append((name, error))
            continue
        try:
            model = _load_with(keras, file, objects, unsafe)
        except Exception as error:  # Keras fails in every way there is; the causes are reported
            failures.append((name, error))
            continue
        log.info("`%s` loaded with %s %s", file.path, name, keras.__version__)
        return model
    raise _failure(file.path, failures) from failures[-1][1]


def _load_with(
    keras: types.ModuleType, file: ModelFile, objects: Mapping[str, Any], unsafe: bool
) -> Any:
    """Load with one Keras; without its compile state if only that cannot be read."""

    def load(compiled: bool) -> Any:
        with _quiet():
            return keras.models.load_model(
                file.path, custom_objects=dict(objects), safe_mode=not unsafe, compile=compiled
            )

    if file.written_by != keras.__name__:
        # Keras 3 would make the optimizer of a tf_keras file anew with the settings of its class.
        return _with_plain_ends(keras, load(compiled=False))
    try:
        return load(compiled=True)
    except Exception as error:
        model = load(compiled=False)
        warnings.warn(
            f"`{file.path}` was loaded without its optimizer, loss and metrics, which could not be "
            f"read ({_first_line(error)}). Compile the model before training it.",
            TfedgeWarning,
            stacklevel=4,
        )
        return model


def _with_plain_ends(keras: types.ModuleType, model: Any) -> Any:
    """The model with one input in place of a list of one, which it has from a tf_keras file."""
    ends = (model.input, model.output)
    if type(model).__name__ == "Functional" and any(
        isinstance(end, list) and len(end) == 1 for end in ends
    ):
        plain = (end[0] if isinstance(end, list) and len(end) == 1 else end for end in ends)
        return keras.Model(*plain, name=model.name, trainable=model.trainable)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keras's and NumPy's own remarks on loading are not the user's concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _failure(path: Path, failures: Sequence[tuple[str, Exception]]) -> ModelError:
    for _, error in failures:
        if match := UNKNOWN_NAME.search(str(error)):
            return ModelError(_unknown(path, match[1]))
    causes = "; ".join(f"{name}: {_first_line(error)}" for name, error in failures)
    return ModelError(
        f"`{path}` could not be loaded ({causes}). Save it again with the Keras that made it, as "
        "`model.save('model.keras')`."
    )


def _first_line(error: BaseException) -> str:
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line[:240]}" if line else type(error).__name__


def _load_saved_model(path: Path, objects: Mapping[str, Any], unsafe: bool) -> Any:
    if not (path / "saved_model.pb").is_file():
        raise ModelError(
            f"A Keras model is loaded from {FORMATS}. Received: the folder `{path}`, which holds "
            "no `saved_model.pb`."
        )
    if not unsafe:
        raise UnsafeModelError(
            f"A SavedModel holds TensorFlow graphs, which can read and write files when they run. "
            f"Received: `{path}`. If you trust whoever made it, pass `unsafe=True` (`--unsafe`)."
        )
    tf_keras = import_keras("tf_keras")
    try:
        with _quiet():
            model = tf_keras.models.load_model(path, custom_objects=dict(objects), compile=True)
    except Exception as error:
        raise _failure(path, [("tf_keras", error)]) from error
    if not is_model(model):
        raise ModelError(
            f"`{path}` is a SavedModel without a Keras model in it (an export for serving). Save "
            "the model itself: `model.save('model.keras')`."
        )
    log.info("`%s` loaded with tf_keras %s", path, tf_keras.__version__)
    return model
