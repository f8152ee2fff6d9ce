"""Send the same inputs through two models: how far apart they are, and where they first part."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfedge.errors import DataError, SettingsError, VerificationError, did_you_mean
from tfedge.report import Record
from tfedge.verify._layers import inner_tensors, paired
from tfedge.verify._sides import Side, arranged, count, is_file, opened, some

if TYPE_CHECKING:
    from tfedge.data import Metric

TENSOR_SAMPLES = 4  # samples on which inner tensors are compared
INTEGER_PARTING_DB = 15.0
FLOAT_PARTING_DB = 40.0


@dataclass(frozen=True, kw_only=True)
class OutputDifference(Record):
    """How far one output of the candidate is from the reference's.

    Attributes:
        name: The reference's name of the output.
        agreement: Fraction of positions with the same argmax; `None` for outputs of one value.
        control_agreement: The same after the candidate's samples were permuted. Must be low.
        max_error: Largest absolute difference, in the output's unit.
        mean_error: Mean absolute difference, in the output's unit.
        sqnr_db: Signal to quantisation noise, dB; infinite when the two are equal.
        control_sqnr_db: The same after the candidate's samples were permuted. Must be low.
        metric: Name of the metric; `None` without labels for this output.
        reference_metric: The metric of the reference.
        candidate_metric: The metric of the candidate.
    """

    name: str
    agreement: float | None
    control_agreement: float | None
    max_error: float
    mean_error: float
    sqnr_db: float
    control_sqnr_db: float | None
    metric: str | None = None
    reference_metric: float | None = None
    candidate_metric: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerDifference(Record):
    """How far one inner tensor of the candidate is from the reference's.

    Attributes:
        name: The layer (or, between two files, the tensor).
        sqnr_db: Signal to quantisation noise, dB.
        max_error: Largest absolute difference.
    """

    name: str
    sqnr_db: float
    max_error: float


@dataclass(frozen=True, kw_only=True)
class VerificationReport(Record):
    """What `verify` found.

    Attributes:
        samples: Number of samples sent through both.
        agreement: Lowest argmax agreement of the outputs; `None` when no output has classes.
        control_agreement: Highest agreement with permuted samples.
        max_error: Largest absolute difference of the outputs.
        mean_error: Largest mean absolute difference of the outputs.
        sqnr_db: Lowest signal to quantisation noise of the outputs, dB.
        metric: Name of the metric of the first output with labels; `None` without labels.
        reference_metric: That metric of the reference.
        candidate_metric: That metric of the candidate.
        outputs: One row per output.
        layers: One row per inner tensor that both have, in the order of computation.
        first_parting: The first row of `layers` below `parting_db`.
        parting_db: The signal to quantisation noise below which two tensors count as parted, dB.
        proven: False when the figures prove nothing, e.g. when permuted samples agree as well.
        notes: What could not be compared, and why.
        verdict: All of it in words.
        delegate: What ran the candidate, if it is a file.
        adapter: The device of a GPU that ran it.
    """

    samples: int
    agreement: float | None
    control_agreement: float | None
    max_error: float
    mean_error: float
    sqnr_db: float
    metric: str | None = None
    reference_metric: float | None = None
    candidate_metric: float | None = None
    outputs: tuple[OutputDifference, ...] = ()
    layers: tuple[LayerDifference, ...] = ()
    first_parting: str | None = None
    parting_db: float
    proven: bool
    notes: tuple[str, ...] = ()
    verdict: str
    delegate: str | None = None
    adapter: str | None = None

    def __str__(self) -> str:
        return self.verdict


def verify(
    reference: Any,
    candidate: Any,
    inputs: Any,
    *,
    labels: Any = None,
    metric: "str | Metric | Mapping[str, str | Metric] | None" = None,
    seed: int = 0,
    tensors: bool = True,
    delegate: str | None = None,
    precision: str = "fp32",
    allow_software: bool = False,
) -> VerificationReport:
    """Compare what two models make of the same inputs.

    Both run in this process, files after a check that they are sound. For files of unknown origin
    use the command `tfedge verify`: it opens them in a child process, within limits.

    Args:
        reference: A Keras model (Keras 3 or tf_keras), or a `.tflite` file: its path or its bytes.
        candidate: The same; usually the file made of `reference`.
        inputs: Samples as the reference takes them, shape `(samples, …)`; a sequence or a dict of
            them for several inputs.
        labels: What is right for each sample; a dict by output name for several outputs.
        metric: Figure of merit against `labels`: a name, `module:function`, a
            `tfedge.data.Metric`, or a dict of them by output name. Default with labels: accuracy;
            the mean absolute error for outputs that are numbers, not classes.
        seed: Seed of the permuted control and of the choice of samples for inner tensors.
        tensors: Whether inner tensors are compared too.
        delegate: What runs the candidate, a file, and nothing else does (see `open_model`); its
            inner tensors are then not seen, except on `"none"`. Default: XNNPACK, or, with a note,
            LiteRT's own kernels. The reference always runs as by default: the same file twice shows
            what a delegate changes.
        precision: What a GPU computes floats in: `"fp32"` or `"fp16"`.
        allow_software: Whether a GPU that is a program on the CPU counts.

    Returns:
        The differences, and a verdict in words.

    Raises:
        DataError: The inputs do not fit, or the labels are as many as something else.
        SettingsError: A metric without labels, or a delegate for what is no file.
        DelegateError: The delegate cannot run the candidate.
        VerificationError: The two have outputs that cannot be compared.

    Example:
        >>> report = verify(model, "model.tflite", images, labels=labels)  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    if metric is not None and labels is None:
        raise SettingsError(
            f"A metric needs `labels`. Received: metric={metric!r}, and no labels. Give labels "
            "too (array `y` of an `.npz`), or leave the metric out."
        )
    on = _placed(candidate, delegate, precision, allow_software)
    samples = count(inputs)
    notes: list[str] = []
    names, expected, received, ran = _predictions(reference, candidate, inputs, notes, on)
    order = derangement(samples, seed) if samples > 1 else None
    truths = _labels_by_output(labels, names, samples)
    outputs = tuple(
        _compare_output(name, first, second, order, truths.get(name), metric)
        for name, first, second in zip(names, expected, received, strict=True)
    )
    layers: tuple[LayerDifference, ...] = ()
    if tensors and delegate not in (None, "none"):
        notes.append(f"Inner tensors were not compared: {delegate!r} does not write them.")
    elif tensors:
        few = some(inputs, np.random.default_rng(seed).permutation(samples)[:TENSOR_SAMPLES])
        layers = _compare_layers(reference, candidate, few, notes)
    parting_db = INTEGER_PARTING_DB if _computes_in_integers(candidate) else FLOAT_PARTING_DB
    first_parting = next((row.name for row in layers if row.sqnr_db < parting_db), None)
    proven, verdict = _judge(samples, outputs, first_parting)
    labelled = next((row for row in outputs if row.metric is not None), None)
    return VerificationReport(
        samples=samples,
        agreement=min((o.agreement for o in outputs if o.agreement is not None), default=None),
        control_agreement=max(
            (o.control_agreement for o in outputs if o.control_agreement is not None), default=None
        ),
        max_error=max(o.max_error for o in outputs),
        mean_error=max(o.mean_error for o in outputs),
        sqnr_db=min(o.sqnr_db for o in outputs),
        metric=labelled.metric if labelled else None,
        reference_metric=labelled.reference_metric if labelled else None,
        candidate_metric=labelled.candidate_metric if labelled else None,
        outputs=outputs,
        layers=layers,
        first_parting=first_parting,
        parting_db=parting_db,
        proven=proven,
        notes=tuple(notes),
        verdict=verdict,
        delegate=ran.delegate,
        adapter=ran.adapter,
    )


def _placed(
    candidate: Any, delegate: str | None, precision: str, allow_software: bool
) -> dict[str, Any] | None:
    """How the candidate is opened; `None` where that was left to `verify`."""
    given = {"delegate": delegate, "precision": precision, "allow_software": allow_software}
    if delegate is None and precision == "fp32" and not allow_software:
        return None
    if delegate is None or not is_file(candidate):
        raise SettingsError(
            "`delegate` says what runs the candidate, a `.tflite` file; `precision` and "
            f"`allow_software` go with `delegate='gpu'`. Received: {given} and a candidate "
            f"{'that is a file' if is_file(candidate) else 'that is no file'}."
        )
    return given


def derangement(count: int, seed: int = 0) -> np.ndarray:
    """A seeded permutation of `count` samples that leaves none in its place.

    Args:
        count: Number of samples, at least 2.
        seed: Seed.

    Returns:
        Int array of shape `(count,)`.

    Example:
        >>> bool((derangement(100, seed=3) == np.arange(100)).any())
        False
    """
    order = np.random.default_rng(seed).permutation(count)
    result = np.empty(count, np.int64)
    result[order] = np.roll(order, 1)
    return result


def _predictions(
    reference: Any, candidate: Any, inputs: Any, notes: list[str], on: dict[str, Any] | None
) -> tuple[list[str], list[np.ndarray], list[np.ndarray], Side]:
    """Names of the reference's outputs, its outputs, the candidate's in the same order, and it."""
    with ExitStack() as stack:
        first = stack.enter_context(opened(reference, notes))
        second = stack.enter_context(opened(candidate, notes, on))
        expected = first.predict(arranged(inputs, first.inputs))
        received = second.predict(arranged(inputs, second.inputs))
    names = list(first.outputs) or [f"output_{place}" for place in range(len(expected))]
    if set(names) == set(second.outputs) and len(names) == len(received):
        received = [received[second.outputs.index(name)] for name in names]
    shapes = [row.shape for row in expected], [row.shape for row in received]
    if [math.prod(shape) for shape in shapes[0]] != [math.prod(shape) for shape in shapes[1]]:
        raise VerificationError(
            "The reference and the candidate need outputs of the same shapes. "
            f"Received: {shapes[0]} and {shapes[1]}. Compare a file with the model it came from."
        )
    received = [row.reshape(like.shape) for row, like in zip(received, expected, strict=True)]
    return names, expected, received, second


def _labels_by_output(labels: Any, names: list[str], samples: int) -> dict[str, np.ndarray]:
    if labels is None:
        return {}
    by_name = labels if isinstance(labels, Mapping) else {names[0]: labels}
    unknown = [str(name) for name in by_name if name not in names]
    if unknown:
        raise DataError(
            f"Labels are named like the outputs: {', '.join(names)}. Received: {unknown[0]!r}."
            f"{did_you_mean(unknown[0], names)}"
        )
    truths = {str(name): np.asarray(truth) for name, truth in by_name.items()}
    for name, truth in truths.items():
        if truth.ndim == 0 or len(truth) != samples:
            raise DataError(
                f"Every sample needs a label. Received: {samples} samples and labels of shape "
                f"{truth.shape} for the output {name!r}."
            )
    return truths


def _compare_output(
    name: str,
    expected: np.ndarray,
    received: np.ndarray,
    order: np.ndarray | None,
    truth: np.ndarray | None,
    metric: Any,
) -> OutputDifference:
    from tfedge.data import agreement

    classes = expected.ndim > 1 and expected.shape[-1] > 1
    permuted = None if order is None else received[order]
    error = np.abs(expected.astype(np.float64) - received)
    figures = None if truth is None else _figures(name, truth, expected, received, metric)
    return OutputDifference(
        name=name,
        agreement=agreement(expected, received) if classes else None,
        control_agreement=(
            agreement(expected, permuted) if classes and permuted is not None else None
        ),
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        sqnr_db=_signal_to_noise(expected, received),
        control_sqnr_db=None if permuted is None else _signal_to_noise(expected, permuted),
        metric=figures[0] if figures else None,
        reference_metric=figures[1] if figures else None,
        candidate_metric=figures[2] if figures else None,
    )


def _figures(
    name: str, truth: np.ndarray, expected: np.ndarray, received: np.ndarray, metric: Any
) -> tuple[str, float, float] | None:
    """Name of the metric, and the metric of the reference and of the candidate."""
    from tfedge.data import find_metric

    chosen = metric.get(name) if isinstance(metric, Mapping) else metric
    if isinstance(metric, Mapping) and chosen is None:
        return None
    found = find_metric(_usual_metric(truth, expected) if chosen is None else chosen)
    return (
        found.name,
        float(found.function(truth, expected)),
        float(found.function(truth, received)),
    )


def _usual_metric(truth: np.ndarray, expected: np.ndarray) -> str:
    """Accuracy where labels name classes; the mean absolute error where they are quantities."""
    single = expected.ndim < 2 or expected.shape[-1] == 1
    if single:
        quantities = not np.isin(truth, (0, 1)).all()
    else:
        quantities = truth.shape == expected.shape and bool((truth < 0).any() or (truth > 1).any())
    return "mean_absolute_error" if quantities else "accuracy"


def _signal_to_noise(expected: np.ndarray, received: np.ndarray) -> float:
    """Decibels; not-a-number when a value is not finite."""
    from tfedge.data import sqnr_db

    if not (np.isfinite(expected).all() and np.isfinite(received).all()):
        return math.nan
    return sqnr_db(expected, received)


def _compare_layers(
    reference: Any, candidate: Any, few: Any, notes: list[str]
) -> tuple[LayerDifference, ...]:
    first = inner_tensors(reference, few, notes)
    second = inner_tensors(candidate, few, notes)
    if is_file(reference) and not is_file(candidate):
        pairs = [(name, a, b) for name, b, a in paired(second, first)]
    else:
        pairs = paired(first, second)
    if first and second and not pairs:
        notes.append("Inner tensors were not compared: the two share no tensor name.")
    return tuple(
        LayerDifference(
            name=name,
            sqnr_db=_signal_to_noise(expected, received),
            max_error=float(np.abs(expected - received).max()),
        )
        for name, expected, received in pairs
    )


def _computes_in_integers(model: Any) -> bool:
    if not is_file(model):
        return False
    from tfedge.inspection import inspect_model

    return inspect_model(model).is_integer


def _judge(
    samples: int, outputs: tuple[OutputDifference, ...], first_parting: str | None
) -> tuple[bool, str]:
    """Whether the figures prove something, and what they say."""
    if any(math.isnan(row.sqnr_db) for row in outputs):
        return False, "An output holds infinite values or values that are not numbers."
    worst = min(outputs, key=lambda row: (row.agreement or 0.0, row.sqnr_db))
    several = len(outputs) > 1
    sentences = [_distance(worst, samples), *(_metric_sentence(row, several) for row in outputs)]
    if first_parting is not None:
        sentences.append(f"They first part at `{first_parting}`.")
    proven = samples > 1 and not any(_control_is_high(row) for row in outputs)
    if samples < 2:
        sentences.insert(0, "One sample proves nothing; give some hundred.")
    elif not proven:
        sentences.insert(
            0,
            "These figures prove nothing: samples in another order score about as well. "
            "Give inputs on which the outputs differ, and a trained model.",
        )
    return proven, " ".join(sentence for sentence in sentences if sentence)


def _metric_sentence(row: OutputDifference, several: bool) -> str:
    if row.metric is None:
        return ""
    metric = row.metric.replace("_", " ")
    name = f"{metric} of `{row.name}`" if several else metric.capitalize()
    return f"{name}: {row.reference_metric:.4f} → {row.candidate_metric:.4f}."


def _distance(row: OutputDifference, samples: int) -> str:
    noise = f"SQNR {row.sqnr_db:.1f} dB, largest error {row.max_error:.3g}"
    if row.sqnr_db == math.inf:
        noise = "no difference in any output"
    if row.agreement is None:
        return f"{noise} over {samples} samples (permuted: {row.control_sqnr_db or 0:.1f} dB)."
    control = "" if row.control_agreement is None else f" (permuted: {row.control_agreement:.2%})"
    return f"Argmax agreement {row.agreement:.2%} over {samples} samples{control}, {noise}."


def _control_is_high(row: OutputDifference) -> bool:
    """Whether permuted samples score about as well as the right ones.

    With classes: they agree in 90 %, or within 10 points of a majority that agrees. Without:
    their noise lies within 6 dB of a signal that is there.
    """
    if row.agreement is not None and row.control_agreement is not None:
        near = row.agreement >= 0.5 and row.agreement - row.control_agreement < 0.1
        return row.control_agreement >= 0.9 or near
    control = row.control_sqnr_db if row.control_sqnr_db is not None else math.inf
    return control == math.inf or (row.sqnr_db > 6 and row.sqnr_db - control < 6)
