"""What the Edge TPU will take of a `.tflite` file, foretold without its compiler."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tfedge.accelerators.edgetpu.advice import advise, is_8_bit
from tfedge.accelerators.edgetpu.compiled import CompiledFile, read_compiled
from tfedge.accelerators.edgetpu.flow import follow
from tfedge.accelerators.edgetpu.graph import Graph, read_graph, used_tensors
from tfedge.accelerators.edgetpu.memory import predict_memory
from tfedge.accelerators.edgetpu.observed import judge_observed
from tfedge.accelerators.edgetpu.rules import Verdict, shape_text
from tfedge.accelerators.edgetpu.summary import (
    NOT_QUANTIZED,
    cut_sentence,
    leading_note,
    memory_note,
    refusals,
    subgraph_note,
)
from tfedge.accelerators.records import OperatorMapping
from tfedge.inspection import FLOAT_DTYPES, check_sound, layer_of, load_bytes
from tfedge.report import Record, format_bytes

ALREADY_COMPILED: Final = (
    "The file is compiled for the Edge TPU already. To change it, compile the `.tflite` file that "
    "it was made from."
)


@dataclass(frozen=True, kw_only=True)
class Preflight(Record):
    """What the Edge TPU will take of a file.

    The rows are a prediction from documented rules and from observed limits; `mapped` is `None` of
    an operator of which neither says anything.

    Attributes:
        target: `"edgetpu"`.
        path: The file; `None` when bytes were given.
        already_compiled: Whether the file comes from the Edge TPU compiler; the rows then say what
            it did.
        fully_integer: Whether nothing in the file is float, inputs and outputs included.
        float_tensors: Names of the tensors that are float.
        float_layers: Names of the layers that these come from, as far as the file says.
        static_shapes: Whether no size is open.
        open_shapes: Each tensor with an open size, e.g. `"input ?x224x224x3"`.
        wide_tensors: Each tensor with more than three dimensions larger than 1, or with one outside
            the three innermost, e.g. `"grid 1x8x8x3x85"`.
        operators: The operators of the main subgraph, in file order.
        parameter_bytes_on_chip: Parameters cached on the chip: an estimate, or of a compiled file
            what it holds; `None` where that cannot be read.
        parameter_bytes_streamed: Parameters sent for every run, in the same way.
        cut: Where the Edge TPU stops and why; `None` where it runs everything.
        refusals: Why the compiler would make no file at all.
        changes: What to change in the model.
        notes: Sentences for the reader.
        compiled: What a compiled file holds; `None` for any other.
    """

    target: str = "edgetpu"
    path: str | None
    already_compiled: bool
    fully_integer: bool
    float_tensors: tuple[str, ...]
    float_layers: tuple[str, ...]
    static_shapes: bool
    open_shapes: tuple[str, ...]
    wide_tensors: tuple[str, ...]
    operators: tuple[OperatorMapping, ...]
    parameter_bytes_on_chip: int | None
    parameter_bytes_streamed: int | None
    cut: str | None
    refusals: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    compiled: CompiledFile | None = None

    @property
    def mapped(self) -> int:
        """How many operators the Edge TPU runs."""
        return sum(row.mapped is True for row in self.operators)

    @property
    def unmapped(self) -> int:
        """How many stay on the CPU."""
        return sum(row.mapped is False for row in self.operators)

    @property
    def unknown(self) -> int:
        """Of how many that is not known."""
        return sum(row.mapped is None for row in self.operators)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values, with the three counts."""
        counts = {"mapped": self.mapped, "unmapped": self.unmapped, "unknown": self.unknown}
        return {**super().to_dict(), **counts}

    def __str__(self) -> str:
        unknown = f", {self.unknown} unknown" if self.unknown else ""
        memory = (
            "unknown parameter memory"
            if self.parameter_bytes_on_chip is None or self.parameter_bytes_streamed is None
            else f"{format_bytes(self.parameter_bytes_on_chip)} of parameters on the chip, "
            f"{format_bytes(self.parameter_bytes_streamed)} streamed"
        )
        head = (
            f"{self.path or 'model'}: {'compiled' if self.already_compiled else 'predicted'} for "
            f"the Edge TPU, {self.mapped} of {len(self.operators)} operators on it{unknown}, "
            f"{'integer' if self.fully_integer else 'not fully integer'}, {memory}"
        )
        lines = (*self.refusals, *((self.cut,) if self.cut else ()), *self.changes)
        return "\n  ".join((head, *lines))


def preflight(model: bytes | str | os.PathLike[str]) -> Preflight:
    """What the Edge TPU will take of a `.tflite` file, without its compiler.

    The main subgraph is judged; that a file has more is a note.

    Args:
        model: Path of the file, or its content.

    Returns:
        The prediction, and what to change in the model.

    Raises:
        FileFormatError: There is no such file, or it is not sound.

    Example:
        >>> report = preflight("model_int8.tflite")  # doctest: +SKIP
        >>> report.mapped, len(report.operators), report.cut  # doctest: +SKIP
        (31, 31, None)
    """
    data, path = load_bytes(model)
    graph = read_graph(data, check_sound(data))
    compiled = read_compiled(graph, path, len(data))
    if compiled is not None:
        return _of_compiled(graph, compiled)
    quantized = is_8_bit(graph)
    alone = _alone(graph) if quantized else _not_quantized(graph)
    verdicts = follow(graph, alone)
    on_chip = (graph.operators[i] for i, row in enumerate(verdicts) if row.mapped is True)
    memory = predict_memory(on_chip)
    return Preflight(
        path=path,
        already_compiled=False,
        **_facts(graph),
        operators=_rows(graph, verdicts),
        parameter_bytes_on_chip=memory.on_chip,
        parameter_bytes_streamed=memory.streamed,
        cut=cut_sentence(graph, alone, verdicts),
        refusals=refusals(graph, quantized=quantized),
        changes=advise(graph, alone, memory, quantized=quantized),
        notes=(*subgraph_note(graph), *leading_note(graph, verdicts), *memory_note(memory)),
    )


def _of_compiled(graph: Graph, compiled: CompiledFile) -> Preflight:
    left = compiled.cpu_operators
    cut = None
    if left:
        names = ", ".join(dict.fromkeys(row.name for row in left))
        cut = f"The compiler left on the CPU, {len(left)} in all: {names}."
    return Preflight(
        path=compiled.path,
        already_compiled=True,
        **_facts(graph),
        operators=compiled.operators,
        parameter_bytes_on_chip=compiled.parameter_bytes_on_chip,
        parameter_bytes_streamed=compiled.parameter_bytes_streamed,
        cut=cut,
        notes=(
            ALREADY_COMPILED,
            *compiled.notes,
            *subgraph_note(graph),
        ),
        compiled=compiled,
    )


def _facts(graph: Graph) -> dict[str, Any]:
    """The fields of `Preflight` about the tensors that the operators use."""
    used = used_tensors(graph)
    floats = [tensor for tensor in used if tensor.dtype in FLOAT_DTYPES]
    open_sizes = [tensor for tensor in used if any(size < 0 for size in tensor.signature)]
    wide = [
        tensor
        for tensor in used
        if not tensor.is_constant and any(size > 1 for size in tensor.shape[:-3])
    ]
    return {
        "fully_integer": not floats,
        "float_tensors": tuple(tensor.name for tensor in floats),
        "float_layers": _distinct(layer_of(tensor.name) for tensor in floats),
        "static_shapes": not open_sizes,
        "open_shapes": tuple(f"{row.name} {shape_text(row.signature)}" for row in open_sizes),
        "wide_tensors": tuple(f"{row.name} {shape_text(row.shape)}" for row in wide),
    }


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))


def _alone(graph: Graph) -> tuple[Verdict, ...]:
    return tuple(judge_observed(operator) for operator in graph.operators)


def _not_quantized(graph: Graph) -> tuple[Verdict, ...]:
    rows = []
    for operator in graph.operators:
        dtypes = _distinct(operand.dtype for operand in operator.outputs)
        reason = f"{NOT_QUANTIZED}: it computes in {', '.join(dtypes) or 'nothing'}, not in 8 bits"
        rows.append(Verdict(mapped=False, reason=reason))
    return tuple(rows)


def _rows(graph: Graph, verdicts: Sequence[Verdict]) -> tuple[OperatorMapping, ...]:
    return tuple(
        OperatorMapping(
            index=operator.index,
            name=operator.name,
            mapped=verdict.mapped,
            reason=verdict.reason,
            layer=operator.layer,
        )
        for operator, verdict in zip(graph.operators, verdicts, strict=True)
    )
