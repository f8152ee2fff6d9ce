"""A step of a run comes out the same in every process."""

import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tfedge.errors import SettingsError, TrainingError
from tfedge.models import reproducible

ROOT = Path(__file__).parent.parent

# What a process does: prune, save, load, train quantization-aware, convert; in both Kerases.
WORK = """
    import hashlib, json, sys
    import numpy as np
    import keras, tf_keras
    import tfedge
    from tfedge.models import reproducible

    history, folder = sys.argv[1:]
    data = tfedge.load_dataset("digits")
    small = tfedge.data.Data(train=data.train.take(256), calibration=data.calibration)


    def built(k):
        layers = k.layers
        model = k.Sequential([
            layers.Input((8, 8, 1), name="pixels"),
            layers.Conv2D(8, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Dropout(0.2, name="drop"),
            layers.Flatten(name="flatten"),
            layers.Dense(10, "softmax", name="classes"),
        ], name="digits")
        model.compile("adam", "sparse_categorical_crossentropy")
        return model


    def trained(path, stage, seed):
        fit = tfedge.make_fit(small, epochs=1, seed=seed)
        model, _ = stage.apply(tfedge.load_model(path), tfedge.Context(fit=fit, data=small))
        return model


    def digest(model):
        return hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()


    kerases = (keras, tf_keras) if history == "none" else (tf_keras, keras)
    if history != "none":  # another life before: models, training, random numbers
        np.random.rand(7)
        for k in kerases:
            built(k).fit(small.train.x, small.train.y, verbose=0, batch_size=128)
            tfedge.Quantize().prepare(built(k))
    said = {}
    for k in kerases:
        name = f"{folder}/{k.__name__}"
        with reproducible(1):
            tfedge.save_model(built(k), f"{name}.keras")
        with reproducible(2):
            model = trained(f"{name}.keras", tfedge.Prune(sparsity=0.5), 2)
            pruned = tfedge.save_model(model, f"{name}_pruned.keras")
        with reproducible(3):
            model = trained(pruned, tfedge.Quantize(keep_sparsity=True), 3)
            quantized = tfedge.save_model(model, f"{name}_quantized.keras")
        content, _ = tfedge.convert(model, mode="int8")
        files = {path.name: path.read_bytes() for path in (pruned, quantized)}
        files["int8"] = content
        said[k.__name__] = {
            "weights": digest(model),
            **{name: hashlib.sha256(part).hexdigest() for name, part in files.items()},
        }
    unseeded = trained(f"{folder}/keras.keras", tfedge.FineTune(epochs=1), 2)
    print(json.dumps([said, digest(unseeded)]))
"""


@pytest.mark.slow
def test_two_processes_prune_and_quantize_to_equal_bits(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = []
    for history in ("none", "busy"):  # at once, so that each disturbs the other
        (tmp_path / history).mkdir()
        command = [sys.executable, "-c", textwrap.dedent(WORK), history, str(tmp_path / history)]
        running.append(
            subprocess.Popen(
                command,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    said = []
    for process in running:
        out, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-2000:]
        said.append(json.loads(out.splitlines()[-1]))
    (fresh, unseeded), (busy, unseeded_too) = said
    assert fresh == busy
    assert set(fresh) == {"keras", "tf_keras"}
    assert unseeded != unseeded_too  # the control: without `reproducible` they differ


def random_samples():
    import tensorflow as tf

    def change(x):
        return x + tf.random.uniform((), 0, 1000, tf.int64)

    pipeline = tf.data.Dataset.range(500).shuffle(100).map(change, num_parallel_calls=4)
    return list(pipeline.as_numpy_iterator())


def test_random_pipelines_generators_and_layers_repeat():
    import keras
    import tensorflow as tf
    import tf_keras

    def draw(seed):
        with reproducible(seed):
            ones = np.ones((4, 16), np.float32)
            return (
                random_samples(),
                tf.random.get_global_generator().normal((3,)).numpy().tolist(),
                keras.random.normal((3,)).numpy().tolist(),
                np.asarray(keras.layers.Dropout(0.5)(ones, training=True)).tolist(),
                np.asarray(tf_keras.layers.Dropout(0.5)(ones, training=True)).tolist(),
                random.random(),
                np.random.rand(),
            )

    first, other = draw(5), draw(6)
    assert draw(5) == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_random_numbers_of_python_and_numpy_go_on_as_before():
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    with reproducible(2):
        random.random(), np.random.rand()
    assert (random.random(), np.random.rand()) == expected


def test_an_operation_without_a_deterministic_form_is_named():
    import tensorflow as tf

    said = "from_non_deterministic_state.*from_seed"
    with pytest.raises(TrainingError, match=said), reproducible(0):
        tf.random.Generator.from_non_deterministic_state()


@pytest.mark.parametrize("error", [RuntimeError("out of paper"), TrainingError("deterministic")])
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(RuntimeError) as caught, reproducible(0):
        raise error
    assert caught.value is error


def test_operations_on_a_gpu_are_left_as_they_are(monkeypatch):
    import tensorflow as tf

    asked = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"one {kind}"])
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: asked.append("determinism")
    )
    with reproducible(3):
        first = np.random.rand()
    with reproducible(3):
        assert np.random.rand() == first
    assert not asked


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, None, "0"])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(SettingsError, match="whole number from 0"), reproducible(seed):
        pass
    with reproducible(2**32 - 1):
        pass
