"""On the GPU a model computes what it computes on the CPU, or an error says why it does not run.

Runs on whatever Vulkan driver there is; `.ci/vulkan` sets up SwiftShader where there is none.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from click.testing import CliRunner
from conftest import unavailable
from models import ZOO, inputs_of
from test_delegates import check_threads

from tfedge.benchmark import benchmark
from tfedge.cli import cli
from tfedge.cli.doctor import _gpu
from tfedge.errors import DelegateError, SettingsError
from tfedge.inspection import check_sound, read_model
from tfedge.runtime import gpu_refusals, open_model
from tfedge.runtime.adapters import AdapterState, find_adapter
from tfedge.runtime.gpu import read_adapter
from tfedge.runtime.gpu_rewrites import without_strided_pointwise
from tfedge.runtime.one_operator import one_operator
from tfedge.runtime.preflight import preflight
from tfedge.verify import verify

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[1]
ON_GPU = {"delegate": "gpu", "allow_software": True}
SAMPLES = 16


@pytest.fixture(scope="session")
def adapter() -> AdapterState:
    """What the models run on; skips where there is nothing."""
    found = find_adapter()
    if found.adapter is None:
        unavailable("gpu", found.reason.split(". ")[0])
    return found


@pytest.fixture(scope="module")
def zoo():
    """The zoo's files by name and mode, made when they are asked for."""
    import keras

    from tfedge.convert import convert

    made = {}

    def build(name, mode):
        if name not in made:
            model = ZOO[name](keras)
            made[name] = (model, inputs_of(model, SAMPLES))
        model, inputs = made[name]
        if (name, mode) not in made:
            settings = {"calibration": inputs} if mode == "int8" else {}
            made[name, mode] = convert(model, mode=mode, **settings)[0]
        return made[name, mode], inputs

    return build


def one_kind(build_file, kind, *, dtype="float32", count=1, **row):
    """A chain of operators of one kind."""
    rows = [{"name": f"t{i}", "shape": (1, 3), "dtype": dtype, **row} for i in range(count + 1)]
    return build_file(rows, [(kind, (i,), (i + 1,)) for i in range(count)])


def as_inputs(model, inputs):
    """Samples in the order of a file's inputs, which is that of their shapes here."""
    arrays = inputs if isinstance(inputs, list) else [inputs]
    if len({array.shape for array in arrays}) == 1:
        return list(arrays)
    return [next(a for a in arrays if a.shape[1:] == info.shape[1:]) for info in model.inputs]


# -------------------------------------------------------------------- as on the CPU


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_float_file_of_the_zoo_computes_what_it_does_on_the_cpu(adapter, zoo, name):
    content, inputs = zoo(name, "float32")
    with open_model(content, **ON_GPU) as fast, open_model(content, delegate="none") as plain:
        assert (fast.requested, fast.actual, fast.precision) == ("gpu", "gpu", "fp32")
        assert fast.adapter == str(adapter.adapter)
        assert fast.nodes_delegated == fast.nodes_total == plain.nodes_total > 0
        arrays = as_inputs(fast, inputs)
        received, expected = fast.predict(arrays), plain.predict(arrays)
    close = 1e-4 * max(1, np.abs(expected).max())
    assert np.abs(received - expected).max() <= close
    assert np.abs(np.roll(received, 1, axis=0) - expected).max() > 10 * close


def fed(content):
    """The file with every operator fed from inputs of its own, and all their results as outputs.

    Each operator then computes on the same integers on every delegate: rounding in one is not
    passed on to the next, where a softmax can make many steps of one.
    """
    import flatbuffers

    model = read_model(content)
    graph = model.subgraphs[0]
    model.signatureDefs = None
    written = [int(i) for operator in graph.operators for i in operator.outputs]
    twins = {}
    for index in written:
        tensor = graph.tensors[index]
        twin = schema.TensorT(
            name=f"fed {index}",
            shape=tensor.shape,
            type=tensor.type,
            quantization=tensor.quantization,
        )
        twins[index] = len(graph.tensors)
        graph.tensors.append(twin)
    for operator in graph.operators:
        operator.inputs = np.array([twins.get(int(i), int(i)) for i in operator.inputs], np.int32)
    read = {int(i) for operator in graph.operators for i in operator.inputs}
    used = [index for index in written if twins[index] in read]
    graph.inputs = np.array([*graph.inputs, *(twins[index] for index in used)], np.int32)
    graph.outputs = np.array(written, np.int32)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output()), used


def steps_of_operators(content, arrays):
    """Absolute differences in steps of every element that every operator writes, GPU against CPU.

    Args:
        content: An int8 file.
        arrays: Stored samples, a list of inputs each.
    """
    single, used = fed(content)
    found = []
    with (
        open_model(content, keep_tensors=True) as whole,
        open_model(single, delegate="none") as plain,
        open_model(single, **ON_GPU) as fast,
    ):
        assert fast.nodes_delegated == fast.nodes_total == whole.nodes_total
        for sample in arrays:
            whole.run(sample)
            given = [*sample, *(whole.tensor(index).copy() for index in used)]
            pairs = zip(fast.run(given), plain.run(given), strict=True)
            found += [np.abs(a.astype(int) - b.astype(int)).ravel() for a, b in pairs]
    return np.concatenate(found)


def stored(content, inputs, count):
    """Samples as an int8 file stores them."""
    from tfedge.runtime import quantize

    with open_model(content, delegate="none") as model:
        arrays = [
            quantize(array[:count], info.scale, info.zero_point, info.dtype)
            for array, info in zip(as_inputs(model, inputs), model.inputs, strict=True)
        ]
    return [[array[i : i + 1] for array in arrays] for i in range(count)]


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_operator_of_an_int8_file_of_the_zoo_is_within_a_step_of_the_cpu(adapter, zoo, name):
    content, inputs = zoo(name, "int8")
    steps = steps_of_operators(content, stored(content, inputs, 4))
    assert (steps <= 1).mean() >= 0.999 and steps.max() <= 2
    with open_model(content, **ON_GPU) as fast, open_model(content, delegate="none") as plain:
        arrays = as_inputs(fast, inputs)
        (info,) = fast.outputs
        ends = np.abs(fast.predict(arrays) - plain.predict(arrays)) / info.scale
    assert ends.max() <= 2.001  # the softmax at the end makes two steps of one before it


@pytest.fixture(scope="module")
def images(shared_file):
    """Real images, raw 0 to 255, as ResNet-8 takes them."""
    from PIL import Image

    with np.load(shared_file("cifar10_jpeg.npz")) as data:
        content, ends = data["test_jpeg"], data["test_offsets"]
    pieces = [content[ends[i] : ends[i + 1]].tobytes() for i in range(24)]
    return np.stack([np.asarray(Image.open(io.BytesIO(piece)), np.float32) for piece in pieces])


def test_resnet8_in_float_computes_what_it_does_on_the_cpu(adapter, shared_file, images):
    path = shared_file("mlperf_tiny_resnet8_reference_float.tflite")
    with open_model(path, **ON_GPU) as fast, open_model(path, delegate="none") as plain:
        expected = plain.predict(images)
        assert np.abs(fast.predict(images) - expected).max() <= 1e-4


def test_resnet8_in_int8_computes_what_it_does_on_the_cpu(adapter, shared_file, images):
    path = shared_file("mlperf_tiny_resnet8_reference_int8.tflite")
    content = path.read_bytes()
    steps = steps_of_operators(content, stored(content, images, 4))
    assert (steps <= 1).mean() >= 0.999 and steps.max() <= 2
    with (
        open_model(path, **ON_GPU) as fast,
        open_model(path) as xnnpack,
        open_model(path, delegate="none") as plain,
    ):
        assert "2 strided 1×1 int8 convolutions" in fast.notes[0]
        ours, theirs, own = (m.predict(images) for m in (fast, xnnpack, plain))
    # End to end roundings add up: on these images the CPU's own two ways are up to 112 steps apart.
    between = np.abs(theirs - own).mean()
    assert 0 < np.abs(ours - theirs).mean() < between / 2
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.95


def strided_pointwise(build_file, padding, size, count=1):
    """A 1×1 convolution of stride 2 with int8 kernels; several of them share a kernel."""
    random = np.random.default_rng(0)
    end = -(-size // 2)
    options = schema.Conv2DOptionsT()
    options.strideH = options.strideW = 2
    options.padding = padding
    kernel = random.integers(-127, 128, (6, 1, 1, 8)).astype(np.int8)
    bias = random.integers(-900, 900, 6).astype(np.int32)
    rows = [
        {"name": "x", "shape": (1, size, size, 8), "scale": 0.02, "dtype": "int8"},
        {"name": "w", "shape": kernel.shape, "scale": 0.01, "dtype": "int8", "data": kernel},
        {"name": "b", "shape": (6,), "scale": 0.0002, "dtype": "int32", "data": bias},
    ]
    end_row = {"shape": (1, end, end, 6), "scale": 0.05, "zero_point": 3, "dtype": "int8"}
    rows += [{"name": f"y{i}", **end_row} for i in range(count)]
    operators = [("CONV_2D", (0, 1, 2), (3 + i,), options) for i in range(count)]
    return build_file(rows, operators, outputs=tuple(range(3, 3 + count)))


PADDINGS = schema.Padding.SAME, schema.Padding.VALID


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [8, 9])
def test_a_strided_pointwise_convolution_is_right_on_the_gpu(adapter, build_file, padding, size):
    content = strided_pointwise(build_file, padding, size)
    x = np.random.default_rng(1).integers(-128, 128, (1, size, size, 8)).astype(np.int8)
    with open_model(content, delegate="none") as plain, open_model(content, **ON_GPU) as fast:
        (expected,), (received,) = plain.run(x), fast.run(x)
        assert "1 strided 1×1" in fast.notes[0]
    assert len(np.unique(expected)) > 50
    assert np.abs(received.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [8, 9])
def test_a_strided_pointwise_convolution_is_written_anew_with_equal_results(
    build_file, padding, size
):
    x = np.random.default_rng(1).integers(-128, 128, (1, size, size, 8)).astype(np.int8)
    content = strided_pointwise(build_file, padding, size)
    other, count = without_strided_pointwise(content, check_sound(content))
    assert count == 1 and other != content
    with open_model(content, delegate="none") as a, open_model(other, delegate="none") as b:
        np.testing.assert_array_equal(a.run(x), b.run(x))


def test_a_graph_that_litert_builds_wrongly_is_refused_in_its_words(adapter, build_file):
    content = strided_pointwise(build_file, schema.Padding.SAME, 8, count=2)
    assert without_strided_pointwise(content, check_sound(content)) == (content, 0)
    with pytest.raises(DelegateError, match=r"results would be wrong. LiteRT says: Shape mismatch"):
        open_model(content, **ON_GPU)


def test_two_inputs_of_one_type_go_where_the_signature_says(adapter, build_file):
    def sign(model):
        maps = [[("right", 1), ("left", 0)], [("difference", 2)]]
        inputs, outputs = (
            [schema.TensorMapT(name=n, tensorIndex=i) for n, i in pairs] for pairs in maps
        )
        model.signatureDefs = [
            schema.SignatureDefT(signatureKey="serving", inputs=inputs, outputs=outputs)
        ]

    content = build_file(
        [{"name": name, "shape": (1, 3)} for name in "aby"],
        [("SUB", (0, 1), (2,), schema.SubOptionsT())],
        inputs=(0, 1),
        edit=sign,
    )
    a, b = np.random.default_rng(1).random((2, 4, 3), np.float32)
    with open_model(content, **ON_GPU) as model:
        np.testing.assert_allclose(model.predict([a, b]), a - b, atol=1e-6)
        np.testing.assert_allclose(model.predict({"right": b, "left": a}), a - b, atol=1e-6)


# ------------------------------------------------------------------------ no fallback


def test_a_software_adapter_counts_only_where_it_is_allowed(adapter, float_file):
    if adapter.is_hardware:
        open_model(float_file, delegate="gpu").close()
        return
    name = str(adapter.adapter).split(" (")[0]
    with pytest.raises(DelegateError, match=rf"only adapter is {name}.*`allow_software=True`"):
        open_model(float_file, delegate="gpu")
    with pytest.raises(DelegateError, match="`allow_software=True`"):
        preflight(float_file, delegate="gpu")
    open_model(float_file, **ON_GPU).close()


def test_sixteen_bits_are_computed_in_sixteen_bits_or_refused(adapter, zoo):
    content, inputs = zoo("conv_bn_relu", "float32")
    try:
        with open_model(content, precision="fp16", **ON_GPU) as model:
            coarse = model.predict(inputs)
            assert model.precision == "fp16"
    except DelegateError as error:
        assert "no 16-bit floats" in str(error) and "computes in fp32" in str(error)
        return
    with open_model(content, **ON_GPU) as model:
        assert 1e-6 < np.abs(model.predict(inputs) - coarse).max() < 0.1


def test_an_operator_that_the_gpu_does_not_take_is_named_with_the_delegates_reason(
    adapter, build_file
):
    rows = [{"name": name, "shape": (1, 3)} for name in "xyzw"]
    kinds = ("LOGISTIC", "ZEROS_LIKE", "TANH")
    mixed = build_file(rows, [(kind, (i,), (i + 1,)) for i, kind in enumerate(kinds)])
    match = r"does not take the model: ZEROS_LIKE: Operation is not supported.*unless all does"
    with pytest.raises(DelegateError, match=match):
        open_model(mixed, **ON_GPU)
    with pytest.raises(DelegateError, match=r"LOGISTIC: Tensor type\(INT16\) is not supported"):
        open_model(one_kind(build_file, "LOGISTIC", dtype="int16", scale=1 / 32768), **ON_GPU)
    with open_model(one_kind(build_file, "LOGISTIC"), **ON_GPU) as model:
        np.testing.assert_allclose(model.predict(np.zeros((1, 3))), 0.5)


def test_a_file_without_operators_is_refused_and_not_run_on_memory_that_nobody_wrote(
    adapter, build_file
):
    content = build_file([{"name": "x", "shape": (1, 3)}], [], outputs=(0,))
    with pytest.raises(DelegateError, match="GPU took nothing of the model: it has no operator"):
        open_model(content, **ON_GPU)


def test_a_dynamic_shape_is_refused_with_the_tensors_name(adapter):
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    layers = [keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 3), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    call = tf.function(
        lambda x: model(x), input_signature=[tf.TensorSpec((None, 4, 4, 3), tf.float32)]
    )
    frozen = convert_variables_to_constants_v2(call.get_concrete_function())
    content = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module()).convert()
    with open_model(content, delegate="none") as plain:
        assert plain.predict(np.ones((2, 4, 4, 3))).shape == (2, 2)
    match = r"fixed shape only, and the file leaves open .*\(-1, .*LiteRT says.*fixed batch"
    with pytest.raises(DelegateError, match=match):
        open_model(content, **ON_GPU)


def test_a_file_for_the_edge_tpu_is_refused(adapter, shared_file):
    path = shared_file("mobilenet_v1_0.25_128_quant_edgetpu.tflite")
    with pytest.raises(DelegateError, match="edgetpu-custom-op|Edge TPU"):
        open_model(path, **ON_GPU)


def test_a_device_serves_on_after_models_that_it_refused(adapter, build_file, float_file):
    for _ in range(5):
        with pytest.raises(DelegateError):
            open_model(one_kind(build_file, "ZEROS_LIKE"), **ON_GPU)
        with open_model(float_file, **ON_GPU) as model:
            model.predict(np.zeros((1, 8, 8, 3)))


def test_nothing_is_printed_on_opening_running_and_closing(adapter, float_file, int8_file, capfd):
    for content in (float_file, int8_file):
        with open_model(content, **ON_GPU) as model:
            model.predict(np.zeros((2, 8, 8, 3)))
    assert capfd.readouterr() == ("", "")


def test_two_threads_get_their_own_results_on_the_gpu(adapter, float_file):
    check_threads(float_file, **ON_GPU)


def test_a_run_is_timed_until_its_outputs_are_back(adapter, shared_file):
    path = shared_file("mlperf_tiny_resnet8_reference_float.tflite")
    image = np.zeros((1, 32, 32, 3), np.float32)
    with open_model(path, **ON_GPU) as model:
        times = model.timed(image, 5)
        backend = model._backend
        (given,), (results,) = backend._given[0], backend._results[0]
        alone = []
        for _ in range(5):
            given.write(image)
            start = time.perf_counter_ns()
            backend._model.run_by_index(0, [given], [results])
            alone.append(time.perf_counter_ns() - start)
            results.read(10, np.float32)
    factor = 1 if adapter.is_hardware else 2  # software computes while the result is waited for
    assert len(times) == 5 and min(times) > factor * min(alone)


# ---------------------------------------------------- drivers that are absent or bad

OPEN = """
import sys
from tfedge.errors import DelegateError
from tfedge.runtime import open_model
try:
    open_model(sys.argv[1], delegate="gpu", allow_software=True)
except DelegateError as error:
    print(error)
else:
    print("it runs")
"""


def open_elsewhere(path, **variables):
    """What a process with other environment variables says; it prints nothing else."""
    environment = {"PYTHONPATH": str(ROOT), **os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, path], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def small_path(tmp_path_factory, float_file):
    path = tmp_path_factory.mktemp("gpu") / "model.tflite"
    path.write_bytes(float_file)
    return path


def test_no_driver_is_named_with_the_fix(adapter, small_path):
    said = open_elsewhere(small_path, VK_DRIVER_FILES="/nonexistent.json")
    assert "the Vulkan loader found no driver. LiteRT says: " in said
    assert "Found no drivers" in said and "Install the GPU's Vulkan driver" in said
    assert "`VK_DRIVER_FILES`" in said and "`delegate='xnnpack'` runs it on the CPU" in said


def test_no_loader_is_named_with_the_fix(adapter, small_path, tmp_path):
    (tmp_path / "libvulkan.so.1").touch()  # found first, and no library
    said = open_elsewhere(small_path, LD_LIBRARY_PATH=str(tmp_path))
    assert "the Vulkan loader is missing. LiteRT says: Couldn't load Vulkan" in said
    assert "libvulkan1" in said


def test_an_accelerator_library_that_is_missing_is_named_with_the_fix(
    adapter, small_path, tmp_path
):
    import ai_edge_litert

    source, copied = Path(ai_edge_litert.__file__).parent, tmp_path / "ai_edge_litert"
    names = shutil.ignore_patterns("*Accelerator*", "vendors", "aot", "__pycache__")
    shutil.copytree(source, copied, ignore=names)
    said = open_elsewhere(small_path, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert "its accelerator library libLiteRtWebGpuAccelerator.so is missing" in said
    assert f"{copied}/libLiteRtWebGpuAccelerator.so does not exist" in said
    assert "GPU accelerator could not be loaded" in said and "--force-reinstall" in said


def test_the_same_process_with_the_driver_that_is_here_runs(adapter, small_path):
    assert open_elsewhere(small_path) == "it runs"


def test_adapters_are_listed_and_a_driver_that_crashes_is_survived(adapter, tmp_path, monkeypatch):
    assert adapter.reason is None and adapter.devices
    assert any(device.startswith(adapter.adapter.name) for device in adapter.devices)
    crashing, code = tmp_path / "libcrash.so", tmp_path / "crash.c"
    code.write_text("__attribute__((constructor)) void f(void) { *(volatile int*)0 = 1; }\n")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        unavailable("gcc", "there is no C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", code, "-o", crashing], check=True)
    manifest = tmp_path / "icd.json"
    icd = {"library_path": str(crashing), "api_version": "1.0.5"}
    manifest.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": icd}))
    monkeypatch.setenv("VK_DRIVER_FILES", str(manifest))
    found = find_adapter()
    assert found.adapter is None and "SIGSEGV" in found.reason and "Update" in found.reason


def test_an_adapter_is_read_from_what_litert_prints():
    line = (
        "I0000 00:00:1 42 environment.cc:532] Selected adapter: NVIDIA H100 80GB HBM3, arch=hopper,"
        " vendor=nvidia, backend=Vulkan, adapterType=Discrete GPU"
    )
    found = read_adapter(["other", line])
    assert (found.name, found.is_hardware) == ("NVIDIA H100 80GB HBM3", True)
    assert str(found) == "NVIDIA H100 80GB HBM3 (Discrete GPU, Vulkan)"
    assert read_adapter(["Selected nothing"]) is None
    for kind in ("CPU / Software", "Unknown"):
        other = line.replace("Discrete GPU", kind)
        assert not read_adapter([other]).is_hardware


# ------------------------------------------------------------------------- pre-flight


def test_the_preflight_tells_operators_of_one_kind_apart(adapter, build_file):
    rows = [
        {"name": "x", "shape": (1, 4)},
        {"name": "axis", "shape": (), "dtype": "int32", "data": np.int32(1)},
        {"name": "small", "shape": (1,), "dtype": "int32"},
        {"name": "large", "shape": (1,), "dtype": "int64"},
        {"name": "y", "shape": (1, 4)},
    ]
    kinds = schema.TensorType.INT32, schema.TensorType.INT64
    operators = [
        ("ARG_MAX", (0, 1), (2 + i,), schema.ArgMaxOptionsT(outputType=kind))
        for i, kind in enumerate(kinds)
    ]
    content = build_file(rows, [*operators, ("TANH", (0,), (4,))], outputs=(2, 3, 4))
    found = preflight(content, delegate="gpu", allow_software=True)
    assert [(row.name, row.taken) for row in found.operators] == [
        ("ARG_MAX", True),
        ("ARG_MAX", False),
        ("TANH", True),
    ]
    assert "Tensor type(INT64) is not supported" in found.operators[1].reason
    assert not found.runs and "ARG_MAX" in found.error and "one by one" in found.found_by


def test_the_preflight_of_a_file_that_runs_says_so(adapter, zoo):
    found = preflight(zoo("residual", "float32")[0], delegate="gpu", allow_software=True)
    assert found.runs and found.error is None and all(row.taken for row in found.operators)


def test_one_operator_of_a_file_computes_what_it_did_in_it(zoo):
    content, inputs = zoo("residual", "float32")
    model = read_model(content)
    with open_model(content, keep_tensors=True) as whole:
        whole.predict(inputs[:1])
        for place, operator in enumerate(model.subgraphs[0].operators):
            with open_model(one_operator(model, place), delegate="none") as alone:
                buffers = model.buffers
                tensors = model.subgraphs[0].tensors
                given = [
                    int(i)
                    for i in operator.inputs
                    if i >= 0 and buffers[tensors[i].buffer].data is None
                ]
                (result,) = alone.run([whole.tensor(i) for i in given])
                np.testing.assert_allclose(result, whole.tensor(int(operator.outputs[0])), 1e-6)


# --------------------------------------------------------------------- in every verb


def test_three_models_on_three_delegates_are_one_table(adapter, zoo, tmp_path):
    paths = []
    for name, mode in (("dense", "float32"), ("conv_bn_relu", "float32"), ("conv_bn_relu", "int8")):
        paths.append(tmp_path / f"{name}_{mode}.tflite")
        paths[-1].write_bytes(zoo(name, mode)[0])
    command = ["benchmark", *map(str, paths), "--delegate", "none,xnnpack,gpu", "--runs", "3"]
    done = CliRunner().invoke(cli, [*command, "--allow-software"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines() if len(line.split()) > 10]
    assert [row[:3] for row in rows if row[1] in ("none", "xnnpack", "gpu")] == [
        [path.stem, delegate, "1"] for delegate in ("none", "xnnpack", "gpu") for path in paths
    ]
    assert f"gpu: {adapter.adapter}, fp32" in done.stdout
    assert "dense_float32 on the GPU is" in done.stdout and "read back" in done.stdout


def test_a_row_of_the_gpu_that_cannot_run_fails_the_command_and_not_the_others(
    adapter, build_file, tmp_path
):
    path = tmp_path / "zeros.tflite"
    path.write_bytes(one_kind(build_file, "ZEROS_LIKE"))
    command = ["benchmark", str(path), "--delegate", "none,gpu", "--allow-software", "--runs", "2"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "zeros did not run on gpu" in said and "ZEROS_LIKE: Operation is not supported" in said


def test_verify_runs_the_candidate_on_the_gpu(adapter, zoo, tmp_path):
    content, inputs = zoo("concat", "float32")
    report = verify(content, content, inputs, delegate="gpu", allow_software=True)
    assert (report.delegate, report.adapter) == ("gpu", str(adapter.adapter))
    assert report.agreement == 1.0 and report.sqnr_db > 80 and report.layers == ()
    assert any("Inner tensors were not compared" in note for note in report.notes)
    model, data = tmp_path / "m.tflite", tmp_path / "x.npz"
    model.write_bytes(content)
    np.savez(data, x=inputs)
    command = ["verify", model, model, "--data", data, "--delegate", "gpu", "--allow-software"]
    done = CliRunner().invoke(cli, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    assert f"ran on the gpu: {adapter.adapter}" in " ".join(done.output.split())


def test_verify_never_takes_another_delegate_in_place_of_the_one_asked_for(
    adapter, build_file, zoo
):
    content = one_kind(build_file, "ZEROS_LIKE")
    x = np.random.default_rng(0).random((4, 3), np.float32)
    with pytest.raises(DelegateError, match="ZEROS_LIKE"):
        verify(content, content, x, delegate="gpu", allow_software=True)
    with pytest.raises(DelegateError, match="XNNPACK took none"):
        verify(content, content, x, delegate="xnnpack")
    assert "Run without a delegate" in verify(content, content, x, tensors=False).notes[0]
    assert verify(content, content, x, delegate="none").delegate == "none"
    with pytest.raises(SettingsError, match="candidate that is no file"):
        verify(content, object(), x, delegate="gpu")
    with pytest.raises(SettingsError, match="go with `delegate='gpu'`"):
        verify(content, content, x, allow_software=True)


def test_doctor_names_the_adapter(adapter, monkeypatch):
    row = _gpu()
    assert adapter.adapter.name in row.found
    assert row.state == ("ok" if adapter.is_hardware else "missing")
    assert adapter.is_hardware or "--allow-software" in row.fix
    monkeypatch.setenv("VK_DRIVER_FILES", "/nonexistent.json")
    row = _gpu()
    assert row.state == "missing" and "found no driver" in row.fix and not row.required


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Run a recipe that only converts, with these targets; its report."""
    import keras

    folder = tmp_path_factory.mktemp("run")
    model = ZOO["dense"](keras)
    model.save(folder / "model.keras")
    x = inputs_of(model, 40)
    np.savez(folder / "data.npz", x=x, y=model.predict(x, verbose=0).argmax(1))

    def run(name, **changes):
        from tfedge.recipe import as_recipe
        from tfedge.recipe import run as run_recipe

        values = {"model": str(folder / "model.keras"), "data": str(folder / "data.npz")}
        recipe = as_recipe({**values, "stages": [], "convert": ["float32"], **changes})
        return run_recipe(recipe, folder / name)

    return run


def test_a_recipe_measures_on_the_gpu_and_the_cpu(adapter, small_run):
    report = small_run("both", targets=["xnnpack", "gpu"], allow_software=True)
    measured = {(row["actual"], row["adapter"]) for row in report.latency}
    assert measured == {("xnnpack", None), ("gpu", str(adapter.adapter))}


@pytest.mark.slow
def test_a_recipe_says_why_it_did_not_measure_on_the_gpu(adapter, small_run, monkeypatch):
    monkeypatch.setenv("VK_DRIVER_FILES", "/nonexistent.json")
    report = small_run("missing", targets=["xnnpack", "gpu"])
    assert {row["actual"] for row in report.latency} == {"xnnpack"}
    said = " ".join(report.latency_verdicts)
    assert "on gpu was not measured: No GPU can be used" in said and "found no driver" in said
    with pytest.raises(DelegateError, match="found no driver"):
        small_run("limit", targets=["gpu", "xnnpack"], limits={"latency_ms": 100})


def test_a_benchmark_of_the_gpu_alone_raises_what_the_gpu_says(adapter, build_file):
    with pytest.raises(DelegateError, match="ZEROS_LIKE: Operation is not supported"):
        benchmark(one_kind(build_file, "ZEROS_LIKE"), delegates=("gpu",), allow_software=True)


def test_messages_of_several_kinds_are_read():
    lines = [
        "ERROR: Following operations are not supported by GPU delegate:",
        "LOGISTIC: Tensor type(INT16) is not supported. x",
        "LOGISTIC: Tensor type(INT16) is not supported. y",
        "RFFT2D: Operation is not supported.",
        "1 operations will run on the GPU, and the remaining 3 operations will run on the CPU.",
        "elsewhere.cc: not an operator",
    ]
    found = gpu_refusals.refused_operators(lines)
    assert list(found) == ["LOGISTIC", "RFFT2D"] and len(found["LOGISTIC"]) == 2
    assert gpu_refusals.left_to_the_cpu(lines) and not gpu_refusals.left_to_the_cpu(lines[:4])
