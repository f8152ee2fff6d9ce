"""Quantise to 8, 4, 3 and 2 bits with moving averages and with learned steps (LSQ).

A convolutional network of 1,490 weights, none to spare, is trained on the handwritten digits of
scikit-learn, then trained on with weights and activations of so many bits, several seeds each. What
is scored is the int8 file that comes out, on the evaluation split, which nothing else reads.

    python benchmarks/low_bits.py
"""

import argparse
import sys
from itertools import product
from statistics import mean, stdev

import keras
import numpy as np

import tfedge

RANGES = ("moving_average", "lsq")
WIDTHS = (8, 4, 3, 2)
layers = keras.layers


def network(shape, seed):
    keras.utils.set_random_seed(seed)
    image = x = keras.Input(shape)
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, activation="softmax")(x), name="digits")


def trained(data, seed, epochs):
    """A float model of one seed."""
    model = network(data.train.x.shape[1:], seed)
    tfedge.make_fit(data, epochs=epochs, seed=seed)(model, [])
    return model


def scores(model, data, seed, epochs, **settings):
    """Accuracy of the file, its agreement with the model it came from, gzip size in bytes."""
    fit = tfedge.make_fit(data, epochs=epochs, seed=seed)
    context = tfedge.Context(fit=fit, data=data)
    aware, _ = tfedge.Quantize(**settings).apply(model, context)
    content, report = tfedge.convert(aware, mode="int8")
    x, y = data.evaluation.x, data.evaluation.y
    with tfedge.open_model(content) as file:
        chosen = file.predict(x).argmax(-1)
    agreement = (chosen == aware.predict(x, verbose=0).argmax(-1)).mean()
    return float((chosen == y).mean()), float(agreement), report.gzip_bytes


def measure(data, seeds, epochs):
    """(bits, range) to one row of scores per seed."""
    rows = {key: [] for key in product(WIDTHS, RANGES)}
    for seed in range(seeds):
        model = trained(data, seed, epochs)
        correct = model.predict(data.evaluation.x, verbose=0).argmax(-1) == data.evaluation.y
        print(f"seed {seed}: float32 {correct.mean():.2%}", flush=True)
        for bits, kind in rows:
            row = scores(
                model, data, seed, epochs, weight_bits=bits, activation_bits=bits, range=kind
            )
            rows[bits, kind].append(row)
    return rows


def show(rows):
    print(f"{'bits':>4} {'range':<15} {'accuracy':>9} {'sd':>6} {'agreement':>10} {'gzip':>7}")
    for (bits, kind), found in rows.items():
        accuracy, agreement, size = zip(*found, strict=True)
        spread = stdev(accuracy) if len(accuracy) > 1 else float("nan")
        print(
            f"{bits:>4} {kind:<15} {mean(accuracy):>9.2%} {spread:>6.2%} {mean(agreement):>10.2%} "
            f"{mean(size):>7.0f}"
        )


def claims(rows):
    """What must hold: learned steps win where bits are few."""
    for bits in (3, 2):
        old, new = (np.mean([row[0] for row in rows[bits, kind]]) for kind in RANGES)
        yield f"{bits} bits: lsq {new:.2%} beats moving_average {old:.2%}", bool(new > old)


def main(seeds, epochs):
    rows = measure(tfedge.load_dataset("digits"), seeds, epochs)
    show(rows)
    held = list(claims(rows))
    for claim, holds in held:
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(holds for _, holds in held) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15, help="of the float model and of each QAT")
    arguments = parser.parse_args()
    sys.exit(main(arguments.seeds, arguments.epochs))
