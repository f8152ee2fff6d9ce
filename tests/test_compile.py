"""`tfedge compile`, `compile_model` and `all_targets`.

The pre-flight and the compiler of the Edge TPU have tests of their own; here their modules are
replaced by small ones, so that what is shown and what is refused is seen alone.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from fresh import ROOT

from tfedge.accelerators import TARGETS, compile_model
from tfedge.accelerators import all_targets as module
from tfedge.accelerators.all_targets import DEFAULT
from tfedge.accelerators.all_targets import all_targets as try_all
from tfedge.accelerators.records import Compilation, OperatorMapping
from tfedge.benchmark import BenchmarkReport
from tfedge.cli import cli
from tfedge.errors import CompilationError, DelegateError, FileFormatError, SettingsError
from tfedge.inspection import inspect_model
from tfedge.report import Record
from tfedge.runtime import open_model

NO_COMPILER = "There is no `edgetpu_compiler` here. Get it from Google."


def run(*arguments):
    """Exit code, stdout and stderr of `tfedge compile`, in this process."""
    result = CliRunner().invoke(cli, ["compile", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def model(int8_file, tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(int8_file)
    return path


@pytest.fixture
def float_model(float_file, tmp_path):
    path = tmp_path / "float.tflite"
    path.write_bytes(float_file)
    return path


@dataclass(frozen=True, kw_only=True)
class Foreseen(Record):
    """What a pre-flight gives."""

    target: str = "edgetpu"
    operators: tuple[OperatorMapping, ...] = ()

    def __str__(self):
        return "2 of 3 operators would run on the Edge TPU."


OPERATORS = (
    OperatorMapping(index=0, name="CONV_2D", mapped=True, layer="conv"),
    OperatorMapping(index=1, name="SIN", mapped=False, reason="It is not supported."),
    OperatorMapping(index=2, name="TILE", mapped=None, reason="Not seen yet."),
)


@pytest.fixture
def edgetpu(monkeypatch):
    """The Edge TPU's modules; `state.compiler` says whether there is a compiler."""
    state = SimpleNamespace(compiler=False, options=None, seen=None)

    def find_compiler(compiler, container):
        if not state.compiler:
            raise CompilationError(NO_COMPILER)

    def compile_edgetpu(model, *, out=None, **options):
        find_compiler(None, None)
        state.options, state.seen = options, Path(model).read_bytes()
        out = Path(out or Path(model).with_name(f"{Path(model).stem}_edgetpu.tflite"))
        out.write_bytes(b"compiled")
        return Compilation(
            target="edgetpu",
            compiler="edgetpu_compiler 16.0",
            path=str(out),
            size_bytes=8,
            operators=OPERATORS,
            figures={"on_chip_bytes": 2048},
            notes=("One operator stays on the CPU.",),
        )

    compiler = ModuleType("tfedge.accelerators.edgetpu.compiler")
    compiler.compile_edgetpu = compile_edgetpu
    command = ModuleType("tfedge.accelerators.edgetpu.command")
    command.find_compiler = find_compiler
    preflight = ModuleType("tfedge.accelerators.edgetpu.preflight")
    preflight.preflight = lambda model: Foreseen(operators=OPERATORS)
    for part in (command, compiler, preflight):
        monkeypatch.setitem(sys.modules, part.__name__, part)
    return state


# ---------------------------------------------------------------------------- Ethos-U


def test_a_file_is_compiled_beside_the_model_and_described(model):
    code, output, errors = run(model, "--target", "ethos-u55-128")
    assert code == 0, errors
    out = model.with_name("net_ethos-u55-128.tflite")
    assert inspect_model(out).custom_operators == ("ethos-u",)
    count = len(inspect_model(model).operators)
    assert f"{count} of {count}" in output and "Ethos_U55_High_End_Embedded" in output
    assert "estimated cycles" in output and "estimated latency ms" in output
    assert "DEPTHWISE_CONV_2D" in output
    assert "nobody measured them" in output.replace("\n", " ")
    assert "compiling for ethos-u55-128" in errors


def test_json_is_the_record_and_nothing_else(model):
    code, output, _ = run(model, "--target", "ethos-u55-128", "--json", "-o", model.parent / "o")
    assert code == 0
    made = compile_model(model, target="ethos-u55-128").to_dict()
    printed = json.loads(output)
    for record in (made, printed):
        del record["seconds"], record["path"]
    assert printed == made


def test_options_reach_vela(model):
    code, output, _ = run(
        *(model, "--target", "ethos-u85-256", "--json"),
        *("--system-config", "Ethos_U85_SYS_Flash_High", "--memory-mode", "Shared_Sram"),
    )
    settings = json.loads(output)["settings"]
    assert code == 0 and settings["system_config"] == "Ethos_U85_SYS_Flash_High"
    assert settings["memory_mode"] == "Shared_Sram"


def test_what_stood_at_the_output_is_replaced_whole(model):
    out = model.with_name("out.tflite")
    out.write_bytes(b"x" * 1_000_000)
    code, _, _ = run(model, "--target", "ethos-u55-128", "-o", out)
    assert code == 0 and inspect_model(out).size_bytes == out.stat().st_size < 1_000_000
    assert sorted(p.name for p in model.parent.iterdir()) == ["net.tflite", "out.tflite"]


def test_the_model_is_never_written_over(model, int8_file):
    link = model.with_name("link.tflite")
    link.symlink_to(model)
    for out in (model, link):
        code, _, errors = run(model, "--target", "ethos-u55-128", "-o", out)
        assert code == 2 and "must not take the place of the model" in errors
    assert model.read_bytes() == int8_file


def test_a_float_model_is_an_error_that_says_so_and_no_file(float_model):
    code, output, errors = run(float_model, "--target", "ethos-u65-256")
    assert (code, output) == (1, "")
    assert "it is a float model" in errors and "--mode int8" in errors
    assert [path.name for path in float_model.parent.iterdir()] == ["float.tflite"]


def _text(model):
    model.write_text("This is no model at all, only a text.")


def _half(model):
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])


def _flipped(model):
    data = bytearray(model.read_bytes())
    data[0] ^= 0xFF
    model.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_text, "has the identifier b'TFL3'"),
        (_half, "damaged"),
        (_flipped, "damaged"),
        (lambda model: model.write_bytes(b""), "at least 16 bytes"),
    ],
)
@pytest.mark.parametrize("options", [("--target", "ethos-u55-128"), ("--all-targets",)])
def test_a_file_that_is_not_sound_is_refused(damage, match, options, model):
    damage(model)
    code, output, errors = run(model, *options)
    assert (code, output) == (1, "") and match in errors
    assert [path.name for path in model.parent.iterdir()] == ["net.tflite"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((), "Give `--target`, one of ['edgetpu', 'ethos-u55-32'"),
        (("--target", "ethos-u55-12"), "Did you mean 'ethos-u55-128'?"),
        (("--target", "gpu"), "tfedge benchmark MODEL --delegate gpu"),
        (("--target", "ethos-u55-128", "--segments", 2), "Received: --segments"),
        (("--target", "ethos-u55-128", "--compiler", "x"), "Received: --compiler"),
        (("--target", "edgetpu", "--memory-mode", "x"), "Received: --memory-mode"),
        (("--target", "edgetpu", "--vela-config", "x.ini"), "Received: --vela-config"),
        (("--target", "ethos-u55-128", "--preflight"), "belongs to `--target edgetpu` alone"),
        (("--target", "edgetpu", "--preflight", "-o", "x"), "Received: --output"),
        (("--target", "edgetpu", "--preflight", "--segments", 2), "Received: --segments"),
        (("--all-targets", "--target", "edgetpu"), "Received: --target"),
        (("--all-targets", "-o", "x", "--timeout", 5), "Received: --timeout, --output"),
        (("--target", "ethos-u55-128", "--timeout", 0), "--timeout"),
        (("--target", "ethos-u55-128", "--memory-mode", "None"), "must be a section `Memory_Mode"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_would_be_right(arguments, match, model):
    code, output, errors = run(model, *arguments)
    assert (code, output) == (2, "") and match in errors
    assert [path.name for path in model.parent.iterdir()] == ["net.tflite"]


def test_a_missing_file_is_wrong_usage(tmp_path):
    code, _, errors = run(tmp_path / "none.tflite", "--target", "ethos-u55-128")
    assert code == 2 and "does not exist" in errors


def test_an_output_that_cannot_be_written_loses_nothing(model):
    (model.parent / "file").write_text("kept")
    for out in (model.parent, model.parent / "file" / "out.tflite"):
        code, _, errors = run(model, "--target", "ethos-u55-128", "-o", out)
        assert code == 1 and "Could not write" in errors
    assert (model.parent / "file").read_text() == "kept"


def test_without_vela_the_command_says_how_to_install_it(model):
    code = (
        "import importlib.metadata as metadata, sys\n"
        "version = metadata.version\n"
        "def without_vela(name):\n"
        "    if name == 'ethos-u-vela':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "metadata.version = without_vela\n"
        "from tfedge.cli import main\n"
        "sys.exit(main(['compile', sys.argv[1], '--target', 'ethos-u55-128']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert 'Run `pip install "tfedge[ethosu]"`.' in done.stderr
    assert [path.name for path in model.parent.iterdir()] == ["net.tflite"]


def test_the_command_works_in_a_process_of_its_own_and_ends_with_0(model):
    done = subprocess.run(
        [sys.executable, "-m", "tfedge", "compile", "net.tflite", "--target", "ethos-u55-32"],
        cwd=model.parent,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(model.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (model.parent / "net_ethos-u55-32.tflite").is_file()


# ---------------------------------------------------------------------------- Edge TPU


def test_without_a_compiler_the_preflight_is_shown_then_how_to_get_it_and_no_file(model, edgetpu):
    code, output, errors = run(model, "--target", "edgetpu")
    assert code == 1 and NO_COMPILER in errors
    assert "2 of 3 operators would run on the Edge TPU." in output
    assert "SIN" in output and "It is not supported." in output and "not known" in output
    assert [path.name for path in model.parent.iterdir()] == ["net.tflite"]


@pytest.mark.parametrize("options", [("--preflight", "--json"), ("--json",)])
def test_the_preflight_in_json_is_its_record_and_nothing_else(options, model, edgetpu):
    code, output, _ = run(model, "--target", "edgetpu", *options)
    assert code == (0 if "--preflight" in options else 1)
    assert json.loads(output) == Foreseen(operators=OPERATORS).to_dict()


def test_the_preflight_alone_needs_no_compiler(model, edgetpu):
    code, output, errors = run(model, "--target", "edgetpu", "--preflight")
    assert code == 0 and "predicted" in output and NO_COMPILER not in errors


def test_with_a_compiler_its_options_reach_it_and_its_result_is_shown(model, edgetpu, tmp_path):
    edgetpu.compiler = True
    code, output, errors = run(
        *(model, "--target", "edgetpu", "--min-runtime-version", 13, "--segments", 2),
        *("--timeout", 30, "--container", "image", "--together-with", model),
    )
    assert code == 0, errors
    assert edgetpu.options == {
        "min_runtime_version": 13,
        "segments": 2,
        "together_with": (model,),
        "timeout_s": 30.0,
        "container": "image",
    }
    assert "1 of 3" in output and "One operator stays on the CPU." in output
    assert "2.0 KiB" in output
    assert (tmp_path / "net_edgetpu.tflite").read_bytes() == b"compiled"


def test_content_in_place_of_a_path_is_compiled_for_the_edge_tpu_too(int8_file, edgetpu, tmp_path):
    edgetpu.compiler = True
    assert compile_model(int8_file, target="edgetpu").path is None
    assert edgetpu.seen == int8_file
    made = compile_model(int8_file, target="edgetpu", out=tmp_path / "out.tflite")
    assert made.path == str(tmp_path / "out.tflite")


# ---------------------------------------------------------------------------- from Python


def test_compile_model_writes_beside_the_model_and_keeps_no_file_of_content(model, int8_file):
    made = compile_model(model, target="ethos-u55-256")
    assert made.path == str(model.with_name("net_ethos-u55-256.tflite"))
    assert Path(made.path).stat().st_size == made.size_bytes
    of_content = compile_model(int8_file, target="ethos-u55-256")
    assert of_content.path is None and of_content.size_bytes == made.size_bytes


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"target": "edge_tpu"}, "Did you mean 'edgetpu'"),
        ({"target": "xnnpack"}, "runs `.tflite` files as they are"),
        ({"target": "ethos-u55-128", "segments": 2}, "Received: `segments`"),
        ({"target": "edgetpu", "system_config": "x"}, "Received: `system_config`"),
    ],
)
def test_targets_and_options_that_do_not_fit_are_refused(kwargs, match, model):
    with pytest.raises(SettingsError, match=match):
        compile_model(model, **kwargs)


def test_every_target_says_what_it_is_and_takes_options_of_compile_model():
    import inspect

    parameters = set(inspect.signature(compile_model).parameters) - {"model", "target", "out"}
    taken = {option for target in TARGETS.values() for option in target.options}
    assert taken == parameters
    assert all(target.device and target.compiler for target in TARGETS.values())


# ---------------------------------------------------------------------------- every target


def test_one_table_shows_every_target_with_measured_and_estimated_latency_apart(model, edgetpu):
    report = try_all(model)
    rows = {row.target: row for row in report.rows}
    count = len(inspect_model(model).operators)
    assert tuple(rows) == DEFAULT
    for target in ("none", "xnnpack"):
        assert rows[target].outcome == "runs" and rows[target].latency_kind == "measured"
        assert rows[target].latency_ms > 0 and rows[target].operators == count
        assert rows[target].size_bytes == model.stat().st_size
    with open_model(model, delegate="xnnpack") as opened:
        assert rows["xnnpack"].mapped == opened.nodes_delegated
    assert rows["none"].mapped == count and rows["none"].reason == ""
    left = count - rows["xnnpack"].mapped
    assert rows["xnnpack"].reason == (
        f"LiteRT's own kernels run {left} of {count} operators." if left else ""
    )
    for target in ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256"):
        alone = compile_model(model.read_bytes(), target=target)
        assert rows[target].outcome == "compiles" and rows[target].latency_kind == "estimated"
        assert rows[target].latency_ms == alone.estimates["latency_ms"]
        assert rows[target].size_bytes == alone.size_bytes and rows[target].mapped == count
        assert alone.settings["system_config"] in rows[target].device
    foreseen = rows["edgetpu"]
    assert (foreseen.outcome, foreseen.mapped, foreseen.latency_ms) == ("predicted", 1, None)
    assert NO_COMPILER in foreseen.reason and "SIN: It is not supported." in foreseen.reason
    assert rows["gpu"].outcome in ("runs", "fails")
    assert (rows["gpu"].latency_ms is None) == (rows["gpu"].outcome == "fails")
    assert [path.name for path in model.parent.iterdir()] == ["net.tflite"]


def test_a_float_model_fails_on_the_npus_with_the_reason_and_runs_elsewhere(float_model, edgetpu):
    edgetpu.compiler = True
    rows = {r.target: r for r in try_all(float_model, targets=DEFAULT[:2] + DEFAULT[3:5]).rows}
    assert rows["xnnpack"].outcome == "runs"
    assert rows["edgetpu"].outcome == "compiles" and rows["edgetpu"].latency_ms is None
    failed = rows["ethos-u55-128"]
    assert failed.outcome == "fails" and "it is a float model" in failed.reason
    assert failed.latency_ms is failed.size_bytes is failed.mapped is None


def test_a_target_that_fails_does_not_stop_the_others(int8_file, edgetpu, monkeypatch):
    real = module.benchmark

    def benchmark(models, *, delegates, **settings) -> BenchmarkReport:
        if "xnnpack" in delegates:
            raise DelegateError("XNNPACK is out of order.")
        return real(models, delegates=delegates, **settings)

    def compile_ethosu(data, *, target):
        raise CompilationError(f"Vela does not like {target}.")

    monkeypatch.setattr(module, "benchmark", benchmark)
    monkeypatch.setattr(module, "compile_ethosu", compile_ethosu)
    rows = try_all(int8_file, targets=("ethos-u55-128", "xnnpack", "none", "edgetpu")).rows
    assert [row.outcome for row in rows] == ["fails", "fails", "runs", "predicted"]
    assert rows[0].reason == "Vela does not like ethos-u55-128."
    assert rows[1].reason == "XNNPACK is out of order." and rows[1].latency_ms is None


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        (("edgetpus",), "Did you mean 'edgetpu'"),
        ("none", "is a sequence of targets"),
        ((), "is a sequence of targets"),
    ],
)
def test_targets_must_be_known(targets, match, int8_file):
    with pytest.raises(SettingsError, match=match):
        try_all(int8_file, targets=targets)
    with pytest.raises(FileFormatError):
        try_all(np.zeros(40, np.uint8).tobytes(), targets=("none",))


def test_the_command_prints_the_table_and_its_json(model, edgetpu, monkeypatch):
    code, output, errors = run(model, "--all-targets")
    assert code == 0, errors
    for target in DEFAULT:
        assert target in output
    assert "measured" in output and "estimated" in output and "predicted" in output
    assert f"edgetpu: SIN: It is not supported. TILE: Not seen yet. {NO_COMPILER}" in output
    assert "Latency on none, xnnpack: CPU of this machine" in output

    def compile_ethosu(data, *, target):
        raise CompilationError(f"Vela does not like {target}.")

    monkeypatch.setattr(module, "compile_ethosu", compile_ethosu)
    code, output, errors = run(model, "--all-targets", "--json")
    assert code == 0 and errors == ""
    assert [row["target"] for row in json.loads(output)["rows"]] == list(DEFAULT)
