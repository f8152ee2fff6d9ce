"""Write a file so that LiteRT's GPU accelerator computes what it says.

ai-edge-litert 2.3.0 computes int8 convolutions with a 1×1 kernel and a stride above 1 wrongly on
GPUs, as if the stride were 1, and only warns ("Shape mismatch in GpuModelBuilder"). With a kernel
of 2×2 whose other values are zero the same convolution is computed rightly: `SAME` pads it at most
behind the image, so that the first value stays on the pixel that it was on.
"""

from collections import Counter
from typing import Any, Final

import numpy as np

from tfedge.inspection import read_model
from tfedge.inspection.decode import Fields
from tfedge.inspection.soundness import dtype_of, operator_name, shape_of

SAME: Final = 0  # schema: enum Padding


def without_strided_pointwise(data: bytes, fields: Fields) -> tuple[bytes, int]:
    """The file with 2×2 kernels for its strided int8 1×1 convolutions; bit-equal results on a CPU.

    Args:
        data: A sound file; it is not changed.
        fields: The same, decoded.

    Returns:
        The file, and how many convolutions were written anew; the same file where there is none.
    """
    places = _strided_pointwise(fields)
    if not places:
        return data, 0
    import flatbuffers

    model = read_model(data)
    graph = model.subgraphs[0]
    for place in places:
        operator = graph.operators[place]
        operator.builtinOptions.padding = SAME  # as `VALID` for 1×1, which needs no padding
        _widen(model, graph.tensors[int(operator.inputs[1])])
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output()), len(places)


def _strided_pointwise(fields: Fields) -> list[int]:
    graph = fields["subgraphs"][0]
    operators = graph["operators"] or []
    readers = Counter(int(i) for op in operators for i in op["inputs"] if i >= 0)
    sharers = Counter(tensor["buffer"] for tensor in graph["tensors"])
    found = []
    for place, op in enumerate(operators):
        if operator_name(fields, op) != "CONV_2D":
            continue
        kernel = graph["tensors"][int(op["inputs"][1])]
        options = op["builtin_options"]
        strided = options is not None and max(options["stride_h"], options["stride_w"]) > 1
        alone = readers[int(op["inputs"][1])] == 1 == sharers[kernel["buffer"]]
        pointwise = dtype_of(kernel) == "int8" and shape_of(kernel)[1:3] == (1, 1)
        if strided and alone and pointwise:
            found.append(place)
    return found


def _widen(model: Any, kernel: Any) -> None:
    buffer = model.buffers[kernel.buffer]
    values = np.asarray(buffer.data, np.uint8).reshape(kernel.shape)
    wide = np.zeros((values.shape[0], 2, 2, values.shape[3]), np.uint8)
    wide[:, :1, :1] = values
    kernel.shape = np.array(wide.shape, np.int32)
    if kernel.shapeSignature is not None:
        kernel.shapeSignature = kernel.shape
    buffer.data = wide.reshape(-1)
