"""Figures of merit: Keras and scikit-learn are the oracles; what means nothing is refused."""

import sys

import numpy as np
import pytest

from tfedge.data import (
    Metric,
    Split,
    agreement,
    evaluate,
    find_metric,
    load_dataset,
    sqnr_db,
)
from tfedge.errors import DataError, SettingsError, TfedgeWarning

MODULE = """
def mine(y_true, y_pred): return float((y_true == y_pred.argmax(-1)).mean())
mine_with_direction = lambda y_true, y_pred: 1.0
mine_with_direction.higher_is_better = False
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "edge_sample_metrics.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "edge_sample_metrics"
    sys.modules.pop("edge_sample_metrics", None)


SCORES = np.random.default_rng(0).random((60, 7)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 7, 60)


@pytest.mark.parametrize(
    ("name", "oracle", "y", "scores"),
    [
        ("accuracy", "SparseCategoricalAccuracy", LABELS, SCORES),
        ("accuracy", "SparseCategoricalAccuracy", LABELS.reshape(-1, 1), SCORES),
        ("accuracy", "CategoricalAccuracy", np.eye(7)[LABELS], SCORES),
        ("accuracy", "BinaryAccuracy", LABELS % 2, SCORES[:, :1]),
        ("binary_accuracy", "BinaryAccuracy", np.eye(7)[LABELS], SCORES),
        ("sparse_top_k_categorical_accuracy", "SparseTopKCategoricalAccuracy", LABELS, SCORES),
        ("top_k_categorical_accuracy", "TopKCategoricalAccuracy", np.eye(7)[LABELS], SCORES),
        ("mae", "MeanAbsoluteError", SCORES[::-1], SCORES),
        ("MeanSquaredError", "MeanSquaredError", SCORES[::-1], SCORES),
        ("rmse", "RootMeanSquaredError", SCORES[::-1], SCORES),
        ("auc", "AUC", np.eye(7)[LABELS], SCORES),
        ("Precision", "Precision", np.eye(7)[LABELS], SCORES),
        ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy", LABELS, SCORES),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_named_metrics_equal_those_of_keras(name, oracle, y, scores, weighted):
    import keras

    weight = np.linspace(0.1, 2, 60).astype(np.float32) if weighted else None
    reference = getattr(keras.metrics, oracle)()
    reference.update_state(y, scores, sample_weight=weight)
    split = Split(scores, y, weight)
    found = evaluate(lambda x: x, split, name)
    assert found == pytest.approx(float(reference.result()), abs=2e-6)


def test_mean_iou_equals_that_of_keras():
    import keras

    labels = np.random.default_rng(4).integers(0, 5, (6, 8, 8))
    scores = np.random.default_rng(5).random((6, 8, 8, 7))
    reference = keras.metrics.MeanIoU(7, sparse_y_pred=False)
    reference.update_state(labels, scores)
    assert find_metric("MeanIoU").function(labels, scores) == pytest.approx(
        float(reference.result()), abs=1e-6
    )


def test_f1_is_the_mean_over_classes():
    from sklearn.metrics import f1_score

    one_hot = np.eye(7)[LABELS]
    found = evaluate(lambda x: x, Split(SCORES, one_hot), "f1_score")
    guess = SCORES.argmax(-1)
    assert found == pytest.approx(f1_score(LABELS, guess, average="macro"), abs=1e-6)


def test_directions_are_known_or_must_be_said(module):
    higher = {
        name: find_metric(name).higher_is_better for name in ("accuracy", "auc", "top_3_accuracy")
    }
    lower = {name: find_metric(name).higher_is_better for name in ("mae", "mse", "kl_divergence")}
    assert all(higher.values())
    assert not any(lower.values())
    assert find_metric(f"max:{module}:mine").higher_is_better
    assert not find_metric(f"{module}:mine_with_direction").higher_is_better
    assert find_metric("min:mean").name == "mean"
    metric = find_metric("mae")
    assert find_metric(metric) is metric
    assert metric.worse_by(1.0, 1.5) == 0.5
    assert find_metric("accuracy").worse_by(0.9, 0.8) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("metric", "match"),
    [
        ("acuracy", "Did you mean 'accuracy'?"),
        ("min:accuracy", "Write max:accuracy"),
        ("max:no_such_metric", "Keras has no metric 'no_such_metric'"),
        ("max:sensitivity_at_specificity", "works without settings"),
        ("mean", "whose direction is known"),
        ("edge_sample_metrics:mine", "The direction of the metric"),
        ("max:edge_sample_metrics:mine_with_direction", "Write min:"),
        (np.mean, "The direction of the metric 'mean'"),
        (3, "A metric is a name"),
    ],
)
def test_metrics_without_a_function_or_a_direction_are_refused(metric, match, module):
    with pytest.raises(SettingsError) as caught:
        find_metric(metric)
    assert match in str(caught.value)


def test_a_keras_metric_object_is_refused_because_it_keeps_state():
    import keras

    with pytest.raises(SettingsError, match="Received: the Keras object"):
        find_metric(keras.metrics.AUC())


def test_the_figure_does_not_depend_on_the_batch_size_and_permuted_labels_score_badly():
    from sklearn.linear_model import LogisticRegression

    data = load_dataset("digits")
    flat = data.train.x.reshape(len(data.train), -1)
    classifier = LogisticRegression(max_iter=300).fit(flat, data.train.y)

    def predict(x):
        return classifier.predict_proba(x.reshape(len(x), -1))

    figures = {evaluate(predict, data.evaluation, "accuracy", batch_size=b) for b in (7, 100, 1024)}
    assert len(figures) == 1
    assert figures.pop() > 0.93
    permuted = np.random.default_rng(0).permutation(data.evaluation.y)
    assert evaluate(predict, Split(data.evaluation.x, permuted), "accuracy") < 0.2


def test_a_metric_of_ones_own_sees_all_samples_at_once(module):
    seen = []

    def largest_error(y_true, y_pred):
        seen.append(len(y_true))
        return np.abs(y_true - y_pred).max()

    metric = Metric(name="largest", higher_is_better=False, function=largest_error)
    split = Split(np.arange(10.0).reshape(10, 1), np.zeros((10, 1)))
    assert evaluate(lambda x: x, split, metric, batch_size=3) == 9
    assert seen == [10]
    weighted = Split(split.x, split.y, np.ones(10))
    with pytest.warns(TfedgeWarning, match="no argument `sample_weight`"):
        evaluate(lambda x: x, weighted, metric)


def test_several_outputs_have_a_metric_each():
    x = np.arange(8.0).reshape(8, 1)
    names = {"near": "mae", "far": "mae"}
    expected = {"near": 1.0, "far": 10.0}
    split = Split(x, {"near": x, "far": x})
    assert evaluate(lambda x: {"near": x + 1, "far": x + 10}, split, names) == expected
    order = ["near", "far"]
    assert evaluate(lambda x: [x + 1, x + 10], split, names, output_names=order) == expected
    with pytest.raises(DataError, match="need a name for each of the 2 arrays"):
        evaluate(lambda x: [x, x], split, names)
    with pytest.raises(DataError, match="Did you mean 'near'?"):
        evaluate(lambda x: {"near": x, "far": x}, split, {"neat": "mae"})


@pytest.mark.parametrize(
    ("predict", "y", "metric", "match"),
    [
        (lambda x: x, None, "accuracy", "Evaluation needs labels"),
        (lambda x: x[:1], LABELS, "accuracy", "one row for each of the 60 samples"),
        (lambda x: x * np.nan, SCORES, "mae", "came out as nan"),
        (lambda x: x, LABELS, "f1_score", "failed on labels (60,) and predictions (60, 7)"),
        (lambda x: x, LABELS[:, None, None], "accuracy", "Received: (60, 1, 1)"),
        (lambda x: x, LABELS + 1, "accuracy", "from 0 to 6"),
        (lambda x: x, np.ones((60, 7), int), "accuracy", "metric `binary_accuracy`"),
        (lambda x: x, LABELS, "mae", "Received: (60,) and (60, 7)"),
    ],
)  # fmt: skip
def test_figures_that_would_mean_nothing_are_refused(predict, y, metric, match):
    with pytest.raises(DataError) as caught:
        evaluate(predict, Split(SCORES, y), metric)
    assert match in str(caught.value)


def test_binary_predictions_that_look_like_logits_warn():
    with pytest.warns(TfedgeWarning, match="look like logits"):
        find_metric("accuracy").function(np.array([0, 1]), np.array([[-3.0], [2.0]]))


def test_sqnr_follows_its_definition_and_agreement_counts_equal_choices():
    x = np.random.default_rng(0).normal(size=10_000)
    noise = np.random.default_rng(1).normal(size=10_000) * 0.1
    assert sqnr_db(x, x + noise) == pytest.approx(20, abs=0.3)
    assert sqnr_db(x, x) == np.inf
    assert sqnr_db(np.zeros(3), np.ones(3)) == -np.inf
    scores = np.random.default_rng(2).random((5000, 10))
    assert agreement(scores, scores + 1) == 1
    assert agreement(scores, np.random.default_rng(3).permutation(scores)) < 0.15
    assert agreement(np.array([[0.4], [0.6]]), np.array([[0.1], [0.2]])) == 0.5
    with pytest.raises(DataError, match="one shape"):
        agreement(scores, scores[:3])
