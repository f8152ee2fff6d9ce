"""Prune, cluster and quantize together: what one stage gave is in the int8 file of the last."""

import dataclasses

import keras
import numpy as np
import pytest
import tf_keras
from sklearn.datasets import load_digits

from tfedge.convert import convert
from tfedge.engines.distinct import unique_values, zero_counts
from tfedge.engines.kept import kept_kernels, lost_in_file, lost_in_model
from tfedge.engines.native.clusterable import find_clusterable
from tfedge.engines.native.clustering import cluster_at_once
from tfedge.engines.native.quantize import calibrate, prepare_quantization
from tfedge.engines.native.settle import settle
from tfedge.errors import ConversionError, TrainingError
from tfedge.inspection import inspect_model
from tfedge.inspection import unique_values as values_in_file
from tfedge.models import load_model, save_model
from tfedge.runtime import open_model
from tfedge.stages.cluster import Cluster
from tfedge.stages.prune import Prune
from tfedge.stages.quantize import Quantize

KERASES = {"keras": keras, "tf_keras": tf_keras}
LOSS = "sparse_categorical_crossentropy"
CLUSTERS = 8
SPARSITY = 0.6
layers = keras.layers


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x.reshape(-1, 8, 8, 1) / 16).astype(np.float32), y


def network(k):
    """Convolutions with a folded and without a batch normalisation, and dense layers."""
    k.utils.set_random_seed(0)
    image = k.Input((8, 8, 1), name="image")
    x = k.layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv_1")(image)
    x = k.layers.BatchNormalization(name="bn")(x)
    x = k.layers.ReLU(name="relu")(x)
    x = k.layers.Conv2D(8, 3, strides=2, activation="relu", name="conv_2")(x)
    x = k.layers.Flatten(name="flatten")(x)
    return k.Model(image, k.layers.Dense(10, activation="softmax", name="classes")(x))


@pytest.fixture(scope="module")
def trained(digits):
    """The network of each Keras, trained to the same weights."""
    x, y = digits
    model = network(keras)
    model.compile(keras.optimizers.Adam(5e-3), LOSS)
    model.fit(x, y, batch_size=64, epochs=4, verbose=0)
    models = {"keras": model, "tf_keras": network(tf_keras)}
    models["tf_keras"].set_weights(model.get_weights())
    for name, one in models.items():
        one.compile(KERASES[name].optimizers.SGD(0.02), LOSS, metrics=["accuracy"])
    return models


def fitted(stage, model, digits, steps=8):
    x, y = digits
    prepared = stage.prepare(model)
    rows = slice(0, 32 * steps)
    prepared.fit(x[rows], y[rows], batch_size=32, verbose=0, callbacks=stage.callbacks())
    return stage.finish(prepared)


def accuracy(predict, digits):
    x, y = digits
    return float(np.mean(np.asarray(predict(x)).argmax(-1) == y))


def kernels_in(report):
    """Element count to (distinct values, zeros) of each kernel of a file."""
    kernels = [weight for weight in report.inspection.weights if weight.is_kernel]
    return {int(np.prod(w.shape)): (w.distinct, w.zeros) for w in kernels}


SIZES = {"conv_1": 72, "conv_2": 576, "classes": 720}


@pytest.mark.parametrize("kind", KERASES)
def test_sparsity_preserving_clustering(kind, trained, digits):
    pruned, _ = Prune(sparsity=SPARSITY, one_shot=True).apply(trained[kind])
    zeros = zero_counts(pruned)
    clustered, report = fitted(Cluster(number_of_clusters=CLUSTERS), pruned, digits)
    assert all(count >= zeros[name] for name, count in zero_counts(clustered).items())
    assert report.metrics["most_unique_values"] <= CLUSTERS
    assert report.metrics["sparsity"] >= SPARSITY - 0.01


@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize(
    "technique", ["PCQAT", *(pytest.param(one, marks=pytest.mark.slow) for one in ("PQAT", "CQAT"))]
)
def test_zeros_and_values_are_in_the_file(kind, technique, trained, digits):
    model, x = trained[kind], digits[0]
    if "P" in technique:
        model, _ = Prune(sparsity=SPARSITY, one_shot=True).apply(model)
    if "C" in technique:
        model, _ = Cluster(number_of_clusters=CLUSTERS, one_shot=True).apply(model)
    before, zeros = unique_values(model), zero_counts(model)
    stage = Quantize(keep_sparsity="P" in technique, keep_clusters="C" in technique)
    aware, quantized = fitted(stage, model, digits)
    data, report = convert(aware)
    found = kernels_in(report)
    for layer, size in SIZES.items():
        distinct, stored_zeros = found[size]
        if "C" in technique:
            assert 2 < distinct <= before[layer] <= CLUSTERS, layer
            assert quantized.metrics["unique_values_per_layer"][layer] == distinct
        if "P" in technique:
            assert stored_zeros >= zeros[layer], layer
    assert report.inspection.is_integer
    with open_model(data) as runner:
        scores = runner.predict(x)
    expected = aware.predict(x, verbose=0)
    assert np.mean(scores.argmax(-1) == expected.argmax(-1)) > 0.995
    assert accuracy(lambda x: scores, digits) > 0.75
    assert unique_values(aware)["classes"] == found[720][0]


@pytest.mark.parametrize("kind", KERASES)
def test_without_keeping_zeros_and_values_are_lost(kind, trained, digits):
    model, _ = Prune(sparsity=SPARSITY, one_shot=True).apply(trained[kind])
    model, _ = Cluster(number_of_clusters=CLUSTERS, one_shot=True).apply(model)
    zeros = zero_counts(model)
    aware, _ = fitted(Quantize(), model, digits)
    found = kernels_in(convert(aware)[1])
    for layer in ("conv_2", "classes"):
        distinct, stored_zeros = found[SIZES[layer]]
        assert distinct > 4 * CLUSTERS
        assert stored_zeros < zeros[layer] / 2


def test_the_file_of_kept_clusters_is_exactly_the_fake_quantised_model(trained, digits):
    model, _ = Cluster(number_of_clusters=CLUSTERS, one_shot=True).apply(trained["keras"])
    aware, _ = fitted(Quantize(keep_clusters=True), model, digits)
    data, _ = convert(aware)
    with open_model(data) as runner:
        scores = runner.predict(digits[0])
    steps = np.rint((scores - aware.predict(digits[0], verbose=0)) * 256)
    assert np.mean(steps != 0) < 0.002


@pytest.mark.parametrize("kind", ["tf_keras", pytest.param("keras", marks=pytest.mark.slow)])
def test_a_model_that_keeps_clusters_goes_on_after_saving(kind, trained, digits, tmp_path):
    model, _ = Prune(sparsity=SPARSITY, one_shot=True).apply(trained[kind])
    model, _ = Cluster(number_of_clusters=CLUSTERS, one_shot=True).apply(model)
    stage = Quantize(keep_sparsity=True, keep_clusters=True)
    aware, _ = fitted(stage, model, digits, steps=4)
    save_model(aware, tmp_path / "aware.keras")
    loaded = load_model(tmp_path / "aware.keras")
    x, y = digits
    assert np.array_equal(loaded.predict(x, verbose=0), aware.predict(x, verbose=0))
    loaded.fit(x[:128], y[:128], verbose=0)
    _, report = stage.finish(loaded)
    assert max(report.metrics["unique_values_per_layer"].values()) <= CLUSTERS
    assert report.metrics["kept_sparsity"] >= SPARSITY - 0.01
    found = kernels_in(convert(loaded)[1])
    assert max(found[size][0] for size in SIZES.values()) <= CLUSTERS


def test_centroids_learn_and_zeros_stay_under_fake_quantisation(trained, digits):
    model, _ = Prune(sparsity=SPARSITY, one_shot=True).apply(trained["keras"])
    model, _ = Cluster(number_of_clusters=CLUSTERS, one_shot=True).apply(model)
    stage = Quantize(keep_sparsity=True, keep_clusters=True)
    prepared = stage.prepare(model)
    wrapper = prepared.get_layer("conv_2")
    first = wrapper.sets["kernel"].current().numpy()
    prepared.fit(*(part[:256] for part in digits), verbose=0)
    last = wrapper.sets["kernel"].current().numpy()
    assert np.sum(last == 0) == np.sum(first == 0) == 1
    assert np.all(last[first != 0] != first[first != 0])


def test_preparing_changes_outputs_by_rounding_only(trained, digits):
    model, _ = Cluster(number_of_clusters=CLUSTERS, one_shot=True).apply(trained["keras"])
    prepared = Quantize(keep_clusters=True).prepare(model)
    calibrate(prepared, [digits[0]])
    x = digits[0]
    apart = np.abs(prepared.predict(x, verbose=0) - model.predict(x, verbose=0))
    assert apart.mean() < 0.01


BODIES = {
    "conv1d_bn": ((16, 4), lambda: [layers.Conv1D(8, 3), layers.BatchNormalization()]),
    "transpose_bn": (
        (6, 6, 4),
        lambda: [layers.Conv2DTranspose(6, 3, strides=2), layers.BatchNormalization()],
    ),
    "depthwise_bn": ((8, 8, 12), lambda: [layers.DepthwiseConv2D(3), layers.BatchNormalization()]),
    "depthwise_2": ((8, 8, 8), lambda: [layers.DepthwiseConv2D(3, depth_multiplier=2)]),
    "dense_bn": ((16,), lambda: [layers.Dense(12), layers.BatchNormalization(), layers.ReLU()]),
}


@pytest.mark.parametrize(
    ("shape", "make"),
    [
        pytest.param(*b, marks=[pytest.mark.slow] if "2" in n or "trans" in n else [])
        for n, b in BODIES.items()
    ],
    ids=BODIES,
)
def test_every_kind_of_kernel_keeps_its_values_in_the_file(shape, make):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input(shape)
    for layer in make():
        x = layer(x)
    model = keras.Model(inputs, x)
    draw = np.random.default_rng(0)
    for weight in model.weights:
        if any(part in weight.path for part in ("variance", "gamma")):
            weight.assign(draw.uniform(0.5, 1.5, weight.shape))
        elif any(part in weight.path for part in ("mean", "beta", "bias")):
            weight.assign(draw.normal(0, 0.2, weight.shape))
    settings = Cluster(number_of_clusters=CLUSTERS, layers=[model.layers[1].name])
    kernels, _ = find_clusterable(model, settings, training=False)
    cluster_at_once(kernels, settings)
    size = int(np.prod(kernels[0].variable.shape))
    samples = draw.normal(size=(64, *shape)).astype(np.float32)
    aware, _ = prepare_quantization(model, keep_clusters=True)
    calibrate(aware, [samples])
    settle(aware)
    data, report = convert(aware)
    assert report.inspection.is_integer
    assert kernels_in(report)[size][0] == CLUSTERS
    with open_model(data) as runner:
        found = runner.predict(samples)
    step = np.diff(np.unique(found)).min()
    steps = np.abs(np.rint((aware.predict(samples, verbose=0) - found) / step))
    assert steps.max() <= 1
    assert (steps > 0).mean() < 0.01


def test_a_kernel_clustered_per_channel_keeps_its_values_per_channel(digits):
    inputs = keras.Input((6, 6, 16))
    model = keras.Model(inputs, layers.Conv2D(160, 3, name="conv")(inputs))
    clustered, _ = Cluster(number_of_clusters=8, per_channel=True, one_shot=True).apply(model)
    assert unique_values(clustered)["conv"] > 1024
    aware, _ = prepare_quantization(clustered, keep_clusters=True)
    calibrate(aware, [np.random.default_rng(0).normal(size=(16, 6, 6, 16)).astype("float32")])
    rounded = aware.get_layer("conv").effective_weights()["kernel"].numpy()
    assert max(len(np.unique(channel)) for channel in np.moveaxis(rounded, -1, 0)) <= 8
    convert(aware)


def test_negative_factors_of_a_folded_normalisation_are_told(digits, trained):
    model, _ = Cluster(number_of_clusters=CLUSTERS, one_shot=True).apply(trained["keras"])
    gamma = model.get_layer("bn").gamma
    gamma.assign(gamma * np.where(np.arange(8) % 2, -1.0, 1.0))
    aware, report = fitted(Quantize(keep_clusters=True), model, digits, steps=2)
    distinct = report.metrics["unique_values_per_layer"]["conv_1"]
    assert CLUSTERS < distinct <= 2 * CLUSTERS
    _, conversion = convert(aware)
    assert kernels_in(conversion)[72][0] == distinct
    assert any(f"{distinct} values for {CLUSTERS} clusters" in note for note in conversion.notes)


@pytest.mark.parametrize("kind", KERASES)
def test_clusters_that_cannot_be_kept_are_told(kind, trained):
    _, report = Quantize(keep_clusters=True).finish(
        Quantize(keep_clusters=True).prepare(trained[kind])
    )
    assert report.notes == ("No kernel of the model is clustered: there are no clusters to keep.",)
    model, _ = Cluster(number_of_clusters=CLUSTERS, one_shot=True).apply(trained[kind])
    stage = Quantize(keep_clusters=True, keep_float=("classes",))
    _, report = stage.finish(stage.prepare(model))
    assert len(report.notes) == 1
    assert report.notes[0].endswith("not kept of classes.")


def test_what_a_model_or_a_file_lost_is_named(trained):
    model, _ = Prune(sparsity=SPARSITY, one_shot=True).apply(trained["keras"])
    model, _ = Cluster(number_of_clusters=CLUSTERS, one_shot=True).apply(model)
    stage = Quantize(keep_sparsity=True, keep_clusters=True)
    prepared = stage.prepare(model)
    kept = kept_kernels(prepared)
    assert lost_in_model(kept) == ""
    fewer = [dataclasses.replace(row, now_zeros=3) for row in kept]
    assert "'conv_1' has 3 zeros, before it had" in lost_in_model(fewer)
    more = [dataclasses.replace(row, distinct=99) for row in kept]
    assert "'conv_1' has 99 values, before it had" in lost_in_model(more)


def test_a_file_that_lost_values_is_refused(trained, digits, monkeypatch):
    model, _ = Cluster(number_of_clusters=CLUSTERS, one_shot=True).apply(trained["keras"])
    aware, _ = fitted(Quantize(keep_clusters=True), model, digits, steps=2)
    data, report = convert(aware)
    assert max(values_in_file(data).values()) <= CLUSTERS
    assert values_in_file(data) == {
        w.name: w.distinct for w in inspect_model(data).weights if w.is_kernel
    }
    kept = kept_kernels(aware)
    assert lost_in_file(kept, report.inspection.weights) == ""
    kernels = [dataclasses.replace(weight, distinct=200) for weight in report.inspection.weights]
    assert "the kernel of layer 'conv_1'" in lost_in_file(kept, kernels)
    monkeypatch.setattr("tfedge.engines.kept.lost_in_file", lambda *_: "the kernel of `a` …")
    with pytest.raises(ConversionError, match="lost what `Quantize` kept: the kernel"):
        convert(aware)
    monkeypatch.setattr("tfedge.engines.kept.lost_in_model", lambda *_: "layer 'a' has 3 zeros")
    with pytest.raises(TrainingError, match="was to keep: layer 'a' has 3 zeros"):
        Quantize(keep_clusters=True).finish(aware)
