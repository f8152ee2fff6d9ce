"""Trains every stage that trains, under one way of using devices; run in a process of its own.

    python devices_worker.py one|mirrored|worker keras|tf_keras VARIANT[,VARIANT…] FOLDER

Variants are `plain`, `jit` (XLA) and `mixed` (mixed_float16, the last one). The weights that each
stage ends with go to FOLDER/<variant>-<stage>.npz, what it refuses to FOLDER/<variant>.txt.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfedge import Cluster, Context, Data, Prune, Quantize, SparsityPenalty, Split, convert
from tfedge.errors import UnsupportedModelError
from tfedge.stages.finetune import FineTune


def strategy_of(way):
    if way == "worker":  # the cluster stands in TF_CONFIG
        return tf.distribute.MultiWorkerMirroredStrategy()
    if way == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return tf.distribute.get_strategy()


def stages(library):
    return {
        "prune": Prune(sparsity=0.5, end=0.5, frequency=1),
        "cluster": Cluster(number_of_clusters=8),
        "quantize": Quantize(keep_sparsity=True),
        "finetune": FineTune(epochs=2, batch_size=16, learning_rate=0.1),
        **({"penalty": SparsityPenalty(kind="l1", strength=1e-3)} if library == "keras" else {}),
    }


def build(keras, jit):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(16, activation="relu", name="hidden"),
            layers.Dense(4, activation="softmax", name="classes", dtype="float32"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", jit_compile=jit)
    return model


def main(way, name, variants, folder):
    strategy = strategy_of(way)
    keras = importlib.import_module(name)
    for variant in variants.split(","):
        if variant == "mixed":
            keras.mixed_precision.set_global_policy("mixed_float16")
        with strategy.scope():
            model = build(keras, variant == "jit")
        try:
            train(model, Path(folder), variant)
        except UnsupportedModelError as error:
            Path(folder, f"{variant}.txt").write_text(str(error))


def train(model, folder, variant):
    draw = np.random.default_rng(0)
    x, y = draw.random((64, 8, 8, 3), np.float32), draw.integers(0, 4, 64)

    def fit(model, callbacks):
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
        return model.fit(data, epochs=2, verbose=0, shuffle=False, callbacks=list(callbacks))

    context = Context(fit=fit, data=Data(train=Split(x, y)))
    for name, stage in stages(type(model).__module__.partition(".")[0]).items():
        before = model.get_weights()
        after, _ = stage.apply(model, context)
        kept = all(map(np.array_equal, model.get_weights(), before))
        used = type(after.distribute_strategy).__name__
        arrays = {str(i): w for i, w in enumerate(after.get_weights())}
        convert(after, mode="int8" if name.startswith("quantize") else "float32")
        np.savez(folder / f"{variant}-{name}.npz", kept=kept, used=used, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
