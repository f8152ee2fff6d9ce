"""Which operators end in the one piece that the Edge TPU runs, by the flow of data.

The compiler takes one piece of the graph. It is found as TensorFlow Lite divides a graph for a
delegate (`tensorflow/lite/graph_info.cc`): operators are visited in file order, again and again;
the first one whose inputs are there sets whether the next piece runs on the accelerator or on the
CPU, and every operator of that sort joins it as soon as its inputs are there. The first accelerator
piece is compiled. Unsupported operators in front of it cost nothing; whatever needs the result of
an unsupported operator behind its beginning stays on the CPU.
"""

from collections.abc import Sequence
from typing import Final

from tfedge.accelerators.edgetpu.graph import Graph
from tfedge.accelerators.edgetpu.rules import Status, Verdict, refusal

NOT_KNOWN_BEFORE: Final = "Not known: it depends on an operator before it of which it is not known"


def follow(graph: Graph, verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Where each operator runs, from what the Edge TPU takes of each on its own.

    Args:
        graph: The graph.
        verdicts: Of each operator on its own.

    Returns:
        Of each operator in the graph. Where it hangs on an operator that is not known, `None`.
    """
    most = first_piece(graph, [verdict.mapped is not False for verdict in verdicts])
    least = first_piece(graph, [verdict.mapped is True for verdict in verdicts])
    causes = _causes(graph, verdicts, most)
    return tuple(
        _place(graph, own, causes.get(index), index in most, index in least)
        for index, own in enumerate(verdicts)
    )


def first_piece(graph: Graph, taken: Sequence[bool]) -> frozenset[int]:
    """The operators of the first accelerator piece, by their index.

    Args:
        graph: The graph.
        taken: Whether the accelerator takes each operator on its own.

    Example:
        >>> first_piece(Graph(operators=(), tensors=(), inputs=(), outputs=()), [])
        frozenset()
    """
    waiting = list(range(len(graph.operators)))
    missing = {tensor.index for operator in graph.operators for tensor in operator.outputs}
    while waiting:
        piece, kind = _next_piece(graph, taken, waiting, missing)
        if not piece or kind:
            return frozenset(piece)
        waiting = [index for index in waiting if index not in piece]
    return frozenset()


def _next_piece(
    graph: Graph, taken: Sequence[bool], waiting: Sequence[int], missing: set[int]
) -> tuple[set[int], bool | None]:
    """The operators of the next piece and whether the accelerator runs them. Fills `missing`.

    The operators of a sound file stand in order of execution, so one visit reaches all of them.
    """
    piece: set[int] = set()
    kind: bool | None = None
    for index in waiting:
        operator = graph.operators[index]
        ready = all(operand is None or operand.index not in missing for operand in operator.inputs)
        if not ready:
            continue
        kind = taken[index] if kind is None else kind
        if taken[index] is kind:
            piece.add(index)
            missing.difference_update(tensor.index for tensor in operator.outputs)
    return piece, kind


def _causes(graph: Graph, verdicts: Sequence[Verdict], piece: frozenset[int]) -> dict[int, int]:
    """For each operator behind the piece, the first operator that keeps it from joining."""
    makers = {
        tensor.index: operator.index for operator in graph.operators for tensor in operator.outputs
    }
    causes: dict[int, int] = {}
    for operator in graph.operators:
        needed = {makers.get(operand.index) for operand in operator.inputs if operand is not None}
        found = [
            index if verdicts[index].mapped is not True else causes.get(index)
            for index in needed
            if index is not None and index not in piece and index != operator.index
        ]
        if known := [cause for cause in found if cause is not None]:
            causes[operator.index] = min(known)
    return causes


def _place(graph: Graph, own: Verdict, cause: int | None, most: bool, least: bool) -> Verdict:
    if own.mapped is False or (most and least):
        return own
    if cause is None:
        detail = "another piece of the graph was begun before it"
    else:
        name = graph.operators[cause].name
        detail = f"it needs the result of operator {cause} ({name}), which runs on the CPU"
    if not most and not least:
        return Verdict(mapped=False, reason=refusal(Status.SUBGRAPH, detail))
    if own.mapped is None:
        return own
    return Verdict(mapped=None, reason=NOT_KNOWN_BEFORE)
