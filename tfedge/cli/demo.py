"""`tfedge demo`: the whole way on the bundled digits, proven at its end."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from tfedge.cli._show import (
    SEED,
    Advance,
    common_options,
    print_json,
    print_table,
    print_text,
    progress_bar,
)
from tfedge.report import Record, StageReport, format_bytes

FLOAT_EPOCHS, PRUNE_EPOCHS, QUANTIZE_EPOCHS = 30, 25, 10
BATCH_SIZE = 32
SPARSITY = 0.88
LOWEST_BASELINE = 0.98
LARGEST_LOSS = 0.01
LOWEST_SPARSITY = 0.85
LOWEST_RATIO = 10.0


@dataclass(frozen=True, kw_only=True)
class DemoStep(Record):
    """The model after one step, as a `.tflite` file.

    Attributes:
        name: What was done.
        file: Name of the file in the run directory.
        accuracy: Of the file itself, on the test split.
        size_bytes: Size of the file.
        gzip_bytes: Its size after `gzip -9`.
        sparsity: Fraction of zeros in its kernels.
        float_operators: Operators that compute in float.
        latency_ms: Median of one sample on this machine, XNNPACK, one thread.
    """

    name: str
    file: str
    accuracy: float
    size_bytes: int
    gzip_bytes: int
    sparsity: float
    float_operators: int
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class DemoReport(Record):
    """What `run_demo` did.

    Attributes:
        seed: Seed of everything random in it.
        parameters: Trainable parameters of the model.
        train_samples: Samples that it was trained on.
        test_samples: Samples that it was judged on, and on nothing else.
        steps: One row per file.
        stages: Reports of the stages.
        verification: The int8 file against the quantization-aware model, on the test split.
        benchmark: Latency of the files; `None` when it was not asked for.
        claims: What must hold, each with whether it did.
        seconds: How long it took.
    """

    seed: int
    parameters: int
    train_samples: int
    test_samples: int
    steps: tuple[DemoStep, ...]
    stages: tuple[StageReport, ...]
    verification: Any
    benchmark: Any
    claims: dict[str, bool]
    seconds: float


def build_network(seed: int = 0) -> Any:
    """A convolutional network for digits of 8×8 pixels.

    Args:
        seed: Seed of its weights.

    Returns:
        A Keras 3 model with 45,290 trainable parameters, input `(8, 8, 1)`, output `(10,)`.
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 1), name="image")
    x = image
    for name, filters, pooled in (("1", 32, False), ("2", 32, True), ("3", 64, True)):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{name}")(x)
        x = layers.BatchNormalization(name=f"norm_{name}")(x)
        x = layers.ReLU(name=f"relu_{name}")(x)
        if pooled:
            x = layers.MaxPooling2D(name=f"pool_{name}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(0.3, name="drop_1")(x)
    x = layers.Dense(64, activation="relu", name="hidden")(x)
    x = layers.Dropout(0.3, name="drop_2")(x)
    return keras.Model(
        image, layers.Dense(10, activation="softmax", name="classes")(x), name="digits"
    )


def run_demo(
    output: Path,
    seed: int = 0,
    progress: Advance | None = None,
    *,
    measure_latency: bool = True,
) -> DemoReport:
    """Train, prune, quantize, convert, verify and measure a digits model.

    Args:
        output: Run directory; gets `report.json`, the `.tflite` files and the Keras models.
        seed: Seed of the weights, of the training and of the samples for calibration. The test
            split is the same for every seed.
        progress: Called with a sentence and the fraction that is done. Default: not called.
        measure_latency: Whether latency is measured.

    Returns:
        The report, as in `report.json`.

    Raises:
        TfedgeError: A step failed.
    """
    from tfedge.data import find_metric, load_dataset
    from tfedge.files import check_writable, write_whole
    from tfedge.models import save_model

    check_writable(output / "report.json")
    started = time.perf_counter()
    advance: Advance = progress or (lambda what, fraction: None)
    advance("loading TensorFlow and the digits", 0.0)
    data, metric = load_dataset("digits", seed=seed), find_metric("accuracy")
    models, stages = _train(data, metric, seed, advance)
    steps, verification = [], None
    names = ("float32", "pruned_float32", "int8")
    for place, (name, model) in enumerate(zip(names, models, strict=True)):
        advance(f"converting {name}", 0.80 + 0.04 * place)
        step, verification = _convert(name, model, data, output)
        steps.append(step)
        save_model(model, output / f"model_{name}.keras")
    advance("measuring latency", 0.92)
    latency = _latency(output, steps) if measure_latency else None
    report = DemoReport(
        seed=seed,
        parameters=sum(math.prod(v.shape) for v in models[0].trainable_variables),
        train_samples=len(data.train),  # type: ignore[arg-type]  # digits have both splits
        test_samples=len(data.evaluation),  # type: ignore[arg-type]
        steps=_with_latency(steps, latency),
        stages=tuple(stages),
        verification=verification,
        benchmark=latency,
        claims=_claims(steps),
        seconds=time.perf_counter() - started,
    )
    write_whole(
        output / "report.json", json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
    )
    return report


def _train(data: Any, metric: Any, seed: int, advance: Advance) -> tuple[list[Any], list[Any]]:
    """The float, the pruned and the quantization-aware model, and the stages' reports."""
    from tfedge.stages._base import Context
    from tfedge.stages._fit import make_fit
    from tfedge.stages.prune import Prune
    from tfedge.stages.quantize import Quantize

    def context(what: str, epochs: int, learning_rate: float, start: float, end: float) -> Context:
        fit = make_fit(
            data, epochs=epochs, batch_size=BATCH_SIZE, learning_rate=learning_rate, seed=seed
        )
        watch = _epoch_watch(advance, what, epochs, start, end)
        return Context(
            fit=lambda model, callbacks: fit(model, [*callbacks, watch]),
            data=data,
            metric=metric,
            seed=seed,
        )

    network = build_network(seed)
    training = context("training in float", FLOAT_EPOCHS, 1e-3, 0.05, 0.35)
    training.fit(network, [])  # type: ignore[misc]  # it is set above
    pruned, prune_report = Prune(sparsity=SPARSITY, end=0.6).apply(
        network, context("pruning", PRUNE_EPOCHS, 1e-3, 0.35, 0.60)
    )
    quantized, quantize_report = Quantize(keep_sparsity=True).apply(
        pruned, context("quantization-aware training", QUANTIZE_EPOCHS, 5e-4, 0.60, 0.80)
    )
    return [network, pruned, quantized], [prune_report, quantize_report]


def _epoch_watch(advance: Advance, what: str, epochs: int, start: float, end: float) -> Any:
    """A Keras callback that reports how far a training is."""
    import keras

    advance(what, start)
    return keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: advance(what, start + (end - start) * (epoch + 1) / epochs)
    )


def _convert(name: str, model: Any, data: Any, output: Path) -> tuple[DemoStep, Any]:
    """Write one `.tflite` file, and judge the file itself on the test split."""
    from tfedge.convert import convert
    from tfedge.files import write_whole
    from tfedge.verify import verify

    content, report = convert(model, mode="int8" if name == "int8" else "float32")
    path = write_whole(output / f"model_{name}.tflite", content)
    verification = verify(model, content, data.evaluation.x, labels=data.evaluation.y)
    step = DemoStep(
        name=name,
        file=path.name,
        accuracy=float(verification.candidate_metric or 0.0),
        size_bytes=report.size_bytes,
        gzip_bytes=report.gzip_bytes,
        sparsity=report.inspection.sparsity,
        float_operators=len(report.inspection.float_operators),
    )
    return step, verification


def _latency(output: Path, steps: Sequence[DemoStep]) -> Any:
    from tfedge.benchmark import benchmark

    return benchmark({step.name: output / step.file for step in steps})


def _with_latency(steps: Sequence[DemoStep], latency: Any) -> tuple[DemoStep, ...]:
    medians = {} if latency is None else {row.model: row.p50_ms for row in latency.rows}
    return tuple(replace(step, latency_ms=medians.get(step.name)) for step in steps)


def _claims(steps: Sequence[DemoStep]) -> dict[str, bool]:
    """What the run must show, each with whether it did."""
    first, last = steps[0], steps[-1]
    return {
        f"float32 accuracy is at least {LOWEST_BASELINE:.0%}": first.accuracy >= LOWEST_BASELINE,
        f"int8 loses at most {100 * LARGEST_LOSS:.0f} point": (
            first.accuracy - last.accuracy <= LARGEST_LOSS
        ),
        f"at least {LOWEST_SPARSITY:.0%} of the int8 kernels are zeros": (
            last.sparsity >= LOWEST_SPARSITY
        ),
        f"int8 after gzip is at least {LOWEST_RATIO:.0f}× smaller than float32": (
            first.size_bytes / last.gzip_bytes >= LOWEST_RATIO
        ),
        "every int8 operator computes in integers": last.float_operators == 0,
    }


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Run directory.",
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@common_options
def demo(output: Path, seed: int, as_json: bool) -> None:
    """Train, prune, quantize, convert, verify and measure a model of handwritten digits.

    Exit code 1 when a claim about the result does not hold.
    """
    with progress_bar(quiet=as_json) as advance:
        report = run_demo(output, seed, advance)
    if as_json:
        print_json(report)
    else:
        _show(report, output)
    if not all(report.claims.values()):
        click.get_current_context().exit(1)


def _show(report: DemoReport, output: Path) -> None:
    rows = [
        (
            step.name,
            f"{step.accuracy:.2%}",
            format_bytes(step.size_bytes),
            format_bytes(step.gzip_bytes),
            f"{step.sparsity:.1%}",
            step.float_operators,
            None if step.latency_ms is None else f"{step.latency_ms:.3f}",
        )
        for step in report.steps
    ]
    columns = ("step", "accuracy", "size", "gzip -9", "zeros", "float operators", "p50 ms")
    title = (
        f"Digits, {report.parameters:,} parameters, judged on {report.test_samples} test images "
        f"({report.seconds:.0f} s)"
    )
    print_table(title, columns, rows)
    for claim, holds in report.claims.items():
        print_text(f"{'yes' if holds else 'NO '}  {claim}")
    print_text(f"\n{report.verification.verdict}")
    for verdict in report.benchmark.verdicts if report.benchmark else ():
        print_text(verdict)
    print_text(f"\nWritten to {output}:")
    for path in sorted(output.glob("model_*")) + [output / "report.json"]:
        print_text(f"  {path}  {format_bytes(path.stat().st_size)}")
    print_text(
        f"\nNext:\n  tfedge inspect {output}/model_int8.tflite\n"
        f"  tfedge benchmark {output}/model_float32.tflite {output}/model_int8.tflite\n"
        f"  tfedge convert {output}/model_float32.keras --mode int8 --calibration digits"
    )
