"""The callbacks that look and do not touch, in both Kerases."""

import io

import keras
import numpy as np
import pytest
import tf_keras
from models import ZOO, inputs_of, labels_of

import tfedge
from tfedge.callbacks import (
    ClusterLogger,
    Progress,
    QuantizationRangeLogger,
    SparsityLogger,
    StopAtDrop,
    TFLiteCheckpoint,
)
from tfedge.errors import ConversionError, DataError, ModelError, SettingsError
from tfedge.inspection import inspect_model

LOSS = "sparse_categorical_crossentropy"
BOTH = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras3", "tf_keras"])
X, Y = inputs_of(ZOO["dense"](keras), 96), labels_of(96)


def dense(k, **settings):
    model = ZOO["dense"](k)
    model.compile(**{"optimizer": "adam", "loss": LOSS, "metrics": ["accuracy"], **settings})
    return model


def fit(model, *callbacks, epochs=2, **settings):
    settings = {"batch_size": 32, "verbose": 0, **settings}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **settings).history


@BOTH
def test_the_share_of_zeros_is_logged_while_pruning_raises_it(k, tmp_path):
    stage, logger = tfedge.Prune(sparsity=0.75, end=1.0, frequency=1), SparsityLogger(tmp_path)
    prepared = stage.prepare(dense(k))
    history = fit(prepared, *stage.callbacks(), logger, epochs=3)
    assert history["sparsity"] == sorted(history["sparsity"])
    assert history["sparsity"][-1] == pytest.approx(0.75, abs=0.01)
    names = {name for name in logger.history[-1] if name != "sparsity"}
    assert len(names) == 3 and all(name.startswith("sparsity/") for name in names)
    assert scalars(tmp_path, "sparsity") == pytest.approx(history["sparsity"])


@BOTH
def test_the_number_of_distinct_values_is_logged(k):
    logger = ClusterLogger()
    history = fit(tfedge.Cluster(number_of_clusters=4).prepare(dense(k)), logger)
    assert history["most_unique_values"] == [4.0, 4.0]
    assert set(logger.history[-1].values()) == {4.0} and len(logger.history[-1]) == 3


def scalars(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    rows = events.Tensors(tag)
    return [float(np.frombuffer(row.tensor_proto.tensor_content, "float32")[0]) for row in rows]


@BOTH
def test_learned_ranges_are_logged_by_tensor(k, tmp_path):
    prepared, logger = tfedge.Quantize().prepare(dense(k)), QuantizationRangeLogger(tmp_path)
    history = fit(prepared, logger, epochs=3)
    assert history["largest_range_change"][0] == 1
    assert 0 < history["largest_range_change"][-1] < 1
    highs = [value for name, value in logger.history[-1].items() if name.endswith("/max")]
    assert len(highs) >= 3 and min(highs) > 0
    tag = next(name for name in logger.history[-1] if name.endswith("/max"))
    assert scalars(tmp_path, tag) == pytest.approx([row[tag] for row in logger.history])


def test_a_model_without_fake_quantisation_has_no_ranges_to_log():
    with pytest.raises(ModelError, match=r"fake quantisation.*`dense`.*Quantize\.prepare"):
        fit(dense(keras), QuantizationRangeLogger())


@BOTH
def test_the_file_that_is_kept_is_the_best_by_its_own_figure(k, tmp_path):
    path = tmp_path / "best.tflite"
    keep = TFLiteCheckpoint(path, (X, Y), every=2)
    history = fit(tfedge.Quantize().prepare(dense(k)), keep, epochs=5)
    assert [epoch for epoch, _ in keep.history] == [1, 3, 4]
    assert history["tflite_accuracy"] == [figure for _, figure in keep.history]
    assert keep.best == max(figure for _, figure in keep.history)
    with tfedge.open_model(path) as model:
        assert np.mean(model.predict(X).argmax(-1) == Y) == pytest.approx(keep.best)
    assert inspect_model(path).inputs[0].dtype == "int8"


@BOTH
def test_the_files_of_a_training_that_prunes_hold_its_zeros(k, tmp_path):
    stage = tfedge.Prune(sparsity=0.75, end=0.5)
    keep = TFLiteCheckpoint(tmp_path / "m.tflite", (X, Y), mode="float32")
    fit(stage.prepare(dense(k)), *stage.callbacks(), keep, epochs=2)
    kernels = [w for w in inspect_model(keep.path).weights if len(w.shape) == 2]
    assert len(kernels) == 3 and all(w.sparsity >= 0.35 for w in kernels)


def test_a_lower_error_is_a_better_file(tmp_path):
    model = dense(keras, loss="mse", metrics=[])
    keep = TFLiteCheckpoint(
        tmp_path / "m.tflite", (X, np.eye(4, dtype="float32")[Y]), metric="mae", mode="float32"
    )
    model.fit(X, np.eye(4)[Y], epochs=3, verbose=0, callbacks=[keep])
    assert keep.best == min(figure for _, figure in keep.history)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"every": 0}, SettingsError, r"`every` counts epochs, from 1.*0"),
        ({"metric": "acuracy"}, SettingsError, "'accuracy'"),
    ],
)
def test_settings_of_the_checkpoint_are_checked_at_once(settings, error, match, tmp_path):
    with pytest.raises(error, match=match):
        TFLiteCheckpoint(tmp_path / "m.tflite", (X, Y), **settings)


def test_a_model_that_cannot_become_int8_says_so_in_the_first_epoch(tmp_path):
    with pytest.raises(DataError, match="calibration"):
        fit(dense(keras), TFLiteCheckpoint(tmp_path / "m.tflite", (X, Y)))
    assert issubclass(ConversionError, tfedge.TfedgeError) and not list(tmp_path.iterdir())


@BOTH
def test_a_training_that_costs_too_much_ends_with_the_last_weights_that_did_not(k):
    model = dense(k, optimizer=k.optimizers.SGD(0.0))
    kept = []

    def spoil(epoch, logs):
        kept.append([np.array(w) for w in model.get_weights()])
        logs["figure"] = [0.9, 0.895, 0.8, 0.9][epoch]
        model.set_weights([w + 1 for w in model.get_weights()])

    stop = StopAtDrop(0.01, reference=0.9, monitor="figure", mode="max")
    spoiler = k.callbacks.LambdaCallback(on_epoch_end=spoil)
    fit(model, spoiler, stop, epochs=4)
    assert (stop.stopped_epoch, stop.last_good_epoch, len(kept)) == (2, 1, 3)
    expected = [w + 1 for w in kept[1]]  # the weights as they were when epoch 1 was judged
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), expected, strict=True))


@pytest.mark.parametrize(
    ("values", "patience", "stopped"),
    [([1.0, 1.3, 1.0, 1.3], 1, None), ([1.0, 1.3, 1.3, 1.0], 1, 2), ([1.0, 1.04, 1.04], 0, None)],
)
def test_losses_are_better_when_lower_and_patience_is_kept(values, patience, stopped):
    stop = StopAtDrop(0.05, reference=1.0, monitor="my_loss", patience=patience)
    feed = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(my_loss=values[epoch])
    )
    fit(dense(keras), feed, stop, epochs=len(values))
    assert stop.stopped_epoch == stopped


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_drop": -0.1}, r"`max_drop` is a number from 0.*-0\.1"),
        ({"reference": float("nan")}, r"`reference` is a finite number.*nan"),
        ({"mode": "higher"}, r"`mode` is 'max' or 'min'.*higher"),
        ({"patience": -1}, r"`patience` counts epochs.*-1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(settings, match):
    with pytest.raises(SettingsError, match=match):
        StopAtDrop(**{"max_drop": 0.01, "reference": 0.9, **settings})


def test_a_figure_that_keras_does_not_log_is_named_with_the_nearest():
    with pytest.raises(SettingsError, match=r"'acuracy'.*Did you mean 'accuracy'"):
        fit(dense(keras), StopAtDrop(0.01, reference=0.9, monitor="acuracy"))


@BOTH
def test_progress_is_a_line_for_each_epoch_where_there_is_no_terminal(k):
    file = io.StringIO()
    fit(dense(k), Progress("pruning", file=file), epochs=2)
    lines = file.getvalue().splitlines()
    assert len(lines) == 2 and "pruning: epoch 2 of 2" in lines[1] and "accuracy" in lines[1]


@BOTH
def test_progress_moves_a_bar_on_a_terminal_and_takes_it_away(k, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # a dumb one cannot move

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    file, bar = Terminal(), None
    bar = Progress(file=file)
    fit(dense(k), bar, epochs=2)
    assert "training, epoch 2 of 2" in file.getvalue()
    assert bar._bar is None
