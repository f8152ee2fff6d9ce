import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from models import ZOO, inputs_of, labels_of, weights_of

from tfedge.data import Data, Split
from tfedge.engines.native import masks
from tfedge.engines.native.importance import gradients_of, observe
from tfedge.engines.native.kernels import find_kernels, kernels_of
from tfedge.engines.native.prune_settings import Pruning
from tfedge.engines.native.schedules import (
    PolynomialDecay,
    decay_within,
    final_sparsity,
    updates_of,
)
from tfedge.engines.tfmot import constant_sparsity, polynomial_decay
from tfedge.engines.tfmot._library import internals
from tfedge.errors import (
    ModelError,
    SettingsError,
    TrainingError,
    UnsupportedModelError,
)
from tfedge.models import layers_of
from tfedge.stages._base import Context
from tfedge.stages._fit import make_fit
from tfedge.stages.prune import Prune

LOSS = "sparse_categorical_crossentropy"
KERASES = {"keras": keras, "tf_keras": tf_keras}


def data_of(model, samples=48):
    x = inputs_of(model, samples)
    return Data(train=Split(tuple(x) if isinstance(x, list) else x, labels_of(samples)))


def context_of(model, epochs=2):
    data = data_of(model)
    fit = make_fit(data, epochs=epochs, batch_size=16, learning_rate=0.01, optimizer="sgd")
    return Context(fit=fit, data=data)


def compiled(name, k=keras):
    model = ZOO[name](k)
    model.compile(k.optimizers.SGD(0.05, momentum=0.5), LOSS)
    return model


def kernels_by_name(model):
    return {k.layer.name: k.variable.numpy() for la in layers_of(model) for k in kernels_of(la)}


def oracle(weights, sparsity, block_size=(1, 1), m_by_n=None):
    """TFMOT's mask for these weights."""
    weight = tf.Variable(weights)
    pruning = internals("sparsity.keras.pruning_impl").Pruning(
        lambda: tf.constant(1, tf.int64),
        [(weight, None, None)],
        constant_sparsity(sparsity=sparsity, begin_step=0, frequency=1),
        block_size,
        "AVG",
        m_by_n,
    )
    return pruning._maybe_update_block_mask(weight)[1].numpy().astype(bool)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------------- masks


@pytest.mark.parametrize("shape", [(7, 5), (3, 3, 4, 6), (5,)])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.777, 0.99])
def test_masks_are_tfmots(shape, sparsity):
    weights = normal(shape)
    assert np.array_equal(masks.top_mask(np.abs(weights), sparsity), oracle(weights, sparsity))


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_ties_are_kept_as_by_tfmot(sparsity):
    weights = np.array([[1.0, -1.0, 1.0, 2.0], [0.0, 0.0, 0.5, 0.5]], np.float32)
    assert np.array_equal(masks.top_mask(np.abs(weights), sparsity), oracle(weights, sparsity))


@pytest.mark.parametrize("shape", [(8, 6), (7, 5), (3, 3, 8, 4), (3, 3, 3, 2), (1, 1, 6, 4)])
def test_two_of_four_is_tfmots(shape):
    weights = normal(shape)
    ours = masks.two_of_four_mask(np.abs(weights)).numpy()
    assert np.array_equal(ours, oracle(weights, 0.5, m_by_n=(2, 4)))


@pytest.mark.parametrize("block_size", [(1, 4), (4, 1), (2, 2)])
def test_blocks_are_tfmots_where_they_divide_the_matrix(block_size):
    weights = normal((8, 12))
    ours = masks.block_mask(np.abs(weights), 0.6, block_size).numpy()
    assert np.array_equal(ours, oracle(weights, 0.6, block_size))


def test_blocks_at_the_edge_are_cut_off_and_still_whole():
    kept = masks.block_mask(np.abs(normal((5, 7))), 0.5, (2, 3)).numpy()
    for row in range(0, 5, 2):
        for column in range(0, 7, 3):
            block = kept[row : row + 2, column : column + 3]
            assert block.all() or not block.any()


def test_global_masks_keep_the_largest_of_all_and_one_of_each():
    large, small = np.abs(normal((10, 10))) + 9, np.abs(normal((10, 10), 1)) / 9
    first, second = masks.global_masks([large, small], 0.5)
    assert np.all(first)
    assert np.sum(second) == 1


# ---------------------------------------------------------------------- schedules


def test_the_decay_is_tfmots_at_every_step():
    numbers = {
        "initial_sparsity": 0.1,
        "final_sparsity": 0.8,
        "begin_step": 3,
        "end_step": 97,
        "frequency": 7,
    }
    ours, theirs = PolynomialDecay(**numbers), polynomial_decay(**numbers)
    assert updates_of(ours, 120) == updates_of(theirs, 120)
    assert final_sparsity(ours) == final_sparsity(theirs)


@pytest.mark.parametrize("total", [2, 7, 24, 1001])
@pytest.mark.parametrize("frequency", [None, 1, 10])
def test_a_decay_in_fractions_ends_with_an_update(total, frequency):
    decay = decay_within(0.8, begin=0.0, end=1.0, frequency=frequency, total_steps=total)
    updates = updates_of(decay, total)
    assert max(updates) == total
    assert updates[total] == pytest.approx(0.8)


# ---------------------------------------------------------------------- the stage


@pytest.mark.parametrize("name", ["dense", "conv_bn_relu", "depthwise", "nested"])
def test_tf_keras_models_go_to_tfmot(name):
    model = compiled(name, tf_keras)
    before = weights_of(model)
    pruned, report = Prune(sparsity=0.5).apply(model, context_of(model))
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert report.engine == "tfmot"
    assert report.metrics["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert not any("prune_low" in layer.name for layer in pruned.layers)
    named = sorted([*report.changed, *(row.layer for row in report.skipped)])
    assert named == sorted(layer.name for layer in layers_of(pruned))


def test_masks_and_weights_are_tfmots_for_twenty_steps():
    ours, theirs = ZOO["conv_bn_relu"](keras), ZOO["conv_bn_relu"](tf_keras)
    theirs.set_weights(ours.get_weights())
    schedule = polynomial_decay(
        initial_sparsity=0.0, final_sparsity=0.8, begin_step=0, end_step=18, frequency=1
    )
    x, y, seen = inputs_of(ours, 80), labels_of(80), {"keras": [], "tf_keras": []}
    finished = []
    for kind, model in (("keras", ours), ("tf_keras", theirs)):
        k = KERASES[kind]
        model.compile(k.optimizers.SGD(0.1), LOSS)
        stage = Prune(schedule=schedule)
        prepared = stage.prepare(model)
        note = k.callbacks.LambdaCallback(
            **{
                # TFMOT's masks of step t, seen after it; ours are in the weights before it
                "on_train_batch_begin" if kind == "keras" else "on_train_batch_end": (
                    lambda batch, logs, kind=kind, prepared=prepared: seen[kind].append(
                        _kept(kind, prepared)
                    )
                )
            }
        )
        prepared.fit(
            x,
            y,
            batch_size=16,
            epochs=4,
            shuffle=False,
            verbose=0,
            callbacks=[*stage.callbacks(), note],
        )
        pruned, _ = stage.finish(prepared)
        # not the moving variances: Keras 3 and tf_keras differ in them by n / (n - 1)
        finished.append([weight.numpy() for weight in pruned.trainable_weights])
    assert len(seen["keras"]) == 20
    for step, (a, b) in enumerate(zip(seen["keras"], seen["tf_keras"], strict=True), 1):
        assert all(np.array_equal(p, q) for p, q in zip(a, b, strict=True)), step
    for a, b in zip(*finished, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def _kept(kind, model):
    if kind == "keras":
        names = ("conv_1", "conv_2", "classes")
        return [model.get_layer(name).get_weights()[0] != 0 for name in names]
    return [
        la.pruning_vars[0][1].numpy() > 0
        for la in model.layers
        if hasattr(la, "pruning_vars") and la.pruning_vars
    ]


@pytest.mark.parametrize("kind", KERASES)
def test_sparsity_zero_changes_no_output(kind):
    model = compiled("conv_bn_relu", KERASES[kind])
    pruned, report = Prune(sparsity=0.0, one_shot=True).apply(model)
    x = inputs_of(model)
    np.testing.assert_allclose(pruned.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)
    assert report.changed == ()
    assert report.metrics["sparsity"] == 0


def test_single_layers_get_their_own_sparsity():
    model = compiled("dense")
    stage = Prune(sparsity=0.5, per_layer={"hidden_1": 0.9, "classes": 0.0})
    pruned, report = stage.apply(model, context_of(model))
    share = report.metrics["sparsity_per_layer"]
    assert share["hidden_1"] == pytest.approx(0.9, abs=0.003)
    assert share["hidden_2"] == pytest.approx(0.5, abs=0.003)
    assert [row.reason for row in report.skipped] == ["sparsity 0 was asked for"]


@pytest.mark.parametrize("kind", KERASES)
def test_only_named_layers_are_pruned(kind):
    model = compiled("dense", KERASES[kind])
    pruned, report = Prune(sparsity=0.5, layers=["hidden_2"]).apply(model, context_of(model))
    assert report.changed == ("hidden_2",)
    assert np.all(kernels_by_name(pruned)["hidden_1"] != 0)


def test_the_name_of_a_nested_model_stands_for_its_layers():
    model = compiled("nested")
    _, report = Prune(sparsity=0.5, layers=["tail"]).apply(model, context_of(model))
    assert report.changed == ("conv_tail",)


def test_depthwise_kernels_are_pruned_only_where_they_are_named():
    model = compiled("depthwise")
    _, report = Prune(sparsity=0.5, one_shot=True).apply(model)
    assert "depthwise" not in report.changed
    _, report = Prune(sparsity=0.5, one_shot=True, layers=["depthwise"]).apply(model)
    assert report.changed == ("depthwise",)


def test_a_frozen_backbone_is_left_alone_by_training_and_reached_at_once():
    model = compiled("frozen_backbone")
    _, report = Prune(sparsity=0.5).apply(model, context_of(model))
    assert report.changed == ("classes",)
    assert "frozen" in next(row.reason for row in report.skipped if row.layer == "conv_1")
    _, report = Prune(sparsity=0.5, one_shot=True).apply(model)
    assert "conv_1" in report.changed


@pytest.mark.parametrize("kind", KERASES)
def test_two_of_four_leaves_two_of_four(kind):
    model = compiled("conv_bn_relu", KERASES[kind])
    pruned, report = Prune(pattern="2:4").apply(model, context_of(model))
    kernel = kernels_by_name(pruned)["conv_2"]  # (3, 3, 8, 12)
    groups = kernel.transpose(0, 1, 3, 2).reshape(-1, 4)
    assert np.all((groups == 0).sum(axis=1) >= 2)
    assert set(report.changed) == {"conv_1", "conv_2", "classes"}


@pytest.mark.parametrize("kind", KERASES)
def test_blocks_go_together(kind):
    model = compiled("dense", KERASES[kind])
    stage = Prune(sparsity=0.5, block_size=(1, 4))
    pruned, _ = stage.apply(model, context_of(model))
    blocks = kernels_by_name(pruned)["hidden_1"].reshape(16, 6, 4)
    dead = (blocks == 0).sum(axis=2)
    assert set(np.unique(dead)) <= {0, 4}
    assert (dead == 4).mean() == pytest.approx(0.5, abs=0.02)


def test_blocks_leave_convolutions_alone_and_say_so():
    model = compiled("conv_bn_relu")
    _, report = Prune(sparsity=0.5, block_size=(2, 2), one_shot=True).apply(model)
    assert report.changed == ("classes",)
    assert any("matrices and 1×1" in row.reason for row in report.skipped)


@pytest.mark.parametrize("kind", KERASES)
def test_one_shot_needs_neither_data_nor_training(kind):
    model = ZOO["dense"](KERASES[kind])
    pruned, report = Prune(sparsity=0.75, one_shot=True).apply(model)
    for name, kernel in kernels_by_name(model).items():
        kept = masks.top_mask(np.abs(kernel), 0.75).numpy()
        assert np.array_equal(kernels_by_name(pruned)[name], np.where(kept, kernel, 0))
    assert report.metrics["sparsity"] == pytest.approx(0.75, abs=0.005)


@pytest.mark.parametrize("kind", KERASES)
def test_a_threshold_removes_exactly_what_is_below_it(kind):
    model = ZOO["dense"](KERASES[kind])
    pruned, report = Prune(threshold=0.1).apply(model)
    for name, kernel in kernels_by_name(model).items():
        expected = np.where(np.abs(kernel) < 0.1, 0, kernel)
        assert np.array_equal(kernels_by_name(pruned)[name], expected)
    assert report.changed == ("hidden_1", "hidden_2", "classes")


def test_a_threshold_may_be_said_per_layer():
    pruned, report = Prune(threshold={"hidden_1": 0.1}).apply(ZOO["dense"](keras))
    assert report.changed == ("hidden_1",)
    with pytest.raises(SettingsError, match="would remove every weight of layer 'hidden_1'"):
        Prune(threshold={"hidden_1": 99.0}).apply(ZOO["dense"](keras))


@pytest.mark.parametrize("kind", KERASES)
def test_zeros_of_one_shot_pruning_outlive_a_training_with_its_callbacks(kind):
    model = compiled("dense", KERASES[kind])
    stage = Prune(sparsity=0.75, one_shot=True)
    prepared = stage.prepare(model)
    x, y = inputs_of(model, 48), labels_of(48)
    prepared.fit(x, y, verbose=0, callbacks=stage.callbacks())
    pruned, report = stage.finish(prepared)
    assert report.metrics["sparsity"] >= 0.745
    assert not np.array_equal(pruned.get_weights()[1], model.get_weights()[1])


@pytest.mark.parametrize("importance", ["gradient", "taylor", "entropy", "random"])
def test_every_importance_serves_one_shot_pruning(importance):
    model = compiled("two_inputs" if importance == "taylor" else "conv_bn_relu")
    stage = Prune(sparsity=0.5, one_shot=True, importance=importance)
    _, report = stage.apply(model, Context(data=data_of(model)))
    assert report.metrics["sparsity"] == pytest.approx(0.5, abs=0.02)


def two_dense(regularizer):
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(4, kernel_regularizer=regularizer) for _ in range(2)]
    model = keras.Sequential([keras.Input((3,)), *dense])
    model.compile(loss="mse")
    return model


@pytest.mark.parametrize("place", [0, 1])
def test_the_gradient_of_one_kernel_holds_its_regularizer(place):
    batch = (np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32))
    models = [two_dense(regularizer) for regularizer in (None, keras.regularizers.L2(0.1))]
    kernels = [model.layers[place].kernel for model in models]
    bare, held = (gradients_of(m, [k], batch)[0] for m, k in zip(models, kernels, strict=True))
    np.testing.assert_allclose(held - bare, 2 * 0.1 * kernels[0].numpy(), atol=1e-6)


def test_observed_gradients_and_activations_are_the_models():
    model = compiled("dense")
    x, y = inputs_of(model, 20), labels_of(20)
    kernels, _ = find_kernels(model, Pruning(sparsity=0.5), training=True)
    state = weights_of(model)
    batches = list(Split(x, y).batches(8))
    seen = observe(model, kernels, batches, lambda *arrays: arrays[0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, model(x)))
    expected = tape.gradient(loss, kernels[0].variable.value).numpy()
    np.testing.assert_allclose(seen[0].gradients, expected, atol=1e-6)
    np.testing.assert_allclose(seen[-1].activations, model.predict(x, verbose=0), atol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(state, weights_of(model), strict=True))
    assert "call" not in vars(kernels[0].owner)


def test_recurrent_composite_and_own_layers_are_found():
    class Own(keras.layers.Layer):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.mix = self.add_weight(shape=(4, 4), name="mix")

        def call(self, x):
            return x @ self.mix

        def get_prunable_weights(self):
            return [self.mix]

    x = keras.Input((6, 4))
    y = keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True), name="both")(x)
    y = keras.layers.TimeDistributed(keras.layers.Dense(4), name="each")(y)
    y = keras.layers.MultiHeadAttention(2, 2, name="attention")(y, y)
    model = keras.Model(x, Own(name="own")(keras.layers.GlobalAveragePooling1D()(y)))
    found = {layer.name: [k.name for k in kernels_of(layer)] for layer in layers_of(model)}
    assert sorted(found["both"]) == ["kernel", "kernel", "recurrent_kernel", "recurrent_kernel"]
    assert found["each"] == ["kernel"]
    assert found["attention"] == ["kernel"] * 4
    assert found["own"] == ["mix"]
    assert found[model.layers[-2].name] == []


def test_the_report_says_what_sparse_kernels_could_use():
    _, report = Prune(sparsity=0.5, one_shot=True).apply(ZOO["depthwise"](keras))
    assert report.metrics["sparse_kernel_layers"] == 1
    assert "1 of 3 pruned layers are 1×1 convolutions" in report.notes[0]


def test_a_compiled_model_comes_back_compiled_with_a_fresh_optimizer():
    model = compiled("dense")
    prepared = Prune(sparsity=0.5).prepare(model)
    assert prepared.optimizer is not model.optimizer
    assert prepared.optimizer.get_config() == model.optimizer.get_config()
    assert not Prune(sparsity=0.5).prepare(ZOO["dense"](keras)).compiled


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("kind", KERASES)
def test_finish_refuses_a_model_that_was_trained_without_the_callbacks(kind):
    model = compiled("dense", KERASES[kind])
    stage = Prune(sparsity=0.8)
    prepared = stage.prepare(model)
    if kind == "keras":
        prepared.fit(inputs_of(model, 48), labels_of(48), verbose=0)
    with pytest.raises(TrainingError, match="not pruned as asked.*asked was 0.8000"):
        stage.finish(prepared)


@pytest.mark.parametrize("kind", KERASES)
def test_finish_refuses_a_model_that_was_pruned_at_once_and_trained_without_the_callbacks(kind):
    model = compiled("dense", KERASES[kind])
    stage = Prune(sparsity=0.75, one_shot=True)
    prepared = stage.prepare(model)
    prepared.fit(inputs_of(model, 48), labels_of(48), verbose=0)
    with pytest.raises(TrainingError, match="not pruned as asked.*without `callbacks"):
        stage.finish(prepared)


def test_the_callbacks_are_of_the_keras_of_the_model_that_was_prepared_last():
    stage = Prune(per_layer={"hidden_1": 0.5})  # no hash: it holds a dict
    for k in (tf_keras, keras, tf_keras):
        stage.prepare(ZOO["dense"](k))
        assert all(isinstance(row, k.callbacks.Callback) for row in stage.callbacks())
    assert stage == Prune(per_layer={"hidden_1": 0.5})


def test_finish_names_what_undid_the_pruning():
    model = compiled("dense")
    x, y = inputs_of(model, 96), labels_of(96)
    stage = Prune(sparsity=0.8)
    prepared = stage.prepare(model)
    restore = keras.callbacks.EarlyStopping(
        "loss", restore_best_weights=True, mode="max", patience=9
    )
    prepared.fit(x, y, epochs=4, verbose=0, callbacks=[*stage.callbacks(), restore])
    with pytest.raises(TrainingError, match="sparsity was 0.799.*restore_best_weights"):
        stage.finish(prepared)


@pytest.mark.parametrize("kind", KERASES)
def test_a_schedule_longer_than_the_fit_is_refused(kind):
    model = compiled("dense", KERASES[kind])
    stage = Prune(sparsity=0.8, begin=0, end=4000, frequency=1)
    with pytest.raises(TrainingError, match="does not reach its end"):
        stage.apply(model, context_of(model))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "`Prune` needs one of"),
        ({"sparsity": 80}, r"in \[0, 1\). Received: 80. Did you mean 0.8\?"),
        ({"sparsity": 1.0}, "remove every weight"),
        ({"sparsity": True}, "fraction of zeros"),
        ({"per_layer": {"a": 50}}, "Did you mean 0.5"),
        ({"sparsity": 0.5, "threshold": 0.1}, "Received `sparsity` too"),
        ({"threshold": -1.0}, "magnitude of weights"),
        ({"threshold": {"a": 0.1}, "layers": ["a"]}, "Received `layers` too"),
        (
            {
                "one_shot": True,
                "schedule": PolynomialDecay(final_sparsity=0.5, begin_step=0, end_step=9),
            },
            "no steps",
        ),
        ({"sparsity": 0.5, "one_shot": True, "frequency": 9}, "no steps for `frequency`"),
        ({"threshold": 0.1, "end": 0.5}, "no steps for `end`"),
        ({"sparsity": 0.5, "scope": "global", "block_size": (2, 2)}, "contradict"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, match):
    with pytest.raises(SettingsError, match=match):
        Prune(**settings)


@pytest.mark.parametrize(
    ("name", "settings", "error", "match"),
    [
        ("dense", {"sparsity": 0.5, "layers": ["hiden_1"]}, SettingsError, "'hidden_1'"),
        ("conv_bn_relu", {"sparsity": 0.5, "layers": ["bn_1"]}, SettingsError, "no kernel"),
        ("frozen_backbone", {"per_layer": {"conv_1": 0.5}}, SettingsError, "frozen"),
    ],
)
def test_wrong_layers_are_refused_by_prepare(name, settings, error, match):
    with pytest.raises(error, match=match):
        Prune(**settings).prepare(ZOO[name](keras))


def test_not_a_number_in_the_weights_is_refused():
    model = ZOO["dense"](keras)
    model.layers[0].set_weights([np.full_like(w, np.nan) for w in model.layers[0].get_weights()])
    with pytest.raises(ModelError, match="hidden_1"):
        Prune(sparsity=0.5).prepare(model)


def test_what_tfmot_cannot_do_is_refused_with_the_next_move():
    with pytest.raises(UnsupportedModelError, match="to_keras3"):
        Prune(sparsity=0.5, scope="global").prepare(ZOO["dense"](tf_keras))


def test_training_and_data_are_asked_for_where_they_are_needed():
    with pytest.raises(SettingsError, match="`fit`"):
        Prune(sparsity=0.5).apply(ZOO["dense"](keras))
    stage = Prune(sparsity=0.5, one_shot=True, importance="taylor")
    with pytest.raises(SettingsError, match="data.train"):
        stage.apply(ZOO["dense"](keras))
    model = ZOO["dense"](keras)
    with pytest.raises(SettingsError, match="not compiled"):
        stage.apply(model, Context(data=data_of(model)))
