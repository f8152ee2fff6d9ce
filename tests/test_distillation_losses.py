import numpy as np
import pytest
import tensorflow as tf

from tfedge.distillation import losses
from tfedge.distillation.forms import Form, Port, student_form, teacher_form

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (RNG.normal(0, 2, (6, 5)).astype(np.float32) for _ in range(2))
MAP, WIDE = (RNG.normal(size=(4, 6, 6, c)).astype(np.float32) for c in (3, 5))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def huber(d):
    return np.where(np.abs(d) <= 1, 0.5 * d * d, np.abs(d) - 0.5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_labels_are_the_divergence_of_softened_classes(temperature):
    p, q = softmax(STUDENT / temperature), softmax(TEACHER / temperature)
    wanted = temperature**2 * (q * np.log(q / p)).sum(-1)
    ours = losses.soft_label_loss(STUDENT, [TEACHER], temperature=temperature)
    assert np.allclose(ours, wanted, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_soft_labels_is_t_times_the_difference():
    z = tf.Variable(STUDENT)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(losses.soft_label_loss(z, [TEACHER], temperature=3.0))
    wanted = 3 * (softmax(STUDENT / 3) - softmax(TEACHER / 3))
    assert np.allclose(tape.gradient(loss, z), wanted, atol=1e-5)


def test_a_hot_temperature_compares_centred_logits():
    """Section 2.1 of Hinton et al.: the gradient goes to (z - v) / N for zero-mean logits."""
    z, v = (a - a.mean(-1, keepdims=True) for a in (STUDENT, TEACHER))
    variable = tf.Variable(z)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(losses.soft_label_loss(variable, [v], temperature=1e3))
    assert np.allclose(tape.gradient(loss, variable), (z - v) / 5, atol=2e-2)


def test_several_teachers_are_averaged_after_the_softmax():
    others = [TEACHER, TEACHER[::-1].copy()]
    q = 0.25 * softmax(others[0] / 2) + 0.75 * softmax(others[1] / 2)
    wanted = 4 * (q * (np.log(q) - np.log(softmax(STUDENT / 2)))).sum(-1)
    ours = losses.soft_label_loss(STUDENT, others, temperature=2.0, weights=[1, 3])
    assert np.allclose(ours, wanted, rtol=1e-4)


def test_classes_of_every_pixel_are_averaged_over_the_pixels():
    maps = RNG.normal(size=(2, 2, 3, 3, 5)).astype(np.float32)
    flat = losses.soft_label_loss(maps[0].reshape(18, 5), [maps[1].reshape(18, 5)])
    ours = losses.soft_label_loss(maps[0], [maps[1]])
    assert np.allclose(ours, np.reshape(flat, (2, 9)).mean(1), rtol=1e-5)


def test_a_certain_teacher_is_no_division_by_zero():
    certain = losses.logits_of(np.eye(5, dtype=np.float32)[[0, 1]], probabilities=True)
    assert np.isfinite(losses.soft_label_loss(STUDENT[:2], [certain], temperature=1.0)).all()
    binary = losses.logits_of(np.array([[0.0], [1.0]]), probabilities=True, binary=True)
    assert np.isfinite(losses.soft_binary_loss(STUDENT[:2, :1], [binary])).all()


def test_soft_yes_or_no_is_the_divergence_of_each_unit():
    p, q = (1 / (1 + np.exp(-z / 2)) for z in (STUDENT, TEACHER))
    wanted = 4 * (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean(-1)
    ours = losses.soft_binary_loss(STUDENT, [TEACHER], temperature=2.0)
    assert np.allclose(ours, wanted, rtol=1e-3, atol=1e-5)


def test_probabilities_become_their_logits():
    p = softmax(STUDENT)
    logits = losses.logits_of(p, probabilities=True).numpy()
    assert np.allclose(softmax(logits), p, atol=1e-6)
    q = 1 / (1 + np.exp(-STUDENT))
    assert np.allclose(losses.logits_of(q, probabilities=True, binary=True), STUDENT, atol=1e-3)
    assert np.array_equal(losses.logits_of(STUDENT, probabilities=False), STUDENT)


def test_features_are_compared_through_a_projection():
    matrix = RNG.normal(size=(3, 5)).astype(np.float32)
    wanted = ((MAP @ matrix - WIDE) ** 2).mean((1, 2, 3))
    assert np.allclose(losses.feature_loss(MAP, WIDE, matrix), wanted, rtol=1e-4)


def test_a_larger_map_of_the_teacher_is_resized():
    large = np.repeat(np.repeat(MAP, 2, 1), 2, 2)
    resized = tf.image.resize(large, (6, 6)).numpy()
    wanted = ((MAP - resized) ** 2).mean((1, 2, 3))
    assert np.allclose(losses.feature_loss(MAP, large), wanted, atol=1e-6)


def test_attention_is_the_distance_of_normalised_maps():
    rows = []
    for side in (MAP, WIDE):
        squares = (side**2).sum(-1).reshape(4, -1)
        rows.append(squares / np.linalg.norm(squares, axis=-1, keepdims=True))
    assert np.allclose(losses.attention_loss(MAP, WIDE), ((rows[0] - rows[1]) ** 2).sum(-1))
    assert np.allclose(losses.attention_loss(MAP, 7 * MAP), 0, atol=1e-6)


def test_relations_are_the_distances_and_angles_of_park_et_al():
    def distances(rows):
        apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
        return apart / apart[apart > 0].mean()

    def cosines(rows):
        edges = rows[None] - rows[:, None]
        length = np.linalg.norm(edges, axis=-1, keepdims=True)
        edges = np.divide(edges, length, out=np.zeros_like(edges), where=length > 0)
        return np.einsum("iad,ibd->iab", edges, edges)

    ours = RNG.normal(size=(6, 3)).astype(np.float32)
    wanted_distance = huber(distances(ours) - distances(TEACHER)).mean(-1)
    wanted_angle = huber(cosines(ours) - cosines(TEACHER)).mean((1, 2))
    assert np.allclose(losses.distance_loss(ours, TEACHER), wanted_distance, atol=1e-5)
    assert np.allclose(losses.angle_loss(ours, TEACHER), wanted_angle, atol=1e-5)
    both = losses.relational_loss(ours, TEACHER)
    assert np.allclose(both, wanted_distance + 2 * wanted_angle, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_relations_of_few_or_equal_samples_have_finite_gradients(rows):
    ours = tf.Variable(np.repeat(STUDENT[:1], rows, axis=0))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(losses.relational_loss(ours, TEACHER[:rows]))
    assert np.isfinite(tape.gradient(loss, ours)).all()


def test_a_weighted_mean_is_over_all_samples_as_kerass():
    rows, weights = np.array([1.0, 2.0, 3.0], np.float32), np.array([1.0, 0.0, 2.0])
    assert float(losses.weighted_mean(rows, weights)) == pytest.approx(7 / 3)
    assert float(losses.weighted_mean(rows, weights[:, None])) == pytest.approx(7 / 3)
    assert float(losses.weighted_mean(rows)) == pytest.approx(2)


def test_half_precision_is_computed_in_float32():
    half = STUDENT.astype(np.float16)
    assert losses.soft_label_loss(half, [half]).dtype == tf.float32
    assert losses.feature_loss(half, half).dtype == tf.float32


PROBABLE, ANY = softmax(STUDENT), STUDENT


@pytest.mark.parametrize(
    ("activation", "loss", "outputs", "form"),
    [
        ("softmax", "sparse_categorical_crossentropy", None, Form("classes", True)),
        ("linear", "categorical_crossentropy", None, Form("classes", False)),
        ("sigmoid", "binary_crossentropy", None, Form("binary", True)),
        ("linear", "mse", None, Form("values")),
        ("softmax", "mse", None, Form("values")),
        ("softmax", lambda y, p: y, None, Form("classes", True)),
        ("linear", lambda y, p: y, ANY, Form("values")),
        (None, lambda y, p: y, PROBABLE, Form("classes", True)),
        (None, "sparse_categorical_crossentropy", None, Form("classes", True)),
    ],
)
def test_what_a_student_gives_is_known_by_activation_and_loss(activation, loss, outputs, form):
    assert student_form(Port("end", (5,), activation), loss, outputs) == form


@pytest.mark.parametrize(
    ("activation", "kind", "outputs", "form"),
    [
        ("linear", "classes", PROBABLE, Form("classes", False)),
        (None, "classes", PROBABLE, Form("classes", True)),
        (None, "classes", ANY, Form("classes", False)),
        (None, "binary", PROBABLE, Form("binary", True)),
        (None, "values", None, Form("values")),
    ],
)
def test_what_a_teacher_gives_is_known_by_activation_else_by_values(
    activation, kind, outputs, form
):
    assert teacher_form(Port("end", (5,), activation), kind, outputs) == form
