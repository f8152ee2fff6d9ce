"""Vela run for real on small files, held against its own CSV files and text."""

import csv
import json
import re
import subprocess
import sys

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from fresh import run_fresh

from tfedge.accelerators import ethosu
from tfedge.accelerators.ethosu import ACCELERATORS, compile_ethosu
from tfedge.accelerators.ethosu.checking import check_compiled
from tfedge.accelerators.ethosu.configurations import FAMILIES, configure
from tfedge.accelerators.ethosu.figures import ESTIMATES, FIGURES, read_summary
from tfedge.accelerators.ethosu.vela import find_vela, run_vela
from tfedge.errors import CompilationError, FileFormatError, FileWriteError, SettingsError
from tfedge.inspection import inspect_model, read_model

RESNET = "mlperf_tiny_resnet8_reference_int8.tflite"
SUCCESS = re.compile(r"\b(all|success|successful|successfully|fully)\b", re.IGNORECASE)


def vela_alone(model, target, folder, *flags):
    """Vela's text, summary row and rows of operators, without tfedge."""
    _, system_config, memory_mode = FAMILIES[target.split("-")[1]]
    (folder / "alone.tflite").write_bytes(model)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ethosu.vela", folder / "alone.tflite"),
            *("--accelerator-config", target, "--output-dir", folder),
            *("--config", "Arm/vela.ini", "--system-config", system_config),
            *("--memory-mode", memory_mode, "--verbose-performance", *flags),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    with (folder / f"alone_summary_{system_config}.csv").open() as file:
        (row,) = csv.DictReader(file)
    with (folder / "alone_per-layer.csv").open() as file:
        return done.stdout, row, list(csv.DictReader(file))


def edited(data, change):
    """The file after `change(model)` on its objects."""
    model = read_model(data)
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture(scope="module")
def demo_file():
    """The network of `tfedge demo`, untrained, in int8."""
    import keras

    import tfedge
    from tfedge.cli.demo import build_network

    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).random((32, 8, 8, 1)).astype(np.float32)
    return tfedge.convert(build_network(), mode="int8", calibration=images)[0]


@pytest.fixture(scope="module")
def mixed_file():
    """Convolution, sine (which no NPU has), convolution, arg max; int8 at the input."""
    import tensorflow as tf

    kernel = tf.constant(np.random.default_rng(0).normal(0, 0.3, (3, 3, 4, 4)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 4), name="image")])
    def network(image):
        with tf.name_scope("first"):
            x = tf.nn.relu(tf.nn.conv2d(image, kernel, 1, "SAME"))
        with tf.name_scope("wave"):
            x = tf.math.sin(x)
        with tf.name_scope("second"):
            x = tf.nn.conv2d(x, kernel, 1, "SAME")
        return tf.math.argmax(x, -1)

    def samples():
        for seed in range(8):
            yield [np.random.default_rng(seed).random((1, 8, 8, 4), np.float32)]

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [network.get_concrete_function()], tf.Module()
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    return converter.convert()


@pytest.fixture(scope="module")
def mixed(mixed_file):
    return compile_ethosu(mixed_file, target="ethos-u55-128")


# ---------------------------------------------------------------------------- whole on the NPU


def assert_equals_vela(data, target, folder):
    made = compile_ethosu(data, target=target)
    text, row, steps = vela_alone(data, target, folder, "--show-cpu-operations")
    assert "CPU operators = 0 (0.0%)" in text
    assert made.mapped == len(made.operators) == len(inspect_model(data).operators)
    assert [o.reason for o in made.operators] == [None] * made.mapped
    for name in ("sram", "dram", "on_chip_flash", "off_chip_flash"):
        assert made.figures.get(f"{name}_bytes", 0) == 1024 * float(row[f"{name}_memory_used"])
    assert made.figures["weights_bytes"] == int(row["total_original_weights"])
    assert made.figures["encoded_weights_bytes"] == int(row["total_npu_encoded_weights"])
    assert made.estimates["cycles"] == int(row["cycles_total"])
    assert made.estimates["npu_cycles"] == int(row["cycles_npu"])
    assert made.estimates["latency_ms"] == pytest.approx(1000 * float(row["inference_time"]))
    assert made.estimates["inferences_per_second"] == float(row["inferences_per_second"])
    assert made.settings["system_config"] == row["system_config"]
    assert made.settings["memory_mode"] == row["memory_mode"]
    assert sum(r.cycles for r in made.layers) == sum(int(s["Op Cycles"]) for s in steps)
    assert sum(r.macs for r in made.layers) == int(row["nn_macs"])
    assert sum(r.cycles_fraction for r in made.layers) == pytest.approx(1)
    return made, steps


@pytest.mark.parametrize("target", ["ethos-u55-128", "ethos-u65-256", "ethos-u85-256"])
def test_resnet8_is_all_on_the_npu_and_its_figures_are_those_of_velas_csv(
    target, shared_file, tmp_path
):
    data = shared_file(RESNET).read_bytes()
    made, steps = assert_equals_vela(data, target, tmp_path)
    softmax = made.layers[-1]
    assert softmax.operator == "SOFTMAX" and made.operators[softmax.index].name == "SOFTMAX"
    own = [s for s in steps if s["Original Operator"] == "Softmax"]
    assert len(own) > 5 and softmax.cycles == sum(int(s["Op Cycles"]) for s in own)


def test_the_demos_file_is_all_on_the_npu_and_its_figures_are_those_of_velas_csv(
    demo_file, tmp_path
):
    made, steps = assert_equals_vela(demo_file, "ethos-u55-128", tmp_path)
    convolutions = [s for s in steps if s["NNG Operator"] in ("Conv2D", "DepthwiseConv2D")]
    own = [r for r in made.layers if r.operator in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    assert [r.cycles for r in own] == [int(s["Op Cycles"]) for s in convolutions]
    for row, step in zip(own, convolutions, strict=True):
        assert 100 * row.utilization == pytest.approx(float(step["Util% (MAC)"]))


def test_the_compiled_file_is_called_as_the_model_and_holds_the_npus_operator(int8_file, tmp_path):
    out = tmp_path / "new" / "out.tflite"
    made = compile_ethosu(int8_file, target="ethos-u55-64", out=out)
    before, after = inspect_model(int8_file), inspect_model(out)
    assert after.custom_operators == ("ethos-u",) and after.size_bytes == made.size_bytes
    assert made.figures["npu_custom_operators"] == len(after.operators) == 1
    assert made.path == str(out)
    for side in ("inputs", "outputs"):
        ends = zip(getattr(before, side), getattr(after, side), strict=True)
        for old, new in ends:
            assert (old.name, old.shape, old.dtype) == (new.name, new.shape, new.dtype)
            assert (old.scale, old.zero_point) == (new.scale, new.zero_point)


def test_results_are_said_to_be_estimates_and_not_compared(int8_file):
    notes = " ".join(compile_ethosu(int8_file, target="ethos-u85-128").notes)
    assert "nobody measured them" in notes
    assert "results can be compared on the device only" in notes


def test_the_same_file_gives_the_same_bytes(int8_file, tmp_path):
    for name in "ab":
        compile_ethosu(int8_file, target="ethos-u55-128", out=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ---------------------------------------------------------------------------- partly on the NPU


def test_what_stays_on_the_cpu_is_what_vela_counts_each_with_its_reason(
    mixed, mixed_file, tmp_path
):
    (tmp_path / "alone.tflite").write_bytes(mixed_file)
    left = [row for row in mixed.operators if not row.mapped]
    assert [row.name for row in left] == ["QUANTIZE", "DEQUANTIZE", "SIN", "QUANTIZE"]
    assert [row.name for row in mixed.operators if row.mapped] == ["CONV_2D", "CONV_2D", "ARG_MAX"]
    text, _, _ = vela_alone(mixed_file, "ethos-u55-128", tmp_path)
    assert f"CPU operators = {len(left)} " in text
    assert "is float32, which the NPU does not take" in left[0].reason
    assert left[2].reason == "The NPU has no operator SIN."
    assert left[2].layer == "wave"
    assert all(row.reason for row in left)


def test_a_partly_mapped_model_is_called_that_and_no_success_is_claimed(mixed):
    assert mixed.notes[0].startswith("Partly mapped: 4 of 7 operators left to the CPU")
    assert not any(SUCCESS.search(note) for note in mixed.notes)


def test_operators_at_the_ends_alone_get_the_advice_to_convert_without_them(int8_file):
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 4), name="image")])
    def network(image):
        return tf.nn.relu(tf.nn.conv2d(image, tf.ones((3, 3, 4, 4)), 1, "SAME"))

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [network.get_concrete_function()], tf.Module()
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: iter([[np.ones((1, 8, 8, 4), np.float32)]])
    made = compile_ethosu(converter.convert(), target="ethos-u55-128")
    assert made.mapped == 1 and "integer inputs and outputs" in made.notes[1]


def test_steps_that_vela_ascribes_to_no_operator_count_for_the_one_whose_output_they_write(mixed):
    assert [row.operator for row in mixed.layers] == ["CONV_2D", "CONV_2D", "ARG_MAX"]
    assert sum(row.cycles for row in mixed.layers) == mixed.estimates["cycles"]


def test_operators_are_told_apart_when_all_tensors_have_one_name(mixed, mixed_file):
    def rename(model):
        for tensor in model.subgraphs[0].tensors:
            tensor.name = b"t"

    made = compile_ethosu(edited(mixed_file, rename), target="ethos-u55-128")
    assert [row.mapped for row in made.operators] == [row.mapped for row in mixed.operators]


def test_names_with_commas_quotes_and_new_lines_change_no_figure(mixed, mixed_file):
    def rename(model):
        for tensor in model.subgraphs[0].tensors:
            tensor.name = b'a,b"c\n1,2,"d' + tensor.name

    made = compile_ethosu(edited(mixed_file, rename), target="ethos-u55-128")
    assert [row.mapped for row in made.operators] == [row.mapped for row in mixed.operators]
    assert made.estimates == mixed.estimates
    assert sum(row.cycles for row in made.layers) == made.estimates["cycles"]


def test_operators_inside_a_loop_are_mapped_one_by_one():
    import tensorflow as tf

    kernel = tf.constant(np.random.default_rng(0).normal(0, 0.2, (3, 3, 4, 4)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 4), name="image")])
    def network(image):
        def body(i, x):
            return i + 1, tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"))

        return tf.while_loop(lambda i, x: i < 3, body, [tf.constant(0), image])[1]

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [network.get_concrete_function()], tf.Module()
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: iter([[np.ones((1, 8, 8, 4), np.float32)]])
    data = converter.convert()
    made = compile_ethosu(data, target="ethos-u55-128")
    assert [row.index for row in made.operators] == list(range(len(inspect_model(data).operators)))
    assert [row.name for row in made.operators if row.mapped] == ["CONV_2D"]
    assert [row.operator for row in made.layers] == ["CONV_2D"]
    assert any("once" in note for note in made.notes)


def test_what_vela_leaves_out_of_several_subgraphs_is_said(int8_file):
    """Its rows are those of the last subgraph, its totals those of all."""

    def double(model):
        model.subgraphs.append(model.subgraphs[0])

    alone = compile_ethosu(int8_file, target="ethos-u55-128")
    made = compile_ethosu(edited(int8_file, double), target="ethos-u55-128")
    assert made.estimates["cycles"] == 2 * alone.estimates["cycles"]
    assert [row.cycles for row in made.layers] == [row.cycles for row in alone.layers]
    assert sum(row.cycles_fraction for row in made.layers) == pytest.approx(0.5)
    assert any("not complete" in note for note in made.notes)
    assert not any("not complete" in note for note in alone.notes)


@pytest.mark.slow
def test_a_file_on_which_vela_fails_when_it_is_to_list_cpu_operators_is_compiled(shared_file):
    """DeepLab v3: `vela --show-cpu-operations` ends with KeyError '0' after 65,866 steps."""
    made = compile_ethosu(
        shared_file("deeplabv3_mnv2_dm05_pascal_quant.tflite"), target="ethos-u55-128"
    )
    (left,) = (row for row in made.operators if not row.mapped)
    assert left.name == "RESIZE_BILINEAR" and "scale-factor=16" in left.reason
    assert made.layers[-1].operator == "ARG_MAX"
    assert sum(row.cycles for row in made.layers) == made.estimates["cycles"]


# ---------------------------------------------------------------------------- refusals


def test_a_float_model_is_called_that_and_leaves_no_file(float_file, tmp_path):
    with pytest.raises(CompilationError, match=r"it is a float model .*--mode int8"):
        compile_ethosu(float_file, target="ethos-u55-128", out=tmp_path / "out.tflite")
    assert list(tmp_path.iterdir()) == []


def test_an_integer_model_of_which_the_npu_takes_nothing_says_why(build_file, tmp_path):
    rows = [{"name": name, "shape": (1, 4), "dtype": "int32"} for name in ("x", "y")]
    data = build_file(rows, [("SIGN", [0], [1])], outputs=(1,))
    with pytest.raises(CompilationError, match=r"None of the 1 operators .*SIGN: The NPU has no"):
        compile_ethosu(data, target="ethos-u55-128", out=tmp_path / "out.tflite")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_compiled_once(int8_file, tmp_path):
    out = tmp_path / "once.tflite"
    compile_ethosu(int8_file, target="ethos-u55-128", out=out)
    with pytest.raises(CompilationError, match="already compiled for an Ethos-U"):
        compile_ethosu(out, target="ethos-u55-128", out=tmp_path / "twice.tflite")
    assert not (tmp_path / "twice.tflite").exists()


def test_a_file_for_the_edge_tpu_is_refused(shared_file):
    with pytest.raises(CompilationError, match="already compiled for the Edge TPU"):
        compile_ethosu(
            shared_file("mobilenet_v1_0.25_128_quant_edgetpu.tflite"), target="ethos-u55-128"
        )


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"target": "ethos-u55-127"}, "Did you mean 'ethos-u55-128'"),
        ({"target": "edgetpu"}, "`target` must be one of"),
        ({"timeout_s": 0}, "`timeout_s` must be above 0"),
        ({"timeout_s": True}, "`timeout_s` must be above 0"),
        ({"system_config": "Ethos_U55_High_End"}, "Did you mean 'Ethos_U55_High_End_Embedded'"),
        ({"system_config": "Ethos_U65_High_End"}, "It is for the Ethos-U65"),
        ({"memory_mode": "Shared"}, "Did you mean 'Shared_Sram'"),
        ({"vela_config": "none.ini"}, "which does not exist"),
        ({"vela_config": __file__}, "must be an `.ini` file"),
    ],
)
def test_settings_out_of_their_range_are_refused(kwargs, match, int8_file):
    with pytest.raises(SettingsError, match=match):
        compile_ethosu(int8_file, **{"target": "ethos-u55-128", **kwargs})


def test_a_pair_that_vela_refuses_is_named(int8_file):
    with pytest.raises(
        CompilationError, match=r"'Dedicated_Sram'.*must be Sram or Dram\)\. Choose"
    ):
        compile_ethosu(int8_file, target="ethos-u55-128", memory_mode="Dedicated_Sram")


def test_system_and_memory_mode_change_the_estimates_and_are_recorded(int8_file):
    slow = compile_ethosu(
        int8_file,
        target="ethos-u55-128",
        system_config="Ethos_U55_Deep_Embedded",
        memory_mode="Sram_Only",
    )
    fast = compile_ethosu(int8_file, target="ethos-u55-128")
    assert slow.settings["system_config"] == "Ethos_U55_Deep_Embedded"
    assert slow.settings["memory_mode"] == "Sram_Only"
    assert slow.settings["clock_hz"] == "200000000"
    assert slow.estimates["latency_ms"] > fast.estimates["latency_ms"]


def test_a_configuration_file_of_the_users_own_is_used(int8_file, tmp_path):
    own = tmp_path / "board.ini"
    text = configure("ethos-u55-128").file.read_text()
    own.write_text(text.replace("[System_Config.Ethos_U55_High_End_Embedded]", "[System_Config.B]"))
    with pytest.raises(
        SettingsError, match=r"`system_config` for .* must be a section .*`board.ini`"
    ):
        compile_ethosu(int8_file, target="ethos-u55-128", vela_config=own)
    made = compile_ethosu(int8_file, target="ethos-u55-128", vela_config=own, system_config="B")
    assert made.settings["config_file"] == str(own) and made.settings["system_config"] == "B"
    own.write_text("no ini")
    with pytest.raises(SettingsError, match="that can be read"):
        compile_ethosu(int8_file, target="ethos-u55-128", vela_config=own, system_config="B")


def test_a_place_that_cannot_be_written_is_told_before_vela_runs(int8_file, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("Vela ran")

    monkeypatch.setattr(ethosu, "run_vela", never)
    with pytest.raises(FileWriteError, match="it is a folder"):
        compile_ethosu(int8_file, target="ethos-u55-128", out=tmp_path)


def test_a_damaged_file_does_not_reach_vela(int8_file, tmp_path, monkeypatch):
    monkeypatch.setattr(ethosu, "run_vela", lambda *_, **__: pytest.fail("Vela ran"))
    with pytest.raises(FileFormatError):
        compile_ethosu(int8_file[: len(int8_file) // 2], target="ethos-u55-128")
    with pytest.raises(FileFormatError, match="no such file"):
        compile_ethosu(tmp_path / "none.tflite", target="ethos-u55-128")


def test_a_crash_of_vela_is_an_error_in_a_sentence(int8_file, tmp_path):
    configuration = configure("ethos-u55-128")
    half = int8_file[: len(int8_file) // 2]
    with pytest.raises(CompilationError, match=r"Vela (crashed \(SIG|failed on).*`half`"):
        run_vela(half, configuration, tmp_path, name="`half`", timeout_s=60)


def test_vela_is_ended_when_it_takes_too_long(int8_file):
    with pytest.raises(CompilationError, match=r"longer than 0\.01 s on the model"):
        compile_ethosu(int8_file, target="ethos-u55-128", timeout_s=0.01)


# ---------------------------------------------------------------------------- checks of the file


@pytest.fixture(scope="module")
def pair(mixed_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("pair") / "out.tflite"
    compile_ethosu(mixed_file, target="ethos-u55-128", out=out)
    return mixed_file, out.read_bytes()


def operator(model, kind):
    codes = [code.builtinCode for code in model.operatorCodes]
    number = codes.index(getattr(schema.BuiltinOperator, kind))
    return next(op for op in model.subgraphs[0].operators if op.opcodeIndex == number)


def _scale(model):
    tensors = model.subgraphs[0].tensors
    output = tensors[operator(model, "QUANTIZE").outputs[0]]
    output.quantization.scale = 2 * output.quantization.scale


def _name(model):
    model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].name = b"other"


def _shape(model):
    model.subgraphs[0].tensors[model.subgraphs[0].outputs[0]].shape = np.array([1, 64], np.int32)


def _signature(model):
    model.signatureDefs[0].inputs[0].name = b"other"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_scale, "the outputs of QUANTIZE on the CPU"),
        (_name, "the (inputs|signatures)"),
        (_shape, "the outputs of subgraph 0"),
    ],
)
def test_a_file_of_velas_that_differs_from_the_model_is_refused(change, match, pair):
    source, compiled = pair
    assert check_compiled(source, compiled) == 2
    with pytest.raises(CompilationError, match=match):
        check_compiled(source, edited(compiled, change))


def test_a_signature_that_differs_is_refused(int8_file, tmp_path, demo_file):
    compile_ethosu(demo_file, target="ethos-u55-128", out=tmp_path / "out.tflite")
    compiled = (tmp_path / "out.tflite").read_bytes()
    assert check_compiled(demo_file, compiled) == 1
    with pytest.raises(CompilationError, match="Vela must not change the signatures"):
        check_compiled(demo_file, edited(compiled, _signature))


def test_a_file_of_velas_that_is_not_sound_is_refused(pair):
    source, compiled = pair
    with pytest.raises(CompilationError, match="not sound"):
        check_compiled(source, compiled[:-200])


def test_only_the_scratch_of_the_npus_operator_may_be_read_unwritten(pair):
    _, compiled = pair
    inspect_model(compiled)

    def custom(model):
        return next(
            op
            for op in model.subgraphs[0].operators
            if model.operatorCodes[op.opcodeIndex].customCode == b"ethos-u"
        )

    def rename(model):
        model.operatorCodes[custom(model).opcodeIndex].customCode = b"other"

    def move(model):
        op = custom(model)
        op.inputs = np.array([*op.inputs[:4], op.inputs[2]], np.int32)

    for change in (rename, move):
        with pytest.raises(FileFormatError, match="must read tensors that are written before"):
            inspect_model(edited(compiled, change))


# ---------------------------------------------------------------------------- Vela itself


def test_the_targets_are_those_of_vela():
    done = subprocess.run(
        [sys.executable, "-m", "ethosu.vela", "--help"], capture_output=True, text=True, check=True
    )
    (listed,) = re.findall(r"\[--accelerator-config \{([^}]*)\}", done.stdout)
    assert listed.replace("\n", "").replace(" ", "").split(",") == list(ACCELERATORS)


@pytest.mark.parametrize("target", ACCELERATORS)
def test_every_target_has_a_system_and_a_memory_mode_in_velas_own_file(target):
    configuration = configure(target)
    text = configuration.file.read_text()
    assert f"[System_Config.{configuration.system_config}]" in text
    assert f"[Memory_Mode.{configuration.memory_mode}]" in text


def test_defaults_are_those_that_vela_falls_back_to(int8_file, tmp_path):
    (tmp_path / "model.tflite").write_bytes(int8_file)
    for family, (sizes, system_config, memory_mode) in FAMILIES.items():
        done = subprocess.run(
            [sys.executable, "-m", "ethosu.vela", "model.tflite"]
            + ["--accelerator-config", f"ethos-{family}-{sizes[0]}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"Using a default of {system_config}." in done.stdout
        assert f"Using a default of {memory_mode}." in done.stdout


def test_without_vela_the_error_says_how_to_install_it(int8_file, tmp_path):
    (tmp_path / "model.tflite").write_bytes(int8_file)
    code = (
        "import importlib.metadata as metadata, json, sys\n"
        "version = metadata.version\n"
        "def without_vela(name):\n"
        "    if name == 'ethos-u-vela':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "metadata.version = without_vela\n"
        "import tfedge\n"
        "from tfedge.accelerators import compile_model\n"
        "try:\n"
        "    compile_model(sys.argv[1], target='ethos-u55-128')\n"
        "except tfedge.errors.CompilationError as error:\n"
        "    print(json.dumps(str(error)))\n"
    )
    message = json.loads(run_fresh(code, tmp_path / "model.tflite"))
    assert message.endswith('Run `pip install "tfedge[ethosu]"`.')
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]


@pytest.mark.parametrize("version", ["4.5.0", "5.1.0", "6.0.0"])
def test_a_vela_that_was_not_tried_is_refused(version, monkeypatch):
    assert find_vela().startswith("5.")
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    with pytest.raises(CompilationError, match=rf"Received: {version}\. Run `pip install"):
        find_vela()


def test_a_summary_without_a_column_is_refused():
    columns = [column for column, _ in (*FIGURES.values(), *ESTIMATES.values())]
    text = ",".join(columns) + "\n" + ",".join("1" for _ in columns)
    with pytest.raises(CompilationError, match="core_clock, arena_cache_size"):
        read_summary(text)
    figures, estimates, limits = read_summary(
        text.replace("\n", ",core_clock,arena_cache_size\n") + ",5e8,nan"
    )
    assert figures["sram_bytes"] == 1024 and estimates["latency_ms"] == 1000
    assert limits == {"clock_hz": 500_000_000}
