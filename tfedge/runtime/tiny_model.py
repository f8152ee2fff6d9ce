"""A `.tflite` file of one operator, `y = x²`, which shows what a delegate computes in."""

import functools
from typing import Final

import numpy as np

# Squares that 16-bit floats miss by 3e-4, and reach without overflow.
SQUARES: Final = np.array([[1.001, 3.003, 0.1003, 7.77]], np.float32)


@functools.cache
def square_model() -> bytes:
    """The file: one float32 input of the shape of `SQUARES`, one output of the same.

    Example:
        >>> square_model()[4:8]
        b'TFL3'
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    kind = schema.BuiltinOperator.SQUARE
    shape = np.array(SQUARES.shape, np.int32)
    graph = schema.SubGraphT(
        tensors=[schema.TensorT(name=name, shape=shape, buffer=0) for name in "xy"],
        inputs=np.array([0], np.int32),
        outputs=np.array([1], np.int32),
        operators=[
            schema.OperatorT(inputs=np.array([0], np.int32), outputs=np.array([1], np.int32))
        ],
    )
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(builtinCode=kind, deprecatedBuiltinCode=kind)],
        subgraphs=[graph],
        buffers=[schema.BufferT()],
    )
    builder = flatbuffers.Builder(512)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
