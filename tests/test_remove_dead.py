import keras
import numpy as np
import pytest
import tf_keras
from keras import layers
from models import ZOO, inputs_of, weights_of
from structures import STRUCTURES, conv, ended, image, stir

from tfedge.engines.native.channel_importance import model_of_tensors
from tfedge.engines.native.channels import find_channels
from tfedge.engines.native.constants import find_constants
from tfedge.engines.native.graph import read_graph
from tfedge.errors import ModelError, UnsupportedModelError
from tfedge.models import layers_of
from tfedge.stages.prune import Prune
from tfedge.stages.remove_dead import RemoveDead

NETWORKS = {**STRUCTURES, **{name: lambda build=build: build(keras) for name, build in ZOO.items()}}


def outputs(model, count=4):
    return np.asarray(model(inputs_of(model, count), training=False))


def kill(model, share=0.4, seed=0):
    """Zero some filters (not their biases), some scales, and what reads some channels."""
    draw = np.random.default_rng(seed)
    for layer in layers_of(model):
        if isinstance(layer, layers.BatchNormalization):
            gamma, *rest = layer.get_weights()
            layer.set_weights([np.where(draw.random(gamma.shape) < share / 2, 0, gamma), *rest])
        elif any(weight.name.endswith("kernel") for weight in layer.weights):
            *first, kernel = [w for w in layer.get_weights() if w.ndim > 1]
            rest = [w for w in layer.get_weights() if w.ndim == 1]
            kernel[..., draw.random(kernel.shape[-1]) < share] = 0
            kernel[..., draw.random(kernel.shape[-2]) < share / 3, :] = 0
            layer.set_weights([*first, kernel, *rest])
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_and_every_layer_is_reported(name):
    model = kill(NETWORKS[name]())
    before, expected = weights_of(model), outputs(model)
    small, report = RemoveDead().apply(model)
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    np.testing.assert_allclose(outputs(small), expected, rtol=1e-5, atol=1e-5)
    named = sorted([*report.changed, *(row.layer for row in report.skipped)])
    assert named == sorted(layer.name for layer in layers_of(small))
    removed = report.metrics["channels_removed"]
    assert (removed > 0) == (small.count_params() < model.count_params())
    if name not in ("grouped_one_each", "nested_twice", "called_twice", "spatial_attention"):
        assert removed > 0


@pytest.mark.parametrize("name", sorted(set(STRUCTURES) - {"dense_block", "bottleneck"}))
def test_constants_are_what_the_model_computes(name):
    model = kill(NETWORKS[name]())
    graph = read_graph(model)
    constants = find_constants(find_channels(graph))
    indices = [index for call in graph.calls for index in call.outputs]
    x = inputs_of(model, 3)
    tensors = keras.tree.flatten(model_of_tensors(find_channels(graph), indices)(x, training=False))
    found = 0
    for index, tensor in zip(indices, tensors, strict=True):
        values = np.broadcast_to(constants[index], tensor.shape)
        known = ~np.isnan(values)
        found += known.sum()
        np.testing.assert_allclose(np.asarray(tensor)[known], values[known], rtol=1e-5, atol=1e-5)
    assert found


@pytest.mark.parametrize("name", ZOO)
def test_a_model_without_dead_channels_comes_back_bit_equal(name):
    model = ZOO[name](keras)
    copy, report = RemoveDead().apply(model)
    assert report.metrics["channels_removed"] == 0
    assert report.changed == ()
    assert np.array_equal(outputs(copy), outputs(model))


def two_convolutions(padding="valid", **settings):
    x = conv(i := image(), 8, name="a")
    x = layers.BatchNormalization(name="b")(x)
    x = layers.Conv2D(5, 3, padding=padding, name="c", **settings)(layers.ReLU()(x))
    return ended(i, x)


def weights(model, layer, **changes):
    """Set rows or columns: `weights(model, "b", gamma={2: 0.0})`."""
    owner = model.get_layer(layer)
    for name, values in changes.items():
        value = np.array(getattr(owner, name))
        for index, number in values.items():
            value[..., index] = number
        getattr(owner, name).assign(value)


@pytest.mark.parametrize("bias", [True, False])
def test_constants_go_into_the_next_bias(bias):
    model = two_convolutions(use_bias=bias)
    weights(model, "b", gamma={1: 0, 4: 0}, beta={1: 0.7, 4: 0.2})
    small, report = RemoveDead().apply(model)
    assert report.metrics["channels_removed"] == 2
    assert small.get_layer("c").use_bias
    gain = small.get_layer("c").bias - (model.get_layer("c").bias if bias else 0)
    kernel = np.asarray(model.get_layer("c").kernel)
    expected = np.einsum("hwio,i->o", kernel[:, :, [1, 4]], [0.7, 0.2])
    np.testing.assert_allclose(gain, expected, atol=1e-6)
    np.testing.assert_allclose(outputs(small), outputs(model), atol=1e-5)


def test_before_padding_only_zeros_go():
    model = two_convolutions("same")
    weights(model, "b", gamma={1: 0, 4: 0}, beta={1: 0.7, 4: -0.2})
    small, report = RemoveDead().apply(model)
    assert small.get_layer("a").filters == 7  # ReLU made a zero of the other one
    assert "1 constant channels before c stay: its padding" in report.notes[0]
    np.testing.assert_allclose(outputs(small), outputs(model), atol=1e-5)


def test_what_feeds_only_dead_channels_goes_too():
    x = conv(i := image(), 6, name="a", activation="relu")
    x = conv(x, 6, name="b", activation="relu")
    model = ended(i, conv(x, 4, name="c"))
    weights(model, "c", kernel={})
    kernel, bias = model.get_layer("c").get_weights()
    kernel[:, :, 2] = 0  # nothing reads channel 2 of b
    model.get_layer("c").set_weights([kernel, bias])
    kernel, bias = model.get_layer("b").get_weights()
    kernel[:, :, 3, [0, 1, 3, 4, 5]] = 0  # and only that one reads channel 3 of a
    model.get_layer("b").set_weights([kernel, bias])
    small, report = RemoveDead().apply(model)
    assert (small.get_layer("a").filters, small.get_layer("b").filters) == (5, 5)
    assert report.metrics["layers"]["a"]["channels"] == [6, 5]
    np.testing.assert_allclose(outputs(small), outputs(model), atol=1e-5)


def test_a_gate_that_multiplies_zeros_goes_with_them():
    model = STRUCTURES["squeeze_excite"]()
    first = model.layers[2]
    weights(model, first.name, gamma={0: 0, 5: 0}, beta={0: -1.0, 5: 0.0})
    small, report = RemoveDead().apply(model)
    assert report.metrics["channels_removed"] == 2
    gate = [layer for layer in small.layers if getattr(layer, "filters", None) == 6]
    assert len(gate) == 3  # its convolution, the one it follows, and the reduction that stays whole
    np.testing.assert_allclose(outputs(small), outputs(model), atol=1e-5)


def test_a_layer_that_is_dead_altogether_keeps_one_channel():
    x = conv(i := image(), 6, name="a", activation="relu")
    model = ended(i, conv(x, 4, name="b"))
    model.get_layer("a").set_weights([0 * w for w in model.get_layer("a").get_weights()])
    small, report = RemoveDead().apply(model)
    assert small.get_layer("a").filters == 1
    assert "All channels of a are dead; one stays." in report.notes
    np.testing.assert_allclose(outputs(small), outputs(model), atol=1e-5)


def test_statistics_over_all_channels_need_even_the_dead_ones():
    x = layers.LayerNormalization()(conv(i := image(), 6, name="a"))
    model = ended(i, conv(x, 4, name="b"))
    weights(model, "a", kernel={2: 0.0}, bias={2: 0.0})
    small, report = RemoveDead().apply(model)
    assert small.get_layer("a").filters == 6
    np.testing.assert_allclose(outputs(small), outputs(model), atol=1e-5)


def test_unstructured_pruning_leads_to_smaller_shapes():
    i = keras.Input((20,))
    x = layers.Dense(64, activation="relu", name="up")(i)
    model = stir(keras.Model(i, layers.Dense(3, name="down")(x)))
    pruned, _ = Prune(sparsity=0.98, layers=["up"], one_shot=True).apply(model)
    small, report = RemoveDead().apply(pruned)
    alive = np.any(np.array(pruned.get_layer("up").kernel) != 0, axis=0).sum()
    assert small.get_layer("up").units == alive < 40
    np.testing.assert_allclose(outputs(small), outputs(pruned), atol=1e-5)


def test_a_compiled_model_comes_back_compiled_and_trains():
    model = kill(ZOO["residual"](keras))
    model.compile("adam", "sparse_categorical_crossentropy")
    small, _ = RemoveDead().apply(model)
    small.fit(inputs_of(model), np.zeros(8, int), verbose=0)


def test_models_that_cannot_be_rebuilt_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"tf_keras model.*tfedge.to_keras3"):
        RemoveDead().apply(ZOO["dense"](tf_keras))
    model = ZOO["dense"](keras)
    model.layers[0].bias.assign(np.full(24, np.nan))
    with pytest.raises(ModelError, match="finite"):
        RemoveDead().apply(model)
