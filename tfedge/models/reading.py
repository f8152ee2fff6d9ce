"""Read a model file as far as its configuration, before any Keras sees it."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfedge.errors import FileWriteError, ModelError, TfedgeError
from tfedge.files import FULL, is_full
from tfedge.models.looking import import_keras
from tfedge.models.stored import DAMAGE, check_hdf5, check_members, check_weights

ZIP_MAGIC, HDF5_MAGIC, TFLITE_MAGIC = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"TFL3"
CONFIG_LIMIT_BYTES = 256 * 1024 * 1024
FORMATS = "`.keras` files, `.h5` files and SavedModel folders"


@dataclass(frozen=True)
class ModelFile:
    """A model file, read as far as its configuration.

    Attributes:
        path: Where it lies.
        config: Decoded JSON.
        kerases: Names of the Kerases that may load it, in the order to try them.
        written_by: Name of the Keras that wrote it.
        stored: How many numbers its weights and other data hold.
    """

    path: Path
    config: Any
    kerases: tuple[str, ...]
    written_by: str
    stored: int


def read_file(path: Path) -> ModelFile:
    """Read the configuration of a `.keras` or `.h5` file.

    Args:
        path: An existing file.

    Raises:
        ModelError: It is no such file, is damaged, or holds only weights.
        UnsafeModelError: Parts of it lie in another file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ModelError(f"`{path}` cannot be read: {error.strerror}.") from error
    suffixes: tuple[str, ...] = (".keras",)
    if head.startswith(ZIP_MAGIC):
        reader = _read_keras_zip
    elif head == HDF5_MAGIC:
        reader, suffixes = _read_h5, (".h5", ".hdf5")
    elif head[4:] == TFLITE_MAGIC:
        raise ModelError(
            f"A Keras model is loaded from {FORMATS}. Received: `{path}`, a `.tflite` file, which "
            "is converted already. Look into it with `tfedge inspect`."
        )
    else:
        raise ModelError(
            f"A Keras model is loaded from {FORMATS}. Received: `{path}`, whose content "
            f"is none of them (it begins with {head[:8]!r}). It may be damaged: fetch it again."
        )
    if path.suffix not in suffixes:
        raise ModelError(
            f"The content of `{path}` is that of a `{suffixes[0]}` file, and Keras goes by the "
            f"name. Rename it to `{path.with_suffix(suffixes[0]).name}`."
        )
    return reader(path)


def _read_keras_zip(path: Path) -> ModelFile:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "config.json" not in names:
                raise ModelError(
                    f"A `.keras` file holds its configuration as `config.json`. `{path}` holds "
                    f"{', '.join(names[:4]) or 'nothing'}. Save the model again: `model.save()`."
                )
            check_members(path, archive)
            large = max(archive.getinfo(n).file_size for n in names if n.endswith(".json"))
            if large > CONFIG_LIMIT_BYTES:
                raise ModelError(f"`{path}` is not sound: its configuration has {large} bytes.")
            config = json.loads(archive.read("config.json"))
            metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
            stored = check_weights(path, archive, import_keras("h5py"))
    except TfedgeError:
        raise
    except DAMAGE as error:
        if is_full(error):
            raise FileWriteError(
                f"Reading `{path}` needs room for a temporary file: {FULL}, or set TMPDIR to "
                "another place."
            ) from error
        raise ModelError(_damaged(path, error)) from error
    keras = _keras_of_config(config, metadata)
    return ModelFile(path, config, (keras,), keras, stored)


def _keras_of_config(config: Any, metadata: Any) -> str:
    """Which Keras wrote a `.keras` file: its version says, else where its classes lie."""
    version = str(metadata.get("keras_version", "")) if isinstance(metadata, Mapping) else ""
    if version.split(".")[0].isdigit():
        return "keras" if int(version.split(".")[0]) >= 3 else "tf_keras"
    module = str(config.get("module", "")) if isinstance(config, Mapping) else ""
    is_legacy = module.startswith(("tf_keras", "keras.engine", "keras.src.engine"))
    return "tf_keras" if is_legacy else "keras"


def _read_h5(path: Path) -> ModelFile:
    h5py = import_keras("h5py")
    try:
        with h5py.File(path, "r") as file:
            texts = [file.attrs.get(key) for key in ("model_config", "training_config")]
            version = file.attrs.get("keras_version", "")
            stored = check_hdf5(path, file, path.stat().st_size, h5py)
    except TfedgeError:
        raise
    except DAMAGE as error:
        raise ModelError(_damaged(path, error)) from error
    if texts[0] is None:
        raise ModelError(
            f"`{path}` holds weights only, without the model they belong to. Build the model in "
            "Python, call `model.load_weights()` with this file, and pass the model or "
            "save it whole with `model.save('model.keras')`."
        )
    try:
        config = [json.loads(text) for text in texts if text is not None]
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(_damaged(path, error)) from error
    writer = "keras" if str(version).startswith("3") else "tf_keras"
    return ModelFile(path, config, ("keras", "tf_keras"), writer, stored)


def _damaged(path: Path, error: BaseException) -> str:
    cause = str(error).partition("\n")[0][:160]
    return f"`{path}` is damaged: it may be cut short ({cause}). Fetch it or save it again."
