import importlib
import json
import logging
import os
import resource
import subprocess
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from models import ZOO, inputs_of, labels_of, weights_of

from tfedge.errors import (
    FileWriteError,
    MissingExtraError,
    ModelError,
    SettingsError,
    TfedgeWarning,
    UnsafeModelError,
    UnsupportedModelError,
)
from tfedge.models import (
    check_finite,
    check_rebuildable,
    choose_layers,
    copy_model,
    is_functional,
    is_model,
    keras_of,
    layers_of,
    load_model,
    save_model,
    to_keras3,
)
from tfedge.models.safety import find_code, find_named

ROOT = Path(__file__).parent.parent
KERASES = {"keras": keras, "tf_keras": tf_keras}
both = pytest.mark.parametrize("k", KERASES.values(), ids=KERASES)
zoo = pytest.mark.parametrize("build", ZOO.values(), ids=ZOO)


def outputs(model, x):
    return np.asarray(model(x, training=False))


def same_weights(a, b):
    a, b = a if isinstance(a, list) else weights_of(a), b if isinstance(b, list) else weights_of(b)
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def quietly_save(model, path):
    """Save past tfedge, as a user's script would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
    return path


# ---------------------------------------------------------------------------- looking


@both
@zoo
def test_layers_of_lists_each_leaf_once_and_no_models(k, build):
    model = build(k)
    layers = layers_of(model)
    assert len({id(layer) for layer in layers}) == len(layers)
    assert not any(isinstance(layer, k.Model | k.layers.InputLayer) for layer in layers)
    counted = {id(w): int(np.prod(w.shape)) for layer in layers for w in layer.weights}
    assert sum(counted.values()) == model.count_params()


@both
def test_layers_come_in_the_order_of_the_model(k):
    names = [layer.name for layer in layers_of(ZOO["nested"](k))]
    assert names == ["conv_block", "bn_block", "relu_block", "conv_tail", "flatten", "classes"]


def test_each_keras_is_recognised_and_anything_else_is_refused(tmp_path):
    assert keras_of(ZOO["dense"](keras)) == "keras"
    assert keras_of(ZOO["dense"](tf_keras)) == "tf_keras"
    assert not is_model(tmp_path)
    for value, match in [
        ("model.keras", "load_model"),
        (tmp_path, "load_model"),
        (None, "NoneType"),
        (keras.layers.Dense(2), "Dense"),
    ]:
        with pytest.raises(ModelError, match=match):
            keras_of(value)


def subclassed(k, name="own"):
    class Own(k.Model):
        def __init__(self, units=3, **kwargs):
            super().__init__(**kwargs)
            self.units = units
            self.hidden = k.layers.Dense(units, name="hidden")
            self.classes = k.layers.Dense(2, name="classes")

        def build(self, shape):
            self.hidden.build(shape)
            self.classes.build((None, self.units))
            self.built = True

        def call(self, x):
            return self.classes(self.hidden(x))

        def get_config(self):
            return {"units": self.units, "name": self.name}

        @classmethod
        def from_config(cls, config, custom_objects=None):
            return cls(**config)

    model = Own(name=name)
    model(np.zeros((1, 4), "float32"))
    return model


def own_step(k):
    class OwnStep(k.Model):
        def train_step(self, *args):
            return super().train_step(*args)

    tensor = k.Input((4,))
    return OwnStep(tensor, k.layers.Dense(2)(tensor))


def not_built(k):
    return k.Sequential([k.layers.Dense(2)])


@both
@pytest.mark.parametrize(
    ("build", "match"),
    [(subclassed, "subclassed"), (own_step, "train_step"), (not_built, "not built")],
)
def test_models_that_cannot_be_rebuilt_are_refused_with_the_reason(k, build, match):
    with pytest.raises(UnsupportedModelError, match=match):
        check_rebuildable(build(k), "quantize")


@both
@zoo
def test_every_model_of_the_zoo_can_be_rebuilt(k, build):
    model = build(k)
    assert is_functional(model)
    check_rebuildable(model, "quantize")


def test_plain_subclass_of_functional_can_be_rebuilt():
    class Renamed(keras.Model):
        pass

    tensor = keras.Input((4,))
    check_rebuildable(Renamed(tensor, keras.layers.Dense(2)(tensor)), "quantize")


@both
def test_layers_are_chosen_by_name_in_the_order_of_the_model(k):
    model = ZOO["nested"](k)
    assert len(choose_layers(model, None)) == 6
    names = [layer.name for layer in choose_layers(model, ["classes", "conv_tail"])]
    assert names == ["conv_tail", "classes"]
    assert [layer.name for layer in choose_layers(model, ["block", "conv_block"])] == [
        "conv_block",
        "bn_block",
        "relu_block",
    ]
    assert choose_layers(model, []) == []


@both
@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["conv_tial"], r"Did you mean 'conv_tail'\?"),
        (["zebra"], "has no layer 'zebra'. Its layers: conv_block"),
        ("conv_tail", r"Write \['conv_tail'\]"),
    ],
)
def test_layer_names_that_do_not_exist_are_refused(k, names, match):
    with pytest.raises(SettingsError, match=match):
        choose_layers(ZOO["nested"](k), names)


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_and_the_layer_named(k, bad):
    model = ZOO["nested"](k)
    check_finite(model)
    layer = choose_layers(model, ["conv_tail"])[0]
    kernel, bias = layer.get_weights()
    bias[1] = bad
    layer.set_weights([kernel, bias])
    with pytest.raises(ModelError, match=r"`conv_tail` of `nested` holds 1 NaN .* of 8 in `.*bias"):
        check_finite(model)


# ---------------------------------------------------------------------------- load and save


@both
@zoo
def test_saved_models_come_back_with_the_same_weights_and_outputs(k, build, tmp_path):
    model = build(k)
    path = save_model(model, tmp_path / "new" / "model.keras")
    loaded = load_model(path)
    assert keras_of(loaded) == keras_of(model)
    assert same_weights(model, loaded)
    x = inputs_of(model)
    np.testing.assert_array_equal(outputs(model, x), outputs(loaded, x))
    assert [p.name for p in path.parent.iterdir()] == ["model.keras"]


@both
def test_h5_files_of_either_keras_load_and_the_log_says_with_which(k, tmp_path, caplog):
    model = ZOO["conv_bn_relu"](k)
    path = save_model(model, tmp_path / "model.h5")
    with caplog.at_level(logging.INFO, "tfedge"):
        loaded = load_model(path)
    assert f"loaded with {keras_of(loaded)} " in caplog.text
    x = inputs_of(model)
    np.testing.assert_allclose(outputs(model, x), outputs(loaded, x), atol=1e-6)


def test_h5_that_keras_3_cannot_read_is_loaded_with_tf_keras(tmp_path, caplog):
    model = ZOO["depthwise"](tf_keras)
    path = save_model(model, tmp_path / "model.h5")
    with pytest.raises((TypeError, ValueError)):  # the control
        keras.models.load_model(path)
    with caplog.at_level(logging.INFO, "tfedge"):
        loaded = load_model(path)
    assert keras_of(loaded) == "tf_keras"
    assert "loaded with tf_keras 2." in caplog.text
    assert same_weights(model, loaded)


@pytest.mark.parametrize("k", KERASES.values(), ids=KERASES)
def test_keras_file_without_metadata_is_told_apart_by_its_modules(k, tmp_path):
    whole = save_model(ZOO["conv_bn_relu"](k), tmp_path / "whole.keras")
    bare = tmp_path / "bare.keras"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(bare, "w") as target:
        for name in ("config.json", "model.weights.h5"):
            target.writestr(name, source.read(name))
    try:
        assert keras_of(load_model(bare)) == k.__name__
    except ModelError as error:  # a Keras may insist on the metadata; then it was the right one
        assert f"({k.__name__}:" in str(error)  # noqa: PT017


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_compile_state_and_optimizer_come_back(k, suffix, tmp_path):
    model = ZOO["dense"](k)
    model.compile(
        k.optimizers.SGD(0.05, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(inputs_of(model), labels_of(), verbose=0)
    loaded = load_model(save_model(model, tmp_path / f"model{suffix}"))
    if keras_of(loaded) != keras_of(model):
        assert not loaded.compiled
        return
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.05)
    assert loaded.evaluate(inputs_of(model), labels_of(), verbose=0) == pytest.approx(
        model.evaluate(inputs_of(model), labels_of(), verbose=0), abs=1e-5
    )


def test_an_unreadable_loss_leaves_the_model_uncompiled_with_a_warning(tmp_path):
    def own_loss(y, p):
        return keras.ops.mean((y - p) ** 2)

    model = ZOO["dense"](keras)
    model.compile("adam", own_loss)
    path = save_model(model, tmp_path / "model.keras")
    with pytest.warns(TfedgeWarning, match="without its optimizer, loss and metrics"):
        loaded = load_model(path)
    assert same_weights(model, loaded)
    assert not loaded.compiled
    assert load_model(path, custom_objects={"own_loss": own_loss}).compiled


@both
def test_saved_models_need_unsafe(k, tmp_path):
    model = ZOO["conv_bn_relu"](k)
    folder = tmp_path / "saved"
    if k is keras:
        model.export(folder, verbose=False)
    else:
        quietly_save(model, folder)
    with pytest.raises(UnsafeModelError, match="unsafe=True"):
        load_model(folder)
    if k is keras:
        with pytest.raises(ModelError, match="an export for serving"):
            load_model(folder, unsafe=True)
    else:
        loaded = load_model(folder, unsafe=True)
        assert keras_of(loaded) == "tf_keras"
        assert same_weights(model, loaded)


@pytest.mark.parametrize("name", ["model", "model.tflite", "model.pb"])
def test_saving_under_another_suffix_is_refused(name, tmp_path):
    with pytest.raises(SettingsError, match=r"Write `.*model\.keras`"):
        save_model(ZOO["dense"](keras), tmp_path / name)
    assert not list(tmp_path.iterdir())


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_full_disk_leaves_what_stood_there(k, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"before")
    model = k.Sequential([k.layers.Input((256,)), k.layers.Dense(256)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(FileWriteError, match="Nothing was written"):
            save_model(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# ---------------------------------------------------------------------------- damaged files


def test_files_that_are_no_models_are_refused_in_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "random.keras").write_bytes(np.random.default_rng(0).bytes(4096))
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "done.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    save_model(ZOO["dense"](keras), tmp_path / "a.keras").rename(tmp_path / "a.zip")
    for name, match in [
        ("absent.keras", "a file that exists"),
        ("folder", "no `saved_model.pb`"),
        ("random.keras", "content is none of them"),
        ("empty.h5", "content is none of them"),
        ("done.tflite", "converted already"),
        ("other.keras", "holds readme.txt"),
        ("a.zip", "Rename it to `a.keras`"),
    ]:
        with pytest.raises(ModelError, match=match) as caught:
            load_model(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_truncated_and_mutated_files_raise_model_errors_only(suffix, tmp_path):
    whole = save_model(ZOO["dense"](keras), tmp_path / f"whole{suffix}").read_bytes()
    draw = np.random.default_rng(0)
    path = tmp_path / f"broken{suffix}"
    refused = 0
    for turn in range(24):
        data = bytearray(whole)
        if turn < 8:
            data = data[: len(data) * (turn + 1) // 9]
        else:
            for place in draw.integers(8, min(len(data), 6000), 12):
                data[place] = draw.integers(256)
        path.write_bytes(data)
        try:
            load_model(path)
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refused >= 8


@both
def test_files_of_weights_only_are_refused_with_the_next_move(k, tmp_path):
    model = ZOO["dense"](k)
    for name in ("model.weights.h5", "weights.h5") if k is tf_keras else ("model.weights.h5",):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model.save_weights(tmp_path / name)
        with pytest.raises(ModelError, match=r"weights only.*load_weights"):
            load_model(tmp_path / name)


def test_h5_that_links_to_another_file_is_refused(tmp_path):
    path = save_model(ZOO["dense"](keras), tmp_path / "model.h5")
    with h5py.File(path, "a") as file:
        file["model_weights"]["more"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(UnsafeModelError, match="model_weights/more"):
        load_model(path)


# ---------------------------------------------------------------------------- files with code


def with_payload(k, marker, where):
    """A model that makes the file `marker` when its code runs."""
    path = str(marker)
    run = lambda x: (open(path, "w").close(), x)[1]  # noqa: E731, PTH123, SIM115
    tensor = k.Input((3, 4))
    lam = k.layers.Lambda(run, output_shape=(4,) if where == "wrapped" else (3, 4), name="lam")
    if where == "wrapped":
        x = k.layers.TimeDistributed(lam)(tensor)
    elif where == "nested":
        inner = k.Input((3, 4))
        x = k.Model(inner, lam(inner), name="inner")(tensor)
    elif where == "activation":
        x = k.layers.Dense(4, activation=run)(tensor)
    else:
        x = lam(tensor)
    return k.Model(tensor, k.layers.Dense(2, name="classes")(x))


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("where", ["plain", "nested", "wrapped", "activation"])
def test_no_code_of_a_model_file_runs_unless_asked(k, suffix, where, tmp_path):
    marker = tmp_path / "code-ran"
    path = tmp_path / f"model{suffix}"
    model = with_payload(k, marker, where)
    quietly_save(model, path)
    marker.unlink(missing_ok=True)
    outputs(model, inputs_of(model))
    assert marker.exists()  # the payload is live
    marker.unlink()
    with pytest.raises(UnsafeModelError, match=r"unsafe=True"):
        load_model(path)
    assert not marker.exists()


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_unsafe_loads_a_lambda(k, suffix, tmp_path):
    marker = tmp_path / "code-ran"
    path = quietly_save(with_payload(k, marker, "plain"), tmp_path / f"model{suffix}")
    marker.unlink(missing_ok=True)
    model = load_model(path, unsafe=True)
    outputs(model, inputs_of(model))
    assert marker.exists()
    assert layers_of(model)[0].name == "lam"


def test_tf_keras_itself_would_have_run_the_code(tmp_path):
    """The control: this is why the configuration is read first."""
    marker = tmp_path / "code-ran"
    path = quietly_save(with_payload(tf_keras, marker, "plain"), tmp_path / "model.h5")
    marker.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf_keras.models.load_model(path, safe_mode=True)
    assert marker.exists()


def test_a_lambda_loss_is_refused(tmp_path):
    model = ZOO["dense"](keras)
    model.compile("adam", lambda y, p: keras.ops.mean(y - p))
    path = quietly_save(model, tmp_path / "model.keras")
    with pytest.raises(UnsafeModelError, match="a Python lambda"):
        load_model(path)


def test_a_tensorflow_operation_that_touches_files_is_refused(tmp_path):
    tensor = tf_keras.Input((4,))
    path = quietly_save(tf_keras.Model(tensor, tf.nn.relu(tensor) * 2), tmp_path / "model.h5")
    assert keras_of(load_model(path)) == "tf_keras"
    with h5py.File(path, "a") as file:
        config = file.attrs["model_config"]
        file.attrs["model_config"] = config.replace('"nn.relu"', '"io.read_file"')
    with pytest.raises(UnsafeModelError, match="`io.read_file`"):
        load_model(path)


def test_a_module_named_by_a_file_is_not_imported(tmp_path, monkeypatch):
    """`tf_keras` imports the module that a configuration names; tfedge does not let it."""
    marker = tmp_path / "code-ran"
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    source = save_model(ZOO["dense"](tf_keras), tmp_path / "model.keras")
    path = tmp_path / "evil.keras"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                config["config"]["layers"][1]["module"] = "evil_module"
                config["config"]["layers"][1]["class_name"] = "Gate"
                config["config"]["layers"][1]["registered_name"] = "Gate"
                data = json.dumps(config).encode()
            new.writestr(name, data)
    with pytest.raises(ModelError, match="--import evil_module"):
        load_model(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"class_name": "Lambda", "config": {"name": "a"}}, "`Lambda` layer"),
        ({"class_name": "pkg>Lambda", "config": {}}, "`Lambda` layer"),
        ({"module": "keras.src", "class_name": "lambda_layer.Lambda", "config": {}}, "Lambda"),
        ({"a": [{"b": ({"class_name": "__lambda__", "config": {}},)}]}, "Python lambda"),
        ({"class_name": "X", "config": {"function_type": "lambda"}}, "Python lambda"),
        ({"class_name": "X", "config": {"f": "4wEAAAAAAAAA" + "A" * 80}}, "marshalled"),
        ({"class_name": "TensorFlowOpLayer", "config": {}}, "raw TensorFlow"),
        ({"class_name": "TFOpLambda", "config": {"function": "io.write_file"}}, "io.write_file"),
        ({"class_name": "TFOpLambda", "config": {"function": "compat.v1.py_func"}}, "py_func"),
        ({"class_name": "TFOpLambda", "config": {"function": "keras.utils.get_file"}}, "get_file"),
        ({"class_name": "ClassMethod", "config": {"cls_symbol": "io.gfile.GFile"}}, "GFile"),
        ({"class_name": "InstanceProperty", "config": {"attr_name": "__class__"}}, "private"),
        ({"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}, "another file"),
        ({"class_name": "function", "module": "builtins", "config": "eval"}, "function `eval`"),
        ({"class_name": "function", "module": "keras.src.x", "config": "os.system"}, "os.system"),
        ({"class_name": "Popen", "module": "builtins", "config": {}}, "Popen"),
    ],
)
def test_code_is_found_wherever_a_file_hides_it(entry, found):
    assert found in (find_code({"class_name": "Functional", "config": {"layers": [entry]}}) or "")


@pytest.mark.parametrize(
    "entry",
    [
        {"class_name": "Dense", "module": "keras.layers", "config": {"name": "lambda"}},
        {"class_name": "function", "module": "builtins", "config": "relu"},
        {"class_name": "__slice__", "module": "builtins", "config": {"start": 0}},
        {"class_name": "__numpy__", "module": "numpy", "config": {"value": [1]}},
        {"class_name": "TFOpLambda", "config": {"function": "math.add"}},
        {"class_name": "TFOpLambda", "config": {"function": "__operators__.getitem"}},
        {"class_name": "TFOpLambda", "config": {"function": "compat.v1.gather"}},
        {"class_name": "TFOpLambda", "config": {"function": "reshape"}},
        {"class_name": "StringLookup", "config": {"vocabulary": ["a", "b"]}},
        {"class_name": "Dense", "config": {"name": "4wEA"}},
    ],
)
def test_honest_configurations_are_let_through(entry):
    assert find_code({"layers": [entry]}) is None
    assert find_named({"layers": [entry]}) == []


# ---------------------------------------------------------------------------- classes of one's own

OWN_LAYERS = """
    import {keras} as k

    class Gate(k.layers.Layer):
        def __init__(self, power=1.0, **kwargs):
            super().__init__(**kwargs)
            self.power = power
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        def call(self, x):
            return x * self.scale ** self.power
        def get_config(self):
            return {{**super().get_config(), "power": self.power}}
"""


@pytest.fixture
def own_layers(tmp_path, monkeypatch):
    """Makes a module with a layer class in it, for one Keras; forgets it afterwards."""
    made = []

    def make(k):
        name = f"own_layers_of_{k.__name__}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(OWN_LAYERS.format(keras=k.__name__)))
        made.append(name)
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for name in made:
        sys.modules.pop(name, None)


def gated(k, module):
    tensor = k.Input((4,))
    return k.Model(tensor, k.layers.Dense(2)(module.Gate(2.0, name="gate")(tensor)))


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_an_unknown_class_is_named_with_the_flag_that_helps(k, suffix, own_layers, tmp_path):
    module = own_layers(k)
    model = gated(k, module)
    path = save_model(model, tmp_path / f"model{suffix}")
    with pytest.raises(ModelError, match=r"uses `Gate`.*--import \w+") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    for loaded in (
        load_model(path, imports=[module.__name__]),
        load_model(path, custom_objects={"Gate": module.Gate}),
    ):
        assert keras_of(loaded) == keras_of(model)
        assert same_weights(model, loaded)


def test_imports_that_fail_say_so(tmp_path, monkeypatch):
    path = save_model(ZOO["dense"](keras), tmp_path / "model.keras")
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    for modules, match in [
        (["no_such_module"], "No module named"),
        (["broken_module"], "ZeroDivisionError"),
    ]:
        with pytest.raises(ModelError, match=match):
            load_model(path, imports=modules)
    with pytest.raises(SettingsError, match=r"Write \['my_pkg'\]"):
        load_model(path, imports="my_pkg")


def test_a_missing_package_says_which_install(tmp_path, monkeypatch):
    path = save_model(ZOO["dense"](keras), tmp_path / "model.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r'pip install "tfedge\[train\]"'):
        load_model(path)


@pytest.mark.slow
def test_a_quantize_aware_tf_keras_model_loads_in_a_fresh_process(tmp_path):
    from tfedge.engines import tfmot

    model = ZOO["conv_bn_relu"](tf_keras)
    wrapped, _ = tfmot.prepare_quantization(model, keep_float=(), keep_sparsity=False)
    np.save(tmp_path / "x.npy", inputs_of(model))
    for suffix in (".keras", ".h5"):
        save_model(wrapped, tmp_path / f"model{suffix}")
    script = """
        import numpy as np
        from tfedge.models import load_model
        x = np.load("x.npy")
        np.save("y.npy", [load_model(f"model{s}")(x, training=False) for s in (".keras", ".h5")])
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    for y in np.load(tmp_path / "y.npy"):
        np.testing.assert_array_equal(y, outputs(wrapped, inputs_of(model)))


def test_a_class_of_another_tfedge_is_a_clear_error(tmp_path):
    source = save_model(ZOO["dense"](keras), tmp_path / "model.keras")
    path = tmp_path / "newer.keras"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"keras.layers"', b'"tfedge.of_tomorrow"'))
    with pytest.raises(ModelError, match="this version of tfedge lacks"):
        load_model(path)


# ---------------------------------------------------------------------------- copies


@both
@zoo
def test_a_copy_is_equal_and_shares_nothing(k, build):
    model = build(k)
    before, x = weights_of(model), inputs_of(model)
    copy = copy_model(model)
    assert type(copy) is type(model)
    assert copy.name == model.name
    assert [layer.name for layer in layers_of(copy)] == [layer.name for layer in layers_of(model)]
    assert not {id(layer) for layer in layers_of(copy)} & {id(layer) for layer in layers_of(model)}
    assert [layer.trainable for layer in layers_of(copy)] == [
        layer.trainable for layer in layers_of(model)
    ]
    assert copy.get_config() == model.get_config()  # the arguments of every call too
    assert same_weights(before, copy)
    np.testing.assert_array_equal(outputs(model, x), outputs(copy, x))
    copy.set_weights([value + 1 for value in before])
    assert same_weights(model, before)


@both
@zoo
def test_training_a_copy_leaves_the_model_bit_equal(k, build):
    model = build(k)
    before = weights_of(model)
    copy = copy_model(model)
    copy.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    copy.train_on_batch(inputs_of(model), labels_of())
    assert same_weights(model, before)
    assert not same_weights(copy, before)


@both
def test_a_backbone_called_with_training_false_stays_frozen_in_a_copy(k):
    copy = copy_model(ZOO["frozen_backbone"](k))
    backbone = copy.get_layer("backbone")
    assert not backbone.trainable
    before = weights_of(backbone)
    copy.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    copy.train_on_batch(inputs_of(copy), labels_of())
    assert same_weights(backbone, before)  # its batch statistics too


@both
def test_flags_that_contradict_the_outer_model_are_kept(k):
    model = ZOO["nested"](k)
    model.get_layer("block").trainable = False
    choose_layers(model, ["bn_block"])[0].trainable = True
    choose_layers(model, ["conv_tail"])[0].trainable = False
    copy = copy_model(model)
    flags = [layer.trainable for layer in layers_of(copy)]
    assert flags == [layer.trainable for layer in layers_of(model)]
    assert len(copy.trainable_weights) == len(model.trainable_weights)
    assert same_weights(model, copy)


@both
def test_a_shared_layer_is_shared_in_the_copy(k):
    copy = copy_model(ZOO["shared_layer"](k))
    assert len(copy.weights) == 4
    left, right = inputs_of(copy)
    np.testing.assert_raises(
        AssertionError,
        np.testing.assert_array_equal,
        outputs(copy, [left, right]),
        outputs(copy, [right, left]),
    )


def compile_fully(k, model):
    def own_metric(y, p):
        return k.backend.mean(p) if k is tf_keras else keras.ops.mean(p)

    class OwnLoss(k.losses.Loss):
        def call(self, y, p):
            mean = k.backend.mean if k is tf_keras else keras.ops.mean
            return mean(p, axis=-1)

    model.compile(
        optimizer=k.optimizers.SGD(
            k.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5), momentum=0.7, nesterov=True
        ),
        loss=OwnLoss(),
        metrics=[own_metric],
        weighted_metrics=[k.metrics.SparseCategoricalAccuracy(name="sparse")],
        steps_per_execution=2,
        jit_compile=False,
    )


@both
def test_a_compiled_model_comes_back_compiled_with_a_fresh_optimizer(k):
    model = ZOO["dense"](k)
    compile_fully(k, model)
    x, y = inputs_of(model), labels_of()
    model.fit(x, y, epochs=2, verbose=0)
    copy = copy_model(model)
    assert copy.optimizer is not model.optimizer
    assert copy.optimizer.get_config() == model.optimizer.get_config()
    assert int(copy.optimizer.iterations) == 0 < int(model.optimizer.iterations)
    assert copy.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(
        model.evaluate(x, y, verbose=0, return_dict=True), abs=1e-6
    )
    before = weights_of(model)
    copy.fit(x, y, verbose=0)
    assert same_weights(model, before)


@both
def test_a_compiled_model_that_never_ran_keeps_its_losses_and_metrics(k):
    model = ZOO["dense"](k)
    compile_fully(k, model)
    copy = copy_model(model)
    figures = copy.evaluate(inputs_of(model), labels_of(), verbose=0, return_dict=True)
    assert set(figures) == {"loss", "own_metric", "sparse"}


@both
def test_losses_and_weights_by_output_are_kept(k):
    tensor = k.Input((4,))
    a, b = (k.layers.Dense(2, name=name)(tensor) for name in "ab")
    model = k.Model(tensor, {"a": a, "b": b} if k is keras else [a, b])
    model.compile("adam", {"a": "mse", "b": "mae"}, loss_weights={"a": 1.0, "b": 3.0})
    x, y = np.ones((8, 4), "float32"), {n: np.zeros((8, 2), "float32") for n in "ab"}
    copy = copy_model(model)
    assert copy.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0))


@both
def test_layers_of_ones_own_are_copied_without_registration(k):
    power = 2.0

    def own_activation(x):
        return x * power

    class Gate(k.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

        def call(self, x):
            return x * self.scale

        def compute_output_shape(self, shape):
            return shape

    tensor = k.Input((3, 4))
    x = k.layers.TimeDistributed(Gate(name="gate"))(tensor)
    x = Gate(name="second")(x)
    x = k.layers.Dense(4, activation=own_activation, name="own_activation")(x)
    x = k.layers.Lambda(lambda t: np.float32(power) * t, name="lam")(x)
    model = k.Model(tensor, x)
    copy = copy_model(model)
    batch = inputs_of(model)
    np.testing.assert_array_equal(outputs(model, batch), outputs(copy, batch))


@both
def test_adapted_normalisation_keeps_its_statistics(k):
    layer = k.layers.Normalization(name="norm")
    layer.adapt(np.random.default_rng(0).normal(3.0, 2.0, (50, 4)).astype("float32"))
    model = k.Sequential([k.layers.Input((4,)), layer, k.layers.Dense(2)])
    x = inputs_of(model)
    np.testing.assert_array_equal(outputs(model, x), outputs(copy_model(model), x))


@both
def test_subclassed_models_are_copied_through_a_file(k):
    model = subclassed(k)
    copy = copy_model(model)
    assert type(copy) is type(model)
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(outputs(model, x), outputs(copy, x))
    copy.set_weights([value + 1 for value in weights_of(copy)])
    assert not same_weights(model, copy)


@both
def test_a_copy_of_own_train_step_keeps_the_class(k):
    model = own_step(k)
    assert type(copy_model(model)) is type(model)


@both
def test_what_cannot_be_copied_is_refused_with_the_reason(k):
    class Hidden(k.layers.Layer):
        def __init__(self, values):
            super().__init__(name="hidden")
            self.values = tuple(values)

        def call(self, x):
            return x

        def get_config(self):
            return {"name": "hidden"}

    tensor = k.Input((4,))
    with pytest.raises(UnsupportedModelError, match="get_config"):
        copy_model(k.Model(tensor, Hidden([1])(tensor)))
    with pytest.raises(ModelError, match="NoneType"):
        copy_model(None)


@both
def test_a_model_that_is_not_built_is_copied_unbuilt(k):
    copy = copy_model(not_built(k))
    assert not copy.built


# ---------------------------------------------------------------------------- to Keras 3


@zoo
def test_a_tf_keras_model_computes_the_same_in_keras_3(build):
    model = build(tf_keras)
    rebuilt = to_keras3(model)
    assert keras_of(rebuilt) == "keras"
    assert same_weights(model, rebuilt)
    assert [layer.name for layer in layers_of(rebuilt)] == [
        layer.name for layer in layers_of(model)
    ]
    assert [layer.trainable for layer in layers_of(rebuilt)] == [
        layer.trainable for layer in layers_of(model)
    ]
    x = inputs_of(model)
    np.testing.assert_allclose(outputs(model, x), outputs(rebuilt, x), rtol=1e-5, atol=1e-6)


def test_a_wide_range_of_layers_goes_over_to_keras_3():
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Input((12, 12, 3)),
            layers.Rescaling(1 / 255, offset=0.5),
            layers.ZeroPadding2D(1),
            layers.SeparableConv2D(4, 3, activation="swish"),
            layers.LeakyReLU(0.2),
            layers.Conv2DTranspose(4, 2),
            layers.PReLU(),
            layers.UpSampling2D(),
            layers.AveragePooling2D(),
            layers.LayerNormalization(),
            layers.SpatialDropout2D(0.1),
            layers.Reshape((-1, 4)),
            layers.LSTM(4, return_sequences=True),
            layers.Bidirectional(layers.GRU(3, return_sequences=True)),
            layers.TimeDistributed(layers.Dense(2, kernel_regularizer="l2")),
            layers.Conv1D(3, 2, activation="gelu"),
            layers.Flatten(),
            layers.Softmax(),
        ]
    )
    assert same_weights(model, to_keras3(model))


def test_a_keras_3_model_is_returned_as_it_is():
    model = ZOO["dense"](keras)
    assert to_keras3(model) is model


def test_what_keras_3_lacks_or_computes_otherwise_is_refused():
    tensor = tf_keras.Input((4,))
    with pytest.raises(ModelError, match=r"TensorFlow function .* `tf.math.multiply"):
        to_keras3(tf_keras.Model(tensor, tensor * 2.0))

    @tf_keras.saving.register_keras_serializable("test_models")
    class Odd(tf_keras.layers.Layer):
        def call(self, x):
            return x + 1

    with pytest.raises(ModelError, match="Keras 3 cannot rebuild"):
        to_keras3(tf_keras.Model(tensor, Odd()(tensor)))


def test_different_outputs_are_noticed(monkeypatch):
    keras3 = importlib.import_module("tfedge.models.keras3")
    whole = keras3._rebuild

    def slightly_off(module, model):
        rebuilt = whole(module, model)
        rebuilt.set_weights([value * 1.001 for value in rebuilt.get_weights()])
        return rebuilt

    monkeypatch.setattr(keras3, "_rebuild", slightly_off)
    with pytest.raises(ModelError, match="output `classes` differs by"):
        to_keras3(ZOO["conv_bn_relu"](tf_keras))


# ---------------------------------------------------------------------------- imports


def test_importing_the_module_loads_no_keras():
    script = (
        "import sys, tfedge.models; print({'keras', 'tf_keras', 'tensorflow'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
