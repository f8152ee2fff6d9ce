"""`tfedge init`: what it proposes loads, fits the model, and explains itself."""

import dataclasses
import json
import sys
from pathlib import Path

import click
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import yaml
from click.testing import CliRunner

from tfedge.cli.init import init
from tfedge.data import Split, as_data, load_dataset
from tfedge.errors import (
    ConversionError,
    DataError,
    ModelError,
    SettingsError,
    TfedgeError,
    TfedgeWarning,
    UnsafeModelError,
    UnsupportedModelError,
)
from tfedge.models import load_model, save_model
from tfedge.recipe import load_recipe
from tfedge.recipe import run as run_recipe
from tfedge.recipe.commenting import commented
from tfedge.recipe.examining import examine
from tfedge.recipe.proposing import TARGETS, decide, propose, to_commented_yaml

RANDOM = np.random.default_rng(0)
X = RANDOM.random((120, 6), np.float32)
CLASSES = RANDOM.integers(0, 3, 120)
KERASES = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])


def network(k, units, activation=None, *, name="net", loss=None):
    """A small dense network, seeded."""
    k.utils.set_random_seed(0)
    model = k.Sequential(
        [
            k.layers.Input((6,), name="features"),
            k.layers.Dense(8, activation="relu", name="hidden"),
            k.layers.Dense(units, activation=activation, name="answer"),
        ],
        name=name,
    )
    if loss is not None:
        model.compile("adam", loss)
    return model


def two_outputs(k=keras, *, kind_activation="softmax"):
    k.utils.set_random_seed(0)
    features = k.layers.Input((6,), name="features")
    hidden = k.layers.Dense(8, activation="relu", name="hidden")(features)
    kind = k.layers.Dense(3, activation=kind_activation, name="kind")(hidden)
    angle = k.layers.Dense(1, name="angle")(hidden)
    return k.Model(features, [kind, angle], name="two")


TWO = {"x": X, "y_kind": CLASSES, "y_angle": X.sum(1)}


def proposed(tmp_path, model, value=None, **settings):
    """A proposal, proven to load from its YAML with the same values."""
    data = None if value is None else as_data(value)
    source = None if value is None else "d.npz"
    return loaded(tmp_path, propose(model, "net.keras", source, data, **settings))


def loaded(tmp_path, proposal):
    """The proposal, proven to load from its YAML with the same values."""
    path = tmp_path / "recipe.yaml"
    path.write_text(to_commented_yaml(proposal), encoding="utf-8")
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == proposal.values
    recipe = load_recipe(path)
    assert recipe.metric == proposal.values["metric"]
    assert [step.stage for step in recipe.steps] == [
        stage if isinstance(stage, str) else next(iter(stage))
        for stage in proposal.values["stages"]
    ]
    return proposal


@pytest.fixture(scope="module")
def classifier():
    """What is found out about a classifier and its data."""
    return examine(network(keras, 3, "softmax"), as_data((X, CLASSES)))


FULL = [{"prune": {"sparsity": "auto"}}, {"quantize": "auto"}]
CALIBRATED = [{"quantize": "calibrate"}]


@pytest.mark.parametrize(
    ("k", "activation", "labels", "loss"),
    [
        (keras, "softmax", CLASSES, None),
        (keras, "softmax", CLASSES, "sparse_categorical_crossentropy"),
        (tf_keras, "softmax", CLASSES, "sparse_categorical_crossentropy"),
        (keras, "softmax", np.eye(3)[CLASSES], None),
        (tf_keras, "softmax", np.eye(3)[CLASSES], "categorical_crossentropy"),
        (keras, None, CLASSES, None),
        (tf_keras, None, CLASSES[:, np.newaxis], None),
    ],
    ids=["sparse", "compiled", "tf_keras", "one-hot", "compiled one-hot", "logits", "column"],
)
def test_a_classifier_may_lose_a_point_and_is_pruned_and_quantized(
    tmp_path, k, activation, labels, loss
):
    found = proposed(tmp_path, network(k, 3, activation, loss=loss), (X, labels))
    assert found.values["metric"] == "accuracy"
    assert found.values["max_drop"] == 1.0
    assert found.values["stages"] == FULL
    assert found.values["convert"] == ["float32", "int8"]
    assert found.values["train"] == {"epochs": 15, "batch_size": 8}


def test_a_binary_classifier_is_judged_by_accuracy(tmp_path):
    found = proposed(tmp_path, network(keras, 1, "sigmoid"), (X, CLASSES % 2))
    assert (found.values["metric"], found.values["max_drop"]) == ("accuracy", 1.0)
    assert found.values["stages"] == FULL


def test_yes_or_no_logits_are_pointed_out(tmp_path):
    with pytest.warns(TfedgeWarning, match="look like"):
        found = proposed(tmp_path, network(keras, 1), (X, CLASSES % 2))
    assert any("decides at 0.5, not at 0" in note for note in found.notes)


def test_several_classes_at_once_get_their_metric_and_their_loss(tmp_path):
    labels = RANDOM.integers(0, 2, (120, 3))
    found = proposed(tmp_path, network(keras, 3, "sigmoid"), (X, labels))
    assert found.values["metric"] == "binary_accuracy"
    assert found.values["train"]["loss"] == "binary_crossentropy"
    assert found.values["stages"] == FULL


@pytest.mark.parametrize(
    ("labels", "loss"),
    [(CLASSES, "sparse_categorical_crossentropy"), (np.eye(3)[CLASSES], "binary_crossentropy")],
    ids=["sparse", "one-hot"],
)
def test_sigmoids_of_classes_are_not_taken_for_logits(tmp_path, labels, loss):
    found = proposed(tmp_path, network(keras, 3, "sigmoid"), (X, labels))
    assert found.values["metric"] == "accuracy"
    assert found.values["train"]["loss"] == loss


@pytest.mark.parametrize(("k", "units"), [(keras, 1), (tf_keras, 2)])
def test_a_regression_model_may_lose_5_percent_of_its_mae(tmp_path, k, units):
    y = RANDOM.normal(size=(120, units)).astype(np.float32)
    found = proposed(tmp_path, network(k, units, loss="mse"), (X, y[:, 0] if units == 1 else y))
    assert (found.values["metric"], found.values["max_drop"]) == ("mae", "5 %")
    assert found.values["stages"] == FULL


@pytest.mark.parametrize(
    ("k", "value"), [(keras, X), (tf_keras, (X, X))], ids=["without y", "y is x"]
)
def test_an_autoencoder_is_trained_towards_its_inputs(tmp_path, k, value):
    found = proposed(tmp_path, network(k, 6), value)
    assert found.values["data"] == {"source": "d.npz", "labels": "inputs"}
    assert (found.values["metric"], found.values["max_drop"]) == ("mse", "5 %")
    assert found.values["train"]["loss"] == "mse"
    assert found.values["stages"] == FULL


def test_an_autoencoder_compiled_with_mae_is_judged_by_it(tmp_path):
    found = proposed(tmp_path, network(keras, 6, loss="mae"), X)
    assert found.values["metric"] == "mae"
    assert "loss" not in found.values["train"]


@KERASES
def test_two_outputs_are_judged_and_trained_by_name(tmp_path, k):
    found = proposed(tmp_path, two_outputs(k), TWO)
    assert found.values["metric"] == {"kind": "accuracy", "angle": "mae"}
    assert found.values["max_drop"] == {"kind": 1.0, "angle": "5 %"}
    losses = {"kind": "sparse_categorical_crossentropy", "angle": "mse"}
    assert found.values["train"]["loss"] == losses
    assert found.values["stages"] == FULL


def test_a_compiled_model_of_two_outputs_keeps_its_losses(tmp_path):
    model = two_outputs()
    model.compile("adam", ["sparse_categorical_crossentropy", "mae"])
    found = proposed(tmp_path, model, TWO)
    assert "loss" not in found.values["train"]
    assert found.values["stages"] == FULL


def test_logits_of_two_outputs_without_a_loss_are_only_converted(tmp_path):
    found = proposed(tmp_path, two_outputs(kind_activation=None), TWO)
    assert found.values["stages"] == CALIBRATED
    assert "`kind` gives logits" in " ".join(found.comments["stages"])
    assert "train" not in found.values


def test_outputs_without_labels_are_not_judged(tmp_path):
    found = proposed(tmp_path, two_outputs(), {"x": X, "y_kind": CLASSES})
    assert found.values["metric"] == {"kind": "accuracy"}
    assert found.values["stages"] == CALIBRATED


def test_classes_without_labels_are_compared_by_agreement(tmp_path):
    found = proposed(tmp_path, network(keras, 3, "softmax"), X)
    assert (found.values["metric"], found.values["max_drop"]) == ("agreement", 5.0)
    assert found.values["stages"] == CALIBRATED
    assert "With labels (array `y`" in " ".join(found.comments["stages"])


def test_values_without_labels_are_compared_by_sqnr(tmp_path):
    found = proposed(tmp_path, network(keras, 2), X)
    assert found.values["metric"] == "sqnr_db"
    assert "max_drop" not in found.values
    assert found.values["stages"] == CALIBRATED


@pytest.mark.parametrize(
    ("model", "wanted", "metric"),
    [
        (lambda: network(keras, 3, "softmax"), "`y`, class numbers of shape (samples)", "accuracy"),
        (lambda: network(keras, 1), "`y` of shape (samples, 1)", "mae"),
        (two_outputs, "`y_kind`, class numbers of shape (samples)", None),
        (lambda: network(keras, 6), "labels: inputs", "mse"),
    ],
    ids=["classes", "values", "two outputs", "autoencoder"],
)
def test_without_data_the_recipe_says_what_arrays_are_wanted(tmp_path, model, wanted, metric):
    found = proposed(tmp_path, model())
    assert not found.complete
    text = " ".join(found.comments["data"])
    assert wanted in text
    assert "`x` of shape (samples, 6), float32" in text
    assert "your_data.npz" in str(found.values["data"])
    assert found.values["stages"] == FULL
    if metric is not None:
        assert found.values["metric"] == metric


class Own(keras.Model):
    """A subclassed model."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3, activation="softmax")

    def call(self, x):
        return self.dense(x)


class OwnStep(keras.Model):
    """A model with a training step of its own."""

    def train_step(self, data):
        return super().train_step(data)


def own_step():
    features = keras.Input((6,))
    return OwnStep(features, keras.layers.Dense(3, activation="softmax")(features))


def subclassed():
    model = Own()
    model(X[:1])
    return model


@pytest.mark.parametrize(
    ("make", "reason"), [(subclassed, "a subclassed model"), (own_step, "overrides `train_step`")]
)
def test_what_stages_cannot_rebuild_is_only_converted_and_the_recipe_says_why(
    tmp_path, make, reason
):
    found = proposed(tmp_path, make(), (X, CLASSES))
    assert found.values["metric"] == "accuracy"
    assert found.values["stages"] == CALIBRATED
    assert reason in " ".join(found.comments["stages"])


def test_layers_without_an_integer_form_lead_to_int8_kernels_only(tmp_path):
    layers = [keras.Input((6, 2)), keras.layers.LSTM(8), keras.layers.Dense(3, "softmax")]
    x = RANDOM.random((60, 6, 2), np.float32)
    found = proposed(tmp_path, keras.Sequential(layers), (x, CLASSES[:60]))
    assert found.values["convert"] == ["float32", "dynamic_int8"]
    assert found.values["stages"] == [{"prune": {"sparsity": "auto"}}]
    assert "`lstm" in " ".join(found.comments["stages"])


def test_a_model_without_kernels_is_not_pruned(tmp_path):
    layers = [
        keras.Input((6,)),
        keras.layers.Rescaling(2.0),
        keras.layers.BatchNormalization(),
        keras.layers.Softmax(),
    ]
    found = proposed(tmp_path, keras.Sequential(layers), (X, RANDOM.integers(0, 6, 120)))
    assert found.values["stages"] == [{"quantize": "auto"}]
    assert "Nothing is pruned" in found.comments["stages"][0]


def test_evaluation_labels_without_training_labels_only_judge(tmp_path):
    value = {"x_train": X, "x_test": X, "y_test": CLASSES}
    found = proposed(tmp_path, network(keras, 3, "softmax"), value)
    assert found.values["metric"] == "accuracy"
    assert found.values["stages"] == CALIBRATED


def test_a_stream_is_proposed_for_like_arrays(tmp_path):
    value = tf.data.Dataset.from_tensor_slices((X, CLASSES)).batch(16)
    found = proposed(tmp_path, network(keras, 3, "softmax"), value)
    assert found.values["stages"] == FULL
    assert found.values["train"]["epochs"] == 15


def test_inputs_by_name_are_understood(tmp_path):
    left, right = keras.Input((6,), name="left"), keras.Input((2,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    model = keras.Model([left, right], keras.layers.Dense(3, activation="softmax")(joined))
    value = {"left": X, "right": X[:, :2], "y": CLASSES}
    assert proposed(tmp_path, model, value).values["stages"] == FULL
    assert "`left` of shape (samples, 6)" in " ".join(proposed(tmp_path, model).comments["data"])


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_a_recipe_that_loads(tmp_path, classifier, target):
    found = loaded(tmp_path, decide(classifier, "net.keras", "d.npz", target=target))
    modes = {"gpu": ["float32", "float16"], "edgetpu": ["int8"], "ethosu": ["int8"]}
    assert found.values["convert"] == modes.get(target, ["float32", "int8"])
    targets = {
        "none": ["none"],
        "gpu": ["gpu", "xnnpack"],
        "edgetpu": ["xnnpack", "edgetpu"],
    }
    assert found.values["targets"] == targets.get(target, ["xnnpack"])
    assert ("targets" in found.comments) == (target not in ("cpu", "xnnpack", "none"))
    pruned = any("prune" in stage for stage in found.values["stages"])
    assert pruned == (target not in ("gpu", "edgetpu"))


def test_integer_targets_say_which_layers_they_cannot_run(classifier):
    found = decide(
        dataclasses.replace(classifier, float_layers=("lstm",)), "net.keras", target="edgetpu"
    )
    assert any("edgetpu runs integers only, and lstm have no" in note for note in found.notes)


@pytest.mark.parametrize(("given", "kept"), [(0, 0), (2.5, 2.5), ("2 %", "2 %")])
def test_a_given_budget_is_kept(tmp_path, classifier, given, kept):
    found = loaded(tmp_path, decide(classifier, "net.keras", "d.npz", max_drop=given))
    assert found.values["max_drop"] == kept


def test_metric_and_budget_are_the_users_where_given(tmp_path):
    model = network(keras, 3, "softmax")
    found = proposed(tmp_path, model, (X, CLASSES), metric="top_2_accuracy", max_drop="2 %")
    assert (found.values["metric"], found.values["max_drop"]) == ("top_2_accuracy", "2 %")
    found = proposed(tmp_path, model, (X, CLASSES), metric="top_2_accuracy")
    assert found.values["max_drop"] == 1.0
    found = proposed(tmp_path, two_outputs(), TWO, metric={"angle": "rmse", "kind": "accuracy"})
    assert found.values["max_drop"] == {"angle": "5 %", "kind": 1.0}


@pytest.mark.parametrize(("activation", "answers"), [("softmax", CLASSES), (None, X.sum(1))])
def test_a_model_that_knows_nothing_of_the_data_is_pointed_out(activation, answers):
    model = network(keras, 3 if activation else 1, activation)
    found = examine(model, as_data((X * 0, answers)))
    assert found.constant
    assert any("same answer" in note for note in decide(found, "m.keras", "d.npz").notes)


def test_a_model_that_knows_its_data_is_not(classifier):
    x = np.eye(3, dtype=np.float32)[CLASSES].repeat(2, axis=1)
    model = network(keras, 3, "softmax")
    model.get_layer("hidden").set_weights([np.eye(6, 8, dtype=np.float32), np.zeros(8, np.float32)])
    kernel = 5 * np.eye(3, dtype=np.float32).repeat(3, axis=0)[:8]
    kernel[:6] = 5 * np.eye(3, dtype=np.float32).repeat(2, axis=0)
    model.get_layer("answer").set_weights([kernel, np.zeros(3, np.float32)])
    found = examine(model, as_data((x, CLASSES)))
    assert found.figures == {"accuracy": 1.0}
    assert not found.constant


def test_few_evaluation_samples_are_said_to_be_too_few(classifier):
    notes = decide(classifier, "net.keras", "d.npz").notes
    assert any("One of 24 evaluation samples is 4.2 points" in note for note in notes)


REFUSED = [
    (lambda: network(keras, 3), (X[:, :4], CLASSES), DataError, "must have the shape"),
    (lambda: network(keras, 2), (X, CLASSES), DataError, "class numbers from 0 to 1"),
    (lambda: network(keras, 3), {"x": X, "y_a": CLASSES}, DataError, "Call the array `y`"),
    (lambda: network(keras, 3), {"x_test": X, "y_test": CLASSES}, DataError, "evaluation data"),
    (lambda: keras.Sequential([keras.layers.Dense(3)]), (X, CLASSES), TfedgeError, "no input"),
]


@pytest.mark.parametrize(("make", "value", "error", "match"), REFUSED)
def test_what_does_not_fit_is_refused_with_the_next_move(tmp_path, make, value, error, match):
    with pytest.raises(error, match=match):
        proposed(tmp_path, make(), value)


def test_open_sizes_are_refused(tmp_path):
    image = keras.Input((None, None, 1))
    hidden = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax")(hidden))
    with pytest.raises(ConversionError, match="static shapes"):
        proposed(tmp_path, model, (np.zeros((60, 8, 8, 1), np.float32), CLASSES[:60]))


def test_a_model_that_was_trained_quantization_aware_is_refused(tmp_path):
    import tfedge

    aware = tfedge.Quantize().prepare(network(keras, 3, "softmax"))
    with pytest.raises(UnsupportedModelError, match="quantization-aware"):
        proposed(tmp_path, aware, (X, CLASSES))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"target": "edgtpu"}, "Did you mean 'edgetpu'"),
        ({"max_drop": -1}, "`max_drop` is a number from 0"),
    ],
)
def test_wrong_settings_are_refused(classifier, settings, match):
    with pytest.raises(SettingsError, match=match):
        decide(classifier, "net.keras", "d.npz", **settings)


@pytest.mark.parametrize(
    ("make", "metric", "match"),
    [
        (lambda: network(keras, 3, "softmax"), "acuracy", "Did you mean 'accuracy'"),
        (lambda: network(keras, 3, "softmax"), {"answer": "accuracy"}, "This one has one"),
        (two_outputs, "accuracy", "`metric: {kind: …}`"),
        (two_outputs, {"knd": "accuracy"}, "Did you mean 'kind'"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(make, metric, match):
    model = make()
    data = as_data((X, CLASSES) if model.name == "net" else TWO)
    with pytest.raises(SettingsError, match=match):
        examine(model, data, metric)


def test_without_a_budget_nothing_is_pruned(tmp_path):
    found = proposed(tmp_path, network(keras, 3, "softmax"), (X, CLASSES), metric="sqnr_db")
    assert found.values["stages"] == [{"quantize": "auto"}]
    assert "without `max_drop`" in found.comments["stages"][0]


def test_files_that_carry_code_are_loaded_and_recorded_as_trusted(folder):
    layers = [keras.Input((6,)), keras.layers.Lambda(lambda x: 2 * x), keras.layers.Dense(3)]
    keras.Sequential(layers).save("lambda.keras")
    with pytest.raises(UnsafeModelError, match="--unsafe"):
        run("lambda.keras", "--data", "my: data.npz")
    run("lambda.keras", "--data", "my: data.npz", "--unsafe")
    assert load_recipe("recipe.yaml").unsafe


# ---------------------------------------------------------------------------- running


def finished(tmp_path, model, value, epochs=1):
    """The report of a run of what is proposed."""
    save_model(model, tmp_path / "net.keras")
    np.savez(tmp_path / "d.npz", **value)
    data = load_dataset(tmp_path / "d.npz", model=model)
    path = tmp_path / "recipe.yaml"
    path.write_text(to_commented_yaml(propose(model, "net.keras", "d.npz", data)))
    recipe = load_recipe(path)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, epochs=epochs))
    return run_recipe(recipe, tmp_path / "run", measure_latency=False)


def test_what_is_proposed_without_labels_runs(tmp_path):
    report = finished(tmp_path, network(keras, 3, "softmax"), {"x": X})
    assert report.best == "model_int8.tflite"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: network(keras, 3), {"x": X, "y": CLASSES}),
        (lambda: network(keras, 3, "sigmoid"), {"x": X, "y": np.eye(3)[CLASSES].astype(int)}),
        (lambda: network(tf_keras, 1, loss="mse"), {"x": X, "y": X.sum(1)}),
        (lambda: network(keras, 6), {"x": X}),
        (lambda: two_outputs(), TWO),
        (lambda: network(keras, 2), {"x": X}),
    ],
    ids=["logits", "sigmoid", "regression", "autoencoder", "two outputs", "no labels"],
)
def test_what_is_proposed_runs(tmp_path, make, value):
    report = finished(tmp_path, make(), value)
    assert report.files[-1].figures
    assert any(file.mode == "int8" for file in report.files)


# ---------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    "name",
    ["my model.keras", "a #b.keras", "a: b.keras", "ünïcode é.keras", "- x.keras", "yes", "1.5"]
    + ['it\'s "quoted".keras', "{a}, [b].keras", "*a &b.keras", "tab\there", "\udcff.keras"],
)
def test_any_file_name_comes_back_from_the_yaml(name):
    text = commented({"model": name, "data": {"source": name}}, {"data": [f"{name} is here."]}, [])
    assert yaml.safe_load(text) == {"model": name, "data": {"source": name}}
    text.encode()


def test_every_line_is_a_comment_or_a_key_and_fits_the_screen(classifier):
    found = decide(classifier, "net.keras", "d.npz", target="ethosu")
    for line in to_commented_yaml(found).splitlines():
        assert len(line) <= 100
        assert not line or line.lstrip().startswith(("#", "-")) or ":" in line


def test_keys_that_are_left_out_stand_there_as_examples_that_load(tmp_path, classifier):
    found = decide(classifier, "net.keras", "d.npz")
    text = to_commented_yaml(found)
    for key in ("imports", "limits", "input"):
        line = next(line for line in text.splitlines() if line.startswith(f"# {key}: "))
        path = tmp_path / f"{key}.yaml"
        path.write_text(text.replace(line, line.removeprefix("# ")), encoding="utf-8")
        assert load_recipe(path)


# ---------------------------------------------------------------------------- the command


@click.group()
def cli():
    """Stands for the command line."""


cli.add_command(init)


def run(*arguments):
    result = CliRunner().invoke(cli, ["init", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a model and its data, under awkward names."""
    monkeypatch.chdir(tmp_path)
    save_model(network(keras, 3, "softmax"), "my #1 model é.keras")
    np.savez("my: data.npz", x=X, y=CLASSES)
    return tmp_path


def test_the_command_writes_a_recipe_and_says_the_next_command(folder):
    output = run("my #1 model é.keras", "--data", "my: data.npz")
    assert "tfedge optimize recipe.yaml" in output
    recipe = load_recipe("recipe.yaml")
    assert Path(recipe.model) == Path("my #1 model é.keras")
    assert recipe.source.source == "my: data.npz"
    assert load_dataset(recipe.source.source).train is not None
    assert recipe.name == "my #1 model é"


def test_a_recipe_in_another_folder_finds_its_files_from_anywhere(folder, monkeypatch):
    run("my #1 model é.keras", "--data", "my: data.npz", "-o", "recipes/new/a.yaml")
    monkeypatch.chdir("/")
    recipe = load_recipe(folder / "recipes/new/a.yaml")
    assert load_model(recipe.model).name == "net"
    assert Path(recipe.source.source).is_file()


def test_a_recipe_that_is_there_is_kept(folder):
    Path("recipe.yaml").write_text("mine")
    with pytest.raises(SettingsError, match="--force"):
        run("my #1 model é.keras")
    assert Path("recipe.yaml").read_text() == "mine"
    run("my #1 model é.keras", "--data", "my: data.npz", "--force")
    assert load_recipe("recipe.yaml").metric == "accuracy"


def test_without_data_the_command_says_what_to_fill_in(folder):
    output = run("my #1 model é.keras")
    assert "name your data at the key `data`" in output
    assert "(samples, 6), float32" in output
    assert load_recipe("recipe.yaml").source.source == "your_data.npz"


def test_json_is_one_document(folder):
    values = json.loads(run("my #1 model é.keras", "--data", "my: data.npz", "--json"))
    assert values["complete"] is True
    assert values["values"]["metric"] == "accuracy"
    assert values["command"] == "tfedge optimize recipe.yaml"


def test_functions_stand_for_model_and_data(folder, monkeypatch):
    (folder / "own_things.py").write_text(
        "import keras, numpy as np\n"
        "def model():\n"
        "    layers = [keras.Input((6,)), keras.layers.Dense(3, activation='softmax')]\n"
        "    return keras.Sequential(layers)\n"
        "def data():\n"
        "    return np.ones((60, 6), 'float32'), np.arange(60) % 3\n"
        "def broken():\n"
        "    raise ValueError('no')\n"
    )
    monkeypatch.delitem(sys.modules, "own_things", raising=False)
    run("own_things:model", "--data", "own_things:data")
    recipe = load_recipe("recipe.yaml")
    assert (recipe.model, recipe.source.source) == ("own_things:model", "own_things:data")
    with pytest.raises(ModelError, match="`own_things:broken` failed: ValueError: no"):
        run("own_things:broken", "--force")


def test_a_custom_layer_comes_in_by_import_and_is_recorded(folder, monkeypatch):
    (folder / "own_layers.py").write_text(
        "import keras\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    import own_layers

    features = keras.Input((6,))
    twice = own_layers.Twice()(keras.layers.Dense(8, activation="relu")(features))
    kind = keras.layers.Dense(3, activation="softmax", name="kind")(twice)
    angle = keras.layers.Dense(1, name="angle")(twice)
    keras.Model(features, [kind, angle]).save("own.keras")
    np.savez("two.npz", **TWO)
    run("own.keras", "--data", "two.npz", "--import", "own_layers")
    recipe = load_recipe("recipe.yaml")
    assert recipe.imports == ("own_layers",)
    assert recipe.metric == {"kind": "accuracy", "angle": "mae"}


def test_a_keras_2_file_is_proposed_for(folder):
    save_model(network(tf_keras, 1, loss="mse"), "old.h5")
    np.savez("values.npz", x=X, y=X.sum(1))
    run("old.h5", "--data", "values.npz")
    assert load_recipe("recipe.yaml").metric == "mae"


def test_metrics_by_output_are_given_one_by_one(folder):
    save_model(two_outputs(), "two.keras")
    np.savez("two.npz", **TWO)
    command = ("two.keras", "--data", "two.npz")
    run(*command, "--metric", "kind=top_2_accuracy", "--metric", "angle=rmse", "--max-drop", "3 %")
    recipe = load_recipe("recipe.yaml")
    assert recipe.metric == {"kind": "top_2_accuracy", "angle": "rmse"}
    assert recipe.max_drop == "3 %"
    with pytest.raises(SettingsError, match="OUTPUT=METRIC"):
        run(*command, "--metric", "mae", "--metric", "mse", "--force")


def test_the_output_is_a_yaml_file(folder):
    with pytest.raises(SettingsError, match=r"recipe\.yaml"):
        run("my #1 model é.keras", "-o", "recipe.txt")


def test_splits_are_drawn_as_a_run_draws_them(folder):
    run("my #1 model é.keras", "--data", "my: data.npz")
    data = load_dataset("my: data.npz")
    assert isinstance(data.evaluation, Split)
    assert len(data.evaluation) == 24
