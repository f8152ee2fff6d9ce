import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from models import ZOO, inputs_of, labels_of, weights_of

from tfedge.data import Data, Split, find_metric
from tfedge.engines.native.gates import (
    GatedWeights,
    fold_gates,
    gated_layers,
    gates_at_rest,
    open_probability,
    sample_gates,
)
from tfedge.engines.native.penalties import (
    Penalty,
    absolute_sum,
    group_lasso,
    group_norms,
    group_shape,
)
from tfedge.errors import ModelError, SettingsError, TrainingError, UnsupportedModelError
from tfedge.models import layers_of
from tfedge.stages._base import Context
from tfedge.stages._fit import make_fit
from tfedge.stages.sparsity_penalty import SparsityPenalty

L = keras.layers
LOSS = "sparse_categorical_crossentropy"
KINDS = [
    {"kind": "l1"},
    {"kind": "group_lasso"},
    {"kind": "group_lasso", "groups": "inputs"},
    {"kind": "batch_norm"},
    {"kind": "l0"},
    {"kind": "l0", "groups": "inputs"},
    {"kind": "l0", "groups": "weights"},
]
IDS = ["-".join(row.values()) for row in KINDS]


def says(model, x):
    """Outputs at inference, without the graph that `predict` would trace."""
    return np.asarray(model(x, training=False))


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def compiled(name, optimizer=None, **settings):
    model = ZOO[name](keras)
    model.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.5), LOSS, **settings)
    return model


def separable(samples=256, seed=0):
    """Two features of 16 say the class, the others are noise."""
    x = normal((samples, 16), seed)
    return x, (x[:, 0] > 0) * 2 + (x[:, 1] > 0)


def set_gates(wrapper, log_alpha):
    wrapper.gate.assign(log_alpha / wrapper.speed)


# ---------------------------------------------------------------------- formulas


def gradient_of(formula, weights):
    weights = tf.constant(weights)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        value = formula(weights)
    return tape.gradient(value, weights).numpy()


def test_the_gradient_of_l1_is_the_sign():
    weights = normal((5, 4))
    np.testing.assert_array_equal(gradient_of(absolute_sum, weights), np.sign(weights))


@pytest.mark.parametrize("groups", ["outputs", "inputs"])
def test_the_gradient_of_group_lasso_is_the_unit_vector_of_each_group_times_root_of_its_size(
    groups,
):
    weights = normal((3, 3, 4, 6))
    axes = (0, 1, 2) if groups == "outputs" else (0, 1, 3)
    shape = group_shape(L.Conv2D(6, 3), weights.shape, groups)
    norms = np.sqrt(np.sum(weights**2, axis=axes, keepdims=True))
    size = weights.size / norms.size
    assert shape == norms.shape
    np.testing.assert_allclose(group_norms(weights, shape), norms, rtol=1e-5)
    value = float(group_lasso(weights, shape))
    assert value == pytest.approx(np.sqrt(size) * norms.sum(), rel=1e-5)
    np.testing.assert_allclose(
        gradient_of(lambda w: group_lasso(w, shape), weights),
        np.sqrt(size) * weights / norms,
        rtol=1e-4,
    )


def test_a_group_of_zeros_has_gradient_zero_and_not_nan():
    weights = np.zeros((4, 2), np.float32)
    assert not gradient_of(lambda w: group_lasso(w, (1, 2)), weights).any()


@pytest.mark.parametrize(
    ("layer", "shape", "groups", "expected"),
    [
        (L.Dense(5), (3, 5), "outputs", (1, 5)),
        (L.Dense(5), (3, 5), "inputs", (3, 1)),
        (L.Conv2DTranspose(5, 3), (3, 3, 5, 4), "outputs", (1, 1, 5, 1)),
        (L.DepthwiseConv2D(3), (3, 3, 4, 2), "outputs", (1, 1, 4, 2)),
        (L.DepthwiseConv2D(3), (3, 3, 4, 2), "inputs", (1, 1, 4, 1)),
        (L.Conv1D(5, 3), (3, 4, 5), "weights", (3, 4, 5)),
        (L.EinsumDense("ab,bc->ac", 5), (4, 5), "outputs", None),
    ],
)
def test_groups_are_those_of_the_kernels_layout(layer, shape, groups, expected):
    assert group_shape(layer, shape, groups) == expected


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 1.0, 3.0])
def test_the_expected_count_is_that_of_drawn_gates(log_alpha):
    draws = 200_000
    uniform = np.random.default_rng(0).uniform(1e-6, 1 - 1e-6, draws).astype(np.float32)
    gates = np.asarray(sample_gates(np.float32(log_alpha), uniform))
    paper = 1 / (1 + np.exp(-(log_alpha - 2 / 3 * np.log(0.1 / 1.1))))
    expected = float(open_probability(np.float32(log_alpha)))
    assert expected == pytest.approx(paper, rel=1e-5)
    error = np.sqrt(paper * (1 - paper) / draws)
    assert np.mean(gates > 0) == pytest.approx(paper, abs=4 * error)
    assert gates.min() >= 0
    assert gates.max() <= 1


def test_gates_at_rest_are_the_clipped_stretched_sigmoid():
    log_alpha = np.linspace(-5, 5, 21).astype(np.float32)
    expected = np.clip(1.2 / (1 + np.exp(-log_alpha)) - 0.1, 0, 1)
    np.testing.assert_allclose(gates_at_rest(log_alpha), expected, atol=1e-6)


# ---------------------------------------------------------------------- in the training loss


@pytest.mark.parametrize("name", ["conv_bn_relu", "shared_layer"])
@pytest.mark.parametrize("settings", KINDS, ids=IDS)
def test_the_loss_grows_by_the_penalty_counted_once(name, settings):
    if name == "shared_layer" and settings["kind"] == "batch_norm":
        pytest.skip("the model has no batch normalisation")
    model = compiled(name)
    stage = SparsityPenalty(**settings, strength=0.01)
    prepared = stage.prepare(model)
    _, report = stage.finish(prepared)
    x, y = inputs_of(model, 8), labels_of(8)
    plain, penalised = (float(m.compute_loss(x, y, says(m, x))) for m in (model, prepared))
    assert report.metrics["penalty"] > 0.01
    assert penalised - plain == pytest.approx(report.metrics["penalty"], rel=1e-4)


def test_a_step_of_sgd_follows_loss_and_penalty():
    model = compiled("dense", keras.optimizers.SGD(0.1))
    x, y = inputs_of(model, 16), labels_of(16)
    prepared = SparsityPenalty(kind="l1", strength=0.02).prepare(model)
    model.fit(x, y, batch_size=16, verbose=0)
    prepared.fit(x, y, batch_size=16, verbose=0)
    kernels = [v for v in ZOO["dense"](keras).trainable_weights if len(v.shape) == 2]
    for kernel in kernels:
        layer = kernel.path.split("/")[-2]
        plain, pushed = (m.get_layer(layer).get_weights()[0] for m in (model, prepared))
        np.testing.assert_allclose(plain - pushed, 0.1 * 0.02 * np.sign(kernel), atol=1e-6)


def test_a_regulariser_of_the_users_still_counts_and_is_there_afterwards():
    layers = [
        keras.Input((16,)),
        L.Dense(8, kernel_regularizer=keras.regularizers.L2(0.1), name="a"),
        L.Dense(4, name="b"),
    ]
    model = keras.Sequential(layers)
    own = float(sum(model.losses))
    stage = SparsityPenalty(kind="l1", strength=0.01, layers=["a"])
    prepared = stage.prepare(model)
    added = 0.01 * np.abs(model.get_layer("a").get_weights()[0]).sum()
    assert float(sum(prepared.losses)) == pytest.approx(own + added, rel=1e-5)
    finished, _ = stage.finish(prepared)
    assert float(sum(finished.losses)) == pytest.approx(own, rel=1e-6)
    assert not any(isinstance(v.regularizer, Penalty) for v in finished.trainable_variables)


# ---------------------------------------------------------------------- gates


def test_a_gated_layer_computes_with_gated_weights_in_training_and_at_rest():
    layer = L.Conv2D(6, 3, activation="relu", name="a")
    model = keras.Sequential([keras.Input((7, 7, 4)), layer, L.Flatten(), L.Dense(2)])
    layer.set_weights([normal((3, 3, 4, 6)), normal((6,), 1)])
    wrapper = gated_layers(SparsityPenalty(kind="l0", strength=0.1).prepare(model))[0]
    set_gates(wrapper, np.linspace(-4, 4, 6).reshape(1, 1, 1, 6))
    x = normal((2, 7, 7, 4), 2)
    gates = np.asarray(wrapper.gates())
    kernel, bias = layer.get_weights()
    expected = tf.nn.relu(tf.nn.conv2d(x, kernel * gates, 1, "VALID") + bias * gates.ravel())
    np.testing.assert_allclose(wrapper(x, training=False), expected, atol=1e-5)
    drawn = np.asarray(wrapper(x, training=True))
    assert not np.allclose(drawn, expected)
    channels = drawn.reshape(-1, 6)
    assert not channels[:, 0].any()  # its gate is open with probability 0.08
    assert channels[:, 5].any()


@pytest.mark.parametrize("groups", ["outputs", "inputs", "weights"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (L.Dense(6, activation="tanh"), (5,)),
        (L.Conv1D(6, 3, activation="relu"), (8, 5)),
        (L.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4)),
        (L.Conv2DTranspose(6, 3, use_bias=False), (5, 5, 4)),
        (L.SeparableConv2D(6, 3), (6, 6, 4)),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_folding_is_exact(layer, shape, groups):
    first = type(layer).from_config(layer.get_config())
    model = keras.Sequential([keras.Input(shape), first, L.Flatten(), L.Dense(2)])
    for index, weight in enumerate(model.weights):
        weight.assign(normal(weight.shape, index))
    stage = SparsityPenalty(kind="l0", strength=0.1, groups=groups, layers=[first.name])
    gated = stage.prepare(model)
    (wrapper,) = gated_layers(gated)
    set_gates(wrapper, 3 * normal(wrapper.gate.shape, 5))
    folded = fold_gates(gated)
    x = normal((3, *shape), 6)
    np.testing.assert_array_equal(says(folded, x), says(gated, x))
    assert not gated_layers(folded)


def test_a_gated_model_is_saved_and_loaded_with_its_gates(tmp_path):
    stage = SparsityPenalty(kind="l0", strength=0.1)
    gated = stage.prepare(compiled("conv_bn_relu"))
    gated.fit(inputs_of(gated), labels_of(), verbose=0)
    set_gates(gated_layers(gated)[0], normal((1, 1, 1, 8)) * 9)
    gated.save(tmp_path / "gated.keras")
    loaded = keras.models.load_model(tmp_path / "gated.keras")
    assert isinstance(loaded.layers[1], GatedWeights)
    x = inputs_of(gated)
    np.testing.assert_array_equal(says(loaded, x), says(gated, x))
    assert float(sum(loaded.losses)) == pytest.approx(float(sum(gated.losses)))
    finished, report = stage.finish(loaded)
    assert report.metrics["open_gates"] < report.metrics["gates"] == 20


def test_closed_gates_leave_channels_of_exact_zeros():
    stage = SparsityPenalty(kind="l0", strength=0.1)
    gated = stage.prepare(compiled("conv_bn_relu"))
    log_alpha = np.array([9, 9, -9, 9, -9, 9, 9, 9], np.float32)
    set_gates(gated_layers(gated)[0], log_alpha.reshape(1, 1, 1, 8))
    finished, report = stage.finish(gated)
    (kernel,) = finished.get_layer("conv_1").get_weights()
    assert [bool(kernel[..., c].any()) for c in range(8)] == (log_alpha > 0).tolist()
    assert report.metrics["open_gates"] == 18
    assert report.metrics["near_zero_per_layer"]["conv_1"] == 0.25
    counts = report.metrics["expected_open_gates_per_layer"]
    assert counts["conv_1"] == pytest.approx(6, abs=0.01)


# ---------------------------------------------------------------------- the stage


@pytest.mark.parametrize("name", [name for name in ZOO if name != "frozen_backbone"])
@pytest.mark.parametrize("settings", [KINDS[0], KINDS[4]], ids=[IDS[0], IDS[4]])
def test_strength_zero_without_training_leaves_the_model_as_it_is(name, settings):
    model = ZOO[name](keras)
    before = weights_of(model)
    stage = SparsityPenalty(**settings, strength=0.0)
    finished, report = stage.finish(stage.prepare(model))
    x = inputs_of(model)
    np.testing.assert_allclose(says(finished, x), says(model, x), atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert not gated_layers(finished)
    named = [*report.changed, *(row.layer for row in report.skipped)]
    assert sorted(named) == sorted(layer.name for layer in layers_of(model))


def test_batch_norm_scales_are_found_and_their_near_zeros_set_to_zero():
    model = ZOO["conv_bn_relu"](keras)
    gamma = model.get_layer("bn_1").gamma
    gamma.assign([1.0, 1e-4, -1e-4, 0.5, 2e-3, -2.0, 1.0, 0.0])
    stage = SparsityPenalty(kind="batch_norm", strength=1e-3, zero_out=True)
    finished, report = stage.finish(stage.prepare(model))
    assert report.changed == ("bn_1", "bn_2")
    assert report.metrics["channels"] == 20
    assert report.metrics["channels_near_zero"] == 3
    assert report.metrics["zeroed_weights"] == 2
    kept = [True, False, False, True, True, True, True, False]
    assert (finished.get_layer("bn_1").gamma.numpy() != 0).tolist() == kept
    assert gamma.numpy()[1] == np.float32(1e-4)


def test_whole_filters_near_zero_are_set_to_zero_and_the_models_outputs_kept():
    model = ZOO["dense"](keras)
    kernel, bias = model.get_layer("hidden_1").get_weights()
    kernel[:, 3] = 5e-4
    kernel[0, 3] = 2e-3  # alone it is above the threshold, its group is not
    model.get_layer("hidden_1").set_weights([kernel, bias])
    stage = SparsityPenalty(kind="group_lasso", strength=1e-3, zero_out=True)
    finished, report = stage.finish(stage.prepare(model))
    changed = finished.get_layer("hidden_1").get_weights()[0]
    assert np.flatnonzero(~changed.any(axis=0)).tolist() == [3]
    assert report.metrics["zeroed_weights"] == 16
    assert report.skipped[0].layer == "classes"
    assert "outputs are the model's" in report.skipped[0].reason


@pytest.mark.parametrize(
    ("settings", "strengths"),
    [
        ({"kind": "l1", "threshold": 0.02}, (0.0, 3e-2)),
        ({"kind": "group_lasso", "threshold": 0.02}, (0.0, 3e-2)),
        pytest.param({"kind": "l0"}, (0.0, 3e-3, 3e-2), marks=pytest.mark.slow),
    ],
    ids=["l1", "group_lasso", "l0"],
)
def test_more_strength_gives_more_zeros(settings, strengths):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((16,)), L.Dense(24, activation="relu"), L.Dense(4, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.02), LOSS)
    data = Data(train=Split(*separable()))
    context = Context(fit=make_fit(data, epochs=12, batch_size=64, learning_rate=0.05), data=data)
    zeros, penalties = [], []
    for strength in strengths:
        stage = SparsityPenalty(**settings, strength=strength)
        _, report = stage.apply(model, context)
        unit = {"l1": "weights", "group_lasso": "groups", "l0": "gates"}[settings["kind"]]
        zeros.append(report.metrics[f"{unit}_near_zero"])
        penalties.append(report.metrics["penalty"] / strength if strength else np.inf)
    assert zeros == sorted(set(zeros))
    assert penalties == sorted(penalties, reverse=True)


def test_network_slimming_shrinks_the_scales_that_the_task_needs_least():
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((16,)),
        L.Dense(24, use_bias=False),
        L.BatchNormalization(name="bn"),
        L.ReLU(),
        L.Dense(4, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.02), LOSS, metrics=["accuracy"])
    data = Data(train=Split(*separable()))
    context = Context(fit=make_fit(data, epochs=12, batch_size=64, learning_rate=0.05), data=data)
    stage = SparsityPenalty(kind="batch_norm", strength=3e-2, threshold=0.02, zero_out=True)
    slim, report = stage.apply(model, context)
    assert 8 <= report.metrics["channels_near_zero"] < 24
    assert slim.evaluate(*separable(), verbose=0)[1] > 0.9


@pytest.mark.parametrize("settings", KINDS[::2], ids=IDS[::2])
def test_a_compiled_model_comes_back_compiled_and_in_plain_layers(settings):
    model = compiled("conv_bn_relu", jit_compile=True)
    stage = SparsityPenalty(**settings, strength=1e-3)
    prepared = stage.prepare(model)
    finished, _ = stage.finish(prepared)
    for result in (prepared, finished):
        assert result.optimizer.get_config() == model.optimizer.get_config()
        assert result.optimizer is not model.optimizer
        assert result.jit_compile is True
    assert {type(la).__module__.split(".")[0] for la in finished.layers} == {"keras"}


def test_the_metric_before_and_after_is_recorded():
    model = compiled("dense")
    split = Split(inputs_of(model, 32), labels_of(32))
    data = Data(train=split, evaluation=split)
    context = Context(fit=make_fit(data, epochs=1), data=data, metric=find_metric("accuracy"))
    _, report = SparsityPenalty(kind="l1", strength=1e-3).apply(model, context)
    assert {"accuracy_before", "accuracy_trained"} <= set(report.metrics)


def test_frozen_layers_are_left_alone():
    stage = SparsityPenalty(kind="l1", strength=1e-3)
    _, report = stage.finish(stage.prepare(ZOO["frozen_backbone"](keras)))
    assert report.changed == ("classes",)
    assert "frozen" in next(row.reason for row in report.skipped if row.layer == "conv_1")


def test_the_result_is_saved_loaded_and_predicts_the_same(tmp_path):
    stage = SparsityPenalty(kind="l0", strength=1e-2)
    gated = stage.prepare(ZOO["nested"](keras))
    for wrapper in gated_layers(gated):
        set_gates(wrapper, 2 * normal(wrapper.gate.shape))
    finished, _ = stage.finish(gated)
    x = inputs_of(finished)
    finished.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(says(loaded, x), says(finished, x))


@pytest.mark.parametrize("settings", [KINDS[1], KINDS[4]], ids=[IDS[1], IDS[4]])
def test_penalties_train_in_mixed_precision(settings):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((16,)),
        L.Dense(24, activation="relu", dtype="mixed_float16"),
        L.Dense(4, activation="softmax", dtype="float32"),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.01), LOSS)
    stage = SparsityPenalty(**settings, strength=1e-2)
    prepared = stage.prepare(model)
    x, y = separable(64)
    _, report = stage.finish(prepared)
    assert all(loss.dtype == "float32" for loss in prepared.losses)
    assert float(sum(prepared.losses)) == pytest.approx(report.metrics["penalty"], rel=1e-6)
    prepared.fit(x, y, epochs=2, verbose=0)
    _, trained = stage.finish(prepared)
    assert trained.metrics["penalty"] < report.metrics["penalty"]


ON_TWO_DEVICES = """
import keras, numpy as np, sys, tensorflow as tf
from tfedge.stages.sparsity_penalty import SparsityPenalty
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
x = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
y = (x[:, 0] > 0) * 2 + (x[:, 1] > 0)
for scope in (tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), tf.distribute.get_strategy()):
    with scope.scope():
        keras.utils.set_random_seed(0)
        hidden = keras.layers.Dense(24, activation="relu")
        model = keras.Sequential([keras.Input((16,)), hidden, keras.layers.Dense(4, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        stage = SparsityPenalty(kind=sys.argv[1], strength=1e-2)
        prepared = stage.prepare(model)
        history = prepared.fit(x, y, batch_size=32, epochs=3, shuffle=False, verbose=0)
        print(*history.history["loss"], stage.finish(prepared)[1].metrics["penalty"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["l1", "group_lasso", "l0"])
def test_two_devices_train_as_one_does(kind):
    command = [sys.executable, "-c", ON_TWO_DEVICES, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    two, one = (np.array(line.split(), float) for line in done.stdout.strip().splitlines()[-2:])
    np.testing.assert_allclose(two, one, rtol=1e-5)


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kind": "group_laso"}, "Did you mean 'group_lasso'"),
        ({"strength": -1e-3}, "`strength` is a finite number from 0"),
        ({"strength": float("nan")}, "Received: nan"),
        ({"strength": True}, "Received: True"),
        ({"gate_speed": 0}, "hold every gate open"),
        ({"threshold": -1}, "`threshold` is a finite number from 0"),
        ({"groups": "outputs"}, "`groups` is for the kinds"),
        ({"kind": "group_lasso", "groups": "weights"}, "must be one of 'outputs', 'inputs'"),
        ({"layers": "a"}, r"Did you mean \['a'\]"),
        ({"seed": 0.5}, "`seed` is a whole number"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, match):
    with pytest.raises(SettingsError, match=match):
        SparsityPenalty(**{"kind": "l1", "strength": 1e-3, **settings})
    SparsityPenalty(kind="l0", strength=0, groups="weights", layers=["a"], seed=3)


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("dense", {"kind": "batch_norm"}, "No layer of this model takes"),
        ("dense", {"kind": "l1", "layers": ["hiden_1"]}, "'hidden_1'"),
        ("dense", {"kind": "l0", "layers": ["classes"]}, "outputs are the model's"),
        ("frozen_backbone", {"kind": "group_lasso"}, "frozen"),
    ],
)
def test_what_a_model_cannot_give_is_refused(name, settings, match):
    with pytest.raises(SettingsError, match=match):
        SparsityPenalty(strength=1e-3, **settings).prepare(ZOO[name](keras))


@pytest.mark.parametrize("kind", ["l1", "l0"])
def test_finish_refuses_a_model_without_the_penalty(kind):
    with pytest.raises(UnsupportedModelError, match="takes the model that `prepare` gave"):
        SparsityPenalty(kind=kind, strength=1e-3).finish(ZOO["dense"](keras))


def test_models_that_cannot_be_penalised_are_refused():
    stage = SparsityPenalty(kind="l1", strength=1e-3)
    with pytest.raises(UnsupportedModelError, match="to_keras3"):
        stage.prepare(ZOO["dense"](tf_keras))
    with pytest.raises(SettingsError, match="`fit`"):
        stage.apply(ZOO["dense"](keras))
    model = ZOO["dense"](keras)
    model.layers[0].set_weights([np.full_like(w, np.nan) for w in model.layers[0].get_weights()])
    with pytest.raises(ModelError, match="hidden_1"):
        stage.prepare(model)


def test_a_loss_that_is_lost_stops_the_training():
    model = compiled("dense", keras.optimizers.SGD(1e3))
    data = Data(train=Split(inputs_of(model, 32), labels_of(32)))
    context = Context(fit=make_fit(data, epochs=30), data=data)
    with pytest.raises(TrainingError, match="became"):
        SparsityPenalty(kind="l1", strength=1e20).apply(model, context)
