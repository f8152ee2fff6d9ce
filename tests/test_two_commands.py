"""`tfedge init`, then `tfedge optimize`, without a look at the recipe between them."""

import json

import keras
import numpy as np
import pytest
import tf_keras

import tfedge
from tfedge.cli import main

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 6)).astype("float32")
CLASSES = (X[:, 0] > 0).astype("int64") + (X[:, 1] > 0)
VALUES = (X @ RNG.normal(size=(6, 1))).astype("float32")
LOSS = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
OWN_LAYER = """
import keras


@keras.saving.register_keras_serializable("gains")
class Gain(keras.layers.Layer):
    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")

    def call(self, inputs):
        return inputs * self.gain
"""


def network(library, outputs, activation=None, own=None):
    layers = library.layers
    library.utils.set_random_seed(0)
    inputs = library.Input((6,), name="features")
    x = layers.Dense(24, activation="relu")(inputs)
    return library.Model(inputs, layers.Dense(outputs, activation=activation)(own(x) if own else x))


def trained(model, y, loss, library=keras):
    model.compile(library.optimizers.Adam(0.01), loss)
    model.fit(X, y, epochs=12, verbose=0)
    return model


def classifier(folder):
    loss = "sparse_categorical_crossentropy"
    tfedge.save_model(trained(network(keras, 3, "softmax"), CLASSES, loss), folder / "model.keras")
    return "model.keras", {"x": X, "y": CLASSES}, ()


def classifier_of_keras_2(folder):
    loss = "sparse_categorical_crossentropy"
    model = trained(network(tf_keras, 3, "softmax"), CLASSES, loss, tf_keras)
    tfedge.save_model(model, folder / "model.h5")
    return "model.h5", {"x": X, "y": CLASSES}, ()


def regression(folder):
    tfedge.save_model(trained(network(keras, 1), VALUES, "mse"), folder / "model.keras")
    return "model.keras", {"x": X, "y": VALUES}, ("--metric", "mae")


def autoencoder(folder):
    tfedge.save_model(trained(network(keras, 6), X, "mse"), folder / "model.keras")
    return "model.keras", {"x": X}, ()


def two_outputs_and_a_layer_of_ones_own(folder):
    (folder / "gains.py").write_text(OWN_LAYER)
    import gains

    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="features")
    hidden = gains.Gain()(keras.layers.Dense(24, activation="relu")(inputs))
    ends = [
        keras.layers.Dense(3, activation="softmax", name="kind")(hidden),
        keras.layers.Dense(1, name="size")(hidden),
    ]
    model = trained(keras.Model(inputs, ends), {"kind": CLASSES, "size": VALUES}, LOSS)
    tfedge.save_model(model, folder / "model.keras")
    return "model.keras", {"x": X, "y_kind": CLASSES, "y_size": VALUES}, ("--import", "gains")


def two_outputs_of_keras_2(folder):
    tf_keras.utils.set_random_seed(0)
    inputs = tf_keras.Input((6,), name="features")
    hidden = tf_keras.layers.Dense(24, activation="relu")(inputs)
    ends = [
        tf_keras.layers.Dense(3, activation="softmax", name="kind")(hidden),
        tf_keras.layers.Dense(1, name="size")(hidden),
    ]
    model = tf_keras.Model(inputs, ends)
    trained(model, {"kind": CLASSES, "size": VALUES}, LOSS, tf_keras)
    tfedge.save_model(model, folder / "model.keras")
    return "model.keras", {"x": X, "y_kind": CLASSES, "y_size": VALUES}, ()


CASES = (classifier_of_keras_2, two_outputs_and_a_layer_of_ones_own)
LONG = (classifier, regression, autoencoder, two_outputs_of_keras_2)


@pytest.mark.parametrize(
    "case",
    [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in LONG)],
    ids=lambda case: case.__name__,
)
def test_two_commands_lead_from_a_model_and_data_to_files_and_a_page(
    case, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model, arrays, options = case(tmp_path)
    np.savez(tmp_path / "data.npz", **arrays)
    before = (tmp_path / model).read_bytes()
    assert main(["init", model, "--data", "data.npz", *options]) == 0
    capsys.readouterr()
    code = main(["optimize", "recipe.yaml", "--output", "run", "--json"])
    printed = capsys.readouterr()
    assert code in (0, 1), printed.err
    report = json.loads(printed.out)
    assert (code == 0) is report["fits"]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"report.html", "report.json", "recipe.yaml", "model_int8.tflite"}
    assert all(step["stage"] is None or step["stage"]["changed"] for step in report["steps"])
    best = next(file for file in report["files"] if file["path"] == report["best"])
    for name, worst in report["budget"].items():
        higher = next(m["higher_is_better"] for m in report["metrics"] if m["name"] == name)
        over = (worst - best["figures"][name]) * (1 if higher else -1)
        assert over <= 1e-9 or not report["fits"]
    assert (tmp_path / model).read_bytes() == before
