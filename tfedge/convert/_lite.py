"""Hand a Keras model to the TFLite converter: frozen, batch 1, static shapes."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from tfedge.convert._inner_ranges import with_inner_ranges
from tfedge.convert._request import Request
from tfedge.convert._signature import input_specs, takes_dict
from tfedge.engines.native import _private
from tfedge.errors import ConversionError


def write_file(model: Any, request: Request) -> bytes:
    """The bytes of a `.tflite` file that computes what `model` computes at inference.

    Args:
        model: A Keras model of either Keras, possibly with fake quantisation in its graph.
        request: What to make of it.

    Raises:
        ConversionError: An input shape is open, or the converter failed.
    """
    function = frozen(model)
    if request.inner_layers and request.samples is not None:
        function = with_inner_ranges(function, request.inner_layers, request.samples)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    names = [spec.name for spec in input_specs(model)]
    _configure(converter, request, names)
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")  # the converter warns of its own use of tf.lite
            data = bytes(converter.convert())
    except Exception as error:  # the converter raises bare RuntimeError, ValueError and its own
        cause = " ".join(str(error).split())[:400] or type(error).__name__
        raise ConversionError(
            f"The TFLite converter could not convert `{model.name}` to {request.mode}: {cause}"
        ) from error
    return in_order(data, names)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TensorFlow from telling of the temporary files that its converter writes."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def frozen(model: Any) -> Any:
    """The model's inference as a concrete function of batch 1 with its weights as constants."""
    specs = []
    for spec in input_specs(model):
        if any(size is None for size in spec.shape[1:]):
            raise ConversionError(
                f"Input `{spec.name}` of `{model.name}` has an open size: {spec.shape}. A "
                "`.tflite` for the edge has static shapes: build the model with a full "
                "`keras.Input(shape)`."
            )
        specs.append(tf.TensorSpec([1, *spec.shape[1:]], spec.dtype, name=spec.name))

    by_name = takes_dict(model)

    @tf.function(input_signature=specs)
    def inference(*tensors: Any) -> dict[str, Any]:
        inputs = list(tensors) if len(tensors) > 1 else tensors[0]
        if by_name:
            inputs = {spec.name: tensor for spec, tensor in zip(specs, tensors, strict=True)}
        outputs = tf.nest.flatten(model(inputs, training=False))
        return {f"output_{i:03d}": tf.identity(t) for i, t in enumerate(outputs)}

    from tensorflow.python.framework import convert_to_constants

    return convert_to_constants.convert_variables_to_constants_v2(inference.get_concrete_function())


def _configure(converter: Any, request: Request, names: list[str]) -> None:
    if request.mode == "float32":
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if request.mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if request.mode in ("float16", "dynamic_int8"):
        return
    converter.inference_input_type = tf.as_dtype(request.input_type)
    converter.inference_output_type = tf.as_dtype(request.output_type)
    if request.mode == "int16x8":
        ops_set = tf.lite.OpsSet
        converter.target_spec.supported_ops = [
            ops_set.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
            ops_set.TFLITE_BUILTINS,
        ]
    else:
        _private.per_tensor_dense(converter)
    samples = request.samples
    if samples is not None and not request.inner_layers:

        def representative() -> Iterator[dict[str, np.ndarray]]:
            for arrays in samples.single():
                yield dict(zip(names, arrays, strict=True))

        converter.representative_dataset = representative


def in_order(data: bytes, inputs: list[str]) -> bytes:
    """The file with inputs and outputs in the model's order; the converter sorts them by name.

    Args:
        data: A `.tflite` file with one signature, outputs named `output_000` and on.
        inputs: Names of the inputs in the order wanted.
    """
    buffer = bytearray(data)
    model = schema.Model.GetRootAs(buffer, 0)
    if model.SignatureDefsLength() != 1:
        return data
    signature, graph = model.SignatureDefs(0), model.Subgraphs(0)

    def indices(maps: Any, count: int) -> dict[str, int]:
        return {maps(i).Name().decode(): maps(i).TensorIndex() for i in range(count)}

    found = indices(signature.Inputs, signature.InputsLength())
    if set(found) == set(inputs):
        _overwrite(buffer, graph, 6, [found[name] for name in inputs])
    found = indices(signature.Outputs, signature.OutputsLength())
    _overwrite(buffer, graph, 8, [found[name] for name in sorted(found)])
    return bytes(buffer)


def _overwrite(buffer: bytearray, graph: Any, field: int, values: list[int]) -> None:
    """Overwrite an int32 vector of a SubGraph in place (field 6: inputs, 8: outputs)."""
    start = graph._tab.Vector(graph._tab.Offset(field))
    np.frombuffer(buffer, np.int32, len(values), start)[:] = values
