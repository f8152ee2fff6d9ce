"""Load data: by name, from files of arrays and folders of images; damaged ones are refused."""

import io
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfedge.data import load_calibration, load_dataset, load_evaluation
from tfedge.errors import DataError, TfedgeError

RANDOM = np.random.default_rng(7)


def labelled(samples=40, classes=4, shape=(3,)):
    x = np.random.default_rng(1).normal(size=(samples, *shape)).astype(np.float32)
    return x, np.arange(samples) % classes


@pytest.fixture
def data_dir():
    folder = os.environ.get("TFEDGE_DATA_DIR", "")
    if not folder or not (Path(folder) / "cifar10_jpeg.npz").is_file():
        if "data" in os.environ.get("TFEDGE_REQUIRE", "").split(","):
            pytest.fail("TFEDGE_REQUIRE=data, but TFEDGE_DATA_DIR holds no cifar10_jpeg.npz")
        pytest.skip("TFEDGE_DATA_DIR holds no cifar10_jpeg.npz")
    return Path(folder)


def test_loading_and_judging_without_tensorflow_loads_neither_tensorflow_nor_keras():
    code = """
        import sys
        import numpy as np
        from tfedge.data import check_calibration, evaluate, load_dataset
        data = load_dataset("digits")
        check_calibration(data.calibration, data.train)
        evaluate(lambda x: np.eye(10)[np.zeros(len(x), int)], data.evaluation, "accuracy")
        heavy = ("tensorflow", "keras", "tf_keras")
        print([name for name in sys.modules if name.split(".")[0] in heavy])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_digits_have_a_fixed_stratified_test_split_that_shares_nothing_with_training():
    from sklearn.datasets import load_digits

    data, other = load_dataset("digits", seed=0), load_dataset("digits", seed=5)
    train, test = data.train, data.evaluation
    assert (train.x.shape, test.x.shape) == ((1258, 8, 8, 1), (539, 8, 8, 1))
    assert (train.x.dtype, train.y.dtype) == (np.float32, np.int64)
    assert (train.x.min(), train.x.max()) == (0, 1)
    np.testing.assert_array_equal(test.x, other.evaluation.x)
    np.testing.assert_array_equal(train.x, other.train.x)
    everything = np.sort([row.tobytes() for row in np.concatenate([train.x, test.x])])
    source = (load_digits().images / 16).astype(np.float32)
    np.testing.assert_array_equal(everything, np.sort([row.tobytes() for row in source]))
    shares = np.bincount(test.y) / np.bincount(np.concatenate([train.y, test.y]))
    assert np.abs(shares - 0.3).max() < 0.01
    assert data.classes == tuple("0123456789")


def test_calibration_is_a_seeded_stratified_sample_of_the_training_split():
    first, again, other = (load_dataset("digits", seed=s).calibration for s in (3, 3, 4))
    train = {row.tobytes() for row in load_dataset("digits").train.x}
    assert len(first) == 200
    assert all(row.tobytes() in train for row in first.x)
    assert np.bincount(first.y).min() >= 19
    np.testing.assert_array_equal(first.x, again.x)
    assert not np.array_equal(first.x, other.x)


def jpegs(count, seed=0, size=(32, 32)):
    random = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        buffer = io.BytesIO()
        blocks = random.integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(blocks).resize(size).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return np.frombuffer(b"".join(files), np.uint8), offsets, files


def write_cifar(folder, **changes):
    train, train_offsets, files = jpegs(30)
    test, test_offsets, _ = jpegs(10, seed=1)
    arrays = {
        "train_jpeg": train,
        "train_offsets": train_offsets,
        "y_train": (np.arange(30) % 10).astype(np.uint8).reshape(-1, 1),
        "test_jpeg": test,
        "test_offsets": test_offsets,
        "y_test": np.arange(10, dtype=np.uint8),
    }
    arrays.update(changes)
    np.savez(folder / "cifar10_jpeg.npz", **{n: a for n, a in arrays.items() if a is not None})
    return files


def test_cifar10_is_decoded_as_pillow_does_and_stays_raw(tmp_path, monkeypatch):
    files = write_cifar(tmp_path)
    monkeypatch.setenv("TFEDGE_DATA_DIR", str(tmp_path))
    data = load_dataset("cifar10")
    expected = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    np.testing.assert_array_equal(data.train.x, expected)
    assert data.train.x.dtype == np.float32
    assert (data.train.y.shape, data.train.y.dtype) == ((30,), np.int64)
    assert data.classes[3] == "cat"


def test_mnist_in_the_format_of_keras_is_scaled_to_one(tmp_path, monkeypatch):
    pixels = RANDOM.integers(0, 256, (20, 28, 28), np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    np.savez(
        tmp_path / "mnist.npz", x_train=pixels, y_train=labels, x_test=pixels[:5], y_test=labels[:5]
    )
    monkeypatch.setenv("TFEDGE_DATA_DIR", str(tmp_path))
    data = load_dataset("mnist")
    np.testing.assert_allclose(data.train.x[..., 0], pixels / 255, atol=1e-7)
    assert (data.train.x.shape, data.train.x.dtype) == ((20, 28, 28, 1), np.float32)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train_jpeg": None}, "must hold the arrays train_jpeg"),
        ({"train_offsets": np.array([0, 10, 5])}, "Offsets must rise"),
        ({"train_offsets": np.array([0, 10**9])}, "Offsets must rise"),
        ({"train_offsets": np.array([[0, 1]])}, "Offsets must rise"),
        ({"train_jpeg": np.zeros(100_000, np.uint8)}, "cannot be decoded as an image"),
        (
            dict(zip(("train_jpeg", "train_offsets"), jpegs(30, size=(32, 31))[:2], strict=True)),
            "must be 32×32",
        ),
    ],
)
def test_a_damaged_cifar_file_is_refused(changes, match, tmp_path, monkeypatch):
    write_cifar(tmp_path, **changes)
    monkeypatch.setenv("TFEDGE_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=match):
        load_dataset("cifar10")


def test_real_cifar10_and_mnist_load_whole(data_dir):
    cifar, mnist = load_dataset("cifar10"), load_dataset("mnist")
    assert cifar.train.x.shape == (50_000, 32, 32, 3)
    assert cifar.evaluation.x.shape == (10_000, 32, 32, 3)
    assert mnist.train.x.shape == (60_000, 28, 28, 1)
    assert (np.bincount(cifar.evaluation.y) == 1000).all()
    with np.load(data_dir / "cifar10_jpeg.npz") as arrays:
        assert tuple(arrays["class_names"]) == cifar.classes
        joined, offsets = arrays["test_jpeg"], arrays["test_offsets"]
    for index in (0, 4_321, 9_999):
        image = Image.open(io.BytesIO(joined[offsets[index] : offsets[index + 1]].tobytes()))
        np.testing.assert_array_equal(cifar.evaluation.x[index], np.asarray(image))


def test_a_failed_download_says_how_to_give_the_file(tmp_path):
    code = """
        from tfedge.data import load_dataset
        from tfedge.errors import DataError
        try:
            load_dataset("mnist")
        except DataError as error:
            print(error)
    """
    environment = {name: v for name, v in os.environ.items() if name != "TFEDGE_DATA_DIR"}
    closed = "http://127.0.0.1:9"
    environment.update(KERAS_HOME=str(tmp_path), https_proxy=closed, HTTPS_PROXY=closed)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1
    assert "'mnist' could not be downloaded" in lines[0]
    assert "Put `mnist.npz` into a folder and set TFEDGE_DATA_DIR" in lines[0]


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("digit", "Did you mean 'digits'?"),
        ("no/such/file.npz", "There is no file `no/such/file.npz`"),
        ("nowhere", "There is no data set, file or folder 'nowhere'"),
    ],
)
def test_an_unknown_source_is_one_clear_line(source, match):
    for load in (load_dataset, load_calibration, load_evaluation):
        with pytest.raises(DataError) as caught:
            load(source)
        assert match in str(caught.value)
        assert "\n" not in str(caught.value)


def test_npz_with_train_and_test_arrays_keeps_both_splits_as_stored(tmp_path):
    x, y = labelled(300)
    path = tmp_path / "data.npz"
    np.savez(
        path, x_train=x, y_train=y, x_test=x[:9], y_test=y[:9], class_names=list("abcd"), extra=y
    )
    data = load_dataset(path)
    np.testing.assert_array_equal(data.train.x, x)
    np.testing.assert_array_equal(data.evaluation.y, y[:9])
    assert data.classes == ("a", "b", "c", "d")
    assert data.notes == ("Arrays of data.npz that were not used: extra.",)
    assert len(load_evaluation(path)) == 9


def test_npz_without_a_split_gets_a_seeded_stratified_one_and_says_so(tmp_path):
    x, y = labelled(100, classes=4)
    order = np.argsort(y, kind="stable")  # sorted by class: the first 80 would lack one
    path = tmp_path / "data.npz"
    np.savez(path, x=x[order], y=y[order])
    data = load_dataset(path, seed=3)
    assert (len(data.train), len(data.evaluation)) == (80, 20)
    assert np.bincount(data.evaluation.y).tolist() == [5, 5, 5, 5]
    assert "20 of 100 samples" in data.notes[0]
    seen = {row.tobytes() for row in data.train.x}
    assert not any(row.tobytes() in seen for row in data.evaluation.x)
    np.testing.assert_array_equal(data.train.x, load_dataset(path, seed=3).train.x)
    assert len(load_evaluation(path)) == 100


def test_calibration_reads_x_the_only_array_or_inputs_by_name(tmp_path):
    x, y = labelled(12)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    np.savez(tmp_path / "only.npz", whatever=x)
    np.savez(tmp_path / "named.npz", left=x, right=x[:, :2])
    np.save(tmp_path / "x.npy", x)
    for name in ("x.npz", "only.npz", "x.npy"):
        np.testing.assert_array_equal(load_calibration(tmp_path / name), x)
    named = load_calibration(tmp_path / "named.npz")
    assert {key: value.shape for key, value in named.items()} == {"left": (12, 3), "right": (12, 2)}
    assert load_calibration(tmp_path / "x.npy", samples=5).shape == (5, 3)
    assert load_calibration("digits").shape == (200, 8, 8, 1)
    assert load_calibration("digits", samples=400).shape == (400, 8, 8, 1)


def broken_files(folder):
    x, y = labelled(2000)
    np.savez_compressed(folder / "whole.npz", x=x, y=y)
    np.save(folder / "whole.npy", x)
    np.savez(folder / "unequal.npz", a=x, b=x[:5])
    np.savez(folder / "lengths.npz", x=x, y=y[:7])
    np.savez(folder / "names.npz", x=x, y=np.array(["cat"] * 2000))
    np.savez(folder / "nothing.npz")
    np.savez(folder / "empty.npz", x=x[:0])
    content = (folder / "whole.npz").read_bytes()
    (folder / "cut.npz").write_bytes(content[: len(content) // 2])
    (folder / "cut.npy").write_bytes((folder / "whole.npy").read_bytes()[:1000])
    (folder / "random.npz").write_bytes(RANDOM.bytes(5000))
    (folder / "blank.npz").write_bytes(b"")
    np.save(folder / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("cut.npz", "is cut short or damaged"),
        ("cut.npy", "is cut short or damaged"),
        ("blank.npz", "is cut short or damaged"),
        ("random.npz", "holds Python objects or is no `.npz`"),
        ("objects.npy", "loading objects could run code"),
        ("unequal.npz", r"Received: a \(2000, 3\), b \(5, 3\)"),
        ("lengths.npz", r"same number of samples. Received shapes: x \(2000, 3\), y \(7,\)"),
        ("names.npz", "must be an array of numbers"),
        ("nothing.npz", "holds no array"),
        ("empty.npz", "at least one sample"),
    ],
)
def test_a_file_that_holds_no_usable_arrays_is_refused(name, match, tmp_path):
    broken_files(tmp_path)
    assert len(load_dataset(tmp_path / "whole.npz").train) == 1600
    with pytest.raises(DataError, match=match):
        load_dataset(tmp_path / name)


def test_no_cut_or_changed_byte_makes_anything_but_data_or_a_data_error(tmp_path):
    x, y = labelled(20)
    for name in ("a.npz", "a.npy"):
        path = tmp_path / name
        np.savez(path, x=x, y=y) if name == "a.npz" else np.save(path, x)
        content = path.read_bytes()
        for trial in range(300):
            random = np.random.default_rng(trial)
            changed = bytearray(content)
            for _ in range(random.integers(1, 4)):
                changed[random.integers(len(content))] = random.integers(256)
            path.write_bytes(
                bytes(changed[: random.integers(1, len(content)) if trial % 2 else None])
            )
            try:
                load_dataset(path)
            except DataError as error:
                assert "\n" not in str(error)


def test_a_pickle_in_a_file_is_never_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for name in ("payload.npy", "payload.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload()))
        with pytest.raises(DataError, match="could run code"):
            load_calibration(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def write_images(folder, per_class=6, size=(10, 8), classes=("zebra", "ant")):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            colour = (number * 100 + index, 50, 200)
            suffix = ("png", "bmp")[index % 2]
            Image.new("RGB", size, colour).save(folder / name / f"{index}.{suffix}")


def test_labels_of_an_image_folder_follow_the_sorted_class_names(tmp_path):
    write_images(tmp_path)
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_dataset(tmp_path)
    assert data.classes == ("ant", "zebra")
    assert data.train.x.shape[1:] == (8, 10, 3)
    assert data.train.x.dtype == np.float32
    assert len(data.train) + len(data.evaluation) == 12
    np.testing.assert_array_equal(data.train.x[:, 0, 0, 0] >= 100, data.train.y == 0)
    assert data.train.x[0, 0, 0, 2] == 200


def test_train_and_test_folders_are_the_splits(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", per_class=2)
    data = load_dataset(tmp_path)
    assert (len(data.train), len(data.evaluation), data.notes) == (12, 4, ())
    assert load_calibration(tmp_path).shape == (12, 8, 10, 3)
    Image.new("RGB", (10, 8)).save(tmp_path / "test" / "zebra" / "x.png")
    (tmp_path / "test" / "zebra").rename(tmp_path / "test" / "yak")
    with pytest.raises(DataError, match="Received: yak"):
        load_dataset(tmp_path)


def test_the_image_size_comes_from_the_argument_or_the_model(tmp_path):
    import keras

    write_images(tmp_path)
    grey = keras.Sequential([keras.Input((6, 5, 1)), keras.layers.Flatten()])
    assert load_dataset(tmp_path, image_size=(4, 4)).train.x.shape[1:] == (4, 4, 3)
    assert load_dataset(tmp_path, model=grey).train.x.shape[1:] == (6, 5, 1)
    assert load_calibration(tmp_path, model=grey, samples=3).shape == (3, 6, 5, 1)


def test_calibration_images_need_no_classes_and_are_not_the_first_ones(tmp_path):
    for index in range(40):
        Image.new("L", (4, 4), index).save(tmp_path / f"{index:02}.png")
    x = load_calibration(tmp_path, samples=10, image_size=(4, 4, 1))
    chosen = sorted(x[:, 0, 0, 0].astype(int))
    assert len(set(chosen)) == 10
    assert chosen != list(range(10))


def break_images(folder):
    write_images(folder)
    return folder / "ant" / "0.png"


@pytest.mark.parametrize(
    ("break_it", "options", "match"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:45]), {}, "cannot be decoded as an image"),
        (lambda p: p.write_bytes(b""), {}, "cannot be decoded as an image"),
        (lambda p: Image.new("I;16", (10, 8)).save(p), {}, "8 bits per channel"),
        (lambda p: Image.new("RGB", (3, 3)).save(p), {}, "Images must be of one size"),
        (lambda p: None, {"image_size": (4,)}, "`image_size` is"),
        (lambda p: None, {"image_size": (4, 4, 2)}, "`image_size` is"),
        (lambda p: None, {"image_size": (400_000, 400_000)}, "of memory"),
    ],
)
def test_images_that_cannot_be_used_are_named(break_it, options, match, tmp_path):
    break_it(break_images(tmp_path))
    with pytest.raises(TfedgeError, match=match):
        load_dataset(tmp_path, **options)


def test_a_folder_without_class_folders_says_what_it_should_hold(tmp_path):
    with pytest.raises(DataError, match="one folder per class"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match="holds no image"):
        load_calibration(tmp_path)
