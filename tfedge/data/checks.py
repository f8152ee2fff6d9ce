"""Check that data fit a model, in shape, type, labels and range."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfedge.data.nests import Arrays, as_arrays, named_leaves
from tfedge.data.sampling import is_one_hot
from tfedge.data.splits import Split
from tfedge.errors import DataError, TfedgeWarning

_CHUNK = 1 << 22  # values looked at at once
_SOME = 1_000_000  # values that stand for all in a quantile
_SPARSE_LOSS = "sparse_categorical_crossentropy"
_ONE_HOT_LOSSES = ("categorical_crossentropy", "categorical_focal_crossentropy")


@dataclass(frozen=True)
class _Port:
    """One input or output of a model; `shape` is without the batch axis, open axes are `None`."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def check_data(
    model: Any, split: Split, *, what: str = "training", check_labels: bool = True
) -> None:
    """Check that samples and labels fit a model; of a stream, its first batch.

    A model that does not know its inputs yet (subclassed, or a `Sequential` that was not built) is
    held against nothing but finite numbers.

    Args:
        model: A Keras 3 or tf_keras model.
        split: The data.
        what: What the data are for, as errors call them. Default: `"training"`.
        check_labels: Whether labels must have the form of the outputs; switch it off where a metric
            of one's own reads labels of another form. Default: yes.

    Raises:
        DataError: A shape or dtype differs, labels are out of range or of another form than outputs
            or loss want, or a number is not finite. The message names both sides.
    """
    rows = next(split.batches(256)) if split.is_stream else split.rows
    inputs, outputs = _ports(model, "inputs"), _ports(model, "outputs")
    for label, array in named_leaves(rows[0], "x"):
        _check_finite(array, label, what)
    if inputs is not None:
        for port, label, array in _matched(inputs, rows[0], "x", what):
            _check_input(port, label, array, what)
    if len(rows) == 1:
        return
    for label, array in named_leaves(rows[1], "y"):
        _check_finite(array, label, what)
    if outputs is not None and check_labels:
        losses = _losses(model, outputs)
        for port, label, array in _matched(outputs, rows[1], "y", what):
            _check_labels(port, label, array, what, losses.get(port.name))


def check_calibration(calibration: Any, train: Split | Any) -> None:
    """Warn where calibration data have another range or layout than the training data.

    Up to 512 samples of each are drawn at random (a stream is read once for it). Ranges are
    compared between the quantiles 0.005 and 0.995, so that single outliers do not count; a bound
    that is off by more than 40 % of the training data's span warns.

    Args:
        calibration: A `Split`, an array, or a tuple or dict of arrays.
        train: The same for what the model was trained on.

    Warns:
        TfedgeWarning: With both ranges, or both shapes.
    """
    given, expected = _sample(calibration), _sample(train)
    names = dict(named_leaves(expected, "x"))
    found = dict(named_leaves(given, "x"))
    if names.keys() != found.keys():
        _warn(
            f"Calibration data hold {', '.join(found)}; training data hold {', '.join(names)}. "
            "Calibrate with the inputs that the model was trained on."
        )
        return
    for name, reference in names.items():
        _compare(name, found[name], reference)


def _compare(name: str, given: np.ndarray, reference: np.ndarray) -> None:
    if given.shape[1:] != reference.shape[1:]:
        _warn(
            f"Calibration data `{name}` have the shape {given.shape[1:]} per sample; training data "
            f"have {reference.shape[1:]}.{_shape_hint(given.shape, reference.shape[1:])}"
        )
        return
    low, high = np.quantile(_some_values(reference), (0.005, 0.995))
    given_low, given_high = np.quantile(_some_values(given), (0.005, 0.995))
    tolerance = 0.4 * (high - low) if high > low else 0.4 * max(abs(high), 1e-6)
    if max(abs(given_low - low), abs(given_high - high)) <= tolerance:
        return
    _warn(
        f"Calibration data `{name}` range over [{given.min():.4g}, {given.max():.4g}]; training "
        f"data over [{reference.min():.4g}, {reference.max():.4g}]. Preprocess both alike, or the "
        "int8 ranges will not fit."
    )


def _some_values(array: np.ndarray) -> np.ndarray:
    """All values, or a million of them at random where there are more."""
    flat = array.reshape(-1)
    if flat.size <= _SOME:
        return flat
    return flat[np.random.RandomState(0).randint(0, flat.size, _SOME)]


def _warn(message: str) -> None:
    warnings.warn(message, TfedgeWarning, stacklevel=4)


def _sample(data: Any) -> Arrays:
    if isinstance(data, Split):
        return data.take(512).rows[0]
    return Split(as_arrays(data, "x")).take(512).x


def _ports(model: Any, side: str) -> list[_Port] | None:
    tensors = getattr(model, side, None)  # Keras 3 has no such attribute before a model is built
    if not tensors:
        return None
    tensors = list(tensors) if isinstance(tensors, list | tuple) else [tensors]
    if side == "inputs":
        names = [tensor.name for tensor in tensors]
    elif len(tensors) > 1:
        names = sorted(model.output) if isinstance(model.output, dict) else list(model.output_names)
    else:
        names = ["output"]
    return [
        _Port(name, tuple(tensor.shape)[1:], _dtype_name(tensor))
        for name, tensor in zip(names, tensors, strict=True)
    ]


def _dtype_name(tensor: Any) -> str:
    return tensor.dtype if isinstance(tensor.dtype, str) else tensor.dtype.name


def _matched(
    ports: list[_Port], arrays: Arrays, name: str, what: str
) -> Iterator[tuple[_Port, str, np.ndarray]]:
    side = "inputs" if name == "x" else "outputs"
    wanted = [port.name for port in ports]
    if isinstance(arrays, dict):
        strange = [key for key in arrays if key not in wanted]
        missing = [key for key in wanted if key not in arrays]
        if name == "y" and len(ports) == 1 and len(arrays) == 1:
            strange = missing = []
        if strange or (missing and name == "x"):
            raise DataError(
                f"The {what} data `{name}` must be named as the model's {side}: "
                f"{', '.join(wanted)}. Received: {', '.join(arrays)}."
            )
        by_name = {port.name: port for port in ports}
        for (label, array), key in zip(named_leaves(arrays, name), arrays, strict=True):
            yield by_name.get(key, ports[0]), label, array
        return
    labelled = named_leaves(arrays, name)
    if len(labelled) != len(ports):
        hint = " Stack samples to one array with `np.stack`." if len(ports) == 1 else ""
        raise DataError(
            f"The {what} data must hold one array `{name}` for each of the model's {len(ports)} "
            f"{side} ({', '.join(wanted)}). Received: {len(labelled)}.{hint}"
        )
    for port, (label, array) in zip(ports, labelled, strict=True):
        yield port, label, array


def _check_input(port: _Port, label: str, array: np.ndarray, what: str) -> None:
    if not _fits(array.shape[1:], port.shape):
        raise DataError(
            f"The {what} data `{label}` must have the shape {_shown(port.shape)} of the model's "
            f"input {port.name!r}. Received: {array.shape}.{_shape_hint(array.shape, port.shape)}"
        )
    whole = port.dtype.startswith(("int", "uint"))
    if array.dtype.kind == "c" or (whole and not _is_whole(array)):
        raise DataError(
            f"The {what} data `{label}` must be {port.dtype} as the model's input {port.name!r}. "
            f"Received: {array.dtype} with values that this cannot hold."
        )


def _check_labels(port: _Port, label: str, array: np.ndarray, what: str, loss: str | None) -> None:
    given, shape = array.shape[1:], port.shape
    classes = shape[-1] if shape else None
    same = _fits(given, shape)
    sparse = bool(shape) and (_fits(given, shape[:-1]) or _fits(given, (*shape[:-1], 1)))
    if not same and not sparse:
        raise DataError(
            f"The {what} labels `{label}` must have the shape {_shown(shape)} of the model's "
            f"output (one-hot, or targets) or {_shown(shape[:-1])} (class numbers). Received: "
            f"{array.shape}."
        )
    if classes is None or classes == 1:
        if loss == "binary_crossentropy" and (array.min() < 0 or array.max() > 1):
            raise DataError(
                f"The {what} labels `{label}` must lie in [0, 1] for the loss binary_crossentropy. "
                f"Received: {array.min():.4g} to {array.max():.4g}."
            )
        return
    if same and not (sparse and loss == _SPARSE_LOSS):
        _check_dense_labels(label, array, what, loss)
        return
    if loss in _ONE_HOT_LOSSES:
        raise DataError(
            f"The loss {loss} takes one-hot labels {_shown(shape)}. Received: class numbers, shape "
            f"{array.shape}. Compile with sparse_categorical_crossentropy, or pass "
            f"`np.eye({classes})[y]`."
        )
    if not _is_whole(array):
        raise DataError(
            f"The {what} labels `{label}` of shape {array.shape} must be class numbers, whole, for "
            f"a model of {classes} outputs. Received: {array.dtype} with fractions."
        )
    if array.min() < 0 or array.max() >= classes:
        raise DataError(
            f"The {what} labels `{label}` must be class numbers from 0 to {classes - 1}, the "
            f"model's {classes} outputs. Received: {array.min():.0f} to {array.max():.0f}."
        )


def _check_dense_labels(label: str, array: np.ndarray, what: str, loss: str | None) -> None:
    if loss == _SPARSE_LOSS:
        raise DataError(
            f"The loss {loss} takes class numbers. Received: {what} labels `{label}` of shape "
            f"{array.shape}. Pass `y.argmax(axis=-1)`, or compile with categorical_crossentropy."
        )
    if loss == "categorical_crossentropy" and array.dtype.kind in "biu" and not is_one_hot(array):
        raise DataError(
            f"The loss {loss} takes one-hot labels. Received: {what} labels `{label}` with rows "
            "that do not hold a single one. For several classes at once compile with "
            "binary_crossentropy."
        )


def _check_finite(array: np.ndarray, label: str, what: str) -> None:
    if array.dtype.kind not in "fc":
        return
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        bad = ~np.isfinite(flat[start : start + _CHUNK])
        if bad.any():
            place = start + int(np.argmax(bad))
            sample = place // max(1, flat.size // len(array))
            raise DataError(
                f"The {what} data `{label}` must be finite numbers. Received: "
                f"{flat[place]} in sample {sample}. Remove or fill such values."
            )


def _fits(given: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(given) == len(wanted) and all(
        w is None or g == w for g, w in zip(given, wanted, strict=True)
    )


def _is_whole(array: np.ndarray) -> bool:
    return array.dtype.kind in "biu" or bool((array == np.round(array)).all())


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join(str(axis) for axis in ('samples', *shape))})"


def _shape_hint(given: tuple[int, ...], wanted: tuple[int | None, ...]) -> str:
    """The next move for a shape (with its samples axis) that does not fit."""
    sample = given[1:]
    if len(sample) == len(wanted) and len(sample) >= 3:
        if _fits((*sample[1:], sample[0]), wanted):
            return f" {sample} looks like channels first: pass `np.moveaxis(x, 1, -1)`."
        if _fits((sample[-1], *sample[:-1]), wanted):
            return f" {sample} looks like channels last: pass `np.moveaxis(x, -1, 1)`."
    if _fits((*sample, 1), wanted):
        return " The channel axis is missing: pass `x[..., np.newaxis]`."
    if _fits((1, *sample), wanted):
        return " The channel axis is missing: pass `x[:, np.newaxis]`."
    if _fits(given, wanted):
        return " It looks like one sample: pass `x[np.newaxis]`, or `batched=False` for a stream."
    axes = [axis for axis in wanted if axis is not None]
    if len(sample) != len(wanted) == len(axes) and math.prod(sample) == math.prod(axes):
        return f" It holds as many values: pass `x.reshape{(-1, *axes)}`."
    return ""


def _losses(model: Any, outputs: list[_Port]) -> dict[str, str]:
    """The name of the loss of each output, where a model is compiled with a known one."""
    loss = getattr(model, "loss", None)  # absent until a model is compiled
    if isinstance(loss, dict):
        return {name: _loss_name(item) for name, item in loss.items()}
    if isinstance(loss, list | tuple):
        names = [port.name for port in outputs]
        return {name: _loss_name(item) for name, item in zip(names, loss, strict=False)}
    return {port.name: _loss_name(loss) for port in outputs} if loss is not None else {}


def _loss_name(loss: Any) -> str:
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
    if not isinstance(name, str):
        return ""
    squashed = name.replace("_", "").lower()
    known = (_SPARSE_LOSS, *_ONE_HOT_LOSSES, "binary_crossentropy")
    return next((option for option in known if option.replace("_", "") == squashed), name)
