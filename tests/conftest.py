"""Shared fixtures: small `.tflite` files made here, and the large ones where they are present."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

FOLDERS = ("", "../models", "../edgetpu")


@pytest.fixture(scope="module", autouse=True)
def _no_rubbish_of_modules_before() -> Iterator[None]:
    """Keep the collector from walking through what the modules before left, again and again."""
    yield
    gc.collect()
    gc.freeze()


def unavailable(what: str, reason: str) -> NoReturn:
    """Skip with one line; fail if `TFEDGE_REQUIRE` (such as "data,gpu") holds `what`."""
    if what in os.environ.get("TFEDGE_REQUIRE", "").split(","):
        pytest.fail(f"TFEDGE_REQUIRE holds {what!r}, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """Path of a file in `TFEDGE_DATA_DIR` or the folders beside it; skips where it is absent."""

    def find(name: str) -> Path:
        root = os.environ.get("TFEDGE_DATA_DIR")
        if not root:
            unavailable("data", f"TFEDGE_DATA_DIR is not set ({name})")
        for folder in FOLDERS:
            path = Path(root) / folder / name
            if path.is_file():
                return path
        unavailable("data", f"{name} is not in or beside TFEDGE_DATA_DIR")

    return find


@pytest.fixture(scope="session")
def small_function():
    """A frozen concrete function: convolution, depthwise, pooling, dense on 8×8×3."""
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, "softmax", kernel_initializer=keras.initializers.RandomNormal(0, 1)),
        ]
    )
    signature = [tf.TensorSpec((1, 8, 8, 3), name="image")]
    function = tf.function(lambda image: model(image), input_signature=signature)
    return convert_variables_to_constants_v2(function.get_concrete_function())


@pytest.fixture(scope="session")
def float_file(small_function) -> bytes:
    """Content of a small float32 `.tflite` file."""
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_concrete_functions([small_function], tf.Module()).convert()


@pytest.fixture(scope="session")
def int8_file(small_function) -> bytes:
    """Content of the same model in int8, input and output too."""
    import tensorflow as tf

    def samples() -> Iterator[list[np.ndarray]]:
        for seed in range(20):
            yield [np.random.default_rng(seed).random((1, 8, 8, 3), np.float32)]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([small_function], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


@pytest.fixture(scope="session")
def build_file() -> Callable[..., bytes]:
    """Make a `.tflite` file by hand, for what no converter would write."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(buffers: list, row: dict):
        item = schema.TensorT(
            name=row["name"],
            shape=np.array(row["shape"], np.int32),
            type=getattr(schema.TensorType, row.get("dtype", "float32").upper()),
        )
        if "scale" in row:
            item.quantization = schema.QuantizationParametersT(
                scale=np.array(row["scale"], np.float32, ndmin=1),
                zeroPoint=np.array(row.get("zero_point", 0), np.int64, ndmin=1),
                quantizedDimension=row.get("axis", 0),
            )
        data = row.get("data")
        content = None if data is None else np.frombuffer(np.asarray(data).tobytes(), np.uint8)
        buffers.append(schema.BufferT(data=content))
        item.buffer = len(buffers) - 1
        return item

    def operator(codes: list, kind: str, inputs, outputs, options=None):
        number = getattr(schema.BuiltinOperator, kind)
        codes.append(
            schema.OperatorCodeT(
                builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=1
            )
        )
        item = schema.OperatorT(
            opcodeIndex=len(codes) - 1,
            inputs=np.array(inputs, np.int32),
            outputs=np.array(outputs, np.int32),
        )
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            item.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            item.builtinOptions = options
        return item

    def build(tensors, operators, *, inputs=(0,), outputs=(-1,), edit=None) -> bytes:
        buffers, codes = [schema.BufferT()], []
        graph = schema.SubGraphT(tensors=[tensor(buffers, row) for row in tensors])
        graph.operators = [operator(codes, *row) for row in operators]
        graph.inputs = np.array(inputs, np.int32)
        graph.outputs = np.array([i % len(tensors) for i in outputs], np.int32)
        model = schema.ModelT(
            version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers, description="hand"
        )
        if edit is not None:
            edit(model)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    return build
