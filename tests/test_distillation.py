import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from models import CLASSES, ZOO, inputs_of, labels_of, weights_of

import tfedge
from tfedge.data import Data, Split
from tfedge.distillation import Distillation, Feature, caching
from tfedge.distillation.teachers import BATCH, open_teacher
from tfedge.errors import DataError, ModelError, SettingsError, TrainingError
from tfedge.models import copy_model
from tfedge.stages._base import Context
from tfedge.stages._fit import make_fit
from tfedge.stages.finetune import FineTune
from tfedge.stages.prune import Prune
from tfedge.stages.quantize import Quantize

LOSS = "sparse_categorical_crossentropy"
KERASES = {"keras": keras, "tf_keras": tf_keras}
X, Y = inputs_of(ZOO["dense"](keras), 64), labels_of(64)
MANY = inputs_of(ZOO["dense"](keras), 40 * BATCH + 7)


def dense(k, *, units=24, last="softmax", classes=CLASSES, seed=3, dropout=0.0, features=16):
    k.utils.set_random_seed(seed)
    layers = [k.layers.Input((features,)), k.layers.Dense(units, activation="relu", name="hidden")]
    layers += [k.layers.Dropout(dropout)] if dropout else []
    scale = k.initializers.RandomNormal(0, 0.5, seed=seed)
    layers.append(k.layers.Dense(classes, last, kernel_initializer=scale, name="end"))
    return k.Sequential(layers, name=f"net_{seed}")


def student_of(k, loss=LOSS, seed=5, rate=0.1, **settings):
    model = dense(k, seed=seed, **settings)
    model.compile(k.optimizers.SGD(rate), loss, metrics=["accuracy"])
    return model


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def divergence(student, teacher, temperature):
    """Of two arrays of probabilities, as Hinton et al. soften them."""
    p, q = (softmax(np.log(np.clip(v, 1e-7, 1)) / temperature) for v in (student, teacher))
    return temperature**2 * (q * (np.log(q) - np.log(p))).sum(-1)


def trained(settings, student, x=X, y=Y, epochs=1, batch=64, **others):
    with settings.teaching(student):
        return student.fit(x, y, epochs=epochs, batch_size=batch, verbose=0, **others).history


# ---------------------------------------------------------------------- the whole step


@pytest.mark.parametrize("kind", KERASES)
def test_the_loss_of_a_step_is_the_weighted_sum_and_metrics_see_the_plain_labels(kind):
    k = KERASES[kind]
    teacher, student = dense(k), student_of(k)
    before = student.predict(X, verbose=0)
    weights = np.linspace(0.5, 2, 64).astype(np.float32)
    logs = trained(Distillation(teacher, temperature=3, alpha=0.7), student, sample_weight=weights)
    hard = -np.log(before[np.arange(64), Y])
    soft = divergence(before, teacher.predict(X, verbose=0), 3)
    labels, said = (weights * hard).mean(), (weights * soft).mean()
    assert logs["label_loss"][0] == pytest.approx(labels, rel=1e-4)
    assert logs["teacher_loss"][0] == pytest.approx(said, rel=1e-3)
    assert logs["loss"][0] == pytest.approx(0.3 * labels + 0.7 * said, rel=1e-3)
    assert logs["accuracy"][0] == pytest.approx((before.argmax(-1) == Y).mean())


@pytest.mark.parametrize("kind", KERASES)
def test_class_weights_count_in_both_parts_and_beside_sample_weights(kind):
    k = KERASES[kind]
    teacher, table = dense(k), {0: 3.0, 2: 0.5}
    by_class = np.array([3.0, 1.0, 0.5, 1.0], np.float32)[Y]
    other = np.linspace(0.5, 2, 64).astype(np.float32)
    runs = []
    for others in (
        {"class_weight": table, "sample_weight": other},
        {"sample_weight": by_class * other},
    ):
        student = student_of(k)
        trained(Distillation(teacher), student, **others)
        runs.append(student.get_weights())
    for a, b in zip(*runs, strict=True):
        assert np.allclose(a, b, atol=1e-6)
    plain = student_of(k)
    trained(Distillation(teacher), plain)
    assert not np.allclose(plain.get_weights()[0], runs[0][0], atol=1e-4)


@pytest.mark.parametrize("kind", KERASES)
def test_regularisation_counts_in_full_whatever_alpha_is(kind):
    k = KERASES[kind]
    x = k.Input((16,))
    ends = k.layers.Dense(CLASSES, "softmax", kernel_regularizer="l2")(x)
    student = k.Model(x, ends)
    student.compile("sgd", LOSS)
    extra = 0.01 * (student.get_weights()[0] ** 2).sum()
    logs = trained(Distillation(student_of(k), alpha=1.0), student)
    assert logs["loss"][0] == pytest.approx(logs["teacher_loss"][0] + extra, rel=1e-4)


@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize("features", [(), {"hidden": "hidden"}], ids=["outputs", "features"])
def test_what_is_cached_trains_bit_for_bit_as_a_teacher_in_the_step(kind, features, tmp_path):
    k = KERASES[kind]
    x, y = MANY[: 2 * BATCH], labels_of(2 * BATCH)
    teacher = dense(k, units=40)
    ends = []
    for cache in (True, False, tmp_path)[: 2 if features else 3]:
        student = student_of(k, dropout=0.2)
        k.utils.set_random_seed(0)
        trained(Distillation(teacher, cache=cache, features=features), student, x, y, 2, BATCH)
        ends.append(student.get_weights())
    for first, *others in zip(*ends, strict=True):
        assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize("cache", [True, False])
def test_the_teacher_is_left_as_it_was(kind, cache):
    k = KERASES[kind]
    teacher = ZOO["conv_bn_relu"](k)
    teacher.compile("adam", LOSS, metrics=["accuracy"])
    teacher.layers[1].trainable = False
    student = copy_model(teacher)
    x, y = inputs_of(teacher, 32), labels_of(32)
    before, flags = weights_of(teacher), [layer.trainable for layer in teacher.layers]
    own = {layer.name: set(vars(layer)) for layer in teacher.layers}
    optimizer = teacher.optimizer
    settings = Distillation(teacher, cache=cache, features={"relu_1": "relu_1"})
    trained(settings, student, x, y, batch=16)
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(teacher), strict=True))
    assert [layer.trainable for layer in teacher.layers] == flags
    assert teacher.optimizer is optimizer
    assert not any("call" in vars(layer) for layer in teacher.layers)
    assert {layer.name: set(vars(layer)) for layer in teacher.layers} == own


@pytest.mark.parametrize("kind", KERASES)
def test_a_student_comes_back_as_it_was_compiled_even_after_an_error(kind):
    k = KERASES[kind]
    student = student_of(k)
    cls, own, optimizer, loss = type(student), set(vars(student)), student.optimizer, student.loss
    seen = []

    def stop(epoch, logs):
        seen.append(callback.model is student)
        raise KeyboardInterrupt

    callback = k.callbacks.LambdaCallback(on_epoch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        trained(Distillation(dense(k)), student, callbacks=[callback])
    assert seen == [True]
    assert type(student) is cls
    assert (student.optimizer, student.loss) == (optimizer, loss)
    assert not {"fit", "train_step", "compute_loss", "compute_metrics"} & set(vars(student))
    assert set(vars(student)) - own <= {"_eval_epoch_iterator", "history", "_initial_epoch"}
    assert set(student.fit(X, Y, verbose=0).history) == {"loss", "accuracy"}


class Counting(keras.layers.Layer):
    """Counts how often it is called in training."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.calls.assign_add(1)
        return x


@pytest.mark.parametrize("cache", [True, False])
def test_the_student_runs_once_in_a_step_with_features_too(cache):
    image = keras.Input((16,))
    counting = Counting(name="counting")
    x = counting(keras.layers.Dense(8, activation="relu", name="hidden")(image))
    student = keras.Model(image, keras.layers.Dense(CLASSES, "softmax")(x))
    student.compile("sgd", LOSS)
    features = [
        Feature(student="hidden", teacher="hidden"),
        Feature(student="counting", teacher="hidden", loss="relational"),
    ]
    trained(Distillation(dense(keras), cache=cache, features=features), student, epochs=2, batch=16)
    assert int(counting.calls.numpy()) == 2 * 4


# ---------------------------------------------------------------------- teachers and outputs


def test_logits_and_probabilities_teach_alike():
    ends = []
    for last in ("softmax", "linear"):
        teacher = dense(keras, last=last)
        for own, loss in (
            ("softmax", LOSS),
            ("linear", keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        ):
            student = student_of(keras, loss, last=own)
            trained(Distillation(teacher), student)
            ends.append(student.get_weights()[0])
    assert all(np.allclose(ends[0], end, atol=1e-5) for end in ends[1:])


@pytest.mark.parametrize("kind", KERASES)
def test_several_teachers_teach_the_mean_of_their_probabilities(kind):
    k = KERASES[kind]
    first, second = dense(k, seed=1), dense(k, seed=2)
    student = student_of(k)
    own, one, two = (m.predict(X, verbose=0) for m in (student, first, second))
    mean = 0.25 * softmax(np.log(one) / 2) + 0.75 * softmax(np.log(two) / 2)
    p = softmax(np.log(own) / 2)
    wanted = 4 * (mean * (np.log(mean) - np.log(p))).sum(-1).mean()
    settings = Distillation([first, second], temperature=2, teacher_weights=[1, 3])
    assert trained(settings, student)["teacher_loss"][0] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("kind", KERASES)
def test_values_are_learned_by_their_squared_error(kind):
    k = KERASES[kind]
    teacher = dense(k, last="linear", classes=2)
    student = student_of(k, "mse", last="linear", classes=2)
    difference = teacher.predict(X, verbose=0) - student.predict(X, verbose=0)
    logs = trained(Distillation(teacher), student, y=np.zeros((64, 2), np.float32))
    assert logs["teacher_loss"][0] == pytest.approx((difference**2).mean(), rel=1e-4)


def test_a_yes_or_no_is_learned_by_its_log_odds():
    teacher = dense(keras, last="sigmoid", classes=1)
    student = student_of(keras, "binary_crossentropy", last="sigmoid", classes=1)
    p, q = (m.predict(X, verbose=0)[:, 0] for m in (student, teacher))
    logs = trained(Distillation(teacher, temperature=1), student, y=(Y > 1).astype("float32"))
    wanted = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    assert logs["teacher_loss"][0] == pytest.approx(wanted.mean(), rel=1e-3)


def two_headed(k, order, seed):
    k.utils.set_random_seed(seed)
    image = k.Input((16,))
    x = k.layers.Dense(8, activation="relu")(image)
    ends = {
        "group": k.layers.Dense(CLASSES, "softmax", name="group")(x),
        "size": k.layers.Dense(CLASSES, name="size")(x),
    }
    return k.Model(image, [ends[name] for name in order])


@pytest.mark.parametrize("kind", KERASES)
def test_two_outputs_are_matched_by_name(kind):
    k = KERASES[kind]
    teacher, student = two_headed(k, ("size", "group"), 1), two_headed(k, ("group", "size"), 2)
    student.compile("sgd", loss=[LOSS, "mse"])
    (size, group), (own, own_size) = (m.predict(X, verbose=0) for m in (teacher, student))
    wanted = divergence(own, group, 4).mean() + ((size - own_size) ** 2).mean()
    sizes = np.zeros((64, CLASSES), np.float32)
    logs = trained(Distillation(teacher), student, y=[Y, sizes])
    assert logs["teacher_loss"][0] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("kind", KERASES)
def test_a_tflite_file_teaches_as_the_model_that_it_was_made_of(kind, tmp_path):
    k = KERASES[kind]
    teacher = dense(k)
    content = tfedge.convert(teacher, mode="float32")[0]
    path = tmp_path / "teacher.tflite"
    path.write_bytes(content)
    teacher.save(tmp_path / "teacher.keras")
    ends = []
    for source in (teacher, path, content, str(tmp_path / "teacher.keras")):
        student = student_of(keras)
        trained(Distillation(source), student)
        ends.append(student.get_weights())
    for end in ends[1:]:
        assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(ends[0], end, strict=True))


def test_a_teacher_of_the_other_keras_teaches_in_the_step_too():
    ends = []
    for k in (keras, tf_keras):
        teacher = dense(k)
        teacher.set_weights(dense(keras).get_weights())
        student = student_of(keras)
        trained(Distillation(teacher, cache=False), student)
        ends.append(student.get_weights())
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(*ends, strict=True))


# ---------------------------------------------------------------------- under stages


def learnable(samples=512, seed=0):
    draw = np.random.default_rng(seed)
    y = draw.integers(0, CLASSES, samples)
    x = draw.normal(0, 0.3, (samples, 16)).astype(np.float32)
    x[np.arange(samples), 4 * y] += 2
    return Split(x, y)


@pytest.mark.parametrize("kind", KERASES)
def test_a_student_is_pruned_while_it_learns_from_a_teacher(kind):
    k = KERASES[kind]
    fit = make_fit(Data(train=learnable()), epochs=3, learning_rate=0.01)
    seen = []

    def watched(model, callbacks):
        history = fit(model, callbacks)
        seen.append(history.history)
        return history

    student = student_of(k)
    pruned, report = Prune(sparsity=0.75).apply(
        student, Context(fit=Distillation(dense(k)).wrap(watched))
    )
    assert report.metrics["sparsity"] == pytest.approx(0.75, abs=0.01)
    assert np.mean(pruned.get_weights()[0] == 0) == pytest.approx(0.75, abs=0.01)
    assert seen[0]["teacher_loss"][-1] < seen[0]["teacher_loss"][0]
    assert pruned.loss == LOSS


@pytest.mark.parametrize("kind", KERASES)
def test_a_quantize_aware_student_ends_in_an_int8_file_that_does_as_well(kind):
    k = KERASES[kind]
    data, held_out = learnable(), learnable(2000, seed=1)
    teacher = student_of(k)
    teacher.fit(data.x, data.y, epochs=4, verbose=0)
    fit = Distillation(teacher).wrap(make_fit(Data(train=data), epochs=6))
    student = student_of(k, seed=8)
    prepared, _ = Quantize().apply(student, Context(fit=fit, data=Data(calibration=data)))
    file = tfedge.convert(prepared, mode="int8", calibration=data.x)[0]
    with tfedge.open_model(file) as opened:
        integer = (opened.predict(held_out.x).argmax(-1) == held_out.y).mean()
    fake = (prepared.predict(held_out.x, verbose=0).argmax(-1) == held_out.y).mean()
    assert abs(integer - fake) <= 0.002
    assert fake > 0.9


@pytest.mark.parametrize("kind", KERASES)
def test_features_are_found_in_a_student_that_is_pruned(kind):
    k = KERASES[kind]
    fit = make_fit(Data(train=learnable(128)), epochs=2)
    settings = Distillation(dense(k, units=32), features={"hidden": "hidden"})
    _, report = Prune(sparsity=0.5).apply(student_of(k), Context(fit=settings.wrap(fit)))
    assert report.metrics["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("kind", KERASES)
def test_a_fit_of_ones_own_distils_and_one_that_goes_past_fit_is_refused(kind):
    k = KERASES[kind]

    def own(model, callbacks):
        model.compile("sgd", LOSS)
        return model.fit(X, Y, callbacks=list(callbacks), verbose=0)

    def loop(model, callbacks):
        model(X)

    distillation = Distillation(dense(k))
    assert "teacher_loss" in distillation.wrap(own)(student_of(k), []).history
    with pytest.raises(TrainingError, match=r"did not call `model\.fit`.*loop"):
        distillation.wrap(loop)(student_of(k), [])


class OwnStep(keras.Model):
    """Computes its loss in its own step, past `compute_loss` or through it."""

    through = False

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            plain = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, y_pred))
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred) if self.through else plain
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return self.compute_metrics(x, y, y_pred)


@pytest.mark.parametrize("through", [True, False])
def test_a_step_of_ones_own_distils_if_it_calls_compute_loss(through):
    base = dense(keras)
    student = OwnStep(base.inputs, base.outputs)
    student.through = through
    student.compile("sgd", LOSS)
    settings = Distillation(dense(keras, seed=9))
    if through:
        assert trained(settings, student)["teacher_loss"][0] > 0
    else:
        with pytest.raises(TrainingError, match=r"`self\.compute_loss"):
            trained(settings, student)


# ---------------------------------------------------------------------- unlabelled samples


@pytest.mark.parametrize("kind", KERASES)
def test_samples_without_labels_train_on_the_teacher_alone(kind):
    k = KERASES[kind]
    teacher, marked = dense(k), np.where(np.arange(64) < 16, Y, -1)
    student = student_of(k)
    before, said = (m.predict(X, verbose=0) for m in (student, teacher))
    logs = trained(Distillation(teacher, alpha=0.5), student, y=marked)
    hard = -np.log(before[np.arange(16), Y[:16]]).sum() / 64
    assert logs["label_loss"][0] == pytest.approx(hard, rel=1e-4)
    assert logs["teacher_loss"][0] == pytest.approx(divergence(before, said, 4).mean(), rel=1e-3)
    assert logs["accuracy"][0] == pytest.approx((before[:16].argmax(-1) == Y[:16]).mean())
    joined = student_of(k)
    settings = Distillation(teacher, alpha=0.5, unlabelled=X[16:])
    others = trained(settings, joined, X[:16], Y[:16])
    assert others["loss"][0] == pytest.approx(logs["loss"][0], rel=1e-5)
    for a, b in zip(student.get_weights(), joined.get_weights(), strict=True):
        assert np.allclose(a, b, atol=1e-6)


def test_data_without_labels_train_on_the_teacher():
    student = student_of(keras)
    logs = trained(Distillation(dense(keras), alpha=1.0), student, y=None, epochs=20)
    assert logs["teacher_loss"][-1] < logs["teacher_loss"][0]
    assert "accuracy" not in logs


# ---------------------------------------------------------------------- the cache


class Asked:
    """A teacher that counts the samples it is asked about, and may break off."""

    def __init__(self, teacher, most=10**9):
        self._teacher, self.samples, self._most = teacher, 0, most

    def outputs(self, x):
        if len(x) > 1:
            self.samples += len(x)
        if self.samples > self._most:
            raise KeyboardInterrupt
        return self._teacher.outputs(x)

    def identity(self, sample):
        return self._teacher.identity(sample)


def test_an_interrupted_cache_on_disk_goes_on_where_it_was(tmp_path):
    teacher = open_teacher(dense(keras))
    broken = Asked(teacher, most=35 * BATCH)
    with pytest.raises(KeyboardInterrupt):
        caching.TeacherCache(tmp_path).outputs(broken, MANY)
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    again = Asked(teacher)
    (said,) = caching.TeacherCache(tmp_path).outputs(again, MANY)
    assert again.samples == len(MANY) - 32 * BATCH
    assert np.array_equal(said, caching.TeacherCache().outputs(teacher, MANY)[0])
    assert [path.suffix for path in tmp_path.iterdir()] == [""]
    third = Asked(teacher)
    caching.TeacherCache(tmp_path).outputs(third, MANY)
    assert third.samples == 0


@pytest.mark.parametrize("changed", ["teacher", "activation", "data", "order"])
def test_a_stale_cache_is_never_used(changed, tmp_path):
    model, x = dense(keras), X
    cache = caching.TeacherCache(tmp_path)
    cache.outputs(open_teacher(model), x)
    if changed == "teacher":
        model.set_weights([1.5 * weight for weight in model.get_weights()])
    elif changed == "activation":
        other = dense(keras, last="sigmoid")
        other.set_weights(model.get_weights())
        model = other
    else:
        x = x[::-1].copy() if changed == "order" else np.where(X.max() == X, 0, X)
    asked = Asked(open_teacher(model))
    cache.outputs(asked, x)
    assert asked.samples >= len(x)


def test_a_second_fit_asks_the_teacher_nothing(monkeypatch):
    teacher = dense(keras)
    settings = Distillation(teacher)
    trained(settings, student_of(keras))
    monkeypatch.setattr(caching, "_asked", lambda *_: pytest.fail("asked again"))
    trained(settings, student_of(keras, seed=6))


def test_a_cache_that_cannot_be_written_is_said_to_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(tfedge.errors.FileWriteError, match="cache=True"):
        trained(Distillation(dense(keras), cache=tmp_path / "file"), student_of(keras))


# ---------------------------------------------------------------------- pipelines


@pytest.mark.parametrize("kind", KERASES)
def test_a_pipeline_finds_what_was_said_of_each_sample_in_any_order(kind):
    k = KERASES[kind]
    ordered = tf.data.Dataset.from_tensor_slices((X, Y))
    ends = []
    for cache in (True, False):
        student = student_of(k)
        pipeline = ordered.shuffle(64, seed=1, reshuffle_each_iteration=False).batch(16)
        trained(
            Distillation(dense(k), cache=cache), student, pipeline, None, 2, None, shuffle=False
        )
        ends.append(student.get_weights())
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("kind", KERASES)
def test_a_pipeline_that_augments_needs_the_teacher_in_the_step(kind):
    k = KERASES[kind]
    noise = tf.random.Generator.from_seed(1)
    pipeline = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    pipeline = pipeline.map(lambda x, y: (x + noise.normal(tf.shape(x)), y))
    with pytest.raises(DataError, match="cache=False"):
        trained(Distillation(dense(k)), student_of(k), pipeline, None, 2, None, shuffle=False)
    trained(
        Distillation(dense(k), cache=False), student_of(k), pipeline, None, 2, None, shuffle=False
    )


def test_samples_of_several_inputs_are_found_again():
    teacher = ZOO["two_inputs"](keras)
    image, extra = inputs_of(teacher, 16)
    pipeline = tf.data.Dataset.from_tensor_slices(((image, extra), labels_of(16)))
    pipeline = pipeline.shuffle(16, seed=0, reshuffle_each_iteration=False).batch(8)
    ends = []
    for cache in (True, False):
        student = copy_model(teacher)
        student.compile("sgd", LOSS)
        trained(Distillation(teacher, cache=cache), student, pipeline, None, 1, None, shuffle=False)
        ends.append(student.get_weights())
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(*ends, strict=True))


def batches():
    while True:
        yield X, Y


def test_a_generator_needs_the_teacher_in_the_step():
    with pytest.raises(SettingsError, match="cache=False"):
        trained(
            Distillation(dense(keras)), student_of(keras), batches(), None, 1, None,
            steps_per_epoch=2, shuffle=False,
        )  # fmt: skip
    logs = trained(
        Distillation(dense(keras), cache=False), student_of(keras), batches(), None, 1, None,
        steps_per_epoch=2, shuffle=False,
    )  # fmt: skip
    assert logs["teacher_loss"][0] > 0


# ---------------------------------------------------------------------- learning


def maps(k, filters, seed):
    k.utils.set_random_seed(seed)
    layers = [k.layers.Input((8, 8, 3)), k.layers.Conv2D(filters, 3, activation="relu", name="map")]
    layers += [k.layers.GlobalAveragePooling2D(name="pool"), k.layers.Dense(CLASSES, "softmax")]
    return k.Sequential(layers)


@pytest.mark.parametrize(
    ("loss", "layer"), [("mse", "map"), ("attention", "map"), ("relational", "pool")]
)
def test_features_of_every_loss_are_learned(loss, layer):
    x = np.random.default_rng(0).random((32, 8, 8, 3)).astype(np.float32)
    student = maps(keras, 4, 1)
    student.compile(keras.optimizers.Adam(0.01), LOSS)
    feature = Feature(student=layer, teacher=layer, loss=loss)
    settings = Distillation(maps(keras, 6, 2), features=feature, weights=(0.0, 0.0))
    logs = trained(settings, student, x, labels_of(32), epochs=12, batch=16)
    assert logs["loss"][-1] == pytest.approx(logs["feature_loss"][-1])
    assert logs["feature_loss"][-1] < 0.8 * logs["feature_loss"][0]


def test_the_student_comes_nearer_to_its_teacher():
    data = learnable()
    teacher = student_of(keras)
    teacher.fit(data.x, data.y, epochs=5, verbose=0)
    student = student_of(keras, seed=8, units=8)
    fit = Distillation(teacher, alpha=1.0).wrap(make_fit(Data(train=data), epochs=8))
    before = divergence(*(m.predict(data.x, verbose=0) for m in (student, teacher)), 1).mean()
    fit(student, [])
    after = divergence(*(m.predict(data.x, verbose=0) for m in (student, teacher)), 1).mean()
    assert after < 0.3 * before


def test_fine_tuning_goes_on_as_ever_beside_it():
    student = student_of(keras)
    _, report = FineTune(epochs=1).apply(student, Context(data=Data(train=learnable(64))))
    assert report.changed == ("hidden", "end")


def half(**settings):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        student = dense(keras)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    student.compile("sgd", LOSS, **settings)
    return student


def test_it_trains_under_xla_and_in_half_precision():
    settings = Distillation(dense(keras, seed=9, units=40), features={"hidden": "hidden"})
    logs = trained(settings, half(jit_compile=True), epochs=3)
    assert np.isfinite(logs["loss"]).all()
    assert logs["feature_loss"][-1] < logs["feature_loss"][0]


def test_metrics_of_samples_without_labels_are_refused_under_xla():
    marked, settings = np.where(np.arange(64) < 16, Y, -1), Distillation(dense(keras))
    with pytest.raises(SettingsError, match="jit_compile=False"):
        trained(settings, half(jit_compile=True, metrics=["accuracy"]), y=marked)
    trained(settings, half(jit_compile=False, metrics=["accuracy"]), y=marked)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "match", "good"),
    [
        ({"temperature": 0}, "`temperature` is a positive", {"temperature": 0.5}),
        ({"temperature": float("nan")}, "`temperature` is a positive", {}),
        ({"alpha": 1.1}, r"\[0, 1\].*1\.1", {"alpha": 1}),
        ({"alpha": -0.1}, r"\[0, 1\]", {"alpha": 0}),
        ({"alpha": 0.5, "weights": (1, 1)}, "Leave one out", {"weights": (1, 1)}),
        ({"weights": (1, -1)}, "two factors", {"weights": (0.0, 3.0)}),
        ({"features": "hidden"}, "mapping", {"features": {"hidden": "hidden"}}),
        ({"teacher_weights": [1, 2]}, "each of 1", {"teacher_weights": [2]}),
        ({"cache": 3}, "`cache` is", {"cache": False}),
        ({"kind": "class"}, "'classes'", {"kind": "classes"}),
    ],
)
def test_settings_out_of_range_are_refused(settings, match, good):
    with pytest.raises(SettingsError, match=match):
        Distillation("teacher.keras", **settings)
    Distillation("teacher.keras", **good)


def tflite():
    return tfedge.convert(dense(keras), mode="float32")[0]


def nan_teacher():
    model = dense(keras)
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    return model


def overflowing():
    model = dense(keras, last="linear")
    model.set_weights([np.full_like(weight, 1e38) for weight in model.get_weights()])
    return model


@pytest.mark.parametrize(
    ("teacher", "settings", "error", "match"),
    [
        (lambda: dense(keras, classes=5), {}, SettingsError, "classes apart.*5 of.*4 of"),
        (lambda: dense(keras, features=9), {}, SettingsError, "same inputs"),
        (lambda: two_headed(keras, ("size", "group"), 1), {}, SettingsError, "2 of"),
        (dense, {"features": {"hiden": "hidden"}}, SettingsError, "Did you mean 'hidden'"),
        (dense, {"features": {"hidden": "hiden"}}, SettingsError, "Did you mean 'hidden'"),
        (dense, {"features": Feature(student="hidden", teacher="hidden", loss="attention")},
         SettingsError, "'attention' compares maps"),
        (tflite, {"cache": False}, SettingsError, "tflite"),
        (tflite, {"features": {"hidden": "hidden"}}, SettingsError, "does not show"),
        (lambda: 7, {}, SettingsError, "A teacher is"),
        (nan_teacher, {}, ModelError, "finite"),
        (overflowing, {}, TrainingError, "sample 0"),
        (lambda: "absent.keras", {}, ModelError, "exists"),
    ],
)  # fmt: skip
def test_teachers_that_do_not_fit_are_refused(teacher, settings, error, match):
    given = teacher(keras) if teacher is dense else teacher()
    with pytest.raises(error, match=match):
        trained(Distillation(given, **settings), student_of(keras))


def test_a_student_does_not_teach_itself():
    student = student_of(keras)
    with pytest.raises(SettingsError, match="itself"):
        trained(Distillation(student), student)
    trained(Distillation(copy_model(student)), student)


def test_importing_the_settings_loads_no_tensorflow():
    code = (
        "import json, sys; from tfedge.distillation import Distillation, Feature\n"
        "Distillation('teacher.keras', features=Feature(student='a', teacher='b'))\n"
        "print(json.dumps([m for m in ('tensorflow', 'keras', 'tf_keras') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
