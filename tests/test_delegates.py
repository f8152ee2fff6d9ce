"""A delegate from a library takes operators and says so, or an error says why it does not."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import unavailable

from tfedge.errors import DelegateError, SettingsError
from tfedge.runtime import load_delegate, open_model
from tfedge.runtime.preflight import preflight

SOURCE = Path(__file__).parent / "delegate.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """The delegate of `delegate.c`, compiled."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        unavailable("gcc", "there is no C compiler")
    built = tmp_path_factory.mktemp("delegate") / "libtest_delegate.so"
    command = [compiler, "-shared", "-fPIC", "-O1", SOURCE, "-o", built, "-lm"]
    subprocess.run(command, check=True, capture_output=True)
    return built


@pytest.fixture(scope="module")
def chain(build_file) -> bytes:
    """LOGISTIC, TANH, LOGISTIC."""
    rows = [{"name": name, "shape": (1, 5)} for name in "xyzw"]
    kinds = ("LOGISTIC", "TANH", "LOGISTIC")
    return build_file(rows, [(kind, (i,), (i + 1,)) for i, kind in enumerate(kinds)])


def test_a_delegate_that_takes_operators_computes_and_is_counted(library, chain):
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    mine = load_delegate(library, {"mode": "logistic"})
    with open_model(chain, delegate=mine) as model, open_model(chain, delegate="none") as plain:
        assert (model.requested, model.actual) == ("test_delegate", "test_delegate")
        assert (model.nodes_delegated, model.nodes_total, model.adapter) == (2, 3, None)
        np.testing.assert_allclose(model.predict(x), plain.predict(x), atol=1e-6)


def test_a_delegate_that_takes_nothing_is_an_error(library, chain):
    mine = load_delegate(library, {"mode": "nothing"}, name="mine")
    with pytest.raises(DelegateError, match=r"'mine' took none of .* \(LOGISTIC, TANH\).*'none'"):
        open_model(chain, delegate=mine)


def test_a_delegate_that_does_not_start_is_an_error_with_its_words(library):
    with pytest.raises(DelegateError, match=r"did not start on .*the device is on fire"):
        load_delegate(library, {"mode": "fails"})


def test_a_library_that_is_absent_is_an_error_with_the_linkers_words(tmp_path):
    with pytest.raises(DelegateError, match=r"library that loads.*libnowhere.*No such file"):
        load_delegate(tmp_path / "libnowhere.so")


def test_a_library_of_something_else_is_an_error(tmp_path, library):
    other = tmp_path / "libother.so"
    code = tmp_path / "other.c"
    code.write_text("int other(void) { return 1; }\n")
    compiler = shutil.which("gcc") or shutil.which("cc")
    subprocess.run([compiler, "-shared", "-fPIC", code, "-o", other], check=True)
    with pytest.raises(DelegateError, match="tflite_plugin_create_delegate"):
        load_delegate(other)
    text = tmp_path / "libtext.so"
    text.write_text("not a library")
    with pytest.raises(DelegateError, match=r"library that loads.*libtext"):
        load_delegate(text)


def test_the_settings_of_the_gpu_are_refused_for_others(library, chain):
    mine = load_delegate(library, {"mode": "logistic"})
    with pytest.raises(SettingsError, match="settings of `delegate='gpu'`"):
        open_model(chain, delegate=mine, precision="fp16")
    with pytest.raises(SettingsError, match="needs `delegate='none'`"):
        open_model(chain, delegate=mine, keep_tensors=True)


# ------------------------------------------------------------------- the Edge TPU's delegate


def test_the_edge_tpu_refuses_a_file_that_was_not_compiled_for_it(int8_file, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(int8_file)
    match = r"'edgetpu-custom-op'.*CONV_2D.*`tfedge compile .*model.tflite --target edgetpu`"
    with pytest.raises(DelegateError, match=match):
        open_model(path, delegate="edgetpu")


def test_a_file_for_the_edge_tpu_goes_to_its_delegate(shared_file, library, monkeypatch):
    path = shared_file("mobilenet_v1_0.25_128_quant_edgetpu.tflite")
    asked = []

    def load():
        asked.append("edgetpu")
        return load_delegate(library, {"mode": "nothing"}).handle

    monkeypatch.setattr("tfedge.runtime.edgetpu.load_edgetpu_delegate", load)
    match = r"delegate took nothing of .*'edgetpu-custom-op' is left.*`tfedge doctor edgetpu`"
    with pytest.raises(DelegateError, match=match):  # this stand-in takes nothing
        open_model(path, delegate="edgetpu")
    assert asked == ["edgetpu"]


# ------------------------------------------------------------------------ what XNNPACK takes


def test_the_preflight_of_xnnpack_says_which_operators_it_leaves(int8_file, build_file):
    found = preflight(int8_file, delegate="xnnpack")
    left = [row.name for row in found.operators if not row.taken]
    with open_model(int8_file) as model:
        assert len(left) == model.nodes_total - model.nodes_delegated
    assert left == ["SOFTMAX"] and found.runs and "nodes" in found.found_by
    rows = [{"name": name, "shape": (1, 3)} for name in "xy"]
    found = preflight(build_file(rows, [("ZEROS_LIKE", (0,), (1,))]), delegate="xnnpack")
    assert not found.runs and "took none" in found.error
    assert [(row.name, row.taken) for row in found.operators] == [("ZEROS_LIKE", False)]
    with pytest.raises(SettingsError, match="Did you mean 'gpu'"):
        preflight(int8_file, delegate="gpus")


# --------------------------------------------------------------------------- several threads


def run_in_threads(models, samples, runs=150):
    """Each thread runs its model on its own sample again and again; all results, by thread."""
    results = [[] for _ in models]
    gate = threading.Barrier(len(models))

    def work(place):
        gate.wait()
        for _ in range(runs):
            results[place].append(models[place].predict(samples[place]))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def check_threads(data, **settings):
    samples = np.random.default_rng(1).random((2, 1, 8, 8, 3), np.float32)
    with open_model(data, **settings) as one, open_model(data, **settings) as two:
        expected = [one.predict(sample) for sample in samples]
        assert np.abs(expected[0] - expected[1]).max() > 1e-4  # a mix-up would show
        for models in ((one, two), (one, one)):
            for results, right in zip(run_in_threads(models, samples), expected, strict=True):
                assert len(results) == 150
                assert all(np.array_equal(result, right) for result in results)


@pytest.mark.parametrize("delegate", ["none", "xnnpack"])
def test_two_threads_get_their_own_results_from_models_of_their_own_and_from_one(
    float_file, delegate
):
    check_threads(float_file, delegate=delegate)


def test_closing_waits_for_the_run_under_way(float_file):
    sample = np.zeros((400, 8, 8, 3), np.float32)
    model, endings = open_model(float_file), []

    def work():
        try:
            while True:
                model.predict(sample)
        except DelegateError as error:
            endings.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    model.close()
    thread.join(30)
    assert not thread.is_alive() and "is closed" in endings[0]


# ------------------------------------------------------------------------- the older runtime

OLD = """
import sys
from pathlib import Path
from tfedge.errors import DelegateError
from tfedge.runtime import open_model
data = Path(sys.argv[1]).read_bytes()
with open_model(data, delegate="none") as model:
    print(model.runtime, model.nodes_delegated)
for delegate in ("xnnpack", "gpu"):
    try:
        open_model(data, delegate=delegate)
    except DelegateError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime has no wheel for it")
def test_tflite_runtime_says_that_its_xnnpack_takes_no_int8_model(int8_file, tmp_path):
    packages, path = tmp_path / "packages", tmp_path / "model.tflite"
    path.write_bytes(int8_file)
    wanted = ["tflite-runtime==2.14.0", "numpy<2", "flatbuffers", "click", "rich"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", packages, *wanted]
    subprocess.run(install, check=True, capture_output=True)
    (packages / "ai_edge_litert").mkdir()  # hides the one of this environment
    (packages / "ai_edge_litert" / "__init__.py").write_text("raise ImportError('hidden')\n")
    done = subprocess.run(
        [sys.executable, "-c", OLD, path],
        env={"PYTHONPATH": f"{packages}:{SOURCE.parents[1]}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    runs, xnnpack, gpu = done.stdout.splitlines()
    assert runs == "tflite-runtime 2.14.0 0"
    assert "XNNPACK took none of the operators" in xnnpack and "float models only" in xnnpack
    assert "which tflite-runtime 2.14.0 does not offer" in gpu
