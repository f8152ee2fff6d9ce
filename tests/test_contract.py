"""The input contract: what is said once is done the same to arrays, streams and single lines."""

import numpy as np
import pytest

from tfedge.data import Data, InputContract, Split
from tfedge.errors import DataError, SettingsError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "scale": 1 / 255}


def pixels(count=12, layout="NHWC", channels=3, seed=0):
    shape = (count, 5, 4, channels) if layout == "NHWC" else (count, channels, 5, 4)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def by_hand(x):
    """The definition, in float64."""
    mean, std = np.array(IMAGENET["mean"]), np.array(IMAGENET["std"])
    return (x.astype(np.float64) / 255 - mean) / std


def test_samples_are_scaled_then_shifted_then_divided_for_each_channel():
    x = pixels()
    out = InputContract(**IMAGENET).apply(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, by_hand(x), rtol=1e-5, atol=1e-6)
    mixed = InputContract(**{**IMAGENET, "mean": IMAGENET["mean"][::-1]}).apply(x)
    assert np.abs(mixed - by_hand(x)).max() > 0.1  # the control: channels do matter


def test_nchw_data_become_what_nhwc_data_are():
    x = pixels()
    moved = InputContract(**IMAGENET, layout="NCHW").apply(np.moveaxis(x, -1, 1))
    np.testing.assert_array_equal(moved, InputContract(**IMAGENET).apply(x))


def test_one_number_serves_all_channels_and_the_structure_stays():
    x = pixels(channels=7)
    contract = InputContract(mean=127.5, std=[127.5])
    assert (contract.mean, contract.std) == ((127.5,), (127.5,))
    by_name = contract.apply({"image": x})
    assert list(by_name) == ["image"]
    np.testing.assert_array_equal(by_name["image"], contract.apply(x))
    assert by_name["image"].min() >= -1 and by_name["image"].max() <= 1


@pytest.mark.parametrize(
    "x", [np.zeros((2, 3), np.int32), np.zeros(4, np.float64), {"a": np.zeros(2), "b": np.ones(2)}]
)
def test_a_neutral_contract_touches_nothing(x):
    contract = InputContract()
    assert contract.is_neutral
    assert contract.apply(x) is x
    data = Data(train=Split(x))
    assert contract.apply_to(data).train is data.train
    assert contract.snippet() == ""


@pytest.mark.parametrize(
    "settings",
    [
        IMAGENET,
        {**IMAGENET, "layout": "NCHW"},
        {"layout": "NCHW"},
        {"scale": 1 / 255},
        {"mean": 127.5, "std": 127.5},
    ],
    ids=["imagenet", "imagenet-nchw", "nchw", "scale", "minus-one-to-one"],
)
def test_the_snippet_does_the_same(settings):
    contract = InputContract(**settings)
    x = pixels(layout=settings.get("layout", "NHWC"))
    names = {"np": np, "image": x}
    exec(contract.snippet("image"), names)
    assert names["image"].dtype == np.float32
    np.testing.assert_array_equal(names["image"], contract.apply(x))


def test_every_split_is_changed_and_labels_and_weights_stay():
    x, y, weight = pixels(), np.arange(12) % 2, np.linspace(1, 2, 12)
    contract = InputContract(**IMAGENET, labels=("cat", "dog"))
    data = Data(train=Split(x, y, weight), evaluation=Split(x[:4], y[:4]), calibration=Split(x[:3]))
    changed = contract.apply_to(data)
    np.testing.assert_array_equal(changed.train.x, contract.apply(x))
    np.testing.assert_array_equal(changed.evaluation.x, contract.apply(x[:4]))
    np.testing.assert_array_equal(changed.calibration.x, contract.apply(x[:3]))
    assert changed.train.y is data.train.y
    assert changed.train.sample_weight is data.train.sample_weight
    assert changed.classes == ("cat", "dog")
    assert data.classes is None
    assert data.train.x is x  # what came in is as it was


KINDS = ("function", "function of samples", "dataset", "dataset of samples")


def stream_of(kind, x, y):
    """The samples as a stream of one of four kinds, and whether its elements are batches."""
    if kind == "function":
        return lambda: iter([(x[:5], y[:5]), (x[5:], y[5:])]), None
    if kind == "function of samples":
        return lambda: zip(x, y, strict=True), False
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    return (dataset.batch(5), None) if kind == "dataset" else (dataset, None)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    "kind", ["function", "function of samples", "dataset", "dataset of samples"]
)
def test_streams_give_what_arrays_give(kind, layout):
    x, y = pixels(layout=layout), np.arange(12) % 2
    contract = InputContract(**IMAGENET, layout=layout)
    stream, batched = stream_of(kind, x, y)
    split = contract.apply_to(Data(train=Split(stream, batched=batched))).train
    assert split.is_stream
    for _ in range(2):  # it can be read again
        seen, labels = split.rows
        assert seen.dtype == np.float32
        np.testing.assert_allclose(seen, contract.apply(x), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(labels, y)
    assert len(split) == 12


def test_a_stream_is_not_read_before_it_is_asked_for():
    asked = []

    def stream():
        asked.append(1)
        return iter([pixels()])

    split = InputContract(scale=0.5).apply_to(Data(train=Split(stream))).train
    assert not asked
    assert len(split) == 12
    assert asked


def test_inputs_of_a_dataset_alone_and_by_name():
    import tensorflow as tf

    x = pixels()
    contract = InputContract(**IMAGENET)
    for source in (x, {"image": x}):
        dataset = tf.data.Dataset.from_tensor_slices(source).batch(4)
        rows = contract.apply_to(Data(calibration=Split(dataset))).calibration.rows
        seen = rows[0]["image"] if isinstance(source, dict) else rows[0]
        np.testing.assert_allclose(seen, contract.apply(x), rtol=1e-6, atol=1e-6)


def test_changed_data_train_a_model_of_either_keras(tmp_path):
    import keras
    import tf_keras

    x, y = pixels(layout="NCHW"), np.arange(12) % 2
    contract = InputContract(**IMAGENET, layout="NCHW")
    for k in (keras, tf_keras):
        for kind in ("function", "dataset"):
            stream, _ = stream_of(kind, x, y)
            split = contract.apply_to(Data(train=Split(stream))).train
            model = k.Sequential(
                [k.layers.Input((5, 4, 3)), k.layers.Flatten(), k.layers.Dense(2, "softmax")]
            )
            model.compile("sgd", "sparse_categorical_crossentropy")
            history = model.fit(**split.fit_arguments(4), verbose=0)
            assert np.isfinite(history.history["loss"]).all()


def test_labels_come_from_a_file(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffcat\r\nguinea pig \nœil\n\n", encoding="utf-8")
    assert InputContract(labels=path).labels == ("cat", "guinea pig", "œil")
    assert InputContract(labels=str(path)).labels == ("cat", "guinea pig", "œil")
    assert InputContract(labels=["cat", "dog"]).labels == ("cat", "dog")


def test_a_contract_is_read_from_plain_values_as_a_recipe_gives_them():
    from pydantic import TypeAdapter

    given = {"mean": [0.5], "std": [0.25, 1, 2], "scale": 2, "labels": ["a", "b"]}
    contract = TypeAdapter(InputContract).validate_python(given)
    assert contract == InputContract(mean=0.5, std=(0.25, 1, 2), scale=2.0, labels=("a", "b"))


BAD_SETTINGS = [
    ({"std": (1, 0, 1)}, "is positive", {"std": (1, 0.1, 1)}),
    ({"std": -1}, "is positive", {"std": 1}),
    ({"mean": (0.5, float("nan"))}, "finite number", {"mean": (0.5, 0.4)}),
    ({"mean": ()}, "finite number", {"mean": 0}),
    ({"mean": "0.5"}, "finite number", {"mean": 0.5}),
    ({"mean": True}, "finite number", {"mean": 1}),
    ({"mean": (1, 2, 3), "std": (1, 2)}, "3 and 2", {"mean": (1, 2, 3), "std": (1, 2, 3)}),
    ({"scale": 0}, "positive number", {"scale": 0.1}),
    ({"scale": float("inf")}, "positive number", {"scale": 255}),
    ({"layout": "nchw"}, "Did you mean 'NCHW'", {"layout": "NCHW"}),
    ({"layout": "CHW"}, "one of NHWC, NCHW", {"layout": "NHWC"}),
    ({"labels": (1, 2)}, "sequence of names", {"labels": ("1", "2")}),
]


@pytest.mark.parametrize(("settings", "match", "good"), BAD_SETTINGS)
def test_settings_out_of_range_are_refused(settings, match, good):
    with pytest.raises(SettingsError, match=match):
        InputContract(**settings)
    InputContract(**good)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "No such file"),
        (b"cat\n\ndog\n", "Line 2"),
        (b"\n", "Line 1"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_files_of_labels_that_cannot_be_read_are_refused(content, match, tmp_path):
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=match):
        InputContract(labels=path)


BAD_DATA = [
    ({"mean": (1, 2, 3)}, np.zeros((2, 4, 4, 1)), "3 channels.*with 1"),
    (IMAGENET, pixels(layout="NCHW"), "or set `layout`"),
    ({"scale": 2}, np.zeros(3), "at least 2 axes"),
    ({"layout": "NCHW"}, np.zeros((3, 4)), "at least 3 axes"),
    ({"scale": 2}, {"image": np.zeros((2, 3)), "angle": np.zeros((2, 1))}, "2 inputs"),
    ({"scale": 2}, (np.zeros((2, 3)), np.zeros((2, 1))), "2 inputs"),
]


@pytest.mark.parametrize(("settings", "x", "match"), BAD_DATA)
def test_data_that_do_not_fit_are_refused(settings, x, match):
    contract = InputContract(**settings)
    with pytest.raises(DataError, match=match):
        contract.apply(x)
    with pytest.raises(DataError, match=match):
        contract.apply_to(Data(train=Split(x)))


def test_streams_that_do_not_fit_are_refused():
    import tensorflow as tf

    contract = InputContract(**IMAGENET)
    single = tf.data.Dataset.from_tensor_slices(pixels(channels=1)).batch(4)
    with pytest.raises(DataError, match="3 channels"):
        contract.apply_to(Data(train=Split(single)))
    several = tf.data.Dataset.from_tensor_slices(({"a": pixels(), "b": pixels()}, np.zeros(12)))
    with pytest.raises(DataError, match="2 inputs"):
        contract.apply_to(Data(train=Split(several.batch(4))))
    shapeless = tf.data.Dataset.from_generator(lambda: iter(pixels()), tf.uint8)
    with pytest.raises(DataError, match="ensure_shape"):
        contract.apply_to(Data(train=Split(shapeless, batched=False)))
    generator = contract.apply_to(Data(train=Split(lambda: iter([pixels(channels=1)]))))
    with pytest.raises(DataError, match="3 channels"):
        _ = generator.train.rows


def test_labels_of_another_number_of_classes_are_refused():
    data = Data(train=Split(pixels()), classes=("cat", "dog"))
    with pytest.raises(DataError, match=r"3 names for data of 2 classes"):
        InputContract(labels=("a", "b", "c")).apply_to(data)
    assert InputContract(labels=("Katze", "Hund")).apply_to(data).classes == ("Katze", "Hund")
