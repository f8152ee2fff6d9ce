"""Every technique alone on one network: what it does to size, speed and accuracy.

A convolutional network of 105,000 weights is trained on MNIST; then each stage is applied to it
with the same further training, and its int8 file (calibrated, or trained where the stage is
quantization-aware training) is measured. 5,000 training images are held out to choose by; the test
images are read once for each row.

    TFEDGE_DATA_DIR=… python benchmarks/techniques.py [--epochs 2] [--json FILE]
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402  # the environment comes first

import tfedge  # noqa: E402
from tfedge.data import evaluate  # noqa: E402
from tfedge.engines.native.costs import total_macs  # noqa: E402
from tfedge.engines.native.graph import read_graph  # noqa: E402

COLUMNS = ("technique", "weights", "MACs", "gzip int8", "int8 ms", "float32 ms", "accuracy")
HELD_OUT = 5000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2, help="of each technique (default: 2)")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    arguments = parser.parse_args()
    data = load()
    model = baseline(data)
    rows = [row("none", model, data)]
    show(rows[0], first=True)
    for name, stage, teacher in techniques():
        fit = tfedge.make_fit(data, epochs=arguments.epochs, batch_size=128, learning_rate=5e-4)
        if teacher:
            fit = tfedge.Distillation(model, temperature=4.0).wrap(fit)
        metric = tfedge.Metric(name="accuracy", higher_is_better=True, function=accuracy)
        context = tfedge.Context(fit=fit, data=data, metric=metric)
        smaller = tfedge.narrow(model, 0.5) if name.startswith("narrow") else model
        after, _ = stage(smaller, context)
        rows.append(row(name, after, data))
        show(rows[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    return 0


def load() -> tfedge.Data:
    whole = tfedge.load_dataset("mnist")
    order = whole.train.take(len(whole.train), seed=0)
    x, y = order.rows[:2]
    train = tfedge.Split(x[HELD_OUT:], y[HELD_OUT:])
    return tfedge.Data(
        train=train, evaluation=whole.evaluation, calibration=tfedge.Split(x[:HELD_OUT][:500])
    )


def baseline(data: tfedge.Data):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(data.train.x.shape[1:]),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="silu"),
            layers.Conv2D(32, 3, padding="same", activation="silu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(56, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data.train.x, data.train.y, batch_size=128, epochs=5, verbose=0)
    return model


def train_on(model, context):
    copy = tfedge.copy_model(model)
    context.fit(copy, [])
    return copy, None


def trained(stage):
    """A stage that does not train, with training behind it."""

    def apply(model, context):
        after, report = stage.apply(model, context)
        context.fit(after, [])
        return after, report

    return apply


def techniques():
    """Name, what is applied, and whether the model teaches while that trains."""
    prune = tfedge.Prune(sparsity=0.9, end=0.5)
    cluster = tfedge.Cluster(number_of_clusters=16)

    def pruned_clustered(model, context):
        return cluster.apply(prune.apply(model, context)[0], context)

    return [
        ("FineTune", train_on, False),
        ("Prune(sparsity=0.9)", prune.apply, False),
        ("Cluster(number_of_clusters=16)", cluster.apply, False),
        ("Prune, then Cluster", pruned_clustered, False),
        ("StructuredPrune(flops=0.5)", tfedge.StructuredPrune(flops=0.5).apply, False),
        ("LowRank(flops=0.5)", trained(tfedge.LowRank(flops=0.5)), False),
        (
            "Rewrite(silu, separable)",
            tfedge.Rewrite(
                patterns=("silu_to_hard_silu", "conv_to_separable"), max_drop=0.02
            ).apply,
            False,
        ),
        ("DropLayers(count=1)", tfedge.DropLayers(count=1).apply, False),
        ("Quantize()", tfedge.Quantize().apply, False),
        ("Quantize(weight_bits=4, range='lsq')", four_bits().apply, False),
        ("narrow(0.5), alone", train_on, False),
        ("narrow(0.5), Distillation", train_on, True),
    ]


def four_bits() -> tfedge.Quantize:
    return tfedge.Quantize(weight_bits=4, range="lsq")


def accuracy(y_true, y_pred) -> float:
    return float((y_pred.argmax(-1) == y_true.reshape(-1)).mean())


def row(name: str, model, data: tfedge.Data) -> dict:
    keeps = name.startswith(("Cluster", "Prune, then"))
    if not name.startswith("Quantize"):
        stage = tfedge.Quantize(keep_clusters=keeps, keep_sparsity="Prune" in name)
        only = tfedge.Context(data=tfedge.Data(calibration=data.calibration))
        quantized, _ = stage.apply(model, only)
        plain, _ = tfedge.convert(model, mode="float32")
    else:
        quantized, plain = model, None
    content, report = tfedge.convert(quantized, mode="int8")
    with tfedge.open_model(content) as opened:
        figure = evaluate(opened.predict, data.evaluation, "accuracy")
    weights = sum(int(w.shape.num_elements()) for w in model.weights) if plain else None
    return {
        "technique": name,
        "weights": weights,
        "macs": total_macs(read_graph(model)) if plain else None,
        "gzip_bytes": report.gzip_bytes,
        "int8_ms": latency(content),
        "float32_ms": latency(plain) if plain else None,
        "accuracy": figure,
    }


def latency(content: bytes) -> float:
    return tfedge.benchmark(content, runs=200).rows[0].p50_ms


def show(cells: dict, first: bool = False) -> None:
    if first:
        print(
            "".join(f"{column:>12}" if i else f"{column:<38}" for i, column in enumerate(COLUMNS))
        )
    texts = [
        "" if cells["weights"] is None else f"{cells['weights']:,}",
        "" if cells["macs"] is None else f"{cells['macs'] / 1e6:.2f} M",
        f"{cells['gzip_bytes']:,}",
        f"{cells['int8_ms']:.4f}",
        "" if cells["float32_ms"] is None else f"{cells['float32_ms']:.4f}",
        f"{cells['accuracy']:.2%}",
    ]
    print(f"{cells['technique']:<38}" + "".join(f"{text:>12}" for text in texts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
