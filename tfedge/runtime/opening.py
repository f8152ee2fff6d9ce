"""Open a `.tflite` model on a delegate and run it."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tfedge.errors import DataError, DelegateError, SettingsError, did_you_mean
from tfedge.inspection import check_sound, load_bytes
from tfedge.inspection.decode import Fields
from tfedge.runtime.native import (
    count_delegated,
    failure,
    find_runtime,
    make_interpreter,
    native_messages,
    nothing_taken,
    refusal,
)
from tfedge.runtime.tensors import (
    Inputs,
    arrays_by_name,
    join_runs,
    signature_names,
    tensor_infos,
    to_real,
    to_stored,
)

DELEGATES: Final = ("none", "xnnpack")
LATER: Final = ("gpu", "edgetpu")


def open_model(
    model: bytes | str | os.PathLike[str],
    *,
    delegate: str | None = None,
    threads: int = 1,
    keep_tensors: bool = False,
) -> "OpenModel":
    """Open a `.tflite` model on a delegate, or say why it cannot run there.

    The model runs in this process. Files of unknown origin are better looked at by `tfedge inspect`
    and run by `tfedge verify` first, which do so in a child process, within limits.

    Args:
        model: Path of the file, or its content. It is checked for soundness first.
        delegate: `"xnnpack"` (the default) or `"none"` (LiteRT's own kernels; the default with
            `keep_tensors`, as a delegate does not write its inner tensors).
        threads: Threads of the CPU kernels.
        keep_tensors: Keep every activation of the last run for `OpenModel.tensor`.

    Returns:
        The model, ready to run. It is a context manager.

    Raises:
        FileFormatError: No such file, or it is not sound.
        SettingsError: An unknown delegate, or a setting out of its range.
        DelegateError: The delegate took no operator, or the runtime refused the model.
        MissingExtraError: No runtime is installed.

    Example:
        >>> with open_model("model_int8.tflite", threads=2) as model:  # doctest: +SKIP
        ...     scores = model.predict(images)
    """
    delegate = check_delegate(delegate or ("none" if keep_tensors else "xnnpack"))
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise SettingsError(f"`threads` is a whole number of at least 1. Received: {threads!r}.")
    if keep_tensors and delegate != "none":
        raise SettingsError(
            f"`keep_tensors=True` needs `delegate='none'`: a delegate does not write the tensors "
            f"inside it. Received: delegate={delegate!r}."
        )
    data, path = load_bytes(model)
    return OpenModel(
        data, check_sound(data), delegate, threads, keep_tensors=keep_tensors, path=path
    )


def check_delegate(delegate: str) -> str:
    """The name of a delegate, if this version can run it.

    Raises:
        DelegateError: It is known but not supported yet.
        SettingsError: There is no such delegate.
    """
    if delegate in LATER:
        raise DelegateError(
            f"The delegate {delegate!r} is not supported yet by this version. Use 'xnnpack' or "
            "'none'."
        )
    if delegate not in DELEGATES:
        raise SettingsError(
            f"`delegate` must be one of {list(DELEGATES)}. Received: {delegate!r}."
            f"{did_you_mean(delegate, DELEGATES)}"
        )
    return delegate


class OpenModel:
    """A model that is open on a runtime; made by `open_model`. Use it from one thread at a time.

    Attributes:
        requested: The delegate that was asked for.
        actual: The delegate that runs it; the same, or there would have been an error.
        adapter: The device of a GPU delegate; `None` on the CPU.
        nodes_delegated: Operators of the file that the delegate took.
        nodes_total: Operators of the file.
        runtime: Name and version of the runtime, e.g. `"ai-edge-litert 2.3.0"`.
        threads: Threads of the CPU kernels.
        inputs: Its inputs, in the file's own order.
        outputs: Its outputs, in the file's own order.
        tensors: All its activations: what `tensor` can read.
    """

    def __init__(
        self,
        data: bytes,
        fields: Fields,
        delegate: str,
        threads: int,
        *,
        keep_tensors: bool = False,
        path: str | None = None,
    ) -> None:
        self.requested = self.actual = delegate
        self.adapter: str | None = None
        self.threads = threads
        self._keep_tensors = keep_tensors
        self._path = path or "the model"
        self.runtime, module = find_runtime()
        messages: list[str] = []
        try:
            with native_messages(messages):
                self._interpreter: Any = make_interpreter(
                    module, data, delegate, threads, keep_tensors
                )
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise refusal(self._path, self.runtime, delegate, error, messages) from error
        subgraph = fields["subgraphs"][0]
        operators = subgraph["operators"] or []
        self.nodes_total = len(operators)
        self.nodes_delegated = count_delegated(self._interpreter, operators)
        if delegate == "xnnpack" and self.nodes_delegated == 0:
            raise nothing_taken(self._path, self.runtime, fields, messages)
        names = {side: signature_names(fields, side) for side in ("inputs", "outputs")}
        self.inputs = tensor_infos(subgraph, subgraph["inputs"], names["inputs"])
        self.outputs = tensor_infos(subgraph, subgraph["outputs"], names["outputs"])
        buffers = fields["buffers"]
        self.tensors = tensor_infos(
            subgraph,
            [
                index
                for index, tensor in enumerate(subgraph["tensors"] or [])
                if buffers[tensor["buffer"]]["data"] is None
                and buffers[tensor["buffer"]]["offset"] <= 1
            ],
            {**names["inputs"], **names["outputs"]},
        )

    def __enter__(self) -> "OpenModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory. It cannot run afterwards."""
        self._interpreter = None

    def run(self, inputs: Inputs) -> list[np.ndarray]:
        """One invocation on the tensors' own element types.

        Args:
            inputs: One array, a sequence in the order of `inputs`, or a dict by name. Shapes and
                element types are those of `inputs`.

        Returns:
            The outputs, in the order of `outputs`.

        Raises:
            DataError: A shape, an element type or a name does not fit.
            DelegateError: The runtime failed.
        """
        arrays = self._arrange(inputs)
        for info, array in zip(self.inputs, arrays, strict=True):
            if array.shape != info.shape or array.dtype.name != info.dtype:
                raise DataError(
                    f"`run` takes input {info.label!r} as {info.dtype} of shape {info.shape}. "
                    f"Received: {array.dtype.name} of shape {array.shape}. `predict` takes real "
                    "numbers with any number of samples."
                )
        return self._invoke(arrays)

    def predict(self, inputs: Inputs) -> np.ndarray | list[np.ndarray]:
        """Real numbers in, real numbers out, for any number of samples.

        Inputs are quantized by the file's own scale and zero point, samples run one after the
        other (or in the batch of the file), and outputs come back as float32; integer outputs
        without a scale, such as class numbers, stay integers.

        Args:
            inputs: Real numbers (not yet quantized) of shape (samples, …): one array, a sequence in
                the order of `inputs`, or a dict by name.

        Returns:
            Array of shape (samples, …); for several outputs a list in the order of `outputs`.

        Raises:
            DataError: A shape or a name does not fit, or there are NaNs.
            DelegateError: The runtime failed.
        """
        arrays = self._arrange(inputs)
        count, batch = self._check_samples(arrays)
        stored = [to_stored(array, info) for array, info in zip(arrays, self.inputs, strict=True)]
        runs: list[list[np.ndarray]] = []
        for start in range(0, count, batch):
            chunk = [array[start : start + batch] for array in stored]
            missing = batch - len(chunk[0])
            if missing:
                chunk = [np.concatenate([c, np.repeat(c[-1:], missing, axis=0)]) for c in chunk]
            runs.append(self._invoke(chunk))
        results = [
            to_real(join_runs([run[i] for run in runs], batch, count), info)
            for i, info in enumerate(self.outputs)
        ]
        return results[0] if len(results) == 1 else results

    def timed(self, inputs: Inputs, runs: int) -> list[int]:
        """How long each of `runs` invocations takes, in nanoseconds.

        Inputs are as for `run`; they are set once, and setting them is not timed.
        """
        arrays, interpreter, times = self._arrange(inputs), self._open(), []
        self._invoke(arrays)
        for _ in range(runs):
            start = time.perf_counter_ns()
            interpreter.invoke()
            times.append(time.perf_counter_ns() - start)
        return times

    def tensor(self, index: int) -> np.ndarray:
        """An activation of the last run, in its own element type.

        Args:
            index: `TensorInfo.index` of one of `tensors`.

        Raises:
            SettingsError: The model was opened without `keep_tensors=True`, or there is no such
                activation.
        """
        if not self._keep_tensors:
            raise SettingsError("`tensor` needs `open_model(…, keep_tensors=True)`.")
        if index not in {info.index for info in self.tensors}:
            raise SettingsError(
                f"`tensor` takes the index of an activation, see `tensors`. Received: {index!r}."
            )
        try:
            return self._open().get_tensor(index)
        except ValueError as error:
            raise SettingsError(f"Tensor {index} holds nothing. Run the model first.") from error

    def _open(self) -> Any:
        if self._interpreter is None:
            raise DelegateError("The model is closed. Open it again with `open_model`.")
        return self._interpreter

    def _invoke(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        interpreter = self._open()
        try:
            for info, array in zip(self.inputs, arrays, strict=True):
                interpreter.set_tensor(info.index, array)
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise failure(self._path, self.runtime, self.actual, error) from error
        return [interpreter.get_tensor(info.index) for info in self.outputs]

    def _arrange(self, inputs: Inputs) -> list[np.ndarray]:
        """The input arrays in the order of the file."""
        if isinstance(inputs, Mapping):
            return arrays_by_name(inputs, self.inputs)
        arrays = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        if len(arrays) != len(self.inputs) and len(self.inputs) == 1:
            arrays = [np.asarray(inputs)]
        if len(arrays) != len(self.inputs):
            names = [info.label for info in self.inputs]
            raise DataError(
                f"The model has {len(self.inputs)} inputs: {names}. Received {len(arrays)} arrays. "
                "Give a sequence in this order, or a dict by name."
            )
        return [np.asarray(array) for array in arrays]

    def _check_samples(self, arrays: Sequence[np.ndarray]) -> tuple[int, int]:
        """Number of samples, and how many of them one run takes."""
        for info, array in zip(self.inputs, arrays, strict=True):
            if not info.shape or array.shape[1:] != info.shape[1:] or array.ndim != len(info.shape):
                raise DataError(
                    f"Input {info.label!r} takes shape (samples, "
                    f"{', '.join(map(str, info.shape[1:]))}). Received: {array.shape}."
                    + (" Add the batch axis: `x[None]`." if array.shape == info.shape[1:] else "")
                )
        counts, batches = {len(a) for a in arrays}, {info.shape[0] for info in self.inputs}
        if len(counts) != 1 or 0 in counts or len(batches) != 1:
            raise DataError(
                f"All inputs must have the same number of samples, at least one. Received: "
                f"{[array.shape for array in arrays]} for {[info.shape for info in self.inputs]}."
            )
        return counts.pop(), batches.pop()
