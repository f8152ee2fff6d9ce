"""Say where the Edge TPU stops, why the compiler would refuse a file, and what else to know."""

from collections.abc import Sequence
from typing import Final

from tfedge.accelerators.edgetpu.graph import Graph, used_tensors
from tfedge.accelerators.edgetpu.memory import CHIP_BYTES, ParameterMemory
from tfedge.accelerators.edgetpu.observed import refused_version
from tfedge.accelerators.edgetpu.rules import Verdict, changes_size, shape_text
from tfedge.inspection.layout import OPERATORS
from tfedge.report import format_bytes

NOT_QUANTIZED: Final = "Model not quantized"
MAX_SENTENCES: Final = 8
# The compiler of 2021 knows no builtin operator from this number on
# (https://github.com/google-coral/edgetpu/issues/818).
FIRST_UNKNOWN_KIND: Final = OPERATORS.index("GELU")


def cut_sentence(graph: Graph, alone: Sequence[Verdict], verdicts: Sequence[Verdict]) -> str | None:
    """Where the Edge TPU stops and why; `None` where it runs everything.

    Args:
        graph: The graph.
        alone: What it takes of each operator on its own.
        verdicts: What it takes of each in the graph.
    """
    total = len(verdicts)
    mapped = [index for index, row in enumerate(verdicts) if row.mapped is True]
    if len(mapped) == total:
        return None
    if not mapped:
        return f"The Edge TPU takes none of the {total} operators."
    makes = {tensor.index for index in mapped for tensor in graph.operators[index].outputs}
    stops = [
        operator
        for operator, own in zip(graph.operators, alone, strict=True)
        if own.mapped is not True
        and any(operand is not None and operand.index in makes for operand in operator.inputs)
    ]
    if not stops:
        return f"The Edge TPU runs {len(mapped)} of {total} operators, the last ones among them."
    first = stops[0]
    may = "may stop" if alone[first.index].mapped is None else "stops"
    more = f" and at {len(stops) - 1} more" if len(stops) > 1 else ""
    layer = f", layer {first.layer}" if first.layer else ""
    left = total - len(mapped)
    unsure = " or may do so" if any(row.mapped is None for row in verdicts) else ""
    return (
        f"The Edge TPU runs {len(mapped)} of {total} operators and {may} at operator {first.index} "
        f"({first.name}{layer}){more}. {alone[first.index].reason}. "
        f"{left} {'operator stays' if left == 1 else 'operators stay'} on the CPU{unsure}."
    )


def refusals(graph: Graph, *, quantized: bool) -> tuple[str, ...]:
    """Why the compiler would stop without making a file.

    Args:
        graph: The graph.
        quantized: Whether it computes with 8-bit integers at all.
    """
    found = []
    if not quantized:
        found.append(f"{NOT_QUANTIZED}: the compiler takes files that compute in 8 bits only.")
    for operand in used_tensors(graph):
        if not operand.is_constant and changes_size(operand):
            found.append(
                "Attempting to use a delegate that only supports static-sized tensors: the size of "
                f"{operand.name!r} is open, {shape_text(operand.signature)}."
            )
            break
    for operator in graph.operators:
        if (evidence := refused_version(operator)) is not None:
            found.append(
                f"Operator {operator.index} ({operator.name}) is of version {operator.version}, "
                f"which the compiler does not know ({evidence})."
            )
        elif operator.is_custom and operator.name.startswith("Flex"):
            found.append(f"Operator {operator.index} ({operator.name}) needs TensorFlow itself.")
        elif not operator.is_custom and OPERATORS.index(operator.name) >= FIRST_UNKNOWN_KIND:
            found.append(
                f"Operator {operator.index} ({operator.name}) is newer than the compiler, which "
                "cannot read the file."
            )
    return tuple(found[:MAX_SENTENCES])


def subgraph_note(graph: Graph) -> tuple[str, ...]:
    """What is not looked at in a file with several subgraphs."""
    if graph.subgraphs == 1:
        return ()
    return (f"The file has {graph.subgraphs} subgraphs. All but the main one run on the CPU.",)


def leading_note(graph: Graph, verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """Which operators run on the CPU before the Edge TPU begins."""
    first = next((i for i, row in enumerate(verdicts) if row.mapped is True), 0)
    leading = [graph.operators[i].name for i in range(first)]
    if not leading:
        return ()
    names = ", ".join(dict.fromkeys(leading))
    count = "1 operator" if len(leading) == 1 else f"{len(leading)} operators"
    return (f"Before the Edge TPU, {count} on the CPU: {names}.",)


def memory_note(memory: ParameterMemory) -> tuple[str, ...]:
    """That the figures are estimates."""
    if not memory.on_chip:
        return ()
    text = (
        f"The parameter memory is an estimate: of the {format_bytes(CHIP_BYTES)} on the chip, "
        "instructions and activations take what the compiler decides; its log gives the figures."
    )
    return (text,)
