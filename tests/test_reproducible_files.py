"""The same model is the same file, whenever and in whichever process it is saved."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tf_keras
from models import ZOO, inputs_of, labels_of, weights_of

import tfedge
from tfedge.models import is_compiled, load_model, reproducible, save_model
from tfedge.models.saving import plain_config

ROOT = Path(__file__).parent.parent
both = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])


def compiled(k, name="residual"):
    model = ZOO[name](k)
    model.compile(k.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def trained(k):
    model = compiled(k)
    model.fit(inputs_of(model, 16), labels_of(16), verbose=0)
    return model


def quantized(k):
    model = tfedge.Quantize().prepare(compiled(k, "conv_bn_relu"))
    model.fit(inputs_of(model, 16), labels_of(16), verbose=0)
    return model


def with_dropout(k):
    k.utils.set_random_seed(0)
    layers = k.layers
    model = k.Sequential(
        [
            layers.Input((6, 4), name="words"),
            layers.TimeDistributed(layers.Dense(3, name="each"), name="every"),
            layers.Dropout(0.3, name="drop"),
            layers.Flatten(name="flat"),
            layers.Dense(3, kernel_regularizer=k.regularizers.L2(1e-4), name="classes"),
        ],
        name="words_to_classes",
    )
    model.compile(
        k.optimizers.SGD(0.1, momentum=0.9),
        k.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[k.metrics.SparseTopKCategoricalAccuracy(2)],
    )
    model.fit(np.ones((8, 6, 4), np.float32), np.arange(8) % 3, verbose=0)
    return model


MODELS = {
    "plain": ZOO["nested"],
    "trained": trained,
    "quantized": quantized,
    "dropout": with_dropout,
}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_loaded_and_saved_by_another_process_a_file_stays_the_same(tmp_path):
    saved = {}
    for k in (keras, tf_keras):
        for kind, make in MODELS.items():
            path = save_model(make(k), tmp_path / f"{k.__name__}_{kind}.keras")
            saved[path.name] = sha256(path)
    script = """
        import sys
        from pathlib import Path
        import keras, tf_keras
        from tfedge.models import load_model, save_model
        for k in (keras, tf_keras):
            k.optimizers.Adam(), k.optimizers.SGD(), k.layers.Dropout(0.5), k.layers.Dense(3)
        for path in sorted(Path(sys.argv[1]).glob("*.keras"), reverse=True):
            save_model(load_model(path), path.with_name("again_" + path.name))
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=240,
    )
    assert {name: sha256(tmp_path / f"again_{name}") for name in saved} == saved
    assert len(set(saved.values())) == len(saved)  # the control: other models are other files


@both
@pytest.mark.parametrize("kind", MODELS)
def test_the_same_work_done_twice_gives_the_same_files(k, kind, tmp_path):
    digests = []
    for _ in range(2):
        with reproducible(0):
            model = MODELS[kind](k)
            paths = [save_model(model, tmp_path / f"model{suffix}") for suffix in (".keras", ".h5")]
        digests.append([sha256(path) for path in paths])
        k.optimizers.Adam(), k.layers.Dropout(0.1)  # Keras numbers the next ones
    assert digests[0] == digests[1]


def test_the_optimizer_of_mixed_precision_has_no_number_either(tmp_path):
    def model():
        keras.utils.set_random_seed(0)
        layers = [
            keras.Input((4,), name="x"),
            keras.layers.Dense(3, dtype="mixed_float16", name="y"),
        ]
        made = keras.Sequential(layers, name="mixed")
        made.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse")
        made.fit(np.ones((4, 4), np.float32), np.ones((4, 3), np.float32), verbose=0)
        return made

    for suffix in (".keras", ".h5"):
        paths = [save_model(model(), tmp_path / f"{i}{suffix}") for i in range(2)]
        assert sha256(paths[0]) == sha256(paths[1])
    config = json.loads(zipfile.ZipFile(tmp_path / "0.keras").read("config.json"))
    optimizer = config["compile_config"]["optimizer"]["config"]
    assert optimizer["name"] == "loss_scale_optimizer"
    assert optimizer["inner_optimizer"]["config"]["name"] == "adam"


@both
def test_a_file_tells_no_time(k, tmp_path):
    model = trained(k)
    first = sha256(save_model(model, tmp_path / "model.keras"))
    time.sleep(2.1)  # a zip file tells even seconds
    assert sha256(save_model(model, tmp_path / "model.keras")) == first
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist()[:3] == ["config.json", "metadata.json", "model.weights.h5"]
        assert json.loads(archive.read("metadata.json"))["keras_version"] == k.__version__


def state_of(optimizer):
    return optimizer.variables() if callable(optimizer.variables) else optimizer.variables


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_keras_alone_loads_the_files(k, suffix, tmp_path):
    model = trained(k)
    loaded = k.models.load_model(save_model(model, tmp_path / f"model{suffix}"))
    for ours, theirs in zip(weights_of(loaded), weights_of(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert is_compiled(loaded)
    if suffix == ".h5" and k is keras:
        return  # Keras 3 does not read the optimizer's state from an `.h5`
    ours, theirs = (
        [
            np.asarray(v)
            for v in (m.optimizer.variables() if k is tf_keras else m.optimizer.variables)
        ]
        for m in (loaded, model)
    )
    assert len(ours) > 4
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_training_goes_on_from_a_file_as_it_would_have_in_memory(tmp_path):
    model = trained(keras)
    loaded = load_model(save_model(model, tmp_path / "model.keras"))
    for each in (model, loaded):
        keras.utils.set_random_seed(0)
        each.fit(inputs_of(model, 16), labels_of(16), verbose=0)
    for ours, theirs in zip(weights_of(loaded), weights_of(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_vocabularies_travel_in_the_file(tmp_path):
    layer = keras.layers.StringLookup(vocabulary=["cat", "dog"], name="look_up")
    words = keras.Input((1,), dtype="string", name="word")
    model = keras.Model(words, layer(words), name="lookup")
    paths = [save_model(model, tmp_path / f"{i}.keras") for i in range(2)]
    assert sha256(paths[0]) == sha256(paths[1])
    loaded = keras.models.load_model(paths[0])
    assert loaded.get_layer("look_up").get_vocabulary() == ["[UNK]", "cat", "dog"]


def entry(name, address, **config):
    return {
        "module": "my_pkg",
        "class_name": name,
        "config": config,
        "shared_object_id": address,
    }


def test_addresses_become_numbers_where_objects_are_shared():
    inner = entry("Clock", 700, start=1)
    config = {
        "layers": [
            entry("Gate", 900, clock=inner),
            entry("Gate", 900, clock=inner),
            entry("Gate", 800, size=1),  # an address used again for another object
            entry("Gate", 800, size=2),
            {"module": "keras.initializers", "class_name": "Zeros", "shared_object_id": 700},
        ]
    }
    plain = plain_config(config)["layers"]
    assert [layer.get("shared_object_id") for layer in plain] == [1, 1, None, None, None]
    assert plain[0]["config"]["clock"]["shared_object_id"] == 2
    assert config["layers"][0]["shared_object_id"] == 900  # what came in is as it was


@pytest.mark.parametrize(
    ("class_name", "name", "expected"),
    [
        ("Adam", "adam_7", "adam"),
        ("my_pkg>SlowAdam", "slow_adam_12", "slow_adam"),
        ("Adam", "mine_7", "mine_7"),
        ("Adam", "adam", "adam"),
    ],
)
def test_only_numbers_that_keras_gave_are_taken_from_an_optimizer(class_name, name, expected):
    optimizer = {"class_name": class_name, "config": {"name": name}}
    plain = plain_config({"compile_config": {"optimizer": optimizer, "loss": "mse"}})
    assert plain["compile_config"]["optimizer"]["config"]["name"] == expected
    assert plain["compile_config"]["loss"] == "mse"


def test_nothing_else_is_left_beside_the_file(tmp_path):
    save_model(ZOO["dense"](keras), tmp_path / "model.keras")
    save_model(ZOO["dense"](keras), tmp_path / "model.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.h5", "model.keras"]
