"""Time each operator of a float32 file alone.

LiteRT's Python interface has no profile by operator. So each operator is written into a file of its
own, with its real weights and shapes, as the converter fused it; all these files and the whole one
are run in turns on XNNPACK, so that a host that slows down slows all of them. Sum and whole differ:
an operator that runs alone finds its input in the cache and pays for being called, and XNNPACK
shares memory and packing across operators of a whole file.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfedge.benchmark.child import random_input
from tfedge.errors import DelegateError
from tfedge.runtime import OpenModel, open_model

SECONDS = 2.0  # of measuring, all files together
ROUNDS = 8
MOST_RUNS = 50  # of one file in one round


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median times in milliseconds.

    Attributes:
        whole: Of the file.
        operators: Of each of its operators; `None` for one that reads no activation.
        unaided: Names of the operators that XNNPACK does not take, run by LiteRT's own kernels.
    """

    whole: float
    operators: tuple[float | None, ...]
    unaided: tuple[str, ...]


def time_operators(data: bytes, *, threads: int = 1, seconds: float = SECONDS) -> Timing:
    """Time a float32 file and each of its operators alone.

    Args:
        data: Content of a `.tflite` file.
        threads: Threads of the kernels.
        seconds: How long to measure, loading not counted.

    Returns:
        The medians.
    """
    files = [data, *operator_files(data)]
    with ExitStack() as stack:
        opened: list[tuple[OpenModel, list[np.ndarray]] | None] = []
        unaided: list[str] = []
        for content in files:
            opened.append(_opened(stack, content, threads, unaided) if content else None)
        medians = _medians([item for item in opened if item is not None], seconds)
    found = iter(medians)
    times = [None if item is None else next(found) for item in opened]
    whole = times[0]
    assert whole is not None  # the whole file is always there
    return Timing(whole=whole, operators=tuple(times[1:]), unaided=tuple(dict.fromkeys(unaided)))


def operator_files(data: bytes) -> Iterator[bytes | None]:
    """A file for each operator of a file, in its order; `None` for one that reads no activation.

    Args:
        data: Content of a `.tflite` file.
    """
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    graph, *others = model.subgraphs
    for operator in graph.operators:
        yield _single(model, graph, others, operator)


def _single(model: Any, graph: Any, others: Sequence[Any], operator: Any) -> bytes | None:
    tensors = [i for i in (*_numbers(operator.inputs), *_numbers(operator.outputs)) if i >= 0]
    tensors += list(_numbers(operator.intermediates))
    kept = list(dict.fromkeys(tensors))
    place = {index: number for number, index in enumerate(kept)}
    read = dict.fromkeys(_numbers(operator.inputs))
    inputs = [place[i] for i in read if i >= 0 and _is_activation(model, graph.tensors[i])]
    if not inputs:
        return None
    single = schema.SubGraphT()
    single.name, single.tensors = graph.name, [graph.tensors[index] for index in kept]
    single.inputs = np.asarray(inputs, np.int32)
    single.outputs = np.asarray([place[i] for i in _numbers(operator.outputs)], np.int32)
    single.operators = [_renumbered(operator, place)]
    inner = others if _runs_subgraphs(model, operator) else []
    used = {tensor.buffer for part in (single, *inner) for tensor in part.tensors}
    whole = schema.ModelT()
    whole.version, whole.operatorCodes = model.version, model.operatorCodes
    whole.subgraphs = [single, *inner]
    whole.buffers = [
        buffer if number in used else schema.BufferT()
        for number, buffer in enumerate(model.buffers)
    ]
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _renumbered(operator: Any, place: dict[int, int]) -> Any:
    """The operator with the numbers that its tensors have in the small file."""

    def moved(numbers: Any) -> Any:
        return np.asarray([place.get(i, -1) for i in _numbers(numbers)], np.int32)

    copied = schema.OperatorT()
    vars(copied).update(vars(operator))
    copied.inputs, copied.outputs = moved(operator.inputs), moved(operator.outputs)
    if operator.intermediates is not None:
        copied.intermediates = moved(operator.intermediates)
    return copied


def _numbers(values: Any) -> list[int]:
    return [] if values is None else [int(value) for value in values]


def _is_activation(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return (data is None or len(data) == 0) and not tensor.isVariable


def _runs_subgraphs(model: Any, operator: Any) -> bool:
    """Whether an operator is a loop or a branch, whose body is another subgraph."""
    code = model.operatorCodes[operator.opcodeIndex]
    kinds = schema.BuiltinOperator
    loops = (kinds.WHILE, kinds.IF, kinds.CALL_ONCE, kinds.CALL)
    return max(code.builtinCode, code.deprecatedBuiltinCode) in loops


def _opened(
    stack: ExitStack, content: bytes, threads: int, unaided: list[str]
) -> tuple[OpenModel, list[np.ndarray]]:
    try:
        model = open_model(content, threads=threads)
    except DelegateError:
        model = open_model(content, delegate="none", threads=threads)
        unaided.append(_name(content))
    stack.enter_context(model)
    generator = np.random.default_rng(0)
    return model, [random_input(info, generator) for info in model.inputs]


def _name(content: bytes) -> str:
    from tfedge.inspection import inspect_model

    return inspect_model(content).operators[0].name


def _medians(opened: Sequence[tuple[OpenModel, list[np.ndarray]]], seconds: float) -> list[float]:
    """Median time of each in milliseconds; they run in turns, each round in the opposite order."""
    share = seconds * 1e9 / (ROUNDS * len(opened))
    single = [model.timed(inputs, 3)[-1] for model, inputs in opened]
    runs = [max(1, min(MOST_RUNS, int(share / max(1, one)))) for one in single]
    times: list[list[int]] = [[] for _ in opened]
    order = list(range(len(opened)))
    for _ in range(ROUNDS):
        for index in order:
            model, inputs = opened[index]
            times[index] += model.timed(inputs, runs[index])
        order.reverse()
    return [float(np.median(row)) / 1e6 for row in times]
