import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from fresh import run_fresh
from models import ZOO, inputs_of, labels_of, weights_of

from tfedge.callbacks import KeepClusters, KeepZeros
from tfedge.data import Data, Split
from tfedge.engines.distinct import unique_values, zero_counts
from tfedge.engines.native.centroids import (
    centroids_of,
    clustered,
    distinct_count,
    initial_centroids,
    is_clustered,
    nearest,
    refined,
)
from tfedge.engines.native.clusterable import find_clusterable
from tfedge.engines.native.kernels import kernels_of
from tfedge.engines.tfmot._library import internals
from tfedge.errors import ModelError, SettingsError, TrainingError, UnsupportedModelError
from tfedge.models import layers_of, load_model, save_model
from tfedge.stages._base import Context
from tfedge.stages._fit import make_fit
from tfedge.stages.cluster import Cluster
from tfedge.stages.finetune import FineTune
from tfedge.stages.prune import Prune

LOSS = "sparse_categorical_crossentropy"
KERASES = {"keras": keras, "tf_keras": tf_keras}
NAMES = {
    "linear": "LINEAR",
    "random": "RANDOM",
    "density": "DENSITY_BASED",
    "kmeans++": "KMEANS_PLUS_PLUS",
}


def compiled(name, k=keras, rate=0.02):
    model = ZOO[name](k)
    model.compile(k.optimizers.SGD(rate, momentum=0.5), LOSS)
    return model


def context_of(model, epochs=1):
    x = inputs_of(model, 32)
    data = Data(train=Split(tuple(x) if isinstance(x, list) else x, labels_of(32)))
    return Context(fit=make_fit(data, epochs=epochs, batch_size=16), data=data)


def kernels_by_name(model):
    return {k.layer.name: k.variable.numpy() for la in layers_of(model) for k in kernels_of(la)}


def normal(shape, seed=0, zeros=0.0):
    draw = np.random.default_rng(seed)
    return (draw.normal(size=shape) * (draw.random(shape) >= zeros)).astype(np.float32)


def pruned(name, k=keras, sparsity=0.5):
    return Prune(sparsity=sparsity, one_shot=True).apply(compiled(name, k))[0]


# ---------------------------------------------------------------------- centroids, against TFMOT


def tfmots_centroids(weights, clusters, initialization, keep_zero=False, per_channel=False):
    config = internals("clustering.keras.cluster_config").CentroidInitialization
    factory = internals("clustering.keras.clustering_centroids").CentroidsInitializerFactory
    made = factory.get_centroid_initializer(config[NAMES[initialization]])
    arguments = (tf.Variable(weights), clusters, per_channel, "channels_last", keep_zero)
    return made(*arguments).get_cluster_centroids().numpy()


@pytest.mark.parametrize("initialization", ["linear", "density", "kmeans++"])
@pytest.mark.parametrize("keep_zero", [False, True])
@pytest.mark.parametrize(("shape", "clusters"), [((40, 9), 16), ((3, 3, 4, 6), 8), ((500,), 3)])
def test_initial_centroids_are_tfmots(initialization, keep_zero, shape, clusters):
    weights = normal(shape, zeros=0.6 if keep_zero else 0)
    ours = initial_centroids(weights, clusters, initialization=initialization, keep_zero=keep_zero)
    theirs = tfmots_centroids(weights, clusters, initialization, keep_zero)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
    assert len(ours) == clusters
    assert (np.sum(ours == 0) == 1) == keep_zero


@pytest.mark.parametrize("initialization", ["linear", "density", "kmeans++"])
@pytest.mark.parametrize("keep_zero", [False, True])
def test_initial_centroids_per_channel_are_tfmots(initialization, keep_zero):
    weights = normal((3, 3, 8, 5), zeros=0.5 if keep_zero else 0)
    ours = centroids_of(weights, 4, initialization=initialization, axis=3, keep_zero=keep_zero)
    theirs = tfmots_centroids(weights, 4, initialization, keep_zero, per_channel=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)


def test_random_centroids_lie_evenly_between_the_weights_and_follow_the_seed():
    weights = normal((400,))
    first, again, other = (
        initial_centroids(weights, 300, initialization="random", seed=s) for s in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert weights.min() <= first.min() < first.max() <= weights.max()
    shares, _ = np.histogram(first, 4, (weights.min(), weights.max()))
    assert shares.min() > 50


def test_kernels_of_few_values_start_with_these_values():
    weights = np.float32([[1, 2, 2], [7, 1, -3]])
    assert initial_centroids(weights, 4).tolist() == [-3, 1, 2, 7]
    per_channel = centroids_of(weights, 4, axis=0)
    assert per_channel.tolist() == [[1, 2, 2], [-3, 1, 7]]


@pytest.mark.parametrize("clusters", [2, 16, 64, 65, 200])
@pytest.mark.parametrize("axis", [None, 0, 2, 3])
def test_the_nearest_centroid_is_tfmots(clusters, axis):
    weights = normal((3, 5, 4, 6))
    draw = np.random.default_rng(1)
    channels = () if axis is None else (weights.shape[axis],)
    centroids = draw.normal(size=(*channels, clusters)).astype(np.float32)  # in no order
    ours = nearest(weights, centroids, axis=axis).numpy()
    moved = weights if axis is None else np.moveaxis(weights, axis, 0)
    rows = [(moved, centroids)] if axis is None else list(zip(moved, centroids, strict=True))
    theirs = np.stack([np.abs(w[..., None] - c).argmin(-1) for w, c in rows])
    theirs = theirs[0] if axis is None else np.moveaxis(theirs, 0, axis)
    assert np.array_equal(ours, theirs)
    values = clustered(weights, centroids, axis=axis).numpy()
    expected = centroids[ours] if axis is None else None
    if axis is not None:
        index = np.indices(weights.shape)[axis]
        expected = centroids[index, ours]
    assert np.array_equal(values, expected)


@pytest.mark.parametrize("aggregation", ["sum", "avg"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_values_and_gradients_are_tfmots(aggregation, per_channel):
    weights, upstream = tf.Variable(normal((3, 3, 4, 5))), normal((3, 3, 4, 5), seed=1)
    centroids = tf.Variable(normal((5, 6) if per_channel else (6,), seed=2))
    algorithms = internals("clustering.keras.clustering_algorithm")
    kind = "ClusteringAlgorithmPerChannel" if per_channel else "ClusteringAlgorithm"
    summed = internals("clustering.keras.cluster_config").GradientAggregation[aggregation.upper()]
    theirs = getattr(algorithms, kind)(centroids, summed, "channels_last")

    def tfmots():
        return theirs.get_clustered_weight(theirs.get_pulling_indices(weights), weights)

    def ours():
        axis = 3 if per_channel else None
        return clustered(weights, centroids, axis=axis, aggregation=aggregation)

    found = []
    for function in (ours, tfmots):
        with tf.GradientTape() as tape:
            values = function()
            total = tf.reduce_sum(values * upstream)
        found.append([values, *tape.gradient(total, [weights, centroids])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, tf.convert_to_tensor(other), rtol=1e-5, atol=1e-6)


def test_kmeans_lowers_the_squared_error_until_it_stands_still():
    weights = normal((2000,))
    first = initial_centroids(weights, 12)

    def error(table):
        return float(np.square(weights - clustered(weights, table).numpy()).mean())

    errors = [error(refined(weights, first, steps=steps)) for steps in (0, 1, 5, 50, 300)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[0]
    last = refined(weights, first)
    groups = nearest(weights, last).numpy()
    means = [weights[groups == g].astype(np.float64).mean() for g in range(12)]
    np.testing.assert_allclose(last, means, atol=1e-3)


def test_kmeans_keeps_the_zero_centroid():
    weights = normal((500,), zeros=0.5) + np.float32(0)
    table = refined(weights, [-1.0, 0.0, 0.5], keep_zero=True)
    assert np.sum(table == 0) == 1


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (np.repeat(normal((16,)), 4), True),
        (normal((64,)), False),
        (normal((64,), zeros=0.9), False),
        (np.zeros(9, np.float32), False),
        (np.ones(9, np.float32), False),
        (np.where(normal((99,)) > 0, np.float32(2), 0), True),
        (normal((64, 64)).astype(np.float16), False),
        (np.stack([np.repeat(normal((8,), seed), 8) for seed in range(200)], -1), True),
    ],
)
def test_a_clustered_kernel_is_told_from_a_pruned_one(weights, expected):
    assert is_clustered(weights) is expected


# ---------------------------------------------------------------------- in training, against TFMOT


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"initialization": "linear"}, marks=pytest.mark.slow),
        {"initialization": "density", "per_channel": True, "gradient_aggregation": "avg"},
        pytest.param({"initialization": "kmeans++"}, marks=pytest.mark.slow),
        {"initialization": "linear", "keep_sparsity": True},
    ],
    ids=str,
)
def test_training_leads_to_tfmots_clusters(settings):
    """A convolution and a dense layer, three steps of plain SGD on the same batches."""

    def network(k):
        k.utils.set_random_seed(3)
        image = k.Input((8, 8, 3), name="image")
        x = k.layers.Conv2D(6, 3, activation="relu", name="conv")(image)
        x = k.layers.Flatten(name="flatten")(x)
        return k.Model(image, k.layers.Dense(4, activation="softmax", name="classes")(x))

    models = {name: network(k) for name, k in KERASES.items()}
    models["tf_keras"].set_weights(models["keras"].get_weights())
    x, y = normal((48, 8, 8, 3)), labels_of(48)
    found = {}
    for name, model in models.items():
        model.compile(KERASES[name].optimizers.SGD(0.01), LOSS)
        stage = Cluster(number_of_clusters=6, **settings)
        prepared = stage.prepare(model)
        prepared.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=stage.callbacks())
        final, report = stage.finish(prepared)
        found[name] = kernels_by_name(final)
        assert report.engine == {"keras": "native", "tf_keras": "tfmot"}[name]
    before = kernels_by_name(models["keras"])
    for layer, ours in found["keras"].items():
        theirs = found["tf_keras"][layer]
        assert np.mean(np.abs(ours - theirs) > 1e-4) < 0.01  # a weight halfway may go either way
        assert not np.array_equal(ours, before[layer])


# ---------------------------------------------------------------------- the stage


@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize("one_shot", [False, True])
@pytest.mark.parametrize("name", [pytest.param("dense", marks=pytest.mark.slow), "nested"])
def test_no_kernel_has_more_values_than_asked(kind, one_shot, name):
    model = compiled(name, KERASES[kind], rate=1e-3)
    before = weights_of(model)
    stage = Cluster(number_of_clusters=5, one_shot=one_shot)
    final, report = stage.apply(model, context_of(model))
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    values = unique_values(final)
    assert all(1 < count <= 5 for count in values.values())
    assert report.metrics["unique_values_per_layer"] == {n: values[n] for n in report.changed}
    assert report.metrics["most_unique_values"] == max(values.values()) > 3
    told = [*report.changed, *(row.layer for row in report.skipped)]
    assert sorted(told) == sorted(layer.name for layer in layers_of(model))
    assert all(row.reason for row in report.skipped)


@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize("one_shot", [False, True])
def test_with_as_many_clusters_as_values_nothing_changes(kind, one_shot):
    model = compiled("depthwise", KERASES[kind])
    x = inputs_of(model)
    prepared = Cluster(number_of_clusters=10**6, one_shot=one_shot).prepare(model)
    np.testing.assert_allclose(
        prepared.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


@pytest.mark.parametrize("kind", ["keras", pytest.param("tf_keras", marks=pytest.mark.slow)])
def test_a_prepared_model_computes_as_the_finished_one(kind):
    model = compiled("shared_layer", KERASES[kind])
    x, y = inputs_of(model, 16), labels_of(16)
    stage = Cluster(number_of_clusters=4)
    prepared = stage.prepare(model)
    assert set(unique_values(prepared).values()) <= {4}
    prepared.fit(x, y, batch_size=8, verbose=0, callbacks=stage.callbacks())
    finished, _ = stage.finish(prepared)
    np.testing.assert_allclose(
        finished.predict(x, verbose=0), prepared.predict(x, verbose=0), atol=1e-5
    )
    assert finished.optimizer is not model.optimizer
    assert {type(la).__name__ for la in layers_of(finished)} == {
        type(la).__name__ for la in layers_of(model)
    }


def test_clustering_at_once_is_the_function_of_the_weights():
    model = ZOO["conv_bn_relu"](keras)
    final, _ = Cluster(number_of_clusters=6, initialization="density", one_shot=True).apply(model)
    for layer, weights in kernels_by_name(model).items():
        table = centroids_of(weights, 6, initialization="density", steps=300)
        assert np.array_equal(kernels_by_name(final)[layer], table[nearest(weights, table).numpy()])


@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize("one_shot", [False, True])
def test_zeros_stay_by_default_and_go_where_they_need_not_stay(kind, one_shot):
    model = pruned("dense", KERASES[kind])
    zeros = zero_counts(model)
    kept, _ = Cluster(number_of_clusters=8, one_shot=one_shot).apply(model, context_of(model))
    assert all(count >= zeros[name] for name, count in zero_counts(kept).items())
    assert max(unique_values(kept).values()) == 8
    free = Cluster(number_of_clusters=8, one_shot=one_shot, keep_sparsity=False, kmeans_steps=0)
    lost, _ = free.apply(model, context_of(model))
    assert sum(zero_counts(lost).values()) < sum(zeros.values()) / 2


@pytest.mark.parametrize("kind", KERASES)
def test_channels_have_clusters_of_their_own(kind):
    model = compiled("conv_bn_relu", KERASES[kind])
    final, _ = Cluster(number_of_clusters=3, per_channel=True).apply(model, context_of(model))
    kernels = kernels_by_name(final)
    assert distinct_count(kernels["conv_2"], axis=3) == 3
    assert 2 * 12 < distinct_count(kernels["conv_2"]) <= 3 * 12
    assert distinct_count(kernels["classes"]) == 3


def test_layers_are_chosen_and_get_numbers_of_their_own():
    model = compiled("depthwise")
    stage = Cluster(layers=["depthwise", "conv_1"], per_layer={"conv_1": 3}, one_shot=True)
    final, report = stage.apply(model)
    assert {n: unique_values(final)[n] for n in report.changed} == {"depthwise": 16, "conv_1": 3}
    reasons = {row.layer: row.reason for row in report.skipped}
    assert reasons["classes"] == "not in `layers`"


def test_depthwise_kernels_are_left_alone_unless_named():
    model = compiled("depthwise")
    _, report = Cluster(one_shot=True).apply(model)
    reasons = {row.layer: row.reason for row in report.skipped}
    assert "only where they are named" in reasons["depthwise"]
    prepared = Cluster(per_layer={"depthwise": 4}).prepare(model)
    assert unique_values(prepared)["depthwise"] in (3, 4)


def test_frozen_layers_are_left_alone_while_training_only():
    model = compiled("frozen_backbone")
    _, report = Cluster().finish(Cluster().prepare(model))
    assert report.changed == ("classes",)
    _, report = Cluster(number_of_clusters=4, one_shot=True).apply(model)
    assert report.changed == ("conv_1", "conv_2", "classes")


@pytest.mark.parametrize("kind", ["keras", pytest.param("tf_keras", marks=pytest.mark.slow)])
def test_recurrent_kernels_are_clustered(kind):
    k = KERASES[kind]
    k.utils.set_random_seed(0)
    layers = [k.layers.Input((6, 5)), k.layers.LSTM(8, name="lstm"), k.layers.Dense(4)]
    model = k.Sequential([*layers, k.layers.Softmax()])
    model.compile("sgd", LOSS)
    final, report = Cluster(number_of_clusters=4).apply(model, context_of(model))
    values = unique_values(final)
    assert [values[n] for n in values if n.startswith("lstm")] == [4, 4]
    assert report.metrics["unique_values_per_layer"]["lstm"] == 4


@pytest.mark.slow
def test_a_saved_model_in_training_goes_on_in_a_fresh_process(tmp_path):
    model = compiled("dense")
    x, y = inputs_of(model, 16), labels_of(16)
    stage = Cluster(number_of_clusters=4, keep_sparsity=True)
    prepared = stage.prepare(model)
    prepared.fit(x, y, verbose=0)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", prepared.predict(x, verbose=0))
    save_model(prepared, tmp_path / "model.keras")
    code = (
        "import sys, numpy as np, tfedge\n"
        "from tfedge.stages.cluster import Cluster\n"
        "model = tfedge.load_model(sys.argv[1] + '/model.keras')\n"
        "x, y = (np.load(sys.argv[1] + name) for name in ('/x.npy', '/y.npy'))\n"
        "assert np.array_equal(model.predict(x, verbose=0), y), 'different'\n"
        "model, report = Cluster(number_of_clusters=4, keep_sparsity=True).finish(model)\n"
        "assert report.metrics['most_unique_values'] == 4\n"
        "assert np.allclose(model.predict(x, verbose=0), y, atol=1e-5)\n"
    )
    run_fresh(code, tmp_path)


# Keras does without XLA in a process whose operations an earlier run made deterministic, and warns.
@pytest.mark.filterwarnings("ignore:Model doesn't support `jit_compile=True`:UserWarning")
@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_clusters_train_in_mixed_precision_and_under_xla(jit):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = ZOO["dense"](keras)
        model.compile(keras.optimizers.SGD(0.01), LOSS, jit_compile=jit)
        stage = Cluster(number_of_clusters=4)
        prepared = stage.prepare(model)
        prepared.fit(inputs_of(model, 16), labels_of(16), verbose=0)
        final, _ = stage.finish(prepared)
        assert max(unique_values(final).values()) == 4
    finally:
        keras.config.set_dtype_policy("float32")


# ---------------------------------------------------------------------- training on


@pytest.mark.parametrize("kind", KERASES)
def test_clusters_are_held_by_fine_tuning_unless_they_need_not_be(kind):
    model = pruned("dense", KERASES[kind])
    once, _ = Cluster(number_of_clusters=6, one_shot=True).apply(model)
    context = Context(data=Data(train=Split(inputs_of(model, 32), labels_of(32))))
    kept, report = FineTune(epochs=1).apply(once, context)
    assert unique_values(kept) == unique_values(once)
    assert zero_counts(kept) == zero_counts(once)
    assert "The clusters of hidden_1, hidden_2, classes were kept." in report.notes
    changed = kernels_by_name(kept)["classes"] != kernels_by_name(once)["classes"]
    assert changed.any()
    free, _ = FineTune(epochs=1, keep_clusters=False).apply(once, context)
    assert min(unique_values(free).values()) > 6


@pytest.mark.parametrize("order", [0, 1])
def test_callbacks_that_hold_clusters_and_zeros_leave_nothing_behind(order):
    model = pruned("dense")
    once, _ = Cluster(number_of_clusters=6, one_shot=True).apply(model)
    once.get_layer("classes").kernel.constraint = own = keras.constraints.MaxNorm(9.0)
    x, y = inputs_of(model, 32), labels_of(32)
    before = unique_values(once), zero_counts(once)
    holders = [KeepClusters(), KeepZeros()]
    once.fit(x, y, verbose=0, callbacks=holders[::-1] if order else holders)
    assert (unique_values(once), zero_counts(once)) == before
    assert once.get_layer("classes").kernel.constraint is own
    assert once.get_layer("hidden_1").kernel.constraint is None
    once.fit(x, y, verbose=0)
    assert min(unique_values(once).values()) > 6


def test_training_on_without_callbacks_is_noticed():
    model = compiled("dense")
    stage = Cluster(number_of_clusters=6, one_shot=True)
    prepared = stage.prepare(model)
    x, y = inputs_of(model, 32), labels_of(32)
    prepared.fit(x, y, verbose=0, callbacks=stage.callbacks())
    stage.finish(prepared)
    prepared.fit(x, y, verbose=0)
    with pytest.raises(TrainingError, match="values, asked were 6.*without `callbacks"):
        stage.finish(prepared)


def test_zeros_that_are_lost_are_noticed():
    model = pruned("dense")
    stage = Cluster(number_of_clusters=6, one_shot=True)
    prepared = stage.prepare(model)
    kernel = prepared.get_layer("classes").kernel
    kernel.assign(np.where(kernel.numpy() == 0, kernel.numpy().max(), kernel.numpy()))
    with pytest.raises(TrainingError, match="'classes' has 0 zeros, before it had 32"):
        stage.finish(prepared)


# ---------------------------------------------------------------------- bad input

BAD = [
    ({"number_of_clusters": 1}, SettingsError, "`number_of_clusters` is a whole number from 2"),
    ({"number_of_clusters": 4.0}, SettingsError, "whole number from 2.*Received: 4.0"),
    ({"number_of_clusters": True}, SettingsError, "Received: True"),
    ({"number_of_clusters": 2, "keep_sparsity": True}, SettingsError, "as one of them is zero"),
    ({"initialization": "kmeans"}, SettingsError, "Did you mean 'kmeans\\+\\+'"),
    ({"gradient_aggregation": "mean"}, SettingsError, "'sum', 'avg'"),
    ({"kmeans_steps": -1}, SettingsError, "whole number from 0"),
    ({"layers": "classes"}, SettingsError, r"Did you mean \['classes'\]"),
    ({"layers": ["klasses"]}, SettingsError, "Did you mean 'classes'"),
    ({"per_layer": {"klasses": 4}}, SettingsError, "Did you mean 'classes'"),
    ({"per_layer": {"classes": 1}}, SettingsError, r"per_layer\['classes'\]"),
    ({"per_layer": {"depthwise_bn": 4}}, SettingsError, "'depthwise_bn' cannot be clustered: no"),
    ({"layers": []}, ModelError, "No layer of this model can be clustered"),
]


@pytest.mark.parametrize(("settings", "error", "match"), BAD, ids=lambda v: str(v)[:40])
def test_wrong_settings_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        Cluster(**settings).prepare(ZOO["depthwise"](keras))


GOOD = [
    {"number_of_clusters": 2},
    {"number_of_clusters": 3, "keep_sparsity": True},
    {"initialization": "kmeans++"},
    {"kmeans_steps": 0},
    {"layers": ["classes"]},
    {"per_layer": {"classes": 2}},
]


@pytest.mark.parametrize("settings", GOOD, ids=str)
def test_their_good_neighbours_are_taken(settings):
    Cluster(one_shot=True, **settings).apply(ZOO["depthwise"](keras))


def test_two_clusters_cannot_keep_zeros():
    with pytest.raises(SettingsError, match="one cluster of 2.*keep_sparsity=False"):
        Cluster(number_of_clusters=2).prepare(pruned("dense"))
    Cluster(number_of_clusters=2, keep_sparsity=False).prepare(pruned("dense"))


def test_what_tfmot_cannot_cluster_is_reported_and_refused_by_name():
    model = compiled("depthwise", tf_keras)
    _, report = Cluster().finish(Cluster().prepare(model))
    reasons = {row.layer: row.reason for row in report.skipped}
    assert "depthwise" in reasons["depthwise"]
    with pytest.raises(SettingsError, match="'depthwise' cannot be clustered: TFMOT"):
        Cluster(layers=["depthwise"]).prepare(model)
    Cluster(layers=["depthwise"], one_shot=True).prepare(model)


def test_weights_that_are_not_finite_are_refused_by_name():
    model = ZOO["dense"](keras)
    kernel = model.get_layer("hidden_2").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(ModelError, match="hidden_2"):
        Cluster().prepare(model)


def test_a_model_of_normalisation_only_has_nothing_to_cluster():
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    with pytest.raises(ModelError, match="No layer of this model can be clustered"):
        Cluster().prepare(model)


@pytest.mark.parametrize("kind", KERASES)
def test_finish_refuses_a_model_that_was_never_prepared(kind):
    with pytest.raises(UnsupportedModelError, match="no trained centroids"):
        Cluster().finish(ZOO["dense"](KERASES[kind]))


class Subclassed(keras.Model):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.dense = keras.layers.Dense(40)

    def call(self, inputs):
        return self.dense(inputs)


def test_a_subclassed_model_is_clustered_at_once_only():
    model = Subclassed()
    model(np.zeros((1, 8), np.float32))
    with pytest.raises(UnsupportedModelError, match="subclassed"):
        Cluster().prepare(model)
    kernels, _ = find_clusterable(model, Cluster(), training=False)
    assert [kernel.layer.name for kernel in kernels] == [model.dense.name]


def test_loading_needs_no_import_of_the_stage(tmp_path):
    prepared = Cluster().prepare(compiled("dense"))
    save_model(prepared, tmp_path / "model.keras")
    assert unique_values(load_model(tmp_path / "model.keras")) == unique_values(prepared)
