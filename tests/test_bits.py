"""Fewer than 8 bits, learned ranges, and statistics that freeze."""

import importlib
import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert import schema_py_generated as schema
from fresh import run_fresh
from models import ZOO, inputs_of, labels_of, weights_of

import tfedge
from tfedge.affine import (
    dequantize_values,
    integer_limits,
    quantize_values,
    symmetric_scale,
    whole_zero_point,
)
from tfedge.convert import convert
from tfedge.convert._int4 import pack_int4
from tfedge.engines.native.bits import LayerBits
from tfedge.engines.native.fake_quant import FakeQuantize, QuantizedWeights, fake_quant_weights
from tfedge.engines.native.levels import stored_levels
from tfedge.engines.native.norm_freezing import FreezeAtFraction, freezing_layers
from tfedge.engines.native.observers import highest
from tfedge.engines.native.quantize import calibrate
from tfedge.engines.native.settle import settle
from tfedge.engines.native.step_size import (
    LearnedRange,
    LearnedStepWeights,
    first_step,
    in_units,
    learned_step,
    learned_step_and_offset,
    lsq_gradient_scale,
)
from tfedge.errors import SettingsError, TrainingError, UnsupportedModelError
from tfedge.inspection import inspect_model, read_model
from tfedge.inspection.weights import stored_values
from tfedge.models import load_model, save_model
from tfedge.runtime import open_model
from tfedge.stages.quantize import Quantize
from tfedge.verify.operators import compare_operators

layers = keras.layers
WIDTHS = range(2, 9)


def ready(model, x, **settings):
    """A fake-quantised model with ranges, rounded as its file will be."""
    stage = Quantize(**settings)
    prepared = stage.prepare(model)
    calibrate(prepared, [x])
    settle(prepared)
    return prepared


def compiled(name):
    model = ZOO[name](keras)
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    return model


# The formula


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 2.5), (-0.7, 0.0)])
def test_fake_quantised_activations_are_the_array_formula_at_every_width(bits, low, high):
    x = np.random.default_rng(0).uniform(-4, 4, 20_000).astype("float32")
    layer = FakeQuantize(bits=bits, fixed_range=(low, high))
    got = np.asarray(layer(x))
    low, high = layer.exact_ends()
    scale = (high - low) / (2**bits - 1)
    zero_point = round(-low / scale) + integer_limits(bits)[0]
    stored = quantize_values(x, scale=scale, zero_point=zero_point, bits=bits)
    wanted = dequantize_values(stored, scale=scale, zero_point=zero_point)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert len(np.unique(stored)) == 2**bits
    assert len(np.unique(np.round(got, 5))) == 2**bits


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_fake_quantised_weights_are_the_array_formula_at_every_width(bits, axis):
    weights = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    scale = symmetric_scale(weights, bits=bits, axis=axis)
    stored = quantize_values(weights, scale=scale, bits=bits, narrow_range=True, axis=axis)
    wanted = dequantize_values(stored, scale=scale, axis=axis)
    got = np.asarray(fake_quant_weights(weights, axis=axis, bits=bits))
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert np.abs(stored).max() == 2 ** (bits - 1) - 1


def test_a_wider_range_is_cut_off_at_the_ends_and_zero_stays_zero():
    stored = quantize_values([-9.0, 0.0, 9.0], scale=0.1, zero_point=3, bits=4)
    assert stored.tolist() == [-8, 3, 7]
    assert dequantize_values(stored, scale=0.1, zero_point=3)[1] == 0
    low, high = whole_zero_point(-0.5, 1.0, 2)
    assert (low / (high - low) * 3) == pytest.approx(round(low / (high - low) * 3))


@pytest.mark.parametrize("bits", [1, 33, "4", True, 4.0])
def test_the_array_formula_refuses_widths_that_are_none(bits):
    with pytest.raises(SettingsError, match="whole number from 2 to 32"):
        quantize_values([0.0], scale=1.0, bits=bits)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_the_runtime_rounds_by_the_array_formula(dtype):
    x = np.random.default_rng(1).normal(size=200)
    bits, signed = np.iinfo(dtype).bits, dtype[0] == "i"
    wanted = quantize_values(x, scale=0.01, zero_point=5, bits=bits, signed=signed)
    got = tfedge.runtime.quantize(x, 0.01, 5, dtype)
    assert got.dtype == wanted.dtype == dtype
    np.testing.assert_array_equal(got, wanted)


# The file


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("dense", (4, 4)),
        ("depthwise", (2, 8)),
        ("residual", (3, 3)),
        ("nested", (8, 4)),
        ("conv_bn_relu", (4, 2)),
    ],
)
def test_a_file_of_few_bits_equals_the_fake_quantised_model(name, bits):
    model = ZOO[name](keras)
    x = inputs_of(model, 32)
    aware = ready(model, x, weight_bits=bits[0], activation_bits=bits[1])
    content, report = convert(aware)
    assert report.inspection.is_integer
    wanted = aware.predict(x, verbose=0)
    with open_model(content, delegate="xnnpack") as file:
        np.testing.assert_allclose(file.predict(x), wanted, atol=1e-5)
    assert all(row.max_steps <= 1 for row in compare_operators(aware, content, x))
    rng = np.random.default_rng(0).permutation(len(x))
    assert np.abs(wanted[rng] - wanted).max() > 0.02  # the control: samples differ


@pytest.mark.parametrize("name", ["concat", "shared_layer", "frozen_backbone"])
def test_the_rest_of_the_zoo_keeps_its_trained_levels_in_the_file_too(name):
    model = ZOO[name](keras)
    x = inputs_of(model, 32)
    aware = ready(model, x, weight_bits=3, activation_bits=4)
    content, _ = convert(aware)
    with open_model(content, delegate="xnnpack") as file:
        np.testing.assert_allclose(file.predict(x), aware.predict(x, verbose=0), atol=1e-5)
    assert {row.distinct for row in kernels(content)} <= set(range(2, 8))


def kernels(content):
    """The inspected weights of the file's dense layers and convolutions."""
    return [w for w in inspect_model(content).weights if w.is_kernel]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_kernels_in_the_file_hold_at_most_two_to_the_bits_distinct_values(bits):
    model = ZOO["conv_bn_relu"](keras)
    x = inputs_of(model, 32)
    content, _ = convert(ready(model, x, weight_bits=bits))
    found = kernels(content)
    assert len(found) == 3
    for row in found:
        assert 2 < row.distinct <= 2**bits


def test_fewer_bits_make_a_smaller_gzip_file():
    model = ZOO["conv_bn_relu"](keras)
    x = inputs_of(model, 32)
    sizes = [convert(ready(model, x, weight_bits=bits))[1].gzip_bytes for bits in (8, 4, 2)]
    assert sizes[0] > 1.1 * sizes[1] > 1.1 * 1.1 * sizes[2]


def wide():
    """A perceptron whose weights, not its file format, are most of its file."""
    keras.utils.set_random_seed(0)
    stack = [
        keras.Input((64,), name="features"),
        layers.Dense(128, activation="relu", name="hidden"),
        layers.Dense(101, name="odd"),
    ]
    return keras.Sequential(stack, name="wide")


@pytest.mark.parametrize("delegate", ["none", "xnnpack"])
def test_dense_weights_of_4_bits_are_int4_in_a_file_that_runs(delegate):
    model = wide()
    x = np.random.default_rng(0).normal(size=(48, 64)).astype("float32")
    aware = ready(model, x, weight_bits=4)
    content, report = convert(aware)
    assert {w.dtype for w in kernels(content)} == {"int4"}
    assert any("int4" in note and "hidden, odd" in note for note in report.notes)
    wanted = aware.predict(x, verbose=0)
    step = np.diff(np.unique(wanted)).min()
    with open_model(content, delegate=delegate) as file:
        assert file.nodes_delegated == (2 if delegate == "xnnpack" else 0)
        got = file.predict(x)
    steps = np.abs(np.rint((got - wanted) / step))
    assert steps.max() <= (0 if delegate == "xnnpack" else 2)
    full = len(convert(ready(model, x))[0])
    assert len(content) < 0.65 * full


def test_int4_tensors_hold_the_integers_of_training_with_the_version_that_reads_them():
    model = wide()
    x = np.random.default_rng(0).normal(size=(16, 64)).astype("float32")
    aware = ready(model, x, weight_bits=4)
    content, _ = convert(aware)
    file = read_model(content)
    graph, found = file.subgraphs[0], {}
    for operator in graph.operators:
        code = file.operatorCodes[operator.opcodeIndex]
        tensor = graph.tensors[operator.inputs[1]]
        assert code.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED
        assert code.version == 10
        raw = np.asarray(file.buffers[tensor.buffer].data, np.uint8)
        assert raw.size == math.ceil(math.prod(tensor.shape) / 2)
        stored = stored_values(raw, "int4", math.prod(tensor.shape)).reshape(tensor.shape)
        found[stored.shape] = stored * np.asarray(tensor.quantization.scale)
    for level in stored_levels(aware):
        kernel = np.asarray(aware.get_layer(level.layer).effective_weights()["kernel"])
        np.testing.assert_allclose(found[kernel.T.shape], kernel.T, atol=1e-6)


def test_buffers_of_a_rewritten_file_are_aligned_as_litert_reads_them():
    model = wide()
    x = np.random.default_rng(0).normal(size=(16, 64)).astype("float32")
    content, _ = convert(ready(model, x, weight_bits=4))
    file = schema.Model.GetRootAs(bytearray(content), 0)
    starts = [
        buffer._tab.Vector(buffer._tab.Offset(4))
        for buffer in (file.Buffers(i) for i in range(file.BuffersLength()))
        if buffer.DataLength()
    ]
    assert len(starts) >= 4
    assert {start % 16 for start in starts} == {0}


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_packed_nibbles_read_back(count):
    integers = np.random.default_rng(count).integers(-8, 8, count).astype(np.int8)
    packed = pack_int4(integers)
    assert packed.size == (count + 1) // 2
    np.testing.assert_array_equal(stored_values(packed, "int4", count), integers)


def test_a_dense_layer_of_5_bits_is_not_packed():
    model = ZOO["dense"](keras)
    x = inputs_of(model, 16)
    content, report = convert(ready(model, x, weight_bits=5))
    assert {w.dtype for w in kernels(content)} == {"int8"}
    assert all(w.distinct <= 31 for w in kernels(content))
    assert any(note.startswith("Weights of 5 bits in int8") for note in report.notes)


def test_channels_that_are_all_zero_keep_their_bias():
    model = ZOO["dense"](keras)
    kernel, bias = model.get_layer("hidden_1").get_weights()
    kernel[:, :5] = 0
    model.get_layer("hidden_1").set_weights([kernel, np.linspace(0, 1, bias.size)])
    x = inputs_of(model, 32)
    for settings in ({"weight_bits": 4}, {"weight_bits": 4, "range": "lsq"}):
        aware = ready(model, x, **settings)
        content, _ = convert(aware)
        with open_model(content) as file:
            np.testing.assert_allclose(file.predict(x), aware.predict(x, verbose=0), atol=0.01)


# Widths per layer


def test_widths_go_by_name_before_class_before_the_rest():
    model = ZOO["conv_bn_relu"](keras)
    stage = Quantize(
        weight_bits=6,
        per_layer={"Conv2D": LayerBits(weights=4), "conv_2": LayerBits(weights=3, activations=5)},
    )
    prepared = stage.prepare(model)
    bits = {w.name: w.bits for w in prepared.layers if isinstance(w, QuantizedWeights)}
    assert bits == {"conv_1": 4, "conv_2": 3, "classes": 6}
    ranges = {r.name: r.bits for r in prepared.layers if isinstance(r, FakeQuantize)}
    assert ranges["relu_2_range"] == 5  # computed in one operator with conv_2
    assert ranges["relu_1_range"] == 8


def test_a_mapping_of_widths_will_do_where_a_recipe_has_no_classes():
    stage = Quantize(per_layer={"conv_1": {"weights": 4}})
    assert stage.per_layer == {"conv_1": LayerBits(weights=4)}


def test_inputs_outputs_and_what_litert_fixes_keep_8_bits_and_are_reported():
    model = ZOO["conv_bn_relu"](keras)
    stage = Quantize(activation_bits=4)
    prepared = stage.prepare(model)
    bits = {r.name: r.bits for r in prepared.layers if isinstance(r, FakeQuantize)}
    assert bits == {
        "image_range": 8,
        "relu_1_range": 4,
        "relu_2_range": 4,
        "pool_all_range": 4,
        "classes_range": 8,
        "classes_softmax_range": 8,
    }
    _, report = stage.finish(prepared)
    assert any("inputs of the file: image" in note for note in report.notes)
    assert any("outputs of the file: classes" in note for note in report.notes)


def test_what_an_averaging_operator_reads_keeps_8_bits():
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    x = layers.Flatten()(layers.AveragePooling2D(2, name="average")(x))
    model = keras.Model(image, layers.Dense(3)(x))
    prepared = Quantize(activation_bits=4).prepare(model)
    assert prepared.get_layer("conv_relu_range").bits == 8
    with pytest.raises(SettingsError, match="conv.*averages"):
        Quantize(per_layer={"conv": LayerBits(activations=4)}).prepare(model)


BAD = [
    ({"weight_bits": 1}, SettingsError, "from 2 to 8. Received: 1"),
    ({"weight_bits": 9}, SettingsError, "from 2 to 8. Received: 9"),
    ({"activation_bits": "4"}, SettingsError, "Quantize.activation_bits.*'4'"),
    ({"activation_bits": True}, SettingsError, "whole number of bits"),
    ({"per_layer": {"konv_1": LayerBits(weights=4)}}, SettingsError, "Did you mean 'conv_1'"),
    ({"per_layer": {"conv_1": {"weight": 4}}}, SettingsError, "Did you mean 'weights'"),
    ({"per_layer": {"conv_1": {"weights": 12}}}, SettingsError, "LayerBits.weights.*12"),
    ({"per_layer": {"conv_1": {}}}, SettingsError, "neither"),
    ({"per_layer": {"conv_1": 4}}, SettingsError, "LayerBits.*Received: 4"),
    ({"per_layer": {"relu_1": LayerBits(weights=4)}}, SettingsError, "no quantised weights"),
    ({"per_layer": {"pool": LayerBits(activations=4)}}, SettingsError, "passes values on"),
    ({"range": "lsqq"}, SettingsError, "Did you mean 'lsq'"),
    ({"range": "percentile", "percentile": 30}, SettingsError, "above 50.*Received: 30"),
    ({"range": "minmax", "percentile": 99.0}, SettingsError, "goes with `range='percentile'`"),
    ({"freeze_batch_norm": 1.5}, SettingsError, "fraction of the training.*1.5"),
    ({"freeze_batch_norm": -1}, SettingsError, "whole number from 0. Received: -1"),
    ({"freeze_batch_norm": True}, SettingsError, "Received: True"),
]


@pytest.mark.parametrize(("settings", "error", "match"), BAD)
def test_wrong_settings_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        Quantize(**settings).prepare(ZOO["conv_bn_relu"](keras))


GOOD = [
    {"weight_bits": 2},
    {"activation_bits": 2},
    {"per_layer": {"conv_1": LayerBits(weights=4)}},
    {"per_layer": {"relu_1": LayerBits(activations=4)}},
    {"range": "percentile", "percentile": 99},
    {"freeze_batch_norm": 0.5},
    {"freeze_batch_norm": 0},
]


@pytest.mark.parametrize("settings", GOOD)
def test_their_good_neighbours_are_taken(settings):
    assert Quantize(**settings).prepare(ZOO["conv_bn_relu"](keras)) is not None


@pytest.mark.parametrize(
    "settings",
    [{"weight_bits": 4}, {"activation_bits": 4}, {"range": "lsq"}, {"freeze_batch_norm": 0.5}],
)
def test_a_tf_keras_model_is_sent_to_keras_3_for_what_tfmot_lacks(settings):
    model = ZOO["dense"](tf_keras)
    with pytest.raises(UnsupportedModelError, match="to_keras3"):
        Quantize(**settings).prepare(model)


# Observers


def test_the_range_of_everything_seen_never_shrinks():
    layer = FakeQuantize(range="minmax")
    for batch in ([-1.0, 2.0], [0.5, 1.0], [-3.0, 0.0]):
        layer(np.float32(batch), training=True)
    assert (float(layer.minimum), float(layer.maximum)) == (-3.0, 2.0)


@pytest.mark.parametrize("percentile", [90, 99, 99.9])
def test_percentile_ranges_are_numpys_order_statistics_averaged(percentile):
    draw = np.random.default_rng(0)
    batches = [draw.normal(size=(1000,)).astype("float32") for _ in range(3)]
    left = int((1 - percentile / 100) * 1000)
    highs = [np.sort(batch)[::-1][left] for batch in batches]
    lows = [np.sort(batch)[left] for batch in batches]
    for calibrating in (True, False):
        layer = FakeQuantize(range="percentile", percentile=percentile)
        layer.observing = calibrating
        for batch in batches:
            layer(batch, training=not calibrating)
        assert float(layer.maximum) == pytest.approx(np.mean(highs), rel=1e-5)
        assert float(layer.minimum) == pytest.approx(np.mean(lows), rel=1e-5)


def test_order_statistics_are_the_same_for_open_shapes():
    values = np.random.default_rng(0).normal(size=(16, 50)).astype("float32")
    open_shape = tf.function(
        lambda x: highest(x, 0.01), input_signature=[tf.TensorSpec((None, 50), "float32")]
    )
    assert float(open_shape(values)) == float(highest(tf.constant(values), 0.01))
    assert float(highest(tf.constant(values), 0.01)) == np.sort(values.ravel())[-9]


# Learned steps


def test_the_gradient_of_a_learned_step_is_the_papers():
    values = np.float32([-5.0, -1.6, -0.3, 0.2, 0.7, 9.0])
    step, lowest, highest_ = np.float32(0.5), -2, 1
    upstream = np.float32([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    v, s = tf.Variable(values), tf.Variable(step)
    scale = lsq_gradient_scale(values.size, highest_)
    with tf.GradientTape() as tape:
        rounded = learned_step(v, s, lowest=lowest, highest=highest_, gradient_scale=scale)
        total = tf.reduce_sum(rounded * upstream)
    to_values, to_step = tape.gradient(total, (v, s))
    ratio = values / step
    inside = (ratio > lowest) & (ratio < highest_)
    slope = np.where(inside, np.floor(ratio + 0.5) - ratio, np.clip(ratio, lowest, highest_))
    np.testing.assert_allclose(rounded, np.clip(np.floor(ratio + 0.5), lowest, highest_) * step)
    np.testing.assert_allclose(to_values, upstream * inside)
    np.testing.assert_allclose(to_step, (upstream * slope).sum() / math.sqrt(6 * 1), rtol=1e-6)


def test_the_gradients_of_step_and_offset_are_those_of_lsq_plus():
    values = np.float32([-2.0, -0.9, 0.1, 0.65, 3.0])
    step, offset, top = np.float32(0.5), np.float32(-0.8), 3
    upstream = np.float32([1.0, 2.0, 3.0, 4.0, 5.0])
    variables = [tf.Variable(x) for x in (values, step, offset)]
    with tf.GradientTape() as tape:
        rounded = learned_step_and_offset(*variables, highest=top, gradient_scale=0.1)
        total = tf.reduce_sum(rounded * upstream)
    to_values, to_step, to_offset = tape.gradient(total, variables)
    zero = 2  # 0.8 / 0.5, rounded
    ratio = values / step
    np.testing.assert_allclose(rounded, np.clip(np.floor(ratio + 0.5), -zero, top - zero) * step)
    below, above = ratio <= -zero, ratio >= top - zero
    slope = np.where(below, 0, np.where(above, top, np.floor(ratio + 0.5) - ratio))
    np.testing.assert_allclose(to_values, upstream * ~(below | above))
    np.testing.assert_allclose(to_step, 0.1 * (upstream * slope).sum(), rtol=1e-6)
    np.testing.assert_allclose(to_offset, 0.1 * upstream[below | above].sum(), rtol=1e-6)


def test_gradient_descent_moves_a_relative_step_as_it_would_move_the_step():
    unit, relative = tf.constant(0.02), tf.Variable(1.0)
    with tf.GradientTape() as tape:
        loss = 3.0 * in_units(unit, relative)
    relative.assign_sub(0.001 * tape.gradient(loss, relative))
    assert float(in_units(unit, relative)) == pytest.approx(0.02 - 0.001 * 3.0, rel=1e-5)


@pytest.mark.parametrize("axis", [None, 1])
def test_learned_steps_of_weights_begin_as_the_paper_says(axis):
    weights = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype("float32")
    axes = (0, 1, 2, 3) if axis is None else (0, 1, 2)
    wanted = 2 * np.abs(weights).mean(axis=axes, keepdims=True) / math.sqrt(7)
    np.testing.assert_allclose(first_step(weights, 7, axes), wanted, rtol=1e-6)


def test_a_learned_range_begins_with_the_first_batch_of_training():
    x = np.random.default_rng(0).random((8, 100)).astype("float32")
    relu = LearnedRange(bits=2, non_negative=True)
    relu(x, training=True)
    relu(x * 9, training=True)
    low, high = relu.exact_ends()
    assert low == 0
    assert high / 3 == pytest.approx(2 * x.mean() / math.sqrt(3), rel=1e-5)
    signed = LearnedRange(bits=4)
    signed(x - 0.5, training=True)
    low, high = signed.exact_ends()
    assert high - low == pytest.approx(np.ptp(x), rel=1e-4)


def test_calibration_takes_the_mean_start_of_its_batches():
    layer = LearnedRange(bits=4, non_negative=True)
    layer.observing = True
    batches = [np.full((4, 10), value, "float32") for value in (1.0, 2.0, 6.0)]
    for batch in batches:
        layer(batch)
    assert layer.exact_ends()[1] / 15 == pytest.approx(2 * 3.0 / math.sqrt(15), rel=1e-5)


def test_a_trained_lsq_model_and_its_file_agree():
    model = compiled("residual")
    x, y = inputs_of(model, 64), labels_of(64)
    stage = Quantize(weight_bits=4, activation_bits=4, range="lsq")
    prepared = stage.prepare(model)
    steps = [w for w in prepared.trainable_variables if w.path.endswith(("step", "offset"))]
    before = [w.numpy().copy() for w in steps]
    prepared.fit(x, y, epochs=2, verbose=0, callbacks=stage.callbacks())
    assert len(steps) >= 5
    moved = [not np.array_equal(a, w.numpy()) for a, w in zip(before, steps, strict=True)]
    assert np.mean(moved) > 0.8
    first = prepared.predict(x, verbose=0)
    trained, _ = stage.finish(prepared)
    assert np.abs(trained.predict(x, verbose=0) - first).mean() < 0.02  # by rounding only
    content, report = convert(trained)
    assert report.inspection.is_integer
    assert all(row.distinct <= 16 for row in kernels(content))
    with open_model(content, delegate="xnnpack") as file:
        differ = np.abs(file.predict(x) - trained.predict(x, verbose=0)) > 1e-3
    assert differ.mean() <= 0.03


def test_pruned_weights_stay_zero_under_learned_steps():
    model = compiled("conv_bn_relu")
    kernel = model.get_layer("conv_2").kernel
    values = kernel.numpy()
    values[np.abs(values) < np.quantile(np.abs(values), 0.7)] = 0
    kernel.assign(values)
    stage = Quantize(keep_sparsity=True, weight_bits=3, range="lsq")
    prepared = stage.prepare(model)
    prepared.fit(inputs_of(model, 32), labels_of(32), epochs=2, verbose=0)
    content, _ = convert(stage.finish(prepared)[0])
    sparse = [row for row in kernels(content) if math.prod(row.shape) == values.size]
    assert sparse[0].sparsity >= 0.69


@pytest.mark.slow
def test_ranges_and_widths_are_saved_and_loaded_in_a_fresh_process(tmp_path):
    model = compiled("conv_bn_relu")
    x, y = inputs_of(model, 16), labels_of(16)
    stage = Quantize(weight_bits=3, activation_bits=4, range="lsq", freeze_batch_norm=1)
    prepared = stage.prepare(model)
    prepared.fit(x, y, epochs=2, verbose=0)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", prepared.predict(x, verbose=0))
    save_model(prepared, tmp_path / "model.keras")
    code = (
        "import sys, numpy as np, tfedge\n"
        "model = tfedge.load_model(sys.argv[1] + '/model.keras')\n"
        "y = model.predict(np.load(sys.argv[1] + '/x.npy'), verbose=0)\n"
        "assert np.array_equal(y, np.load(sys.argv[1] + '/y.npy')), 'different'\n"
    )
    run_fresh(code, tmp_path)
    loaded = load_model(tmp_path / "model.keras")
    losses = [m.fit(x, y, verbose=0, shuffle=False).history["loss"] for m in (prepared, loaded)]
    assert losses[0] == losses[1]
    for one in (prepared, loaded):
        stage.finish(one)
    for old, new in zip(stored_levels(prepared), stored_levels(loaded), strict=True):
        np.testing.assert_array_equal(old.integers, new.integers)


def test_settings_of_the_observers_are_kept_in_the_configuration():
    for layer in (
        FakeQuantize(bits=3, range="percentile", percentile=99.0),
        LearnedRange(bits=3, non_negative=True),
    ):
        again = type(layer).from_config(layer.get_config())
        assert again.get_config() == layer.get_config()
        assert (again.bits, again.non_negative) == (3, layer.non_negative)
        assert again.observer == layer.observer


@pytest.mark.parametrize("name", ZOO)
def test_the_model_that_came_in_stays_bit_equal_and_learned_steps_hold_on_the_zoo(name):
    model = ZOO[name](keras)
    before = weights_of(model)
    x = inputs_of(model, 32)
    aware = ready(model, x, weight_bits=4, activation_bits=4, range="lsq", freeze_batch_norm=3)
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert any(isinstance(layer, LearnedStepWeights) for layer in aware.layers)
    outputs = aware.predict(x, verbose=0)
    assert np.all(np.isfinite(outputs))
    settle(aware)
    np.testing.assert_allclose(aware.predict(x, verbose=0), outputs, atol=0.05)


@pytest.mark.slow
# Keras does without XLA in a process whose operations an earlier run made deterministic, and warns.
@pytest.mark.filterwarnings("ignore:Model doesn't support `jit_compile=True`:UserWarning")
@pytest.mark.parametrize("kind", ["lsq", "percentile"])
def test_mixed_precision_under_xla_trains_few_bits(kind):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = ZOO["conv_bn_relu"](keras)
        x, y = inputs_of(model, 32), np.arange(32) % 4
        stage = Quantize(weight_bits=4, activation_bits=4, range=kind, freeze_batch_norm=20)
        prepared = stage.prepare(model)
        prepared.compile("adam", "sparse_categorical_crossentropy", jit_compile=True)
        losses = prepared.fit(x, y, epochs=25, verbose=0).history["loss"]
        assert losses[-1] < losses[0]
        stage.finish(prepared)
    finally:
        keras.config.set_dtype_policy("float32")


# Freezing


def values_of(model, name):
    return [v.numpy().copy() for v in model.variables if name in v.path]


@pytest.mark.parametrize("at", [4, 0.5])
def test_statistics_move_until_the_step_and_scales_go_on_training_after_it(at):
    inputs = keras.Input((5,))
    x = layers.BatchNormalization()(layers.Dense(6)(inputs))
    x = layers.BatchNormalization(name="alone")(layers.ReLU()(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    stage = Quantize(freeze_batch_norm=at)
    prepared = stage.prepare(model)
    assert len(freezing_layers(prepared)) == 2  # one of them inside its dense layer
    seen = {"moving_": [], "gamma": []}

    def look(batch, logs):
        for name, rows in seen.items():
            rows.append(values_of(prepared, name))

    watch = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(32, 5)), draw.normal(size=(32, 3))
    prepared.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[*stage.callbacks(), watch])
    moved = {
        name: [
            all(not np.array_equal(a, b) for a, b in zip(old, new, strict=True))
            for old, new in zip(rows, rows[1:], strict=False)
        ]
        for name, rows in seen.items()
    }
    assert moved["moving_"] == [True] * 3 + [False] * 4
    assert moved["gamma"] == [True] * 7
    assert stage.finish(prepared)


def test_frozen_statistics_are_what_training_then_normalises_by():
    model = ZOO["conv_bn_relu"](keras)
    prepared = Quantize(freeze_batch_norm=0).prepare(model)
    x = inputs_of(model, 8)
    calibrate(prepared, [x])
    norm = freezing_layers(prepared)[0]
    values = np.random.default_rng(0).normal(3.0, size=(4, 12, 12, 8)).astype("float32")
    np.testing.assert_allclose(norm(values, training=True), norm(values, training=False), rtol=1e-6)


UNFROZEN = [(50, "step 50.*after 2 steps"), (0.5, "callbacks=stage.callbacks")]


@pytest.mark.parametrize(("at", "match"), UNFROZEN)
def test_a_training_that_did_not_reach_the_freeze_is_told_why(at, match):
    model = ZOO["conv_bn_relu"](keras)
    stage = Quantize(freeze_batch_norm=at)
    prepared = stage.prepare(model)
    for _ in range(2):
        prepared(inputs_of(model, 4), training=True)
    with pytest.raises(TrainingError, match=match):
        stage.finish(prepared)


def test_only_a_fraction_needs_a_callback():
    (callback,) = Quantize(freeze_batch_norm=0.5).callbacks()
    assert isinstance(callback, FreezeAtFraction)
    assert Quantize(freeze_batch_norm=7).callbacks() == Quantize().callbacks() == []


@pytest.mark.slow
def test_learned_steps_beat_moving_averages_at_2_and_3_bits_on_digits(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    low_bits = importlib.import_module("low_bits")
    rows = low_bits.measure(tfedge.load_dataset("digits"), seeds=3, epochs=15)
    for bits in (2, 3):
        old, new = (np.mean([row[0] for row in rows[bits, kind]]) for kind in low_bits.RANGES)
        assert new > old
