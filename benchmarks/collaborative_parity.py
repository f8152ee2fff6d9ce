"""Clustering, PQAT, CQAT and PCQAT: tfedge in both Kerases against TFMOT's own schemes, on MNIST.

    TFEDGE_DATA_DIR=… python benchmarks/collaborative_parity.py [--seeds 5] [--steps 400] [--only …]

Each seed trains one network of some 20,000 parameters; its weights go to

- `native`: tfedge on the Keras 3 model,
- `tfedge`: tfedge on the tf_keras model (TFMOT's wrappers, its own keeping of zeros and clusters),
- `TFMOT`: `cluster_weights`, and `quantize_apply` with `Default8BitPrunePreserveQuantizeScheme` or
  `Default8BitClusterPreserveQuantizeScheme`, without tfedge.

All see the same batches in the same order with the same optimizer. Techniques that quantize start
from one model that tfedge pruned (80 %) and trained on, clustered at once (16), or both, so that
all begin with the same weights. What is compared is the test accuracy: of the clustered model, and
of the int8 file. Of the files, zeros and distinct values per kernel are shown. Results are kept in
`--folder` one by one; a run that was stopped goes on.

Exit code 1 when a claim fails: mean difference to TFMOT at most 0.5 point or two standard errors;
zeros and distinct values in tfedge's files as asked.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402  # the environment comes first
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402
from engine_parity import network  # noqa: E402

import tfedge  # noqa: E402
from tfedge.callbacks import KeepZeros  # noqa: E402
from tfedge.data import load_dataset  # noqa: E402
from tfedge.engines.distinct import kernel_values  # noqa: E402
from tfedge.engines.tfmot._library import internals, tfmot  # noqa: E402
from tfedge.inspection import inspect_model  # noqa: E402
from tfedge.runtime import open_model  # noqa: E402
from tfedge.stages.cluster import Cluster  # noqa: E402
from tfedge.stages.quantize import Quantize  # noqa: E402

BATCH = 64
PRETRAINING = 900  # steps
RATE = 1e-4  # Adam's; more throws the centroids apart, as gradients of many weights add up there
CLUSTERS = 16
SPARSITY = 0.8
KERASES = {"native": keras, "tfedge": tf_keras, "TFMOT": tf_keras}
TECHNIQUES = ("cluster", "PQAT", "CQAT", "PCQAT")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, … (default: 5)")
    parser.add_argument("--steps", type=int, default=400, help="steps per technique")
    parser.add_argument("--only", nargs="*", choices=TECHNIQUES, default=TECHNIQUES)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "tfedge-collaborative-parity",
        help="where results are kept (default: in the temporary folder)",
    )
    arguments = parser.parse_args()
    started = time.perf_counter()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    data = load_dataset("mnist")
    for technique in arguments.only:
        for seed in range(arguments.seeds):
            for engine in KERASES:
                row = kept_result(arguments, data, technique, engine, seed)
                results.setdefault(technique, {}).setdefault(engine, []).append(row)
                print(line(technique, engine, seed, row), flush=True)
    claims = judged(results, arguments.seeds)
    print(f"\n{time.perf_counter() - started:.0f} s")
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(claims.values()) else 1


def kept_result(arguments: Any, data: Any, technique: str, engine: str, seed: int) -> Any:
    path = arguments.folder / f"{technique}-{engine}-{seed}-{arguments.steps}.json"
    if path.is_file():
        return json.loads(path.read_text())
    row = measure(arguments, data, technique, engine, seed)
    path.write_text(json.dumps(row))
    return row


def line(technique: str, engine: str, seed: int, row: dict[str, Any]) -> str:
    values = " ".join(f"{n:>3}" for n in row["values"])
    return (
        f"{technique:8} {engine:7} seed {seed}  {row['accuracy']:7.2%}  zeros "
        f"{row['sparsity']:6.1%}  values {values}  {row['ms_per_step']:5.1f} ms/step"
    )


def judged(results: Any, seeds: int) -> dict[str, bool]:
    print(
        f"\n{'':8} {'against TFMOT, points':>28}  {'zeros':>7} {'(TFMOT)':>8}  most values (TFMOT)"
    )
    claims = {}
    for technique, engines in results.items():
        theirs = engines["TFMOT"]
        for engine in ("native", "tfedge"):
            ours = engines[engine]
            pairs = zip(ours, theirs, strict=True)
            differences = [100 * (one["accuracy"] - other["accuracy"]) for one, other in pairs]
            mean = float(np.mean(differences))
            error = float(np.std(differences, ddof=1) / np.sqrt(seeds)) if seeds > 1 else 0.0
            zeros, values = least_zeros(ours), most_values(ours)
            print(
                f"{technique:8} {engine:7} {mean:+8.3f} ± {error:.3f}   {zeros:8.1%} "
                f"{least_zeros(theirs):8.1%}  {values:4d} ({most_values(theirs)})"
            )
            claim = f"{technique}, {engine}: within 0.5 point or 2 standard errors of TFMOT"
            claims[claim] = abs(mean) <= max(0.5, 2 * error)
            if technique in ("PQAT", "PCQAT"):
                claims[f"{technique}, {engine}: {SPARSITY:.0%} zeros in the file"] = (
                    zeros >= SPARSITY - 0.005
                )
            if technique != "PQAT":
                where = "model" if technique == "cluster" else "file"
                claim = (
                    f"{technique}, {engine}: at most {CLUSTERS} values per kernel in the {where}"
                )
                claims[claim] = values <= CLUSTERS
    return claims


def least_zeros(rows: list[dict[str, Any]]) -> float:
    return min(row["sparsity"] for row in rows)


def most_values(rows: list[dict[str, Any]]) -> int:
    return max(max(row["values"]) for row in rows)


# One result


def measure(arguments: Any, data: Any, technique: str, engine: str, seed: int) -> dict[str, Any]:
    model = started_from(arguments.folder, data, technique, engine, seed)
    x, y = batches(data, seed + 100, arguments.steps)
    run = {"native": through_tfedge, "tfedge": through_tfedge, "TFMOT": through_tfmot}[engine]
    keras.utils.set_random_seed(seed)
    result, ms_per_step = run(technique, model, x, y)
    row: dict[str, Any] = {"ms_per_step": ms_per_step}
    if technique == "cluster":
        kernels = [values for _, values in kernel_values(result)]
        return row | {
            "accuracy": accuracy(lambda x: result.predict(x, batch_size=500, verbose=0), data),
            "sparsity": float(np.mean([v == 0 for k in kernels for v in k.ravel()])),
            "values": [len(np.unique(kernel)) for kernel in kernels],
        }
    file = tfedge.convert(result)[0] if engine != "TFMOT" else tfmots_file(result)
    kernels = [weight for weight in inspect_model(file).weights if weight.is_kernel]
    with open_model(file) as runner:
        score = accuracy(runner.predict, data)
    return row | {
        "accuracy": score,
        "sparsity": sum(w.zeros for w in kernels) / sum(int(np.prod(w.shape)) for w in kernels),
        "values": [weight.distinct for weight in kernels],
    }


def started_from(folder: Path, data: Any, technique: str, engine: str, seed: int) -> Any:
    """The trained network of a seed, pruned and clustered as the technique needs it."""
    keras.utils.set_random_seed(seed)
    base = network(keras)
    trained(base, folder / f"start-{seed}.npz", data, seed, [])
    if technique.startswith("P"):
        base = tfedge.Prune(sparsity=SPARSITY, one_shot=True).apply(base)[0]
        trained(base, folder / f"pruned-{seed}.npz", data, seed + 50, [KeepZeros()])
    if "CQAT" in technique:
        base = Cluster(number_of_clusters=CLUSTERS, one_shot=True).apply(base)[0]
    model = base if engine == "native" else network(tf_keras)
    for layer in base.layers:
        model.get_layer(layer.name).set_weights(layer.get_weights())
    return compiled(KERASES[engine], model)


def trained(model: Any, path: Path, data: Any, seed: int, callbacks: list[Any]) -> None:
    """Train a Keras 3 model, or set the weights of when that was done before."""
    if path.is_file():
        with np.load(path) as stored:
            model.set_weights([stored[name] for name in stored.files])
        return
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    fit(model, *batches(data, seed, PRETRAINING), callbacks)
    np.savez(path, *model.get_weights())


def compiled(k: Any, model: Any) -> Any:
    model.compile(
        optimizer=k.optimizers.Adam(RATE),
        loss="sparse_categorical_crossentropy",
        jit_compile=False,
    )
    return model


def batches(data: Any, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(data.train.x))
    rows = np.resize(order, steps * BATCH)
    return data.train.x[rows], data.train.y[rows]


def accuracy(predict: Any, data: Any) -> float:
    return float(np.mean(predict(data.evaluation.x).argmax(axis=1) == data.evaluation.y))


def through_tfedge(technique: str, model: Any, x: np.ndarray, y: np.ndarray) -> tuple[Any, float]:
    if technique == "cluster":
        stage: Any = Cluster(number_of_clusters=CLUSTERS)
    else:
        stage = Quantize(keep_sparsity="P" in technique[:2], keep_clusters="CQAT" in technique)
    prepared = stage.prepare(model)
    ms_per_step = fit(prepared, x, y, stage.callbacks())
    return stage.finish(prepared)[0], ms_per_step


def through_tfmot(technique: str, model: Any, x: np.ndarray, y: np.ndarray) -> tuple[Any, float]:
    library = tfmot()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TFMOT, on its own convolutions
        if technique == "cluster":
            clustering = library.clustering.keras
            wrapped = clustering.cluster_weights(
                model, CLUSTERS, clustering.CentroidInitialization.LINEAR
            )
            ms_per_step = fit(compiled(tf_keras, wrapped), x, y, [])
            return clustering.strip_clustering(wrapped), ms_per_step
        quantization = library.quantization.keras
        annotated = quantization.quantize_annotate_model(model)
        aware = quantization.quantize_apply(annotated, scheme_of(technique))
        ms_per_step = fit(compiled(tf_keras, aware), x, y, [])
    if "CQAT" in technique:
        name = "quantization.keras.collab_opts.cluster_preserve.cluster_utils"
        aware = internals(name).strip_clustering_cqat(aware)
    return aware, ms_per_step


def scheme_of(technique: str) -> Any:
    preserving = "quantization.keras.collab_opts"
    if technique == "PQAT":
        name = f"{preserving}.prune_preserve.default_8bit_prune_preserve_quantize_scheme"
        return internals(name).Default8BitPrunePreserveQuantizeScheme()
    name = f"{preserving}.cluster_preserve.default_8bit_cluster_preserve_quantize_scheme"
    scheme = internals(name).Default8BitClusterPreserveQuantizeScheme
    return scheme(preserve_sparsity=technique == "PCQAT")


def tfmots_file(model: Any) -> bytes:
    """The int8 file as TFMOT's documentation makes it; int8 inputs and outputs, as tfedge's."""
    from tfedge.convert._lite import frozen

    function = frozen(model)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of tf.lite
        return bytes(converter.convert())


def fit(model: Any, x: np.ndarray, y: np.ndarray, callbacks: list[Any]) -> float:
    """Train, and return the median time of a step in milliseconds."""
    k = keras if tfedge.models.keras_of(model) == "keras" else tf_keras
    times: list[float] = []
    clock = k.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: times.append(time.perf_counter())
    )
    model.fit(
        x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0, callbacks=[*callbacks, clock]
    )
    return 1000 * float(np.median(np.diff(times)))


if __name__ == "__main__":
    sys.exit(main())
