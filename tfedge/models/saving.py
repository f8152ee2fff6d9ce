"""Save Keras models: whole or not at all, and the same model as the same bytes.

What Keras writes holds the time of day, addresses of objects in memory, and names that count how
many optimizers and layers the process has made before. All these are replaced here, so that a hash
of the file is a hash of the model: configuration, weights, compile settings, optimizer state.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfedge.errors import SettingsError
from tfedge.files import writing
from tfedge.models.looking import import_keras, keras_of

# Members of a `.keras` file.
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
DATE_SAVED = "1980-01-01@00:00:00"  # the earliest that a zip file can tell
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
SHARED = "shared_object_id"
# Keras notes which objects are shared. For those without state that means nothing.
STATELESS = frozenset({"constraints", "dtype_policies", "initializers", "regularizers"})
NUMBERED = re.compile(r"(.+)_\d+")

Rename = Callable[[str], str]
RenameIn = Callable[[str, str], str]  # the attribute's name, its text


def save_model(model: Any, path: str | os.PathLike[str]) -> Path:
    """Save a model whole or not at all; the same model gives the same bytes.

    A model that is saved, loaded by another process and saved again gives the same `.keras` file.
    Running totals of metrics, which tf_keras would write too, are left out. Keras loads the
    files without tfedge. On the way, twice the size of the file is needed on the disk.

    Args:
        model: A Keras 3 or tf_keras model.
        path: A name that ends in `.keras` or `.h5`. Prefer `.keras`: Keras 3 does not read the
            state of the optimizer back from an `.h5` file.

    Returns:
        The path.

    Raises:
        SettingsError: The name ends otherwise.
        FileWriteError: The file could not be written; what stood there is untouched.

    Example:
        >>> save_model(model, "runs/demo/model.keras")  # doctest: +SKIP
        PosixPath('runs/demo/model.keras')
    """
    keras_of(model)
    path = Path(path)
    if path.suffix not in (".keras", ".h5"):
        raise SettingsError(
            f"A Keras model is saved as `.keras` or `.h5`. Received: `{path}`. "
            f"Write `{path.with_suffix('.keras')}`."
        )
    rewrite = _rewrite_keras if path.suffix == ".keras" else _rewrite_h5
    with writing(path) as target, _scratch(path) as folder, _disk_errors(), _quiet():
        written = folder / f"model{path.suffix}"
        model.save(written)
        rewrite(written, target)
    return path


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder beside `path`, gone when the block ends."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as name:
        yield Path(name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are saving your model as an HDF5 file")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # NumPy's, of Keras
        yield


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """HDF5 tells of a full disk in words."""
    try:
        yield
    except RuntimeError as error:
        if match := re.search(r"errno = (\d+)", str(error)):
            raise OSError(int(match[1]), os.strerror(int(match[1]))) from error
        raise


# ---------------------------------------------------------------------------- .keras


def _rewrite_keras(source: Path, target: Path) -> None:
    """Write what Keras wrote to `source` again to `target`; `source` goes."""
    content = source.with_suffix("")
    with zipfile.ZipFile(source) as archive:
        archive.extractall(content)
    source.unlink()
    config = plain_config(json.loads((content / CONFIG).read_text()))
    metadata = json.loads((content / METADATA).read_text())
    (content / CONFIG).write_text(json.dumps(config))
    (content / METADATA).write_text(json.dumps({**metadata, "date_saved": DATE_SAVED}))
    if (content / WEIGHTS).exists():
        _rewrite_weights(content / WEIGHTS, names=set(_names(config)))
    with zipfile.ZipFile(target, "w") as archive:
        for member in _in_order(content):
            _add(archive, member, member.relative_to(content).as_posix())


def _in_order(folder: Path) -> list[Path]:
    """The files of a folder: configuration and weights before what else layers keep."""
    first = (METADATA, CONFIG, WEIGHTS)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.name not in first, path.as_posix()))


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """Add a file without its date and mode; not compressed, as Keras does."""
    entry = zipfile.ZipInfo(name, ZIP_DATE)
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    entry.file_size = path.stat().st_size
    with path.open("rb") as source, archive.open(entry, "w") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def plain_config(config: Any) -> Any:
    """A model's configuration without what depends on the process that wrote it.

    Addresses that stand for shared objects become 1, 2, … in the order of their appearance; those
    of objects without state, such as dtype policies, go. So do numbers in the names of optimizers.

    Args:
        config: Decoded `config.json` of a `.keras` file.

    Example:
        >>> policy = {"module": "keras", "class_name": "DTypePolicy", "shared_object_id": 1398340}
        >>> plain_config({"config": {"dtype": policy}})
        {'config': {'dtype': {'module': 'keras', 'class_name': 'DTypePolicy'}}}
    """
    uses: dict[tuple[Any, str], int] = {}
    for entry in _shared_entries(config):
        key = (entry[SHARED], _content(entry))
        uses[key] = uses.get(key, 0) + 1
    # Keras takes addresses of objects that are gone again for shared ones: these differ in content.
    numbers = {key: n for n, key in enumerate((k for k, count in uses.items() if count > 1), 1)}
    return _without_counts(_renumbered(config, numbers))


def _shared_entries(config: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(config, Mapping):
        if SHARED in config and not _is_stateless(config):
            yield config
        for value in config.values():
            yield from _shared_entries(value)
    elif isinstance(config, list):
        for value in config:
            yield from _shared_entries(value)


def _is_stateless(entry: Mapping[str, Any]) -> bool:
    module, name = str(entry.get("module")), str(entry.get("class_name"))
    return module.rpartition(".")[2] in STATELESS or (module == "keras" and "DTypePolicy" in name)


def _content(entry: Mapping[str, Any]) -> str:
    return json.dumps(_renumbered(entry, {}), sort_keys=True)


def _renumbered(config: Any, numbers: Mapping[tuple[Any, str], int]) -> Any:
    if isinstance(config, list):
        return [_renumbered(value, numbers) for value in config]
    if not isinstance(config, Mapping):
        return config
    rest = {k: _renumbered(v, numbers) for k, v in config.items() if k != SHARED}
    if SHARED in config and numbers:
        number = numbers.get((config[SHARED], _content(config)))
        rest |= {} if number is None else {SHARED: number}
    return rest


def _without_counts(config: Any) -> Any:
    """The configuration with optimizers named `adam`, not `adam_3`."""
    compiled = config.get("compile_config") if isinstance(config, Mapping) else None
    if not isinstance(compiled, Mapping) or "optimizer" not in compiled:
        return config
    optimizer = _renamed(compiled["optimizer"], _counted(compiled["optimizer"]))
    return {**config, "compile_config": {**compiled, "optimizer": optimizer}}


def _counted(optimizer: Any) -> dict[str, str]:
    """Names that Keras gave an optimizer, and the one inside it, to names without the number."""
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("config"), Mapping):
        return {}
    config = optimizer["config"]
    found = _counted(config.get("inner_optimizer"))
    name, made = str(config.get("name")), str(optimizer.get("class_name")).rpartition(">")[2]
    match = NUMBERED.fullmatch(name)
    if match and match[1].replace("_", "").lower() == made.lower():
        found[name] = match[1]
    return found


def _renamed(optimizer: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(optimizer, Mapping):
        return optimizer
    config = dict(optimizer["config"])
    if config.get("name") in names:
        config["name"] = names[config["name"]]
    if "inner_optimizer" in config:
        config["inner_optimizer"] = _renamed(config["inner_optimizer"], names)
    return {**optimizer, "config": config}


def _names(config: Any) -> Iterator[str]:
    """All names that a configuration gives."""
    if isinstance(config, Mapping):
        if isinstance(config.get("name"), str):
            yield config["name"]
        config = config.values()
    if isinstance(config, Iterable) and not isinstance(config, str):
        for value in config:
            yield from _names(value)


# ---------------------------------------------------------------------------- HDF5


def _rewrite_weights(path: Path, names: set[str]) -> None:
    """Write the weights of a `.keras` file again: no totals of metrics, no numbered names."""

    def plain(key: str, name: str) -> str:
        match = None if key != "name" or name in names else NUMBERED.fullmatch(name)
        return match[1] if match else name

    fresh = path.with_suffix(".fresh")
    h5py = import_keras("h5py")
    with h5py.File(path, "r") as source, h5py.File(fresh, "w") as target:
        _copy_group(source, target, leave_out={"metrics"}, attribute=plain)
    fresh.replace(path)


def _rewrite_h5(source: Path, target: Path) -> None:
    """Write an `.h5` file again, its optimizer without a number in its name."""
    h5py = import_keras("h5py")
    with h5py.File(source, "r") as old, h5py.File(target, "w") as new:
        settings = json.loads(old.attrs.get("training_config", "{}"))
        names = _counted(settings.get("optimizer_config"))

        def plain(path: str) -> str:
            return "/".join(names.get(part, part) for part in path.split("/"))

        def compiled(key: str, text: str) -> str:
            if key != "training_config" or not names:
                return text
            optimizer = _renamed(settings["optimizer_config"], names)
            return json.dumps({**settings, "optimizer_config": optimizer})

        _copy_group(old, new, leave_out={"optimizer_weights"}, attribute=compiled)
        if "optimizer_weights" in old:
            group = new.create_group("optimizer_weights")
            weights = old["optimizer_weights"]
            _copy_group(weights, group, member=plain, attribute=lambda _, path: plain(path))


def _copy_group(
    source: Any,
    target: Any,
    *,
    leave_out: Iterable[str] = (),
    member: Rename = lambda name: name,
    attribute: RenameIn = lambda _, text: text,
) -> None:
    """Copy all of an HDF5 group, one array at a time; `member` and `attribute` rename."""
    for key, value in source.attrs.items():
        target.attrs[key] = _each(value, lambda text, key=key: attribute(key, text))  # type: ignore[misc]
    for name in source:
        if name in leave_out:
            continue
        if isinstance(source[name], import_keras("h5py").Group):
            group = target.create_group(member(name))
            _copy_group(source[name], group, member=member, attribute=attribute)
        else:
            source.copy(name, target, name=member(name))


def _each(value: Any, rename: Rename) -> Any:
    """An attribute with `rename` applied to its text: one string, or an array of them."""
    if isinstance(value, str):
        return rename(value)
    if isinstance(value, bytes):
        return rename(value.decode()).encode()
    if isinstance(value, np.ndarray) and value.dtype.kind in "OS" and value.size:
        return [_each(item, rename) for item in value]
    return value
