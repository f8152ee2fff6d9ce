import keras
import numpy as np
import pytest
import tf_keras
from models import CLASSES, ZOO, inputs_of, labels_of, weights_of

import tfedge
from tfedge.distillation import Distillation, Distiller, Feature, LegacyDistiller
from tfedge.errors import SettingsError

LOSS = "sparse_categorical_crossentropy"
KINDS = {"keras": (keras, Distiller), "tf_keras": (tf_keras, LegacyDistiller)}
X, Y = inputs_of(ZOO["dense"](keras), 64), labels_of(64)


def wide(k, seed=9):
    k.utils.set_random_seed(seed)
    layers = [
        k.layers.Input((16,)),
        k.layers.Dense(32, activation="relu", name="wide_1"),
        k.layers.Dense(CLASSES, activation="softmax", name="wide_classes"),
    ]
    return k.Sequential(layers, name="wide")


@pytest.mark.parametrize("kind", KINDS)
def test_a_distiller_trains_as_the_student_alone_trains_with_a_teacher(kind):
    k, cls = KINDS[kind]
    teacher = wide(k)
    distiller, alone = cls(ZOO["dense"](k), teacher), ZOO["dense"](k)
    for model in (distiller, alone):
        model.compile("sgd", LOSS, metrics=["accuracy"])
    k.utils.set_random_seed(1)
    first = distiller.fit(X, Y, epochs=2, batch_size=16, verbose=0).history
    k.utils.set_random_seed(1)
    with Distillation(teacher).teaching(alone):
        second = alone.fit(X, Y, epochs=2, batch_size=16, verbose=0).history
    assert first == second
    for a, b in zip(distiller.student.get_weights(), alone.get_weights(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_distiller_evaluates_and_predicts_as_its_student(kind):
    k, cls = KINDS[kind]
    student = ZOO["dense"](k)
    distiller = cls(student, wide(k))
    for model in (distiller, student):
        model.compile("sgd", LOSS, metrics=["accuracy"])
    ours, alone = (m.evaluate(X, Y, verbose=0) for m in (distiller, student))
    assert np.allclose(ours, alone)
    assert np.array_equal(distiller.predict(X, verbose=0), student.predict(X, verbose=0))
    assert len(distiller.weights) == len(student.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_distiller_goes_on_where_it_was(kind, tmp_path):
    k, cls = KINDS[kind]
    teacher = wide(k)
    teacher.save(tmp_path / "teacher.keras")
    features = [Feature(student="hidden_1", teacher="wide_1", weight=0.5)]

    def fitted(distiller, first, last):
        k.utils.set_random_seed(first)
        distiller.fit(X, Y, initial_epoch=first, epochs=last, batch_size=16, verbose=0)

    distiller = cls(ZOO["dense"](k), tmp_path / "teacher.keras", temperature=3.0, features=features)
    distiller.compile(k.optimizers.SGD(0.05, momentum=0.9), LOSS)
    fitted(distiller, 0, 1)
    distiller.save(tmp_path / "distiller.keras")
    again = tfedge.load_model(tmp_path / "distiller.keras")
    assert type(again) is cls
    for a, b in zip(distiller.student.get_weights(), again.student.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert again.get_config()["temperature"] == 3.0
    matrices = [m._settings.matrices[0] for m in (distiller, again)]
    assert np.array_equal(*matrices)
    assert matrices[0].shape == (24, 32)
    fitted(again, 1, 2)
    assert not np.array_equal(again._settings.matrices[0], matrices[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_was_left_out_is_asked_for_and_given_back(kind, tmp_path):
    k, cls = KINDS[kind]
    distiller = cls(ZOO["dense"](k), wide(k), weights=(1.0, 2.0))
    distiller.compile("sgd", LOSS)
    distiller.fit(X, Y, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    again = tfedge.load_model(tmp_path / "distiller.keras")
    with pytest.raises(SettingsError, match="give_teacher"):
        again.fit(X, Y, verbose=0)
    again.give_teacher(wide(k))
    assert "teacher_loss" in again.fit(X, Y, verbose=0).history


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_two_halves_equals_training_at_once(kind, tmp_path):
    k, cls = KINDS[kind]

    def one():
        distiller = cls(ZOO["dense"](k), wide(k))
        distiller.compile(k.optimizers.SGD(0.05, momentum=0.9), LOSS)
        return distiller

    whole, halves = one(), one()
    whole.fit(X, Y, epochs=4, batch_size=16, shuffle=False, verbose=0)
    halves.fit(X, Y, epochs=2, batch_size=16, shuffle=False, verbose=0)
    halves.save(tmp_path / "halves.keras")
    again = tfedge.load_model(tmp_path / "halves.keras")
    again.give_teacher(wide(k))
    again.fit(X, Y, initial_epoch=2, epochs=4, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(weights_of(whole.student), weights_of(again.student), strict=True):
        assert np.allclose(a, b, atol=1e-6)


def test_a_student_of_the_other_keras_is_refused():
    with pytest.raises(SettingsError, match="LegacyDistiller"):
        Distiller(ZOO["dense"](tf_keras), wide(keras))
    with pytest.raises(SettingsError, match="Take `Distiller`"):
        LegacyDistiller(ZOO["dense"](keras), wide(keras))
    Distiller(ZOO["dense"](keras), wide(tf_keras))
