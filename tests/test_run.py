"""What a run promises: its budget, its files, its report."""

import importlib
import json
import shutil
import sys

import keras
import numpy as np
import pytest

import tfedge
from tfedge.cli import main
from tfedge.errors import SettingsError
from tfedge.recipe import as_recipe, run

layers = keras.layers


@keras.saving.register_keras_serializable("test_run")
class Scale(layers.Layer):
    """A layer of one's own."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", name="factor")

    def call(self, inputs):
        return inputs * self.factor


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A trained convolutional network for the digits."""
    folder = tmp_path_factory.mktemp("digits")
    data = tfedge.load_dataset("digits")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(24, 3, activation="relu"),
            layers.Conv2D(24, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(data.train.x, data.train.y, epochs=15, verbose=0)
    tfedge.save_model(model, folder / "model.keras")
    return folder


def recipe_of(folder, **changes):
    values = {"model": str(folder / "model.keras"), "data": "digits", "train": {"epochs": 4}}
    return as_recipe({**values, "name": "r", **changes})


@pytest.fixture(scope="module")
def searched(digits):
    recipe = recipe_of(
        digits,
        max_drop=0.5,
        train={"epochs": 10},
        stages=[{"prune": {"sparsity": "auto"}}, {"quantize": "auto"}],
    )
    return run(recipe, digits / "searched")


def accuracy(file):
    return file.figures["accuracy"]


def test_the_search_finds_a_sparser_model_than_a_fixed_one_within_the_budget(searched):
    fixed = next(row for row in searched.steps if row.strength.get("sparsity") == 0.8)
    assert fixed.outcome == "accepted"
    last = next(file for file in searched.files if file.path == searched.best)
    assert searched.fits
    assert last.sparsity > 0.82
    assert accuracy(last) >= accuracy(searched.files[0]) - 0.005 - 1e-9


def test_every_trial_is_a_row_with_its_reason(searched):
    assert {row.outcome for row in searched.steps} >= {"baseline", "accepted"}
    for row in searched.steps:
        broken = row.drops["accuracy"] > 0.005 + 1e-9
        assert (row.outcome == "rejected") is broken
        assert bool(row.reason) is broken
        assert row.outcome == "baseline" or (row.stage.changed and row.epochs["loss"])
    finals = [row for row in searched.steps if row.final]
    assert finals[0].outcome == "baseline"
    assert len(finals) == 2


def test_the_files_are_what_the_report_says(searched, digits):
    data = tfedge.load_dataset("digits").evaluation
    assert [f.path for f in searched.files][:3] == [
        "baseline_float32.tflite",
        "model_float32.tflite",
        "model_int8.tflite",
    ]
    for file in searched.files[:3]:
        path = digits / "searched" / file.path
        with tfedge.open_model(path) as runner:
            own = float((runner.predict(data.x).argmax(-1) == data.y).mean())
        assert own == pytest.approx(accuracy(file))
        assert path.stat().st_size == file.size_bytes
    assert not searched.files[2].float_operators
    assert (digits / "searched" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads((digits / "searched" / "report.json").read_text()) == searched.to_dict()


def test_the_model_that_came_in_is_bit_equal_after(searched, digits):
    again = tfedge.load_model(digits / "model.keras")
    assert float(np.abs(again.layers[-1].kernel).min()) > 0


@pytest.mark.parametrize("stages", ["prune90_w8a8", "w8a8"])
def test_a_budget_of_zero_never_returns_a_worse_model(digits, stages, tmp_path):
    recipe = recipe_of(digits, max_drop=0, stages=stages)
    report = run(recipe, tmp_path / "run", measure_latency=False)
    best = next(file for file in report.files if file.path == report.best)
    assert accuracy(best) >= accuracy(report.files[0])
    for file in report.files:
        assert (file.outcome == "rejected") is (accuracy(file) < accuracy(report.files[0]) - 1e-9)


def test_a_fixed_strength_that_costs_too_much_is_lowered(digits, tmp_path):
    recipe = recipe_of(
        digits,
        max_drop=1,
        train={"epochs": 2},
        stages=[{"prune": {"sparsity": 0.99}}],
        convert=["float32"],
    )
    report = run(recipe, tmp_path / "run", measure_latency=False)
    assert [row.strength["sparsity"] for row in report.steps[1:2]] == [0.99]
    assert report.steps[1].outcome == "rejected"
    assert 0.3 < report.files[1].sparsity < 0.99
    assert report.fits


def test_a_limit_that_nothing_meets_is_named_and_the_best_is_kept(digits, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {digits / 'model.keras'}\ndata: digits\nmax_drop: 5\n"
        "limits: {gzip_bytes: 900}\nstages:\n- quantize: calibrate\n"
    )
    assert main(["optimize", str(path), "--output", str(tmp_path / "run"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is False
    assert report["spent_by"] == "convert to int8"
    assert "gzip_bytes" in report["files"][2]["reason"]
    assert report["best"] == "model_int8.tflite"
    assert (tmp_path / "run" / report["best"]).is_file()


@pytest.mark.slow
def test_a_trial_whose_training_fails_is_a_rejected_one(digits, tmp_path, monkeypatch):
    (tmp_path / "failing_fit.py").write_text(
        "import tfedge\n"
        "from tfedge.engines.native.kernels import pruned_kernels\n"
        "def fit(model, callbacks):\n"
        "    data = tfedge.load_dataset('digits')\n"
        "    history = tfedge.make_fit(data, epochs=4)(model, callbacks)\n"
        "    kernels = pruned_kernels(model)\n"
        "    if sum(k.zeros() for k in kernels) > 0.9 * sum(k.size for k in kernels):\n"
        "        raise tfedge.TrainingError('the loss was lost')\n"
        "    return history\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = recipe_of(digits, max_drop=3.0, fit="failing_fit:fit", stages="prune", train={})
    report = run(recipe, tmp_path / "run", measure_latency=False)
    failed = [row for row in report.steps if row.reason == "the loss was lost"]
    assert failed and all(row.outcome == "rejected" for row in failed)
    assert report.fits and 0.75 < report.files[-1].sparsity <= 0.9
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_a_threshold_is_chosen_by_the_loss(digits, tmp_path):
    recipe = recipe_of(
        digits, max_drop=1, stages=[{"prune": {"threshold": "auto"}}], convert=["float32"]
    )
    report = run(recipe, tmp_path / "run", measure_latency=False)
    thresholds = [row.strength["threshold"] for row in report.steps[1:]]
    assert len(set(thresholds)) == len(thresholds) > 2
    assert report.files[1].sparsity > 0.5
    assert report.fits


def test_choosing_by_validation_samples_reads_the_evaluation_data_for_files_only(digits, tmp_path):
    recipe = recipe_of(
        digits,
        data={"source": "digits", "validation": 0.2},
        max_drop=2,
        stages=[{"prune": {"sparsity": 0.7}}],
        convert=["float32"],
    )
    report = run(recipe, tmp_path / "run", measure_latency=False)
    samples = report.data["train_samples"] // 4
    assert report.steps[1].figures["accuracy"] * samples == pytest.approx(
        round(report.steps[1].figures["accuracy"] * samples), abs=0.35
    )
    assert accuracy(report.files[1]) * 539 == pytest.approx(round(accuracy(report.files[1]) * 539))
    assert any("set aside from training" in note for note in report.notes)


def dense(inputs, outputs, name="net"):
    keras.utils.set_random_seed(0)
    x = keras.Input((inputs,), name="features")
    hidden = layers.Dense(24, activation="relu")(x)
    return keras.Model(x, layers.Dense(outputs)(hidden), name=name)


def test_a_regression_is_judged_by_its_error(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype("float32")
    y = (x @ rng.normal(size=(6, 1))).astype("float32")
    model = dense(6, 1)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, y, epochs=20, verbose=0)
    tfedge.save_model(model, tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    recipe = recipe_of(
        tmp_path,
        data=str(tmp_path / "data.npz"),
        metric="mae",
        max_drop="60 %",
        stages="prune_w8a8",
    )
    report = run(recipe, tmp_path / "run", measure_latency=False)
    first, best = report.files[0], next(f for f in report.files if f.path == report.best)
    assert report.fits
    assert report.metrics[0] == {"name": "mae", "higher_is_better": False, "unit": ""}
    assert best.figures["mae"] <= 1.6 * first.figures["mae"]


def test_an_autoencoder_learns_its_inputs(tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(300, 2)) @ rng.normal(size=(2, 8))).astype("float32")
    model = dense(8, 8)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, x, epochs=20, verbose=0)
    tfedge.save_model(model, tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x)
    source = {"source": str(tmp_path / "data.npz"), "labels": "inputs"}
    recipe = recipe_of(tmp_path, data=source, metric="mae", max_drop="150 %", stages="w8a8")
    report = run(recipe, tmp_path / "run", measure_latency=False)
    assert report.fits
    assert report.files[-1].figures["mae"] <= 2.5 * report.files[0].figures["mae"]


def test_two_outputs_and_a_layer_of_ones_own_are_judged_by_output(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype("float32")
    kind, size = (x[:, 0] > 0).astype("int64") + (x[:, 1] > 0), x[:, 2:3] * 2
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="features")
    hidden = Scale()(layers.Dense(24, activation="relu")(inputs))
    outputs = [
        layers.Dense(3, activation="softmax", name="kind")(hidden),
        layers.Dense(1, name="size")(hidden),
    ]
    model = keras.Model(inputs, outputs)
    loss = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x, {"kind": kind, "size": size}, epochs=20, verbose=0)
    tfedge.save_model(model, tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x, y_kind=kind, y_size=size)
    recipe = recipe_of(
        tmp_path,
        data=str(tmp_path / "data.npz"),
        metric={"kind": "accuracy", "size": "mae"},
        max_drop={"kind": 5, "size": "200 %"},
        train={"epochs": 4, "loss": loss},
        stages=[{"prune": {"sparsity": 0.3}}, {"quantize": "auto"}],
    )
    report = run(recipe, tmp_path / "run", measure_latency=False)
    assert set(report.files[-1].figures) == {"kind accuracy", "size mae"}
    assert set(report.budget) == {"kind accuracy", "size mae"}
    assert report.fits, report.verdicts


def test_without_labels_the_model_itself_is_the_measure(digits, tmp_path):
    np.savez(tmp_path / "data.npz", x=tfedge.load_dataset("digits").train.x[:200])
    recipe = recipe_of(
        digits, data=str(tmp_path / "data.npz"), metric="agreement", max_drop=5, stages="w8a8"
    )
    report = run(recipe, tmp_path / "run", measure_latency=False)
    assert report.files[0].figures == {"agreement": 1.0}
    assert report.files[-1].figures["agreement"] >= 0.95
    assert report.fits


def own_fit(model, callbacks):
    """A training of one's own."""
    data = tfedge.load_dataset("digits").train
    model.compile("adam", "sparse_categorical_crossentropy")
    return model.fit(data.x[:320], data.y[:320], epochs=20, verbose=0, callbacks=list(callbacks))


def build():
    """A model that a function makes."""
    keras.utils.set_random_seed(4)
    return keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10, activation="softmax")]
    )


def test_model_and_training_may_be_functions(tmp_path, monkeypatch):
    recipe = as_recipe(
        {
            "model": "test_run:build",
            "data": "digits",
            "fit": "test_run:own_fit",
            "stages": ["finetune", {"prune": {"sparsity": 0.5}}],
            "convert": ["float32"],
        }
    )
    report = run(recipe, tmp_path / "run", measure_latency=False)
    assert accuracy(report.files[1]) > accuracy(report.files[0]) + 0.3
    assert report.files[1].sparsity == pytest.approx(0.5, abs=0.01)


def test_code_of_ones_own_that_changed_is_not_reused(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "import numpy as np\n\n\ndef figure(y, scores):\n    return {}\n"
    figures = []
    for value in ("0.25", "0.75"):
        (tmp_path / "own_metric.py").write_text(source.format(value))
        monkeypatch.delitem(sys.modules, "own_metric", raising=False)
        importlib.invalidate_caches()
        recipe = recipe_of(digits, metric="max:own_metric:figure", convert=["float32"])
        report = run(recipe, tmp_path / "run", measure_latency=False)
        figures.append(report.files[0].figures["own_metric:figure"])
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert figures == [0.25, 0.75]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"metric": {"kind": "accuracy"}}, "output names"),
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
        ({"max_drop": {"a": 1}}, "output names|names"),
        ({"fit": "nowhere:fit", "stages": [{"prune": {"sparsity": 0.5}}]}, "nowhere"),
        ({"stages": [{"prune": {"sparsity": 0.5, "layers": ["cnv"]}}]}, "cnv"),
    ],
)
def test_what_contradicts_the_model_is_refused_with_the_next_move(digits, tmp_path, changes, match):
    with pytest.raises(SettingsError, match=match):
        run(recipe_of(digits, **changes), tmp_path / "run", measure_latency=False)


def test_a_dry_run_writes_nothing_and_says_what_is_skipped(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {digits / 'model.keras'}\ndata: digits\nmax_drop: 5\n"
        "stages:\n- prune: {sparsity: auto}\n- quantize: auto\n"
    )
    assert main(["optimize", str(path), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in planned["rows"]][:2] == ["1-prune", "2-quantize"]
    assert planned["rows"][0]["changes"] == 3
    assert planned["rows"][0]["training_steps"] == 8 * 5 * 40
    assert planned["seconds"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]
