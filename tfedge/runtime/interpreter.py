"""Run a model on LiteRT's interpreter: its own kernels, XNNPACK, or a delegate of a library."""

import ctypes
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from tfedge.errors import DelegateError
from tfedge.inspection.decode import Fields
from tfedge.runtime.native import (
    delegated,
    failure,
    find_runtime,
    make_interpreter,
    native_messages,
    nothing_taken,
    refusal,
)

_INTERFACE: Final = ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate")


@dataclass(frozen=True, kw_only=True)
class LoadedDelegate:
    """A delegate from a library of its own, made by `load_delegate`.

    Attributes:
        name: What it is called in messages and in `OpenModel.actual`.
        handle: The runtime's own object.
    """

    name: str
    handle: Any = field(repr=False)


def load_delegate(
    library: str | os.PathLike[str],
    options: Mapping[str, str] | None = None,
    *,
    name: str | None = None,
) -> LoadedDelegate:
    """Load a delegate from a library with TensorFlow Lite's external delegate interface.

    Args:
        library: Path or name of the library, e.g. `"libvx_delegate.so"`.
        options: What the delegate is told.
        name: What to call it. Default: the library's name without `lib` and ending.

    Returns:
        What `open_model(…, delegate=…)` takes. One model at a time can be open on it.

    Raises:
        DelegateError: There is no such library, it does not load, or its delegate does not start.
        MissingExtraError: No runtime is installed.

    Example:
        >>> mine = load_delegate("libvx_delegate.so")  # doctest: +SKIP
        >>> model = open_model("model_int8.tflite", delegate=mine)  # doctest: +SKIP
    """
    runtime, module = find_runtime()
    path = os.fspath(library)
    _check_library(path)
    messages: list[str] = []
    try:
        with native_messages(messages):
            handle = module.load_delegate(path, dict(options or {}))
    except ValueError as error:
        raise DelegateError(
            f"The delegate of {path!r} did not start on {runtime}: {_cause(error, messages)}. "
            "Check that its device is there and that its options are right."
        ) from error
    stem = Path(path).name.split(".")[0].removeprefix("lib")
    return LoadedDelegate(name=name or stem, handle=handle)


def _check_library(path: str) -> None:
    """Load it here first: LiteRT leaves a half-made object behind where it fails to."""
    try:
        loaded = ctypes.PyDLL(path)
    except OSError as error:
        raise DelegateError(
            f"A delegate is a library that loads. Received: {path!r}: {error}. Give the full path, "
            "or install what it needs."
        ) from error
    for name in _INTERFACE:
        try:
            loaded[name]
        except AttributeError as error:
            raise DelegateError(
                f"The library of a delegate has the functions {' and '.join(_INTERFACE)}. "
                f"Received: {path!r}: {error}. Give the library of a delegate."
            ) from error


def _cause(error: Exception, messages: Sequence[str]) -> str:
    lines = [line.strip() for line in [*str(error).splitlines(), *messages]]
    return "; ".join(dict.fromkeys(filter(None, lines))) or type(error).__name__


class InterpreterBackend:
    """A model on LiteRT's interpreter (see `Backend`).

    Attributes:
        taken: Numbers of the operators that the delegate took.
    """

    adapter: str | None = None
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        data: bytes,
        fields: Fields,
        *,
        path: str,
        delegate: str,
        threads: int,
        keep_tensors: bool = False,
        loaded: LoadedDelegate | None = None,
    ) -> None:
        self._path, self._delegate, self._loaded = path, delegate, loaded
        self.runtime, module = find_runtime()
        messages: list[str] = []
        try:
            with native_messages(messages):
                self._interpreter: Any = make_interpreter(
                    module, data, delegate, threads, keep_tensors, loaded and loaded.handle
                )
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise refusal(path, self.runtime, delegate, error, messages) from error
        subgraph = fields["subgraphs"][0]
        self._inputs, self._outputs = (
            [] if subgraph[side] is None else [int(i) for i in subgraph[side]]
            for side in ("inputs", "outputs")
        )
        self.taken = delegated(self._interpreter, subgraph["operators"] or [])
        self.nodes_delegated = len(self.taken)
        if delegate != "none" and self.nodes_delegated == 0:
            raise nothing_taken(path, self.runtime, delegate, fields, messages)

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for inputs in the tensors' own element types."""
        try:
            for index, array in zip(self._inputs, arrays, strict=True):
                self._interpreter.set_tensor(index, array)
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise failure(self._path, self.runtime, self._delegate, error) from error
        return [self._interpreter.get_tensor(index) for index in self._outputs]

    def timed(self, arrays: Sequence[np.ndarray], runs: int) -> list[int]:
        """Nanoseconds of each invocation; inputs are set once."""
        self.run(arrays)
        times = []
        for _ in range(runs):
            start = time.perf_counter_ns()
            self._interpreter.invoke()
            times.append(time.perf_counter_ns() - start)
        return times

    def tensor(self, index: int) -> np.ndarray:
        """An activation of the last run."""
        value: np.ndarray = self._interpreter.get_tensor(index)
        return value

    def close(self) -> None:
        """Free the interpreter, before the delegate that it uses."""
        self._interpreter = None
        self._loaded = None
