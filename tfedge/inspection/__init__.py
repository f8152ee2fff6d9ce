"""Read a `.tflite` file without running it: is it sound, and what does it hold.

    check_sound(data)       raises `FileFormatError` unless the file is sound
    inspect_model(path)     operators, element types, sizes, zeros, what stays float
    unique_values(path)     how many distinct values each kernel stores
    read_model(path)        the file as LiteRT's FlatBuffer objects, for those who edit it

Nothing here loads TensorFlow or runs native code of LiteRT.
"""

import os
from typing import Any

from tfedge.errors import MissingExtraError
from tfedge.inspection.layout import FLOAT_DTYPES
from tfedge.inspection.report import (
    InspectionReport,
    OperatorRecord,
    TensorRecord,
    WeightRecord,
    count_macs,
    inspect_model,
    layer_of,
    load_bytes,
    unique_values,
)
from tfedge.inspection.soundness import check_sound

__all__ = [
    "FLOAT_DTYPES",
    "InspectionReport",
    "OperatorRecord",
    "TensorRecord",
    "WeightRecord",
    "check_sound",
    "count_macs",
    "inspect_model",
    "layer_of",
    "load_bytes",
    "read_model",
    "unique_values",
]


def read_model(model: bytes | str | os.PathLike[str]) -> Any:
    """A `.tflite` file as objects of LiteRT's schema (`ModelT`), after `check_sound`.

    Args:
        model: Path of the file, or its content.

    Returns:
        `ai_edge_litert.schema_py_generated.ModelT`. Its byte vectors are read-only views.

    Raises:
        FileFormatError: There is no such file, or it is not sound.
        MissingExtraError: `ai-edge-litert` is not installed.
    """
    data, _ = load_bytes(model)
    check_sound(data)
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise MissingExtraError(
            "`read_model` needs LiteRT's schema. Install it with `pip install ai-edge-litert`."
        ) from error
    return schema_py_generated.ModelT.InitFromPackedBuf(data)
