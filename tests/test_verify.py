import keras
import numpy as np
import pytest
import tf_keras
from models import ZOO, inputs_of

import tfedge
from tfedge.convert import convert
from tfedge.data import Metric
from tfedge.errors import DataError, ModelError, SettingsError, VerificationError
from tfedge.verify import OutputDifference, _usual_metric, derangement, verify
from tfedge.verify._layers import paired
from tfedge.verify._sides import arranged


@pytest.fixture(scope="module")
def trained():
    """A small convolutional network that tells three kinds of image apart, and its images."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 240)
    images = random.normal(0, 0.2, (240, 8, 8, 1)).astype(np.float32)
    for row, label in enumerate(labels):
        images[row, 2 * label : 2 * label + 3] += 1.0
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(8, 3, padding="same", name="conv")(image)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.MaxPooling2D(name="pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(12, activation="relu", name="hidden")(x)
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax", name="classes")(x))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(images, labels, epochs=6, batch_size=32, verbose=0)
    return model, images, labels


@pytest.fixture(scope="module")
def files(trained):
    model, images, _ = trained
    return {
        "float32": convert(model, mode="float32")[0],
        "int8": convert(model, mode="int8", calibration=images)[0],
    }


def test_a_model_agrees_with_itself_exactly(trained):
    model, images, labels = trained
    report = verify(model, model, images, labels=labels)
    assert report.agreement == 1.0 and report.max_error == 0.0 and report.sqnr_db == np.inf
    assert report.reference_metric == report.candidate_metric
    assert report.first_parting is None and report.proven
    assert report.to_dict()["sqnr_db"] is None


def test_a_float_file_is_its_model(trained, files):
    model, images, labels = trained
    report = verify(model, files["float32"], images, labels=labels)
    assert report.agreement == 1.0 and report.max_error < 1e-5 and report.sqnr_db > 80
    assert report.first_parting is None
    assert {"conv", "relu", "pool", "hidden", "classes"} & {row.name for row in report.layers}


def test_an_int8_file_is_close_and_permuted_samples_are_not(trained, files):
    model, images, labels = trained
    report = verify(model, files["int8"], images, labels=labels)
    assert report.agreement >= 0.98 and report.control_agreement < 0.6
    assert 15 < report.sqnr_db < 80 and report.proven
    assert report.metric == "accuracy"
    assert abs(report.reference_metric - report.candidate_metric) <= 0.02
    assert report.reference_metric == np.mean(model.predict(images, verbose=0).argmax(1) == labels)


def test_two_files_are_compared_by_their_tensors(trained, files):
    _, images, _ = trained
    report = verify(files["float32"], files["int8"], images)
    assert report.layers and all(row.sqnr_db > 10 for row in report.layers)
    back = verify(files["int8"], files["float32"], images, tensors=False)
    assert back.max_error == report.max_error and back.layers == ()


def test_a_path_and_its_bytes_are_the_same(trained, files, tmp_path):
    model, images, _ = trained
    path = tmp_path / "model.tflite"
    path.write_bytes(files["int8"])
    assert verify(model, path, images) == verify(model, str(path), images)
    assert verify(model, path, images) == verify(model, files["int8"], images)


def test_the_layer_that_was_broken_is_named(trained):
    model, images, _ = trained
    broken = tfedge.copy_model(model)
    hidden = broken.get_layer("hidden")
    hidden.set_weights([np.flip(weight, axis=-1) for weight in hidden.get_weights()])
    report = verify(model, convert(broken, mode="float32")[0], images)
    assert report.first_parting == "hidden"
    assert "They first part at `hidden`." in report.verdict
    good = {row.name: row.sqnr_db for row in report.layers}
    assert all(good[name] > 40 for name in good if name in ("conv", "relu", "pool"))


def test_untrained_models_with_equal_outputs_prove_nothing():
    image = keras.Input((4,))
    constant = keras.layers.Dense(3, kernel_initializer="zeros", bias_initializer="ones")
    model = keras.Model(image, constant(image))
    inputs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    report = verify(model, model, inputs)
    assert report.agreement == 1.0 and not report.proven
    assert report.verdict.startswith("These figures prove nothing")


def test_one_sample_proves_nothing(trained, files):
    model, images, _ = trained
    report = verify(model, files["int8"], images[:1])
    assert not report.proven and report.control_agreement is None
    assert report.verdict.startswith("One sample proves nothing")


def test_a_regression_is_judged_by_its_noise():
    model = ZOO["dense"](keras)
    model = keras.Model(model.inputs, keras.layers.Dense(1, name="value")(model.outputs[0]))
    inputs = inputs_of(model, count=64)
    report = verify(model, convert(model, mode="float32")[0], inputs)
    assert report.agreement is None and report.sqnr_db > 80
    assert report.outputs[0].control_sqnr_db < report.sqnr_db - 6


def two_outputs():
    keras.utils.set_random_seed(3)
    image = keras.Input((6, 6, 1), name="image")
    x = keras.layers.Flatten(name="flatten")(image)
    x = keras.layers.Dense(16, activation="tanh", name="hidden")(x)
    kind = keras.layers.Dense(4, name="kind")(x)
    size = keras.layers.Dense(1, name="size")(x)
    return keras.Model(image, {"kind": kind, "size": size})


def test_several_outputs_are_told_apart_by_name():
    model = two_outputs()
    random = np.random.default_rng(5)
    images = random.normal(size=(80, 6, 6, 1)).astype(np.float32)
    labels = {"kind": random.integers(0, 4, 80), "size": random.normal(size=(80, 1))}
    report = verify(
        model,
        convert(model, mode="float32")[0],
        images,
        labels=labels,
        metric={"kind": "accuracy", "size": "mae"},
    )
    assert {row.name for row in report.outputs} == {"kind", "size"}
    rows = {row.name: row for row in report.outputs}
    assert rows["kind"].agreement == 1.0 and rows["size"].agreement is None
    assert rows["kind"].metric == "accuracy" and rows["size"].metric == "mae"
    assert rows["size"].reference_metric == pytest.approx(rows["size"].candidate_metric, rel=1e-5)


@pytest.mark.parametrize("name", sorted(ZOO))
@pytest.mark.parametrize("module", (keras, tf_keras), ids=("keras", "tf_keras"))
def test_every_model_of_the_zoo_matches_its_float_file(module, name):
    model = ZOO[name](module)
    inputs = inputs_of(model, count=8)
    report = verify(model, convert(model, mode="float32")[0], inputs)
    assert report.agreement == 1.0 and report.sqnr_db > 80
    assert report.first_parting is None, report.layers
    assert len(report.layers) >= 2


def test_not_a_number_is_called_by_its_name(trained):
    model, images, _ = trained
    broken = tfedge.copy_model(model)
    last = broken.get_layer("classes")
    last.set_weights([np.full_like(weight, np.nan) for weight in last.get_weights()])
    report = verify(model, broken, images[:20], tensors=False)
    assert not report.proven and "not numbers" in report.verdict


def test_a_metric_of_ones_own_is_used(trained, files):
    model, images, labels = trained
    wrong = Metric(
        name="wrong",
        higher_is_better=False,
        function=lambda truth, scores: float((truth != scores.argmax(1)).sum()),
    )
    report = verify(model, files["int8"], images, labels=labels, metric=wrong)
    assert report.metric == "wrong"
    assert report.reference_metric == (model.predict(images, verbose=0).argmax(1) != labels).sum()


def test_a_derangement_leaves_nothing_in_its_place():
    for count in (2, 3, 17, 500):
        order = derangement(count, seed=count)
        assert sorted(order) == list(range(count))
        assert not (order == np.arange(count)).any()


ERRORS = (
    ({"metric": "accuracy"}, SettingsError, "A metric needs `labels`"),
    ({"labels": np.zeros(3, int)}, DataError, "Every sample needs a label"),
    ({"labels": {"clases": np.zeros(240, int)}}, DataError, "Did you mean 'classes'"),
)


@pytest.mark.parametrize(("kwargs", "error", "match"), ERRORS)
def test_wrong_arguments_are_refused(trained, kwargs, error, match):
    model, images, labels = trained
    with pytest.raises(error, match=match):
        verify(model, model, images, **kwargs)
    assert verify(model, model, images, labels=labels, metric="accuracy", tensors=False).proven


def test_models_of_other_outputs_are_refused(trained):
    model, images, _ = trained
    other = keras.Model(model.inputs, model.get_layer("hidden").output)
    with pytest.raises(VerificationError, match="outputs of the same shapes"):
        verify(model, other, images)


def test_inputs_are_arranged_by_name_or_order():
    first, second = np.zeros((2, 1)), np.ones((2, 1))
    names = ("serving_default_left:0", "serving_default_right:0")
    rows = arranged({"right": second, "left": first}, names)
    assert [row[0, 0] for row in rows] == [0.0, 1.0]
    assert [row[0, 0] for row in arranged((first, second), names)] == [0.0, 1.0]
    with pytest.raises(DataError, match="takes 2 input"):
        arranged(first, names)
    with pytest.raises(DataError, match="Name them alike"):
        arranged({"up": first, "down": second}, names)


def test_a_model_of_dicts_is_compared_key_by_key():
    """Keras gives the dict back as it was written; files hold inputs and outputs sorted by key."""
    keras.utils.set_random_seed(0)
    late, early = keras.Input((4,), name="z"), keras.Input((4,), name="a")
    hidden = keras.layers.Dense(3, name="hidden")(early)
    sums = keras.layers.Add()([hidden, keras.layers.Dense(3)(late)])
    outputs = {"second": keras.layers.Dense(2)(sums), "first": keras.layers.Dense(2)(hidden)}
    model = keras.Model({"z": late, "a": early}, outputs)
    random = np.random.default_rng(0)
    inputs = {name: random.normal(size=(40, 4)).astype(np.float32) for name in "za"}
    for mode in ("float32", "int8"):
        content, _ = convert(model, mode=mode, calibration=inputs if mode == "int8" else None)
        report = verify(model, content, inputs)
        assert {row.name for row in report.outputs} == {"first", "second"}
        assert min(row.sqnr_db for row in report.outputs) > 10
        assert "hidden" in {row.name for row in report.layers}


@pytest.mark.parametrize(
    ("truth", "outputs", "name"),
    [
        ([0, 1, 1], [[0.2], [0.8], [0.4]], "accuracy"),
        ([0, 2, 1], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], "accuracy"),
        ([[0.9, 0.1], [0.0, 1.0]], [[0.7, 0.3], [0.1, 0.9]], "accuracy"),
        ([0.5, -3.0], [[0.4], [-2.0]], "mean_absolute_error"),
        ([21, 64], [[20.0], [60.0]], "mean_absolute_error"),
        ([[4.0, -1.0]], [[3.0, -1.0]], "mean_absolute_error"),
    ],
)
def test_the_usual_metric_is_accuracy_for_classes_and_an_error_for_quantities(truth, outputs, name):
    assert _usual_metric(np.array(truth), np.array(outputs)) == name


def test_no_input_is_refused(trained):
    model, images, _ = trained
    with pytest.raises(DataError, match="at least one"):
        verify(model, model, images[:0])


def test_a_fused_tensor_stands_for_its_last_layer():
    conv, norm, relu = (np.full((1, 2, 2, 3), float(value)) for value in (1, 2, 3))
    layers = [("conv", conv), ("norm", norm), ("relu", relu)]
    fused = "model/relu/Relu;model/norm/FusedBatchNormV3;model/conv/Conv2D"
    ((name, expected, received),) = paired(layers, [(fused, relu)])
    assert name == "relu" and expected is relu and np.array_equal(received, relu)
    assert paired(layers, [("model/other/Add", relu)]) == []


def test_rows_are_plain_values():
    row = OutputDifference(
        name="classes",
        agreement=None,
        control_agreement=None,
        max_error=0.0,
        mean_error=0.0,
        sqnr_db=float("inf"),
        control_sqnr_db=None,
    )
    assert row.to_dict()["sqnr_db"] is None


def test_a_model_that_cannot_run_is_named_with_what_it_raised():
    @keras.saving.register_keras_serializable("test_verify")
    class Broken(keras.layers.Layer):
        def call(self, inputs):
            if self.built_once:
                raise TypeError("half a kernel")
            return inputs

        built_once = False

    layer = Broken()
    model = keras.Sequential([keras.Input((3,)), layer], name="broken")
    layer.built_once = True
    with pytest.raises(ModelError, match=r"`broken`.*TypeError.*half a kernel"):
        verify(model, model, np.zeros((4, 3), "float32"), tensors=False)
