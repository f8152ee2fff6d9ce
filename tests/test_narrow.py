import random

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers
from models import ZOO, inputs_of, labels_of, weights_of
from structures import STRUCTURES, conv, ended, image

from tfedge.engines.native.channel_importance import filters_of
from tfedge.engines.native.channels import find_channels
from tfedge.engines.native.graph import read_graph
from tfedge.engines.native.narrow import narrow
from tfedge.errors import ModelError, SettingsError, UnsupportedModelError

NETWORKS = {
    **{name: STRUCTURES[name] for name in ("inverted_residual", "channel_shuffle", "operations")},
    **{name: lambda build=build: build(keras) for name, build in ZOO.items()},
}


def outputs(model):
    return np.asarray(model(inputs_of(model), training=False))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_student_of_any_architecture_takes_the_same_inputs_and_has_half_the_channels(name):
    model = NETWORKS[name]()
    before = weights_of(model)
    student = narrow(model, 0.5, round_to=1, min_channels=1)
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert student.input_shape == model.input_shape
    assert student.output_shape == model.output_shape
    assert student.count_params() < 0.8 * model.count_params()
    assert np.isfinite(outputs(student)).all()
    assert all(layer.trainable for layer in student.layers if layer.weights)


def test_fresh_weights_follow_the_seed_and_leave_random_numbers_alone():
    model = ZOO["residual"](keras)
    state = random.getstate()
    first, same, other = (narrow(model, 0.5, round_to=4, seed=seed) for seed in (3, 3, 4))
    assert random.getstate() == state
    assert np.array_equal(outputs(first), outputs(same))
    assert not np.array_equal(outputs(first), outputs(other))
    kernel = first.get_layer("conv_2").get_weights()[0]
    limit = np.sqrt(6 / (9 * (4 + 4)))  # Glorot's, for the smaller shape
    assert 0.7 * limit < np.abs(kernel).max() <= limit


def test_sliced_weights_are_those_of_the_largest_filters():
    model = STRUCTURES["inverted_residual"]()
    student = narrow(model, 0.5, round_to=4, weights="sliced")
    channels = find_channels(read_graph(model))
    group = next(group for group in channels.groups if group.size == 16)
    kept = np.sort(np.argsort(-np.linalg.norm(filters_of(channels, group), axis=1))[:8])
    depthwise = group.followers[1]
    theirs = student.get_layer(depthwise.name).get_weights()[0]
    assert theirs.shape[2] in (8, len(kept))
    own = depthwise.layer.get_weights()[0]
    columns = kept if depthwise.layer.kernel.shape[2] == 16 else np.arange(own.shape[2])
    assert np.array_equal(theirs, own[:, :, columns])


def test_full_width_with_sliced_weights_is_a_copy():
    model = STRUCTURES["bottleneck"]()
    assert np.array_equal(outputs(narrow(model, 1.0, weights="sliced")), outputs(model))


def test_statistics_of_preprocessing_are_kept_and_frozen_backbones_train():
    i = image()
    norm = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0])
    adapted = layers.Normalization(name="adapted")
    adapted.adapt(np.random.default_rng(0).normal(3, 2, (50, 6, 6, 3)))
    x = layers.BatchNormalization(name="bn")(conv(adapted(norm(i)), 16), training=False)
    model = ended(i, x)
    adapted.set_weights([np.ones(3), np.full(3, 4.0), np.array(9)])
    adapted.finalize_state()
    student = narrow(model, 0.5)
    assert np.array_equal(student.get_layer("adapted").mean.numpy(), adapted.mean.numpy())
    student.compile("sgd", "mse")
    before = student.get_layer("bn").moving_mean.numpy()
    student.fit(inputs_of(student), np.zeros((8, 3)), verbose=0)
    assert not np.array_equal(student.get_layer("bn").moving_mean.numpy(), before)


def test_a_student_of_a_compiled_model_is_compiled_and_trains():
    model = ZOO["depthwise"](keras)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    student = narrow(model, 0.5, round_to=4)
    history = student.fit(inputs_of(model, 32), labels_of(32), epochs=5, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"width": 0}, r"`width`.*\(0, 1\].*Received: 0"),
        ({"width": 50}, "Did you mean 0.5"),
        ({"width": True}, "`width`"),
        ({"round_to": 0}, "`round_to` is a whole number from 1"),
        ({"weights": "slice"}, "Did you mean 'sliced'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(SettingsError, match=match):
        narrow(ZOO["dense"](keras), **settings)
    assert narrow(ZOO["dense"](keras), width=0.5, weights="sliced").built


def test_models_that_cannot_be_narrowed_are_refused():
    with pytest.raises(UnsupportedModelError, match="tfedge.to_keras3"):
        narrow(ZOO["dense"](tf_keras))
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="only")])
    with pytest.raises(ModelError, match="only: its channels are an output of the model"):
        narrow(model)
