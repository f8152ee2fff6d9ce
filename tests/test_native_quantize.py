import keras
import numpy as np
import pytest
import tensorflow as tf
from models import ZOO, inputs_of

from tfedge.engines.native.batch_norm import FusedBatchNormalization
from tfedge.engines.native.export import export_model
from tfedge.engines.native.fake_quant import (
    FakeQuantize,
    QuantizedWeights,
    fake_quant_weights,
)
from tfedge.engines.native.graph import read_graph
from tfedge.engines.native.lower import lower
from tfedge.engines.native.place import LayerRule
from tfedge.engines.native.quantize import calibrate, is_quantized, prepare_quantization
from tfedge.errors import ConversionError, DataError, UnsupportedModelError
from tfedge.runtime import quantize

layers, ops = keras.layers, keras.ops


def settled(model, seed=1):
    """Give batch normalisations statistics that are not the neutral ones."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if any(part in weight.path for part in ("moving", "gamma", "beta", "alpha")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def image_model(body, shape=(8, 8, 4), first=True):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, name="image")
    x = inputs
    if first:
        kinds = {3: lambda: layers.Conv2D(4, 3, padding="same"), 2: lambda: layers.Conv1D(4, 3)}
        x = kinds.get(len(shape), lambda: layers.Dense(4))()(x)
    return settled(keras.Model(inputs, body(x), name="net"))


def samples_for(model, count=16, top=1.0):
    rng = np.random.default_rng(0)
    return (top * rng.normal(size=(count, *model.inputs[0].shape[1:]))).astype("float32")


LOWERED = {
    "relu6": lambda x: layers.Conv2D(3, 1, activation="relu6")(x),
    "silu": lambda x: layers.Conv2D(3, 1, activation="silu")(x),
    "hard_sigmoid": lambda x: layers.Activation("hard_sigmoid")(x),
    "separable": lambda x: layers.SeparableConv2D(5, 3, activation="relu")(x),
    "dense_on_images": lambda x: layers.Dense(5, activation="tanh")(x),
    "average": lambda x: layers.Average()([x, layers.Conv2D(4, 1)(x), ops.relu(x)]),
    "sum_of_three": lambda x: layers.Add()([x, layers.Conv2D(4, 1)(x), ops.relu(x)]),
    "rescaling_chain": lambda x: layers.Rescaling(2.0, -1.0)(
        layers.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 2, 3, 4])(x)
    ),
    "operations": lambda x: ops.silu(x) * ops.sigmoid(x + 3.0)[:, 1:2],
    "lambda": lambda x: layers.Lambda(lambda t: t * 2.0)(x),
}


@pytest.mark.parametrize("body", LOWERED.values(), ids=LOWERED)
def test_lowering_keeps_outputs(body):
    model = image_model(body)
    x = samples_for(model)
    lowered = lower(read_graph(model))
    np.testing.assert_allclose(lowered(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", ZOO.values(), ids=ZOO)
def test_lowering_the_zoo_keeps_outputs_and_leaves_the_model_bit_equal(make):
    model = make(keras)
    before = [w.copy() for w in model.get_weights()]
    x = inputs_of(model, count=4)
    lowered = lower(read_graph(model))
    np.testing.assert_allclose(lowered(x), model(x), rtol=1e-5, atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert not {id(w) for w in model.weights} & {id(w) for w in lowered.weights}


@pytest.mark.parametrize("make", ZOO.values(), ids=ZOO)
def test_export_equals_the_fake_quantised_model_at_inference(make):
    model = make(keras)
    x = inputs_of(model, count=16)
    prepared, _ = prepare_quantization(model)
    assert calibrate(prepared, [x]) == 1
    exported = export_model(prepared)
    assert not any(isinstance(layer, QuantizedWeights) for layer in exported.layers)
    np.testing.assert_allclose(
        exported.predict(x, verbose=0), prepared.predict(x, verbose=0), atol=1e-5
    )
    assert is_quantized(prepared)
    assert not is_quantized(model)


def test_a_frozen_backbone_stays_frozen_and_in_inference_mode():
    model = ZOO["frozen_backbone"](keras)
    x = inputs_of(model, count=8)
    prepared, _ = prepare_quantization(model)
    trainable = {w.path.split("/")[-2] for w in prepared.trainable_variables}
    frozen = {layer.name for m in model.layers if isinstance(m, keras.Model) for layer in m.layers}
    assert frozen
    assert not trainable & frozen
    batch_norms = [v for v in prepared.variables if "moving" in v.path]
    before = [v.numpy().copy() for v in batch_norms]
    prepared(x, training=True)
    assert batch_norms
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, batch_norms, strict=True))


@pytest.mark.parametrize(
    ("axis", "shape"), [(None, (7, 5)), (3, (3, 3, 4, 6)), (2, (3, 3, 6, 4)), (1, (9, 6))]
)
def test_fake_quantised_weights_are_symmetric_integers_times_one_scale(axis, shape):
    weights = np.random.default_rng(0).normal(size=shape).astype("float32")
    rounded = np.asarray(fake_quant_weights(weights, axis=axis))
    others = None if axis is None else tuple(i for i in range(len(shape)) if i != axis)
    scale = np.abs(weights).max(axis=others, keepdims=True) / 127
    integers = np.round(weights / scale)
    np.testing.assert_allclose(rounded, integers * scale, atol=float(scale.max()) * 1e-3)
    assert np.abs(integers).max() == 127


def test_gradients_pass_fake_quantised_weights_unchanged():
    weights = tf.Variable(np.random.default_rng(0).normal(size=(4, 3)).astype("float32"))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(fake_quant_weights(weights, axis=1) * 3.0)
    np.testing.assert_allclose(tape.gradient(total, weights), 3.0)


def test_a_learned_range_begins_with_the_first_batch_and_then_moves():
    layer = FakeQuantize()
    layer(np.float32([[0.0, 2.0]]), training=True)
    assert (float(layer.minimum), float(layer.maximum)) == (0.0, 2.0)
    layer(np.float32([[-1.0, 4.0]]), training=True)
    assert float(layer.minimum) == pytest.approx(-0.5)
    assert float(layer.maximum) == pytest.approx(3.0)
    layer(np.float32([[-9.0, 9.0]]), training=False)
    assert float(layer.maximum) == pytest.approx(3.0)


def test_a_fixed_range_never_moves():
    layer = FakeQuantize(fixed_range=(0.0, 255 / 256))
    y = layer(np.float32([[-5.0, 0.5, 5.0]]), training=True)
    np.testing.assert_allclose(y, [[0.0, 0.5, 255 / 256]], atol=1e-6)


def test_pruned_weights_stay_zero_only_if_asked():
    model = image_model(lambda x: layers.Dense(3)(layers.Flatten()(x)))
    kernel = model.layers[-1].kernel
    values = kernel.numpy()
    values[::2] = 0.0
    kernel.assign(values)
    x, y = samples_for(model, 64), np.arange(64) % 3
    for keep in (True, False):
        prepared, _ = prepare_quantization(model, keep_sparsity=keep)
        prepared.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        prepared.fit(x, y, epochs=2, verbose=0)
        exported = export_model(prepared)
        zeros = (exported.get_layer(model.layers[-1].name).kernel.numpy()[::2] == 0).mean()
        assert bool(zeros == 1.0) is keep


def test_a_kept_float_layer_is_neither_rounded_nor_ranged():
    model = image_model(lambda x: layers.Dense(3, name="head")(layers.Flatten()(x)))
    prepared, placement = prepare_quantization(model, keep_float=("head",))
    assert type(prepared.get_layer("head")) is layers.Dense
    assert placement.reasons["head"] == "kept float on request"
    assert "head_range" not in {layer.name for layer in prepared.layers}


def test_dense_before_batch_normalisation_has_one_scale_after_folding():
    model = image_model(
        lambda x: layers.ReLU()(
            layers.BatchNormalization(name="bn")(layers.Dense(6, name="fc")(x))
        ),
        shape=(5,),
    )
    prepared, placement = prepare_quantization(model)
    assert placement.batch_norms == {"fc": "bn"}
    calibrate(prepared, [samples_for(model)])
    kernel = export_model(prepared).get_layer("fc").kernel.numpy()
    integers = kernel / (np.abs(kernel).max() / 127)
    np.testing.assert_allclose(integers, np.round(integers), atol=1e-3)


@keras.saving.register_keras_serializable("tests")
class Scaled(layers.Layer):
    """A layer of one's own with one weight."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(input_shape[-1],), name="factor", initializer="ones")

    def call(self, inputs):
        return inputs * self.factor


def test_a_rule_quantises_a_layer_of_ones_own():
    model = image_model(lambda x: Scaled(name="scaled")(x))
    _, without = prepare_quantization(model)
    assert without.unknown == {"scaled"}
    rule = LayerRule(weights={"factor": None})
    prepared, placement = prepare_quantization(model, rules={Scaled: rule})
    assert not placement.unknown
    assert isinstance(prepared.get_layer("scaled"), QuantizedWeights)


def test_training_resumes_exactly_from_a_saved_model(tmp_path):
    model = ZOO["conv_bn_relu"](keras)
    x, y = inputs_of(model, count=32), np.arange(32) % 4
    prepared, _ = prepare_quantization(model, keep_sparsity=True)
    prepared.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    prepared.fit(x, y, verbose=0, shuffle=False)
    prepared.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), prepared.predict(x, verbose=0))
    losses = [
        m.fit(x, y, epochs=2, verbose=0, shuffle=False).history["loss"] for m in (prepared, loaded)
    ]
    assert losses[0] == losses[1]


# Keras does without XLA in a process whose operations an earlier run made deterministic, and warns.
@pytest.mark.filterwarnings("ignore:Model doesn't support `jit_compile=True`:UserWarning")
@pytest.mark.parametrize("jit", [False, True])
def test_mixed_precision_trains_and_exports_in_float32(jit):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = ZOO["conv_bn_relu"](keras)
        x, y = inputs_of(model, count=32), np.arange(32) % 4
        prepared, _ = prepare_quantization(model)
        prepared.compile("adam", "sparse_categorical_crossentropy", jit_compile=jit)
        losses = prepared.fit(x, y, epochs=25, verbose=0).history["loss"]
        assert losses[-1] < losses[0]
        assert {w.dtype for w in export_model(prepared).weights} == {"float32"}
    finally:
        keras.config.set_dtype_policy("float32")


def test_export_of_a_model_that_never_saw_data_names_the_range():
    prepared, _ = prepare_quantization(ZOO["dense"](keras))
    with pytest.raises(ConversionError, match="features_range.*calibrate it with data"):
        export_model(prepared)


def test_calibration_without_batches_is_refused():
    prepared, _ = prepare_quantization(ZOO["dense"](keras))
    with pytest.raises(DataError, match="at least one batch"):
        calibrate(prepared, [])


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def test_a_subclassed_model_is_refused_with_the_reason():
    with pytest.raises(UnsupportedModelError, match="Functional and Sequential"):
        read_graph(Subclassed())


def test_a_clipped_relu_that_is_kept_float_keeps_its_clip():
    model = image_model(lambda x: layers.ReLU(1.0, name="clip")(x * 9.0))
    x = samples_for(model)
    prepared, _ = prepare_quantization(model, keep_float=("clip",))
    calibrate(prepared, [x])
    assert float(np.max(export_model(prepared)(x))) <= 1.0 < float(np.max(x))


def test_batch_normalisation_behind_a_shared_layer_is_not_folded():
    inputs = keras.Input((8, 8, 4), name="image")
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    first, second = shared(inputs), shared(layers.ReLU()(inputs))
    outputs = layers.Add()([layers.BatchNormalization()(first), second])
    model = settled(keras.Model(inputs, outputs))
    x = samples_for(model)
    prepared, _ = prepare_quantization(model)
    calibrate(prepared, [x])
    np.testing.assert_allclose(export_model(prepared)(x), prepared(x), atol=1e-4)


@pytest.mark.parametrize(("scale", "center"), [(True, True), (False, True)])
def test_fused_batch_normalisation_trains_to_the_values_of_keras(scale, center):
    rng = np.random.default_rng(0)
    x, target = (rng.normal(1.0, 2.0, size=(16, 6, 6, 5)).astype("float32") for _ in range(2))
    found = []
    for cls in (layers.BatchNormalization, FusedBatchNormalization):
        layer = cls(scale=scale, center=center, momentum=0.9)
        model = keras.Sequential([keras.Input((6, 6, 5)), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, target, batch_size=8, epochs=3, shuffle=False, verbose=0)
        found.append([*layer.get_weights(), model.predict(x, verbose=0)])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_fused_batch_normalisation_that_is_frozen_keeps_its_statistics():
    layer = FusedBatchNormalization(trainable=False)
    x = np.random.default_rng(0).normal(5.0, size=(4, 6, 6, 3)).astype("float32")
    layer(x, training=True)
    np.testing.assert_array_equal(layer.moving_mean, 0.0)


def test_pixels_halfway_between_two_integers_are_rounded_as_in_training():
    pixels = np.arange(256, dtype="float32")
    values = (pixels * np.float32(1 / 127.5) - 1).reshape(-1, 1)  # all are halfway
    layer = FakeQuantize()
    layer(np.float32([[-1.0], [1.0]]), training=True)
    real = np.asarray(layer(values))
    model = keras.Sequential([keras.Input((1,)), layer])
    exported = export_model(model).layers[-1]
    low, high = float(exported.minimum), float(exported.maximum)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    stored = quantize(values, scale, zero_point, "int8")
    np.testing.assert_allclose((stored.astype(float) - zero_point) * scale, real, atol=1e-5)


def test_a_rescaling_that_the_model_also_returns_is_not_merged_twice():
    inputs = keras.Input((4,), name="image")
    first = layers.Rescaling(2.0, 1.0)(inputs)
    model = keras.Model(inputs, [first, layers.Rescaling(3.0, -1.0)(first)])
    x = samples_for(model)
    for got, wanted in zip(lower(read_graph(model))(x), model(x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
