import keras
import numpy as np
import pytest
import tensorflow as tf
from models import ZOO, inputs_of

import tfedge
from tfedge.engines.native.export import export_model
from tfedge.engines.native.fake_quant import FakeQuantize
from tfedge.engines.native.quantize import calibrate, prepare_quantization
from tfedge.engines.native.settle import settle
from tfedge.runtime import open_model, quantize

layers = keras.layers


def deep_network():
    """Ten convolutions with batch normalisation, on 32 samples of noise."""
    keras.utils.set_random_seed(3)
    image = x = keras.Input((12, 12, 3))
    for index in range(10):
        x = layers.Conv2D(16, 3, padding="same", use_bias=index % 2 == 1)(x)
        x = layers.ReLU()(layers.BatchNormalization(center=index % 3 > 0)(x))
    model = keras.Model(image, layers.Conv2D(8, 1)(x))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if any(part in weight.path for part in ("moving_variance", "gamma")):
            weight.assign(rng.uniform(0.7, 1.4, weight.shape))
        elif any(part in weight.path for part in ("moving_mean", "beta", "bias")):
            weight.assign(rng.normal(0, 0.2, weight.shape))
    return model, rng.normal(size=(32, 12, 12, 3)).astype("float32")


def prepared(model, x):
    aware, _ = prepare_quantization(model)
    calibrate(aware, [x])
    return aware


def fraction_that_differs(aware, x):
    content, _ = tfedge.convert(aware, mode="int8")
    with open_model(content) as runner:
        file = runner.predict(x)
    step = np.diff(np.unique(file)).min()
    return float((np.rint((aware.predict(x, verbose=0) - file) / step) != 0).mean())


def test_a_settled_deep_network_equals_its_file_where_an_unsettled_one_parts():
    model, x = deep_network()
    aware = prepared(model, x)
    before = fraction_that_differs(aware, x)
    assert settle(aware) == 11
    after = fraction_that_differs(aware, x)
    assert before > 0.02
    assert after < before / 10


@pytest.mark.parametrize("make", ZOO.values(), ids=ZOO)
def test_settling_moves_the_outputs_of_the_zoo_by_rounding_only_and_once(make):
    model = make(keras)
    x = inputs_of(model, 16)
    aware = prepared(model, x)
    before = keras.tree.flatten(aware(x))
    settle(aware)
    once = [v.numpy().copy() for v in aware.variables]
    for first, second in zip(before, keras.tree.flatten(aware(x)), strict=True):
        spread = float(np.ptp(first.numpy()))
        assert np.abs(first - second).max() <= 0.05 * spread
    settle(aware)
    for value, again in zip(once, aware.variables, strict=True):
        np.testing.assert_allclose(again.numpy(), value, atol=1e-6, rtol=1e-6)


def test_settled_biases_are_whole_steps_in_the_exported_layers():
    model, x = deep_network()
    aware = prepared(model, x)
    settle(aware)
    content, _ = tfedge.convert(aware, mode="int8")
    exported = {tuple(v.shape): None for v in export_model(aware).weights}
    assert exported  # there is something to compare
    from ai_edge_litert import interpreter as litert

    runner = litert.Interpreter(model_content=content)
    details = {row["index"]: row for row in runner.get_tensor_details()}
    stored = [
        runner.tensor(index)() * row["quantization_parameters"]["scales"]
        for index, row in details.items()
        if row["dtype"] == np.int32 and len(row["quantization_parameters"]["scales"]) > 1
    ]
    own = [
        layer.bias.numpy() for layer in export_model(aware).layers if type(layer) is layers.Conv2D
    ]
    assert len(stored) == len(own) == 11
    for bias in own:
        assert (
            min(np.abs(bias - other).max() for other in stored if other.shape == bias.shape) < 1e-5
        )


def test_finish_settles_a_trained_model():
    model, x = deep_network()
    stage = tfedge.Quantize()
    aware = stage.prepare(model)
    calibrate(aware, [x])
    trained, _ = stage.finish(aware)
    ranges = [layer for layer in trained.layers if isinstance(layer, FakeQuantize)]
    assert ranges
    for layer in ranges:
        assert (float(layer.minimum), float(layer.maximum)) == tuple(map(float, layer.exact_ends()))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.3, 1.7), (0.0, 1.0), (-2.5, 0.4)])
def test_the_runtime_rounds_values_next_to_a_tie_as_training_does(low, high):
    layer = FakeQuantize()
    layer.build((None, 1))
    layer.minimum.assign(low)
    layer.maximum.assign(high)
    layer.batches.assign(1.0)
    low, high = layer.exact_ends()
    scale = np.float32((high - low) / np.float32(255))
    zero = int(np.rint(-low / scale))
    ties = ((np.arange(255) + 0.5 - zero) * np.float64(scale)).astype("float32")
    x = np.concatenate([ties + n * np.spacing(ties) for n in range(-8, 9)]).astype("float32")
    trained = tf.quantization.fake_quant_with_min_max_vars(x, low, high).numpy()
    stored = quantize(x, scale, zero - 128, "int8").astype(int) + 128 - zero
    agree = np.rint(trained / scale) == stored
    assert agree.mean() > 0.99
    pixels = (np.arange(256) / 127.5 - 1).astype("float32")
    trained = tf.quantization.fake_quant_with_min_max_vars(pixels, low, high).numpy()
    stored = quantize(pixels, scale, zero - 128, "int8").astype(int) + 128 - zero
    np.testing.assert_array_equal(np.rint(trained / scale), stored)
