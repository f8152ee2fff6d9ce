"""What pruning and quantization-aware training cost per step, against plain training and TFMOT.

    python benchmarks/training_overhead.py [--steps 200]

Variants take turns step by step, so that a busy machine slows all of them alike. A step is what
`fit` does for one batch: callbacks and the compiled training function. Medians in milliseconds, and
ratios: native Prune against the same Keras 3 network without it (at most 1.1), native Quantize
against TFMOT on the same network (at most 1.05). Exit code 1 if a claim fails.
"""

import argparse
import statistics
import sys
import time

import keras
import numpy as np
import tensorflow as tf
import tf_keras

import tfedge

WARM = 4
BATCH = 64


def network(kind):
    """A small image classifier: convolutions with batch normalisation, depthwise, dense layers."""
    kind.utils.set_random_seed(0)
    inputs = kind.Input((28, 28, 1))
    x = inputs
    for filters in (32, 64):
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


class Variant:
    """A model in training, one step at a time.

    Args:
        model: A compiled model of either Keras.
        callbacks: The callbacks of its `fit`.
        total: Steps of the whole training, which schedules are checked against.
    """

    def __init__(self, model, callbacks, total):
        rng = np.random.default_rng(0)
        x = rng.random((BATCH, 28, 28, 1)).astype("float32")
        batch = (tf.constant(x), tf.constant(rng.integers(0, 10, BATCH)))
        self.data = iter(tf.data.Dataset.from_tensors(batch).repeat())
        self.model, self.callbacks, self.times = model, callbacks, []
        model.make_train_function()
        for callback in callbacks:
            callback.set_model(model)
            callback.set_params({"steps": total, "epochs": 1})
            callback.on_train_begin({})
            callback.on_epoch_begin(0, {})

    def step(self, number):
        """Train on one batch, and keep how long it took."""
        started = time.perf_counter()
        for callback in self.callbacks:
            callback.on_train_batch_begin(number, {})
        self.model.train_function(self.data)
        for callback in self.callbacks:
            callback.on_train_batch_end(number, {})
        if number >= WARM:
            self.times.append(1000 * (time.perf_counter() - started))


def variants(total):
    """Name to variant."""
    plain, old = network(keras), network(tf_keras)
    prune = tfedge.Prune(sparsity=0.8, begin=0, end=total - 1, frequency=20)
    quantize = tfedge.Quantize()
    return {
        "Keras 3, plain": Variant(plain, [], total),
        "Keras 3, Prune": Variant(prune.prepare(plain), prune.callbacks(), total),
        "Keras 3, Quantize": Variant(quantize.prepare(plain), [], total),
        "tf_keras, plain": Variant(old, [], total),
        "tf_keras, Prune (TFMOT)": Variant(prune.prepare(old), prune.callbacks(), total),
        "tf_keras, Quantize (TFMOT)": Variant(quantize.prepare(old), [], total),
    }


def main(steps):
    """Measure, print, and return the exit code."""
    runs = variants(steps + WARM)
    for number in range(steps + WARM):
        for run in runs.values():
            run.step(number)
    times = {name: run.times for name, run in runs.items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'variant':28}{'ms/step':>9}{'steps':>8}")
    for name, median in medians.items():
        print(f"{name:28}{median:>9.2f}{len(times[name]):>8}")
    ratios = {
        "native Prune / plain Keras 3": (
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
    parser.add_argument("--steps", type=int, default=200, help="timed steps of each variant")
    sys.exit(main(parser.parse_args().steps))
