import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from click.testing import CliRunner

from tfedge.cli import cli, main
from tfedge.cli.convert import run_snippet
from tfedge.cli.demo import build_network
from tfedge.cli.doctor import PACKAGES
from tfedge.errors import FileWriteError, TfedgeWarning
from tfedge.files import check_writable, write_whole
from tfedge.runtime import TensorInfo

ROOT = Path(__file__).parent.parent


def run(*arguments):
    """Exit code, stdout and stderr of one command, in this process."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def succeed(*arguments):
    code, output, errors = run(*arguments)
    assert code == 0, errors
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a trained model, its data, and what `tfedge convert` makes of them."""
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 240)
    x = random.normal(0, 0.2, (240, 8, 8, 1)).astype(np.float32)
    for row, label in enumerate(y):
        x[row, 2 * label : 2 * label + 3] += 1.0
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(8, 3, activation="relu", name="conv"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(3, activation="softmax", name="classes"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=4, verbose=0)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=x, y=y)
    np.save(folder / "inputs.npy", x)
    for mode in ("float32", "int8"):
        succeed(
            "convert", folder / "model.keras", "--mode", mode, "--calibration",
            folder / "inputs.npy", "-o", folder / f"{mode}.tflite",
        )  # fmt: skip
    return folder


def test_convert_says_what_it_made_and_how_to_run_it(folder, tmp_path):
    target = tmp_path / "out.tflite"
    output = succeed(
        "convert", folder / "model.keras", "--calibration", folder / "data.npz", "-o", target
    )
    assert "int8" in output and "of them in float" in output
    assert "Argmax agreement" in output
    snippet = output[output.index("import numpy") :]
    assert len(snippet.strip().splitlines()) == 6
    assert target.stat().st_size > 0


def test_the_snippet_runs_as_it_is_printed(folder):
    output = succeed(
        "convert", folder / "model.keras", "--mode", "float32", "-o", folder / "s.tflite"
    )
    snippet = output[output.index("import numpy") :]
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[[")


def test_the_snippet_names_a_delegate_that_takes_the_file(folder, capsys):
    target = folder / "wide.tflite"
    output = succeed(
        "convert", folder / "model.keras", "--mode", "int16x8", "--calibration",
        folder / "inputs.npy", "-o", target,
    )  # fmt: skip
    snippet = output[output.index("import numpy") :]
    assert "delegate='none'" in snippet and len(snippet.strip().splitlines()) == 6
    exec(snippet, {})
    assert capsys.readouterr().out.startswith("[[")


def test_the_snippet_gives_every_input_by_name_and_type():
    inputs = [
        TensorInfo(index=0, name="long/a", signature_name="a", shape=(1, 4), dtype="int8", scale=1),
        TensorInfo(index=1, name="b;fused", shape=(1, 2), dtype="int32"),
    ]
    snippet = run_snippet(Path("m.tflite"), inputs)
    assert "{'a': np.zeros((1, 4), np.float32), 'b': np.zeros((1, 2), np.int32)}" in snippet


def test_a_model_of_two_inputs_is_converted_and_verified_by_their_names(tmp_path):
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    late, early = keras.Input((4,), name="z"), keras.Input((6,), name="a")
    joined = keras.layers.Concatenate()([late, early])
    keras.Model([late, early], keras.layers.Dense(2)(joined)).save(tmp_path / "two.keras")
    arrays = {"a": random.normal(size=(40, 6)), "z": random.normal(size=(40, 4))}
    np.savez(tmp_path / "two.npz", **{name: part.astype("f") for name, part in arrays.items()})
    succeed("convert", tmp_path / "two.keras", "--calibration", tmp_path / "two.npz")
    output = succeed(
        "verify", tmp_path / "two.keras", tmp_path / "two_int8.tflite", "--data",
        tmp_path / "two.npz", "--json",
    )  # fmt: skip
    assert json.loads(output)["sqnr_db"] > 20


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """A folder with a model of one quantity, its float file, and data."""
    folder = tmp_path_factory.mktemp("regression")
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)]).save(folder / "model.keras")
    np.savez(folder / "data.npz", x=x, y=3 * x.sum(axis=1, keepdims=True))
    succeed("convert", folder / "model.keras", "--mode", "float32", "-o", folder / "out.tflite")
    return folder


def test_verify_judges_quantities_by_their_error(regression):
    arguments = regression / "model.keras", regression / "out.tflite"
    output = succeed("verify", *arguments, "--data", regression / "data.npz", "--json")
    report = json.loads(output)
    assert report["metric"] == "mean_absolute_error" and report["reference_metric"] > 1
    code, _, errors = run(
        "verify", *arguments, "--data", regression / "data.npz", "--min-agreement", "0.9"
    )
    assert code == 1 and "outputs without classes" in errors


def test_verify_judges_all_samples_of_a_plain_file(folder):
    output = succeed(
        "verify", folder / "float32.tflite", folder / "int8.tflite", "--data",
        folder / "data.npz", "--json",
    )  # fmt: skip
    assert json.loads(output)["samples"] == 240


def test_an_agreement_that_proves_nothing_is_not_enough(folder, tmp_path):
    np.save(tmp_path / "same.npy", np.ones((20, 8, 8, 1), np.float32))
    code, _, errors = run(
        "verify", folder / "float32.tflite", folder / "int8.tflite", "--data",
        tmp_path / "same.npy", "--min-agreement", "0.9",
    )  # fmt: skip
    assert code == 1 and "proves nothing" in errors


def test_calibration_unlike_the_training_data_of_the_same_file_is_told(folder, tmp_path):
    x = np.load(folder / "inputs.npy")
    np.savez(tmp_path / "both.npz", x_train=x, x_calibration=255 * x)
    with pytest.warns(TfedgeWarning, match=r"Calibration data .* range over \[.*training data"):
        succeed(
            "convert", folder / "model.keras", "--calibration", tmp_path / "both.npz", "-o",
            tmp_path / "out.tflite",
        )  # fmt: skip


def test_names_may_hold_spaces_and_any_letters(folder, tmp_path):
    model = tmp_path / "ein Ordner" / "模型 é.keras"
    model.parent.mkdir()
    model.write_bytes((folder / "model.keras").read_bytes())
    succeed("convert", model, "--mode", "float32")
    report = json.loads(succeed("inspect", model.parent / "模型 é_float32.tflite", "--json"))
    assert report["path"].endswith("模型 é_float32.tflite")


def test_convert_without_an_output_writes_beside_the_model(folder, tmp_path):
    model = tmp_path / "copy.keras"
    model.write_bytes((folder / "model.keras").read_bytes())
    succeed("convert", model, "--mode", "dynamic_int8")
    assert (tmp_path / "copy_dynamic_int8.tflite").is_file()


def test_every_command_has_json_and_prints_nothing_else(folder):
    int8, data = folder / "int8.tflite", folder / "data.npz"
    commands = (
        ("convert", folder / "model.keras", "--mode", "float16", "-o", folder / "j.tflite"),
        ("inspect", int8),
        ("verify", folder / "model.keras", int8, "--data", data),
        ("benchmark", int8, "--runs", "5"),
        ("doctor",),
    )
    found = {command[0]: json.loads(succeed(*command, "--json")) for command in commands}
    assert found["convert"]["mode"] == "float16"
    assert found["inspect"]["is_integer"] is True
    assert found["verify"]["agreement"] >= 0.9 and found["verify"]["metric"] == "accuracy"
    assert found["benchmark"]["rows"][0]["p50_ms"] > 0
    assert {row["name"] for row in found["doctor"]["checks"]} >= set(PACKAGES)


def test_inspect_shows_operators_weights_and_types(folder):
    output = succeed("inspect", folder / "int8.tflite", "--operators")
    assert "CONV_2D" in output and "integer only" in output and "zeros" in output
    assert "compute in float" in succeed("inspect", folder / "float32.tflite")


def test_verify_compares_model_and_file_and_two_files(folder):
    output = succeed(
        "verify", folder / "model.keras", folder / "int8.tflite", "--data", folder / "data.npz"
    )
    assert "Argmax agreement" in output and "Accuracy" in output
    output = succeed(
        "verify", folder / "float32.tflite", folder / "int8.tflite", "--data",
        folder / "inputs.npy", "--min-agreement", "0.9",
    )  # fmt: skip
    assert "Inner tensors" in output


def test_verify_fails_below_the_agreement_asked_for(folder, tmp_path):
    other = keras.models.load_model(folder / "model.keras")
    other.get_layer("classes").set_weights(
        [np.flip(weight, axis=-1) for weight in other.get_layer("classes").get_weights()]
    )
    other.save(tmp_path / "other.keras")
    code, output, errors = run(
        "verify", tmp_path / "other.keras", folder / "int8.tflite", "--data",
        folder / "data.npz", "--min-agreement", "0.95",
    )  # fmt: skip
    assert code == 1 and "must be at least 95.00%" in errors


def test_benchmark_shows_files_side_by_side(folder):
    output = succeed(
        "benchmark", folder / "float32.tflite", folder / "int8.tflite",
        "--delegate", "none,xnnpack", "--runs", "5",
    )  # fmt: skip
    assert "p50 ms" in output and "on this host" in output


def test_doctor_names_the_fix_for_what_is_missing(monkeypatch):
    monkeypatch.setitem(PACKAGES, "no-such-package", ("no_such_package", "train", "nothing"))
    output = succeed("doctor")
    assert 'no-such-package: Run `pip install "tfedge[train]"`.' in output


def test_the_demo_network_has_the_size_that_is_promised():
    network = build_network()
    assert sum(int(np.prod(v.shape)) for v in network.trainable_variables) == 45_290
    assert network.output_shape == (None, 10)


def broken_inputs(folder, tmp_path):
    """Bad files by name."""
    (tmp_path / "truncated.keras").write_bytes((folder / "model.keras").read_bytes()[:2000])
    (tmp_path / "random.tflite").write_bytes(np.random.default_rng(0).bytes(4096))
    (tmp_path / "random.keras").write_bytes(np.random.default_rng(1).bytes(4096))
    cut = (folder / "int8.tflite").read_bytes()
    (tmp_path / "cut.tflite").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "wrong_shape.npy", np.zeros((20, 5, 5, 1), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}, {}], object), allow_pickle=True)
    model = keras.models.load_model(folder / "model.keras")
    conv = model.get_layer("conv")
    conv.set_weights([np.full_like(weight, np.nan) for weight in conv.get_weights()])
    model.save(tmp_path / "nan.keras")
    model.save_weights(tmp_path / "only.weights.h5")
    write_lambda_payload(tmp_path / "lambda.h5", tmp_path / "payload-ran")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("readme.txt", "nothing")


def write_lambda_payload(path, touched):
    """An `.h5` whose Lambda layer would create a file when it is loaded or called."""
    import tf_keras

    code = f"lambda x: (open({str(touched)!r}, 'w').close(), x)[1]"
    model = tf_keras.Sequential(
        [tf_keras.layers.Input((4,)), tf_keras.layers.Lambda(eval(code)), tf_keras.layers.Dense(2)]
    )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
    touched.unlink(missing_ok=True)
    with h5py.File(path) as file:
        assert "Lambda" in file.attrs["model_config"]


BAD = (
    # arguments, exit code, what the line says
    (("convert", "missing.keras"), 2, "does not exist"),
    (("convert", "truncated.keras", "--mode", "float32"), 1, "truncated.keras"),
    (("convert", "random.keras", "--mode", "float32"), 1, "random.keras"),
    (("convert", "empty.keras", "--mode", "float32"), 1, "empty.keras"),
    (("convert", "lambda.h5", "--mode", "float32"), 1, "unsafe"),
    (("convert", "only.weights.h5", "--mode", "float32"), 1, "weights"),
    (("convert", "nan.keras", "--mode", "float32"), 1, "conv"),
    (("convert", "good.keras"), 1, "calibration"),
    (("convert", "good.keras", "--calibration", "wrong_shape.npy"), 1, "(20, 5, 5, 1)"),
    (("convert", "good.keras", "--calibration", "empty.npz"), 1, "empty.npz"),
    (("convert", "good.keras", "--calibration", "objects.npy"), 1, "objects"),
    (("convert", "good.keras", "--calibration", "digitz"), 1, "Did you mean 'digits'"),
    (("convert", "good.keras", "--mode", "int9"), 2, "int9"),
    (("convert", "good.keras", "--mode", "float32", "-o", "out.keras"), 2, ".tflite"),
    (("convert", "good.keras", "--mode", "float32", "--input-type", "uint8"), 2, "input_type"),
    (("convert", "good.keras", "--mode", "float32", "--import", "no_such"), 1, "no_such"),
    (("inspect", "missing.tflite"), 2, "does not exist"),
    (("inspect", "random.tflite"), 1, "TFL3"),
    (("inspect", "cut.tflite"), 1, "damaged"),
    (("inspect", "good.keras"), 1, "tfedge convert"),
    (("benchmark", "random.tflite"), 1, "TFL3"),
    (("benchmark", "good.tflite", "--precision", "fp16"), 2, "settings of the delegate 'gpu'"),
    (("benchmark", "good.tflite", "--delegate", "gpu", "--precision", "8"), 2, "`precision` must"),
    (("benchmark", "good.tflite", "--delegate", "xnpack"), 2, "Did you mean 'xnnpack'"),
    (("benchmark", "good.tflite", "--threads", "two"), 2, "expected numbers"),
    (("benchmark",), 2, "Missing argument"),
    (("verify", "good.keras", "good.tflite", "--data", "wrong_shape.npy"), 1, "(20, 5, 5, 1)"),
    (("verify", "good.keras", "random.tflite", "--data", "digits"), 1, "TFL3"),
    (("verify", "good.keras", "good.tflite"), 2, "--data"),
    (("verify", "good.keras", "good.tflite", "--data", "digits", "--seed", "-1"), 2, "range"),
    (("verify", "nan.keras", "good.tflite", "--data", "digits"), 1, "Weights must be finite"),
    (("verify", "lambda.h5", "good.tflite", "--data", "digits"), 1, "unsafe"),
    (("verify", "good.keras", "good.tflite", "--data", "objects.npy"), 1, "objects"),
    (("verify", "good.keras", "good.tflite", "--data", "digits"), 1, "from 0 to 2"),
    (("convert", "good.keras", "--calibration", ""), 1, "There is no data set"),
    (("convert", "good.keras", "--calibration", "keras:Sequential"), 1, "must return arrays"),
    (("convert", "good.keras", "-o", "good.keras/out.tflite"), 1, "is a file, not a folder"),
    (("convert", "good.keras", "-o", "/proc/out.tflite"), 1, "Choose another place"),
    (("convert", "good.keras", "-o", "n" * 300 + ".tflite"), 1, "too long"),
    (("convert", "good.tflite", "-o", "good.tflite"), 2, "another file than the model"),
    (("demo", "--output", "good.keras/run"), 1, "is a file, not a folder"),
    (("demo", "--seed", "-1"), 2, "range"),
    (("benchmark", "good.tflite", "--threads", "0"), 2, "at least 1"),
    (("benchmark", "good.tflite", "--delegate", ","), 2, "delegates"),
    (("nothing",), 2, "No such command"),
    (("convrt",), 2, "Did you mean 'convert'"),
    (("--nothing",), 2, "No such option"),
)


@pytest.fixture
def bad_folder(folder, tmp_path, monkeypatch):
    broken_inputs(folder, tmp_path)
    (tmp_path / "good.keras").write_bytes((folder / "model.keras").read_bytes())
    (tmp_path / "good.tflite").write_bytes((folder / "int8.tflite").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_bad_input_is_one_clear_line_and_writes_nothing(bad_folder):
    before = sorted(bad_folder.rglob("*"))
    for arguments, expected, words in BAD:
        code, output, errors = run(*arguments)
        said = [line for line in errors.splitlines() if not line.startswith(("[", "tfedge: `"))]
        assert code == expected, (arguments, code, errors)
        assert len(said) == 1 and words in said[0], (arguments, errors)
        assert said[0].startswith("tfedge: error: "), arguments
        assert "Traceback" not in errors + output
        assert sorted(bad_folder.rglob("*")) == before, arguments
    assert not (bad_folder / "payload-ran").exists()


def test_a_full_disk_leaves_what_was_there(bad_folder):
    target = bad_folder / "out.tflite"
    target.write_bytes(b"before")
    command = [
        sys.executable, "-m", "tfedge", "convert", "good.keras", "--mode", "float32",
        "-o", str(target),
    ]  # fmt: skip
    before = sorted(bad_folder.rglob("*"))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": "/dev/shm"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert done.returncode == 1, done.stderr
    assert "tfedge: error:" in done.stderr and "Traceback" not in done.stderr
    assert target.read_bytes() == b"before"
    assert sorted(bad_folder.rglob("*")) == before


def test_a_write_that_fails_leaves_no_folder_either(tmp_path, monkeypatch):
    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(FileWriteError, match="the disk is full"):
        write_whole(tmp_path / "new" / "folder" / "out.tflite", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_place_is_tried_without_leaving_anything(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "out.tflite")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileWriteError, match="it is a folder"):
        check_writable(tmp_path)


def tfedge_process(*arguments, **settings):
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tfedge", *map(str, arguments)],
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings.pop("env", {})},
        **settings,
    )


@pytest.mark.parametrize("closed", [(0, 1, 2), (1,), (2,)])
def test_closed_streams_are_no_failure(folder, closed):
    process = tfedge_process(
        "benchmark", folder / "int8.tflite", "--runs", "2",
        preexec_fn=lambda: [os.close(number) for number in closed],
    )  # fmt: skip
    assert process.wait(timeout=60) == 0


def test_a_reader_that_goes_away_is_no_error_message(folder):
    process = tfedge_process(
        "inspect", folder / "int8.tflite", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


def test_output_that_cannot_be_written_is_told(folder):
    with Path("/dev/full").open("w") as full:
        process = tfedge_process(
            "inspect", folder / "int8.tflite", stdout=full, stderr=subprocess.PIPE
        )
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert errors.startswith("tfedge: error: ") and "disk is full" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_cleans_up(folder, tmp_path, number):
    process = tfedge_process(
        "benchmark", folder / "int8.tflite", "--runs", "1000000000", "--seconds", "100",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    line = ""
    while "measuring" not in line:
        line = process.stderr.readline()
    time.sleep(0.2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and output == ""
    assert errors == "tfedge: error: Interrupted. No file was left half-written.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_is_shown_when_asked_for(bad_folder):
    with pytest.raises(Exception, match="TFL3"):
        run("inspect", "random.tflite", "--traceback")


def test_main_returns_the_exit_code_and_leaves_stderr_as_it_was(bad_folder, capfd):
    before = sys.stderr
    assert main(["inspect", "random.tflite"]) == 1
    assert main(["inspect", "good.tflite", "--json"]) == 0
    assert main(["convert"]) == 2
    assert sys.stderr is before
    os.write(2, b"still there\n")
    captured = capfd.readouterr()
    assert "tfedge: error:" in captured.err and "still there" in captured.err
    assert json.loads(captured.out)["is_integer"] is True


def test_python_m_tfedge_keeps_the_noise_of_tensorflow_away(folder):
    done = subprocess.run(
        [sys.executable, "-m", "tfedge", "convert", str(folder / "model.keras"), "--mode",
         "float32", "-o", str(folder / "quiet.tflite"), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")}
        | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0
    assert all(line.startswith("tfedge: ") for line in done.stderr.splitlines()), done.stderr
    assert json.loads(done.stdout)["path"].endswith("quiet.tflite")


@pytest.mark.slow
def test_the_demo_holds_its_claims(tmp_path):
    report = json.loads(succeed("demo", "--output", tmp_path, "--json"))
    assert all(report["claims"].values())
    for name in ("report.html", "recipe.yaml", "model_float32.tflite", "model_int8.tflite"):
        assert (tmp_path / name).is_file()
    assert json.loads((tmp_path / "report.json").read_text()) == report["run"]
