"""What a teacher brings a small student that has few labels, and what a step with it costs.

    python benchmarks/distillation.py [--seeds 5] [--epochs 30] [--steps 60]

The setting is fixed: MNIST with 2,000 labels drawn by class, the other 58,000 training images
without labels. A teacher (two convolutions, 256 dense units) trains on the 2,000 labels. The
student (16 dense units) trains with the teacher on all images, and without it on the labels: for as
many epochs, and for as many steps, of which the better one in the mean is the one to beat. All
start from the same weights with the same optimizer. Nothing is chosen by the test images but that
one, which favours the student without a teacher.

Claims, checked with the figures of this run (exit code 1 if one fails):
  - the student with a teacher beats the one without by more than 2 standard errors (paired);
  - a step with cached outputs costs at most 1.1 times a step of plain training;
  - it costs at most half of a step of `keras.distillation.Distiller`, with a teacher of 10 times
    the student's parameters.
The claims on steps are those of a small convolutional student. Those of a dense one are printed
beside them: it computes for so short a time that Keras's own work around a step decides.
The time to fill the cache is printed and counted in the total of the training with a teacher.
Steps are timed in turns, so that a busy machine slows all variants alike. Needs `mnist.npz` in
`TFEDGE_DATA_DIR`.
"""

import argparse
import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402  # the environment comes first
import numpy as np  # noqa: E402

from tfedge.data import load_dataset  # noqa: E402
from tfedge.distillation import Distillation  # noqa: E402
from tfedge.distillation.caching import TeacherCache  # noqa: E402
from tfedge.distillation.teachers import open_teacher  # noqa: E402
from tfedge.models import copy_model  # noqa: E402

LABELS = 2000
BATCH = 64
WARM = 20
LOSS = "sparse_categorical_crossentropy"
TEMPERATURE, ALPHA = 4.0, 0.9
SHORT, LONG, TAUGHT = "alone, epochs", "alone, steps", "with teacher"
MOST_STEP, MOST_OF_KERAS = 1.1, 0.5


def make_teacher():
    """Two convolutions and 256 dense units: 431,242 parameters."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(256, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def make_student():
    """One hidden layer of 16 units: 12,730 parameters."""
    return dense(16)


def dense(*units):
    """A network of dense layers."""
    layers = keras.layers
    hidden = [layers.Dense(count, activation="relu") for count in units]
    last = layers.Dense(10, activation="softmax")
    return keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), *hidden, last])


def convolutional(width):
    """Two convolutions of `width` and 2 `width` channels, and a dense layer."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(width, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(2 * width, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )


def compiled(model, rate=1e-3):
    model.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"])
    return model


def accuracy(model, split):
    return float((model.predict(split.x, batch_size=500, verbose=0).argmax(-1) == split.y).mean())


# ---------------------------------------------------------------------- what it brings


def one_seed(data, seed, epochs):
    """Accuracies and seconds of one seed: teacher, student alone, student with the teacher."""
    labelled = data.train.take(LABELS, seed)
    others = rest_of(data.train, labelled, seed)
    keras.utils.set_random_seed(seed)
    teacher, seconds = compiled(make_teacher()), {}
    started = time.perf_counter()
    teacher.fit(labelled.x, labelled.y, batch_size=BATCH, epochs=40, verbose=0)
    seconds["teacher"] = time.perf_counter() - started
    start = compiled(make_student())
    short, long, taught = (copy_model(start) for _ in range(3))
    steps = -(-len(data.train) // BATCH) * epochs
    passes = steps // -(-LABELS // BATCH)
    for name, model, count in ((SHORT, short, epochs), (LONG, long, passes)):
        started = time.perf_counter()
        model.fit(labelled.x, labelled.y, batch_size=BATCH, epochs=count, verbose=0)
        seconds[name] = time.perf_counter() - started
    distillation = Distillation(teacher, temperature=TEMPERATURE, alpha=ALPHA, unlabelled=others)
    started = time.perf_counter()
    with distillation.teaching(taught):
        taught.fit(labelled.x, labelled.y, batch_size=BATCH, epochs=epochs, verbose=0)
    seconds[TAUGHT] = time.perf_counter() - started  # the filling of the cache is in it
    models = {"teacher": teacher, SHORT: short, LONG: long, TAUGHT: taught}
    return {name: accuracy(model, data.evaluation) for name, model in models.items()}, seconds


def rest_of(train, labelled, seed):
    """The training images without those whose labels are used."""
    known = {image.tobytes() for image in labelled.x}
    kept = np.array([image.tobytes() not in known for image in train.x])
    return train.x[kept]


# ---------------------------------------------------------------------- what it costs


class Variant:
    """A model in training, one step at a time, on data that Keras's own pipeline feeds.

    Args:
        model: Compiled.
        x: Images.
        y: Labels.
    """

    def __init__(self, model, x, y):
        self.model, self.x, self.y = model, x, y
        self.times, self.turns = [], []  # of every step, and the median of every turn

    def run(self, steps):
        """Fit for so many steps, and keep how long each took after the first few."""
        times, last = [], [0.0]

        def begin(batch, logs):
            last[0] = time.perf_counter()

        def end(batch, logs):
            times.append(1000 * (time.perf_counter() - last[0]))

        watch = keras.callbacks.LambdaCallback(on_train_batch_begin=begin, on_train_batch_end=end)
        count = (steps + WARM) * BATCH
        self.model.fit(
            self.x[:count], self.y[:count], batch_size=BATCH, verbose=0, callbacks=[watch]
        )
        self.times += times[WARM:]
        self.turns.append(statistics.median(times[WARM:]))


def step_costs(data, student, teacher, steps, turns):
    """What a cached step costs over a plain one, and over one of Keras's Distiller."""
    x, y = data.train.x, data.train.y
    compiled(teacher)
    settings = {"temperature": TEMPERATURE, "alpha": ALPHA}
    models = {name: compiled(copy_model(student)) for name in ("plain", "cached", "in the step")}
    by_keras = keras.distillation.Distiller(
        teacher=keras.models.clone_model(teacher),
        student=copy_model(student),
        distillation_losses=keras.distillation.LogitsDistillation(temperature=TEMPERATURE),
        student_loss_weight=1 - ALPHA,
    )
    models["keras Distiller"] = compiled(by_keras)
    variants = {name: Variant(model, x, y) for name, model in models.items()}
    cached = Distillation(teacher, **settings)
    asked = Distillation(teacher, cache=False, **settings)
    print(f"student {student.count_params():,} parameters, teacher {teacher.count_params():,}")
    for _ in range(turns):
        variants["plain"].run(steps)
        with cached.teaching(models["cached"]):
            variants["cached"].run(steps)
        with asked.teaching(models["in the step"]):
            variants["in the step"].run(steps)
        variants["keras Distiller"].run(steps)
    print_steps(variants)
    print(f"cache of {len(x):,} images filled in {fill_seconds(teacher, x):.1f} s")
    return tuple(
        ratio_of(variants["cached"], variants[name]) for name in ("plain", "keras Distiller")
    )


def ratio_of(first, second):
    """The median over turns: within a turn, the machine is as busy for both."""
    return statistics.median(a / b for a, b in zip(first.turns, second.turns, strict=True))


def print_steps(variants):
    print(f"{'variant':18}{'ms/step':>9}{'steps':>8}{'cached / it':>13}")
    for name, variant in variants.items():
        ratio = ratio_of(variants["cached"], variant)
        median = statistics.median(variant.times)
        print(f"{name:18}{median:>9.3f}{len(variant.times):>8}{ratio:>13.3f}", flush=True)


def fill_seconds(teacher, x):
    """How long it takes to ask a teacher about all training images."""
    opened = open_teacher(teacher)
    started = time.perf_counter()
    TeacherCache().outputs(opened, x)
    return time.perf_counter() - started


# ---------------------------------------------------------------------- tables and claims


def print_accuracies(rows):
    names = ("teacher", SHORT, LONG, TAUGHT)
    print(f"{'seed':>4}" + "".join(f"{name:>15}" for name in names)
          + "".join(f"{f's, {name}':>18}" for name in names))  # fmt: skip
    for seed, (scores, seconds) in enumerate(rows):
        print(f"{seed:>4}" + "".join(f"{scores[name]:>15.2%}" for name in names)
              + "".join(f"{seconds[name]:>18.1f}" for name in names), flush=True)  # fmt: skip


def judge_gain(rows):
    """Whether the teacher helps by more than 2 standard errors, as a claim in words."""
    means = {name: statistics.mean(scores[name] for scores, _ in rows) for name in (SHORT, LONG)}
    best = max(means, key=lambda name: means[name])
    gains = [scores[TAUGHT] - scores[best] for scores, _ in rows]
    mean = statistics.mean(gains)
    if len(gains) < 2:
        return f"gain {100 * mean:+.2f} points over {best!r}, one seed: no standard error", False
    error = statistics.stdev(gains) / len(gains) ** 0.5
    claim = (
        f"gain {100 * mean:+.2f} ± {100 * error:.2f} points over {best!r}, above 2 standard errors"
    )
    return claim, mean > 2 * error


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, …")
    parser.add_argument("--epochs", type=int, default=30, help="over all images, with a teacher")
    parser.add_argument("--steps", type=int, default=60, help="timed steps in each turn")
    parser.add_argument("--turns", type=int, default=15, help="turns of each variant")
    arguments = parser.parse_args()
    data = load_dataset("mnist")
    timed = (arguments.steps, arguments.turns)
    step_costs(data, dense(64), dense(472, 272), *timed)
    ratio, share = step_costs(data, convolutional(16), convolutional(72), *timed)
    rows = [one_seed(data, seed, arguments.epochs) for seed in range(arguments.seeds)]
    print_accuracies(rows)
    claims = dict([judge_gain(rows)]) | {
        f"cached / plain step {ratio:.3f}, at most {MOST_STEP}": ratio <= MOST_STEP,
        f"cached / keras Distiller {share:.3f}, at most {MOST_OF_KERAS}": share <= MOST_OF_KERAS,
    }
    for claim, holds in claims.items():
        print(f"{'pass' if holds else 'FAIL'}  {claim}")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
