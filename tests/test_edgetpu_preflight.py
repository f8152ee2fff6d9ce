import inspect
import json
import random
import re
import time

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from mutate import damage

import tfedge
from tfedge.accelerators.edgetpu import advice, limits, observed
from tfedge.accelerators.edgetpu.advice import CONVERT
from tfedge.accelerators.edgetpu.compiled import inspect_compiled
from tfedge.accelerators.edgetpu.graph import read_graph
from tfedge.accelerators.edgetpu.memory import CACHE_BYTES, predict_memory
from tfedge.accelerators.edgetpu.observed import OBSERVATIONS
from tfedge.accelerators.edgetpu.preflight import preflight
from tfedge.accelerators.edgetpu.rules import SUPPORTED, Status
from tfedge.engines.native.patterns import PATTERNS
from tfedge.errors import FileFormatError
from tfedge.inspection import check_sound, layer_of
from tfedge.inspection.layout import EDGETPU_OPERATOR, OPERATORS

PAIRS = (
    "mobilenet_v1_0.25_128_quant",
    "keras_lstm_mnist_ptq",
    "deeplabv3_mnv2_dm05_pascal_quant",
)


def true_mapping(original, compiled):
    """Oracle: whether the compiler took each operator, from what it left.

    An operator that stayed on the CPU stands in the compiled file with its kind and with the name
    of what it writes; the compiler keeps the names of tensors.
    """
    before, after = (
        read_graph(data, check_sound(data))
        for data in (original.read_bytes(), compiled.read_bytes())
    )
    left = [
        (row.name, tuple(tensor.name for tensor in row.outputs))
        for row in after.operators
        if row.name != EDGETPU_OPERATOR
    ]
    mapped = []
    for row in before.operators:
        key = row.name, tuple(tensor.name for tensor in row.outputs)
        mapped.append(key not in left)
        if key in left:
            left.remove(key)
    assert not left, f"operators that the original does not have: {left}"
    return mapped


@pytest.fixture(scope="module")
def single(build_file):
    """Row of the pre-flight of a file with one operator.

    Operands are `(shape, dtype, data)`, or the shape of an int8 tensor; `fields` are more rows of
    `build_file` by the number of the tensor.
    """

    def run(kind, inputs, output, options=None, *, fields=None):
        places = [number for number, row in enumerate(inputs) if is_shape(row) or row[2] is None]
        content = build_file(
            *file_of(kind, inputs, output, options, fields or {}),
            inputs=places,
            outputs=(len(inputs),),
        )
        return preflight(content).operators[0]

    return run


def file_of(kind, inputs, output, options, fields=None):
    """Tensors and operators for `build_file`."""
    tensors = []
    for number, row in enumerate([*inputs, output]):
        shape, dtype, data = (row, "int8", None) if is_shape(row) else row
        item = {"name": f"net/layer_{number}/t", "shape": shape, "dtype": dtype}
        if dtype in ("int8", "uint8", "int16"):
            item["scale"] = 0.1
        tensors.append({**item, "data": data, **(fields or {}).get(number, {})})
    return tensors, [(kind, list(range(len(inputs))), [len(inputs)], options)]


def is_shape(row):
    return all(isinstance(size, int) for size in row)


def const(values, dtype="int32"):
    values = np.array(values, dtype)
    return values.shape, dtype, values


def conv(dilation=(1, 1), activation=0):
    return schema.Conv2DOptionsT(
        padding=0, strideW=1, strideH=1, dilationHFactor=dilation[0], dilationWFactor=dilation[1],
        fusedActivationFunction=activation,
    )  # fmt: skip


def pool(activation=0):
    return schema.Pool2DOptionsT(
        padding=0, strideW=1, strideH=1, filterWidth=2, filterHeight=2,
        fusedActivationFunction=activation,
    )  # fmt: skip


IMAGE = (1, 8, 8, 4)
KERNEL = const(np.ones((4, 3, 3, 4)), "int8")
BIAS = const(np.zeros(4))
DENSE = const(np.ones((10, 8)), "int8")
SIZE = const([16, 16])
FULL = schema.FullyConnectedOptionsT
STRIDED = schema.StridedSliceOptionsT
CAT = schema.ConcatenationOptionsT

# kind: (good inputs, output, options), (bad inputs, output, options), what is said of the bad one.
LIMITED = {
    "fused pooling": (
        ("MAX_POOL_2D", [IMAGE], IMAGE, pool()),
        ("MAX_POOL_2D", [IMAGE], IMAGE, pool(1)),
        "fused activation",
    ),
    "fused average": (
        ("AVERAGE_POOL_2D", [IMAGE], IMAGE, pool()),
        ("AVERAGE_POOL_2D", [IMAGE], IMAGE, pool(3)),
        "fused activation",
    ),
    "fused concatenation": (
        ("CONCATENATION", [IMAGE, IMAGE], (1, 8, 8, 8), CAT(axis=3)),
        ("CONCATENATION", [IMAGE, IMAGE], (1, 8, 8, 8), CAT(axis=3, fusedActivationFunction=1)),
        "fused activation",
    ),
    "constant joined": (
        ("CONCATENATION", [IMAGE, const(np.zeros(IMAGE), "int8")], (1, 8, 8, 8), CAT(axis=3)),
        ("CONCATENATION", [IMAGE, const(np.ones(IMAGE), "int8")], (1, 8, 8, 8), CAT(axis=3)),
        "not all zeros",
    ),
    "constant among three": (
        ("CONCATENATION", [IMAGE, IMAGE, IMAGE], (1, 8, 8, 12), CAT(axis=3)),
        (
            "CONCATENATION",
            [IMAGE, IMAGE, const(np.zeros(IMAGE), "int8")],
            (1, 8, 8, 12),
            CAT(axis=3),
        ),
        "among its 3 inputs",
    ),
    "dilation": (
        ("CONV_2D", [IMAGE, KERNEL, BIAS], IMAGE, conv((2, 2))),
        ("CONV_2D", [IMAGE, KERNEL, BIAS], IMAGE, conv((2, 1))),
        "dilation is 2 in y and 1 in x",
    ),
    "computed kernel": (
        ("CONV_2D", [IMAGE, KERNEL, BIAS], IMAGE, conv()),
        ("CONV_2D", [IMAGE, (4, 3, 3, 4), BIAS], IMAGE, conv()),
        "Filter, bias, or other param is not constant",
    ),
    "dense at several positions": (
        ("FULLY_CONNECTED", [(1, 8), DENSE], (1, 10), FULL()),
        ("FULLY_CONNECTED", [(6, 8), DENSE], (6, 10), FULL()),
        "output is 6x10",
    ),
    "shuffled weights": (
        ("FULLY_CONNECTED", [(1, 8), DENSE], (1, 10), FULL()),
        ("FULLY_CONNECTED", [(1, 8), DENSE], (1, 10), FULL(weightsFormat=1)),
        "shuffled",
    ),
    "large softmax": (
        ("SOFTMAX", [(1, 16_000)], (1, 16_000), schema.SoftmaxOptionsT(beta=1.0)),
        ("SOFTMAX", [(1, 16_001)], (1, 16_001), schema.SoftmaxOptionsT(beta=1.0)),
        "16,001 elements",
    ),
    "softmax of rows": (
        ("SOFTMAX", [(1, 1, 1, 9)], (1, 1, 1, 9), schema.SoftmaxOptionsT(beta=1.0)),
        ("SOFTMAX", [(1, 9, 9)], (1, 9, 9), schema.SoftmaxOptionsT(beta=1.0)),
        "input is 1x9x9",
    ),
    "mean of the batch": (
        ("MEAN", [IMAGE, const([1, 2])], (1, 4), schema.ReducerOptionsT()),
        ("MEAN", [IMAGE, const([0, 1])], (8, 4), schema.ReducerOptionsT()),
        "reduces the batch",
    ),
    "mean of channels": (
        ("MEAN", [IMAGE, const([-1])], (1, 8, 8), schema.ReducerOptionsT()),
        ("MEAN", [(1, 8, 8, 6), const([-1])], (1, 8, 8), schema.ReducerOptionsT()),
        "6 channels, which is no multiple of 4",
    ),
    "sum of the batch": (
        ("SUM", [IMAGE, const([3])], (1, 8, 8), schema.ReducerOptionsT()),
        ("SUM", [IMAGE, const([-4])], (8, 8, 4), schema.ReducerOptionsT()),
        "reduces the batch",
    ),
    "pad of the batch": (
        ("PAD", [IMAGE, const([[0, 0], [1, 1], [1, 1], [0, 0]])], (1, 10, 10, 4), None),
        ("PAD", [(8, 4), const([[1, 0], [0, 0]])], (9, 4), None),
        "pads the batch",
    ),
    "pack of the batch": (
        ("PACK", [(1, 8), (1, 8)], (1, 2, 8), schema.PackOptionsT(axis=1, valuesCount=2)),
        ("PACK", [(1, 8), (1, 8)], (2, 1, 8), schema.PackOptionsT(axis=0, valuesCount=2)),
        "packs along the batch",
    ),
    "split of the batch": (
        ("SPLIT", [const(3), IMAGE], IMAGE, schema.SplitOptionsT(numSplits=1)),
        ("SPLIT", [const(-4), IMAGE], IMAGE, schema.SplitOptionsT(numSplits=1)),
        "splits the batch",
    ),
    "slope by position": (
        ("PRELU", [IMAGE, const(np.ones((1, 1, 4)), "int8")], IMAGE, None),
        ("PRELU", [IMAGE, const(np.ones((8, 8, 4)), "int8")], IMAGE, None),
        "slope is 8x8x4",
    ),
    "stride of a slice": (
        (
            "STRIDED_SLICE",
            [IMAGE, const([0] * 4), const([1, 4, 8, 4]), const([1] * 4)],
            (1, 4, 8, 4),
            STRIDED(),
        ),
        (
            "STRIDED_SLICE",
            [IMAGE, const([0] * 4), const([1, 8, 8, 4]), const([1, 2, 1, 1])],
            (1, 4, 8, 4),
            STRIDED(),
        ),
        r"strides are \[1, 2, 1, 1\]",
    ),
    "new axis of a slice": (
        (
            "STRIDED_SLICE",
            [(1, 8), const([0, 0]), const([1, 8]), const([1, 1])],
            (1, 8),
            STRIDED(),
        ),
        (
            "STRIDED_SLICE",
            [(1, 8), const([0, 0]), const([1, 8]), const([1, 1])],
            (1, 8),
            STRIDED(newAxisMask=2),
        ),
        "new_axis_mask",
    ),
    "computed shape": (
        ("RESHAPE", [IMAGE, const([1, 256])], (1, 256), None),
        ("RESHAPE", [IMAGE, ((2,), "int32", None)], (1, 256), None),
        "param is not constant",
    ),
    "float": (
        ("RELU", [IMAGE], IMAGE, None),
        ("RELU", [(IMAGE, "int16", None)], IMAGE, None),
        "unsupported data type: 'net/layer_0/t' is int16",
    ),
    "quantize of float": (
        ("QUANTIZE", [IMAGE], (IMAGE, "uint8", None), None),
        ("QUANTIZE", [(IMAGE, "float32", None)], IMAGE, None),
        "otherwise supported, .* is float32",
    ),
    "batch": (
        ("ADD", [IMAGE, IMAGE], IMAGE, schema.AddOptionsT()),
        ("ADD", [(2, 8, 8, 4), (2, 8, 8, 4)], (2, 8, 8, 4), schema.AddOptionsT()),
        "unsupported rank .* is 2x8x8x4",
    ),
    "five dimensions": (
        ("RESHAPE", [IMAGE, const([1, 1, 8, 8, 4])], (1, 1, 8, 8, 4), None),
        ("RESHAPE", [IMAGE, const([1, 8, 2, 4, 4])], (1, 8, 2, 4, 4), None),
        "unsupported rank .* is 1x8x2x4x4",
    ),
}


@pytest.mark.parametrize("case", LIMITED)
def test_a_documented_limit_is_held_and_its_good_neighbour_passes(single, case):
    good, bad, match = LIMITED[case]
    row = single(*good)
    assert (row.mapped, row.reason) == (True, None)
    row = single(*bad)
    assert row.mapped is False
    assert_matches(row.reason, match)


def assert_matches(text, pattern):
    assert re.search(pattern, text), text


def test_every_documented_limit_has_a_case():
    def limit_names():
        return {limit.__name__ for rule in SUPPORTED.values() for limit in rule.limits}

    public = {
        name
        for name, item in inspect.getmembers(limits, inspect.isfunction)
        if item.__module__ == limits.__name__ and not name.startswith("_")
    }
    assert limit_names() == public - {"reduced_axes"}


UNSUPPORTED = ("LEAKY_RELU", "HARD_SWISH", "ELU", "EXP", "ABS", "SQRT", "DEPTH_TO_SPACE", "NEG")


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_kinds_that_no_document_names_are_not_taken(single, kind):
    options = {
        "LEAKY_RELU": schema.LeakyReluOptionsT(alpha=0.1),
        "DEPTH_TO_SPACE": schema.DepthToSpaceOptionsT(blockSize=1),
    }
    row = single(kind, [IMAGE], IMAGE, options.get(kind))
    assert row.mapped is False
    assert row.reason.startswith(Status.NOT_SUPPORTED)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(
    "kind", ["RELU", "RELU6", "RELU_N1_TO_1", "LOGISTIC", "TANH", "RSQRT", "SQUEEZE"]
)
def test_plain_kinds_are_taken_in_both_8_bit_types(single, kind, dtype):
    assert single(kind, [((1, 9), dtype, None)], ((1, 9), dtype, None)).mapped is True


def test_an_8_bit_tensor_without_a_scale_is_not_quantized(single):
    reshape = ("RESHAPE", [IMAGE, const([1, 256])], (1, 256), None)
    row = single(*reshape, fields={0: {"scale": []}})
    assert row.mapped is False
    assert "without a scale" in row.reason


def test_kernels_of_four_bits_are_not_taken(single):
    row = single("FULLY_CONNECTED", [(1, 8), ((10, 8), "int4", np.zeros(40, "uint8"))], (1, 10),
                 FULL(), fields={1: {"scale": 0.1}})  # fmt: skip
    assert row.mapped is False
    assert "int4" in row.reason


@pytest.mark.parametrize("dtype", ["complex64", "float32", "bool"])
def test_axes_of_a_strange_type_are_not_computed_with(single, dtype):
    axes = ((1,), dtype, np.zeros(1, dtype))
    row = single("MEAN", [IMAGE, axes], (1, 4), schema.ReducerOptionsT())
    assert row.mapped is False
    assert dtype in row.reason


# --- observed limits -----------------------------------------------------------------------------


def resize(side, out, kind="RESIZE_BILINEAR"):
    options = {
        "RESIZE_BILINEAR": schema.ResizeBilinearOptionsT(),
        "RESIZE_NEAREST_NEIGHBOR": schema.ResizeNearestNeighborOptionsT(),
    }
    return kind, [(1, side, side, 4), const([out, out])], (1, out, out, 4), options[kind]


def mean(height, width):
    return "MEAN", [(1, height, width, 4), const([1, 2])], (1, 4), schema.ReducerOptionsT()


@pytest.mark.parametrize(
    ("case", "mapped", "said"),
    [
        (resize(4, 8), True, None),
        (resize(4, 2), True, None),
        (resize(3, 7), None, "enlarges by 2.333; 2 was seen accepted, 15.55 rejected"),
        (resize(33, 513), False, "enlarges by 15.55, as rejected in .*33x33 to 513x513"),
        (resize(1, 33), False, "enlarges by 33, as rejected in .*1x1 to 33x33"),
        (resize(128, 200), None, "gives 40000 positions"),
        (resize(1024, 1024), False, "gives 1048576 positions"),
        (resize(512, 1024, "RESIZE_NEAREST_NEIGHBOR"), False, "issues/597"),
        (resize(100, 400, "RESIZE_NEAREST_NEIGHBOR"), True, None),
        (mean(64, 128), True, None),
        (mean(128, 128), None, "reduces 16384 positions"),
        (mean(256, 128), False, "issues/461"),
    ],
)
def test_between_accepted_and_rejected_the_answer_is_unknown(single, case, mapped, said):
    row = single(*case)
    assert row.mapped is mapped
    if said is None:
        assert row.reason is None
    else:
        assert_matches(row.reason, said)


def test_tile_is_taken_as_published_pairs_show(single):
    row = single("TILE", [(1, 1, 1, 4), const([1, 8, 8, 1])], IMAGE)
    assert row.mapped is True


@pytest.mark.parametrize("row", OBSERVATIONS, ids=lambda row: f"{row.operator}-{row.value:.4g}")
def test_every_observation_names_its_evidence_and_is_a_limit_that_is_used(row):
    assert "https://" in row.evidence
    assert row.operator in OPERATORS
    if row.attribute:
        assert row.operator in SUPPORTED
        assert row.attribute in observed.ATTRIBUTES
        assert row.value > 0
    else:
        assert row.accepted is (row.operator in observed.TAKEN_UNDOCUMENTED)
        assert row.operator not in SUPPORTED


def test_observations_of_one_attribute_do_not_contradict_each_other():
    for operator, attribute in {(row.operator, row.attribute) for row in OBSERVATIONS}:
        rows = [r for r in OBSERVATIONS if (r.operator, r.attribute) == (operator, attribute)]
        accepted = [row.value for row in rows if row.accepted]
        rejected = [row.value for row in rows if not row.accepted]
        assert not accepted or not rejected or max(accepted) < min(rejected)


# --- flow of data --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(build_file):
    """Pre-flight of operators `(kind, inputs)`, each writing one more tensor of 1x4x4x4."""

    def run(rows, *, inputs=1, dtypes=None, edit=None):
        dtypes = dtypes or {}
        tensors = []
        for number in range(inputs + len(rows)):
            dtype = dtypes.get(number, "int8")
            item = {"name": f"t{number}", "shape": (1, 4, 4, 4), "dtype": dtype}
            tensors.append(item if dtype == "float32" else {**item, "scale": 0.1})
        operators = [
            (kind, list(ins), [inputs + number], OPTIONS.get(kind))
            for number, (kind, ins) in enumerate(rows)
        ]
        content = build_file(
            tensors, operators, inputs=range(inputs), outputs=(len(tensors) - 1,), edit=edit
        )
        return preflight(content)

    return run


OPTIONS = {"ADD": schema.AddOptionsT(), "LEAKY_RELU": schema.LeakyReluOptionsT(alpha=0.1)}


def mapped(report):
    return [row.mapped for row in report.operators]


def test_what_descends_from_an_operator_that_is_not_taken_stays_too(chain):
    report = chain([("RELU", [0]), ("ELU", [1]), ("RELU6", [2]), ("TANH", [1])])
    assert mapped(report) == [True, False, False, True]
    assert report.operators[2].reason == (
        "More than one subgraph is not supported: it needs the result of operator 1 (ELU), which "
        "runs on the CPU"
    )
    assert "stops at operator 1 (ELU)" in report.cut
    assert (report.mapped, report.unmapped, report.unknown) == (2, 2, 0)


def test_a_join_with_a_branch_on_the_cpu_stays(chain):
    report = chain([("RELU", [0]), ("ELU", [1]), ("TANH", [1]), ("ADD", [2, 3]), ("RELU", [4])])
    assert mapped(report) == [True, False, True, False, False]
    assert "operator 1 (ELU)" in report.operators[4].reason


def test_leading_operators_that_are_not_taken_cost_nothing(chain):
    report = chain([("QUANTIZE", [0]), ("ELU", [1]), ("RELU", [2]), ("TANH", [3])],
                   dtypes={0: "float32"})  # fmt: skip
    assert mapped(report) == [False, False, True, True]
    assert any("2 operators on the CPU: QUANTIZE, ELU" in note for note in report.notes)


def test_leading_operators_of_two_inputs_cost_nothing(chain):
    rows = [("ELU", [0]), ("EXP", [1]), ("ADD", [2, 3]), ("RELU", [4])]
    assert mapped(chain(rows, inputs=2)) == [False, False, True, True]


def test_the_first_piece_is_taken_and_not_the_largest(chain):
    """As in a log of a model that begins with QUANTIZE and PAD, then a TRANSPOSE: 2 of 155."""
    rows = [("RELU", [0]), ("ELU", [1]), *(("TANH", [2 + i]) for i in range(5))]
    assert mapped(chain(rows)) == [True, False, *[False] * 5]


def test_what_hangs_on_an_unknown_operator_is_unknown_and_the_rest_is_not(build_file):
    sizes = {"x": 4, "a": 4, "b": 10, "c": 10, "d": 4, "e": 10}
    tensors = [
        {"name": name, "shape": (1, side, side, 4), "dtype": "int8", "scale": 0.1}
        for name, side in sizes.items()
    ]
    tensors.append({"name": "size", "shape": (2,), "dtype": "int32", "data": np.int32([10, 10])})
    operators = [
        ("RELU", [0], [1]),
        ("RESIZE_BILINEAR", [1, 6], [2], schema.ResizeBilinearOptionsT()),
        ("RELU", [2], [3]),
        ("TANH", [1], [4]),
        ("ELU", [3], [5]),
    ]
    report = preflight(build_file(tensors, operators, outputs=(4, 5)))
    assert mapped(report) == [True, None, None, True, False]
    assert "depends on an operator" in report.operators[2].reason
    assert "may stop at operator 1 (RESIZE_BILINEAR)" in report.cut


def test_a_long_model_takes_no_long_time(chain):
    rows = [("RELU", [0]), ("ELU", [1]), *(("TANH", [2 + i]) for i in range(2000))]
    started = time.perf_counter()
    report = chain(rows)
    assert report.unmapped == 2001
    assert time.perf_counter() - started < 20


# --- whole files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_the_prediction_is_what_the_compiler_did(shared_file, name):
    original, compiled = (shared_file(f"{name}{end}.tflite") for end in ("", "_edgetpu"))
    report = preflight(original)
    assert mapped(report) == true_mapping(original, compiled)
    assert [row.index for row in report.operators] == list(range(len(report.operators)))
    assert report.fully_integer and report.static_shapes and not report.refusals
    assert not report.already_compiled


def test_the_oracle_sees_what_the_compiler_left(shared_file):
    pair = (
        shared_file(f"deeplabv3_mnv2_dm05_pascal_quant{end}.tflite") for end in ("", "_edgetpu")
    )
    truth = true_mapping(*pair)
    assert (truth.count(True), truth.count(False)) == (64, 8)


def test_the_name_of_the_file_does_not_matter(shared_file, tmp_path):
    path = shared_file("deeplabv3_mnv2_dm05_pascal_quant.tflite")
    copy = tmp_path / "x.tflite"
    copy.write_bytes(path.read_bytes())
    assert preflight(copy).operators == preflight(path.read_bytes()).operators
    assert preflight(copy).operators == preflight(path).operators


@pytest.mark.parametrize("name", PAIRS[::2])
def test_parameter_memory_is_foretold_within_2_percent_for_convolutional_models(shared_file, name):
    """Of the recurrent pair the compiler's tables take most of the memory; it is not foretold."""
    held = inspect_compiled(shared_file(f"{name}_edgetpu.tflite"))
    report = preflight(shared_file(f"{name}.tflite"))
    assert report.parameter_bytes_on_chip == pytest.approx(held.parameter_bytes_on_chip, rel=0.02)
    assert (report.parameter_bytes_streamed, held.parameter_bytes_streamed) == (0, 0)


@pytest.mark.parametrize("name", PAIRS)
def test_a_compiled_file_is_recognised(shared_file, name):
    report = preflight(shared_file(f"{name}_edgetpu.tflite"))
    assert report.already_compiled
    assert report.mapped == 1
    assert report.parameter_bytes_on_chip == report.compiled.parameter_bytes_on_chip
    assert "compiled" in report.notes[0]
    assert report.changes == ()


def test_the_json_is_as_promised(shared_file):
    report = json.loads(json.dumps(preflight(shared_file("keras_lstm_mnist_ptq.tflite")).to_dict()))
    assert report["target"] == "edgetpu"
    assert [row["name"] for row in report["operators"]] == [
        *("QUANTIZE", "UNIDIRECTIONAL_SEQUENCE_LSTM", "RESHAPE"),
        *("FULLY_CONNECTED", "SOFTMAX", "QUANTIZE"),
    ]
    for index, row in enumerate(report["operators"]):
        assert {"index", "name", "mapped", "reason"} <= set(row)
        assert (row["index"], row["mapped"], row["reason"]) == (index, True, None)
    assert (report["mapped"], report["unmapped"], report["unknown"]) == (6, 0, 0)


def test_a_float_file_is_refused_with_the_way_out(float_file):
    report = preflight(float_file)
    assert report.operators
    assert set(mapped(report)) == {False}
    assert all(row.reason.startswith("Model not quantized") for row in report.operators)
    assert not report.fully_integer
    assert report.float_tensors
    assert "Model not quantized" in report.refusals[0]
    assert report.changes == (CONVERT,)
    assert "mode='int8'" in CONVERT
    assert report.cut == f"The Edge TPU takes none of the {len(report.operators)} operators."
    assert (report.parameter_bytes_on_chip, report.parameter_bytes_streamed) == (0, 0)


def test_a_file_of_tfedge_is_taken_whole():
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, activation="relu", name="stem"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(10, "softmax", name="head"),
        ]
    )
    samples = np.random.default_rng(0).random((8, 8, 8, 3), np.float32)
    content, _ = tfedge.convert(model, mode="int8", calibration=samples)
    report = preflight(content)
    assert set(mapped(report)) == {True}
    assert report.fully_integer and report.static_shapes
    assert (report.cut, report.changes, report.refusals) == (None, (), ())
    assert str(report).count("\n") == 0


def test_dense_kernels_with_a_scale_for_each_output_are_not_known(int8_file):
    report = preflight(int8_file)
    dense = next(row for row in report.operators if row.name == "FULLY_CONNECTED")
    assert dense.mapped is None
    assert "10 scales" in dense.reason
    assert all(row.mapped for row in report.operators[: dense.index])
    assert "unknown" in str(report)
    assert any("one scale" in change for change in report.changes)


def with_version(number):
    def edit(model):
        model.operatorCodes[0].version = number

    return edit


@pytest.mark.parametrize(("version", "taken"), [(5, True), (6, False)])
def test_versions_that_the_compiler_was_seen_to_refuse_are_told(build_file, version, taken):
    tensors = [{"name": n, "shape": IMAGE, "dtype": "int8", "scale": 0.1} for n in "xy"]
    tensors.append({"name": "w", "shape": KERNEL[0], "dtype": "int8", "scale": 0.1,
                    "data": KERNEL[2]})  # fmt: skip
    content = build_file(
        tensors, [("CONV_2D", [0, 2], [1], conv())], outputs=(1,), edit=with_version(version)
    )
    report = preflight(content)
    assert mapped(report) == [taken]
    assert bool(report.refusals) is not taken
    if not taken:
        assert "version 6" in report.refusals[0]
        assert report.operators[0].reason.startswith(Status.VERSION)


def test_damaged_files_give_an_error_or_a_report_never_anything_else(build_file):
    """Of every kind with parameters: files that pass as sound hold values of any sort in them."""
    rows = [case[0] for case in LIMITED.values()]
    generator, outcomes = random.Random(0), {"report": 0, "refused": 0}
    for trial in range(400):
        kind, inputs, output, options = rows[trial % len(rows)]
        damaged = damage(build_file(*file_of(kind, inputs, output, options)), ".tflite", generator)
        try:
            json.dumps(preflight(damaged).to_dict())
            outcomes["report"] += 1
        except FileFormatError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


def test_float_tensors_are_named_with_their_layers(chain):
    def edit(model):
        model.subgraphs[0].tensors[0].name = "net/camera/x"

    report = chain([("QUANTIZE", [0]), ("RELU", [1])], dtypes={0: "float32"}, edit=edit)
    assert (report.fully_integer, report.float_tensors) == (False, ("net/camera/x",))
    assert report.float_layers == ("camera",)
    assert any("integer inputs" in change for change in report.changes)


def with_signature(*sizes):
    def edit(model):
        for tensor in model.subgraphs[0].tensors:
            tensor.shapeSignature = np.array(sizes, np.int32)

    return edit


def test_an_open_batch_of_1_is_taken_and_told(chain):
    report = chain([("RELU", [0])], edit=with_signature(-1, 4, 4, 4))
    assert mapped(report) == [True]
    assert report.static_shapes is False
    assert report.open_shapes == ("t0 ?x4x4x4", "t1 ?x4x4x4")
    assert report.refusals == ()
    assert any("batch_size=1" in change for change in report.changes)


def test_an_open_size_is_not_taken(chain):
    report = chain([("RELU", [0])], edit=with_signature(1, -1, -1, 4))
    assert mapped(report) == [False]
    assert "1x?x?x4" in report.operators[0].reason
    assert "static-sized" in report.refusals[0]
    assert any("every size given" in change for change in report.changes)


def test_tensors_of_too_many_dimensions_are_named(single, build_file):
    tensors = [{"name": n, "shape": (2, 4, 4, 4), "dtype": "int8", "scale": 0.1} for n in "xy"]
    assert preflight(build_file(tensors, [("RELU", [0], [1])])).wide_tensors == (
        "x 2x4x4x4",
        "y 2x4x4x4",
    )


def test_parameters_beyond_the_chip_stream(build_file):
    weights = np.ones((4096, 2048), np.int8)
    tensors = [
        {"name": "x", "shape": (1, 2048), "dtype": "int8", "scale": 0.1},
        {"name": "w", "shape": weights.shape, "dtype": "int8", "scale": 0.1, "data": weights},
        {"name": "y", "shape": (1, 4096), "dtype": "int8", "scale": 0.1},
    ]
    report = preflight(build_file(tensors, [("FULLY_CONNECTED", [0, 1], [2], FULL())]))
    assert report.parameter_bytes_on_chip == CACHE_BYTES
    assert report.parameter_bytes_streamed == weights.size + 4096 * 16 - CACHE_BYTES
    assert any("are sent for every run" in change for change in report.changes)


def test_a_kernel_that_two_operators_share_is_kept_once(build_file):
    kernel = np.ones((4, 3, 3, 4), np.int8)
    tensors = [
        {"name": name, "shape": IMAGE, "dtype": "int8", "scale": 0.1} for name in ("x", "a", "y")
    ]
    tensors.append({"name": "w", "shape": kernel.shape, "dtype": "int8", "scale": 0.1,
                    "data": kernel})  # fmt: skip
    content = build_file(
        tensors, [("CONV_2D", [0, 3], [1], conv()), ("CONV_2D", [1, 3], [2], conv())], outputs=(2,)
    )
    graph = read_graph(content, check_sound(content))
    assert predict_memory(graph.operators) == predict_memory(graph.operators[:1])


def custom(name):
    def edit(model):
        model.operatorCodes[1].customCode = name

    return edit


def test_custom_operators_stay_whatever_they_are_called(chain):
    rows = [("RELU", [0]), ("CUSTOM", [1])]
    report = chain(rows, edit=custom("TFLite_Detection_PostProcess"))
    assert mapped(report) == [True, False]
    assert report.operators[1].name == "TFLite_Detection_PostProcess"
    report = chain(rows, edit=custom("SOFTMAX"))
    assert mapped(report) == [True, False]


def test_operators_of_tensorflow_or_newer_than_the_compiler_are_refused(chain):
    report = chain([("RELU", [0]), ("CUSTOM", [1])], edit=custom("FlexErf"))
    assert "needs TensorFlow" in report.refusals[0]
    report = chain([("RELU", [0]), ("GELU", [1])])
    assert "newer than the compiler" in report.refusals[0]
    assert any("relu6" in change for change in report.changes)


def test_changes_name_operators_and_layers(build_file):
    names = ("x", "net/stem/Relu", "net/act_1/Elu", "net/act_2/Elu", "net/act_2/Gelu")
    tensors = [{"name": n, "shape": IMAGE, "dtype": "int8", "scale": 0.1} for n in names]
    operators = [("RELU", [0], [1]), ("ELU", [1], [2]), ("ELU", [2], [3]), ("ABS", [3], [4])]
    changes = preflight(build_file(tensors, operators)).changes
    assert changes[0].startswith("ELU, operators 1, 2 (layers act_1, act_2): use `relu`")
    assert changes[1].startswith("ABS, operator 3 (layer act_2): ")


def test_only_the_main_subgraph_is_judged_and_that_is_said(chain):
    def edit(model):
        model.subgraphs.append(model.subgraphs[0])

    report = chain([("RELU", [0])], edit=edit)
    assert len(report.operators) == 1
    assert any("2 subgraphs" in note for note in report.notes)


def test_a_file_that_is_not_sound_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match="at least 16 bytes"):
        preflight(b"TFL3")
    with pytest.raises(FileFormatError, match="no such file"):
        preflight(tmp_path / "absent.tflite")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("net/block/conv_1/Relu;net/block/conv_1/BiasAdd", "conv_1"),
        ("conv_1/Relu", "conv_1"),
        ("StatefulPartitionedCall/Identity", ""),
        ("tfl.quantize", ""),
        ("", ""),
    ],
)
def test_the_layer_is_the_innermost_scope(name, layer):
    assert layer_of(name) == layer


def test_the_tables_speak_of_operators_that_exist():
    assert set(SUPPORTED) <= set(OPERATORS)
    assert set(advice.BY_KIND) <= set(OPERATORS) - set(SUPPORTED)
    assert set(advice.BY_LIMIT) <= set(SUPPORTED)
    for pattern in ("elu_to_relu", "gelu_to_relu6"):
        assert pattern in PATTERNS
        assert any(pattern in text for text in advice.BY_KIND.values())
