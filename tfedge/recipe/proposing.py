"""Propose a recipe for a model and its data."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfedge.data import Data
from tfedge.errors import FloatOperatorsError, SettingsError, did_you_mean
from tfedge.recipe.commenting import commented
from tfedge.recipe.examining import Findings, examine, noise_for, usual_metric
from tfedge.recipe.reading import as_recipe
from tfedge.recipe.targets import ACCELERATORS, MODE, TargetFit, few_of, fit_of
from tfedge.recipe.tasks import POINTS, RELATIVE
from tfedge.report import Record

PLACEHOLDER = "your_data.npz"
AGREEMENT_POINTS = 5.0
SEEN = 40_000  # samples that a training step passes over, about
FEWEST_EPOCHS, MOST_EPOCHS = 2, 15

# What a target means for this version: where latency is measured, and what is left to do by hand.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "cpu": (),
    "xnnpack": (),
    "none": (),
    "pi": (
        (
            "For a Raspberry Pi: latency is measured on this machine. On the Pi, install tfedge, "
            "copy the file there and run `tfedge benchmark model_int8.tflite`."
        ),
    ),
    "edgetpu": (
        (
            "For the Edge TPU: the int8 file gets a pre-flight in the report and, where Google's "
            "`edgetpu_compiler` is, is compiled; latency there is measured where a device is, and "
            "on this machine's CPU in any case."
        ),
        "Zeros do not make the Edge TPU faster or its files smaller, so nothing is pruned.",
    ),
    "ethosu": (
        (
            "For Ethos-U: this version of tfedge makes the int8 file and measures it on this "
            "machine's CPU. By hand: `vela model_int8.tflite`, which also packs zeros."
        ),
    ),
    "gpu": (
        (
            "For a GPU: latency is measured on this machine's GPU and, to compare with, on its "
            "CPU. Small models are slower on a GPU than on a CPU."
        ),
        (
            "Neither int8 nor zeros make GPUs faster; add `- prune: {sparsity: auto}` for a file "
            "that packs smaller."
        ),
    ),
}
INTEGER_ONLY = ("edgetpu", "ethosu")


@dataclass(frozen=True, kw_only=True)
class Proposal(Record):
    """A recipe with the reasons for what it says.

    Attributes:
        values: The recipe as YAML holds it.
        comments: Key of the recipe to sentences on why it says what it says.
        facts: Rows (what, found) on model and data.
        notes: Sentences for the reader: what does not look right, what is left to do.
        complete: Whether it runs as it is; else its data have to be named first.
    """

    values: Mapping[str, Any]
    comments: Mapping[str, tuple[str, ...]]
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    complete: bool = True


def propose(
    model: Any,
    model_path: str,
    data_source: str | None = None,
    data: Data | None = None,
    *,
    name: str = "",
    target: str = "cpu",
    metric: str | Mapping[str, str] | None = None,
    max_drop: float | str | None = None,
    imports: Sequence[str] = (),
    unsafe: bool = False,
) -> Proposal:
    """A recipe that runs as it is, for a model and its data.

    Args:
        model: The loaded model, of either Keras.
        model_path: What the recipe says of it: a file or `module:function`.
        data_source: What the recipe says of the data, as `load_dataset` takes it. Default: not
            known; the recipe then has to be completed by hand.
        data: The data themselves, completed; needed with `data_source`.
        name: What to call the recipe. Default: the model's file name.
        target: One of `TARGETS`.
        metric: Figure of merit, or one by output name. Default: by labels and outputs.
        max_drop: What may be lost. Default: a point for classes, 5 % for values.
        imports: Modules that define layers of one's own.
        unsafe: Whether the model file carries code that is trusted.

    Returns:
        The proposal.

    Raises:
        SettingsError: There is no such target or metric, or `max_drop` is out of its range.
        ModelError: The model cannot be used.
        ConversionError: The model cannot be converted.
        DataError: The data do not fit the model.
    """
    check_target(target)
    found = examine(model, data, metric)
    fit = _fit(found, target, model, data) if target in ACCELERATORS else None
    if fit is not None and fit.patterns and not found.no_training and data is not None:
        found = dataclasses.replace(found, float_layers=())  # `rewrite` takes them away
    return decide(
        found,
        model_path,
        data_source,
        name=name,
        target=target,
        metric=metric,
        max_drop=max_drop,
        imports=imports,
        unsafe=unsafe,
        fit=fit,
    )


def decide(
    found: Findings,
    model_path: str,
    data_source: str | None = None,
    *,
    name: str = "",
    target: str = "cpu",
    metric: str | Mapping[str, str] | None = None,
    max_drop: float | str | None = None,
    imports: Sequence[str] = (),
    unsafe: bool = False,
    fit: TargetFit | None = None,
) -> Proposal:
    """The recipe for what was found out about a model and its data; arguments as of `propose`.

    `fit` is how the model fits an accelerator, where the target is one.
    """
    check_target(target)
    judged, drop, why = _judged(found, metric, max_drop)
    stages, why_stages = _stages(found, target, drop is not None)
    if fit is not None and fit.patterns:
        stages, why_stages = _rewritten(found, fit, stages, why_stages)
    train, why_train = _training(found, stages)
    source, modes = data_source or PLACEHOLDER, _modes(found, target)
    values = {
        "name": name or Path(model_path).stem.replace(":", "_"),
        "model": model_path,
        "imports": list(imports),
        "unsafe": unsafe,
        "data": {"source": source, "labels": "inputs"} if found.labels == "inputs" else source,
        "metric": judged,
        "max_drop": drop,
        "train": train,
        "stages": stages,
        "convert": modes,
        "targets": [*_targets(target), *_accelerator(target, modes)],
        "seed": 0,
    }
    data = _why_data(found, data_source)
    why_all = {"data": data, "metric": why, "train": why_train, "stages": why_stages}
    comments = {**why_all, "targets": TARGETS[target]}
    return Proposal(
        values=_said(values),
        comments={key: lines for key, lines in comments.items() if lines},
        facts=_facts(found),
        notes=(*_notes(found, target, drop), *(fit.notes if fit is not None else ())),
        complete=data_source is not None,
    )


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a recipe has to say, checked; empty ones count where they mean something."""
    kept = ("max_drop", "stages", "seed")
    said = {k: v for k, v in values.items() if v or (k in kept and v is not None)}
    as_recipe(said, where="The proposed recipe")
    return said


def to_commented_yaml(proposal: Proposal, command: str = "tfedge optimize recipe.yaml") -> str:
    """The proposal as YAML that explains itself.

    Args:
        proposal: The proposal.
        command: The command that runs it, for the first line.
    """
    head = [f"Run it: {command}"]
    if not proposal.complete:
        head = [f"First name your data at `data:`, then run it: {command}"]
    return commented(proposal.values, proposal.comments, head)


def check_target(target: str) -> None:
    """Check that a target is known.

    Raises:
        SettingsError: It is not.
    """
    if target not in TARGETS:
        raise SettingsError(
            f"`--target` is one of {', '.join(TARGETS)}. Received: {target!r}."
            f"{did_you_mean(target, TARGETS)}"
        )


def epochs_for(samples: int) -> int:
    """Passes over the training samples: as many as see `SEEN` of them, within limits.

    Example:
        >>> epochs_for(1258), epochs_for(10_000), epochs_for(60_000)
        (15, 4, 2)
    """
    return max(FEWEST_EPOCHS, min(MOST_EPOCHS, -(-SEEN // max(1, samples))))


def batch_size_for(samples: int) -> int:
    """Samples per step: some 30 steps an epoch at least, where there are enough samples.

    Example:
        >>> batch_size_for(120), batch_size_for(1258), batch_size_for(60_000)
        (8, 32, 64)
    """
    if samples < 512:
        return 8
    return 32 if samples < 20_000 else 64


def _judged(
    found: Findings, metric: Any, max_drop: float | str | None
) -> tuple[Any, Any, tuple[str, ...]]:
    """Metric, `max_drop`, and why."""
    if metric is not None:
        return metric, _drop(found, metric, max_drop), ("Chosen by `--metric`.",)
    if found.tasks and found.named:
        chosen = usual_metric(found.tasks)
        why = tuple(
            f"{f'`{name}`: ' if name else 'Chosen because '}{task.why}."
            for name, task in found.tasks.items()
        )
        if max_drop is not None:
            return chosen, max_drop, why
        drops = {name: task.max_drop for name, task in found.tasks.items()}
        return chosen, drops.get("", drops), why
    chosen = "agreement" if found.classes else "sqnr_db"
    cause = "the outputs have no names" if found.labels else "there are no labels"
    why = (f"Chosen because {cause}: files are compared with the model itself.",)
    return chosen, _drop(found, chosen, max_drop), why


def _drop(found: Findings, metric: Any, max_drop: float | str | None) -> Any:
    if max_drop is not None or metric == "sqnr_db":
        return max_drop
    if metric == "agreement":
        return AGREEMENT_POINTS
    fractions = found.fractions
    if not isinstance(metric, Mapping):
        return POINTS if metric in fractions else RELATIVE
    return {
        output: POINTS if f"{output} {name}" in fractions else RELATIVE
        for output, name in metric.items()
    }


def _stages(found: Findings, target: str, limited: bool) -> tuple[list[Any], tuple[str, ...]]:
    """The steps, and why others are not among them."""
    if target == "gpu":
        return [], ()
    stages: list[Any] = []
    why: list[str] = []
    if found.no_training:
        why.append(f"Nothing is trained: {_ended(found.no_training)}")
        if not found.labels and found.samples:
            why.append(
                "With labels (array `y` beside `x`) it could be pruned and trained "
                "quantization-aware."
            )
    elif found.no_pruning:
        why.append(f"Nothing is pruned: {_ended(found.no_pruning)}")
    elif not limited:
        why.append("Nothing is pruned: without `max_drop` nothing says how far. Say `sparsity`.")
    elif target != "edgetpu":
        stages.append({"prune": {"sparsity": "auto"}})
    if found.float_layers:
        layers = ", ".join(f"`{layer}`" for layer in found.float_layers[:6])
        why.append(
            f"No int8: there is no integer form of {layers}, so the kernels alone become int8 "
            "(`dynamic_int8`)."
        )
    else:
        stages.append({"quantize": "calibrate" if found.no_training else "auto"})
    return stages, tuple(why)


def _rewritten(
    found: Findings, fit: TargetFit, stages: list[Any], why: tuple[str, ...]
) -> tuple[list[Any], tuple[str, ...]]:
    """The steps with one that replaces what the accelerator lacks, put first."""
    names = ", ".join(f"`{name}`" for name in fit.patterns)
    if found.no_training or not found.samples:
        return stages, (
            *why,
            f"Activations are not replaced ({names}): that is made up for by training.",
        )
    rewrite = {"rewrite": {"patterns": list(fit.patterns)}}
    said = (
        f"`rewrite` replaces activations that the target {fit.target} does not run ({names}), and "
        "takes back what costs more than its `max_drop`."
    )
    return [rewrite, *stages], (*why, said)


def _fit(found: Findings, target: str, model: Any, data: Data | None) -> TargetFit | None:
    """How the model fits an accelerator; `None` where layers without an integer form bar it."""
    samples = noise_for(model, found.inputs) if data is None else few_of(data)
    try:
        return fit_of(target, model, samples, strict=False)
    except FloatOperatorsError:
        return None


def _accelerator(target: str, modes: Sequence[str]) -> tuple[str, ...]:
    """What a target adds to the delegates that latency is measured on."""
    return (target,) if target in ACCELERATORS and MODE in modes else ()


def _ended(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _targets(target: str) -> list[str]:
    """What latency is measured on."""
    if target == "gpu":
        return ["gpu", "xnnpack"]
    return ["none" if target == "none" else "xnnpack"]


def _modes(found: Findings, target: str) -> list[str]:
    if target == "gpu":
        return ["float32", "float16"]
    if found.float_layers:
        return ["float32", "dynamic_int8"]
    return ["int8"] if target in INTEGER_ONLY else ["float32", "int8"]


def _training(found: Findings, stages: Sequence[Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    if found.no_training or not stages:
        return {}, ()
    samples = found.samples.get("training")
    train: dict[str, Any] = {"epochs": 5, "batch_size": 32}
    why = []
    if samples is not None:
        train = {"epochs": epochs_for(samples), "batch_size": batch_size_for(samples)}
        why.append(
            f"Epochs by the {samples:,} training samples: about {SEEN:,} are seen, in "
            f"{FEWEST_EPOCHS} to {MOST_EPOCHS} passes. More of them lose less and take longer."
        )
    loss = _loss(found)
    if loss is not None:
        train["loss"] = loss
        why.append("The loss is said here because the model is not compiled with one.")
    return train, tuple(why)


def _loss(found: Findings) -> str | dict[str, str] | None:
    """The loss where neither the model nor `make_fit` knows it."""
    if found.compiled:
        return None
    losses = {name: task.loss for name, task in found.tasks.items() if task.loss is not None}
    if list(found.tasks) != [""]:
        return losses or None
    known = found.labels != "inputs" and not found.tasks[""].said
    return None if known else losses.get("")


def _why_data(found: Findings, source: str | None) -> tuple[str, ...]:
    if found.labels == "inputs":
        form = "`labels: inputs`: the targets of an autoencoder are its inputs."
        return (form,) if source else (form, *_wanted(found))
    return () if source else _wanted(found)


def _wanted(found: Findings) -> tuple[str, ...]:
    """The arrays that an `.npz` for this model holds."""
    inputs = [f"`x` of shape {_shape(spec.shape[1:])}, {spec.dtype}" for spec in found.inputs]
    if len(found.inputs) > 1:
        inputs = [
            f"`{spec.name}` of shape {_shape(spec.shape[1:])}, {spec.dtype}"
            for spec in found.inputs
        ]
    labels = []
    for name, shape in () if found.labels == "inputs" else found.outputs.items():
        array = f"`y_{name}`" if name else "`y`"
        task = found.tasks.get(name)
        if task is not None and task.kind == "classes":
            labels.append(f"{array}, class numbers of shape {_shape(shape[:-1])}")
        else:
            labels.append(f"{array} of shape {_shape(shape)}")
    return (
        (
            f"Name your data here. The model wants {'; '.join(inputs + labels)}, written by "
            "`np.savez('your_data.npz', x=x, y=y)`."
        ),
    )


def _shape(shape: Sequence[int | None]) -> str:
    return f"({', '.join(['samples', *(str(size) for size in shape)])})"


def _facts(found: Findings) -> tuple[tuple[str, str], ...]:
    kind = "Keras 3" if found.keras == "keras" else "tf_keras"
    losses = ", ".join(dict.fromkeys(loss for loss in found.loss.values() if loss))
    state = f"compiled{f' with {losses}' if losses else ''}" if found.compiled else "not compiled"
    rows = [
        ("model", f"{found.name}: {kind}, {state}"),
        ("layers", str(found.layers)),
        ("parameters", f"{found.parameters:,}"),
        *((f"input {s.name}", f"{_shape(s.shape[1:])} {s.dtype}") for s in found.inputs),
        *((f"output {n}".strip(), _shape(shape)) for n, shape in found.outputs.items()),
        *((f"{what} samples", f"{count:,}") for what, count in found.samples.items()),
    ]
    if found.samples:
        low, high = found.ranges
        rows.append(("inputs range over", f"{low:.4g} to {high:.4g}"))
    for name, task in found.tasks.items():
        rows.append((f"task {name}".strip(), f"{task.kind}: {task.why}"))
    for name, value in found.figures.items():
        text = f"{100 * value:.2f} %" if name in found.fractions else f"{value:.4g}"
        rows.append((f"{name} as it is", text))
    return tuple(rows)


def _notes(found: Findings, target: str, drop: Any) -> tuple[str, ...]:
    notes = list(found.notes)
    if found.constant:
        low, high = found.ranges
        notes.append(
            "The model does no better on these data than one that always gives the same answer. "
            f"Are the inputs ({low:.4g} to {high:.4g}) as they were in training? The key `input:` "
            "scales them; and is the order of the classes the same?"
        )
    count = found.samples.get("evaluation", 0)
    if drop == POINTS and found.labels == "y" and 0 < count < 100:
        notes.append(
            f"One of {count} evaluation samples is {100 / count:.1f} points: too few for a budget "
            f"of {drop} points to mean much. Give more, or raise `max_drop`."
        )
    if any(task.logits for task in found.tasks.values()):
        notes.append(
            "The outputs are logits of yes or no, which the accuracy decides at 0.5, not at 0. "
            "Give the model a sigmoid, or a metric of your own: `--metric max:module:function`."
        )
    if found.float_layers and target in INTEGER_ONLY:
        notes.append(
            f"The target {target} runs integers only, and {', '.join(found.float_layers[:6])} "
            "have no integer form: replace these layers first."
        )
    return tuple(notes)
