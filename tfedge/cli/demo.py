"""`tfedge demo`: the whole way on the bundled digits, proven at its end."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tfedge.cli._show import SEED, Advance, common_options, print_json, print_text, progress_bar
from tfedge.cli.optimize import show_run
from tfedge.report import Record, RunReport

FLOAT_EPOCHS, PRUNE_EPOCHS, QUANTIZE_EPOCHS = 30, 25, 10
BATCH_SIZE = 32
SPARSITY = 0.88
MAX_DROP = 1.0  # points
LOWEST_BASELINE = 0.98
LOWEST_SPARSITY = 0.85
LOWEST_RATIO = 10.0
TRAINED = 0.25  # the part of the demo that trains the network in float


@dataclass(frozen=True, kw_only=True)
class DemoReport(Record):
    """What `run_demo` did.

    Attributes:
        seed: Seed of everything random in it.
        parameters: Trainable parameters of the model.
        run: The report of its run, as in `report.json`.
        claims: What must hold, each with whether it did.
    """

    seed: int
    parameters: int
    run: RunReport
    claims: dict[str, bool]


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
    """Train a digits model, then prune, quantize, convert, verify and measure it by a recipe.

    Args:
        output: Run directory; gets what every run leaves, and the model, `model.keras`.
        seed: Seed of the weights, of the training and of the samples for calibration. The test
            split is the same for every seed.
        progress: Called with a sentence and the fraction that is done. Default: not called.
        measure_latency: Whether latency is measured.

    Returns:
        The report.

    Raises:
        TfedgeError: A step failed.
    """
    from tfedge.files import check_writable
    from tfedge.recipe import run

    path = output / "model.keras"
    check_writable(path)
    advance: Advance = progress or (lambda what, fraction: None)
    advance("loading TensorFlow and the digits", 0.0)
    parameters = _train(path, seed, advance)
    report = run(
        demo_recipe(path, seed),
        output,
        measure_latency=measure_latency,
        progress=lambda what, done: advance(what, TRAINED + (1 - TRAINED) * done),
    )
    return DemoReport(seed=seed, parameters=parameters, run=report, claims=_claims(report))


def demo_recipe(model: Path, seed: int = 0) -> Any:
    """The recipe of the demo: prune, then train quantization-aware.

    Args:
        model: The trained model.
        seed: Seed of everything random.
    """
    from tfedge.recipe import Recipe, Training

    prune = {"sparsity": SPARSITY, "end": 0.6, "train": {"epochs": PRUNE_EPOCHS}}
    quantize = {
        "way": "train",
        "keep_sparsity": True,
        "train": {"epochs": QUANTIZE_EPOCHS, "learning_rate": 5e-4},
    }
    return Recipe(
        name="demo",
        model=str(model),
        data="digits",
        max_drop=MAX_DROP,
        train=Training(batch_size=BATCH_SIZE, learning_rate=1e-3),
        stages=[{"prune": prune}, {"quantize": quantize}],
        seed=seed,
    )


def _train(path: Path, seed: int, advance: Advance) -> int:
    """Train the network in float, save it, and return its number of trainable parameters."""
    from tfedge.data import load_dataset
    from tfedge.models import reproducible, save_model
    from tfedge.stages._fit import make_fit

    def after_epoch(done: int, epochs: int, logs: dict[str, Any]) -> None:
        advance("training in float", TRAINED * (0.1 + 0.9 * done / epochs))

    with reproducible(seed):
        network = build_network(seed)
        fit = make_fit(
            load_dataset("digits", seed=seed),
            epochs=FLOAT_EPOCHS,
            batch_size=BATCH_SIZE,
            learning_rate=1e-3,
            seed=seed,
            progress=after_epoch,
        )
        fit(network, [])
        save_model(network, path)
    return sum(math.prod(v.shape) for v in network.trainable_variables)


def _claims(report: RunReport) -> dict[str, bool]:
    """What the run must show, each with whether it did."""
    first, last = report.files[0], report.files[-1]
    ratio = first.size_bytes / last.gzip_bytes
    return {
        f"float32 accuracy is at least {LOWEST_BASELINE:.0%}": (
            first.figures["accuracy"] >= LOWEST_BASELINE
        ),
        f"int8 loses at most {MAX_DROP:.0f} point": last.drops["accuracy"] <= MAX_DROP / 100,
        f"at least {LOWEST_SPARSITY:.0%} of the int8 kernels are zeros": (
            last.sparsity >= LOWEST_SPARSITY
        ),
        f"int8 after gzip is at least {LOWEST_RATIO:.0f}× smaller than float32": (
            ratio >= LOWEST_RATIO
        ),
        "every int8 operator computes in integers": last.mode == "int8"
        and not last.float_operators,
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
    show_run(report.run, f"Digits, {report.parameters:,} parameters")
    for claim, holds in report.claims.items():
        print_text(f"{'yes' if holds else 'NO '}  {claim}")
    print_text(
        f"\nWritten to {output}: report.html, recipe.yaml, model_*.tflite\n\nNext:\n"
        f"  tfedge report {output}\n"
        f"  tfedge optimize {output}/recipe.yaml --max-drop 0.5 --output runs/second\n"
        "  tfedge init your_model.keras --data your_data.npz"
    )
