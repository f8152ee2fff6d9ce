"""A model that is open: its tensors, and what it can be asked."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfedge.errors import DataError, DelegateError, SettingsError
from tfedge.inspection.decode import Fields
from tfedge.runtime.backend import Backend
from tfedge.runtime.interpreter import LoadedDelegate
from tfedge.runtime.tensors import (
    Inputs,
    TensorInfo,
    arrays_by_name,
    join_runs,
    signature_names,
    tensor_infos,
    to_real,
    to_stored,
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """How a model is to be opened; see `open_model`."""

    delegate: str | LoadedDelegate = "xnnpack"
    threads: int = 1
    keep_tensors: bool = False
    precision: str = "fp32"
    allow_software: bool = False

    @property
    def name(self) -> str:
        """What the delegate is called."""
        return self.delegate if isinstance(self.delegate, str) else self.delegate.name


def ends_of(fields: Fields) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs of a file's first graph, in the file's order."""
    subgraph = fields["subgraphs"][0]
    inputs, outputs = (
        tensor_infos(subgraph, subgraph[side], signature_names(fields, side))
        for side in ("inputs", "outputs")
    )
    return inputs, outputs


class OpenModel:
    """A model that is open on a runtime; made by `open_model`.

    Threads may share it: their runs take turns, and each gets the outputs of its own inputs. To
    run at the same time, each thread opens a model of its own (of the same file, if it likes).
    `tensor` reads from the last run of any thread: keep a model with `keep_tensors` to one. While a
    model is being opened, what other threads print on stderr (for a GPU on stdout, too) is taken
    for messages of the runtime.

    Attributes:
        requested: The delegate that was asked for.
        actual: The delegate that runs it; the same, or there would have been an error.
        adapter: The device of a GPU delegate, e.g. `"SwiftShader Device (Subzero) (CPU / Software,
            Vulkan)"`; `None` elsewhere.
        nodes_delegated: Operators of the file that the delegate took.
        nodes_total: Operators of the file.
        runtime: Name and version of the runtime, e.g. `"ai-edge-litert 2.3.0"`.
        threads: Threads of the CPU kernels.
        precision: What floats are computed in: `"fp32"`, or on a GPU by choice `"fp16"`.
        notes: What is worth knowing about how it runs, in sentences; empty as a rule.
        inputs: Its inputs, in the file's own order.
        outputs: Its outputs, in the file's own order.
        tensors: All its activations: what `tensor` can read.
    """

    def __init__(
        self, backend: Backend, fields: Fields, request: Request, *, path: str | None = None
    ) -> None:
        self._backend: Backend | None = backend
        self._lock = threading.Lock()
        self._keep_tensors = request.keep_tensors
        self._path = path or "the model"
        self.requested = self.actual = request.name
        self.adapter, self.runtime = backend.adapter, backend.runtime
        self.nodes_delegated, self.notes = backend.nodes_delegated, backend.notes
        self.threads, self.precision = request.threads, request.precision
        subgraph, buffers = fields["subgraphs"][0], fields["buffers"]
        self.nodes_total = len(subgraph["operators"] or [])
        self.inputs, self.outputs = ends_of(fields)
        names = signature_names(fields, "inputs") | signature_names(fields, "outputs")
        self.tensors = tensor_infos(
            subgraph,
            [
                index
                for index, tensor in enumerate(subgraph["tensors"] or [])
                if buffers[tensor["buffer"]]["data"] is None
                and buffers[tensor["buffer"]]["offset"] <= 1
            ],
            names,
        )

    def __enter__(self) -> "OpenModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory, after the run that is under way. It cannot run afterwards."""
        with self._lock:
            if self._backend is not None:
                self._backend.close()
            self._backend = None

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

        Inputs are as for `run`. On the CPU the invocation alone is timed. On a GPU, which works on
        after its invocation returns, the time is from the input arrays to the output arrays.
        """
        arrays = self._arrange(inputs)
        with self._lock:
            return self._open().timed(arrays, runs)

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
            with self._lock:
                return self._open().tensor(index)
        except ValueError as error:
            raise SettingsError(f"Tensor {index} holds nothing. Run the model first.") from error

    def _open(self) -> Backend:
        if self._backend is None:
            raise DelegateError("The model is closed. Open it again with `open_model`.")
        return self._backend

    def _invoke(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with self._lock:
            return self._open().run(arrays)

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
