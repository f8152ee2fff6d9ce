"""Quantise four networks of keras.applications to int8 and check every operator of the files.

    python benchmarks/applications.py            # MobileNetV2, MobileNetV3, ResNet50, EfficientNet
    TFEDGE_DATA_DIR=… python benchmarks/applications.py --train   # MobileNetV2 trained on CIFAR-10

Without `--train` the weights are random, batch statistics those of noise: each operator of the file
is fed what the fake-quantised model computed at its inputs. Exit code 1 if a claim fails.
"""

import argparse
import sys
import time

import keras
import numpy as np

import tfedge
from tfedge.data import agreement, find_metric
from tfedge.engines.native.quantize import calibrate
from tfedge.runtime import open_model
from tfedge.verify.operators import compare_operators

BATCH = 64
NETWORKS = {
    "MobileNetV2-0.35@96": lambda: keras.applications.MobileNetV2((96, 96, 3), 0.35, weights=None),
    "MobileNetV3Small": lambda: keras.applications.MobileNetV3Small((224, 224, 3), weights=None),
    "ResNet50": lambda: keras.applications.ResNet50(weights=None),
    "EfficientNetB0": lambda: keras.applications.EfficientNetB0(weights=None),
}


def with_statistics(model, images):
    """Set every batch normalisation's statistics to those of its inputs, one pass of `images`."""
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
    model(images, training=True)
    return model


def check_operators() -> bool:
    holds = True
    print(
        f"{'network':22}{'prepare':>9}{'convert':>9}{'size':>9}{'operators':>11}{'float':>7}"
        f"{'within one step':>17}{'lowest operator':>17}"
    )
    for name, build in NETWORKS.items():
        keras.utils.set_random_seed(0)
        images = np.random.default_rng(0).uniform(0, 255, (8, 224, 224, 3)).astype("float32")
        network = build()
        images = images[:, : network.input_shape[1], : network.input_shape[2]]
        with_statistics(network, images)
        started = time.perf_counter()
        prepared = tfedge.Quantize().prepare(network)
        prepare_s = time.perf_counter() - started
        calibrate(prepared, [images])
        data, report = tfedge.convert(prepared, mode="int8", allow_float=True)
        rows = compare_operators(prepared, data, images[:2])
        elements = sum(row.elements for row in rows)
        within = sum(row.elements * row.within_one_step for row in rows) / elements
        lowest = min(row.within_one_step for row in rows)
        print(
            f"{name:22}{prepare_s:>8.1f}s{report.seconds:>8.1f}s{len(data) / 1e6:>7.1f}MB"
            f"{len(report.inspection.operators):>11}{len(report.float_operators):>7}"
            f"{within:>17.5f}{lowest:>17.5f}",
            flush=True,
        )
        holds &= not report.float_operators and report.seconds <= 30 and within >= 0.999
    return holds


def check_trained(steps: int, aware_steps: int) -> bool:
    """MobileNetV2-0.35 on CIFAR-10: float training, QAT, int8 file against fake-quant model."""
    keras.utils.set_random_seed(0)
    data = tfedge.load_dataset("cifar10")
    images = keras.Input((32, 32, 3))
    x = keras.layers.Resizing(96, 96)(images)
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(x)
    network = keras.applications.MobileNetV2((96, 96, 3), 0.35, weights=None, classes=10)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    enlarge = keras.Model(images, x)
    test = data.evaluation.take(2000)
    test_x = enlarge.predict(test.x, verbose=0)

    def fit(model, count, rate, seed):
        rows = data.train.take(count * BATCH, seed=seed)
        decay = keras.optimizers.schedules.CosineDecay(rate, count)
        model.compile(keras.optimizers.Adam(decay), "sparse_categorical_crossentropy")
        for place in range(0, len(rows), BATCH):
            part = slice(place, place + BATCH)
            model.train_on_batch(enlarge(rows.x[part]), rows.y[part])

    fit(network, steps, 4e-3, 0)
    stage = tfedge.Quantize()
    prepared = stage.prepare(network)
    calibrate(prepared, [enlarge(data.calibration.x)])
    fit(prepared, aware_steps, 3e-3, 1)
    prepared, _ = stage.finish(prepared)
    file, report = tfedge.convert(prepared, mode="int8")
    accuracy = find_metric("accuracy").function
    with open_model(file) as runner:
        scores = runner.predict(test_x)
    aware = prepared.predict(test_x, verbose=0)
    float_accuracy = accuracy(test.y, network.predict(test_x, verbose=0))
    same = agreement(aware, scores)
    control = agreement(aware, scores[np.random.default_rng(0).permutation(len(scores))])
    print(
        f"MobileNetV2-0.35@96, {steps} + {aware_steps} steps of {BATCH}, {len(scores)} images: "
        f"float {float_accuracy:.4f}, fake-quant {accuracy(test.y, aware):.4f}, int8 file "
        f"{accuracy(test.y, scores):.4f}; argmax agreement {same:.4f}, permuted {control:.4f}"
    )
    return accuracy(test.y, scores) > 0.3 and same >= 0.98 and control < 0.25


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="train MobileNetV2 on CIFAR-10")
    parser.add_argument("--steps", type=int, default=200, help="float training steps")
    parser.add_argument("--aware-steps", type=int, default=900, help="QAT steps")
    options = parser.parse_args()
    good = check_trained(options.steps, options.aware_steps) if options.train else check_operators()
    sys.exit(0 if good else 1)
