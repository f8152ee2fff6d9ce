import keras
import numpy as np
import pytest
import tf_keras
from models import CLASSES, ZOO, inputs_of, labels_of, weights_of

from tfedge.data import Data, Split, find_metric
from tfedge.errors import DataError, SettingsError, TrainingError
from tfedge.models import layers_of
from tfedge.stages._base import Context
from tfedge.stages._fit import choose_loss, make_fit
from tfedge.stages.finetune import FineTune
from tfedge.stages.prune import Prune

KERASES = {"keras": keras, "tf_keras": tf_keras}


def learnable(samples=256):
    """Features whose largest group says the class."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, CLASSES, samples)
    x = draw.normal(0, 0.3, (samples, 16)).astype(np.float32)
    x[np.arange(samples), 4 * y] += 2
    return Split(x, y)


@pytest.mark.parametrize("kind", KERASES)
def test_a_model_is_trained_and_the_original_stays_bit_equal(kind):
    model = ZOO["dense"](KERASES[kind])
    before = weights_of(model)
    data = Data(train=learnable(), evaluation=learnable(64))
    context = Context(data=data, metric=find_metric("accuracy"))
    trained, report = FineTune(epochs=8, learning_rate=0.01).apply(model, context)
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert report.metrics["accuracy_before"] < 0.6 < 0.9 < report.metrics["accuracy_trained"]
    assert report.changed == ("hidden_1", "hidden_2", "classes")


@pytest.mark.parametrize("kind", KERASES)
def test_zeros_of_a_pruned_model_are_kept_unless_they_need_not_be(kind):
    model = ZOO["dense"](KERASES[kind])
    pruned, _ = Prune(sparsity=0.75, one_shot=True).apply(model)
    context = Context(data=Data(train=learnable(64)))
    kept, report = FineTune(epochs=1).apply(pruned, context)
    for a, b in zip(pruned.get_weights(), kept.get_weights(), strict=True):
        if a.ndim == 2:
            assert np.array_equal(a == 0, b == 0)
    assert report.notes == ("The zeros of hidden_1, hidden_2, classes were kept.",)
    free, report = FineTune(epochs=1, keep_zeros=False).apply(pruned, context)
    assert (free.get_weights()[0] == 0).mean() < 0.7
    assert report.notes == ()


def test_every_layer_is_reported():
    model = ZOO["frozen_backbone"](keras)
    x = inputs_of(model, 32)
    trained, report = FineTune(epochs=1).apply(
        model, Context(data=Data(train=Split(x, labels_of(32))))
    )
    assert report.changed == ("classes",)
    named = sorted([*report.changed, *(row.layer for row in report.skipped)])
    assert named == sorted(layer.name for layer in layers_of(trained))


@pytest.mark.parametrize("kind", KERASES)
def test_the_same_seed_gives_the_same_weights(kind):
    model = ZOO["dense"](KERASES[kind])
    data = Data(train=learnable(64))
    runs = [FineTune(epochs=2).apply(model, Context(data=data, seed=s))[0] for s in (1, 1, 2)]
    first, again, other = (run.get_weights() for run in runs)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("kind", KERASES)
def test_a_compiled_model_keeps_its_own_settings(kind):
    k = KERASES[kind]
    model = ZOO["dense"](k)
    model.compile(k.optimizers.SGD(0.5, momentum=0.5), "sparse_categorical_crossentropy")
    trained, _ = FineTune(epochs=1, learning_rate=0.125).apply(
        model, Context(data=Data(train=learnable(32)))
    )
    assert type(trained.optimizer).__name__ == "SGD"
    assert float(trained.optimizer.learning_rate) == 0.125
    assert float(model.optimizer.learning_rate) == 0.5


@pytest.mark.parametrize("kind", KERASES)
def test_another_optimizer_leaves_the_rest_of_a_compiled_model_as_it_was(kind):
    k = KERASES[kind]
    model = ZOO["dense"](k)
    top = k.metrics.SparseTopKCategoricalAccuracy(2, name="top_2")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=[top], run_eagerly=True)
    fit = make_fit(Data(train=learnable(32)), epochs=1, optimizer="sgd")
    history = fit(model, [])
    assert type(model.optimizer).__name__ == "SGD"
    assert set(history.history) == {"loss", "top_2"}
    assert model.run_eagerly


@pytest.mark.parametrize("kind", KERASES)
def test_a_lost_loss_is_an_error_and_brings_the_last_good_weights_back(kind):
    k = KERASES[kind]
    model = k.Sequential([k.layers.Input((16,)), k.layers.Dense(4), k.layers.Dense(1)])
    data = Data(train=Split(1e4 * inputs_of(model, 64), np.arange(64, dtype=np.float32)))
    fit = make_fit(data, epochs=20, optimizer="sgd", learning_rate=10.0)
    with pytest.raises(TrainingError, match="became (nan|inf) in epoch .* Lower the learning rate"):
        fit(model, [])
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.parametrize("kind", KERASES)
def test_weights_of_the_epoch_before_the_loss_was_lost_come_back(kind):
    k, seen = KERASES[kind], []

    def spoil(epoch, logs):
        seen.append(model.get_weights())
        if epoch == 1:
            model.set_weights([w * np.nan for w in model.get_weights()])

    model = ZOO["dense"](k)
    with pytest.raises(TrainingError, match="in epoch 3. The weights are back as they were"):
        make_fit(Data(train=learnable(64)), epochs=5)(
            model, [k.callbacks.LambdaCallback(on_epoch_end=spoil)]
        )
    assert all(map(np.array_equal, model.get_weights(), seen[1]))


def test_progress_is_told_after_every_epoch():
    told = []
    fit = make_fit(
        Data(train=learnable(64)), epochs=3, progress=lambda done, of, logs: told.append((done, of))
    )
    history = fit(ZOO["dense"](keras), [])
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(history.history["loss"]) == 3


@pytest.mark.parametrize(
    ("y", "outputs", "loss", "logits"),
    [
        ([0, 2], [[0.9, 0.1, 0], [0, 0, 1]], "SparseCategoricalCrossentropy", False),
        ([[0], [2]], [[9, 0, 0], [0, 0, 9]], "SparseCategoricalCrossentropy", True),
        ([[1, 0], [0, 1]], [[0.5, 0.5], [1, 0]], "CategoricalCrossentropy", False),
        ([0, 1], [[0.2], [0.7]], "BinaryCrossentropy", False),
        ([0, 1], [[-3.0], [0.7]], "BinaryCrossentropy", True),
        ([0.5, 1.7], [[0.2], [0.7]], "MeanSquaredError", None),
        ([[0.5, 1.7], [1.0, 2.0]], [[0.2, 1], [0.7, 1]], "MeanSquaredError", None),
    ],
)
def test_the_loss_is_the_one_that_labels_and_outputs_call_for(y, outputs, loss, logits):
    chosen, metrics = choose_loss(keras, y, outputs)
    assert type(chosen).__name__ == loss
    assert logits is None or chosen.from_logits is logits
    assert metrics == ([] if loss == "MeanSquaredError" else ["accuracy"])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"epochs": 0}, "`FineTune.epochs` is a whole number"),
        ({"epochs": 1, "batch_size": 0.5}, "`FineTune.batch_size`"),
        ({"epochs": 1, "learning_rate": -1.0}, "`learning_rate` is a positive number"),
    ],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(SettingsError, match=match):
        FineTune(**settings)


def test_missing_or_unfit_data_are_refused():
    model = ZOO["dense"](keras)
    with pytest.raises(SettingsError, match="`data`"):
        FineTune(epochs=1).apply(model)
    with pytest.raises(DataError, match="needs labels"):
        FineTune(epochs=1).apply(model, Context(data=Data(train=Split(inputs_of(model)))))
    with pytest.raises(DataError):
        wrong = Split(np.zeros((8, 7), np.float32), labels_of(8))
        FineTune(epochs=1).apply(model, Context(data=Data(train=wrong)))


def test_a_foreign_optimizer_is_refused():
    fit = make_fit(Data(train=learnable(32)), epochs=1, optimizer=tf_keras.optimizers.SGD())
    with pytest.raises(SettingsError, match="an optimizer of `keras`"):
        fit(ZOO["dense"](keras), [])
