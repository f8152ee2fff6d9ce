"""What `tfedge.inspection` says of a file is what the file holds, and no bytes bring it down."""

import gzip
import json
import random
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tfedge.errors import FileFormatError
from tfedge.inspection import check_sound, count_macs, inspect_model, read_model
from tfedge.inspection.layout import BITS, BUILTIN_OPTIONS, BUILTIN_OPTIONS_2, DTYPES, OPERATORS
from tfedge.inspection.weights import count_zeros, stored_values

VALUES = (0, 1, 2, 3, 5, 8, 127, 255, 256, 65_535, 65_536, 2**31 - 1, -1, -2, -(2**31))


def mutated(data: bytes, generator: random.Random) -> bytes:
    """`data` with a few bytes, half words or words changed, or cut short."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4))):
        kind = generator.choice("bhi")
        position = generator.randrange(len(changed) - 4) // 4 * 4
        if kind == "b":
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        elif kind == "h":
            struct.pack_into("<h", changed, position, generator.choice((0, 2, 4, 12, -1, 300)))
        else:
            struct.pack_into("<i", changed, position, generator.choice(VALUES))
    cut = generator.randrange(len(changed)) if generator.random() < 0.05 else len(changed)
    return bytes(changed[:cut])


@pytest.mark.parametrize("name", ["float_file", "int8_file"])
def test_mutated_files_are_refused_or_inspected_and_nothing_else(name, request):
    data, generator = request.getfixturevalue(name), random.Random(7)
    refused, start = 0, time.process_time()
    for _ in range(150):
        try:
            inspect_model(mutated(data, generator))
        except FileFormatError:
            refused += 1
    assert 20 < refused < 150
    assert time.process_time() - start < 10


def test_random_bytes_are_refused():
    generator = np.random.default_rng(0)
    for size in (0, 1, 15, 16, 17, 1000):
        for head in (b"", b"\x1c\0\0\0TFL3"):
            with pytest.raises(FileFormatError):
                check_sound((head + generator.bytes(size))[: max(size, len(head))])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "at least 16 bytes. Received 0"),
        (b"\x89HDF" + bytes(40), "looks like a Keras `.h5` file"),
        (b"PK\x03\x04" + bytes(40), "perhaps a `.keras` file"),
        (bytes(100), "identifier b'TFL3'"),
        (b"\xff\xff\xff\x7fTFL3" + bytes(100), "Every offset must point into the file"),
    ],
)
def test_what_is_no_tflite_file_is_named(data, match):
    with pytest.raises(FileFormatError, match=match):
        check_sound(data)


def test_a_truncated_file_is_refused(float_file):
    for size in range(16, len(float_file), 97):
        with pytest.raises(FileFormatError):
            check_sound(float_file[:size])


def shared_tables(subgraphs: int, tensors: int) -> bytes:
    """A few kilobytes that describe `subgraphs` times `tensors` tables, all the same two."""

    def vector(count: int, target: int) -> bytes:
        offsets = (4 * (count - i) + target for i in range(count))
        return struct.pack(f"<{count + 1}I", count, *offsets)

    head = struct.pack("<I4s5HxxiII", 20, b"TFL3", 10, 12, 8, 0, 4, 12, 8, 3)
    subgraph = struct.pack("<3HxxiI", 6, 8, 4, 8, 4)
    tensor = struct.pack("<2Hi", 4, 4, 4)
    return head + vector(subgraphs, 8) + subgraph + vector(tensors, 4) + tensor


def test_a_small_file_that_describes_a_huge_one_is_refused_at_once():
    with pytest.raises(FileFormatError, match="index of the buffer of tensor 0"):
        check_sound(shared_tables(1, 1))  # it is well formed: only its tensor has no buffer
    start = time.process_time()
    with pytest.raises(FileFormatError, match="cannot hold as much"):
        check_sound(shared_tables(1000, 2000))
    assert time.process_time() - start < 1


def conv_file(build_file, edit=None) -> bytes:
    kernel = np.arange(-36, 36, dtype=np.int8).reshape(4, 3, 3, 2)
    options = schema.Conv2DOptionsT(strideW=1, strideH=1, dilationWFactor=1, dilationHFactor=1)
    return build_file(
        [
            {"name": "x", "shape": (1, 6, 6, 2), "dtype": "int8", "scale": 0.1},
            {"name": "k", "shape": (4, 3, 3, 2), "dtype": "int8", "data": kernel,
             "scale": [0.1] * 4, "zero_point": [0] * 4},
            {"name": "b", "shape": (4,), "dtype": "int32", "data": np.ones(4, np.int32),
             "scale": [0.01] * 4, "zero_point": [0] * 4},
            {"name": "y", "shape": (1, 6, 6, 4), "dtype": "int8", "scale": 0.2, "zero_point": 3},
        ],
        [("CONV_2D", (0, 1, 2), (3,), options)],
        edit=edit,
    )  # fmt: skip


def test_the_hand_made_convolution_is_sound(build_file):
    check_sound(conv_file(build_file))


def _set(path: str, value):
    """An edit of `ModelT`: `_set("subgraphs.0.tensors.1.shape", …)`."""

    def edit(model):
        *parents, last = path.split(".")
        target = model
        for part in parents:
            target = target[int(part)] if part.isdigit() else getattr(target, part)
        if last.isdigit():
            target[int(last)] = value
        else:
            setattr(target, last, value)

    return edit


TENSOR, OPERATOR = "subgraphs.0.tensors", "subgraphs.0.operators.0"


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("version", 2, "schema version 3. Received 2"),
        ("subgraphs", [], "must have a subgraph"),
        ("operatorCodes.0.builtinCode", 999, "written for a newer LiteRT"),
        ("operatorCodes.0.builtinCode", 51, "must name an operator. Received: DELEGATE"),
        (f"{OPERATOR}.opcodeIndex", 7, "index of code of operator 0"),
        (f"{OPERATOR}.inputs", np.int32([0, 1, 99]), "inputs of operator 0 .CONV_2D. .*: 99"),
        (f"{OPERATOR}.inputs", np.int32([0]), "must have 2 to 3 inputs. Received: 1"),
        (f"{OPERATOR}.inputs", np.int32([3, 1, 2]), "read tensors that are written before it"),
        (f"{OPERATOR}.outputs", np.int32([1]), "must have the shape"),
        (f"{OPERATOR}.builtinOptions.strideW", 0, r"`stride_w` of .* must be in \[1, 65536\)"),
        (f"{OPERATOR}.builtinOptions.strideH", 2, r"must have the shape \(1, 3, 6, 4\)"),
        (f"{OPERATOR}.builtinOptionsType", 0, "must have `Conv2DOptions`"),
        ("subgraphs.0.inputs", np.int32([-1]), "inputs of subgraph 0"),
        ("subgraphs.0.outputs", np.int32([4]), "outputs of subgraph 0"),
        (f"{TENSOR}.0.buffer", 50, "buffer of tensor 0"),
        (f"{TENSOR}.0.shape", np.int32([1, -6, 6, 2]), "must not be negative"),
        (f"{TENSOR}.0.shape", np.int32([2**15] * 4), "below 2 GiB"),
        (f"{TENSOR}.1.shape", np.int32([4, 3, 3, 3]), "must hold 108 bytes"),
        (f"{TENSOR}.1.type", 0, "must hold 288 bytes"),
        (f"{TENSOR}.1.type", 99, "element type of tensor 1"),
        (f"{TENSOR}.1.quantization.quantizedDimension", 9, "quantized dimension of tensor 1"),
        (f"{TENSOR}.1.quantization.scale", np.float32([1, 2, 3]), "zero point for each of its 3"),
        (f"{TENSOR}.1.quantization.scale", np.float32([1, 2, 3, np.nan]), "finite and positive"),
        (f"{TENSOR}.3.quantization.scale", np.float32([0]), "finite and positive"),
        (f"{TENSOR}.3.quantization", None, "8-bit tensors of .* must have a scale"),
        (f"{TENSOR}.3.quantization.zeroPoint", np.int64([200]), r"in \[-128, 127\]"),
        ("metadata", [schema.MetadataT(name="m", buffer=70)], "buffer of metadata 'm'"),
        (
            "signatureDefs",
            [schema.SignatureDefT(inputs=[schema.TensorMapT(name="x", tensorIndex=40)],
                                  outputs=[], signatureKey="serve")],
            "input 'x' of signature 'serve'",
        ),
    ],
)  # fmt: skip
def test_each_broken_rule_is_named(build_file, path, value, match):
    with pytest.raises(FileFormatError, match=match):
        check_sound(conv_file(build_file, _set(path, value)))


def test_a_tensor_that_something_else_writes_too_is_refused(build_file):
    rows = [{"name": name, "shape": (1, 4)} for name in "xyz"]
    twice = [("LOGISTIC", (0,), (1,)), ("TANH", (0,), (1,)), ("TANH", (1,), (2,))]
    with pytest.raises(FileFormatError, match="write tensors that nothing else writes"):
        check_sound(build_file(rows, twice))


def test_a_subgraph_that_calls_itself_is_refused(build_file):
    rows = [{"name": "x", "shape": (1,)}, {"name": "y", "shape": (1,)}]
    call = [("CALL", (0,), (1,), schema.CallOptionsT(subgraph=0))]
    with pytest.raises(FileFormatError, match="No subgraph may call itself"):
        check_sound(build_file(rows, call))


@pytest.mark.parametrize("path", ["nowhere.tflite", "."])
def test_a_path_that_is_no_file_is_named(path, tmp_path):
    with pytest.raises(FileFormatError, match="no such file|Could not read"):
        inspect_model(tmp_path / path)


def test_the_layout_is_that_of_the_installed_schema():
    def by_number(enum) -> dict[int, str]:
        public = {name: value for name, value in vars(enum).items() if not name.startswith("_")}
        return {value: name for name, value in public.items() if isinstance(value, int)}

    assert dict(enumerate(OPERATORS)) == by_number(schema.BuiltinOperator)
    assert dict(enumerate(BUILTIN_OPTIONS)) == by_number(schema.BuiltinOptions)
    assert dict(enumerate(BUILTIN_OPTIONS_2)) == by_number(schema.BuiltinOptions2)
    names = {number: name.lower() for number, name in by_number(schema.TensorType).items()}
    assert {i: name for i, (name, _) in enumerate(DTYPES)} == names


@pytest.mark.parametrize("name", ["float_file", "int8_file"])
def test_the_decoder_agrees_with_the_classes_of_litert(name, request):
    data = request.getfixturevalue(name)
    ours, theirs = check_sound(data), read_model(data)
    graph, expected = ours["subgraphs"][0], theirs.subgraphs[0]
    assert [t["name"].encode() for t in graph["tensors"]] == [t.name for t in expected.tensors]
    for mine, other in zip(graph["tensors"], expected.tensors, strict=True):
        np.testing.assert_array_equal(mine["shape"], other.shape)
        assert (mine["type"], mine["buffer"]) == (other.type, other.buffer)
        if other.quantization is not None and other.quantization.scale is not None:
            np.testing.assert_array_equal(mine["quantization"]["scale"], other.quantization.scale)
    for mine, other in zip(graph["operators"], expected.operators, strict=True):
        np.testing.assert_array_equal(mine["inputs"], other.inputs)
        np.testing.assert_array_equal(mine["outputs"], other.outputs)
    conv, expected_conv = graph["operators"][0], expected.operators[0].builtinOptions
    assert conv["builtin_options"]["padding"] == expected_conv.padding
    assert conv["builtin_options"]["dilation_h_factor"] == expected_conv.dilationHFactor
    for mine, other in zip(ours["buffers"], theirs.buffers, strict=True):
        np.testing.assert_array_equal(mine["data"], other.data)


def test_a_float_file_is_reported_as_it_is(float_file, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(float_file)
    report = inspect_model(path)
    assert (report.path, report.size_bytes) == (str(path), len(float_file))
    assert report.gzip_bytes == len(gzip.compress(float_file, 9))
    assert report.macs == 8 * 8 * 8 * 27 + 6 * 6 * 8 * 9 + 72 * 10
    kernels = {weight.constant_of: weight.shape for weight in report.weights if weight.is_kernel}
    assert kernels == {
        "CONV_2D": (8, 3, 3, 3),
        "DEPTHWISE_CONV_2D": (1, 3, 3, 8),
        "FULLY_CONNECTED": (10, 72),
    }
    assert not report.is_integer
    assert report.float_operators == report.operators
    assert (report.inputs[0].shape, report.inputs[0].dtype) == ((1, 8, 8, 3), "float32")
    assert report.runtime_version == "1.5.0"
    assert json.loads(json.dumps(report.to_dict()))["is_integer"] is False


def test_an_int8_file_is_integer_and_its_sparsity_is_that_of_its_kernels(int8_file):
    report = inspect_model(int8_file)
    assert report.is_integer and not report.float_operators and report.islands == 0
    kernels = [weight for weight in report.weights if weight.is_kernel]
    assert report.sparsity == sum(w.zeros for w in kernels) / sum(np.prod(w.shape) for w in kernels)
    assert all(record.dtype == "int8" for record in (*report.inputs, *report.outputs))
    assert [report.tensors[o.outputs[0]].name for o in report.operators] == [
        o.output_name for o in report.operators
    ]


def test_zeros_are_counted_from_the_zero_point(build_file):
    kernel = np.array([[128, 128, 7, 0], [128, 1, 2, 255]], np.uint8)
    data = build_file(
        [
            {"name": "x", "shape": (1, 4), "dtype": "uint8", "scale": 1.0},
            {"name": "w", "shape": (2, 4), "dtype": "uint8", "data": kernel, "scale": 1.0,
             "zero_point": 128},
            {"name": "y", "shape": (1, 2), "dtype": "uint8", "scale": 1.0},
        ],
        [("FULLY_CONNECTED", (0, 1, -1), (2,))],
    )  # fmt: skip
    report = inspect_model(data)
    assert (report.weights[0].zeros, report.weights[0].distinct) == (3, 6)
    assert (report.sparsity, report.macs, report.parameters) == (3 / 8, 8, 8)


def test_float16_weights_are_looked_at_through_their_dequantize(build_file):
    data = build_file(
        [
            {"name": "x", "shape": (1, 3)},
            {"name": "h", "shape": (2, 3), "dtype": "float16",
             "data": np.float16([[0, 1, 0], [-0.0, 2, 3]])},
            {"name": "w", "shape": (2, 3)},
            {"name": "y", "shape": (1, 2)},
        ],
        [("DEQUANTIZE", (1,), (2,)), ("FULLY_CONNECTED", (0, 2, -1), (3,))],
    )  # fmt: skip
    report = inspect_model(data)
    weight = report.weights[0]
    assert (weight.constant_of, weight.operator, weight.zeros) == ("FULLY_CONNECTED", 1, 3)
    assert weight.is_kernel and report.islands == 0 and report.dequantize_operators == 1


@pytest.mark.parametrize(
    ("chain", "islands", "floats"),
    [
        (("int8", "float32", "float32", "int8", "int8"), 2, 1),
        (("float32", "int8", "int8", "int8", "float32"), 0, 0),
        (("int8", "int8", "int8", "int8", "int8"), 0, 0),
        (("float32", "float32", "float32", "float32", "float32"), 0, 4),
    ],
)
def test_islands_are_the_conversions_inside(build_file, chain, islands, floats):
    rows, operators = [], []
    for index, dtype in enumerate(chain):
        quantization = {} if dtype == "float32" else {"scale": 0.1}
        rows.append({"name": f"t{index}", "shape": (1, 4), "dtype": dtype, **quantization})
    for index, (before, after) in enumerate(zip(chain, chain[1:], strict=False)):
        kinds = {("float32", "int8"): "QUANTIZE", ("int8", "float32"): "DEQUANTIZE"}
        operators.append((kinds.get((before, after), "LOGISTIC"), (index,), (index + 1,)))
    report = inspect_model(build_file(rows, operators))
    assert (report.islands, len(report.float_operators)) == (islands, floats)
    assert report.is_integer == (islands == 0 and floats == 0)


@pytest.mark.parametrize(
    ("raw", "dtype", "expected"),
    [
        ([0x2F, 0x01], "int4", [-1, 2, 1]),
        ([0xF0], "uint4", [0, 15]),
        ([0b11_10_01_00], "int2", [0, 1, -2, -1]),
        ([0x00, 0x3C, 0x00, 0x80], "float16", [1.0, -0.0]),
    ],
)
def test_narrow_integers_are_unpacked(raw, dtype, expected):
    values = stored_values(np.array(raw, np.uint8), dtype, len(expected))
    np.testing.assert_array_equal(values, expected)


def test_what_a_sparse_tensor_does_not_store_is_zero():
    tensor = {"type": 0, "shape": np.int32([4, 5]), "sparsity": {}, "quantization": None}
    stored = np.float32([1, 2, 2, 3]).view(np.uint8)
    assert count_zeros(tensor, stored) == (16, 4)


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "macs"),
    [
        ("CONV_2D", [(1, 9, 9, 4), (8, 3, 3, 4)], (1, 7, 7, 8), 7 * 7 * 8 * 36),
        ("DEPTHWISE_CONV_2D", [(1, 9, 9, 4), (1, 3, 3, 4)], (1, 7, 7, 4), 7 * 7 * 4 * 9),
        ("TRANSPOSE_CONV", [(4,), (8, 2, 2, 4), (1, 3, 3, 4)], (1, 6, 6, 8), 36 * 8 * 4),
        ("FULLY_CONNECTED", [(5, 6), (7, 6)], (5, 7), 210),
        ("BATCH_MATMUL", [(2, 3, 4), (2, 4, 5)], (2, 3, 5), 120),
        ("CONV_3D", [(1, 4, 4, 4, 2), (2, 2, 2, 2, 3)], (1, 3, 3, 3, 3), 27 * 3 * 16),
        ("ADD", [(1, 4), (1, 4)], (1, 4), 0),
    ],
)
def test_macs_are_counted_by_their_formulas(kind, inputs, output, macs):
    assert count_macs(kind, inputs, output) == macs


def test_five_megabytes_are_inspected_in_a_second(build_file):
    weights = np.random.default_rng(0).standard_normal((1250, 1000)).astype(np.float32)
    data = build_file(
        [
            {"name": "x", "shape": (1, 1000)},
            {"name": "w", "shape": (1250, 1000), "data": weights},
            {"name": "y", "shape": (1, 1250)},
        ],
        [("FULLY_CONNECTED", (0, 1, -1), (2,))],
    )
    start = time.process_time()
    assert inspect_model(data).parameters == 1_250_000
    assert time.process_time() - start < 1


def test_the_reference_resnet_has_the_published_size(shared_file):
    report = inspect_model(shared_file("mlperf_tiny_resnet8_reference_int8.tflite"))
    assert (report.size_bytes, report.macs, report.parameters) == (98_496, 12_501_632, 77_706)
    assert report.is_integer and report.custom_operators == ()


def test_custom_operators_are_named(shared_file):
    report = inspect_model(shared_file("mobilenet_v1_0.25_128_quant_edgetpu.tflite"))
    assert report.custom_operators == ("edgetpu-custom-op",)
    assert report.operators[0].name == "edgetpu-custom-op"


def test_no_tensorflow_is_loaded():
    code = (
        "import sys, tfedge.inspection, tfedge.runtime, tfedge.benchmark;"
        "print(sorted({'tensorflow', 'keras', 'tf_keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_element_type_has_a_size():
    assert all(BITS[name] in (0, 2, 4, 8, 16, 32, 64, 128) for name, _ in DTYPES)
