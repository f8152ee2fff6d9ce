"""An open model runs on the delegate that was asked for, or an error says why not."""

from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tfedge.errors import DataError, DelegateError, FileFormatError, SettingsError
from tfedge.runtime import TensorInfo, dequantize, open_model, quantize, runtimes
from tfedge.runtime.tensors import to_stored


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).random((5, 8, 8, 3), np.float32)


@pytest.fixture(scope="module")
def two_inputs(build_file) -> bytes:
    """`y = a - b` on two inputs of batch 4, called `left` and `right` in the signature."""

    def sign(model):
        pairs = {"inputs": {"left": 0, "right": 1}, "outputs": {"difference": 2}}
        maps = {
            side: [schema.TensorMapT(name=n, tensorIndex=i) for n, i in names.items()]
            for side, names in pairs.items()
        }
        model.signatureDefs = [schema.SignatureDefT(signatureKey="serving_default", **maps)]

    return build_file(
        [{"name": name, "shape": (4, 3)} for name in ("a:0", "b:0", "y:0")],
        [("SUB", (0, 1), (2,), schema.SubOptionsT())],
        inputs=(0, 1),
        edit=sign,
    )


def one_operator(build_file, kind: str, *, dtype: str = "float32") -> bytes:
    rows = [{"name": name, "shape": (1, 3), "dtype": dtype} for name in "xy"]
    return build_file(rows, [(kind, (0,), (1,))])


def test_quantize_rounds_half_up_and_clips():
    values = np.array([0.25, 0.75, 1.25, -0.25, 1e9, -1e9])
    assert quantize(values, 0.5, 0, "int8").tolist() == [1, 2, 3, 0, 127, -128]
    assert quantize(values, 0.5, 128, "uint8").tolist() == [129, 130, 131, 128, 255, 0]
    assert quantize(np.float32([np.inf]), 0.5, 0, "int16").tolist() == [32767]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_dequantize_undoes_quantize_within_half_a_step(dtype):
    values = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    scale, zero_point = 2 / 250, {"int8": -2, "uint8": 126, "int16": 0}[dtype]
    back = dequantize(quantize(values, scale, zero_point, dtype), scale, zero_point)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, values, atol=scale / 2 + 1e-6)


def test_a_float_file_predicts_what_the_model_does(float_file, small_function, images):
    import tensorflow as tf

    with open_model(float_file) as model:
        predicted = model.predict(images)
    for image, row in zip(images, predicted, strict=True):
        expected = np.asarray(small_function(tf.constant(image[None]))[0])[0]
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_predict_is_quantize_run_dequantize(int8_file, images):
    with open_model(int8_file) as model:
        (info,), (result,) = model.inputs, model.outputs
        predicted = model.predict(images)
        stored = quantize(images[2:3], info.scale, info.zero_point, info.dtype)
        (raw,) = model.run(stored)
    assert (raw.dtype, predicted.dtype, predicted.shape) == (np.int8, np.float32, (5, 10))
    expected = dequantize(raw, result.scale, result.zero_point)
    np.testing.assert_array_equal(predicted[2:3], expected)


def test_an_int8_file_is_near_the_float_file_and_permuted_samples_are_not(
    int8_file, float_file, images
):
    with open_model(int8_file) as small, open_model(float_file) as large:
        got, expected = small.predict(images), large.predict(images)
    permuted = np.roll(expected, 1, axis=0)
    assert np.abs(got - expected).max() < 0.05 < np.abs(got - permuted).max()


def test_the_delegates_agree(int8_file, float_file, images):
    for data, tolerance in ((float_file, 1e-5), (int8_file, 1 / 256)):
        with open_model(data) as fast, open_model(data, delegate="none") as plain:
            np.testing.assert_allclose(fast.predict(images), plain.predict(images), atol=tolerance)


def test_an_open_model_says_what_runs_it(float_file):
    with open_model(float_file, threads=2) as model:
        assert (model.requested, model.actual, model.adapter) == ("xnnpack", "xnnpack", None)
        assert (model.nodes_delegated, model.nodes_total, model.threads) == (6, 6, 2)
        assert model.runtime.startswith("ai-edge-litert 2.")
        assert model.inputs[0].signature_name == "image"
    with open_model(float_file, delegate="none") as model:
        assert (model.actual, model.nodes_delegated, model.nodes_total) == ("none", 0, 6)


def test_operators_that_xnnpack_leaves_are_not_counted(int8_file):
    with open_model(int8_file) as model:
        assert 0 < model.nodes_delegated < model.nodes_total  # int8 SOFTMAX stays on LiteRT


def test_nothing_is_printed_on_opening(float_file, capfd):
    open_model(float_file).close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"delegate": "xnnpak"}, SettingsError, "Received: 'xnnpak'. Did you mean 'xnnpack'"),
        ({"delegate": "gpu", "threads": 2}, SettingsError, "Received: threads=2 for the GPU"),
        ({"delegate": "gpu", "precision": "fp8"}, SettingsError, "Received: 'fp8'"),
        ({"precision": "fp16"}, SettingsError, "settings of `delegate='gpu'`.*precision='fp16'"),
        ({"allow_software": True}, SettingsError, "allow_software=True for 'xnnpack'"),
        ({"delegate": "edgetpu"}, DelegateError, "runs files that were compiled for it"),
        ({"threads": 0}, SettingsError, "`threads` is a whole number of at least 1. Received: 0"),
        ({"threads": 1.5}, SettingsError, "Received: 1.5"),
        ({"threads": True}, SettingsError, "Received: True"),
        (
            {"keep_tensors": True, "delegate": "xnnpack"},
            SettingsError,
            "needs `delegate='none'`",
        ),
    ],
)
def test_wrong_settings_are_named(float_file, settings, error, match):
    open_model(float_file, delegate="none", threads=1, keep_tensors=True).close()
    with pytest.raises(error, match=match):
        open_model(float_file, **settings)


def test_a_model_that_xnnpack_does_not_take_is_an_error(build_file):
    data = one_operator(build_file, "ZEROS_LIKE")
    with pytest.raises(DelegateError, match=r"none of the operators .*ZEROS_LIKE.*'none'"):
        open_model(data)
    with open_model(data, delegate="none") as model:
        assert model.predict(np.ones((2, 3))).tolist() == [[0] * 3] * 2


def test_a_model_that_the_runtime_refuses_is_an_error(build_file):
    data = one_operator(build_file, "SIN", dtype="int32")
    with pytest.raises(DelegateError, match="ai-edge-litert .* refused the model: .*SIN.*xnnpack"):
        open_model(data, delegate="none")


def test_an_unsound_file_is_never_opened(float_file, tmp_path):
    with pytest.raises(FileFormatError):
        open_model(float_file[:3000])
    with pytest.raises(FileFormatError, match="no such file"):
        open_model(tmp_path / "nowhere.tflite")


def test_a_file_for_the_edge_tpu_is_refused_with_the_next_move(shared_file):
    with pytest.raises(DelegateError, match="for the Edge TPU, which 'none' is not.*'edgetpu'"):
        open_model(shared_file("mobilenet_v1_0.25_128_quant_edgetpu.tflite"), delegate="none")


@pytest.mark.parametrize("count", [1, 4, 6])
def test_any_number_of_samples_runs_in_the_batch_of_the_file(two_inputs, count):
    a, b = np.random.default_rng(1).random((2, count, 3), np.float32)
    with open_model(two_inputs) as model:
        np.testing.assert_array_equal(model.predict([a, b]), a - b)
        np.testing.assert_array_equal(model.predict({"right": b, "left": a}), a - b)
        np.testing.assert_array_equal(model.predict({"b:0": b, "a:0": a}), a - b)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (np.zeros((4, 3)), "2 inputs: .'left', 'right'.. Received 1 arrays"),
        ({"left": np.zeros((4, 3))}, "Input 'right' is missing"),
        ({"left": np.zeros((4, 3)), "rigth": np.zeros((4, 3))}, "Did you mean 'right'"),
        ([np.zeros((4, 3)), np.zeros((2, 3))], "same number of samples"),
        ([np.zeros((4, 2)), np.zeros((4, 3))], r"shape \(samples, 3\). Received: \(4, 2\)"),
        ([np.zeros(3), np.zeros(3)], r"Add the batch axis: `x\[None\]`"),
        ([np.zeros((0, 3)), np.zeros((0, 3))], "at least one"),
    ],
)
def test_inputs_that_do_not_fit_are_named(two_inputs, inputs, match):
    with open_model(two_inputs) as model, pytest.raises(DataError, match=match):
        model.predict(inputs)


def test_run_takes_the_tensors_own_types_only(int8_file, images):
    with open_model(int8_file) as model:
        with pytest.raises(DataError, match="as int8 of shape .* Received: float32"):
            model.run(images[:1])
        with pytest.raises(DataError, match=r"of shape \(2, 8, 8, 3\)"):
            model.run(np.zeros((2, 8, 8, 3), np.int8))


def test_not_a_number_is_refused_where_it_cannot_be_stored(int8_file, images):
    with open_model(int8_file) as model, pytest.raises(DataError, match="NaN"):
        model.predict(np.where(images > 0.5, np.nan, images))


def test_integer_outputs_without_a_scale_stay_integers(build_file):
    data = build_file(
        [
            {"name": "x", "shape": (1, 4)},
            {"name": "axis", "shape": (), "dtype": "int32", "data": np.int32(1)},
            {"name": "y", "shape": (1,), "dtype": "int64"},
        ],
        [("ARG_MAX", (0, 1), (2,), schema.ArgMaxOptionsT(outputType=schema.TensorType.INT64))],
    )
    with open_model(data, delegate="none") as model:
        classes = model.predict(np.eye(4)[[2, 0, 3]])
    assert (classes.tolist(), classes.dtype) == ([2, 0, 3], np.int64)


def test_kept_tensors_are_those_of_the_last_run(float_file, images):
    with open_model(float_file, keep_tensors=True) as model:
        assert model.actual == "none"
        predicted = model.predict(images[:1])
        last = model.outputs[0].index
        np.testing.assert_array_equal(model.tensor(last), predicted)
        shapes = {info.name: model.tensor(info.index).shape for info in model.tensors}
        assert all(shapes[info.name] == info.shape for info in model.tensors)
        with pytest.raises(SettingsError, match="index of an activation"):
            model.tensor(999)
    with (
        open_model(float_file) as model,
        pytest.raises(SettingsError, match="keep_tensors=True"),
    ):
        model.tensor(last)


def test_a_closed_model_does_not_run(float_file, images):
    with open_model(float_file) as model:
        pass
    with pytest.raises(DelegateError, match="closed"):
        model.predict(images)


def test_runtimes_are_listed_with_the_fix_for_those_that_are_absent():
    states = runtimes()
    assert list(states) == ["ai-edge-litert", "tflite-runtime"]
    assert states["ai-edge-litert"].usable
    for name, state in states.items():
        assert state.usable == (state.reason is None)
        assert state.usable or "pip install" in state.reason or "does not load" in state.reason, (
            name
        )


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.full((1, 4), "a"), "takes real numbers. Received: an array of <U1"),
        (np.ones((1, 4), complex), "takes real numbers. Received: an array of complex128"),
        (np.full((1, 4), 0.5), "whole numbers that int32 can hold"),
        (np.full((1, 4), np.nan), "whole numbers that int32 can hold"),
        (np.full((1, 4), 1e12), "whole numbers that int32 can hold"),
    ],
)
def test_values_that_a_tensor_cannot_hold_are_refused(values, match):
    info = TensorInfo(index=0, name="x", shape=(1, 4), dtype="int32")
    with pytest.raises(DataError, match=match):
        to_stored(values, info)
    assert to_stored(np.full((1, 4), 3.0), info).dtype == np.int32


def test_a_tensor_is_called_by_its_signature_or_without_what_was_fused_into_it():
    info = TensorInfo(index=0, name="net/relu;net/conv", shape=(1,), dtype="int8")
    assert info.label == "net/relu"
    assert replace(info, signature_name="image").label == "image"
