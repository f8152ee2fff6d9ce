"""Walk arrays that stand alone, in a tuple, or in a dict by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfedge.errors import DataError

Arrays = np.ndarray | tuple[np.ndarray, ...] | dict[str, np.ndarray]


def as_arrays(value: Any, name: str) -> Arrays:
    """`value` as one array, a tuple of arrays, or a dict of arrays.

    Args:
        value: An array or anything NumPy can read as one; a list or tuple of arrays (one per input
            of the model); or a dict of them by name.
        name: What to call it in an error.

    Raises:
        DataError: It holds Python objects, text, ragged rows, or can be read only once.

    Example:
        >>> as_arrays([[1, 2], [3, 4]], "x").shape
        (2, 2)
        >>> [part.shape for part in as_arrays((np.zeros((2, 3)), np.zeros((2, 1))), "x")]
        [(2, 3), (2, 1)]
    """
    if isinstance(value, Mapping):
        if not value:
            raise DataError(f"`{name}` must hold at least one array. Received: an empty dict.")
        return {str(key): as_array(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple) and value and all(_is_array(item) for item in value):
        parts = tuple(as_array(item, f"{name}[{i}]") for i, item in enumerate(value))
        return parts[0] if len(parts) == 1 else parts
    return as_array(value, name)


def as_array(value: Any, name: str) -> np.ndarray:
    """`value` as one array of numbers.

    Raises:
        DataError: It holds Python objects, text or ragged rows, or can be read only once.
    """
    if isinstance(value, Iterator):
        raise DataError(
            f"`{name}` must be readable more than once. Received: a {type(value).__name__}. Pass "
            "the function that makes it, not what the function returned."
        )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"`{name}` cannot be read as an array of numbers: {error}.") from error
    if array.dtype.kind in "OSUV":
        raise DataError(
            f"`{name}` must be an array of numbers. Received: {type(value).__name__} "
            f"(dtype {array.dtype}). Class names become numbers with "
            "`np.unique(names, return_inverse=True)`; batches come from a function that returns "
            "them."
        )
    return array


def leaves(arrays: Arrays) -> list[np.ndarray]:
    """The arrays of a structure, in its order."""
    if isinstance(arrays, dict):
        return list(arrays.values())
    return list(arrays) if isinstance(arrays, tuple) else [arrays]


def named_leaves(arrays: Arrays, name: str) -> list[tuple[str, np.ndarray]]:
    """The arrays of a structure with what to call each in a message.

    Example:
        >>> [label for label, _ in named_leaves({"image": np.zeros(1)}, "x")]
        ["x['image']"]
    """
    if isinstance(arrays, dict):
        return [(f"{name}[{key!r}]", item) for key, item in arrays.items()]
    if isinstance(arrays, tuple):
        return [(f"{name}[{index}]", item) for index, item in enumerate(arrays)]
    return [(name, arrays)]


def map_leaves(function: Callable[[np.ndarray], np.ndarray], arrays: Arrays) -> Arrays:
    """The structure with `function` applied to each array."""
    if isinstance(arrays, dict):
        return {key: function(item) for key, item in arrays.items()}
    if isinstance(arrays, tuple):
        return tuple(function(item) for item in arrays)
    return function(arrays)


def concatenate(parts: Sequence[Arrays]) -> Arrays:
    """Structures of the same form, joined along the first axis.

    Raises:
        DataError: They differ in form, or in a shape beyond the first axis.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(_form(part) != _form(first) for part in parts):
        raise DataError(
            "Every batch must have the form of the first one. Received: "
            f"{_form(first)}, later {next(_form(p) for p in parts if _form(p) != _form(first))}."
        )
    try:
        if isinstance(first, dict):
            return {key: np.concatenate([part[key] for part in parts]) for key in first}  # type: ignore[call-overload]
        if isinstance(first, tuple):
            return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
        return np.concatenate(parts)  # type: ignore[arg-type]
    except ValueError as error:
        shapes = sorted({str(leaf.shape[1:]) for part in parts for leaf in leaves(part)})
        raise DataError(
            f"All samples must have one shape. Received: {', '.join(shapes[:4])}. Resize or pad "
            "them."
        ) from error


def _form(arrays: Arrays) -> str:
    if isinstance(arrays, dict):
        return f"a dict of {sorted(arrays)}"
    return f"a tuple of {len(arrays)} arrays" if isinstance(arrays, tuple) else "one array"


def _is_array(value: Any) -> bool:
    return not isinstance(value, list | tuple | int | float | complex | str | bytes | np.generic)
