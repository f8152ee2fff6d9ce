import keras
import numpy as np
import pytest
import tf_keras
from models import ZOO, inputs_of
from test_native_quantize import image_model, samples_for

from tfedge.convert import MODES, convert
from tfedge.convert._origin import layer_of
from tfedge.engines.native.quantize import calibrate, prepare_quantization
from tfedge.errors import ConversionError, DataError, FloatOperatorsError, SettingsError
from tfedge.inspection import inspect_model
from tfedge.runtime import open_model
from tfedge.verify.operators import compare_operators

layers, ops = keras.layers, keras.ops


@pytest.mark.parametrize("kind", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("make", ZOO.values(), ids=ZOO)
def test_int8_by_calibration_is_all_integer_and_close_to_the_model(make, kind):
    model = make(kind)
    x = inputs_of(model, count=32)
    data, report = convert(model, mode="int8", calibration=x)
    assert report.inspection.is_integer
    assert not report.float_operators
    assert report.verification.sqnr_db > 25
    assert report.size_bytes == len(data)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_keeps_the_order_of_inputs_and_outputs(mode):
    keras.utils.set_random_seed(0)
    # In this order the converter, which sorts by name, would turn both around.
    inputs = [keras.Input((4,), name="z"), keras.Input((3,), name="a")]
    first = layers.Dense(2, name="second_by_name")(inputs[0])
    second = layers.Dense(5, name="first_by_name")(layers.Concatenate()(inputs))
    model = keras.Model(inputs, [first, second])
    x = [np.random.default_rng(i).random((16, n)).astype("float32") for i, n in enumerate((4, 3))]
    calibration = tuple(x) if mode in ("int8", "int16x8") else None
    data, _ = convert(model, mode=mode, calibration=calibration)
    with open_model(data, delegate="none") as runner:  # XNNPACK has no 16-bit kernels
        assert [t.shape for t in runner.inputs] == [(1, 4), (1, 3)]
        outputs = runner.predict(x)
    for got, wanted in zip(outputs, model.predict(x, verbose=0), strict=True):
        np.testing.assert_allclose(got, wanted, atol=0.05)


INT8_LAYERS = {
    "conv1d": (lambda x: layers.Conv1D(5, 3, activation="relu")(x), (12, 4)),
    "separable1d": (lambda x: layers.SeparableConv1D(5, 3)(x), (12, 4)),
    "depthwise1d": (lambda x: layers.DepthwiseConv1D(3)(x), (12, 4)),
    "conv1d_bn": (lambda x: layers.BatchNormalization()(layers.Conv1D(5, 3)(x)), (12, 4)),
    "separable": (lambda x: layers.SeparableConv2D(5, 3, activation="relu")(x), (8, 8, 4)),
    "transposed_bn": (
        lambda x: layers.BatchNormalization()(layers.Conv2DTranspose(5, 3, strides=2)(x)),
        (8, 8, 4),
    ),
    "dense_bn": (lambda x: layers.ReLU()(layers.BatchNormalization()(layers.Dense(7)(x))), (12,)),
    "dense_on_images": (lambda x: layers.Dense(7)(x), (6, 6, 4)),
    "bn_alone": (lambda x: layers.BatchNormalization()(layers.MaxPool2D()(x)), (8, 8, 4)),
    "bn_of_vectors": (lambda x: layers.BatchNormalization()(layers.Flatten()(x)), (4, 4, 4)),
    "relu_to_1": (lambda x: layers.ReLU(max_value=1.0)(x), (8, 8, 4)),
    "leaky_relu": (lambda x: layers.LeakyReLU()(x), (8, 8, 4)),
    "prelu": (lambda x: layers.PReLU(shared_axes=[1, 2])(x), (8, 8, 4)),
    **{
        name: (lambda x, name=name: layers.Activation(name)(x), (8, 8, 4))
        for name in [
            "relu6",
            "sigmoid",
            "tanh",
            "softmax",
            "silu",
            "hard_silu",
            "hard_sigmoid",
            "gelu",
            "leaky_relu",
        ]
    },
    "average_pooling": (lambda x: layers.AveragePooling2D(2)(x), (8, 8, 4)),
    "global_max": (lambda x: layers.GlobalMaxPooling2D()(x), (8, 8, 4)),
    "padding": (lambda x: layers.Conv2D(3, 3)(layers.ZeroPadding2D()(x)), (8, 8, 4)),
    "cropping": (lambda x: layers.Cropping2D(1)(x), (8, 8, 4)),
    "upsampling": (lambda x: layers.Conv2D(3, 3)(layers.UpSampling2D()(x)), (8, 8, 4)),
    "bilinear": (lambda x: layers.UpSampling2D(interpolation="bilinear")(x), (8, 8, 4)),
    "squeeze_excite": (
        lambda x: layers.Multiply()(
            [
                x,
                layers.Conv2D(4, 1, activation="sigmoid")(
                    layers.GlobalAveragePooling2D(keepdims=True)(x)
                ),
            ]
        ),
        (8, 8, 4),
    ),
    "subtract": (lambda x: layers.Subtract()([x, layers.Conv2D(4, 1)(x)]), (8, 8, 4)),
    "maximum": (lambda x: layers.Maximum()([x, layers.Conv2D(4, 1)(x)]), (8, 8, 4)),
    "average": (lambda x: layers.Average()([x, layers.Conv2D(4, 1)(x)]), (8, 8, 4)),
    "permute": (lambda x: layers.Permute((2, 1, 3))(x), (8, 8, 4)),
    "repeat": (lambda x: layers.RepeatVector(3)(layers.Flatten()(x)), (4, 4, 4)),
    "dropout": (lambda x: layers.Dense(3)(layers.Dropout(0.5)(layers.Flatten()(x))), (4, 4, 4)),
    "operations": (
        lambda x: ops.concatenate([ops.relu(x + 3.0) * 0.5, ops.sigmoid(x[:, :, 1:3])], 2),
        (8, 8, 4),
    ),
    "attention": (lambda x: layers.MultiHeadAttention(2, 4)(x, x), (8, 4)),
}


@pytest.mark.parametrize("body", INT8_LAYERS.values(), ids=INT8_LAYERS)
def test_a_supported_layer_becomes_integer_operators(body):
    model = image_model(*body)
    data, report = convert(model, mode="int8", calibration=samples_for(model, 64))
    assert report.inspection.is_integer
    assert report.verification.sqnr_db > 22


@pytest.mark.parametrize(
    "first",
    [
        layers.Rescaling(1 / 127.5, -1.0),
        layers.Rescaling(1 / 255.0),
        layers.Normalization(mean=[100.0, 120, 90], variance=[50.0, 60, 70]),
    ],
    ids=["offset", "scale", "normalization"],
)
def test_preprocessing_inside_the_model_takes_raw_pixels_as_integers(first):
    model = image_model(
        lambda x: layers.Conv2D(3, 3, padding="same")(first(x)), shape=(8, 8, 3), first=False
    )
    x = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype("float32")
    data, report = convert(model, mode="int8", calibration=x, input_type="uint8")
    with open_model(data) as runner:
        assert runner.inputs[0].dtype == "uint8"
        np.testing.assert_allclose(np.ravel(runner.inputs[0].scale), 1.0, rtol=1e-3)
        raw = runner.run([x[:1].astype("uint8")])[0]
        assert raw.dtype == np.int8 or raw.dtype == np.uint8
    assert report.inspection.is_integer


def test_each_operator_is_within_one_step_of_the_fake_quantised_model():
    model = ZOO["residual"](keras)
    x = inputs_of(model, count=32)
    prepared, _ = prepare_quantization(model)
    calibrate(prepared, [x])
    data, _ = convert(prepared)
    rows = compare_operators(prepared, data, x[:8])
    assert len(rows) >= 6
    assert sum(r.elements * r.within_one_step for r in rows) >= 0.999 * sum(
        r.elements for r in rows
    )


def test_the_operator_check_finds_a_model_of_other_weights():
    prepared, other = (prepare_quantization(ZOO["residual"](keras))[0] for _ in range(2))
    x = inputs_of(prepared, count=32)
    calibrate(prepared, [x])
    layer = other.get_layer("conv_3").layer
    layer.kernel.assign(-layer.kernel)
    calibrate(other, [x])
    data, _ = convert(other)
    assert min(r.within_one_step for r in compare_operators(prepared, data, x[:8])) < 0.9


def test_a_float_operator_is_an_error_that_names_the_layer():
    model = image_model(lambda x: layers.ELU(name="bend")(x))
    x = samples_for(model)
    with pytest.raises(FloatOperatorsError, match="ELU of layer `bend`"):
        convert(model, mode="int8", calibration=x)
    _, report = convert(model, mode="int8", calibration=x, allow_float=True)
    assert [(row.name, row.layer) for row in report.float_operators] == [("ELU", "bend")]
    assert report.islands == 2


def test_a_layer_kept_float_is_the_only_one():
    model = image_model(
        lambda x: layers.Conv2D(3, 3, name="after")(layers.Conv2D(4, 3, name="kept")(x))
    )
    prepared, _ = prepare_quantization(model, keep_float=("kept",))
    calibrate(prepared, [samples_for(model)])
    _, report = convert(prepared, allow_float=True)
    float_names = {row.name for row in report.float_operators}
    assert {row.layer for row in report.float_operators if row.name == "CONV_2D"} == {"kept"}
    assert [row.name for row in report.inspection.operators].count("CONV_2D") == 3
    assert float_names <= {"CONV_2D", "RESHAPE", "REVERSE_V2"}


def test_pruned_channels_of_zeros_convert():
    model = ZOO["conv_bn_relu"](keras)
    kernel = model.get_layer("conv_1").kernel
    values = kernel.numpy()
    values[..., :3] = 0.0
    kernel.assign(values)
    data, report = convert(model, mode="int8", calibration=inputs_of(model, count=16))
    assert any(weight.zeros >= 3 * 27 for weight in inspect_model(data).weights)
    assert report.verification.sqnr_db > 25


def test_a_subclassed_model_converts():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, inputs):
            return ops.relu(self.dense(inputs))

    model = Own()
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    model(x)
    data, report = convert(model, mode="int8", calibration=x)
    assert report.inspection.is_integer
    assert len(data) == report.size_bytes


BAD = [
    ({"mode": "int9"}, SettingsError, "Did you mean 'int8'"),
    ({"mode": "int8"}, DataError, "needs `calibration=`"),
    ({"mode": "float32", "input_type": "int8"}, SettingsError, "float32 file is one of float32"),
    ({"mode": "int8", "calibration": np.zeros((4, 7), "float32")}, DataError, "7"),
]


@pytest.mark.parametrize(("settings", "error", "match"), BAD)
def test_wrong_settings_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        convert(ZOO["dense"](keras), **settings)


def test_an_open_image_size_is_refused_with_the_input():
    model = keras.Sequential([keras.Input((None, None, 3), name="image"), layers.Conv2D(2, 3)])
    with pytest.raises(ConversionError, match="`image`.*open size"):
        convert(model, mode="float32")


def test_a_quantised_model_converts_to_int8_only():
    prepared, _ = prepare_quantization(ZOO["dense"](keras))
    with pytest.raises(ConversionError, match="trained for int8"):
        convert(prepared, mode="float32")


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("net_1/block_1_1/elu/Elu;net_1/conv/BiasAdd", "block_1"),
        ("net_1/conv_1/BiasAdd", "conv"),
        ("net/unknown/Add", ""),
    ],
)
def test_an_operator_is_traced_to_its_layer(tensor, layer):
    assert layer_of(tensor, ["block_1", "conv"]) == layer


def test_inputs_of_a_dict_go_by_their_keys():
    tensors = {"z": keras.Input((4,), name="z"), "a": keras.Input((3,), name="a")}
    model = keras.Model(
        tensors, layers.Dense(2)(layers.Concatenate()([tensors["z"], tensors["a"]]))
    )
    rng = np.random.default_rng(0)
    x = {name: rng.random((16, n)).astype("float32") for name, n in (("z", 4), ("a", 3))}
    for mode in ("float32", "int8"):
        data, report = convert(model, mode=mode, calibration=x)
        assert report.verification.sqnr_db > 25
        with open_model(data) as runner:
            np.testing.assert_allclose(runner.predict(x), model.predict(x, verbose=0), atol=0.05)


class OfDict(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(ops.concatenate([inputs["b"], inputs["a"]], axis=1))


def test_a_subclassed_model_of_a_dict_is_refused_with_the_way_out():
    model = OfDict()
    inputs = {"b": keras.Input((4,), name="b"), "a": keras.Input((3,), name="a")}
    outputs = model(inputs)
    with pytest.raises(ConversionError, match=r"wrap it, `keras.Model\(inputs, model\(inputs\)\)"):
        convert(model, mode="float32")
    _, report = convert(keras.Model(inputs, outputs), mode="float32")
    assert report.verification.sqnr_db > 60


def test_a_model_without_input_shape_is_refused():
    with pytest.raises(ConversionError, match="call it once"):
        convert(keras.Sequential([layers.Dense(2)]), mode="float32")


def test_calibration_does_not_clip_outliers():
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    x = np.random.default_rng(0).normal(size=(512, 1)).astype("float32")
    x[100] = 40.0  # in one batch of many
    data, report = convert(model, mode="int8", calibration=x)
    with open_model(data) as runner:
        np.testing.assert_allclose(
            runner.predict(x[100:101]), model.predict(x[100:101], verbose=0), rtol=0.02
        )
    assert not report.float_operators


def test_a_dynamic_file_says_when_nothing_was_quantised():
    _, report = convert(ZOO["dense"](keras), mode="dynamic_int8")
    assert "Nothing was quantised" in report.notes[0]


@pytest.mark.parametrize(("mode", "least_db"), [("float32", 45), ("int8", 25)])
@pytest.mark.parametrize("name", ["conv_bn_relu", "nested", "two_inputs"])
def test_a_model_of_mixed_precision_becomes_a_file_that_computes_in_float32(name, mode, least_db):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = ZOO[name](keras)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    x = inputs_of(model, 64)
    content, report = convert(model, mode=mode, calibration=x if mode == "int8" else None)
    assert report.verification.sqnr_db > least_db
    assert not any(tensor.dtype == "float16" for tensor in inspect_model(content).inputs)
