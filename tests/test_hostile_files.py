"""Damaged and hostile files end a command with one clear line: no crash, no hang, no traceback."""

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from cli_worker import Result, Worker, environment
from click.testing import CliRunner
from mutate import bomb, write_damaged

from tfedge.cli import cli
from tfedge.errors import ModelError, UnsafeModelError
from tfedge.models import load_model, save_model

LIMIT_SECONDS = 10.0
START_SECONDS = 30.0  # Python, NumPy, TensorFlow, on a busy machine
QUIET = ("[", "tfedge: `", "tfedge: warning: ")  # progress, what loaded a model, warnings


@dataclass(frozen=True)
class Case:
    """Damaged files of one kind through one command.

    Attributes:
        verb: The command.
        kind: Suffix of the files.
        arguments: Its arguments; `FILE` is the damaged file, `GOOD` the one it was made of.
        count: Files in the default run.
        count_all: Files in the long run.
    """

    verb: str
    kind: str
    arguments: tuple[str, ...]
    count: int
    count_all: int


CASES = (
    Case("inspect", ".tflite", ("FILE",), 100, 3000),
    Case("verify", ".tflite", ("GOOD", "FILE", "--data", "data.npz"), 100, 3000),
    Case("benchmark", ".tflite", ("FILE", "--runs", "2", "--seconds", "0.1"), 25, 500),
    Case("verify", ".keras", ("FILE", "float32.tflite", "--data", "data.npz"), 40, 1000),
    Case("verify", ".h5", ("FILE", "float32.tflite", "--data", "data.npz"), 35, 1000),
    Case("verify", ".npz", ("int8.tflite", "float32.tflite", "--data", "FILE"), 60, 1000),
    Case("optimize", ".yaml", ("FILE", "--dry-run"), 40, 500),
)
assert sum(case.count for case in CASES) == 400
assert sum(case.count_all for case in CASES) == 10_000


# ---------------------------------------------------------------------------- good files


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of small good files of every kind."""
    folder = tmp_path_factory.mktemp("good")
    x, y = np.random.default_rng(0).random((24, 8, 8, 1), np.float32), np.arange(24) % 3
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez_compressed(
        folder / "splits.npz", x_train=x, y_train=y, x_test=x, y_test=y, class_names=list("abc")
    )
    for library, name in ((keras, "keras3"), (tf_keras, "keras2")):
        library.utils.set_random_seed(0)
        model = network(library)
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(x, y, verbose=0)
        for kind in (".keras", ".h5"):
            save_model(model, folder / f"{name}{kind}")
    for mode in ("float32", "dynamic_int8", "int8", "int16x8"):
        convert(folder, "keras3.keras", mode, folder / f"{mode}.tflite")
    recurrent = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Reshape((8, 8))])
    recurrent.add(keras.layers.LSTM(4))
    recurrent.add(keras.layers.Dense(3))
    save_model(recurrent, folder / "recurrent.keras")
    convert(folder, "recurrent.keras", "float32", folder / "lstm.tflite")
    (folder / "loop.tflite").write_bytes(branches_and_a_loop())
    (folder / "recipe.yaml").write_text(recipe(folder))
    return folder


def network(library):
    layers = library.layers
    return library.Sequential(
        [
            layers.InputLayer((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(3, activation="softmax", name="classes"),
        ]
    )


def convert(folder, model, mode, target):
    arguments = ["convert", folder / model, "--mode", mode, "-o", target]
    arguments += ["--calibration", folder / "data.npz"]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr


def branches_and_a_loop():
    """A `.tflite` file of several subgraphs."""

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 1))])
    def run(image):
        mean = tf.reduce_mean(image, (1, 2))
        mean = tf.while_loop(lambda i, _: i < 4, lambda i, z: (i + 1, z * 0.5 + 1.0), (0, mean))[1]
        mean = tf.cond(tf.reduce_sum(mean) > 0, lambda: mean, lambda: -mean)
        return tf.nn.softmax(tf.concat([mean, mean + 1, mean * 2], 1))

    functions = [run.get_concrete_function()]
    return tf.lite.TFLiteConverter.from_concrete_functions(functions, tf.Module()).convert()


def recipe(folder):
    return f"""\
name: small
model: {folder}/keras3.keras
data: {{source: {folder}/data.npz, validation: 0.2}}
input: {{mean: [0.5], std: [0.25], scale: 1.0}}
metric: accuracy
max_drop: 0.5
limits: {{size_bytes: 100000, latency_ms: 5}}
train: {{epochs: 1, batch_size: 8, learning_rate: 0.001}}
stages:
  - prune: {{sparsity: 0.5}}
  - finetune: {{epochs: 1}}
  - quantize: auto
convert: [float32, int8]
targets: [xnnpack]
seed: 0
"""


def seeds(folder, case):
    """The good files that a case damages."""
    found = sorted(folder.glob(f"*{case.kind}"))
    return [path for path in found if path.name != "recurrent.keras"]


def arguments_of(case, folder, file, seed):
    words = {"FILE": str(file), "GOOD": str(seed)}
    names = {path.name: str(path) for path in folder.iterdir()}
    return [case.verb, *(words.get(word) or names.get(word, word) for word in case.arguments)]


# ---------------------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("work", "tmp")]
    worker = Worker(*folders, LIMIT_SECONDS)
    yield worker
    worker.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.verb}{case.kind}")
def test_a_damaged_file_ends_a_command_with_one_clear_line(case, good, worker, tmp_path):
    send_all(case, range(case.count), good, worker, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.verb}{case.kind}")
def test_many_damaged_files_end_a_command_with_one_clear_line(case, good, worker, tmp_path):
    send_all(case, range(case.count, case.count_all), good, worker, tmp_path)


def send_all(case, numbers, good, worker, tmp_path):
    """Send damaged files through a command; some are refused, and each leaves nothing behind."""
    if case.verb not in cli.commands:
        pytest.skip(f"there is no command `{case.verb}` yet")
    files, refused = seeds(good, case), 0
    for number in numbers:
        seed = files[number % len(files)]
        file = write_damaged(tmp_path / f"damaged{case.kind}", seed, f"{case.verb} {number}")
        before = digest(file)
        arguments = arguments_of(case, good, file, seed)
        result = worker.run(*arguments)
        if result.code is None:  # the worker is gone: the guard must have an answer
            result = guarded_process(*arguments, folder=worker.folder, temporary=worker.temporary)
            assert result.code == 1, (number, seed.name, result)
        check(result, (number, seed.name, result))
        assert digest(file) == before, number
        assert left_behind(worker) == [], number
        refused += result.code != 0
    assert refused > 0, "nothing was damaged"


def check(result, place):
    assert result.code in (0, 1, 2), place
    assert result.seconds < LIMIT_SECONDS, place
    assert "Traceback" not in result.output + result.errors, place
    if result.code:
        said = [line for line in result.errors.splitlines() if not line.startswith(QUIET)]
        assert len(said) == 1 and said[0].startswith("tfedge: error: "), place
        assert said[0].isprintable(), place
        assert "see where with --traceback" not in said[0], place  # an error nobody foresaw


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def left_behind(worker):
    """What commands wrote; AutoGraph keeps modules of its own until the process ends."""
    written = [*worker.folder.iterdir(), *worker.temporary.iterdir()]
    own = ("__autograph_generated", "__pycache__")
    return [path for path in written if not path.name.startswith(own)]


def guarded_process(*arguments, folder, temporary):
    """A command as a user runs it; its start is not counted."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tfedge", *arguments, "--time-limit", str(LIMIT_SECONDS)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT_SECONDS + START_SECONDS,
        cwd=folder,
        env=environment(temporary),
    )
    return Result(
        done.returncode,
        done.stdout,
        done.stderr,
        max(0.0, time.monotonic() - start - START_SECONDS),
    )


def test_good_files_pass(good, worker):
    """The control: what is refused above is refused for its damage."""
    for case in CASES:
        if case.verb not in cli.commands:
            continue
        for seed in seeds(good, case):
            result = worker.run(*arguments_of(case, good, seed, seed))
            if case.verb == "benchmark" and "took none of the operators" in result.errors:
                continue  # XNNPACK has no int16x8
            assert result.code == 0, (case, seed, result.errors)


# ---------------------------------------------------------------------------- hostile on purpose


def with_config(good, target, edit):
    """A `.h5` copy whose configuration was edited."""
    target.write_bytes((good / "keras3.h5").read_bytes())
    with h5py.File(target, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        edit(config)
        file.attrs["model_config"] = json.dumps(config)
    return target


def dense(config):
    return config["config"]["layers"][-1]["config"]


def test_a_layer_larger_than_its_file_is_refused_before_it_is_built(good, tmp_path):
    file = with_config(good, tmp_path / "m.h5", lambda c: dense(c).update(units=10**9))
    start = time.monotonic()
    with pytest.raises(ModelError, match="`Dense` layer with `units` 1000000000"):
        load_model(file)
    assert time.monotonic() - start < 5


def edit_hdf5(good, tmp_path, edit):
    target = tmp_path / "m.h5"
    target.write_bytes((good / "keras3.h5").read_bytes())
    with h5py.File(target, "r+") as file:
        edit(file)
    return target


def kernel_of(file):
    names = []
    file.visit(names.append)
    return next(name for name in names if name.endswith("classes/kernel"))


def huge(file):
    name = kernel_of(file)
    del file[name]
    file.create_dataset(name, (10**6, 10**6), "f4", chunks=True)


def circle(file):
    file["model_weights/again"] = file["model_weights"]


def elsewhere(file):
    file["model_weights/other"] = h5py.ExternalLink("/etc/passwd", "/")


def functions(file):
    file.create_dataset("model_weights/x", (3,), h5py.vlen_dtype(np.int32))


@pytest.mark.parametrize(
    ("edit", "error", "match"),
    [
        (huge, ModelError, "claims 4000000000000 bytes and stores 0"),
        (circle, ModelError, "is another part, too"),
        (elsewhere, UnsafeModelError, "from another file"),
        (functions, ModelError, "holds no numbers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_an_hdf5_file_cannot_hold_is_refused(edit, error, match, good, tmp_path):
    with pytest.raises(error, match=match):
        load_model(edit_hdf5(good, tmp_path, edit))


def test_names_in_a_file_cannot_write_to_the_terminal(good, worker, tmp_path):
    def edit(config):
        config["config"]["layers"][-1].update(module="evil\x1b[2J\n", class_name="E\x07vil")

    file = with_config(good, tmp_path / "m.h5", edit)
    result = worker.run(
        "verify", str(file), str(good / "int8.tflite"), "--data", str(good / "data.npz")
    )
    check(result, result)
    assert result.code == 1 and r"E\x07vil" in result.errors


def test_a_recipe_that_unfolds_without_end_is_refused_at_once(good, worker, tmp_path):
    if "optimize" not in cli.commands:
        pytest.skip("there is no command `optimize` yet")
    (tmp_path / "bomb.yaml").write_text(bomb(30) + (good / "recipe.yaml").read_text())
    result = worker.run("optimize", str(tmp_path / "bomb.yaml"), "--dry-run")
    check(result, result)
    assert result.code in (1, 2)


def test_the_same_seed_damages_a_file_in_the_same_way(good, tmp_path):
    for case in CASES:
        seed = seeds(good, case)[0]
        pair = [
            write_damaged(tmp_path / f"{name}{case.kind}", seed, "7").read_bytes()
            for name in ("a", "b")
        ]
        assert pair[0] == pair[1] != seed.read_bytes()
