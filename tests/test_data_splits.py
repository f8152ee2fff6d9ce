"""Splits: of arrays, streams and functions; read, drawn from, divided and trained on."""

import sys

import numpy as np
import pytest
from models import CLASSES, ZOO

from tfedge.data import (
    Data,
    Split,
    as_data,
    check_data,
    evaluate,
    find_function,
    load_calibration,
    load_dataset,
)
from tfedge.data.sampling import draw
from tfedge.errors import DataError, SettingsError, TfedgeError


def labelled(samples=40, classes=4, shape=(3,)):
    x = np.random.default_rng(1).normal(size=(samples, *shape)).astype(np.float32)
    return x, np.arange(samples) % classes


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def k(request):
    return pytest.importorskip(request.param)


MODULE = """
import numpy as np
X = np.random.RandomState(0).rand(50, 3).astype("float32")
Y = np.arange(50) % 5

def pair(): return X, Y
def two_pairs(): return (X, Y), (X[:10], Y[:10])
def inputs(): return X
def by_name(): return {"x_train": X, "y_train": Y, "x_test": X[:4], "y_test": Y[:4]}
def batches():
    for start in range(0, 50, 8):
        yield X[start:start + 8], Y[start:start + 8]
def dataset():
    import tensorflow as tf
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
def data():
    from tfedge.data import Data, Split
    return Data(train=Split(X, Y), name="mine")
def broken(): raise KeyError("label")
def needs(path): return X
def nothing(): return None
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "edge_sample_data.py").write_text(MODULE)
    (tmp_path / "edge_broken_module.py").write_text("import edge_no_such_package\n")
    (tmp_path / "edge_failing_module.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    yield "edge_sample_data"
    sys.modules.pop("edge_sample_data", None)


@pytest.mark.parametrize(
    ("function", "train", "evaluation"),
    [
        ("pair", 40, 10),
        ("two_pairs", 50, 10),
        ("inputs", 40, 10),
        ("by_name", 50, 4),
        ("batches", 40, 10),
        ("dataset", 40, 10),
        ("data", 40, 10),
    ],
)
def test_a_function_in_the_working_directory_gives_data(module, function, train, evaluation):
    before = list(sys.path)
    data = load_dataset(f"{module}:{function}")
    assert (len(data.train), len(data.evaluation)) == (train, evaluation)
    assert data.name == ("mine" if function == "data" else f"{module}:{function}")
    assert sys.path == before
    assert load_calibration(f"{module}:{function}", samples=7).shape == (7, 3)


@pytest.mark.parametrize(
    ("reference", "match"),
    [
        ("edge_sample_data:pairs", "Did you mean 'pair'?"),
        ("edge_sample_data:number", "must be a function. Received: int"),
        ("edge_no_such_module:f", "There is no module 'edge_no_such_module'"),
        ("edge_broken_module:f", "needs the module 'edge_no_such_package'"),
        ("edge_failing_module:f", "ZeroDivisionError"),
        ("edge_sample_data:broken", "failed: KeyError: 'label'"),
        ("edge_sample_data:needs", "called without arguments"),
        ("edge_sample_data:nothing", "must be an array of numbers. Received: NoneType"),
    ],
)
def test_a_function_that_gives_no_data_says_why(module, reference, match):
    with pytest.raises(TfedgeError) as caught:
        load_dataset(reference)
    assert match in str(caught.value)


def test_find_function_takes_only_module_colon_function(module):
    assert find_function(f"{module}:pair")()[0].shape == (50, 3)
    for wrong in ("pair", "a b:c", f"{module}:", "os.path"):
        with pytest.raises(SettingsError, match="module:function"):
            find_function(wrong)


def streams_of(x, y):
    import tensorflow as tf

    whole = tf.data.Dataset.from_tensor_slices((x, y))
    return {
        "batched dataset": whole.batch(7),
        "batched dataset, last dropped": whole.batch(8, drop_remainder=True),
        "single samples": whole,
        "batches of a function": lambda: ((x[i : i + 7], y[i : i + 7]) for i in range(0, 40, 7)),
        "samples of a function": lambda: zip(x, y, strict=True),
    }


@pytest.mark.parametrize("form", list(streams_of(*labelled())))
def test_streams_hold_the_samples_of_their_source_however_they_are_batched(form):
    x, y = labelled()
    split = Split(streams_of(x, y)[form])
    assert len(split) == 40
    for _ in range(2):  # readable again
        batches = list(split.batches(16))
        assert [len(b[0]) for b in batches] == [16, 16, 8]
        np.testing.assert_array_equal(np.concatenate([b[0] for b in batches]), x)
        np.testing.assert_array_equal(np.concatenate([b[1] for b in batches]), y)
    mixed = np.concatenate([b[0] for b in split.batches(16, shuffle=True, seed=2)])
    assert not np.array_equal(mixed, x)
    np.testing.assert_array_equal(np.sort(mixed, axis=0), np.sort(x, axis=0))
    sample = split.take(10, seed=1)
    assert sample.x.shape == (10, 3)
    assert not np.array_equal(sample.x, x[:10])
    np.testing.assert_array_equal(sample.x, split.take(10, seed=1).x)


def test_inputs_alone_are_batched_only_if_the_first_axis_of_a_dataset_is_open():
    import tensorflow as tf

    x = labelled(12, shape=(4, 5))[0]
    dataset = tf.data.Dataset.from_tensor_slices(x)
    assert Split(dataset).rows[0].shape == (12, 4, 5)
    assert Split(dataset.batch(5)).rows[0].shape == (12, 4, 5)
    assert Split(dataset.batch(4, drop_remainder=True), batched=True).rows[0].shape == (12, 4, 5)
    assert Split(lambda: ([row[np.newaxis]] for row in x)).rows[0].shape == (12, 4, 5)
    assert Split(lambda: iter(x), batched=False).rows[0].shape == (12, 4, 5)


def ragged():
    yield np.zeros((2, 3)), np.zeros(2)
    yield np.zeros((2, 4)), np.zeros(2)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda tf: (i for i in range(3)), "Pass the function that makes it"),
        (lambda tf: tf.data.Dataset.range(3).repeat(), "Received: a tf.data.Dataset that repeats"),
        (lambda tf: lambda: tf.data.Dataset.range(3).repeat(), "repeats for ever"),
        (lambda tf: lambda: iter(()), "gave nothing"),
        (lambda tf: lambda: 3, "must return an iterable"),
        (lambda tf: ragged, "All samples must have one shape"),
        (lambda tf: lambda: [(1, 2, 3, 4)], "Received: 4 parts"),
        (lambda tf: lambda: [({"a": np.zeros((2, 1))},), (np.zeros((2, 1)),)], "form of the first"),
        (
            lambda tf: lambda: [(np.zeros((2, 1)), np.zeros(2)), np.zeros((2, 1))],
            "1 and of 2 parts",
        ),
        (lambda tf: "text", "must be an array of numbers"),
        (lambda tf: np.float32(3), "first axis must be the samples"),
    ],
)
def test_what_cannot_be_read_again_to_an_end_is_refused(make, match):
    import tensorflow as tf

    with pytest.raises(DataError, match=match):
        _ = Split(make(tf)).rows


@pytest.mark.parametrize("form", ["arrays", *streams_of(*labelled())])
def test_fit_arguments_train_either_keras_for_more_than_one_epoch(form, k):
    x, y = labelled()
    split = Split(x, y) if form == "arrays" else Split(streams_of(x, y)[form])
    model = k.Sequential([k.Input((3,)), k.layers.Dense(4, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    history = model.fit(**split.fit_arguments(16), epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert len(history.history["loss"]) == 2


def test_several_inputs_travel_as_tuple_or_dict_with_weights(k):
    model = ZOO["two_inputs"](k)
    names = [tensor.name for tensor in model.inputs]
    parts = [np.ones((10, *tensor.shape[1:]), np.float32) for tensor in model.inputs]
    y, weight = np.arange(10) % CLASSES, np.linspace(0, 1, 10)
    model.compile("sgd", "sparse_categorical_crossentropy")
    for x in (tuple(parts), dict(zip(names, parts, strict=True))):
        split = Split(x, y, weight)
        check_data(model, split)
        assert len(split) == 10
        assert [len(rows) for rows in split.batches(4)] == [3, 3, 3]
        model.fit(**split.fit_arguments(5), verbose=0)
        assert type(split.take(4).x) is type(x)
        figure = evaluate(lambda x: model.predict(x, verbose=0), split, "accuracy")
        assert 0 <= figure <= 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((np.zeros((3, 2)), np.zeros(4)), r"Received shapes: x \(3, 2\), y \(4,\)"),
        ((np.zeros((0, 2)),), "at least one sample"),
        (([[1, 2], [3]],), "cannot be read as an array"),
        ((np.zeros((3, 2)), None, np.ones(3)), "Give `y` too"),
        (({},), "empty dict"),
        ((lambda: [np.zeros((1, 1))], np.zeros(3)), "A stream brings its labels itself"),
    ],
)
def test_arrays_that_do_not_belong_together_make_no_split(arguments, match):
    with pytest.raises(DataError, match=match):
        Split(*arguments)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, None])
def test_sizes_that_are_no_counts_are_refused(wrong):
    split = Split(*labelled())
    with pytest.raises(SettingsError, match="whole number"):
        split.batches(wrong)
    with pytest.raises(SettingsError, match="whole number"):
        split.take(wrong)
    with pytest.raises(SettingsError, match="`batched` is for streams"):
        Split(np.zeros((2, 2)), batched=True)


def test_data_hold_splits_and_at_least_one():
    with pytest.raises(DataError, match="Write `Data\\(train=Split"):
        Data(train=np.zeros(3))
    with pytest.raises(DataError, match="at least one split"):
        Data()
    with pytest.raises(DataError, match="at least 2 samples"):
        as_data(np.zeros((1, 2)))


def test_draws_keep_proportions_within_one_sample_and_have_no_repeats():
    labels = np.repeat(np.arange(5), [300, 100, 50, 7, 1])
    for count in (1, 10, 100, 333, 458):
        chosen = draw(len(labels), count, labels=labels, seed=count)
        assert len(set(chosen.tolist())) == count
        exact = np.bincount(labels) * count / len(labels)
        assert np.abs(np.bincount(labels[chosen], minlength=5) - exact).max() < 1
    one_hot = np.eye(5)[labels]
    np.testing.assert_array_equal(
        draw(458, 40, labels=one_hot, seed=1), draw(458, 40, labels=labels, seed=1)
    )
    assert len(draw(458, 40, labels=np.linspace(0, 1, 458), seed=1)) == 40
