"""Prune MLPerf Tiny's ResNet-8 to half its multiply-accumulates and judge it on CIFAR-10.

    TFEDGE_DATA_DIR=… python benchmarks/structured.py MODELS_FOLDER --results structured.json

`MODELS_FOLDER` holds `mlperf_tiny_resnet8.h5`; the data are all 50,000 training and 10,000 test
images of `cifar10_jpeg.npz`. For each seed, from the same fine-tuned network:

- `base`: the published weights, fine-tuned on these images;
- `pruned`: `StructuredPrune(flops=0.5)` in turns of removing and training;
- `distilled`: the same with the fine-tuned network as teacher (skipped where this tfedge has none);
- `scratch`: a ResNet-8 scaled in width to the same multiply-accumulates, trained from scratch for
  as many epochs as `pruned` had after the published weights, or `--scratch-epochs` of them.

Every finished arm of a seed is kept in the file of results with its model beside it, so that an
interrupted run goes on where it stopped. Latencies are measured in one go at the end, on the
float32 and int8 `.tflite` files of the first seed. Exit code 1 if a claim fails: over the seeds,
`pruned` at most 2 points below `base`, `distilled` at most 1, and `pruned` above `scratch`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402  # the environment comes first
import numpy as np  # noqa: E402

import tfedge  # noqa: E402
from tfedge.data import Data, load_dataset  # noqa: E402
from tfedge.engines.native.costs import total_macs  # noqa: E402
from tfedge.engines.native.graph import read_graph  # noqa: E402
from tfedge.engines.native.narrow import narrow  # noqa: E402
from tfedge.files import write_whole  # noqa: E402
from tfedge.stages.structured import StructuredPrune  # noqa: E402

BATCH = 128
MAX_DROP, MAX_DROP_DISTILLED = 2.0, 1.0  # points
Fit = Callable[[Any, Sequence[Any]], Any]


class Setting:
    """How long each arm trains.

    Args:
        arguments: Of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        smoke = arguments.smoke
        self.finetune = 1 if smoke else arguments.finetune_epochs
        self.iterations = 2 if smoke else arguments.iterations
        self.per_turn = 1 if smoke else arguments.epochs_per_turn
        self.final = 1 if smoke else arguments.final_epochs
        self.scratch = 2 if smoke else arguments.scratch_epochs or self.spent
        self.importance, self.round_to = arguments.importance, arguments.round_to

    @property
    def spent(self) -> int:
        """Epochs behind `pruned`, the published training not counted."""
        return self.finetune + (self.iterations - 1) * self.per_turn + self.final


def fit_of(data: Data, epochs: Sequence[int], seed: int, rate: float = 1e-3) -> Fit:
    """A `fit` whose n-th call trains for the n-th number of epochs: flips, shifts, cosine decay."""
    left = list(epochs)
    images, labels = np.asarray(data.train.x, np.float32), np.asarray(data.train.y).reshape(-1)

    def fit(model: Any, callbacks: Sequence[Any] = ()) -> Any:
        count = left.pop(0)
        keras.utils.set_random_seed(seed)
        steps = -(-len(images) // BATCH)
        schedule = keras.optimizers.schedules.CosineDecay(rate, max(1, count * steps))
        model.compile(
            keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        stream = Augmented(images, labels, seed)
        return model.fit(stream, epochs=count, verbose=0, callbacks=list(callbacks))

    return fit


class Augmented(keras.utils.PyDataset):
    """Batches in an order of their own for each epoch, flipped and shifted by up to 4 pixels."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int) -> None:
        super().__init__()
        self.images, self.labels = images, labels
        self.draw = np.random.default_rng(seed)
        self.on_epoch_end()

    def on_epoch_end(self) -> None:
        """Draw another order."""
        self.order = self.draw.permutation(len(self.images))

    def __len__(self) -> int:
        return -(-len(self.images) // BATCH)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.order[index * BATCH : (index + 1) * BATCH]
        padded = np.pad(self.images[rows], ((0, 0), (4, 4), (4, 4), (0, 0)))
        moved = np.empty_like(self.images[rows])
        for place, (top, left) in enumerate(self.draw.integers(0, 9, (len(rows), 2))):
            moved[place] = padded[place, top : top + 32, left : left + 32]
        flipped = self.draw.random(len(rows)) < 0.5
        moved[flipped] = moved[flipped, :, ::-1]
        return moved, self.labels[rows]


def accuracy(model: Any, data: Data) -> float:
    scores = model.predict(np.asarray(data.evaluation.x, np.float32), batch_size=500, verbose=0)
    return float((scores.argmax(axis=1) == np.asarray(data.evaluation.y).reshape(-1)).mean())


def published(folder: Path) -> Any:
    """MLPerf's network as a Keras 3 model."""
    model = tfedge.load_model(folder / "mlperf_tiny_resnet8.h5")
    return model if tfedge.keras_of(model) == "keras" else tfedge.to_keras3(model)


def distilling(fit: Fit, teacher: Any) -> Fit | None:
    """`fit` with a teacher; `None` where this tfedge has no distillation."""
    try:
        from tfedge.distillation import Distillation
    except ImportError:
        return None
    return Distillation(teacher, cache=False).wrap(fit)  # every image is another one


def scaled(model: Any, macs: int, seed: int) -> Any:
    """A fresh network of the same architecture, its width chosen for that many operations."""
    low, high, near = 0.0, 1.0, {}
    for _ in range(8):
        middle = (low + high) / 2
        student = narrow(model, middle, round_to=1, seed=seed)
        size = total_macs(read_graph(student))
        near[abs(size - macs)] = student
        low, high = (middle, high) if size < macs else (low, middle)
    return near[min(near)]


def pruned(base: Any, data: Data, setting: Setting, seed: int, teacher: Any = None) -> Any:
    if not base.compiled:  # loaded from a run that was interrupted
        base.compile("adam", "sparse_categorical_crossentropy")
    turns = [setting.per_turn] * (setting.iterations - 1) + [setting.final]
    fit: Fit | None = fit_of(data, turns, seed)
    if teacher is not None:
        fit = distilling(fit, teacher)  # type: ignore[arg-type]
    if fit is None:
        return None
    stage = StructuredPrune(
        flops=0.5,
        importance=setting.importance,
        iterations=setting.iterations,
        round_to=setting.round_to,
    )
    return stage.apply(base, tfedge.Context(fit=fit, data=data, seed=seed))[0]


def run_arm(arm: str, models: dict[str, Any], data: Data, setting: Setting, seed: int) -> Any:
    if arm == "base":
        model = models["published"]
        fit_of(data, [setting.finetune], seed)(model)
        return model
    if arm == "scratch":
        macs = total_macs(read_graph(models["pruned"]))
        model = scaled(models["base"], macs, seed)
        fit_of(data, [setting.scratch], seed)(model)
        return model
    teacher = models["base"] if arm == "distilled" else None
    return pruned(models["base"], data, setting, seed, teacher)


ARMS = ("base", "pruned", "distilled", "scratch")


def run_seed(seed: int, data: Data, setting: Setting, folder: Path, results: Path) -> dict:
    """All arms of one seed; those in the file of results are not run again."""
    rows = json.loads(results.read_text()) if results.exists() else {}
    own = rows.setdefault(str(seed), {})
    models: dict[str, Any] = {"published": published(folder)}
    for arm in ARMS:
        path = results.with_name(f"{results.stem}_{seed}_{arm}.keras")
        if arm in own:
            models[arm] = tfedge.load_model(path) if path.exists() else None
            continue
        started = time.time()
        model = models[arm] = run_arm(arm, models, data, setting, seed)
        if model is None:
            print(f"seed {seed} {arm}: not in this tfedge, skipped", flush=True)
            continue
        tfedge.save_model(model, path)
        own[arm] = {
            "accuracy": accuracy(model, data),
            "macs": total_macs(read_graph(model)),
            "parameters": model.count_params(),
            "seconds": time.time() - started,
        }
        write_whole(results, json.dumps(rows, indent=1))
        print_row(seed, arm, own[arm])
    return own


def print_row(seed: int, arm: str, row: dict) -> None:
    print(
        f"{seed:>4} {arm:<10} {row['accuracy']:>8.2%} {row['macs']:>12,} "
        f"{row['parameters']:>9,} {row['seconds']:>8.0f}",
        flush=True,
    )


def measure(results: Path, data: Data) -> None:
    """Latency of the first seed's files, side by side on this host."""
    files = {}
    for arm in ARMS:
        path = results.with_name(f"{results.stem}_0_{arm}.keras")
        if path.exists():
            model = tfedge.load_model(path)
            files[f"{arm} float32"] = tfedge.convert(model, mode="float32")[0]
            calibration = data.train.take(min(500, len(data.train)))
            files[f"{arm} int8"] = tfedge.convert(model, mode="int8", calibration=calibration)[0]
    print(tfedge.benchmark(files))


def judge(rows: dict[str, dict]) -> dict[str, bool]:
    def figure(arm: str) -> float:
        return 100 * mean(row[arm]["accuracy"] for row in rows.values())

    def macs(arm: str) -> list[int]:
        return [row[arm]["macs"] for row in rows.values()]

    drop = figure("base") - figure("pruned")
    halves = [small / whole for small, whole in zip(macs("pruned"), macs("base"), strict=True)]
    near = [own / small for own, small in zip(macs("scratch"), macs("pruned"), strict=True)]
    claims = {
        f"operations left {max(halves):.3f}, at most 0.5": max(halves) <= 0.5,
        f"pruned {drop:.2f} points below base, at most {MAX_DROP:.0f}": drop <= MAX_DROP,
        f"pruned {figure('pruned'):.2f} %, above scratch {figure('scratch'):.2f} %": (
            figure("pruned") > figure("scratch")
        ),
        f"scratch has {min(near):.3f} to {max(near):.3f} of the operations of pruned": (
            min(near) >= 0.97
        ),
    }
    if all("distilled" in row for row in rows.values()):
        drop = figure("base") - figure("distilled")
        claims[f"distilled {drop:.2f} points below base, at most {MAX_DROP_DISTILLED:.0f}"] = (
            drop <= MAX_DROP_DISTILLED
        )
    return claims


def main(arguments: argparse.Namespace) -> int:
    data = load_dataset("cifar10")
    if arguments.smoke:
        few = 256
        data = Data(train=data.train.take(few), evaluation=data.evaluation.take(few))
    setting = Setting(arguments)
    print(
        f"{len(data.train)} training and {len(data.evaluation)} test images; epochs: fine-tune "
        f"{setting.finetune}, prune {setting.iterations} turns of {setting.per_turn} and "
        f"{setting.final} at the end, scratch {setting.scratch}"
    )
    print(f"{'seed':>4} {'arm':<10} {'accuracy':>8} {'MACs':>12} {'weights':>9} {'seconds':>8}")
    seeds = range(1 if arguments.smoke else arguments.seeds)
    rows = {
        str(seed): run_seed(seed, data, setting, arguments.models, arguments.results)
        for seed in seeds
    }
    measure(arguments.results, data)
    claims = judge(rows)
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(claims.values()) or arguments.smoke else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="folder with mlperf_tiny_resnet8.h5")
    parser.add_argument("--results", type=Path, default=Path("structured.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--finetune-epochs", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--epochs-per-turn", type=int, default=4)
    parser.add_argument("--final-epochs", type=int, default=30)
    parser.add_argument("--scratch-epochs", type=int, help="default: all epochs spent on pruned")
    parser.add_argument("--importance", default="taylor")
    parser.add_argument("--round-to", type=int, default=4)
    parser.add_argument("--smoke", action="store_true", help="few images and epochs, no verdict")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(parsed()))
