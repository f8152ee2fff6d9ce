"""Write Python that runs a file: with tfedge, and with LiteRT alone."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

FLOATS: Final = ("float16", "float32", "float64")
INTEGERS: Final = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool")
QUANTIZED: Final = ("int8", "uint8", "int16")


def tfedge_snippet(path: str, inputs: Sequence[Mapping[str, Any]]) -> str:
    """Python that runs a file with tfedge.

    Args:
        path: The `.tflite` file.
        inputs: Its inputs, rows `{"label", "dtype", "shape"}`.

    Returns:
        Python source; all that came from the report stands in it as a literal.

    Example:
        >>> print(tfedge_snippet("m.tflite", [{"label": "x", "dtype": "int8", "shape": [1, 8]}]))
        import numpy as np
        import tfedge
        <BLANKLINE>
        inputs = np.zeros((1, 8), np.float32)  # your samples, scaled as for training
        with tfedge.open_model('m.tflite') as model:
            print(model.predict(inputs))
    """
    arrays = [_zeros(row) for row in inputs]
    if len(arrays) == 1:
        given = f"inputs = {arrays[0]}  # your samples, scaled as for training"
    else:
        pairs = zip(inputs, arrays, strict=True)
        rows = "".join(f"    {str(row.get('label'))!r}: {array},\n" for row, array in pairs)
        given = f"inputs = {{  # your samples, scaled as for training\n{rows}}}"
    return "\n".join(
        (
            "import numpy as np",
            "import tfedge",
            "",
            given,
            f"with tfedge.open_model({path!r}) as model:",
            "    print(model.predict(inputs))",
        )
    )


def litert_snippet(path: str, inputs: Sequence[Mapping[str, Any]]) -> str:
    """Python that runs a file with ai-edge-litert and NumPy alone.

    Args:
        path: The `.tflite` file.
        inputs: Its inputs, rows `{"label", "dtype", "shape"}`, in the order of the file.

    Returns:
        Python source; all that came from the report stands in it as a literal.
    """
    rows = "".join(f"    {_zeros(row)},  # {str(row.get('label'))!r}\n" for row in inputs)
    return "\n".join(
        (
            "import numpy as np",
            "from ai_edge_litert.interpreter import Interpreter",
            "",
            f"samples = [  # one sample for each input, scaled as for training\n{rows}]",
            f"interpreter = Interpreter({path!r}, num_threads=1)",
            "interpreter.allocate_tensors()",
            "for tensor, sample in zip(interpreter.get_input_details(), samples):",
            '    scale, zero_point = tensor["quantization"]',
            "    if scale:",
            '        limits = np.iinfo(tensor["dtype"])',
            "        sample = np.round(sample / scale + zero_point)",
            "        sample = sample.clip(limits.min, limits.max)",
            '    interpreter.set_tensor(tensor["index"], sample.astype(tensor["dtype"]))',
            "interpreter.invoke()",
            "for tensor in interpreter.get_output_details():",
            '    result = interpreter.get_tensor(tensor["index"])',
            '    scale, zero_point = tensor["quantization"]',
            "    print((result - np.float32(zero_point)) * scale if scale else result)",
        )
    )


def _zeros(row: Mapping[str, Any]) -> str:
    """Source of an array for one input: real numbers where the file stores quantized ones.

    Example:
        >>> _zeros({"label": "ids", "dtype": "int32", "shape": [1, 16]})
        'np.zeros((1, 16), np.int32)'
    """
    dtype = str(row.get("dtype"))
    scale = row.get("scale", 1.0 if dtype in QUANTIZED else 0.0)
    known = dtype in (*FLOATS, *INTEGERS) and not scale
    name = dtype if known else "float32"
    sizes = row.get("shape") or ()
    shape = tuple(size for size in sizes if isinstance(size, int))
    return f"np.zeros({shape}, np.{'bool_' if name == 'bool' else name})"
