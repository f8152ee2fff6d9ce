"""Open a `.tflite` model on a delegate and run it.

    with open_model("model_int8.tflite") as model:
        scores = model.predict(images)      # real numbers in, real numbers out
        print(model.actual, model.nodes_delegated, model.nodes_total)

Runs on ai-edge-litert, else on tflite-runtime; never loads TensorFlow.
"""

from tfedge.runtime.native import RuntimeState, runtimes
from tfedge.runtime.opening import DELEGATES, OpenModel, check_delegate, open_model
from tfedge.runtime.tensors import Inputs, TensorInfo, dequantize, quantize

__all__ = [
    "DELEGATES",
    "Inputs",
    "OpenModel",
    "RuntimeState",
    "TensorInfo",
    "check_delegate",
    "dequantize",
    "open_model",
    "quantize",
    "runtimes",
]
