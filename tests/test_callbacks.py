import keras
import numpy as np
import pytest
from models import ZOO, inputs_of, labels_of

from tfedge.callbacks import KeepZeros, PruneWhileTraining, last_pruning
from tfedge.errors import ModelError, SettingsError, TrainingError

LOSS = "sparse_categorical_crossentropy"


def zero_share(model, layer):
    return float((model.get_layer(layer).get_weights()[0] == 0).mean())


def dense(**compile_settings):
    model = ZOO["dense"](keras)
    settings = {"optimizer": keras.optimizers.SGD(0.05), "loss": LOSS, **compile_settings}
    model.compile(**settings)
    return model


def fit(model, *callbacks, samples=96, epochs=4, **settings):
    settings = {"batch_size": 16, "verbose": 0, "shuffle": False, **settings}
    x, y = inputs_of(model, samples), labels_of(samples)
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **settings)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(24, activation="relu", name="hidden")
        self.classes = keras.layers.Dense(4, activation="softmax", name="classes")

    def call(self, x):
        return self.classes(self.hidden(x))


class Tame(keras.constraints.Constraint):
    """A constraint of the user's own: every weight in (-0.05, 0.05)."""

    def __call__(self, w):
        return 0.05 * keras.ops.tanh(w)


# Keras does without XLA in a process whose operations an earlier run made deterministic, and warns.
@pytest.mark.filterwarnings("ignore:Model doesn't support `jit_compile=True`:UserWarning")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_sparsity_asked_for_is_reached_with_and_without_xla(jit_compile):
    model = dense(jit_compile=jit_compile)
    fit(model, PruneWhileTraining(sparsity=0.75))
    assert zero_share(model, "hidden_1") == pytest.approx(0.75, abs=0.003)
    assert zero_share(model, "hidden_2") == pytest.approx(0.75, abs=0.003)


@pytest.mark.parametrize(
    "settings",
    [
        {"run_eagerly": True},
        {"steps_per_execution": 3},
        {"optimizer": keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2)},
        {"optimizer": keras.optimizers.Adam(1e-3, use_ema=True, ema_overwrite_frequency=None)},
        {"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05))},
    ],
    ids=["eager", "steps_per_execution", "accumulation", "ema", "loss_scale"],
)
def test_every_way_to_step_reaches_the_sparsity(settings):
    model = dense(**settings)
    fit(model, PruneWhileTraining(sparsity=0.6, end=0.5))
    assert zero_share(model, "hidden_1") == pytest.approx(0.6, abs=0.003)
    assert last_pruning(model).steps == 24


def test_a_model_that_was_fitted_before_is_pruned_too():
    model = dense()
    fit(model, epochs=1)
    assert zero_share(model, "hidden_1") == 0
    fit(model, PruneWhileTraining(sparsity=0.5))
    assert zero_share(model, "hidden_1") == pytest.approx(0.5, abs=0.003)


def test_a_subclassed_model_is_pruned():
    model = Subclassed()
    model.compile("sgd", LOSS)
    x, y = np.random.default_rng(0).random((96, 16), np.float32), labels_of(96)
    with pytest.raises(ModelError, match="Call it once on a batch"):
        model.fit(x, y, verbose=0, callbacks=[PruneWhileTraining(sparsity=0.5)])
    model(x[:1])
    model.fit(x, y, verbose=0, callbacks=[PruneWhileTraining(sparsity=0.5)])
    assert float((model.hidden.get_weights()[0] == 0).mean()) == pytest.approx(0.5, abs=0.003)


def test_mixed_precision_is_pruned_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = ZOO["dense"](keras)
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    fit(model, PruneWhileTraining(sparsity=0.5))
    assert zero_share(model, "hidden_1") == pytest.approx(0.5, abs=0.003)


def test_masks_hold_after_every_step_and_zeros_may_come_back():
    model, seen = dense(optimizer=keras.optimizers.SGD(1.0)), []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(model.layers[0].get_weights()[0] == 0)
    )
    fit(model, PruneWhileTraining(sparsity=0.7, begin=1, end=18, frequency=1), watch)
    shares = [float(zeros.mean()) for zeros in seen]
    assert all(later >= earlier - 0.003 for earlier, later in zip(shares, shares[1:], strict=False))
    returned = [np.any(a & ~b) for a, b in zip(seen, seen[1:], strict=False)]
    assert any(returned[:17])
    assert not any(returned[18:])


def test_a_constraint_of_the_users_own_stays_in_force_and_comes_back():
    model = dense()
    kernel = model.get_layer("hidden_1").kernel
    own = Tame()
    kernel.constraint = own
    fit(model, PruneWhileTraining(sparsity=0.5))
    values = kernel.numpy()
    assert np.abs(values).max() < 0.05
    assert float((values == 0).mean()) == pytest.approx(0.5, abs=0.003)
    assert kernel.constraint is own
    assert model.get_layer("hidden_2").kernel.constraint is None


def test_training_after_pruning_is_free_of_the_masks():
    model = dense()
    fit(model, PruneWhileTraining(sparsity=0.5))
    fit(model, epochs=1)
    assert zero_share(model, "hidden_1") < 0.1


def test_a_training_that_broke_off_leaves_nothing_behind():
    model = dense()

    def break_off(batch, logs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            model,
            PruneWhileTraining(sparsity=0.9),
            keras.callbacks.LambdaCallback(on_train_batch_end=break_off),
        )
    fit(model, PruneWhileTraining(sparsity=0.5))
    assert zero_share(model, "hidden_1") == pytest.approx(0.5, abs=0.003)
    assert model.get_layer("hidden_1").kernel.constraint is None


def test_frozen_layers_are_left_alone():
    model = dense()
    model.get_layer("hidden_1").trainable = False
    model.compile("sgd", LOSS)
    fit(model, PruneWhileTraining(sparsity=0.5))
    assert zero_share(model, "hidden_1") == 0
    assert zero_share(model, "hidden_2") == pytest.approx(0.5, abs=0.003)


def test_a_fit_that_goes_on_counts_on():
    model, callback = dense(), PruneWhileTraining(sparsity=0.8, begin=1, end=20, frequency=1)
    fit(model, callback, epochs=4, initial_epoch=3)  # steps 19 to 24
    assert zero_share(model, "hidden_1") == pytest.approx(0.8, abs=0.003)
    assert last_pruning(model).steps == 24


@pytest.mark.parametrize(
    "settings",
    [{"end": 12, "frequency": 1}, {"end": 31, "frequency": 10}, {"end": 12, "scope": "global"}],
    ids=["past the end", "between updates", "global"],
)
def test_a_fit_that_goes_on_starts_with_the_zeros_of_the_one_before(settings):
    model, seen = dense(optimizer=keras.optimizers.SGD(0.5)), []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(model.layers[0].get_weights()[0] == 0)
    )
    settings = {"sparsity": 0.8, "begin": 1, **settings}
    if settings["end"] == 12:
        fit(model, PruneWhileTraining(**settings), epochs=4)  # steps 1 to 24
    else:
        with pytest.raises(TrainingError, match="step 21 of 24"):
            fit(model, EndAtStep(24), PruneWhileTraining(**settings), epochs=6)
    before = model.layers[0].get_weights()[0] == 0
    fit(model, PruneWhileTraining(**settings), watch, epochs=6, initial_epoch=4)
    assert before.mean() > 0.5
    assert all(np.array_equal(before, zeros) for zeros in seen[:6])
    kernels = [model.get_layer(n).get_weights()[0] for n in ("hidden_1", "hidden_2", "classes")]
    assert (np.concatenate(kernels, axis=None) == 0).mean() == pytest.approx(0.8, abs=0.005)


class EndAtStep(keras.callbacks.Callback):
    """Stops a training after some steps, at the end of the epoch."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = (epoch + 1) * self.params["steps"] >= self.steps


def test_a_schedule_of_the_users_own_may_be_plain_python():
    def at_step_five(step):
        if step == 5:
            return True, 0.25
        return False, 0.25

    model = dense()
    fit(model, PruneWhileTraining(at_step_five))
    assert zero_share(model, "hidden_1") == pytest.approx(0.25, abs=0.003)


def test_global_scope_compares_the_layers():
    model = dense()
    fit(model, PruneWhileTraining(sparsity=0.6, scope="global"))
    kernels = [model.get_layer(n).get_weights()[0] for n in ("hidden_1", "hidden_2", "classes")]
    share = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
    assert share == pytest.approx(0.6, abs=0.005)
    assert (
        zero_share(model, "classes") < 0.3 < zero_share(model, "hidden_1")
    )  # its weights are large


@pytest.mark.parametrize("importance", ["gradient", "taylor", "entropy", "random"])
def test_importances_are_looked_at_between_batches(importance):
    model = dense()
    data = (inputs_of(model, 64, seed=3), labels_of(64))
    fit(model, PruneWhileTraining(sparsity=0.5, frequency=8, importance=importance, data=data))
    assert zero_share(model, "hidden_1") == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("importance", ["gradient", "taylor"])
def test_dead_units_are_pruned_though_their_weights_score_alike(importance):
    model = dense()
    kernel, bias = model.get_layer("hidden_1").get_weights()
    bias[:18] = -1e6  # 18 of 24 units say nothing: their gradients are zero
    model.get_layer("hidden_1").set_weights([kernel, bias])
    data = (inputs_of(model, 64, seed=3), labels_of(64))
    settings = {"sparsity": 0.5, "layers": ["hidden_1"], "importance": importance}
    fit(model, PruneWhileTraining(**settings, data=data))
    pruned = model.get_layer("hidden_1").get_weights()[0]
    assert (pruned == 0).mean() == pytest.approx(0.5, abs=0.003)
    assert (pruned[:, 18:] == 0).mean() < 0.2  # one of the other units may be dead by itself
    dead, gone = np.abs(kernel[:, :18]), pruned[:, :18] == 0
    assert dead[gone].max() <= dead[~gone].min()


def test_an_importance_of_the_users_own_gets_weights_gradients_and_activations():
    seen = []

    def first_inputs(weights, gradients, activations):
        seen.append((weights.shape, gradients.shape, activations.shape))
        return np.broadcast_to(-np.arange(len(weights), dtype=np.float32)[:, None], weights.shape)

    model = dense()
    data = (inputs_of(model, 64, seed=3), labels_of(64))
    callback = PruneWhileTraining(
        sparsity=0.5, layers=["hidden_1"], importance=first_inputs, data=data, frequency=18
    )
    fit(model, callback)
    assert seen[0] == ((16, 24), (16, 24), (64, 24))
    kernel = model.get_layer("hidden_1").get_weights()[0]
    assert np.all(kernel[8:] == 0)
    assert np.all(kernel[:8] != 0)


@pytest.mark.parametrize(
    ("settings", "epochs", "match"),
    [
        ({"sparsity": 0.8, "end": 32}, 4, "does not reach its end.*step 24 of 24"),
        ({"sparsity": 0.8, "begin": 30, "end": 40}, 4, "no update within this training of 24"),
        ({"sparsity": 0.8, "begin": 0, "end": 24, "frequency": 100}, 4, "no update within"),
    ],
)
def test_a_schedule_longer_than_the_training_is_refused_before_it_begins(settings, epochs, match):
    model = dense()
    before = model.get_weights()
    with pytest.raises(TrainingError, match=match):
        fit(model, PruneWhileTraining(**settings), epochs=epochs)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_schedule_that_ends_with_the_training_is_good():
    model = dense()
    fit(model, PruneWhileTraining(sparsity=0.8, begin=0, end=24, frequency=1), epochs=4)
    assert zero_share(model, "hidden_1") == pytest.approx(0.8, abs=0.003)


def stream(model):
    x, y = inputs_of(model, 96), labels_of(96)
    for start in range(0, 96, 16):
        yield x[start : start + 16], y[start : start + 16]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras: of any generator's end
def test_data_of_unknown_length_need_steps_and_are_checked_at_the_end():
    model = dense()
    with pytest.raises(TrainingError, match="is a fraction of the training"):
        model.fit(
            stream(model), verbose=0, shuffle=False, callbacks=[PruneWhileTraining(sparsity=0.5)]
        )
    late = PruneWhileTraining(sparsity=0.5, begin=0, end=9, frequency=1)
    with pytest.raises(TrainingError, match="does not reach its end"):
        model.fit(stream(model), verbose=0, shuffle=False, callbacks=[late])
    in_time = PruneWhileTraining(sparsity=0.5, begin=0, end=6, frequency=1)
    model.fit(stream(model), verbose=0, shuffle=False, callbacks=[in_time])
    assert zero_share(model, "hidden_1") == pytest.approx(0.5, abs=0.003)


def test_stopping_before_the_end_of_the_schedule_is_an_error():
    model = dense()

    def stop(epoch, logs):
        model.stop_training = True

    with pytest.raises(TrainingError, match="step 6 of 6"):
        fit(
            model,
            PruneWhileTraining(sparsity=0.5, begin=1, end=20, frequency=1),
            keras.callbacks.LambdaCallback(on_epoch_end=stop),
        )


def test_restored_weights_are_noticed():
    model = dense()
    first = [w.copy() for w in model.get_weights()]
    restore = keras.callbacks.LambdaCallback(on_train_end=lambda logs: model.set_weights(first))
    with pytest.raises(TrainingError, match="restore_best_weights"):
        fit(model, restore, PruneWhileTraining(sparsity=0.5))


def test_a_train_step_that_goes_past_the_optimizer_is_noticed():
    class Own(keras.Model):
        def train_step(self, data):
            return {"loss": keras.ops.mean(self(data[0]))}

    inner = ZOO["dense"](keras)
    model = Own(inner.inputs, inner.outputs)
    model.compile("sgd", LOSS)
    with pytest.raises(TrainingError, match="was never applied"):
        fit(model, PruneWhileTraining(sparsity=0.5))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "needs one of"),
        ({"sparsity": 80}, r"fraction of zeros, in \[0, 1\).*80.*Did you mean 0.8"),
        ({"sparsity": -0.1}, "fraction of zeros"),
        ({"sparsity": 0.5, "importance": "magnitud"}, "Did you mean 'magnitude'"),
        ({"sparsity": 0.5, "importance": "taylor"}, r"Give `data=\(x, y\)`"),
        ({"sparsity": 0.5, "scope": "net"}, "`scope` must be one of"),
        ({"sparsity": 0.5, "begin": 0.5, "end": 0.25}, "`end` must come after `begin`"),
        ({"sparsity": 0.5, "end": 1.5}, "fraction of the training"),
        ({"sparsity": 0.5, "schedule": lambda step: (True, 0.5)}, "contradict"),
        ({"schedule": lambda step: (True, 0.5), "end": 9}, "`schedule` and `end` contradict"),
        ({"pattern": "2:4", "begin": 5}, "`pattern` and `begin` contradict"),
        ({"sparsity": 0.7, "pattern": "2:4"}, "fixes the sparsity at 0.5"),
        ({"pattern": "1:4"}, "`pattern` must be one of '2:4'"),
        ({"sparsity": 0.5, "block_size": 4}, "two ints from 1"),
        ({"sparsity": 0.5, "frequency": 0}, "counts steps between updates"),
        ({"sparsity": 0.5, "layers": "hidden_1"}, "list of layer names"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, match):
    with pytest.raises(SettingsError, match=match):
        PruneWhileTraining(**settings)


def test_wrong_layers_are_refused_when_training_begins():
    model = dense()
    with pytest.raises(SettingsError, match="Did you mean 'hidden_1'"):
        fit(model, PruneWhileTraining(sparsity=0.5, layers=["hiden_1"]))
    with pytest.raises(SettingsError, match="Did you mean 'hidden_2'"):
        fit(model, PruneWhileTraining(per_layer={"hidden2": 0.5}))
    bare = keras.Sequential([keras.Input((16,)), keras.layers.BatchNormalization()])
    bare.compile("sgd", "mse")
    with pytest.raises(ModelError, match="No layer of this model can be pruned"):
        bare.fit(
            inputs_of(bare),
            inputs_of(bare),
            verbose=0,
            callbacks=[PruneWhileTraining(sparsity=0.5)],
        )


def test_keep_zeros_holds_the_zeros_and_nothing_else():
    model = dense()
    layer = model.get_layer("hidden_1")
    kernel, bias = layer.get_weights()
    kernel[::2] = 0
    layer.set_weights([kernel, bias])
    fit(model, KeepZeros())
    after = layer.get_weights()[0]
    assert np.all(after[::2] == 0)
    assert not np.array_equal(after[1::2], kernel[1::2])
    assert layer.kernel.constraint is None
    fit(model, epochs=1)
    assert np.any(layer.get_weights()[0][::2] != 0)


def test_keep_zeros_lets_a_kernel_that_begins_at_zero_learn():
    model = dense()
    layer = model.get_layer("classes")
    layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    fit(model, KeepZeros())
    assert np.any(layer.get_weights()[0] != 0)
