"""Labels of several outputs in `.npz` files and dicts."""

import keras
import numpy as np
import pytest

from tfedge.data import Split, as_data, check_data, load_dataset, load_evaluation
from tfedge.data.arrays import data_of_arrays
from tfedge.errors import DataError

X = np.zeros((10, 3), np.float32)
KIND = np.arange(10) % 2
ANGLE = np.linspace(0, 1, 10)


def two_outputs():
    inputs = keras.Input((3,))
    kind = keras.layers.Dense(2, activation="softmax", name="kind")(inputs)
    angle = keras.layers.Dense(1, name="angle")(inputs)
    return keras.Model(inputs, [kind, angle])


def test_labels_named_by_output_become_a_dict():
    split = data_of_arrays({"x": X, "y_kind": KIND, "y_angle": ANGLE}).train
    assert sorted(split.y) == ["angle", "kind"]
    np.testing.assert_array_equal(split.y["kind"], KIND)


@pytest.mark.parametrize("part", ["test", "evaluation", "val"])
def test_each_split_has_its_own_labels_by_output(part):
    arrays = {
        "x_train": X,
        "y_kind_train": KIND,
        "y_angle_train": ANGLE,
        f"x_{part}": X[:4],
        f"y_kind_{part}": KIND[:4],
        f"y_angle_{part}": ANGLE[:4],
    }
    data = data_of_arrays(arrays)
    assert sorted(data.train.y) == sorted(data.evaluation.y) == ["angle", "kind"]
    assert [len(label) for label in data.evaluation.y.values()] == [4, 4]
    assert data.notes == ()


def test_labels_of_another_split_are_not_taken_for_outputs():
    arrays = {"x": X, "y_kind": KIND, "x_test": X, "y_kind_test": KIND}
    data = data_of_arrays(arrays)
    assert list(data.train.y) == list(data.evaluation.y) == ["kind"]


def test_plain_labels_are_no_dict_even_beside_others():
    arrays = {"x": X, "y": KIND, "y_angle": ANGLE}
    data = data_of_arrays(arrays)
    np.testing.assert_array_equal(data.train.y, KIND)
    assert "y_angle" in data.notes[0]


def test_plain_labels_of_the_splits_stay_plain():
    data = data_of_arrays({"x_train": X, "y_train": KIND, "x_test": X, "y_test": KIND})
    assert isinstance(data.train.y, np.ndarray)
    assert isinstance(data.evaluation.y, np.ndarray)


def test_inputs_by_name_keep_names_that_look_like_labels():
    split = data_of_arrays({"x_axis": X, "y_axis": X, "y": KIND}).train
    assert sorted(split.x) == ["x_axis", "y_axis"]


def test_inputs_by_name_take_labels_by_output():
    split = data_of_arrays({"image": X, "pose": X, "y_kind": KIND, "y_angle": ANGLE}).train
    assert (sorted(split.x), sorted(split.y)) == (["image", "pose"], ["angle", "kind"])


def test_two_axes_are_inputs_and_so_is_a_sole_array():
    assert sorted(data_of_arrays({"x_axis": X, "y_axis": X}).train.x) == ["x_axis", "y_axis"]
    split = data_of_arrays({"y_axis": X}).train
    assert split.x.shape == X.shape
    assert split.y is None


def test_output_names_may_hold_underscores_and_slashes():
    split = data_of_arrays({"x": X, "y_head/dense_1": KIND, "y_test_of_time": ANGLE}).train
    assert sorted(split.y) == ["head/dense_1", "test_of_time"]


def test_a_file_of_two_outputs_fits_its_model_and_trains_it(tmp_path):
    keras.utils.set_random_seed(0)
    path = tmp_path / "two.npz"
    np.savez(path, x=X, y_kind=KIND, y_angle=ANGLE)
    data = load_dataset(path)
    assert (len(data.train), len(data.evaluation)) == (8, 2)
    assert sorted(load_evaluation(path).y) == ["angle", "kind"]
    model = two_outputs()
    check_data(model, data.train)
    model.compile("sgd", {"kind": "sparse_categorical_crossentropy", "angle": "mse"})
    history = model.fit(**data.train.fit_arguments(4), verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_a_strange_output_name_is_refused_with_the_models_names():
    data = as_data({"x": X, "y_kind": KIND, "y_anlge": ANGLE})
    with pytest.raises(DataError, match="kind, angle. Received: kind, anlge"):
        check_data(two_outputs(), data.train)


def test_lengths_of_all_outputs_must_agree():
    with pytest.raises(DataError, match="same number of samples"):
        data_of_arrays({"x": X, "y_kind": KIND, "y_angle": ANGLE[:5]})
    assert len(Split(X, {"kind": KIND, "angle": ANGLE})) == 10


def test_class_names_with_characters_that_do_not_exist_are_refused(tmp_path):
    names = np.frombuffer(np.uint32([0x7FFFFFFF, 0x41]).tobytes(), "<U1")
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 3)), class_names=names)
    with pytest.raises(DataError, match=r"data\.npz.*SystemError|data\.npz.*ValueError"):
        load_dataset(tmp_path / "data.npz")
