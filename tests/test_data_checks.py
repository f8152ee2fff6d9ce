"""Data held against a model: what fits passes, what does not is one line with both sides."""

import warnings

import numpy as np
import pytest

from tfedge.data import Split, check_calibration, check_data
from tfedge.errors import DataError, TfedgeWarning


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def k(request):
    return pytest.importorskip(request.param)


def image_model(k, loss=None, outputs=10, shape=(8, 8, 3)):
    layers = [k.Input(shape), k.layers.Flatten(), k.layers.Dense(outputs)]
    model = k.Sequential(layers)
    if loss is not None:
        model.compile("sgd", loss)
    return model


def images(*shape, dtype=np.float32):
    return np.ones((6, *shape), dtype)


CLASS_NUMBERS = np.arange(6)
ONE_HOT = np.eye(10)[CLASS_NUMBERS]
SPARSE = {"loss": "sparse_categorical_crossentropy"}
DENSE = {"loss": "categorical_crossentropy"}


@pytest.mark.parametrize(
    ("x", "y", "options"),
    [
        (images(8, 8, 3), CLASS_NUMBERS, {}),
        (images(8, 8, 3, dtype=np.uint8), CLASS_NUMBERS.reshape(6, 1), {}),
        (images(8, 8, 3), ONE_HOT, {"loss": "categorical_crossentropy"}),
        (images(8, 8, 3), CLASS_NUMBERS, {"loss": "sparse_categorical_crossentropy"}),
        (images(8, 8, 3), np.zeros(6), {"outputs": 1, "loss": "binary_crossentropy"}),
        (images(8, 8, 3), np.zeros((6, 1)), {"outputs": 1}),
        (images(8, 8, 3), None, {}),
        (images(4, 4, 1), CLASS_NUMBERS, {"shape": (4, 4, 1)}),
    ],
)
def test_data_that_fit_pass(k, x, y, options):
    check_data(image_model(k, **options), Split(x, y))


@pytest.mark.parametrize(
    ("x", "y", "options", "match"),
    [
        (images(3, 8, 8), None, {}, "looks like channels first: pass `np.moveaxis(x, 1, -1)"),
        (images(8, 8, 3), None, {"shape": (3, 8, 8)}, "channels last: pass `np.moveaxis(x, -1, 1)"),
        (images(8, 8), None, {"shape": (8, 8, 1)}, "is missing: pass `x[..., np.newaxis]`"),
        (images(192), None, {}, "holds as many values: pass `x.reshape(-1, 8, 8, 3)`"),
        (np.ones((8, 8, 3)), None, {}, "looks like one sample: pass `x[np.newaxis]`"),
        (images(9, 9, 3), None, {}, "must have the shape (samples, 8, 8, 3)"),
        (images(9, 9, 3), None, {}, "Received: (6, 9, 9, 3)"),
        ((images(8, 8, 3), images(8, 8, 3)), None, {}, "Received: 2. Stack samples"),
        ({"image": images(8, 8, 3)}, None, {}, "must be named as the model's inputs"),
        (images(8, 8, 3) * np.nan, None, {}, "must be finite numbers. Received: nan in sample 0"),
        (images(8, 8, 3), CLASS_NUMBERS + 5, {}, "the model's 10 outputs. Received: 5 to 10"),
        (images(8, 8, 3), CLASS_NUMBERS - 1, {}, "Received: -1 to 4"),
        (images(8, 8, 3), CLASS_NUMBERS + 0.5, {}, "must be class numbers, whole"),
        (images(8, 8, 3), np.eye(12)[:6], {}, "Received: (6, 12)"),
        (images(8, 8, 3), ONE_HOT, SPARSE, "Pass `y.argmax(axis=-1)`"),
        (images(8, 8, 3), CLASS_NUMBERS, DENSE, "takes one-hot labels"),
        (
            images(8, 8, 3),
            np.ones((6, 10), int),
            DENSE,
            "rows that do not hold a single one",
        ),
        (
            images(8, 8, 3),
            CLASS_NUMBERS,
            {"outputs": 1, "loss": "binary_crossentropy"},
            "in [0, 1] for the loss binary_crossentropy",
        ),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_are_one_line_with_both_sides(k, x, y, options, match):
    with pytest.raises(DataError) as caught:
        check_data(image_model(k, **options), Split(x, y), what="training")
    message = str(caught.value)
    assert match in message
    assert "\n" not in message


def test_loss_objects_and_functions_are_known_by_their_names(k):
    for loss in (
        k.losses.SparseCategoricalCrossentropy(),
        k.losses.sparse_categorical_crossentropy,
    ):
        with pytest.raises(DataError, match="takes class numbers"):
            check_data(image_model(k, loss), Split(images(8, 8, 3), ONE_HOT))


def test_token_models_refuse_fractions(k):
    model = k.Sequential(
        [k.Input((4,), dtype="int32"), k.layers.Embedding(9, 2), k.layers.Flatten()]
    )
    check_data(model, Split(np.ones((3, 4))))
    with pytest.raises(DataError, match="must be int32"):
        check_data(model, Split(np.full((3, 4), 0.5)))


def test_labels_of_segmentation_and_of_several_outputs_are_checked_by_output(k):
    image = k.Input((4, 4, 1))
    pixels = k.layers.Conv2D(3, 1, name="pixels")(image)
    angle = k.layers.Dense(1, name="angle")(k.layers.Flatten()(image))
    model = k.Model(image, [pixels, angle])
    x, mask, turn = images(4, 4, 1), np.zeros((6, 4, 4), int), np.zeros(6)
    check_data(model, Split(x, (mask, turn)))
    check_data(model, Split(x, {model.output_names[1]: turn}))
    with pytest.raises(DataError, match=r"y\[0\].*from 0 to 2"):
        check_data(model, Split(x, (mask + 3, turn)))
    with pytest.raises(DataError, match="Received: tilt"):
        check_data(model, Split(x, {"tilt": turn}))
    with pytest.raises(DataError, match="each of the model's 2 outputs"):
        check_data(model, Split(x, turn))
    check_data(model, Split(x, turn), check_labels=False)


def test_subclassed_and_unbuilt_models_are_held_against_finite_numbers_only(k):
    class Own(k.Model):
        def call(self, x):
            return x

    for model in (Own(), k.Sequential([k.layers.Dense(2)])):
        check_data(model, Split(images(5)))
        with pytest.raises(DataError, match="finite"):
            check_data(model, Split(images(5) * np.inf))


def test_a_stream_of_single_samples_taken_for_batches_says_so(k):
    x = np.ones((20, 8, 8, 3), np.float32)
    with pytest.raises(DataError, match="`batched=False` for a stream"):
        model = k.Sequential([k.Input((8, 8, 3)), k.layers.Flatten()])
        check_data(model, Split(lambda: [x[0]]))
    check_data(image_model(k), Split(lambda: iter(x), batched=False))


TRAIN = np.random.default_rng(3).random((500, 6, 6, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (TRAIN[:50] * 255, ("255]", "training data over [")),
        (TRAIN[:50] / 255, ("0.0039", "Preprocess both alike")),
        (TRAIN[:50] * 2 - 1, ("Calibration data `x` range over [-", "Preprocess both alike")),
        ((TRAIN[:50] * 255).astype(np.uint8), ("[0, 254]", "training data over [")),
        (TRAIN[:50].transpose(0, 3, 1, 2), ("(3, 6, 6)", "(6, 6, 3)", "channels first")),
        (TRAIN[:50, ..., :1], ("(6, 6, 1)", "(6, 6, 3)")),
        ((TRAIN[:50], TRAIN[:50]), ("x[0], x[1]",)),
    ],
)
def test_calibration_of_another_range_or_layout_warns_with_both(calibration, words):
    with pytest.warns(TfedgeWarning) as caught:
        check_calibration(calibration, Split(TRAIN))
    assert len(caught) == 1
    for word in words:
        assert word in str(caught[0].message)


def with_outlier(x):
    changed = x.copy()
    changed[0, 0, 0, 0] = 3
    return changed


@pytest.mark.parametrize(
    "calibration",
    [TRAIN[:50], Split(TRAIN[:50]), TRAIN[:50] * 0.9, with_outlier(TRAIN[:50])],
)
def test_calibration_like_the_training_data_does_not_warn(calibration):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_calibration(calibration, TRAIN)
