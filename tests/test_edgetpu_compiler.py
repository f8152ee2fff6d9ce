"""Compiling for the Edge TPU, with a fake compiler that replays logs of the real one's format."""

import json
import os
import stat
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tfedge.accelerators.edgetpu.command import Compiler, Options, arguments_of, command_line
from tfedge.accelerators.edgetpu.command import find_compiler as find
from tfedge.accelerators.edgetpu.compiler import compile_edgetpu
from tfedge.accelerators.edgetpu.log import REASONS, ModelLog, Row, meaning, parse_log
from tfedge.accelerators.edgetpu.outcome import mapping_of
from tfedge.accelerators.records import OperatorMapping
from tfedge.errors import CompilationError, FileFormatError, FileWriteError, SettingsError
from tfedge.inspection import check_sound
from tfedge.inspection.soundness import operator_name

FAKE = Path(__file__).parent / "fake_edgetpu_compiler.py"
MAPPED = "Mapped to Edge TPU"
BEHIND = "More than one subgraph is not supported"
MODULE = "tfedge.accelerators.edgetpu.preflight"


def tensor(name, **more):
    return {"name": name, "shape": (1, 4, 4, 2), "dtype": "int8", "scale": 0.1, **more}


NAMES = ("image", "conv/Relu", "gate/Sigmoid", "last/Relu")


@pytest.fixture
def model(build_file, tmp_path):
    """A model of three int8 operators, as a file."""
    path = tmp_path / "net_int8.tflite"
    rows = [("RELU", [0], [1]), ("LOGISTIC", [1], [2]), ("RELU", [2], [3])]
    path.write_bytes(build_file([tensor(name) for name in NAMES], rows))
    return path


def compiled_bytes(build_file, *, left=()):
    """What the compiler makes of `model`: the custom operator, and the operators left behind it."""
    tensors = [tensor(NAMES[0])]
    rows, kinds = [("CUSTOM", [0], [1])], ("RELU", "LOGISTIC", "RELU")
    first = min(left, default=3)
    tensors.append(tensor(NAMES[first]))
    for index in left:
        rows.append((kinds[index], [len(tensors) - 1], [len(tensors)]))
        tensors.append(tensor(NAMES[index + 1]))

    def edit(fields):
        fields.operatorCodes[0].customCode = "edgetpu-custom-op"

    return build_file(tensors, rows, edit=edit)


@pytest.fixture
def fake(monkeypatch, tmp_path, build_file):
    """The fake compiler on PATH, and a function that says what it is to do."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "edgetpu_compiler"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("EDGETPU_COMPILER", raising=False)
    whole = tmp_path / "FAKE_compiled.tflite"
    whole.write_bytes(compiled_bytes(build_file))
    seen = tmp_path / "seen.json"
    monkeypatch.setenv("FAKE_EDGETPU_COMPILED", str(whole))
    monkeypatch.setenv("FAKE_EDGETPU_SEEN", str(seen))
    monkeypatch.setenv(
        "FAKE_EDGETPU_TABLE", json.dumps([["RELU", 2, MAPPED], ["LOGISTIC", 1, MAPPED]])
    )

    def told(**variables):
        for name, value in variables.items():
            text = value if isinstance(value, str) else json.dumps(value)
            monkeypatch.setenv(f"FAKE_EDGETPU_{name.upper()}", text)

    return SimpleNamespace(
        told=told, program=program, seen=lambda: json.loads(seen.read_text()), folder=folder
    )


@pytest.fixture(autouse=True)
def foreseen(monkeypatch):
    """A pre-flight that is told what it foresees: index to (mapped, reason)."""
    rows = {}

    def preflight(data):
        fields = check_sound(data)
        graph = fields["subgraphs"][0]
        operators = []
        for index, operator in enumerate(graph["operators"]):
            mapped, reason = rows.get(index, (True, None))
            layer = graph["tensors"][int(operator["outputs"][0])]["name"].split("/")[0]
            operators.append(
                OperatorMapping(
                    index=index,
                    name=operator_name(fields, operator),
                    mapped=mapped,
                    reason=reason,
                    layer=layer,
                )
            )
        mapped = sum(row.mapped is True for row in operators)
        return SimpleNamespace(
            operators=tuple(operators),
            mapped=mapped,
            parameter_bytes_on_chip=1000,
            parameter_bytes_streamed=0,
        )

    module = ModuleType(MODULE)
    module.preflight = preflight
    monkeypatch.setitem(sys.modules, MODULE, module)
    return rows


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------- what comes out


def test_a_compiled_file_stands_beside_its_model_with_the_figures_of_the_log(model, fake):
    before = model.read_bytes()
    made = compile_edgetpu(model)
    out = model.with_name("net_int8_edgetpu.tflite")
    assert made.path == str(out)
    assert made.size_bytes == out.stat().st_size
    assert check_sound(out.read_bytes())
    assert model.read_bytes() == before
    assert made.target == "edgetpu"
    assert made.compiler == "edgetpu_compiler 16.0.384591198"
    assert made.figures == {
        "on_chip_bytes": 604.5 * 1024,
        "on_chip_remaining_bytes": round(6.89 * 1024**2),
        "off_chip_bytes": 0,
        "subgraphs": 1,
        "segments": 1,
        "compiler_ms": 395,
    }
    assert made.estimates == {"on_chip_bytes": 1000, "off_chip_bytes": 0, "mapped": 3}
    assert made.mapped == len(made.operators) == 3
    assert made.files == ()
    assert [row.layer for row in made.operators] == ["conv", "gate", "last"]
    assert made.notes == (
        "The compiler mapped 3 of 3 operators; the pre-flight foresaw 3, and was right on each.",
    )


def test_the_compiler_is_told_what_was_asked_in_its_documented_options(model, fake, tmp_path):
    made = compile_edgetpu(model, out=tmp_path, min_runtime_version=13, timeout_s=20)
    options = fake.seen()["options"]
    assert options["min_runtime_version"] == 13
    assert options["timeout_sec"] == 20
    assert options["show_operations"]
    assert options["models"] == ["model_0.tflite"]  # a copy: no name of the user's reaches it
    assert made.settings == {"min_runtime_version": "13", "timeout_s": "20"}
    assert Path(made.path).parent == tmp_path


def test_a_compiler_without_a_time_limit_of_its_own_is_not_given_one(model, fake):
    fake.told(version="15.0.340273435")
    assert compile_edgetpu(model).compiler == "edgetpu_compiler 15.0.340273435"
    assert not any(word.startswith(("-t", "--timeout")) for word in fake.seen()["arguments"])


def test_operators_left_on_the_cpu_are_found_in_the_file_and_explained_by_the_log(
    model, fake, build_file, tmp_path
):
    partly = tmp_path / "FAKE_partly.tflite"
    partly.write_bytes(compiled_bytes(build_file, left=(1, 2)))
    unspecified = next(text for text in REASONS if "unspecified" in text)
    table = [["RELU", 1, MAPPED], ["RELU", 1, BEHIND], ["LOGISTIC", 1, unspecified]]
    fake.told(compiled=str(partly), table=table)
    made = compile_edgetpu(model)
    assert [row.mapped for row in made.operators] == [True, False, False]
    assert made.operators[0].reason is None
    assert made.operators[1].reason == meaning(unspecified)
    assert made.operators[2].reason == meaning(BEHIND)
    assert "stands behind an operator that stays on the CPU" in made.operators[2].reason
    assert made.notes[0] == (
        "The compiler mapped 1 of 3 operators; the pre-flight foresaw 3, and was wrong on 2."
    )
    assert made.notes[1].startswith(
        "operator 1 LOGISTIC (`gate`): foreseen on the Edge TPU, is on the CPU: the compiler:"
    )


def test_operators_that_nobody_foresaw_are_neither_right_nor_wrong(model, fake, foreseen):
    foreseen[1] = (None, "between an accepted size and a refused one")
    made = compile_edgetpu(model)
    (note,) = made.notes
    assert note == (
        "The compiler mapped 3 of 3 operators; the pre-flight foresaw 2 and did not know of 1, "
        "and was right on each."
    )


def test_a_log_that_contradicts_the_file_is_told(model, fake):
    fake.told(table=[["RELU", 2, MAPPED], ["LOGISTIC", 1, BEHIND]])
    made = compile_edgetpu(model)
    assert made.mapped == 3
    assert made.notes[0] == (
        "The compiled file keeps 0 LOGISTIC on the CPU, the compiler's log says 1. The file is "
        "what runs."
    )


def test_the_operation_log_is_read_where_the_printed_log_has_no_table(
    model, fake, build_file, tmp_path
):
    partly = tmp_path / "FAKE_partly.tflite"
    partly.write_bytes(compiled_bytes(build_file, left=(2,)))
    fake.told(scenario="log_only", compiled=str(partly))
    fake.told(table=[["RELU", 1, MAPPED], ["RELU", 1, BEHIND], ["LOGISTIC", 1, MAPPED]])
    made = compile_edgetpu(model)
    assert made.operators[2].reason == meaning(BEHIND)
    assert made.figures["off_chip_bytes"] == round(3.45 * 1024**2)
    assert "bytes of parameters do not fit on the Edge TPU" in made.notes[-1]


def test_segments_are_one_file_each_and_their_figures_add_up(model, fake, build_file, tmp_path):
    parts = []
    for index in range(2):
        path = tmp_path / f"FAKE_{index}.tflite"
        path.write_bytes(compiled_bytes(build_file, left=(2,) if index else ()))
        parts.append(str(path))
    fake.told(compiled=":".join(parts), table=[])
    made = compile_edgetpu(model, segments=2)
    names = [f"net_int8_segment_{index}_of_2_edgetpu.tflite" for index in range(2)]
    assert [Path(row.path).name for row in made.files] == names
    assert made.path == made.files[0].path
    assert made.figures["segments"] == 2
    assert made.figures["on_chip_bytes"] == 2 * 604.5 * 1024
    assert made.files[1].figures["on_chip_bytes"] == 604.5 * 1024
    assert [row.mapped for row in made.operators] == [True, True, False]
    assert fake.seen()["options"]["num_segments"] == 2


def test_models_for_one_edge_tpu_are_compiled_together(model, fake, tmp_path):
    other = tmp_path / "other.tflite"
    other.write_bytes(model.read_bytes())
    compiled = os.environ["FAKE_EDGETPU_COMPILED"]
    fake.told(compiled=f"{compiled}:{compiled}")
    made = compile_edgetpu(model, together_with=[other])
    assert fake.seen()["options"]["models"] == ["model_0.tflite", "model_1.tflite"]
    names = ["net_int8_edgetpu.tflite", "other_edgetpu.tflite"]
    assert [Path(row.path).name for row in made.files] == names
    assert made.figures["on_chip_bytes"] == 604.5 * 1024  # its own


def test_published_pairs_are_mapped_as_their_compiled_files_say(shared_file):
    for name, left in (
        ("deeplabv3_mnv2_dm05_pascal_quant", set(range(64, 72))),
        ("keras_lstm_mnist_ptq", set()),
        ("mobilenet_v1_0.25_128_quant", set()),
    ):
        before = check_sound(shared_file(f"{name}.tflite").read_bytes())
        after = check_sound(shared_file(f"{name}_edgetpu.tflite").read_bytes())
        operators, _ = mapping_of(before, [after], [], [])
        assert {row.index for row in operators if not row.mapped} == left


def test_several_reasons_for_one_kind_are_all_told():
    rows = (
        Row(name="RELU", count=1, status=BEHIND),
        Row(name="RELU", count=2, status="Operation not supported"),
    )
    fields = {
        "operator_codes": [{"builtin_code": 19, "deprecated_builtin_code": 19}],
        "subgraphs": [
            {
                "tensors": [{"name": "a"}, {"name": "b"}],
                "operators": [{"opcode_index": 0, "inputs": [0], "outputs": [1]}],
            }
        ],
    }
    operators, _ = mapping_of(fields, [fields], [ModelLog(rows=rows)], [])
    assert operators[0].reason.startswith("one of these, by the log's counts of RELU: 1 × the")
    assert '2 × the compiler: "Operation not supported"' in operators[0].reason


# ---------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("scenario", "match"),
    [
        ("not_quantized", "takes the model for one that is not quantized, though every operator"),
        ("version:LOGISTIC:1", r"LOGISTIC in version 1, in which the file has operator 1 LOGISTIC"),
        ("version:RELU:9", "RELU in version 9, in which the file has an operator RELU"),
        ("new_operator::14", r"operator 1 LOGISTIC \(`gate`\) is younger than the compiler"),
        ("internal", "an error in the compiler itself, which gives no reason"),
        ("dynamic", "an operator computes a size that is open until the model runs"),
        ("large", r"the largest is 32 B, which operator 0 RELU \(`conv`\) writes"),
        ("timeout", "did not end within 180 s, which usually comes of large activations"),
        ("silent", "it gave no reason for not compiling"),
        ("nothing", "it gave no reason for not compiling"),
        ("crash", "signal 6 ended it"),
        ("subgraphs", "several parts would run on the Edge TPU"),
        ("interpreter", "its interpreter, of 2021, could not prepare the model"),
        ("unsound", "wrote a file that is not sound for .*net_int8.tflite"),
    ],
)
def test_a_failure_is_a_sentence_that_names_the_layer_and_leaves_no_file(
    model, fake, tmp_path, scenario, match
):
    fake.told(scenario=scenario)
    before = files_in(tmp_path)
    with pytest.raises(CompilationError, match=match) as caught:
        compile_edgetpu(model)
    message = str(caught.value)
    assert message.endswith("Nothing was written.")
    assert str(model) in message
    assert "model_0" not in message  # the compiler's copy has a name that nobody knows
    assert files_in(tmp_path) in (before, sorted([*before, "seen.json"]))


def test_a_float_layer_is_named_where_the_compiler_says_not_quantized(fake, build_file, tmp_path):
    path = tmp_path / "float.tflite"
    tensors = [tensor("image"), {"name": "conv/Relu", "shape": (1, 4, 4, 2)}]
    path.write_bytes(build_file(tensors, [("RELU", [0], [1])]))
    fake.told(scenario="not_quantized")
    with pytest.raises(CompilationError, match=r"in float at operator 0 RELU \(`conv`\)"):
        compile_edgetpu(path)


def test_an_open_size_is_named_where_the_compiler_says_dynamic(fake, build_file, tmp_path):
    def edit(fields):
        fields.subgraphs[0].tensors[1].shapeSignature = [-1, 4, 4, 2]

    path = tmp_path / "open.tflite"
    rows = [tensor("image"), tensor("conv/Relu;conv/Conv2D")]
    path.write_bytes(build_file(rows, [("RELU", [0], [1])], edit=edit))
    fake.told(scenario="dynamic")
    with pytest.raises(CompilationError, match="tensor `conv/Relu` has a size that is open"):
        compile_edgetpu(path)


def test_a_failure_without_a_reason_names_what_the_pre_flight_doubts(model, fake, foreseen):
    foreseen[1] = (False, "the Edge TPU has no such operator")
    fake.told(scenario="internal")
    match = r"does not expect these .*operator 1 LOGISTIC \(`gate`\), the Edge TPU has no such"
    with pytest.raises(CompilationError, match=match):
        compile_edgetpu(model)


def test_dense_layers_that_newer_converters_quantize_per_channel_are_recognised(
    fake, build_file, tmp_path
):
    path = tmp_path / "dense.tflite"
    rows = [
        {"name": "x", "shape": (1, 2), "dtype": "int8", "scale": 0.1},
        {"name": "w", "shape": (2, 2), "dtype": "int8", "scale": 0.1, "data": b"\1\2\3\4"},
        {"name": "dense/MatMul", "shape": (1, 2), "dtype": "int8", "scale": 0.1},
    ]

    def edit(fields):
        fields.operatorCodes[0].version = 12

    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    rows[1]["data"] = np.arange(4, dtype=np.int8)
    operators = [("FULLY_CONNECTED", [0, 1], [2], schema.FullyConnectedOptionsT())]
    path.write_bytes(build_file(rows, operators, edit=edit))
    fake.told(scenario="version:FULLY_CONNECTED:12")
    with pytest.raises(CompilationError, match=r"quantize dense layers per channel") as caught:
        compile_edgetpu(path)
    assert "operator 0 FULLY_CONNECTED (`dense`)" in str(caught.value)


def test_a_compilation_that_maps_nothing_is_an_error(model, fake, foreseen):
    foreseen[0] = (False, "no such operator")
    fake.told(compiled=str(model))
    with pytest.raises(CompilationError, match="left every operator of .* on the CPU") as caught:
        compile_edgetpu(model)
    assert "The first that stays is RELU: no such operator." in str(caught.value)
    assert not model.with_name("net_int8_edgetpu.tflite").exists()


def test_when_one_of_two_segments_fails_neither_is_written(model, fake, tmp_path):
    compiled = os.environ["FAKE_EDGETPU_COMPILED"]
    fake.told(scenario="half", compiled=f"{compiled}:{compiled}")
    with pytest.raises(CompilationError, match="not compiling into 2 segments.*Fewer segments"):
        compile_edgetpu(model, segments=2)
    assert not list(tmp_path.glob("*segment*"))


def test_a_file_that_stood_there_survives_a_failure(model, fake):
    out = model.with_name("net_int8_edgetpu.tflite")
    out.write_bytes(b"before")
    fake.told(scenario="internal")
    with pytest.raises(CompilationError):
        compile_edgetpu(model)
    assert out.read_bytes() == b"before"


def test_of_models_compiled_together_the_refused_one_is_named(model, fake, tmp_path):
    other = tmp_path / "other.tflite"
    other.write_bytes(model.read_bytes())
    fake.told(scenario="not_quantized")
    with pytest.raises(CompilationError, match="made nothing of .*other.tflite"):
        compile_edgetpu(model, together_with=[other])


def test_a_compiler_that_hangs_is_ended(model, fake, monkeypatch):
    monkeypatch.setattr("tfedge.accelerators.edgetpu.compiler.GRACE_S", 0.5)
    fake.told(scenario="hang")
    with pytest.raises(CompilationError, match="did not end within 1 s, which usually"):
        compile_edgetpu(model, timeout_s=1)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"min_runtime_version": 9}, "from 10 to 14. Received: 9"),
        ({"min_runtime_version": True}, "Received: True"),
        ({"segments": 0}, "whole number from 1 to 64. Received: 0"),
        ({"segments": 2.0}, "Received: 2.0"),
        ({"segments": 2, "together_with": ["a.tflite"]}, "Received: both"),
        ({"together_with": "a.tflite"}, "sequence of paths"),
        ({"timeout_s": 0}, "at least 1 s. Received: 0"),
        ({"timeout_s": float("inf")}, "Received: inf"),
        ({"compiler": "a", "container": "b"}, "both"),
        ({"container": "-v /:/host"}, "name of an image"),
    ],
)
def test_wrong_settings_are_refused(model, fake, settings, match):
    with pytest.raises(SettingsError, match=match):
        compile_edgetpu(model, **settings)
    assert compile_edgetpu(model, segments=1, min_runtime_version=10, timeout_s=1.5).mapped == 3


def test_a_model_is_not_overwritten_nor_compiled_twice(model, fake):
    with pytest.raises(SettingsError, match="may not be a model that goes in"):
        compile_edgetpu(model, out=model)
    made = compile_edgetpu(model)
    with pytest.raises(CompilationError, match="compiled once"):
        compile_edgetpu(made.path)
    with pytest.raises(SettingsError, match="different names"):
        compile_edgetpu(model, together_with=[model])


def test_damaged_models_and_places_do_not_reach_the_compiler(model, fake, tmp_path):
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(model.read_bytes()[:100])
    with pytest.raises(FileFormatError):
        compile_edgetpu(damaged)
    with pytest.raises(FileFormatError, match="no such file"):
        compile_edgetpu(tmp_path / "absent.tflite")
    with pytest.raises(FileWriteError):
        compile_edgetpu(model, out=damaged / "out.tflite")
    assert not (tmp_path / "seen.json").exists()


# ---------------------------------------------------------------------------- which compiler


def test_without_a_compiler_the_error_says_how_to_get_it_and_no_file_is_left(
    model, monkeypatch, tmp_path
):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("EDGETPU_COMPILER", raising=False)
    before = files_in(tmp_path)
    with pytest.raises(CompilationError) as caught:
        compile_edgetpu(model)
    for words in ("apt-get install edgetpu-compiler", "--container", "colab", "EDGETPU_COMPILER"):
        assert words in str(caught.value)
    assert files_in(tmp_path) == before


def test_a_named_compiler_wins_over_the_variable_and_the_variable_over_the_path(fake, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    path = {"PATH": str(fake.folder)}
    both = {**path, "EDGETPU_COMPILER": str(mine)}
    assert find(environment=path).program == str(fake.program)
    assert find(environment=both).program == str(mine)
    assert find(str(fake.program), environment=both).program == str(fake.program)
    with pytest.raises(CompilationError, match="EDGETPU_COMPILER names .*does not exist"):
        find(environment={**path, "EDGETPU_COMPILER": str(tmp_path / "gone")})
    mine.chmod(0o644)
    with pytest.raises(CompilationError, match="may not be executed"):
        find(environment=both)


def test_a_program_that_is_no_edge_tpu_compiler_is_refused(model, tmp_path):
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho gcc 12\n")
    other.chmod(0o755)
    with pytest.raises(CompilationError, match="Received: gcc 12"):
        compile_edgetpu(model, compiler=str(other))
    other.write_bytes(b"\x7fELF of another machine")
    with pytest.raises(CompilationError, match="x86-64 Linux only"):
        compile_edgetpu(model, compiler=str(other))


def test_a_container_sees_one_folder_and_no_network(model, fake, tmp_path):
    engine = fake.folder / "docker"
    engine.write_text(
        "#!/bin/sh\n"  # a fake: no container, the fake compiler in the mounted folder
        f'echo "$@" >> "{tmp_path}/engine.txt"\n'
        'while [ "$1" != --volume ]; do shift; done\n'
        'cd "${2%%:*}"\n'
        'while [ "$1" != my/image:16 ]; do shift; done\n'
        f'shift; exec "{fake.program}" "$@"\n'
    )
    engine.chmod(0o755)
    made = compile_edgetpu(model, container="my/image:16")
    assert made.mapped == 3
    assert made.compiler == "edgetpu_compiler 16.0.384591198 in my/image:16"
    version, run = (tmp_path / "engine.txt").read_text().splitlines()
    assert version.endswith("--entrypoint edgetpu_compiler my/image:16 --version")
    for words in ("--rm", "--network none", "--cap-drop ALL", f"--user {os.getuid()}:"):
        assert words in run
    assert run.count("--volume") == 1
    assert run.endswith("model_0.tflite")


def test_a_container_needs_an_engine(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilationError, match="docker or podman"):
        compile_edgetpu(model, container="my/image:16")


def test_command_lines_are_built_without_a_shell(tmp_path):
    compiler = Compiler(program="/opt/edgetpu_compiler")
    options = Options(segments=3)
    words = arguments_of(options, ["a b.tflite"], "out", "16.0.384591198")
    assert words[-1] == "a b.tflite"
    assert command_line(compiler, words, tmp_path) == ["/opt/edgetpu_compiler", *words]
    podman = command_line(Compiler(program="/usr/bin/podman", image="i"), words, tmp_path, name="n")
    assert "--user" not in podman  # its root is the user who runs it


def test_the_fake_is_a_program_that_says_that_it_is_one():
    assert FAKE.stat().st_mode & stat.S_IXUSR
    assert FAKE.read_text().split('"""')[1].startswith("A FAKE of Google's `edgetpu_compiler`")


# ---------------------------------------------------------------------------- the log alone

SEGMENTS = f"""Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 1857 ms.

Input model: net_segment_0_of_2.tflite
Input size: 5.20MiB
Output model: net_segment_0_of_2_edgetpu.tflite
Output size: 6.51MiB
On-chip memory used for caching model parameters: 6.02MiB
On-chip memory remaining for caching model parameters: 1.02MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 84
Operation log: net_segment_0_of_2_edgetpu.log

Operator                       Count      Status

RESIZE_NEAREST_NEIGHBOR        2          {MAPPED}
CONV_2D                        81         {MAPPED}
CONV_2D                        1          {BEHIND}
Compilation child process completed within timeout period.
Compilation succeeded!
Started a compilation timeout timer of 180 seconds.
ERROR: Restored original execution plan after delegate application failure.
Compilation failed: Compilation failed due to large activation tensors in model.
Compilation child process completed within timeout period.
Compilation failed!
"""


def test_a_log_of_a_segment_that_succeeds_and_one_that_fails_is_read():
    log = parse_log(SEGMENTS)
    (model,) = log.models
    assert log.version == "16.0.384591198"
    assert log.failed
    assert log.milliseconds == 1857
    assert log.messages == (
        "ERROR: Restored original execution plan after delegate application failure.",
        "Compilation failed: Compilation failed due to large activation tensors in model.",
    )
    assert (model.on_chip_bytes, model.off_chip_bytes) == (round(6.02 * 1024**2), 0)
    assert (model.subgraphs, model.operations, model.mapped) == (1, 84, 83)
    assert model.rows[2] == Row(name="CONV_2D", count=1, status=BEHIND)


def test_text_of_any_other_kind_is_read_as_messages():
    log = parse_log("Segmentation fault\nOn-chip memory used for caching model parameters: 1MiB\n")
    assert log.models == ()
    assert not log.failed
    assert log.messages[0] == "Segmentation fault"
    odd = parse_log("Input model: a\nInput size: lots\nTotal number of operations: many\n")
    assert odd.models == (ModelLog(input="a"),)
    assert odd.messages == ("Total number of operations: many",)
