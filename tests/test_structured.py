import json

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers
from models import ZOO, inputs_of, labels_of, weights_of
from structures import STRUCTURES, conv, ended, image, stir

from tfedge.convert import convert
from tfedge.data import Data, Split
from tfedge.engines.native.channel_importance import (
    BY_GRADIENTS,
    BY_OUTPUTS,
    filters_of,
    model_of_tensors,
    score_channels,
)
from tfedge.engines.native.channels import find_channels
from tfedge.engines.native.costs import total_macs
from tfedge.engines.native.graph import read_graph
from tfedge.engines.native.importance import channel_entropy
from tfedge.errors import (
    DataError,
    ModelError,
    SettingsError,
    TrainingError,
    UnsupportedModelError,
)
from tfedge.models import layers_of
from tfedge.stages import _structured_work
from tfedge.stages._base import Context
from tfedge.stages._fit import make_fit
from tfedge.stages.sensitivity import sensitivity
from tfedge.stages.structured import IMPORTANCES, StructuredPrune

LOSS = "sparse_categorical_crossentropy"
BLOCKS = ("inverted_residual", "bottleneck", "dense_block")


def data_of(model, samples=48):
    x = inputs_of(model, samples)
    x = tuple(x) if isinstance(x, list) else x
    return Data(train=Split(x, labels_of(samples)), evaluation=Split(x, labels_of(samples)))


def context_of(model, epochs=1):
    data = data_of(model)
    fit = make_fit(data, epochs=epochs, batch_size=16, learning_rate=0.01)
    return Context(fit=fit, data=data)


def compiled(name):
    model = ZOO[name](keras)
    model.compile(keras.optimizers.SGD(0.05), LOSS)
    return model


def outputs(model):
    return np.asarray(model(inputs_of(model), training=False))


def macs(model):
    return total_macs(read_graph(model))


# ---------------------------------------------------------------------- the stage


@pytest.mark.parametrize("name", ZOO)
def test_every_network_gets_smaller_within_its_budget(name, tmp_path):
    model = compiled(name)
    before = weights_of(model)
    stage = StructuredPrune(flops=0.6, round_to=1, min_channels=1)
    pruned, report = stage.apply(model, context_of(model))
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert 0.3 < macs(pruned) / macs(model) <= 0.6
    assert report.metrics["macs_fraction"] == macs(pruned) / macs(model)
    assert report.metrics["parameters_after"] == pruned.count_params()
    named = sorted([*report.changed, *(row.layer for row in report.skipped)])
    assert named == sorted(layer.name for layer in layers_of(pruned))
    assert pruned.compiled
    assert type(pruned.optimizer).__name__ == "SGD"
    json.dumps(report.to_dict())
    pruned.save(path := tmp_path / "pruned.keras")
    assert np.array_equal(outputs(keras.models.load_model(path)), outputs(pruned))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {"amount": 0.0}) for name in ZOO),
        ("dense", {"flops": 1.0}),
        ("dense", {"params": 1}),
    ],
)
def test_removing_nothing_changes_no_bit(name, settings):
    model = ZOO[name](keras)
    pruned, report = StructuredPrune(**settings).apply(model)
    assert np.array_equal(outputs(pruned), outputs(model))
    assert report.changed == report.notes == ()
    assert report.metrics["macs_fraction"] == 1


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_large_networks_are_halved_train_and_become_integer_files(name):
    model = STRUCTURES[name]()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    stage = StructuredPrune(flops=0.5, round_to=4)
    pruned, _ = stage.apply(model)
    assert macs(pruned) <= 0.5 * macs(model)
    x = inputs_of(pruned, 16)
    pruned.fit(x, labels_of(16) % 3, verbose=0)
    _, report = convert(pruned, mode="int8", calibration=x)
    assert report.float_operators == ()


def test_the_removed_channels_are_those_with_the_smallest_filters():
    model = STRUCTURES["flatten_dense"]()
    norms = np.linalg.norm(model.layers[1].get_weights()[0].reshape(-1, 6), axis=0)
    stage = StructuredPrune(per_layer={model.layers[1].name: 0.5}, round_to=1, min_channels=1)
    pruned, report = stage.apply(model)
    kept = np.sort(np.argsort(norms)[3:])
    expected = model.layers[1].get_weights()[0][..., kept]
    assert np.array_equal(pruned.layers[1].get_weights()[0], expected)
    rows = report.metrics["layers"]
    assert rows[model.layers[1].name]["channels"] == [6, 3]
    assert pruned.layers[4].kernel.shape == (27, 8)  # 3×3 places of 3 channels


def test_iterations_reach_the_budget_step_by_step_and_train_between():
    model = compiled("residual")
    seen = []

    def fit(current, callbacks):
        seen.append(macs(current) / macs(model))
        return context.fit(current, callbacks)

    context = context_of(model)
    stage = StructuredPrune(flops=0.4, iterations=3, round_to=1, importance="taylor")
    pruned, report = stage.apply(model, Context(fit=fit, data=context.data))
    assert len(seen) == 3
    for fraction, most in zip(seen, (0.8, 0.6, 0.4), strict=True):
        assert most - 0.12 < fraction <= most
    assert report.metrics["macs_fraction"] <= 0.4


def test_amounts_come_in_the_same_steps():
    model = ZOO["dense"](keras)
    context = context_of(model)
    sizes = []

    def fit(current, callbacks):
        sizes.append(current.get_layer("hidden_1").units)
        return context.fit(current, callbacks)

    stage = StructuredPrune(amount=0.5, iterations=3, round_to=1)
    stage.apply(model, Context(fit=fit))
    assert sizes == [20, 16, 12]


def test_channels_are_rounded_and_small_layers_stay():
    i = keras.Input((10,))
    x = layers.Dense(44, name="wide")(i)
    model = stir(keras.Model(i, layers.Dense(3)(layers.Dense(7, name="thin")(x))))
    pruned, report = StructuredPrune(amount=0.5).apply(model)
    assert pruned.get_layer("wide").units == 24
    assert pruned.get_layer("thin").units == 7
    assert report.metrics["layers"]["thin"]["channels"] == [7, 7]  # it only reads fewer


def test_a_global_scope_takes_from_where_it_matters_least():
    i = keras.Input((10,))
    model = stir(
        keras.Model(i, layers.Dense(3)(layers.Dense(16, name="b")(layers.Dense(16, name="a")(i))))
    )

    def uneven(filters):
        return np.r_[np.ones(8), np.zeros(8)] if filters.shape[1] == 10 else np.ones(len(filters))

    stage = StructuredPrune(
        amount=0.25, scope="global", importance=uneven, round_to=1, min_channels=1
    )
    pruned, _ = stage.apply(model)
    assert [pruned.get_layer(name).units for name in "ab"] == [8, 16]


def test_layers_and_exclude_choose():
    model = ZOO["conv_bn_relu"](keras)
    first, report = StructuredPrune(amount=0.5, round_to=2, layers=["conv_1"]).apply(model)
    second, _ = StructuredPrune(amount=0.5, round_to=2, exclude=["conv_1"]).apply(model)
    assert (first.get_layer("conv_1").filters, first.get_layer("conv_2").filters) == (4, 12)
    assert (second.get_layer("conv_1").filters, second.get_layer("conv_2").filters) == (8, 6)
    assert "conv_2" in report.changed  # it reads fewer channels
    third, report = StructuredPrune(amount=0.5, round_to=2, exclude=["conv_1", "conv_2"]).apply(
        model
    )
    reasons = {row.layer: row.reason for row in report.skipped}
    assert reasons["conv_2"] == "`exclude` holds conv_2"
    assert reasons["relu_1"] == "no weights"
    assert reasons["classes"] == "its channels are an output of the model"
    assert "leave no step near" in report.notes[0]


def test_a_budget_of_parameters_holds_too():
    model = STRUCTURES["flatten_dense"]()
    pruned, report = StructuredPrune(params=0.5, round_to=1, min_channels=1).apply(model)
    assert 0.4 * model.count_params() < pruned.count_params() <= 0.5 * model.count_params()
    even, _ = StructuredPrune(params=0.5, scope="layer", round_to=1, min_channels=1).apply(model)
    assert even.count_params() <= 0.5 * model.count_params()
    shares = [even.layers[1].filters / 6, even.layers[4].units / 8]
    assert abs(shares[0] - shares[1]) < 0.2


def test_a_latency_is_looked_for_by_measuring(monkeypatch):
    model = STRUCTURES["bottleneck"]()
    measured = []

    def latency(candidate):
        measured.append(macs(candidate))
        return macs(candidate) / macs(model)

    monkeypatch.setattr(_structured_work, "latency_ms", latency)
    stage = StructuredPrune(latency_ms=0.6, round_to=1, min_channels=1)
    pruned, report = stage.apply(model)
    assert 0.5 < macs(pruned) / macs(model) <= 0.6
    assert report.metrics["latency_ms_before"] == 1
    assert report.metrics["latency_ms_after"] == macs(pruned) / macs(model)
    assert len(measured) <= 2 + _structured_work.LATENCY_TURNS
    with pytest.raises(SettingsError, match=r"`latency_ms=0.001` cannot be met: 1.000 ms now, 0"):
        StructuredPrune(latency_ms=0.001, round_to=1).apply(model)
    same, report = StructuredPrune(latency_ms=2.0).apply(model)
    assert "as it is" in report.notes[0]


def test_latency_is_that_of_the_file_on_this_machine():
    assert 0 < _structured_work.latency_ms(ZOO["dense"](keras)) < 50


def test_a_metric_is_measured_before_and_after():
    from tfedge.data import find_metric

    model = compiled("conv_bn_relu")
    context = context_of(model)
    context = Context(fit=context.fit, data=context.data, metric=find_metric("accuracy"))
    _, report = StructuredPrune(amount=0.5, round_to=2).apply(model, context)
    names = {"accuracy_before", "accuracy_pruned", "accuracy_trained"}
    assert names <= set(report.metrics)


# ---------------------------------------------------------------------- importance


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_prunes(importance):
    model = compiled("residual")
    context = Context(data=data_of(model))
    pruned, _ = StructuredPrune(flops=0.5, importance=importance, round_to=1).apply(model, context)
    assert macs(pruned) <= 0.5 * macs(model)


def scored(model, importance, **settings):
    channels = find_channels(read_graph(model))
    return channels, score_channels(model, channels, importance, **settings)


def test_filters_carry_the_scale_of_the_batch_normalisation_behind_them():
    model = ZOO["residual"](keras)
    channels, scores = scored(model, "l1")
    folded = []
    for number in (1, 3):
        kernel = model.get_layer(f"conv_{number}").get_weights()[0]
        gamma, _, _, variance = model.get_layer(f"bn_{number}").get_weights()
        folded.append((kernel * gamma / np.sqrt(variance + 1e-3)).reshape(-1, 8))
    expected = np.abs(np.concatenate(folded)).sum(axis=0)
    np.testing.assert_allclose(scores[0], expected / expected.mean(), rtol=1e-5)
    assert filters_of(channels, channels.groups[0]).shape == (8, 9 * 3 + 9 * 8)


def test_scales_are_summed_over_what_goes_together_and_absent_without_them():
    model = ZOO["residual"](keras)
    _, scores = scored(model, "bn_scale")
    sums = sum(np.abs(model.get_layer(f"bn_{n}").get_weights()[0]) for n in (1, 3))
    np.testing.assert_allclose(scores[0], sums / sums.mean(), rtol=1e-6)
    model = ZOO["two_inputs"](keras)
    channels, scores = scored(model, "bn_scale")
    assert [channels.groups[index].name for index in scores] == ["conv_1"]
    _, report = StructuredPrune(amount=0.5, importance="bn_scale", round_to=1).apply(model)
    reasons = {row.layer: row.reason for row in report.skipped}
    assert "says nothing" in reasons["dense_extra"]


@pytest.mark.parametrize("importance", BY_OUTPUTS)
def test_outputs_are_looked_at_behind_the_activation(importance):
    model = ZOO["conv_bn_relu"](keras)
    x = inputs_of(model, 40)
    _, scores = scored(model, importance, data=Split(x))
    probe = keras.Model(model.input, model.get_layer("relu_1").output)
    seen = np.asarray(probe(x)).reshape(40, -1, 8)
    expected = {
        "activation_mean": lambda: seen.mean(axis=(0, 1)),
        "apoz": lambda: (seen != 0).mean(axis=(0, 1)),
        "entropy": lambda: channel_entropy(seen),
    }[importance]()
    np.testing.assert_allclose(scores[0], expected / expected.mean(), rtol=1e-4)


@pytest.mark.parametrize("name", ["residual", "dense"])
def test_taylor_is_the_slope_of_the_loss_along_the_channel(name):
    """The oracle scales a channel by a gate and differentiates the loss by it numerically."""
    model = compiled(name)
    x, y = inputs_of(model, 32), labels_of(32)
    channels, scores = scored(model, "taylor", data=Split(x, y))
    group = next(group for group in channels.groups if group.name in ("conv_2", "hidden_1"))
    writer = model.get_layer("bn_2" if name == "residual" else "hidden_1")
    weights = writer.get_weights()

    def loss(channel, gate):
        changed = [w.copy() for w in weights]
        for w in changed[:2]:  # gamma and beta, or kernel and bias
            w[..., channel] *= gate
        writer.set_weights(changed)
        return float(model.compute_loss(y=y, y_pred=model(x, training=False)))

    for channel in range(3):
        slope = abs(loss(channel, 1.01) - loss(channel, 0.99)) / 0.02
        assert scores[group.index][channel] == pytest.approx(slope, rel=0.03, abs=2e-4)
    writer.set_weights(weights)


@pytest.mark.parametrize("importance", BY_GRADIENTS)
def test_gradients_need_labels_and_a_loss(importance):
    model = compiled("dense")
    unlabelled = Context(data=Data(train=Split(inputs_of(model))))
    stage = StructuredPrune(amount=0.5, importance=importance)
    with pytest.raises(DataError, match="labels"):
        stage.apply(model, unlabelled)
    with pytest.raises(SettingsError, match="Compile it first"):
        stage.apply(ZOO["dense"](keras), Context(data=data_of(model)))
    with pytest.raises(SettingsError, match=r"without `data.train`"):
        stage.apply(model)


@pytest.mark.parametrize(
    "scores", [lambda f: f, lambda f: -np.ones(len(f)), lambda f: np.full(len(f), np.nan)]
)
def test_scores_of_ones_own_are_checked(scores):
    with pytest.raises(SettingsError, match="one finite score from 0 for each channel"):
        StructuredPrune(amount=0.5, importance=scores).apply(ZOO["dense"](keras))


def test_tensors_are_those_of_the_model():
    model = ZOO["nested"](keras)
    channels = find_channels(read_graph(model))
    probe = model_of_tensors(channels, list(channels.graph.outputs))
    x = inputs_of(model)
    assert np.array_equal(keras.tree.flatten(probe(x))[0], model(x))


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "needs one of `amount`"),
        ({"amount": 1.0}, r"fraction of channels that goes.*remove every channel"),
        ({"amount": 50}, "Did you mean 0.5"),
        ({"flops": 0}, r"`flops` is the fraction that may remain, in \(0, 1\]"),
        ({"params": 50}, "Did you mean 0.5"),
        ({"latency_ms": -1}, "`latency_ms` is a positive number"),
        ({"flops": 0.5, "params": 0.5}, "both say how much goes"),
        ({"amount": 0.5, "flops": 0.5}, "both say how much goes"),
        ({"per_layer": {"a": 1.5}}, r"per_layer\['a'\]"),
        ({"per_layer": {"a": 0.5}, "scope": "global"}, "Leave one out"),
        ({"per_layer": {"a": 0.5}, "layers": ["b"]}, "alone chooses the layers"),
        ({"amount": 0.5, "scope": "globl"}, "Did you mean 'global'"),
        ({"amount": 0.5, "importance": "l3"}, "`importance` must be one of"),
        ({"amount": 0.5, "round_to": 0}, "round_to"),
        ({"amount": 0.5, "iterations": 0}, "iterations"),
        ({"amount": 0.5, "layers": "conv"}, r"Did you mean \['conv'\]"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(SettingsError, match=match):
        StructuredPrune(**settings)
    StructuredPrune(amount=0.5, per_layer={"a": 0.25})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"flops": 0.05}, r"`flops=0.05` cannot be met: with round_to=8.*0.\d+ of the macs"),
        ({"params": 0.01, "round_to": 1}, r"of the parameters remain at least \([\d,]+ of"),
        ({"amount": 0.5, "layers": ["conv1"]}, "Did you mean 'conv_1'"),
        ({"amount": 0.5, "layers": ["classes"]}, "classes: its channels are an output"),
        ({"per_layer": {"classes": 0.5}}, "No channel of 'classes' can be removed"),
        ({"per_layer": {"conv_1": 0.5, "conv_3": 0.25}}, "they go together.*Give one number"),
        ({"flops": 0.5, "round_to": 1, "iterations": 2}, "trains between its turns"),
    ],
)
def test_what_the_model_cannot_do_is_said(settings, match):
    with pytest.raises(SettingsError, match=match):
        StructuredPrune(**settings).apply(ZOO["residual"](keras))


def test_a_budget_that_the_importance_cannot_reach_is_refused():
    model = ZOO["dense"](keras)
    with pytest.raises(SettingsError, match=r"`flops=0.5` cannot be met"):
        StructuredPrune(flops=0.5, importance="bn_scale", round_to=1).apply(model)


def test_models_that_cannot_be_rebuilt_are_refused():
    stage = StructuredPrune(amount=0.5)
    with pytest.raises(UnsupportedModelError, match=r"tf_keras model.*tfedge.to_keras3"):
        stage.apply(ZOO["dense"](tf_keras))
    model = ZOO["dense"](keras)
    model.layers[0].bias.assign(np.full(24, np.nan))
    with pytest.raises(ModelError, match="finite"):
        stage.apply(model)


def test_a_lost_training_is_noticed():
    model = compiled("dense")

    def fit(current, callbacks):
        current.layers[1].kernel.assign(np.full(current.layers[1].kernel.shape, np.nan))

    with pytest.raises((ModelError, TrainingError), match="finite"):
        StructuredPrune(amount=0.5).apply(model, Context(fit=fit))


# ---------------------------------------------------------------------- sensitivity


@pytest.fixture(scope="module")
def report_of_residual():
    model = ZOO["residual"](keras)
    x = inputs_of(model, 64)
    y = np.argmax(model.predict(x, verbose=0), axis=1)
    before = weights_of(model)
    report = sensitivity(model, Split(x, y), "accuracy", (0.25, 0.5))
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    return model, x, y, report


def test_sensitivity_is_the_metric_of_the_model_with_fewer_channels(report_of_residual):
    model, x, y, report = report_of_residual
    assert report.baseline == 1
    assert [row.layer for row in report.rows] == ["conv_1 + conv_3"] * 2 + ["conv_2"] * 2
    for row in report.rows:
        name = row.layer.split(" + ")[0]
        pruned, _ = StructuredPrune(
            per_layer={name: row.fraction}, round_to=1, min_channels=1
        ).apply(model)
        expected = (np.argmax(pruned.predict(x, verbose=0), axis=1) == y).mean()
        assert row.figure == pytest.approx(expected)
        assert row.drop == pytest.approx(1 - expected)
    skipped = {row.layer: row.reason for row in report.skipped}
    assert skipped["classes"] == "its channels are an output of the model"
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["removed"] == 2
    assert str(report).count("\n") == 3


def test_sensitivity_builds_smaller_models_where_statistics_are_over_channels():
    x = layers.LayerNormalization(name="norm")(conv(i := image(), 6, name="a"))
    model = ended(i, conv(x, 4, name="b"))
    x = inputs_of(model, 16)
    y = np.asarray(model(x))
    report = sensitivity(model, Split(x, y), "mean_squared_error", [0.5], layers=["a"])
    pruned, _ = StructuredPrune(per_layer={"a": 0.5}, round_to=1, min_channels=1).apply(model)
    assert report.rows[0].figure == pytest.approx(np.mean((outputs_on(pruned, x) - y) ** 2))
    assert report.rows[0].drop > 0


def outputs_on(model, x):
    return np.asarray(model(x, training=False))


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_sensitivity_is_drawn(report_of_residual, tmp_path, suffix):
    path = report_of_residual[3].plot(tmp_path / f"plot.{suffix}")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(SettingsError, match=r"ends in .svg"):
        report_of_residual[3].plot(tmp_path / "plot.txt")


@pytest.mark.parametrize(
    ("fractions", "match"), [((), "each in"), ((0.5, 1.0), "each in"), (("a",), "each in")]
)
def test_sensitivity_refuses_fractions_out_of_range(fractions, match):
    model = ZOO["dense"](keras)
    data = data_of(model, 8)
    with pytest.raises(SettingsError, match=match):
        sensitivity(model, data, "accuracy", fractions)
    with pytest.raises(DataError, match="without `evaluation`"):
        sensitivity(model, Data(train=data.train), "accuracy")
    assert sensitivity(model, data, "accuracy", (0.5,)).rows


# ---------------------------------------------------------------------- large networks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50", "EfficientNetB0", "DenseNet121"])
def test_published_networks_are_halved_train_and_become_integer_files(name):
    keras.utils.set_random_seed(0)
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=(64, 64, 3), classes=10)
    model.compile("sgd", LOSS)
    same, _ = StructuredPrune(amount=0.0).apply(model)
    x = np.random.default_rng(0).random((4, 64, 64, 3)).astype("float32")
    assert np.array_equal(same.predict(x, verbose=0), model.predict(x, verbose=0))
    pruned, report = StructuredPrune(flops=0.5).apply(model)
    assert 0.45 < report.metrics["macs_fraction"] <= 0.5
    filters = [layer.filters for layer in layers_of(pruned) if type(layer) is layers.Conv2D]
    changed = [n for n in report.changed if report.metrics["layers"][n]["channels"][0] > 8]
    assert changed
    assert sum(count % 8 == 0 for count in filters) > 0.6 * len(filters)
    pruned.fit(x, np.arange(4), verbose=0)
    _, converted = convert(pruned, mode="int8", calibration=x)
    assert converted.float_operators == ()
