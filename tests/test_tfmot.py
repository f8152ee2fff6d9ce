import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
import tf_keras
from models import ZOO, inputs_of, labels_of, weights_of

from tfedge.engines import tfmot
from tfedge.engines.tfmot import _library
from tfedge.errors import DataError, MissingExtraError, SettingsError, UnsupportedModelError
from tfedge.models import layers_of

K = tf_keras.layers
ROOT = Path(tfmot.__file__).parents[3]

pytestmark = pytest.mark.filterwarnings(
    "ignore:Statistics for quantized inputs:UserWarning",  # the converter, of every QAT model
    "ignore:You are saving your model as an HDF5 file:UserWarning",  # what that test is about
)


@pytest.fixture(autouse=True)
def clean_session():
    yield
    tf_keras.backend.clear_session()


@tf_keras.utils.register_keras_serializable("tests")
class Scale(K.Layer):
    """A layer of one's own that TFMOT knows nothing of."""

    def __init__(self, times=2.0, **settings):
        super().__init__(**settings)
        self.times = times

    def build(self, input_shape):
        self.gain = self.add_weight(name="gain", shape=(input_shape[-1],), initializer="uniform")
        super().build(input_shape)

    def call(self, inputs):
        return inputs * (self.gain * self.times)

    def get_config(self):
        return {**super().get_config(), "times": self.times}


def sequential(*layers, shape=(8, 8, 3)):
    tf_keras.utils.set_random_seed(0)
    return tf_keras.Sequential([K.Input(shape), *layers])


def compiled(model):
    model.compile(tf_keras.optimizers.SGD(0.05, momentum=0.5), "sparse_categorical_crossentropy")
    return model


def outputs(model, x):
    return np.asarray(model(x, training=False))


def trained(model, **settings):
    x, y = inputs_of(model, 32), labels_of(32)
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0, **settings)
    return model


def in_fresh_process(code, **environment):
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# The process


def test_using_the_engine_leaves_the_environment_and_tf_keras_as_they_were():
    code = """
        import os
        import sys
        environment = dict(os.environ)
        from tfedge.engines import tfmot
        assert "tensorflow" not in sys.modules
        import tf_keras
        model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
        assert not tfmot.is_quantize_aware(model)
        assert "tensorflow_model_optimization" not in sys.modules, "asking imports nothing"
        tfmot.constant_sparsity(sparsity=0.5, begin_step=0)
        assert "tensorflow_model_optimization" in sys.modules
        assert dict(os.environ) == environment, os.environ["TF_USE_LEGACY_KERAS"]
        import keras
        import tensorflow as tf
        assert tf.keras.layers.Dense is keras.layers.Dense
        assert tf.keras.layers.Dense is not tf_keras.layers.Dense
    """
    in_fresh_process(code)


@pytest.mark.parametrize("before", ["0", "1", None])
def test_a_setting_of_the_users_is_put_back_after_the_import(monkeypatch, before):
    if before is None:
        monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    else:
        monkeypatch.setenv("TF_USE_LEGACY_KERAS", before)
    real = _library._import

    def imported(name):
        if name == "tensorflow_model_optimization":
            os.environ["TF_USE_LEGACY_KERAS"] = "1"  # what its import does the first time
        return real(name)

    monkeypatch.setattr(_library, "_import", imported)
    _library.tfmot.__wrapped__()
    assert os.environ.get("TF_USE_LEGACY_KERAS") == before


def test_one_module_imports_tfmot():
    files = [p for p in (ROOT / "tfedge").rglob("*.py") if "engines/tfmot/_library" not in str(p)]
    importing = ("import tensorflow_model_optimization", "from tensorflow_model_optimization")
    assert [p for p in files if any(words in p.read_text() for words in importing)] == []


@pytest.mark.parametrize("missing", ["tensorflow_model_optimization", "tf_keras"])
def test_a_missing_package_is_named_with_its_install(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    _library.tfmot.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=rf"{missing}.*tfedge\[train\]"):
            tfmot.constant_sparsity(sparsity=0.5, begin_step=0)
    finally:
        _library.tfmot.cache_clear()


# Flattening


@pytest.mark.parametrize("name", ZOO)
def test_a_flat_copy_computes_the_same_and_holds_no_nested_model(name):
    model = ZOO[name](tf_keras)
    flat = tfmot.flatten(model)
    x = inputs_of(model)
    np.testing.assert_array_equal(outputs(flat, x), outputs(model, x))
    assert not [layer for layer in flat.layers if isinstance(layer, tf_keras.Model)]
    flags = {layer.name: layer.trainable for layer in layers_of(flat)}
    assert flags == {layer.name: layer.trainable for layer in layers_of(model)}
    assert not set(map(id, layers_of(flat))) & set(map(id, layers_of(model)))


def test_a_backbone_called_with_training_false_keeps_its_statistics_when_flat():
    model = ZOO["frozen_backbone"](tf_keras)
    model.get_layer("backbone").trainable = True
    flat = compiled(tfmot.flatten(model))
    before = flat.get_layer("bn_1").get_weights()
    trained(flat)
    gamma, _, mean, variance = flat.get_layer("bn_1").get_weights()
    np.testing.assert_array_equal(mean, before[2])
    np.testing.assert_array_equal(variance, before[3])
    assert (gamma != before[0]).any(), "the control: what may train does"


def test_models_called_twice_lambdas_operators_and_own_layers_are_inlined():
    tf_keras.utils.set_random_seed(0)
    inside = K.Input((6,))
    block = tf_keras.Model(inside, Scale(name="scale")(K.Dense(6, name="d")(inside)), name="block")
    tail = tf_keras.Sequential([K.Dense(6, name="d"), K.Lambda(lambda t: t + 1)], name="tail")
    a, b = K.Input((6,)), K.Input((6,))
    joined = K.Concatenate()([block(a), block(b) * 2.0])[:, 2:8]
    model = tf_keras.Model([a, b], {"sum": tail(joined) + block(a), "tail": tail(b)})
    flat = tfmot.flatten(model)
    x = [np.random.default_rng(i).random((5, 6), np.float32) for i in (0, 1)]
    want, got = model(x), flat(x)
    for key in want:
        np.testing.assert_array_equal(got[key], want[key])
    assert {"d", "tail_d"} <= {layer.name for layer in flat.layers}, "two layers shared a name"
    assert flat.count_params() == model.count_params()


# Pruning


@pytest.mark.parametrize(
    "name", ["dense", "depthwise", "two_inputs", "nested", "shared_layer", "frozen_backbone"]
)
def test_pruning_reaches_its_sparsity_reports_every_layer_and_spares_the_model(name):
    model = compiled(ZOO[name](tf_keras))
    before = weights_of(model)
    schedule = tfmot.constant_sparsity(sparsity=0.5, begin_step=1, frequency=1)
    wrapped, skipped = tfmot.prepare_pruning(model, schedule)
    assert wrapped.optimizer.get_config() == model.optimizer.get_config()
    assert wrapped.optimizer is not model.optimizer
    x = inputs_of(model)
    np.testing.assert_allclose(outputs(wrapped, x), outputs(model, x), atol=1e-6)
    trained(wrapped, callbacks=tfmot.pruning_callbacks())
    assert tfmot.is_pruning(wrapped)
    stripped = tfmot.strip_pruning(wrapped)
    assert not tfmot.is_pruning(stripped)
    assert stripped.optimizer is not None
    np.testing.assert_allclose(outputs(stripped, x), outputs(wrapped, x), atol=1e-6)
    left = {row.layer: row.reason for row in skipped}
    for layer in layers_of(model):
        kernel = stripped.get_layer(layer.name).weights[:1]
        pruned = bool(kernel) and abs(float(np.mean(kernel[0].numpy() == 0)) - 0.5) < 0.01
        assert pruned is (layer.name not in left), (layer.name, left)
    for now, then in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_single_layers_get_their_own_schedule():
    model = compiled(ZOO["dense"](tf_keras))
    layers = {"hidden_2": tfmot.constant_sparsity(sparsity=0.75, begin_step=1, frequency=1)}
    wrapped, skipped = tfmot.prepare_pruning(model, None, layers=layers)
    stripped = tfmot.strip_pruning(trained(wrapped, callbacks=tfmot.pruning_callbacks()))
    zeros = {layer.name: np.mean(layer.weights[0].numpy() == 0) for layer in stripped.layers[1:]}
    assert zeros == {"hidden_1": 0.0, "hidden_2": 0.75, "classes": 0.0}
    assert {row.layer: row.reason for row in skipped} == {
        "hidden_1": "not among the layers asked for",
        "classes": "not among the layers asked for",
    }


def test_two_of_four_weights_stay_along_the_input_axis():
    model = compiled(ZOO["dense"](tf_keras))
    schedule = tfmot.constant_sparsity(sparsity=0.5, begin_step=0)
    wrapped, _ = tfmot.prepare_pruning(model, schedule, sparsity_m_by_n=(2, 4))
    stripped = tfmot.strip_pruning(trained(wrapped, callbacks=tfmot.pruning_callbacks()))
    kernel = stripped.get_layer("hidden_1").weights[0].numpy()
    groups = (kernel.T.reshape(-1, 4) != 0).sum(axis=1)
    assert set(groups) == {2}


def test_masks_are_applied_when_the_wrappers_come_off():
    model = compiled(ZOO["dense"](tf_keras))
    schedule = tfmot.constant_sparsity(sparsity=0.5, begin_step=1, frequency=1)
    wrapped, _ = tfmot.prepare_pruning(model, schedule)
    trained(wrapped, callbacks=tfmot.pruning_callbacks())
    layer = wrapped.layers[1].layer
    layer.kernel.assign(layer.kernel + 1.0)  # as a restored checkpoint may bring weights back
    kernel = tfmot.strip_pruning(wrapped).get_layer("hidden_1").weights[0].numpy()
    assert np.mean(kernel == 0) == 0.5


def test_blocks_leave_kernels_of_higher_rank_alone_and_say_so():
    model = ZOO["conv_bn_relu"](tf_keras)
    schedule = tfmot.constant_sparsity(sparsity=0.5, begin_step=0)
    _, skipped = tfmot.prepare_pruning(model, schedule, block_size=(2, 2))
    reasons = {row.layer: row.reason for row in skipped}
    assert "rank 4" in reasons["conv_1"]
    assert "classes" not in reasons


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (lambda: K.Dense(2), None),
        (lambda: K.DepthwiseConv2D(2), "depthwise"),
        (lambda: K.BatchNormalization(), "no kernel"),
        (lambda: K.ReLU(), "no weights"),
        (lambda: Scale(), "knows no prunable weights of Scale"),
    ],
)
def test_the_reason_why_a_layer_is_not_pruned(layer, match):
    layer = sequential(layer()).layers[0]
    reason = tfmot.why_not_prunable(layer)
    assert reason is None if match is None else match in reason
    assert not hasattr(layer, "get_prunable_weights"), "the user's layer is not marked"


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (["hidden_3"], "Did you mean 'hidden_"),
        (["features"], "layers of the model"),
    ],
)
def test_pruning_refuses_names_that_do_not_exist(layers, match):
    model = ZOO["dense"](tf_keras)
    schedule = tfmot.constant_sparsity(sparsity=0.5, begin_step=0)
    with pytest.raises(SettingsError, match=match):
        tfmot.prepare_pruning(model, schedule, layers=dict.fromkeys(layers, schedule))


def test_pruning_refuses_a_named_layer_that_cannot_be_pruned():
    schedule = tfmot.constant_sparsity(sparsity=0.5, begin_step=0)
    with pytest.raises(SettingsError, match="depthwise kernels"):
        tfmot.prepare_pruning(ZOO["depthwise"](tf_keras), None, layers={"depthwise": schedule})


# Quantization


@pytest.mark.parametrize("name", ZOO)
def test_a_calibrated_model_is_near_the_float_one_and_the_model_is_spared(name):
    model = compiled(ZOO[name](tf_keras))
    before = weights_of(model)
    aware, skipped = tfmot.prepare_quantization(model)
    assert tfmot.is_quantize_aware(aware) and not tfmot.is_quantize_aware(model)
    assert aware.optimizer.get_config() == model.optimizer.get_config()
    assert not skipped
    wrapped = {layer.layer.name for layer in aware.layers if layer.name.startswith("quant_")}
    assert wrapped == {layer.name for layer in layers_of(model)}
    x = inputs_of(model, 64)
    assert tfmot.calibrate(aware, [x]) > 0
    assert np.abs(outputs(aware, x) - outputs(model, x)).max() < 0.03
    for now, then in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_frozen_layers_stay_frozen():
    model = compiled(ZOO["frozen_backbone"](tf_keras))
    aware, _ = tfmot.prepare_quantization(model)
    frozen = model.get_layer("backbone").get_layer("conv_1").weights[0].numpy()
    tfmot.calibrate(aware, [inputs_of(model)])
    names = {weight.name.split("/")[-1] for weight in aware.trainable_weights}
    assert names == {"kernel:0", "bias:0"} and len(aware.trainable_weights) == 2
    trained(aware)
    kernels = [w for w in aware.get_layer("quant_conv_1").weights if "kernel:" in w.name]
    np.testing.assert_array_equal(kernels[0].numpy(), frozen)


def test_a_backbone_called_with_training_false_learns_ranges_and_keeps_statistics():
    model = ZOO["frozen_backbone"](tf_keras)
    model.get_layer("backbone").trainable = True
    aware, _ = tfmot.prepare_quantization(compiled(model))
    weights = [*aware.get_layer("quant_bn_1").weights, *aware.get_layer("quant_relu_1").weights]
    before = [weight.numpy() for weight in weights]
    trained(aware)
    pairs = zip(weights, before, strict=True)
    changed = {now.name.split("/")[-1] for now, then in pairs if (now.numpy() != then).any()}
    assert changed == {"gamma:0", "beta:0", "output_min:0", "output_max:0"}


def test_calibration_sets_ranges_to_the_mean_of_the_batches_extremes():
    model = sequential(K.Conv2D(4, 3, name="conv"), K.Flatten(), K.Dense(2))
    aware, _ = tfmot.prepare_quantization(model)
    draw = np.random.default_rng(0)
    batches = [draw.normal(0.5, 1, (8, 8, 8, 3)).astype(np.float32) for _ in range(3)]
    features = tf_keras.Model(model.inputs, model.get_layer("conv").output)
    ends = [(outputs(features, x).min(), outputs(features, x).max()) for x in batches]
    before = aware.get_layer("quant_conv").layer.bias.numpy()
    tfmot.calibrate(aware, batches)
    found = {w.name.split("/")[-1]: w.numpy() for w in aware.get_layer("quant_conv").weights}
    np.testing.assert_allclose(found["post_activation_min:0"], np.mean([e[0] for e in ends]), 1e-5)
    np.testing.assert_allclose(found["post_activation_max:0"], np.mean([e[1] for e in ends]), 1e-5)
    kernel = model.get_layer("conv").kernel.numpy()
    np.testing.assert_allclose(found["kernel_max:0"], np.abs(kernel).max(axis=(0, 1, 2)), 1e-6)
    first = {w.name.split("/")[-1]: w.numpy() for w in aware.layers[1].weights}
    low = next(value for name, value in first.items() if name.endswith("_min:0"))
    np.testing.assert_allclose(low, min(x.min() for x in batches), 1e-6)
    np.testing.assert_array_equal(aware.get_layer("quant_conv").layer.bias.numpy(), before)


def test_calibration_without_a_batch_is_refused():
    aware, _ = tfmot.prepare_quantization(ZOO["dense"](tf_keras))
    with pytest.raises(DataError, match="at least one batch"):
        tfmot.calibrate(aware, [])


def test_the_layer_before_a_relu_layer_has_quantised_weights():
    model = sequential(K.Conv2D(4, 3, name="conv"), K.ReLU(), K.Flatten(), K.Dense(2))
    aware, _ = tfmot.prepare_quantization(model)
    names = [weight.name.split("/")[-1] for weight in aware.get_layer("quant_conv").weights]
    assert "kernel_min:0" in names
    assert "post_activation_min:0" not in names, "its output is rounded after the ReLU alone"


@pytest.mark.parametrize(
    ("layers", "settings", "expected"),
    [
        ([lambda: K.Lambda(lambda t: t * t, name="x")], {}, {"x": "Lambda"}),
        ([lambda: Scale(name="x")], {}, {"x": "no 8-bit rule for Scale"}),
        ([lambda: K.Conv2D(3, 1, activation="elu", name="x")], {}, {"x": "activation `elu`"}),
        ([lambda: K.BatchNormalization(name="x")], {}, {"x": "does not follow a linear"}),
        ([lambda: K.Conv2D(3, 1, name="x")], {"keep_float": ["x"]}, {"x": "as asked"}),
        (
            [lambda: K.Conv2D(3, 1, name="x"), lambda: K.BatchNormalization(name="y")],
            {"keep_float": ["x"]},
            {"x": "as asked", "y": "belongs to `x`"},
        ),
        ([lambda: K.ReLU(name="x")], {"keep_float": ["ReLU"]}, {"x": "as asked"}),
    ],
)
def test_what_stays_float_is_reported_and_feeds_integers(layers, settings, expected):
    model = sequential(
        K.Conv2D(3, 1, activation="relu", name="first"),
        *(layer() for layer in layers),
        K.Conv2D(3, 1, name="last"),
    )
    aware, skipped = tfmot.prepare_quantization(model, **settings)
    assert {row.layer for row in skipped} == set(expected)
    for row in skipped:
        assert expected[row.layer] in row.reason
    names = [layer.name for layer in aware.layers]
    assert "quant_first" in names and "quant_last" in names
    assert f"quantize_{max(expected)}" in names, "what the next layer is given is 8-bit"
    x = inputs_of(model, 16)
    tfmot.calibrate(aware, [x])
    spread = np.ptp(outputs(model, x))
    assert np.abs(outputs(aware, x) - outputs(model, x)).max() < 0.05 * spread


def test_a_rule_quantises_a_layer_of_ones_own():
    model = sequential(K.Conv2D(3, 1), Scale(name="x"), K.Conv2D(3, 1))
    rule = types.SimpleNamespace(weights={"gain": None}, activations=True, fixed_range=None)
    aware, skipped = tfmot.prepare_quantization(model, rules={Scale: rule})
    assert not skipped
    names = {weight.name.split("/")[-1] for weight in aware.get_layer("quant_x").weights}
    assert {"gain_min:0", "gain_max:0", "output_min:0", "output_max:0"} <= names


def test_zeros_stay_zero_when_asked_and_only_then():
    model = compiled(ZOO["conv_bn_relu"](tf_keras))
    for layer in layers_of(model):
        if layer.name.startswith(("conv", "classes")):
            kernel, *rest = layer.get_weights()
            layer.set_weights(
                [np.where(np.abs(kernel) > np.median(np.abs(kernel)), kernel, 0), *rest]
            )
    found = {}
    for keep in (True, False):
        aware, _ = tfmot.prepare_quantization(model, keep_sparsity=keep)
        trained(aware, epochs=2)
        kernels = [
            w.numpy() for w in aware.get_layer("quant_conv_2").weights if "kernel:" in w.name
        ]
        found[keep] = float(np.mean(kernels[0] == 0))
    assert found[True] == pytest.approx(0.5, abs=0.01)
    assert found[False] < 0.1, "the control"


def test_zeros_are_kept_in_depthwise_kernels_too_and_after_loading(tmp_path):
    model = sequential(
        K.DepthwiseConv2D(3, name="x"), K.Flatten(), K.Dense(4, activation="softmax")
    )
    kernel, bias = model.layers[0].get_weights()
    kernel[0] = 0
    model.layers[0].set_weights([kernel, bias])
    aware, skipped = tfmot.prepare_quantization(compiled(model), keep_sparsity=True)
    assert not skipped
    aware.save(tmp_path / "model.keras")
    with tfmot.quantize_scope():
        loaded = tf_keras.models.load_model(tmp_path / "model.keras")
    x, y = inputs_of(model, 32), labels_of(32)
    loaded.fit(x, y, verbose=0)
    weights = loaded.get_layer("quant_x").weights
    trained_kernel = next(weight.numpy() for weight in weights if "kernel:" in weight.name)
    np.testing.assert_array_equal(trained_kernel == 0, kernel == 0)
    assert (trained_kernel != kernel).any(), "the others train"


def test_a_saved_model_loads_in_a_fresh_process_predicts_the_same_and_trains_on(tmp_path):
    model = ZOO["frozen_backbone"](tf_keras)
    model.get_layer("backbone").trainable = True
    aware, _ = tfmot.prepare_quantization(compiled(model))
    x = inputs_of(model)
    tfmot.calibrate(aware, [x])
    trained(aware)
    files = [str(tmp_path / f"model{suffix}") for suffix in (".keras", ".h5")]
    for file in files:
        aware.save(file)
    np.savez(tmp_path / "data.npz", x=x, y=outputs(aware, x))
    code = f"""
        import numpy as np
        import tf_keras
        from tfedge.engines import tfmot
        data = np.load({str(tmp_path / "data.npz")!r})
        for file in {files!r}:
            with tfmot.quantize_scope():
                model = tf_keras.models.load_model(file)
            assert tfmot.is_quantize_aware(model)
            np.testing.assert_array_equal(np.asarray(model(data["x"], training=False)), data["y"])
        norm = model.get_layer("quant_bn_1").layer
        before = norm.moving_mean.numpy()
        model.fit(data["x"], np.zeros(8), verbose=0)
        assert (norm.moving_mean.numpy() == before).all()
        assert (np.asarray(model(data["x"], training=False)) != data["y"]).any()
    """
    in_fresh_process(code)


@pytest.mark.parametrize(
    ("build", "settings", "error", "match"),
    [
        (ZOO["dense"], {"keep_float": ["hiden_1"]}, SettingsError, "Did you mean 'hidden_1'"),
        (ZOO["dense"], {"keep_float": ["Dense"]}, SettingsError, "at least one layer"),
        (ZOO["dense"], {"rules": {Scale: 8}}, SettingsError, "LayerRule"),
        (
            lambda k: tfmot.prepare_quantization(ZOO["dense"](k))[0],
            {},
            UnsupportedModelError,
            "quantised once",
        ),
        (
            lambda k: sequential(K.Dense(2, dtype="mixed_float16"), shape=(3,)),
            {},
            UnsupportedModelError,
            "float16",
        ),
    ],
)
def test_quantization_refuses_with_the_rule(build, settings, error, match):
    with pytest.raises(error, match=match):
        tfmot.prepare_quantization(build(tf_keras), **settings)


# Conversion


def int8_file(model):
    """Freeze, then convert: what the file's arithmetic is checked against."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    inference = tf.function(lambda x: model(x, training=False))
    shape = [1, *model.input_shape[1:]]
    concrete = inference.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    frozen = convert_to_constants.convert_variables_to_constants_v2(concrete)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


@pytest.mark.parametrize("name", ["conv_bn_relu", "depthwise", "dense_bn", "swish_gate"])
def test_a_baked_model_becomes_an_integer_file_that_agrees(name):
    from tfedge.inspection import inspect_model

    model = compiled({"dense_bn": dense_bn, "swish_gate": swish_gate, **ZOO}[name](tf_keras))
    x = inputs_of(model, 64)
    aware, skipped = tfmot.prepare_quantization(model)
    tfmot.calibrate(aware, [x])
    data = int8_file(tfmot.bake(aware))
    report = inspect_model(data)
    assert not skipped and not report.float_operators and report.is_integer
    assert np.abs(run(data, x) - outputs(aware, x)).max() < 0.02
    assert np.abs(run(data, x[::-1]) - outputs(aware, x)).max() > 0.05, "the control"


def dense_bn(k):
    model = sequential(
        k.layers.Dense(8, name="hidden"),
        k.layers.BatchNormalization(name="bn"),
        k.layers.ReLU(),
        k.layers.Dense(4, activation="softmax"),
        shape=(6,),
    )
    draw = np.random.default_rng(0)
    model.get_layer("bn").set_weights([draw.uniform(0.5, 1.5, 8) for _ in range(4)])
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([3 * kernel, bias])
    return model


def swish_gate(k):
    tf_keras.utils.set_random_seed(1)
    image = k.Input((8, 8, 3))
    x = k.layers.Conv2D(4, 3, activation="swish")(image)
    gate = k.layers.Conv2D(4, 1, activation="sigmoid")(
        k.layers.GlobalAveragePooling2D(keepdims=True)(x)
    )
    x = k.layers.Flatten()(k.layers.Multiply()([x, gate]))
    model = k.Model(image, k.layers.Dense(4, activation="softmax")(x))
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([20 * kernel, bias])
    return model


def run(data, x):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    given, asked = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    results = []
    for sample in x:
        scale, zero = given["quantization"]
        values = np.clip(np.round(sample / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], values[None])
        interpreter.invoke()
        scale, zero = asked["quantization"]
        results.append(
            (interpreter.get_tensor(asked["index"])[0].astype(np.float32) - zero) * scale
        )
    return np.stack(results)
