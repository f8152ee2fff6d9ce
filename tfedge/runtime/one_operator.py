"""Write one operator of a `.tflite` file as a file of its own."""

import copy
from typing import Any

import numpy as np


def one_operator(model: Any, index: int) -> bytes:
    """A file that holds one operator: its constants, its other inputs as inputs, its outputs.

    Args:
        model: The file, as `read_model` returns it; it is not changed.
        index: Number of the operator in the first graph.

    Returns:
        The file.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    operator = copy.copy(graph.operators[index])
    given, made = ([int(i) for i in ends] for ends in (operator.inputs, operator.outputs))
    used = [i for i in dict.fromkeys([*given, *made]) if i >= 0]
    places = {old: new for new, old in enumerate(used)} | {-1: -1}
    buffers, tensors, constants = [schema.BufferT()], [], set()
    for old in used:
        tensor = copy.copy(graph.tensors[old])
        content = model.buffers[tensor.buffer]
        tensor.buffer = 0
        if content.data is not None and len(content.data):
            constants.add(old)
            tensor.buffer = len(buffers)
            buffers.append(content)
        tensors.append(tensor)
    operator.opcodeIndex = 0
    operator.inputs = np.array([places[i] for i in given], np.int32)
    operator.outputs = np.array([places[i] for i in made], np.int32)
    inputs = [places[i] for i in dict.fromkeys(given) if i >= 0 and i not in constants]
    single = schema.ModelT(
        version=model.version,
        operatorCodes=[model.operatorCodes[graph.operators[index].opcodeIndex]],
        subgraphs=[
            schema.SubGraphT(
                tensors=tensors,
                inputs=np.array(inputs, np.int32),
                outputs=operator.outputs,
                operators=[operator],
            )
        ],
        buffers=buffers,
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(single.Pack(builder), b"TFL3")
    return bytes(builder.Output())
