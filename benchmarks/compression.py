"""How small do LeNet-300-100 and LeNet-5 get? Prune, cluster, quantise, each with a teacher.

The networks and the yardstick are those of S. Han et al., "Deep Compression" (ICLR 2016): 40 and 39
times smaller. Here the size that counts is the int8 `.tflite` file, which runs as it is, after
`gzip -9`, against the raw float32 `.tflite` file of the network as it was trained.

Of MNIST's training images 5,000 are held out: by them the strongest setting is chosen whose int8
file loses no more than `SLACK`. The test images are read once for each seed, by both files. The
network trains on the images as they are; while it is compressed, they come with two copies each
that are shifted by up to a pixel, and its teachers are the network that was trained and two others
like it, trained alike from other seeds.

    TFEDGE_DATA_DIR=… python benchmarks/compression.py [--network lenet_300_100] [--seeds 3]
        [--results FILE]

Finished seeds are kept in FILE (default: benchmarks/results/compression.json) and not done again.
Exit code 1 when a claim fails.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402  # the environment comes first
import numpy as np  # noqa: E402

import tfedge  # noqa: E402
from tfedge.files import write_whole  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "compression.json"
HELD_OUT = 5000
SLACK = 0.0006  # of the held-out images: what the file that is chosen may lose
MAX_DROP = 0.001  # of the test images, in the mean over seeds
DROPOUT = 0.1
TEACHERS = 3  # the network itself among them
BATCH = 128
L = keras.layers


@dataclass(frozen=True)
class Network:
    """What is compressed, and how.

    Attributes:
        build: Makes it, untrained, with so much dropout.
        epochs: Of training, pruning, clustering, quantising.
        sparsities: Settings to try, the strongest first.
        clusters: Distinct values of a kernel.
        least_accuracy: What it must reach before it is compressed.
        ratio: How many times smaller it must get.
    """

    build: Callable[[float], keras.Model]
    epochs: tuple[int, int, int, int]
    sparsities: tuple[float, ...]
    clusters: int
    least_accuracy: float
    ratio: float


def lenet_300_100(dropout: float) -> keras.Model:
    """266,610 weights."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            L.Flatten(),
            L.Dense(300, activation="relu"),
            L.Dropout(dropout),
            L.Dense(100, activation="relu"),
            L.Dropout(dropout),
            L.Dense(10, activation="softmax"),
        ]
    )


def lenet_5(dropout: float) -> keras.Model:
    """Caffe's: 431,080 weights."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            L.Conv2D(20, 5),
            L.MaxPooling2D(),
            L.Conv2D(50, 5),
            L.MaxPooling2D(),
            L.Flatten(),
            L.Dense(500, activation="relu"),
            L.Dropout(dropout),
            L.Dense(10, activation="softmax"),
        ]
    )


NETWORKS = {
    "lenet_300_100": Network(lenet_300_100, (30, 15, 2, 3), (0.955, 0.948, 0.942), 12, 0.983, 40.0),
    "lenet_5": Network(lenet_5, (10, 6, 1, 1), (0.985, 0.98, 0.97), 12, 0.991, 39.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, help="one of them only")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … (default: 3)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    done = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    holds = True
    for name in [arguments.network] if arguments.network else NETWORKS:
        for seed in range(arguments.seeds):
            key = f"{name} seed {seed}"
            if key not in done:
                done[key] = compressed(NETWORKS[name], seed, key)
                arguments.results.parent.mkdir(exist_ok=True)
                write_whole(arguments.results, json.dumps(done, indent=1) + "\n")
        rows = [done[f"{name} seed {seed}"] for seed in range(arguments.seeds)]
        holds &= judged(name, NETWORKS[name], rows)
    return 0 if holds else 1


def compressed(network: Network, seed: int, key: str) -> dict:
    """Train, compress and measure one network."""
    started = time.perf_counter()
    data, held_out = split(seed)
    say = Say(key)
    _, prune, cluster, quantize = network.epochs
    model, *others = (network_trained(network, data, seed + 100 * turn) for turn in range(TEACHERS))
    float32, _ = tfedge.convert(model, mode="float32")
    base = right(float32, held_out)
    say(f"trained: {base.mean():.2%} of the held-out images, {len(float32):,} bytes")
    more = with_shifted(data, seed)
    teach = tfedge.Distillation([model, *others], temperature=4.0, alpha=0.7)

    def trained(stage: Any, model: keras.Model, epochs: int, rate: float) -> keras.Model:
        context = tfedge.Context(fit=teach.wrap(fit(more, epochs, rate, seed)), seed=seed)
        model, _ = stage.apply(model, context)
        guessed = model.predict(held_out.x, batch_size=500, verbose=0).argmax(-1)
        score = (guessed == held_out.y.reshape(-1)).mean()
        say(f"  {stage.name}, {epochs} epochs: {score:.2%} of the held-out images")
        return model

    tried = []
    for sparsity in network.sparsities:
        say(f"sparsity {sparsity}")
        stage: Any = tfedge.Prune(sparsity=sparsity, scope="global", end=0.6)
        small = trained(stage, model, prune, 1e-3)
        stage = tfedge.Cluster(number_of_clusters=network.clusters, initialization="kmeans++")
        small = trained(stage, small, cluster, 1e-4)
        stage = tfedge.Quantize(keep_sparsity=True, keep_clusters=True)
        small = trained(stage, small, quantize, 1e-4)
        content, report = tfedge.convert(small, mode="int8")
        drop = base.mean() - right(content, held_out).mean()
        tried.append((sparsity, float(drop), report.gzip_bytes))
        say(
            f"  int8 file: {-100 * drop:+.2f} points on the held-out images, "
            f"{report.gzip_bytes:,} bytes, {len(float32) / report.gzip_bytes:.1f}×"
        )
        if drop <= SLACK:
            break
    before, after = right(float32, data.evaluation), right(content, data.evaluation)
    return {
        "accuracy": float(before.mean()),
        "int8_accuracy": float(after.mean()),
        "drop": float(before.mean() - after.mean()),
        "paired_standard_error": float(np.std(before - after, ddof=1) / np.sqrt(before.size)),
        "float32_bytes": len(float32),
        "int8_bytes": len(content),
        "gzip_bytes": report.gzip_bytes,
        "ratio": len(float32) / report.gzip_bytes,
        "sparsity": report.inspection.sparsity,
        "most_values": max(w.distinct for w in report.inspection.weights if w.is_kernel),
        "float_operators": len(report.float_operators),
        "tried": tried,
        "seconds": time.perf_counter() - started,
    }


def network_trained(network: Network, data: tfedge.Data, seed: int) -> keras.Model:
    """The network as it is before it is compressed."""
    keras.utils.set_random_seed(seed)
    trained = network.build(DROPOUT)
    fit(data, network.epochs[0], 1e-3, seed)(trained)
    model = network.build(0.0)  # fewer weights need no dropout
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.set_weights(trained.get_weights())
    return model


class Say:
    """Prints what has been done, with the time that it took."""

    def __init__(self, key: str) -> None:
        self.key, self.since = key, time.perf_counter()

    def __call__(self, sentence: str) -> None:
        """Print a sentence."""
        now = time.perf_counter()
        print(f"{self.key}, {now - self.since:4.0f} s: {sentence}", flush=True)
        self.since = now


def split(seed: int) -> tuple[tfedge.Data, tfedge.Split]:
    """The data without the held-out images, and these."""
    whole = tfedge.load_dataset("mnist")
    x, y = whole.train.take(len(whole.train), seed).rows[:2]
    train = tfedge.Split(x[HELD_OUT:], y[HELD_OUT:])
    return (
        tfedge.Data(train=train, evaluation=whole.evaluation),
        tfedge.Split(x[:HELD_OUT], y[:HELD_OUT]),
    )


def with_shifted(data: tfedge.Data, seed: int) -> tfedge.Data:
    """The training images with two copies each that are shifted by up to a pixel."""
    x, y = data.train.rows[:2]
    padded, draw = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), np.random.default_rng(seed)
    copies = [
        np.stack([image[t : t + 28, s : s + 28] for image, (t, s) in zip(padded, at, strict=True)])
        for at in draw.integers(0, 3, (2, len(x), 2))
    ]
    train = tfedge.Split(np.concatenate([x, *copies]), np.concatenate([y] * 3))
    return tfedge.Data(train=train, evaluation=data.evaluation)


def fit(data: tfedge.Data, epochs: int, rate: float, seed: int) -> Callable:
    """Adam with a rate that falls to nothing along a cosine."""
    steps = epochs * -(-len(data.train) // BATCH)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    made = tfedge.make_fit(data, epochs=epochs, batch_size=BATCH, optimizer=optimizer, seed=seed)
    return lambda model, callbacks=(): made(model, callbacks)


def right(content: bytes, data: tfedge.Split) -> np.ndarray:
    """Which images a file is right about, as 0 and 1."""
    with tfedge.open_model(content) as model:
        guessed = model.predict(data.x).argmax(-1)
    return (guessed == data.y.reshape(-1)).astype(float)


def judged(name: str, network: Network, rows: list[dict]) -> bool:
    """Print the seeds of a network and whether the claims hold."""
    print(f"\n{name}: {'accuracy':>10} {'int8':>8} {'bytes':>11} {'gzip':>8} {'ratio':>7} {'s':>6}")
    for row in rows:
        print(
            f"{'':{len(name)}}  {row['accuracy']:>10.2%} {row['int8_accuracy']:>8.2%} "
            f"{row['float32_bytes']:>11,} {row['gzip_bytes']:>8,} {row['ratio']:>7.1f} "
            f"{row['seconds']:>6.0f}"
        )
    drops = [row["drop"] for row in rows]
    error = (
        statistics.stdev(drops) / len(drops) ** 0.5
        if len(drops) > 1
        else rows[0]["paired_standard_error"]
    )
    worst, ratio = min(row["accuracy"] for row in rows), min(row["ratio"] for row in rows)
    claims = {
        f"every network reaches {network.least_accuracy:.1%}, the worst {worst:.2%}": (
            worst >= network.least_accuracy
        ),
        f"the files lose {100 * statistics.mean(drops):.3f} ± {100 * error:.3f} points, "
        f"{100 * MAX_DROP:.1f} may be lost": statistics.mean(drops) <= MAX_DROP,
        f"the smallest ratio is {ratio:.1f}, at least {network.ratio:.0f}": ratio >= network.ratio,
        "no operator is in float": not any(row["float_operators"] for row in rows),
    }
    for claim, true in claims.items():
        print(f"{'yes' if true else 'NO '}  {claim}")
    return all(claims.values())


if __name__ == "__main__":
    sys.exit(main())
