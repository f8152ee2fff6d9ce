import keras
import numpy as np
import pytest
import tf_keras
from models import CLASSES, SIDE, ZOO, inputs_of, labels_of, weights_of

from tfedge.convert import convert
from tfedge.data import Data, Split, find_metric
from tfedge.engines.native.costs import total_macs
from tfedge.engines.native.factors import (
    composed,
    depthwise_and_pointwise,
    diagonal_blocks,
    relative_error,
    two_threes,
    whole_kernel,
)
from tfedge.engines.native.graph import read_graph
from tfedge.engines.native.patterns import DEFAULT, PATTERNS
from tfedge.errors import ModelError, SettingsError, TrainingError, UnsupportedModelError
from tfedge.models import layers_of, load_model, save_model
from tfedge.stages._base import Context
from tfedge.stages._fit import make_fit
from tfedge.stages.prune import Prune
from tfedge.stages.rewrite import Rewrite

L = keras.layers
EXACT = tuple(name for name, pattern in PATTERNS.items() if pattern.exact)
APPROXIMATE = tuple(name for name, pattern in PATTERNS.items() if not pattern.exact)


def chain(*layers, shape=(SIDE, SIDE, 4)):
    """A Sequential of these layers with weights and batch statistics that matter."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape, name="image"), *layers])
    draw = np.random.default_rng(0)
    for layer in layers_of(model):
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights([draw.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        elif layer.weights:
            layer.set_weights([draw.normal(0, 0.4, w.shape) for w in layer.get_weights()])
    return model


def predictions(model, seed=0):
    return keras.tree.map_structure(np.asarray, model(inputs_of(model, 8, seed), training=False))


def kinds(model):
    return [type(layer).__name__ for layer in layers_of(model)]


def apply(model, *patterns, **settings):
    return Rewrite(patterns=patterns, **{"max_drop": None, **settings}).apply(model)


# ---------------------------------------------------------------------------- kernels


def test_the_depthwise_and_pointwise_kernels_are_the_nearest_of_their_kind():
    draw = np.random.default_rng(0)
    kernel = draw.normal(size=(3, 3, 4, 6)).astype(np.float32)
    depthwise, pointwise = depthwise_and_pointwise(kernel)
    values = np.linalg.svd(kernel.reshape(9, 4, 6).transpose(1, 0, 2), compute_uv=False)
    lost = np.sqrt((values[:, 1:] ** 2).sum() / (values**2).sum())
    assert relative_error(kernel, depthwise * pointwise) == pytest.approx(lost, rel=1e-5)
    for _ in range(20):
        nudged = depthwise + draw.normal(0, 0.01, depthwise.shape)
        assert relative_error(kernel, nudged * pointwise) > lost


def test_the_composed_kernel_of_two_convolutions_does_what_both_do():
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(3, 3, 2, 3)), draw.normal(size=(3, 3, 3, 4))
    image = keras.Input((9, 9, 2))
    both = keras.Model(image, L.Conv2D(4, 3, use_bias=False)(L.Conv2D(3, 3, use_bias=False)(image)))
    both.set_weights([first, second])
    once = chain(L.Conv2D(4, 5, use_bias=False), shape=(9, 9, 2))
    once.set_weights([composed(first, second)])
    x = draw.normal(size=(2, 9, 9, 2)).astype(np.float32)
    assert np.allclose(both(x), once(x), atol=1e-4)


def test_each_sweep_of_least_squares_brings_the_two_kernels_nearer():
    kernel = np.random.default_rng(0).normal(size=(5, 5, 6, 8)).astype(np.float32)
    errors = [relative_error(kernel, composed(*two_threes(kernel, n))) for n in (0, 1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.85 * errors[0]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_blocks_on_the_diagonal_are_those_of_the_kernel(groups):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)
    whole = whole_kernel(diagonal_blocks(kernel, groups), groups)
    kept = whole != 0
    assert np.array_equal(whole[kept], kernel[kept])
    assert kept.mean() == 1 / groups


# ---------------------------------------------------------------------------- exact patterns

EXACT_CASES = {
    "fold_batch_norm": [
        (chain, (L.Conv2D(5, 3, use_bias=False), L.BatchNormalization(), L.ReLU())),
        (chain, (L.DepthwiseConv2D(3, depth_multiplier=2), L.BatchNormalization(scale=False))),
        (chain, (L.Conv2DTranspose(5, 3, strides=2), L.BatchNormalization(center=False))),
        (chain, (L.Flatten(), L.Dense(7), L.BatchNormalization(), L.Dense(3))),
    ],
    "split_separable": [
        (chain, (L.SeparableConv2D(5, 3, depth_multiplier=2, activation="relu"),)),
        (chain, (L.SeparableConv2D(5, 3, strides=2, padding="same", use_bias=False),)),
        (chain, (L.Reshape((-1, 4)), L.SeparableConv1D(5, 3, activation="tanh"))),
    ],
    "dense_to_conv1x1": [
        (chain, (L.Dense(5, activation="relu"), L.Flatten())),
        (chain, (L.Reshape((-1, 4)), L.Dense(5, use_bias=False))),
        (chain, (L.GlobalAveragePooling2D(), L.Dense(5, activation="softmax"))),
        (chain, (L.AveragePooling2D(SIDE), L.Flatten(), L.Dense(5))),
    ],
    "drop_identity": [
        (chain, (L.Identity(), L.Conv2D(3, 3), L.Activation("linear"), L.Dropout(0), L.ReLU())),
        (chain, (L.Reshape((SIDE, SIDE, 4)), L.ZeroPadding2D(0), L.UpSampling2D(1), L.ReLU())),
    ],
    "drop_dropout": [
        (chain, (L.Dropout(0.5), L.Conv2D(3, 3), L.SpatialDropout2D(0.2), L.ReLU())),
        (chain, (L.GaussianNoise(0.5), L.Conv2D(3, 3))),
    ],
}
EXACT_ROWS = [(name, number) for name, rows in EXACT_CASES.items() for number in range(len(rows))]


def test_every_exact_pattern_has_a_case():
    assert set(EXACT_CASES) == set(EXACT)


@pytest.mark.parametrize(("name", "number"), EXACT_ROWS)
def test_an_exact_pattern_leaves_outputs_equal(name, number):
    build, layers = EXACT_CASES[name][number]
    model = build(*layers)
    before, expected = weights_of(model), predictions(model)
    rewritten, report = apply(model, name)
    scale = np.abs(expected).max()
    assert np.abs(predictions(rewritten) - expected).max() <= 1e-5 * scale
    assert report.metrics["patterns"][name]["outcome"] == "kept"
    assert report.changed
    assert kinds(rewritten) != kinds(model)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_folding_leaves_no_batch_norm_behind_and_names_both_layers():
    rewritten, report = apply(ZOO["residual"](keras), "fold_batch_norm")
    assert "BatchNormalization" not in kinds(rewritten)
    assert {"conv_3", "bn_3"} <= set(report.changed)
    assert report.metrics["parameters_after"] < report.metrics["parameters_before"]
    assert report.metrics["macs_after"] == report.metrics["macs_before"]


HINDERED = [
    ((L.Conv2D(4, 3, activation="relu"), L.BatchNormalization()), "fold_batch_norm", "activation"),
    ((L.Conv2D(4, 3), L.BatchNormalization(axis=1)), "fold_batch_norm", "output channels"),
    ((L.Flatten(), L.Dense(4)), "dense_to_conv1x1", "neither a map"),
    ((L.Conv2D(4, 3), L.Dropout(0.5)), "drop_dropout", "output of the model"),
    ((L.Conv2D(4, 3, groups=2),), "conv_to_separable", "in groups already"),
    ((L.Conv2D(4, 3, strides=(1, 2)),), "conv_to_separable", "one stride"),
    ((L.Conv2D(1, 3),), "conv_to_separable", "fewer multiply-accumulates"),
    ((L.Reshape((-1, 4)), L.Conv1D(4, 3, padding="causal")), "conv_to_separable", "causal"),
    ((L.Conv2D(4, 5, dilation_rate=2),), "conv5_to_two_conv3", "dilated"),
    ((L.Conv2D(4, 5, strides=2),), "conv5_to_two_conv3", "fewer multiply-accumulates"),
    ((L.Conv2D(6, 3),), "conv_to_4_groups", "do not divide by 4"),
    ((L.Flatten(), L.Dense(1, "sigmoid")), "sigmoid_to_hard_sigmoid", "an output of the model"),
]


@pytest.mark.parametrize(("layers", "pattern", "match"), HINDERED)
def test_what_a_pattern_cannot_replace_stays_with_the_reason(layers, pattern, match):
    model = chain(*layers)
    rewritten, report = apply(model, pattern)
    assert report.changed == ()
    assert [row for row in report.skipped if match in row.reason]
    pairs = zip(model.get_weights(), rewritten.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert report.metrics["patterns"][pattern]["outcome"] == "fits nowhere"


# ---------------------------------------------------------------------------- approximate ones


def test_a_convolution_becomes_the_separable_one_of_its_kernel():
    model = chain(L.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="conv"))
    rewritten, report = apply(model, "conv_to_separable")
    depthwise, pointwise = depthwise_and_pointwise(model.get_layer("conv").get_weights()[0])
    assert kinds(rewritten) == ["DepthwiseConv2D", "Conv2D"]
    assert np.array_equal(rewritten.get_layer("conv_depthwise").get_weights()[0], depthwise)
    kernel, bias = rewritten.get_layer("conv").get_weights()
    assert np.array_equal(kernel, pointwise)
    assert np.array_equal(bias, model.get_layer("conv").get_weights()[1])
    assert rewritten.output_shape == model.output_shape
    assert report.metrics["macs_after"] == total_macs(read_graph(rewritten))
    assert report.metrics["macs_after"] < 0.3 * report.metrics["macs_before"]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_5x5_convolution_becomes_two_fitted_ones(padding):
    model = chain(L.Conv2D(6, 5, padding=padding, name="conv"))
    rewritten, report = apply(model, "conv5_to_two_conv3")
    first, second = two_threes(model.get_layer("conv").get_weights()[0])
    assert np.array_equal(rewritten.get_layer("conv_first").get_weights()[0], first)
    assert np.array_equal(rewritten.get_layer("conv").get_weights()[0], second)
    assert rewritten.output_shape == model.output_shape
    assert report.metrics["macs_after"] < report.metrics["macs_before"]


@pytest.mark.parametrize("groups", [2, 4])
def test_a_convolution_becomes_the_grouped_one_of_its_blocks(groups):
    model = chain(L.Conv2D(8, 3, name="conv"))
    rewritten, report = apply(model, f"conv_to_{groups}_groups")
    kernel = model.get_layer("conv").get_weights()[0]
    layer = rewritten.get_layer("conv")
    assert layer.groups == groups
    assert np.array_equal(layer.get_weights()[0], diagonal_blocks(kernel, groups))
    whole = chain(L.Conv2D(8, 3))
    whole.set_weights([whole_kernel(diagonal_blocks(kernel, groups), groups), layer.bias.numpy()])
    assert np.allclose(predictions(rewritten), predictions(whole), atol=1e-4)
    assert report.metrics["macs_after"] * groups == report.metrics["macs_before"]


@pytest.mark.parametrize(
    ("pattern", "layer"),
    [
        ("conv_to_separable", L.Conv2D(8, 3, padding="same")),
        ("conv5_to_two_conv3", L.Conv2D(6, 5, padding="same")),
        ("conv_to_2_groups", L.Conv2D(8, 3, padding="same")),
    ],
)
def test_replacements_begin_nearer_than_random_weights_do(pattern, layer):
    model = chain(layer)
    expected = predictions(model)
    rewritten, report = apply(model, pattern)
    (error,) = report.metrics["patterns"][pattern]["kernel_errors"].values()
    fitted = np.square(predictions(rewritten) - expected).mean()
    keras.utils.set_random_seed(1)
    random = keras.models.clone_model(rewritten)  # makes new weights
    blank = np.square(predictions(random) - expected).mean()
    assert 0 < error < 1
    assert fitted < 0.8 * blank


ACTIVATED = {
    "silu_to_hard_silu": ("silu", "hard_silu"),
    "mish_to_hard_silu": ("mish", "hard_silu"),
    "gelu_to_relu6": ("gelu", "relu6"),
    "gelu_to_relu": ("gelu", "relu"),
    "sigmoid_to_hard_sigmoid": ("sigmoid", "hard_sigmoid"),
    "elu_to_relu": ("elu", "relu"),
    "selu_to_relu": ("selu", "relu"),
    "softplus_to_relu": ("softplus", "relu"),
}


def test_every_approximate_pattern_is_tested_here():
    groups = {"conv_to_2_groups", "conv_to_4_groups", "conv_to_8_groups"}
    convolutions = {"conv_to_separable", "conv5_to_two_conv3"}
    assert set(APPROXIMATE) == set(ACTIVATED) | groups | convolutions


@pytest.mark.parametrize("pattern", ACTIVATED)
def test_activations_are_replaced_in_layers_of_their_own_and_inside_others(pattern):
    old, new = ACTIVATED[pattern]
    model = chain(L.Conv2D(4, 3, activation=old), L.Activation(old), L.Conv2D(2, 3))
    rewritten, report = apply(model, pattern)
    expected = chain(L.Conv2D(4, 3, activation=new), L.Activation(new), L.Conv2D(2, 3))
    assert np.array_equal(predictions(rewritten), predictions(expected))
    assert len(report.changed) == 2
    assert report.metrics["changed_by"] == dict.fromkeys(report.changed, [pattern])


def test_activations_called_as_functions_are_replaced_too():
    image = keras.Input((SIDE, SIDE, 4))
    x = keras.ops.silu(L.Conv2D(4, 3, name="conv")(image))
    gate = keras.ops.sigmoid(L.Conv2D(4, 1, name="gate")(x))
    model = keras.Model(image, L.GlobalAveragePooling2D()(L.ELU()(x * gate)))
    rewritten, report = apply(model, "silu_to_hard_silu", "sigmoid_to_hard_sigmoid", "elu_to_relu")
    activations = [x.activation.__name__ for x in rewritten.layers if isinstance(x, L.Activation)]
    assert sorted(activations) == ["hard_sigmoid", "hard_silu", "relu"]
    assert len(report.changed) == 3


def test_a_rewritten_swish_network_converts_to_int8_without_float_operators():
    model = chain(
        L.Conv2D(8, 3, activation="silu"),
        L.Conv2D(8, 3, activation="gelu"),
        L.GlobalAveragePooling2D(),
        L.Dense(4, activation="softmax"),
    )
    rewritten, _ = apply(model, "silu_to_hard_silu", "gelu_to_relu6", "conv_to_separable")
    _, report = convert(rewritten, mode="int8", calibration=inputs_of(model, 32))
    assert report.float_operators == ()


# ---------------------------------------------------------------------------- the check


def learnable(samples=256):
    """Images whose brightest channel says the class."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, CLASSES, samples)
    x = draw.normal(0, 0.3, (samples, SIDE, SIDE, CLASSES)).astype(np.float32)
    x[np.arange(samples), :, :, y] += 1
    return Split(x, y)


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = chain(
        L.Conv2D(8, 3, activation="silu", name="conv_1"),
        L.Conv2D(8, 3, activation="silu", name="conv_2"),
        L.GlobalAveragePooling2D(name="pool"),
        L.Dense(CLASSES, activation="softmax", name="classes"),
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    split = learnable()
    model.fit(split.x, split.y, epochs=3, verbose=0)
    return model


def context(**changes):
    data = Data(train=learnable(), evaluation=Split(learnable(64).x, np.zeros(64, int)))
    return Context(**{"data": data, "metric": find_metric("accuracy"), **changes})


def test_a_pattern_that_costs_too_much_is_taken_back_and_its_figure_reported(trained):
    model, report = Rewrite(patterns=("conv_to_4_groups",), max_drop=0.02).apply(trained, context())
    row = report.metrics["patterns"]["conv_to_4_groups"]
    assert row["cost"] > 0.02
    assert row["outcome"].startswith("undone: it costs")
    assert report.changed == ()
    assert all("may be lost" in r.reason for r in report.skipped if r.layer.startswith("conv"))
    assert kinds(model) == kinds(trained)
    pairs = zip(trained.get_weights(), model.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_what_was_kept_before_stays_when_a_later_pattern_is_taken_back(trained):
    stage = Rewrite(patterns=("silu_to_hard_silu", "conv_to_4_groups"), max_drop=0.05)
    model, report = stage.apply(trained, context())
    alone, _ = Rewrite(patterns=("silu_to_hard_silu",), max_drop=0.05).apply(trained, context())
    outcomes = {name: row["outcome"] for name, row in report.metrics["patterns"].items()}
    assert outcomes["silu_to_hard_silu"] == "kept"
    assert outcomes["conv_to_4_groups"] != "kept"
    pairs = zip(alone.get_weights(), model.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert report.metrics["accuracy_after"] >= report.metrics["accuracy_before"] - 0.05


def test_training_after_a_pattern_brings_back_what_it_costs(trained):
    data = Data(train=learnable())
    fit = make_fit(data, epochs=3, learning_rate=0.01)
    stage = Rewrite(patterns=("conv_to_4_groups",), max_drop=0.02)
    _, untrained = stage.apply(trained, context(data=data))
    model, report = stage.apply(trained, context(data=data, fit=fit))
    assert untrained.changed == ()
    assert report.changed == ("conv_1", "conv_2")
    row = report.metrics["patterns"]["conv_to_4_groups"]
    assert row["untrained"] < row["accuracy"]
    assert model.compiled
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)


def test_without_a_metric_the_loss_of_a_compiled_model_decides(trained):
    stage = Rewrite(patterns=("silu_to_hard_silu",), max_drop=0.5)
    _, report = stage.apply(trained, context(metric=None))
    split = learnable()
    assert report.metrics["loss_before"] == pytest.approx(
        trained.evaluate(split.x, split.y, verbose=0), rel=1e-4
    )
    assert report.changed == ("conv_1", "conv_2")


def test_evaluation_data_decide_nothing(trained):
    stage = Rewrite(patterns=("silu_to_hard_silu",), max_drop=0.02)
    _, report = stage.apply(trained, context())  # its evaluation labels are all wrong
    assert report.metrics["accuracy_before"] > 0.9


def test_a_training_that_fails_is_taken_back(trained):
    def fit(model, callbacks):
        raise TrainingError("The loss became nan.")

    model, report = Rewrite(patterns=("silu_to_hard_silu",)).apply(trained, context(fit=fit))
    assert "training failed" in report.metrics["patterns"]["silu_to_hard_silu"]["outcome"]
    pairs = zip(trained.get_weights(), model.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_zeros_of_a_pruned_model_outlive_the_training(trained):
    pruned, _ = Prune(sparsity=0.5, one_shot=True).apply(trained)
    fit = make_fit(Data(train=learnable(64)), epochs=1)
    model, _ = Rewrite(patterns=("silu_to_hard_silu",), max_drop=None).apply(
        pruned, Context(fit=fit)
    )
    kernel, before = model.get_layer("conv_2").kernel, pruned.get_layer("conv_2").kernel
    assert np.array_equal(np.asarray(kernel) == 0, np.asarray(before) == 0)
    assert not np.array_equal(kernel, before)


# ---------------------------------------------------------------------------- the zoo


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_keeps_its_outputs_and_reports_every_layer(name, tmp_path):
    model = ZOO[name](keras)
    before = weights_of(model)
    rewritten, report = Rewrite(patterns=EXACT).apply(model)
    expected, found = predictions(model), predictions(rewritten)
    assert np.abs(expected - found).max() <= 1e-5
    named = sorted([*report.changed, *(row.layer for row in report.skipped)])
    assert named == sorted(layer.name for layer in layers_of(model))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert "BatchNormalization" not in kinds(rewritten)
    loaded = load_model(save_model(rewritten, tmp_path / "model.keras"))
    assert np.array_equal(predictions(loaded), found)


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_can_be_rewritten_approximately(name):
    model = ZOO[name](keras)
    rewritten, report = apply(model, "fold_batch_norm", "conv_to_separable")
    wide = any(kind == "Conv2D" for kind in kinds(model))
    assert (report.metrics["macs_after"] < report.metrics["macs_before"]) == wide
    assert predictions(rewritten).shape == predictions(model).shape


@pytest.mark.parametrize("name", ["two_inputs", "frozen_backbone"])
def test_what_replaces_layers_is_trained_where_they_were(name):
    model = ZOO[name](keras)
    x, y = inputs_of(model, 16), labels_of(16)
    split = Split(tuple(x) if isinstance(x, list) else x, y)
    stage = Rewrite(patterns=("conv_to_separable",), max_drop=None)
    untrained, _ = stage.apply(model)
    trained, _ = stage.apply(model, Context(fit=make_fit(Data(train=split), epochs=1)))
    for theirs, ours in zip(layers_of(untrained), layers_of(trained), strict=True):
        pairs = zip(theirs.get_weights(), ours.get_weights(), strict=True)
        same = all(np.array_equal(a, b) for a, b in pairs)
        assert same == (not theirs.trainable_weights)


def test_a_frozen_layer_stays_frozen_in_what_replaces_it():
    rewritten, _ = apply(ZOO["frozen_backbone"](keras), "fold_batch_norm", "conv_to_separable")
    frozen = [x.name for x in layers_of(rewritten) if x.weights and not x.trainable]
    assert frozen == ["conv_1_depthwise", "conv_1", "conv_2_depthwise", "conv_2"]


def test_a_shared_layer_is_replaced_once_and_stays_shared():
    rewritten, report = apply(ZOO["shared_layer"](keras), "conv_to_separable")
    assert kinds(rewritten).count("DepthwiseConv2D") == 1
    assert "shared_conv" in report.changed


def test_only_the_layers_named_are_replaced_and_what_came_of_them():
    model = chain(
        L.Conv2D(8, 3, activation="silu", name="a"), L.Conv2D(8, 3, activation="silu", name="b")
    )
    patterns = ("conv_to_separable", "silu_to_hard_silu")
    rewritten, report = apply(model, *patterns, layers=("a",))
    assert report.changed == ("a",)
    assert [row.reason for row in report.skipped] == ["not in `layers`"]
    assert report.metrics["changed_by"] == {"a": list(patterns)}
    assert rewritten.get_layer("b").activation is keras.activations.silu
    assert rewritten.get_layer("a").activation is keras.activations.hard_silu


def test_names_of_outputs_stay_so_that_a_compiled_model_keeps_its_losses():
    image = keras.Input((SIDE, SIDE, 4), name="image")
    x = L.Conv2D(8, 3, name="conv")(image)
    outputs = {
        "kind": L.Dense(3, name="kind")(L.GlobalAveragePooling2D()(x)),
        "map": L.SeparableConv2D(2, 3, name="map")(x),
    }
    model = keras.Model(image, outputs)
    model.compile("adam", {"kind": "mse", "map": "mae"})
    rewritten, _ = apply(model, "dense_to_conv1x1", "split_separable")
    assert rewritten.output_names == model.output_names
    assert rewritten.compiled
    assert rewritten.loss == model.loss
    found, expected = predictions(rewritten), predictions(model)
    assert all(np.allclose(found[key], expected[key], atol=1e-4) for key in outputs)


def test_a_model_of_mixed_precision_is_rewritten_in_its_own_precision():
    model = chain(
        L.Conv2D(8, 3, use_bias=False, dtype="mixed_float16"),
        L.BatchNormalization(dtype="mixed_float16"),
        L.Activation("silu", dtype="mixed_float16"),
    )
    rewritten, report = apply(model, "fold_batch_norm", "silu_to_hard_silu", "conv_to_separable")
    assert {layer.compute_dtype for layer in layers_of(rewritten)} == {"float16"}
    assert [row["outcome"] for row in report.metrics["patterns"].values()] == ["kept"] * 3


# ---------------------------------------------------------------------------- settings

BAD = [
    ({"patterns": ("silu_to_hard_silus",)}, "Did you mean 'silu_to_hard_silu'"),
    ({"patterns": ()}, "at least one pattern"),
    ({"patterns": "fold_batch_norm"}, "sequence of names"),
    ({"layers": "conv"}, "sequence of names"),
    ({"max_drop": -0.1}, "`Rewrite.max_drop` is a number from 0"),
    ({"max_drop": float("nan")}, "`Rewrite.max_drop` is a number from 0"),
    ({"samples": 0}, "whole number from 1"),
]


@pytest.mark.parametrize(("settings", "match"), BAD)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(SettingsError, match=match):
        Rewrite(**settings)


def test_good_neighbours_of_bad_settings_are_taken():
    stage = Rewrite(patterns=["silu_to_hard_silu"], layers=["conv"], max_drop=0, samples=1)
    assert stage.patterns == ("silu_to_hard_silu",)
    assert Rewrite().patterns == DEFAULT


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (Context(), "without `data`"),
        (Context(data=Data(train=learnable(8))), "without `metric`"),
    ],
)
def test_an_approximate_pattern_is_not_applied_unchecked_unless_that_is_said(given, match):
    model = chain(L.Conv2D(4, 3, activation="silu"))
    with pytest.raises(SettingsError, match=match):
        Rewrite(patterns=("silu_to_hard_silu",)).apply(model, given)
    _, report = Rewrite(patterns=("silu_to_hard_silu",), max_drop=None).apply(model, given)
    assert "not checked" in " ".join(report.notes)


def test_models_that_cannot_be_rewritten_are_refused_with_the_way_out():
    with pytest.raises(UnsupportedModelError, match=r"tfedge\.to_keras3\(model\)"):
        Rewrite().apply(ZOO["dense"](tf_keras))
    with pytest.raises(SettingsError, match="no layer 'conv_9'"):
        Rewrite(layers=("conv_9",)).apply(ZOO["conv_bn_relu"](keras))
    model = chain(L.Conv2D(4, 3))
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    with pytest.raises(ModelError, match="finite"):
        Rewrite().apply(model)
