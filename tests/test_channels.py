import re

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import ZOO, weights_of
from structures import STRUCTURES, conv, ended, image, inputs_of, stir

from tfedge.engines.native.channel_choice import (
    by_fraction,
    cost_of,
    least_important_first,
    within,
)
from tfedge.engines.native.channel_costs import Costs, keep_best, levels_of
from tfedge.engines.native.channels import find_channels
from tfedge.engines.native.costs import total_macs
from tfedge.engines.native.graph import read_graph
from tfedge.engines.native.shrink import shrink

NETWORKS = {**STRUCTURES, **{name: lambda build=build: build(keras) for name, build in ZOO.items()}}


def channels_of(model):
    return find_channels(read_graph(model))


def drawn(channels, seed=0):
    """A seeded choice of channels to keep, at least one and not all of each group."""
    draw = np.random.default_rng(seed)
    return {
        group.index: keep_best(draw.random(group.size), int(draw.integers(1, group.size)))
        for group in channels.groups
    }


def silenced(model, channels, kept):
    """The model itself, with zeros wherever a layer reads a channel that is not kept."""
    for part in channels.parts.values():
        axis = -1 if "Transpose" in part.kind else -2  # of the input channels
        values = part.layer.get_weights()
        for value, axes in zip(values, part.axes, strict=True):
            if value.ndim > 1 and axes[axis] is not None:
                np.moveaxis(value, axis, 0)[~kept[axes[axis]]] = 0
        part.layer.set_weights(values)
    return model


def outputs(model):
    return np.asarray(model(inputs_of(model, count=4), training=False))


def names(channels):
    return [group.name for group in channels.groups]


# ---------------------------------------------------------------------- what is removed


@pytest.mark.parametrize("name", NETWORKS)
def test_a_smaller_model_computes_what_the_silenced_one_does_and_costs_what_was_said(name):
    model = NETWORKS[name]()
    channels = channels_of(model)
    keep = drawn(channels)
    kept = channels.kept(keep)
    before = weights_of(model)
    small = shrink(channels, kept)
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert small.count_params() < model.count_params()
    counts = {group: int(chosen.sum()) for group, chosen in keep.items()}
    assert Costs(channels, "macs").total == total_macs(channels.graph)
    assert cost_of(channels, counts, "macs") == total_macs(read_graph(small))
    assert cost_of(channels, counts, "parameters") == small.count_params()
    expected = outputs(silenced(model, channels, kept))
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(outputs(small), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STRUCTURES)
def test_removing_nothing_changes_no_bit(name):
    model = STRUCTURES[name]()
    copy = shrink(channels := channels_of(model), channels.kept({}))
    assert np.array_equal(outputs(copy), outputs(model))
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}


def test_layer_normalisation_takes_its_statistics_from_what_is_left():
    x = layers.LayerNormalization(name="norm")(conv(i := image(), 6, name="before"))
    model = ended(i, conv(x, 4, name="after"))
    channels = channels_of(model)
    keep = np.array([1, 0, 1, 1, 0, 1], bool)
    small = shrink(channels, channels.kept({0: keep}))
    x = layers.LayerNormalization()(conv(i := image(), 4))
    expected = ended(i, conv(x, 4))
    kernel, bias = model.get_layer("before").get_weights()
    gamma, beta = model.get_layer("norm").get_weights()
    after, offset = model.get_layer("after").get_weights()
    own = [kernel[..., keep], bias[keep], gamma[keep], beta[keep], after[:, :, keep], offset]
    expected.set_weights([*own, *model.get_layer("head").get_weights()])
    np.testing.assert_allclose(outputs(small), outputs(expected), atol=1e-6)


def test_an_embedding_loses_columns():
    i = keras.Input((5,), dtype="int32", name="words")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(9, 6, name="words_of")(i))
    model = stir(keras.Model(i, layers.Dense(3)(x)))
    channels = channels_of(model)
    kept = channels.kept({0: np.array([1, 1, 0, 0, 1, 1], bool)})
    small = shrink(channels, kept)
    assert small.get_layer("words_of").embeddings.shape == (9, 4)
    x = np.arange(10).reshape(2, 5) % 9
    expected = silenced(model, channels, kept)(x)
    np.testing.assert_allclose(small(x), expected, atol=1e-6)


# ---------------------------------------------------------------------- what goes together


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("flatten_dense", [6, 8]),
        ("squeeze_excite", [8, 6, 8]),
        ("bottleneck", [8, 8, 8, 16, 8, 8]),
        ("concat_then_add", [5, 4, 5]),
        ("grouped", [2, 3, 6]),
        ("channel_shuffle", [6, 3, 4]),
        ("decoder", [8, 6]),
        ("spatial_attention", [6, 5]),
        ("called_twice", [6, 4]),
        ("operations", [4, 6]),
    ],
)
def test_groups_are_as_large_as_the_structure_says(name, sizes):
    assert sorted(g.size for g in channels_of(STRUCTURES[name]()).groups) == sorted(sizes)


def test_channels_that_are_added_go_together():
    channels = channels_of(ZOO["residual"](keras))
    assert names(channels) == ["conv_1 + conv_3", "conv_2"]
    assert [part.name for part in channels.groups[0].followers] == ["bn_1", "bn_3"]


def test_one_channel_of_an_image_is_many_units_of_the_dense_layer_that_makes_it():
    channels = channels_of(STRUCTURES["decoder"]())
    assert [group.multiplicity for group in channels.groups] == [9, 1]


# ---------------------------------------------------------------------- what is left alone


def attention():
    i = keras.Input((5, 8), name="steps")
    x = layers.Dense(8, name="project")(i)
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    y = layers.Dense(8, name="down")(layers.Dense(16, activation="relu", name="up")(x))
    return ended(i, layers.Flatten()(layers.Add()([x, y])))


def recurrent():
    i = keras.Input((5, 4), name="steps")
    x = layers.LSTM(6, name="lstm")(layers.Dense(8, name="project")(i))
    return ended(i, layers.Dense(7, name="up")(x))


class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def own_layer():
    x = Doubled(name="doubled")(conv(i := image(), 6, name="project"))
    return ended(i, conv(x, 5, name="up"))


def softmax_inside():
    x = layers.Softmax()(conv(i := image(), 6, name="project"))
    return ended(i, conv(x, 5, name="up"))


def fixed_slice():
    x = conv(i := image(), 6, name="project")[..., :3]
    return ended(i, conv(x, 5, name="up"))


def mean_of_channels():
    x = ops.mean(conv(i := image(), 6, name="project"), axis=-1, keepdims=True)
    return ended(i, conv(x, 5, name="up"))


def group_norm():
    x = layers.GroupNormalization(2)(conv(i := image(), 6, name="project"))
    return ended(i, conv(x, 5, name="up"))


def halved(x):
    return x / 2


def unknown_activation():
    x = conv(i := image(), 6, activation=halved, name="project")
    return ended(i, conv(x, 5, name="up"))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (attention, "`attention` .MultiHeadAttention. is a layer that channels are not followed"),
        (recurrent, "`lstm` .LSTM. is a layer"),
        (own_layer, "`doubled` .Doubled. is a layer"),
        (softmax_inside, "compares all channels"),
        (fixed_slice, "takes channels at fixed places"),
        (mean_of_channels, "reduces over all channels"),
        (group_norm, "GroupNormalization"),
        (unknown_activation, "not known to Keras"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_followed_keeps_its_channels_and_says_why(build, reason):
    model = build()
    channels = channels_of(model)
    assert names(channels) == ["up"]
    part = next(part for part in channels.parts.values() if part.name == "project")
    assert re.search(reason, channels.why_whole(part))
    kept = channels.kept(drawn(channels))
    small = shrink(channels, kept)
    expected = outputs(silenced(model, channels, kept))
    np.testing.assert_allclose(outputs(small), expected, atol=1e-5)


def test_outputs_of_the_model_keep_their_channels():
    x = conv(i := image(), 6, name="features")
    model = stir(keras.Model(i, [x, layers.Dense(3)(layers.Flatten()(conv(x, 4, name="tail")))]))
    channels = channels_of(model)
    assert names(channels) == ["tail"]
    part = next(part for part in channels.parts.values() if part.name == "features")
    assert channels.why_whole(part) == "its channels are an output of the model"


def test_an_image_of_unknown_size_can_lose_channels_as_long_as_nothing_is_flattened():
    i = keras.Input((None, None, 3))
    x = conv(conv(i, 6, activation="relu"), 5)
    model = ended(i, x)
    channels = channels_of(model)
    small = shrink(channels, channels.kept(drawn(channels)))
    assert small(np.zeros((1, 7, 9, 3))).shape == (1, 3)


# ---------------------------------------------------------------------- what is kept of a layer


def test_names_flags_policies_and_constraints_stay():
    i = image()
    x = layers.Conv2D(8, 3, kernel_constraint="max_norm", dtype="mixed_float16", name="a")(i)
    x = layers.BatchNormalization(trainable=False, momentum=0.5, name="b")(x)
    x = layers.Conv2D(6, 1, kernel_regularizer="l2", trainable=False, name="c")(x)
    model = ended(i, x, name="mine")
    channels = channels_of(model)
    small = shrink(channels, channels.kept(drawn(channels)))
    assert small.name == "mine"
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    a, b, c = (small.get_layer(name) for name in "abc")
    assert isinstance(a.kernel_constraint, keras.constraints.MaxNorm)
    assert a.dtype_policy.name == "mixed_float16"
    assert (b.trainable, b.momentum) == (False, 0.5)
    assert (c.trainable, type(c.kernel_regularizer).__name__) == (False, "L2")


def test_a_smaller_model_is_saved_and_loaded(tmp_path):
    for name in ("squeeze_excite", "prelu", "channel_shuffle", "operations"):
        channels = channels_of(STRUCTURES[name]())
        small = shrink(channels, channels.kept(drawn(channels)))
        small.save(path := tmp_path / f"{name}.keras")
        assert np.array_equal(outputs(keras.models.load_model(path)), outputs(small)), name


# ---------------------------------------------------------------------- how many are kept


@pytest.mark.parametrize(
    ("size", "multiplicity", "round_to", "least", "levels"),
    [
        (32, 1, 8, 4, [32, 24, 16, 8]),
        (20, 1, 8, 4, [20, 16, 8]),
        (8, 1, 8, 4, [8]),
        (6, 1, 8, 4, [6]),
        (6, 1, 1, 4, [6, 5, 4]),
        (6, 16, 8, 4, [6, 5, 4, 3, 2, 1]),
        (6, 4, 8, 4, [6, 4, 2]),
        (6, 3, 1, 7, [6, 5, 4, 3]),
    ],
)
def test_levels_are_multiples_and_not_too_few(size, multiplicity, round_to, least, levels):
    group = type("G", (), {"size": size, "multiplicity": multiplicity})()
    assert levels_of(group, round_to, least) == levels


def test_the_least_important_channels_go_first_until_the_budget_holds():
    model = STRUCTURES["bottleneck"]()
    channels = channels_of(model)
    levels = {g.index: levels_of(g, 2, 2) for g in channels.groups}
    scores = {g.index: np.full(g.size, 100.0**g.index) for g in channels.groups}
    steps = least_important_first(channels, levels, scores, "macs")
    assert [step.group for step in steps] == sorted(step.group for step in steps)
    assert [step.total for step in steps] == sorted((step.total for step in steps), reverse=True)
    most = 0.6 * total_macs(channels.graph)
    counts = within(channels, levels, steps, "macs", most)
    assert cost_of(channels, counts, "macs") <= most
    for group, count in counts.items():  # nothing more than needed is gone
        place = levels[group].index(count)
        if place:
            more = {**counts, group: levels[group][place - 1]}
            assert cost_of(channels, more, "macs") > most


def test_scores_of_one_loss_are_weighed_against_what_they_save():
    channels = channels_of(STRUCTURES["bottleneck"]())
    levels = {g.index: levels_of(g, 1, 1) for g in channels.groups}
    scores = {g.index: np.ones(g.size) for g in channels.groups}
    whole = cost_of(channels, {}, "macs")
    saved = {g: whole - cost_of(channels, {g: own[1]}, "macs") for g, own in levels.items()}
    steps = least_important_first(channels, levels, scores, "macs", per_cost=True)
    assert steps[0].group == max(saved, key=lambda group: saved[group])
    assert len(set(saved.values())) > 1


def test_the_fewer_channels_are_left_the_more_each_counts():
    channels = channels_of(STRUCTURES["bottleneck"]())
    levels = {g.index: levels_of(g, 1, 1) for g in channels.groups}
    scores = {g.index: np.ones(g.size) for g in channels.groups}
    steps = least_important_first(channels, levels, scores, "macs")
    halved = {s.group: n for n, s in enumerate(steps) if s.after == levels[s.group][0] // 2}
    ended = {s.group: n for n, s in enumerate(steps) if s.after == levels[s.group][-1]}
    assert max(halved.values()) < min(ended.values())


def test_fractions_lead_to_the_nearest_level():
    levels = {0: [32, 24, 16, 8], 1: [20, 16, 8], 2: [6]}
    assert by_fraction(levels, {0: 0.3, 1: 0.5, 2: 0.5}) == {0: 24, 1: 8, 2: 6}
    assert by_fraction(levels, {}) == {0: 32, 1: 20, 2: 6}
