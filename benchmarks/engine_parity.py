"""The native engine (Keras 3) against TFMOT (tf_keras): the same weights, batches and plain SGD.

    TFEDGE_DATA_DIR=… python benchmarks/engine_parity.py [--seeds 5] [--steps 600]

On MNIST, with a convolutional network of some 20,000 parameters:

- masks: over 20 steps with an update at each, the masks of the two engines are identical at every
  update and the weights differ by at most 1e-4 (without batch normalisation: the two Kerases sum
  its statistics in different orders, and one rounding is enough to swap two weights in a mask);
- accuracy: over the seeds, pruning to 80 % and quantization-aware training reach the same test
  accuracy: the mean difference is at most 0.3 point, or at most two standard errors;
- int8: the file and the fake-quantised model it came from name the same class on at least 99.9 % of
  10,000 images, and on few once the images are permuted.

Exit code 1 when a claim fails.
"""

import argparse
import os
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402  # the environment comes first
import numpy as np  # noqa: E402
import tf_keras  # noqa: E402

import tfedge  # noqa: E402
from tfedge.data import agreement, load_dataset  # noqa: E402
from tfedge.engines import tfmot  # noqa: E402
from tfedge.runtime import open_model  # noqa: E402

BATCH = 32
RATE = 0.1
MASKED_STEPS = 20
SPARSITY = 0.8
ENGINES = {"native": keras, "TFMOT": tf_keras}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, … (default: 5)")
    parser.add_argument("--steps", type=int, default=600, help="steps of training (default: 600)")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("a standard error needs --seeds of at least 2")
    started = time.perf_counter()
    data = load_dataset("mnist")
    claims = compare_masks(data)
    trained, more = compare_accuracies(data, arguments.seeds, arguments.steps)
    claims |= more
    claims |= compare_files(data, trained)
    print(f"\n{time.perf_counter() - started:.0f} s")
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(claims.values()) else 1


def network(k: Any, norm: bool = True) -> Any:
    image = k.Input((28, 28, 1), name="image")
    x = image
    for index, filters in enumerate((8, 16)):
        x = k.layers.Conv2D(
            filters, 3, strides=2, padding="same", use_bias=not norm, name=f"conv_{index}"
        )(x)
        x = k.layers.BatchNormalization(name=f"bn_{index}")(x) if norm else x
        x = k.layers.ReLU(name=f"relu_{index}")(x)
    x = k.layers.Flatten(name="flatten")(x)
    x = k.layers.Dense(24, activation="relu", name="hidden")(x)
    return k.Model(image, k.layers.Dense(10, activation="softmax", name="classes")(x))


def models(seed: int, norm: bool = True) -> dict[str, Any]:
    """The network in both Kerases, with the weights that Keras 3 draws."""
    keras.utils.set_random_seed(seed)
    built = {name: network(k, norm) for name, k in ENGINES.items()}
    for layer in built["native"].layers:
        built["TFMOT"].get_layer(layer.name).set_weights(layer.get_weights())
    return {name: compiled(ENGINES[name], model) for name, model in built.items()}


def compiled(k: Any, model: Any) -> Any:
    model.compile(
        optimizer=k.optimizers.SGD(RATE), loss="sparse_categorical_crossentropy", jit_compile=False
    )
    return model


def batches(data: Any, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Training samples in the order in which both engines see them."""
    order = np.random.default_rng(seed).permutation(len(data.train.x))
    rows = np.resize(order, steps * BATCH)
    return data.train.x[rows], data.train.y[rows]


def fit(model: Any, x: np.ndarray, y: np.ndarray, callbacks: list[Any]) -> None:
    model.fit(x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0, callbacks=callbacks)


def schedule(end: int, frequency: int) -> Any:
    """From no zeros to `SPARSITY`; TFMOT's own object drives both engines."""
    return tfmot.polynomial_decay(
        initial_sparsity=0.0,
        final_sparsity=SPARSITY,
        begin_step=0,
        end_step=end,
        frequency=frequency,
    )


# Masks, step by step


def compare_masks(data: Any) -> dict[str, bool]:
    x, y = batches(data, 0, MASKED_STEPS)
    records, finished = {}, {}
    for name, model in models(0, norm=False).items():
        stage = tfedge.Prune(schedule=schedule(MASKED_STEPS, 1))
        prepared = stage.prepare(model)
        recorder = {"native": NativeRecorder, "TFMOT": TfmotRecorder}[name]()
        fit(prepared, x, y, [*stage.callbacks(), recorder])
        finished[name], _ = stage.finish(prepared)
        records[name] = recorder
    same, zeros, apart = 0, [], 0.0
    for step in range(MASKED_STEPS):
        masks = [records[name].masks[step] for name in ENGINES]
        same += all(np.array_equal(masks[0][key], masks[1][key]) for key in masks[0])
        zeros.append(1 - np.mean(np.concatenate([m.ravel() for m in masks[0].values()])))
        if step:  # the weights that step `step + 1` starts from, masked
            ours = records["native"].weights[step]
            theirs = records["TFMOT"].weights[step - 1]
            for key, value in theirs.items():
                mask = masks[1].get(key, 1.0)
                apart = max(apart, float(np.abs(value * mask - ours[key]).max()))
    ours, theirs = (weights_by_name(finished[name]) for name in ENGINES)
    apart = max(apart, *(float(np.abs(ours[key] - theirs[key]).max()) for key in ours))
    print(
        f"masks: {same} of {MASKED_STEPS} updates identical (zeros {zeros[0]:.1%} to "
        f"{zeros[-1]:.1%}); weights at most {apart:.1e} apart"
    )
    return {
        f"masks identical at every update of the first {MASKED_STEPS} steps": same == MASKED_STEPS,
        "weights within 1e-4 at every one of these steps": apart <= 1e-4,
        f"these steps end at {SPARSITY:.0%} zeros": abs(zeros[-1] - SPARSITY) < 0.01,
    }


class NativeRecorder(keras.callbacks.Callback):
    """Before each step: its masks, which are in the kernels already, and the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[dict[str, np.ndarray]] = []
        self.weights: list[dict[str, np.ndarray]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Record."""
        weights = weights_by_name(self.model)
        self.weights.append(weights)
        self.masks.append({k: v != 0 for k, v in weights.items() if k.endswith("kernel")})


class TfmotRecorder(tf_keras.callbacks.Callback):
    """After each step: the masks that it used, and the weights, not masked again yet."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[dict[str, np.ndarray]] = []
        self.weights: list[dict[str, np.ndarray]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Record."""
        self.weights.append(weights_by_name(self.model))
        self.masks.append(
            {
                f"{layer.layer.name}/kernel": mask.numpy() != 0
                for layer in self.model.layers
                for _, mask, _ in getattr(layer, "pruning_vars", ())
            }
        )


def weights_by_name(model: Any) -> dict[str, np.ndarray]:
    found = {}
    for layer in model.layers:
        inner = getattr(layer, "layer", layer)
        for weight in inner.weights:
            name = weight.name.split(":")[0].split("/")[-1]
            found[f"{inner.name}/{name}"] = weight.numpy()
    return found


# Accuracy over seeds


def compare_accuracies(data: Any, seeds: int, steps: int) -> tuple[dict[str, Any], dict[str, bool]]:
    stages = {
        "prune": lambda: tfedge.Prune(schedule=schedule(steps * 2 // 3, 20)),
        "quantize": lambda: tfedge.Quantize(),
    }
    print(f"\n{'':10} {'seed':>4} {'native':>8} {'TFMOT':>8} {'points':>7}")
    claims, quantized = {}, {}
    for technique, stage in stages.items():
        differences = []
        for seed in range(seeds):
            x, y = batches(data, seed, steps)
            accuracies = {}
            for name, model in models(seed).items():
                final = train(stage(), model, x, y)
                accuracies[name] = accuracy(final, data)
                if technique == "quantize" and not seed:
                    quantized[name] = final
            differences.append(100 * (accuracies["native"] - accuracies["TFMOT"]))
            print(
                f"{technique:10} {seed:>4} {accuracies['native']:>8.2%} "
                f"{accuracies['TFMOT']:>8.2%} {differences[-1]:>+7.2f}",
                flush=True,
            )
        mean = float(np.mean(differences))
        error = float(np.std(differences, ddof=1) / np.sqrt(seeds))
        print(f"{technique:10} mean difference {mean:+.3f} points, standard error {error:.3f}")
        claim = f"{technique}: mean difference at most 0.3 point or 2 standard errors"
        claims[claim] = abs(mean) <= max(0.3, 2 * error)
    return quantized, claims


def train(stage: Any, model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    prepared = stage.prepare(model)
    fit(prepared, x, y, stage.callbacks())
    return stage.finish(prepared)[0]


def accuracy(model: Any, data: Any) -> float:
    scores = model.predict(data.evaluation.x, batch_size=500, verbose=0)
    return float(np.mean(scores.argmax(axis=1) == data.evaluation.y))


# The int8 file


def compare_files(data: Any, trained: dict[str, Any]) -> dict[str, bool]:
    x = data.evaluation.x
    claims = {}
    print()
    for name, model in trained.items():
        file, report = tfedge.convert(model, mode="int8")
        expected = model.predict(x, batch_size=500, verbose=0)
        with open_model(file) as runner:
            scores = runner.predict(x)
        share = agreement(expected, scores)
        control = agreement(expected, scores[np.random.default_rng(0).permutation(len(x))])
        print(
            f"int8 file of {name}: {len(file)} bytes, {len(report.float_operators)} float "
            f"operators, the model's class on {share:.2%} of {len(x)} images "
            f"(permuted: {control:.2%})"
        )
        claims[f"{name}: int8 file names the model's class on 99.9 %"] = share >= 0.999
        claims[f"{name}: permuted images do not"] = control < 0.2
    return claims


if __name__ == "__main__":
    sys.exit(main())
