"""Open a `.tflite` model on a delegate and run it.

    with open_model("model_int8.tflite") as model:
        scores = model.predict(images)      # real numbers in, real numbers out
        print(model.actual, model.nodes_delegated, model.nodes_total)

Runs on ai-edge-litert, else on tflite-runtime; never loads TensorFlow.
"""

from tfedge.runtime.interpreter import LoadedDelegate, load_delegate
from tfedge.runtime.model import OpenModel, Request
from tfedge.runtime.native import RuntimeState, runtimes
from tfedge.runtime.opening import (
    DELEGATES,
    PRECISIONS,
    check_delegate,
    check_precision,
    check_request,
    open_model,
    open_sound,
)
from tfedge.runtime.tensors import Inputs, TensorInfo, dequantize, quantize

__all__ = [
    "DELEGATES",
    "PRECISIONS",
    "Inputs",
    "LoadedDelegate",
    "OpenModel",
    "Request",
    "RuntimeState",
    "TensorInfo",
    "check_delegate",
    "check_precision",
    "check_request",
    "dequantize",
    "load_delegate",
    "open_model",
    "open_sound",
    "quantize",
    "runtimes",
]
