"""What pruning and quantization-aware training cost per step, against plain training and TFMOT.

    python benchmarks/training_overhead.py [--rounds 5] [--steps 40]

Variants take turns within each round, so that a busy machine slows all of them alike; the first
steps of every turn (tracing) are left out. Medians over rounds × steps, in milliseconds, and
ratios: native Prune against the same Keras 3 network in plain `fit` (at most 1.1), native Quantize
against TFMOT on the same network (at most 1.05). Exit code 1 if a claim fails.
"""

import argparse
import statistics
import sys
import time

import keras
import numpy as np
import tf_keras

import tfedge

WARM = 4
BATCH = 64


def network(kind):
    """A small image classifier: convolutions with batch normalisation, depthwise, dense layers."""
    kind.utils.set_random_seed(0)
    inputs = kind.Input((28, 28, 1))
    x = inputs
    for filters in (16, 32):
        x = kind.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = kind.layers.BatchNormalization()(x)
        x = kind.layers.ReLU()(x)
        x = kind.layers.MaxPooling2D()(x)
    x = kind.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = kind.layers.BatchNormalization()(x)
    x = kind.layers.ReLU()(x)
    x = kind.layers.Flatten()(x)
    x = kind.layers.Dense(64, activation="relu")(x)
    model = kind.Model(inputs, kind.layers.Dense(10, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def stopwatch(kind, times):
    """A callback that appends the milliseconds of each step."""

    class Stopwatch(kind.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            now = time.perf_counter()
            if batch >= WARM:
                times.append(1000 * (now - self.last))
            self.last = now

    return Stopwatch()


def variants(total_steps):
    """Name to (Keras, model, callbacks)."""
    plain, old = network(keras), network(tf_keras)
    prune = tfedge.Prune(sparsity=0.8, begin=0, end=total_steps - 1, frequency=20)
    quantize = tfedge.Quantize()
    return {
        "Keras 3, plain": (keras, plain, []),
        "Keras 3, Prune": (keras, prune.prepare(plain), prune.callbacks()),
        "Keras 3, Quantize": (keras, quantize.prepare(plain), []),
        "tf_keras, plain": (tf_keras, old, []),
        "tf_keras, Prune (TFMOT)": (tf_keras, prune.prepare(old), prune.callbacks()),
        "tf_keras, Quantize (TFMOT)": (tf_keras, quantize.prepare(old), []),
    }


def main(rounds, steps):
    rng = np.random.default_rng(0)
    count = BATCH * (steps + WARM)
    x = rng.random((count, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, count)
    runs = variants(steps + WARM)
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (kind, model, callbacks) in runs.items():
            callbacks = [*callbacks, stopwatch(kind, times[name])]
            model.fit(x, y, batch_size=BATCH, verbose=0, shuffle=False, callbacks=callbacks)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'variant':28}{'ms/step':>9}{'steps':>8}")
    for name, median in medians.items():
        print(f"{name:28}{median:>9.2f}{len(times[name]):>8}")
    ratios = {
        "native Prune / plain Keras 3 fit": (
            medians["Keras 3, Prune"] / medians["Keras 3, plain"],
            1.1,
        ),
        "native Quantize / TFMOT Quantize": (
            medians["Keras 3, Quantize"] / medians["tf_keras, Quantize (TFMOT)"],
            1.05,
        ),
    }
    for name, (ratio, limit) in ratios.items():
        print(f"{'ok  ' if ratio <= limit else 'FAIL'} {name}: {ratio:.3f} (at most {limit})")
    return 0 if all(ratio <= limit for ratio, limit in ratios.values()) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each turn")
    options = parser.parse_args()
    sys.exit(main(options.rounds, options.steps))
