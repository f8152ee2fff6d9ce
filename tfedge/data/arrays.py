"""Read arrays from `.npz` and `.npy` files, which may be damaged or hostile."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfedge.data.nests import Arrays
from tfedge.data.splits import Data, Split
from tfedge.errors import DataError

_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    MemoryError,
    OverflowError,
    SyntaxError,
    SystemError,  # text with characters that do not exist
    TypeError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_TRAIN, _TEST, _CALIBRATION = "train", ("test", "evaluation", "val"), "calibration"
_CLASSES = ("class_names", "classes")


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name, or of an `.npy` file as `{"x": array}`.

    No pickled object is ever loaded.

    Raises:
        DataError: There is no such file, it is cut short or is something else, or an array holds
            Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file `{path}`. Look at the name and the folder.")
    try:
        with path.open("rb") as file:  # np.load itself leaves a damaged file open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"x": loaded}
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
        for array in arrays.values():
            if isinstance(array, np.ndarray) and array.dtype.kind == "U":
                array.tolist()  # finds characters that do not exist
    except _DAMAGE as error:
        raise DataError(_unreadable(path, error)) from error
    if not arrays:
        raise DataError(f"`{path}` holds no array. Write one with `np.savez(path, x=x, y=y)`.")
    return arrays


def data_of_arrays(arrays: Mapping[str, Any], *, name: str = "") -> Data:
    """Splits by the names of arrays; what is not given stays open.

    Args:
        arrays: `x`, `y` and `sample_weight`, each alone or with `_train`, `_test` (or `_val`) and
            `_calibration`; `class_names`. In place of `y`, labels of several outputs as
            `y_<output>` (`y_<output>_train`, …) become a dict by output name. Without an `x`, a
            sole array is taken for it, and where there is a `y` (or a `y_<output>` without
            `x_<output>`) all others are inputs by name.
        name: What to call the data.

    Raises:
        DataError: No inputs are found among them.

    Example:
        >>> data_of_arrays({"x": np.zeros((4, 2)), "y": np.zeros(4)}).train.x.shape
        (4, 2)
        >>> list(data_of_arrays({"x": np.zeros((4, 2)), "y_a": np.zeros(4)}).train.y)
        ['a']
    """
    left = dict(arrays)
    classes = next((left.pop(key) for key in _CLASSES if key in left), None)
    train = _take_split(left, _TRAIN)
    ready = {
        "train": train if train is not None else _take_split(left, ""),
        "evaluation": next((s for part in _TEST if (s := _take_split(left, part))), None),
        "calibration": _take_split(left, _CALIBRATION),
    }
    if not any(ready.values()):
        ready["train"] = _inputs_by_name(left, name)
        left = {}
    notes: tuple[str, ...] = ()
    if left:
        notes = (f"Arrays of {name or 'the data'} that were not used: {', '.join(sorted(left))}.",)
    return Data(
        **ready,
        name=name,
        classes=None if classes is None else tuple(str(c) for c in np.asarray(classes).tolist()),
        notes=notes,
    )


def inputs_of_arrays(arrays: Mapping[str, np.ndarray], *, name: str = "") -> Arrays:
    """The inputs for calibration among arrays: `x`, the training inputs, or the sole array.

    Raises:
        DataError: No inputs are found among them.
    """
    data = data_of_arrays(arrays, name=name)
    split = data.calibration or data.train or data.evaluation
    return split.x  # type: ignore[union-attr]  # Data holds at least one split


def _take_split(arrays: dict[str, Any], part: str) -> Split | None:
    suffix = f"_{part}" if part else ""
    if f"x{suffix}" not in arrays:
        return None
    fields = {field: arrays.pop(f"{field}{suffix}", None) for field in ("x", "y", "sample_weight")}
    if fields["y"] is None:
        fields["y"] = _take_outputs(arrays, suffix) or None
    return Split(**fields)


def _take_outputs(arrays: dict[str, Any], suffix: str) -> dict[str, Any]:
    """The labels `y_<output>` with a suffix of one split, by output name."""
    others = tuple(f"_{part}" for part in (_TRAIN, *_TEST, _CALIBRATION))
    outputs = {}
    for key in list(arrays):
        name = key.removesuffix(suffix)
        ours = key.endswith(suffix) if suffix else not key.endswith(others)
        if ours and name.startswith("y_") and len(name) > len("y_"):
            outputs[name.removeprefix("y_")] = arrays.pop(key)
    return outputs


def _outputs_beside_inputs(arrays: dict[str, Any]) -> dict[str, Any] | None:
    """Labels `y_<output>` beside inputs by name; `y_axis` beside `x_axis` is an input."""
    outputs = _take_outputs({k: a for k, a in arrays.items() if f"x_{k[2:]}" not in arrays}, "")
    if not outputs or len(outputs) == len(arrays):
        return None
    for name in outputs:
        del arrays[f"y_{name}"]
    return outputs


def _inputs_by_name(arrays: dict[str, Any], name: str) -> Split:
    y, weight = arrays.pop("y", None), arrays.pop("sample_weight", None)
    if y is None:
        y = _outputs_beside_inputs(arrays)
    if len(arrays) == 1:
        return Split(next(iter(arrays.values())), y, weight)
    lengths = {np.shape(array)[:1] for array in arrays.values()}
    if not arrays or len(lengths) > 1 or lengths == {()}:
        found = ", ".join(f"{key} {np.shape(array)}" for key, array in arrays.items()) or "none"
        raise DataError(
            f"{f'`{name}`' if name else 'Data'} must hold inputs as array `x`, as `x_train` and "
            f"`x_test`, as the only array, or as one array per input of the model, of one length. "
            f"Received: {found}. Write it with `np.savez(path, x=x, y=y)`."
        )
    return Split(dict(arrays), y, weight)


def _unreadable(path: Path, error: BaseException) -> str:
    if "allow_pickle" in str(error):
        return (
            f"`{path}` holds Python objects or is no `.npz`/`.npy` file; loading objects could run "
            "code, so it is refused. Save plain number arrays with `np.savez(path, x=x, y=y)`."
        )
    return (
        f"`{path}` cannot be read as an `.npz` or `.npy` file ({type(error).__name__}: {error}). "
        "It is cut short or damaged: write or download it again."
    )
