import keras
import numpy as np
import pytest
import tf_keras
from fresh import run_fresh
from models import ZOO, inputs_of, labels_of

from tfedge.convert import convert
from tfedge.data import Data, Split, find_metric
from tfedge.engines.native.place import LayerRule
from tfedge.errors import ModelError, SettingsError, UnsupportedModelError
from tfedge.inspection import read_model
from tfedge.models import load_model, save_model
from tfedge.runtime import open_model
from tfedge.stages._base import Context
from tfedge.stages.quantize import Quantize

BOTH = pytest.mark.parametrize("kind", [keras, tf_keras], ids=["keras", "tf_keras"])


def compiled(name, kind):
    model = ZOO[name](kind)
    model.compile(
        kind.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


@BOTH
def test_a_compiled_model_comes_back_compiled_with_a_fresh_optimizer(kind):
    model = compiled("conv_bn_relu", kind)
    prepared = Quantize().prepare(model)
    assert prepared.optimizer is not model.optimizer
    assert float(prepared.optimizer.learning_rate) == pytest.approx(2e-3)
    x, y = inputs_of(model, count=16), labels_of(16)
    history = prepared.fit(x, y, verbose=0, callbacks=Quantize().callbacks())
    assert {"loss", "accuracy"} <= set(history.history)


@BOTH
def test_the_metric_is_recorded_after_calibration_and_after_training(kind):
    model = ZOO["dense"](kind)
    x, y = inputs_of(model, count=64), labels_of(64)
    data = Data(train=Split(x, y), evaluation=Split(x, y), calibration=Split(x))

    def fit(prepared, callbacks):
        prepared.compile("sgd", "sparse_categorical_crossentropy")
        return prepared.fit(x, y, epochs=1, verbose=0, callbacks=callbacks)

    context = Context(fit=fit, data=data, metric=find_metric("accuracy"))
    _, report = Quantize().apply(model, context)
    assert {"accuracy_calibrated", "accuracy_trained"} <= set(report.metrics)


def test_calibration_alone_is_enough():
    model = ZOO["conv_bn_relu"](keras)
    x = inputs_of(model, count=32)
    prepared, _ = Quantize().apply(model, Context(data=Data(calibration=Split(x))))
    wanted = model.predict(x, verbose=0)
    np.testing.assert_allclose(prepared.predict(x, verbose=0), wanted, atol=0.05)


def test_with_nothing_to_learn_ranges_from_the_stage_refuses():
    with pytest.raises(SettingsError, match="training or calibration"):
        Quantize().apply(ZOO["dense"](keras))


@pytest.mark.slow
@BOTH
def test_a_saved_model_predicts_the_same_in_a_fresh_process(kind, tmp_path):
    model = compiled("residual", kind)
    x, y = inputs_of(model, count=16), labels_of(16)
    prepared = Quantize(keep_sparsity=True).prepare(model)
    prepared.fit(x, y, verbose=0)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", prepared.predict(x, verbose=0))
    save_model(prepared, tmp_path / "model.keras")
    code = (
        "import sys, numpy as np, tfedge\n"
        "model = tfedge.load_model(sys.argv[1] + '/model.keras')\n"
        "y = model.predict(np.load(sys.argv[1] + '/x.npy'), verbose=0)\n"
        "assert np.array_equal(y, np.load(sys.argv[1] + '/y.npy')), 'different'\n"
        "tfedge.Quantize().finish(model)\n"
    )
    run_fresh(code, tmp_path)


def test_finish_reports_on_a_model_that_was_loaded(tmp_path):
    model = ZOO["conv_bn_relu"](keras)
    prepared = Quantize().prepare(model)
    save_model(prepared, tmp_path / "q.keras")
    _, report = Quantize().finish(load_model(tmp_path / "q.keras"))
    assert {"conv_1", "conv_2"} <= set(report.changed)


def test_a_layer_is_kept_float_by_name_and_by_class():
    model = ZOO["conv_bn_relu"](keras)
    by_name = Quantize(keep_float=("conv_1",))
    by_class = Quantize(keep_float=("Conv2D",))
    for stage, kept in ((by_name, {"conv_1"}), (by_class, {"conv_1", "conv_2"})):
        _, report = stage.finish(stage.prepare(model))
        reasons = {row.layer for row in report.skipped if row.reason == "kept float on request"}
        assert reasons == kept


BAD = [
    ({"keep_float": ("klasses",)}, SettingsError, "Did you mean 'classes'"),
    ({"keep_float": "conv_1"}, SettingsError, "sequence of layer names"),
    ({"rules": {"Dense": LayerRule(weights={})}}, SettingsError, "maps layer classes"),
]


@pytest.mark.parametrize(("settings", "error", "match"), BAD)
def test_wrong_settings_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        Quantize(**settings).prepare(ZOO["conv_bn_relu"](keras))


def test_weights_that_are_not_finite_are_refused_by_name():
    model = ZOO["dense"](keras)
    kernel = model.get_layer("hidden_2").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(ModelError, match="hidden_2"):
        Quantize().prepare(model)


def test_finish_refuses_a_model_that_was_never_prepared():
    with pytest.raises(UnsupportedModelError, match="no fake quantisation"):
        Quantize().finish(ZOO["dense"](keras))


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def test_a_subclassed_model_is_refused_with_the_reason():
    with pytest.raises(UnsupportedModelError, match="subclassed"):
        Quantize().prepare(Subclassed())


def stored_kernels(data):
    """The int8 kernel of each convolution and dense operator of a file."""
    model = read_model(data)
    graph = model.subgraphs[0]
    seconds = [graph.tensors[o.inputs[1]] for o in graph.operators if len(o.inputs) == 3]
    return [np.asarray(model.buffers[t.buffer].data, np.uint8).view(np.int8) for t in seconds]


def test_int8_files_of_both_engines_hold_the_same_weights_and_agree():
    files, scores = [], []
    for kind in (keras, tf_keras):
        model = ZOO["conv_bn_relu"](kind)
        x = inputs_of(model, count=64)
        context = Context(data=Data(calibration=Split(x)))
        prepared, _ = Quantize().apply(model, context)
        data, report = convert(prepared)
        assert report.inspection.is_integer
        files.append(stored_kernels(data))
        with open_model(data) as runner:
            scores.append(runner.predict(x))
    assert len(files[0]) == 3
    for ours, theirs in zip(*files, strict=True):
        steps = np.abs(ours.astype(int) - theirs.astype(int))
        assert steps.max() <= 1
        assert (steps == 0).mean() > 0.99
    np.testing.assert_allclose(*scores, atol=0.03)
