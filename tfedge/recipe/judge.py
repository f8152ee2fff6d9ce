"""Evaluate models and files by the figures of a recipe."""

from collections.abc import Mapping
from typing import Any

from tfedge.data import Metric, Split, agreement, evaluate, find_metric, sqnr_db
from tfedge.errors import DataError, SettingsError, did_you_mean
from tfedge.models import output_names
from tfedge.recipe.budget import Budget, Figure
from tfedge.verify import VerificationReport, verify

AGAINST_BASELINE = {"agreement": agreement, "sqnr_db": sqnr_db}  # need no labels
FRACTIONS = ("accuracy", "acc", "auc", "precision", "recall", "io_u", "iou", "f1", "score")
MOST_DB = 200.0  # stands for no noise at all
ROWS = 1024


class Judge:
    """Knows the evaluation data and the metric of a recipe.

    Args:
        split: Samples to judge by; with labels, unless the metric compares with the baseline.
        metric: As in a recipe.
        baseline: The model that all others are compared with.

    Raises:
        SettingsError: The metric is not known, or names an output that is not there.
        DataError: It needs labels and there are none.
    """

    def __init__(self, split: Split, metric: str | Mapping[str, str], baseline: Any) -> None:
        x, y, weight = (*split.rows, None, None)[:3]
        self.split: Any = Split(x, y, weight) if split.is_stream else split
        self.baseline = baseline
        self.relative = str(metric) if is_relative(metric) else None
        self.outputs = output_names(baseline)
        if self.relative:
            function = AGAINST_BASELINE[self.relative]
            self.metrics = {
                self.relative: Metric(name=self.relative, higher_is_better=True, function=function)
            }
            return
        if self.split.y is None:
            raise DataError(
                f"The metric {metric!r} needs labels. Received: evaluation data without `y`. Give "
                "labels, or judge by `metric: agreement` or `sqnr_db` with the model itself; for "
                "an autoencoder say `data: {source: …, labels: inputs}`."
            )
        self.by_output = _by_output(metric, self.outputs)
        self.metrics = {
            metric.name if output is None else f"{output} {metric.name}": metric
            for output, metric in self.by_output.items()
        }

    def budget(self, figures: Mapping[str, float], max_drop: Any) -> Budget:
        """The budget that the figures of the baseline's float32 file and `max_drop` set."""
        budget = Budget(
            tuple(
                Figure(
                    name=name,
                    metric=metric,
                    fraction=_is_fraction(metric.name),
                    reference=figures[name],
                )
                for name, metric in self.metrics.items()
            )
        )
        return budget.with_limits(self._limits_by_figure(max_drop))

    def model(self, model: Any) -> dict[str, float]:
        """The figures of a Keras model."""
        if self.relative:
            report = verify(self.baseline, model, self.split.x, tensors=False)
            return self._relative(report)

        def predict(x: Any) -> Any:
            outputs = model.predict(list(x) if isinstance(x, tuple) else x, verbose=0)
            return tuple(outputs) if isinstance(outputs, list) else outputs

        if None in self.by_output:
            metric = self.by_output[None]
            return {metric.name: evaluate(predict, self.split, metric, batch_size=ROWS)}
        values = evaluate(
            predict,
            self.split,
            {str(output): metric for output, metric in self.by_output.items()},
            batch_size=ROWS,
            output_names=self.outputs,
        )
        return {f"{output} {self.by_output[output].name}": v for output, v in values.items()}

    def file(self, model: Any, content: bytes) -> tuple[dict[str, float], VerificationReport]:
        """The figures of a `.tflite` file, and its comparison with the model that it came from."""
        if self.relative:
            against = verify(self.baseline, content, self.split.x, tensors=False)
            report = verify(model, content, self.split.x, tensors=False)
            return self._relative(against), report
        chosen = {output: metric for output, metric in self.by_output.items() if output}
        labels = self.split.y
        if chosen and isinstance(labels, tuple):
            labels = dict(zip(self.outputs, labels, strict=True))
        if chosen and isinstance(labels, dict):
            labels = {output: labels[output] for output in chosen if output in labels}
        report = verify(
            model,
            content,
            self.split.x,
            labels=labels,
            metric=chosen or self.by_output[None],  # type: ignore[arg-type]
            tensors=False,
        )
        figures = {
            row.metric if not chosen else f"{row.name} {row.metric}": row.candidate_metric
            for row in report.outputs
            if row.metric is not None
        }
        return {str(name): float(value or 0.0) for name, value in figures.items()}, report

    def _relative(self, report: VerificationReport) -> dict[str, float]:
        if self.relative == "sqnr_db":
            return {"sqnr_db": min(report.sqnr_db, MOST_DB)}
        if report.agreement is None:
            raise DataError(
                "The metric `agreement` compares classes. Received: outputs of one value. Use "
                "`metric: sqnr_db`."
            )
        return {"agreement": report.agreement}

    def _limits_by_figure(self, max_drop: Any) -> Any:
        if not isinstance(max_drop, Mapping):
            return max_drop
        names = {str(output): name for output, name in zip(self._keys(), self.metrics, strict=True)}
        for output in max_drop:
            if output not in names:
                raise SettingsError(
                    f"`max_drop` by output names {', '.join(names)}. Received: {output!r}."
                    f"{did_you_mean(output, names)}"
                )
        return {names[output]: text for output, text in max_drop.items()}

    def _keys(self) -> list[Any]:
        return (
            [self.relative] if self.relative else [k or m.name for k, m in self.by_output.items()]
        )


def is_relative(metric: Any) -> bool:
    """Whether a metric compares with the model as it came, and needs no labels."""
    return isinstance(metric, str) and metric in AGAINST_BASELINE


def _by_output(
    metric: str | Mapping[str, str], outputs: tuple[str, ...]
) -> dict[str | None, Metric]:
    if isinstance(metric, Mapping):
        for output in metric:
            if output not in outputs:
                raise SettingsError(
                    f"`metric` by output names {', '.join(outputs)}. Received: {output!r}."
                    f"{did_you_mean(output, outputs)}"
                )
        return {output: find_metric(text) for output, text in metric.items()}
    if len(outputs) > 1:
        raise SettingsError(
            f"A model with several outputs is judged by output: `metric: {{{outputs[0]}: …}}`. "
            f"Received: {metric!r} for {', '.join(outputs)}."
        )
    return {None: find_metric(metric)}


def _is_fraction(name: str) -> bool:
    """Whether a figure runs from 0 to 1, so that points of a percent are its unit."""
    plain = name.rpartition(":")[2].lower()
    return plain == "agreement" or any(part in plain for part in FRACTIONS)
