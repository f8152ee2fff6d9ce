"""Run a model on the GPU, by LiteRT's accelerator (WebGPU on Vulkan), and on nothing else.

All models of a process that run at the same precision share one environment of LiteRT, and with it
the device and its compiled kernels. When it is made, a tiny model proves that the device computes,
and in which precision; LiteRT falls back to 32 bits in silence where a driver has no 16-bit floats.
"""

import atexit
import gc
import importlib
import importlib.metadata
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from tfedge.errors import DelegateError
from tfedge.inspection.decode import Fields
from tfedge.report import Record
from tfedge.runtime import gpu_refusals as refusals
from tfedge.runtime.gpu_rewrites import without_strided_pointwise
from tfedge.runtime.native import all_messages, failure, find_runtime
from tfedge.runtime.tensors import TensorInfo
from tfedge.runtime.tiny_model import SQUARES, square_model

WRONG: Final = 0.01  # relative errors of squares: 16-bit floats are off by 4e-4,
COARSE: Final = 1e-5  # 32-bit ones by 1e-7
WIDENED: Final = (
    "On the GPU {count} strided 1×1 int8 convolutions run as 2×2 ones with zeros, which are the "
    "same: ai-edge-litert 2.3.0 computes them wrongly as they are."
)
_ADAPTER: Final = re.compile(r"Selected adapter: (?P<name>.*?), (?:\w+=.*)")
_LOCK: Final = threading.RLock()
_DEVICES: "Final[dict[str, Device]]" = {}
_started: list[str] = []  # runtimes whose accelerator this process has loaded
_OPEN: "Final[weakref.WeakSet[GpuBackend]]" = weakref.WeakSet()


@dataclass(frozen=True, kw_only=True)
class Adapter(Record):
    """What WebGPU runs on.

    Attributes:
        name: As the driver calls it.
        kind: E.g. `"Discrete GPU"`, `"Integrated GPU"`, `"CPU / Software"`, `"Unknown"`.
        backend: The interface beneath, e.g. `"Vulkan"`.
    """

    name: str
    kind: str
    backend: str

    @property
    def is_hardware(self) -> bool:
        """Whether the driver says that it is a GPU."""
        return "GPU" in self.kind

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.backend})"


def read_adapter(messages: Sequence[str]) -> Adapter | None:
    """The adapter that LiteRT's messages name; `None` if they name none.

    Example:
        >>> line = "Selected adapter: A100, arch=ampere, backend=Vulkan, adapterType=Discrete GPU"
        >>> print(read_adapter([line]))
        A100 (Discrete GPU, Vulkan)
    """
    for line in messages:
        if found := _ADAPTER.search(line):
            facts = dict(re.findall(r"(\w+)=([^,]*)", found.group()))
            return Adapter(
                name=found["name"],
                kind=facts.get("adapterType", "Unknown").strip(),
                backend=facts.get("backend", "Unknown").strip(),
            )
    return None


class Device:
    """The GPU of this process at one precision; made by `find_device`.

    Attributes:
        adapter: What it is.
        runtime: Name and version of the runtime.
        precision: `"fp32"` or `"fp16"`: what it was proven to compute in.
    """

    def __init__(self, precision: str) -> None:
        self.runtime, self._api = _load_api()
        self.precision = precision
        self._folder = str(Path(self._api.__file__).parent)
        _started.append(self.runtime)
        messages: list[str] = []
        with all_messages(messages):
            self._environment = self._api.Environment.create(runtime_path=self._folder)
        try:
            self.adapter = self._prove(messages)
        except DelegateError:
            with all_messages([]):
                self._environment.close()
            raise

    def _prove(self, messages: list[str]) -> Adapter:
        """Run the tiny model; its adapter."""
        try:
            with all_messages(messages):
                squares = self._squares()
        except (RuntimeError, ValueError) as error:
            raise refusals.no_device(self.runtime, self._folder, error, messages) from error
        adapter = read_adapter(messages)
        if adapter is None:
            raise refusals.nameless_adapter(self.runtime, messages)
        exact = SQUARES.astype(np.float64) ** 2
        distance = float(np.abs(squares / exact - 1).max())
        if not distance < WRONG:  # nor not-a-number
            raise refusals.wrong_results(adapter, distance)
        found = "fp32" if distance < COARSE else "fp16"
        if found != self.precision:
            raise refusals.other_precision(adapter, self.precision, found)
        return adapter

    def compile(self, data: bytes) -> Any:
        """LiteRT's `CompiledModel` of a file, on the GPU alone."""
        api = self._api
        return api.CompiledModel.from_buffer(
            data,
            environment=self._environment,
            options=api.Options(
                hardware_accelerators=api.HardwareAccelerator.GPU,
                gpu_options=api.GpuOptions(enforce_f32=self.precision == "fp32"),
            ),
        )

    def attempt(self, data: bytes) -> tuple[Any, list[str], Exception | None]:
        """The compiled model or `None`, what LiteRT printed, and what it raised."""
        messages: list[str] = []
        model = raised = None
        with _LOCK, all_messages(messages):
            try:
                model = self.compile(data)
            except (RuntimeError, ValueError) as error:
                raised = error
        return model, messages, raised

    def _squares(self) -> np.ndarray:
        model = self.compile(square_model())
        (given,), (result,) = model.create_input_buffers(0), model.create_output_buffers(0)
        given.write(SQUARES.copy())
        model.run_by_index(0, [given], [result])
        squares: np.ndarray = result.read(SQUARES.size, np.float32).reshape(SQUARES.shape)
        return squares


def find_device(precision: str = "fp32") -> Device:
    """The GPU of this process, made on the first call and kept.

    Args:
        precision: `"fp32"` or `"fp16"`.

    Raises:
        DelegateError: There is none, or it does not compute in this precision.
    """
    with _LOCK:
        if precision not in _DEVICES:
            _DEVICES[precision] = Device(precision)
        return _DEVICES[precision]


def _load_api() -> tuple[str, Any]:
    runtime, _ = find_runtime()
    if not runtime.startswith("ai-edge-litert"):
        raise refusals.no_accelerator(runtime, "it has no `CompiledModel`")
    try:
        module = importlib.import_module("ai_edge_litert.compiled_model")
    except ImportError as error:
        raise refusals.no_accelerator(runtime, str(error)) from error
    for name in ("CompiledModel", "Environment", "GpuOptions", "HardwareAccelerator", "Options"):
        if name not in vars(module):
            raise refusals.no_accelerator(runtime, f"its `compiled_model` has no `{name}`")
    return runtime, module


class GpuBackend:
    """A model on the GPU (see `Backend`)."""

    def __init__(
        self,
        data: bytes,
        fields: Fields,
        *,
        path: str,
        precision: str,
        allow_software: bool,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
    ) -> None:
        device = find_device(precision)
        if not (device.adapter.is_hardware or allow_software):
            raise refusals.software_adapter(device.adapter)
        self.runtime = device.runtime
        self.adapter: str | None = str(device.adapter)
        self._data, widened = without_strided_pointwise(data, fields)
        self._path = path
        self.notes: tuple[str, ...] = (WIDENED.format(count=widened),) if widened else ()
        operators = fields["subgraphs"][0]["operators"] or []
        if not operators:  # LiteRT opens it, and then its outputs are memory that nobody wrote
            raise refusals.nothing_to_take(path)
        self._model, messages, error = device.attempt(self._data)
        wrong = refusals.left_to_the_cpu(messages) or refusals.misbuilt(messages)
        if self._model is None or wrong:
            raise refusals.refused_model(path, fields, device.adapter, error, messages) from error
        try:
            with _LOCK, all_messages(messages):
                self._place = _signature_of(fields)
                self._given = self._buffers("input", inputs)
                self._results = self._buffers("output", outputs)
        except (RuntimeError, ValueError, KeyError) as trouble:
            adapter = device.adapter
            raise refusals.refused_model(path, fields, adapter, trouble, messages) from trouble
        self._outputs = outputs
        self.nodes_delegated = len(operators)  # or LiteRT would have refused: CPU is not allowed
        _OPEN.add(self)

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs, read back, for inputs in the tensors' own element types."""
        try:
            for place, array in zip(self._given[1], arrays, strict=True):
                self._given[0][place].write(array)
            self._model.run_by_index(self._place, self._given[0], self._results[0])
            return [
                self._results[0][place]
                .read(int(np.prod(info.shape)), np.dtype(info.dtype))
                .reshape(info.shape)
                for place, info in zip(self._results[1], self._outputs, strict=True)
            ]
        except (RuntimeError, ValueError) as error:
            raise failure(self._path, self.runtime, "gpu", error) from error

    def timed(self, arrays: Sequence[np.ndarray], runs: int) -> list[int]:
        """Nanoseconds from the input arrays to the output arrays.

        A GPU works on after `run` returns, and a result counts when it is back in memory.
        """
        self.run(arrays)
        times = []
        for _ in range(runs):
            start = time.perf_counter_ns()
            self.run(arrays)
            times.append(time.perf_counter_ns() - start)
        return times

    def tensor(self, index: int) -> np.ndarray:
        """Never: inner tensors stay on the GPU."""
        raise ValueError(f"Tensor {index} is on the GPU.")

    def close(self) -> None:
        """Free the model and its buffers; the device stays for other models."""
        self._given = self._results = ([], [])
        self._model = None

    def _buffers(self, side: str, infos: Sequence[TensorInfo]) -> tuple[list[Any], list[int]]:
        """The buffers in LiteRT's order, and the place in it of each tensor of the file."""
        model, key = self._model, self._model.get_signature_by_index(self._place)["key"]
        if side == "input":
            buffers, details = (
                model.create_input_buffers(self._place),
                model.get_input_tensor_details(key),
            )
        else:
            buffers, details = (
                model.create_output_buffers(self._place),
                model.get_output_tensor_details(key),
            )
        names = model.get_signature_by_index(self._place)[f"{side}s"]
        places = {int(details[name]["index"]): place for place, name in enumerate(names)}
        for info in infos:
            found = buffers[places[info.index]].get_tensor_details()
            if tuple(found["shape"]) != info.shape or str(found["dtype"]) != info.dtype:
                raise ValueError(
                    f"{side} {info.label!r} is {info.dtype} {info.shape} in the file and "
                    f"{found['dtype']} {tuple(found['shape'])} on the GPU"
                )
        return buffers, [places[info.index] for info in infos]


def _signature_of(fields: Fields) -> int:
    """Number of the signature that runs the file's first graph."""
    signatures = fields["signature_defs"] or []
    for place, signature in enumerate(signatures):
        if signature["subgraph_index"] == 0:
            return place
    if signatures:
        raise ValueError("no signature of the file names its first graph")
    return 0


@atexit.register
def _leave() -> None:
    """Free models and devices, and keep the farewell of LiteRT's libraries off the screen."""
    if _started:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # they print until the process has ended
        for backend in list(_OPEN):
            backend.close()
        _DEVICES.clear()
        gc.collect()
