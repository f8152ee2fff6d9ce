"""Remove channels that are zero, constant or unread: smaller shapes, the same outputs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tfedge.models import check_finite, check_keras3, check_rebuildable, compile_like
from tfedge.report import StageReport
from tfedge.stages._base import AbstractStage, Context
from tfedge.stages._fit import measured

if TYPE_CHECKING:
    from tfedge.engines.native.channels import Channels
    from tfedge.engines.native.dead import Dead


@dataclass(frozen=True, kw_only=True)
class RemoveDead(AbstractStage):
    """Remove channels without which the model computes the same.

    The bridge from zeros to smaller shapes: after unstructured pruning, filters that are all zero,
    channels that batch normalisation or ReLU hold at one value, and channels that no weight reads
    are taken out. Constants go into the bias of the layer behind, which gets one if it has none.
    Outputs at inference stay equal up to rounding (1e-5). Keras 3 only.

    A constant other than zero before a padded convolution is not the same at the borders, where
    the padding is zero: such channels stay, and the report says so. One channel of a layer stays in
    any case.

    Example:
        >>> model, report = RemoveDead().apply(model)    # doctest: +SKIP
        >>> report.metrics["channels_removed"]           # doctest: +SKIP
    """

    name: ClassVar[str] = "remove_dead"

    @property
    def trains(self) -> bool:
        """Never."""
        return False

    def apply(self, model: Any, context: Context | None = None) -> tuple[Any, StageReport]:
        """Remove the dead channels of an own copy of `model`.

        Args:
            model: A built Functional or Sequential Keras 3 model.
            context: With `metric` and evaluation data, the report holds the metric before and
                after.

        Returns:
            The smaller model, compiled as `model` is, and the report.

        Raises:
            UnsupportedModelError: It is a tf_keras model, or has no graph of layers.
            ModelError: It has weights that are not finite.
        """
        context = self._check_context(context)
        check_keras3(model, "RemoveDead")
        check_rebuildable(model, "RemoveDead")
        check_finite(model)
        from tfedge.engines.native.channels import find_channels
        from tfedge.engines.native.dead import find_dead
        from tfedge.engines.native.graph import read_graph
        from tfedge.engines.native.shrink import shrink

        channels = find_channels(read_graph(model))
        dead = find_dead(channels)
        smaller = compile_like(shrink(channels, dead.kept, biases=dead.biases), model)
        metrics = {**measured(model, context, "before"), **measured(smaller, context, "pruned")}
        return smaller, self._report(channels, dead, smaller, metrics)

    def _report(
        self, channels: "Channels", dead: "Dead", smaller: Any, metrics: dict[str, Any]
    ) -> StageReport:
        from tfedge.engines.native.graph import read_graph
        from tfedge.stages._channel_report import changes, totals, unchanged

        after = read_graph(smaller)
        rows = changes(channels.graph, after)
        skipped = unchanged(channels, lambda part: "none of its channels is dead")
        notes = [
            f"{count} constant channels before {name} stay: its padding makes them differ at the "
            "borders."
            for name, count in dead.padded.items()
        ]
        notes += [f"All channels of {name} are dead; one stays." for name in dead.last]
        removed = sum(
            int((~dead.kept[group.labels]).sum()) * group.multiplicity for group in channels.groups
        )
        return StageReport(
            stage=self.name,
            changed=tuple(rows),
            skipped=tuple(row for row in skipped if row.layer not in rows),
            metrics={
                **metrics,
                "channels_removed": removed,
                **totals(channels.graph, after),
                "layers": rows,
            },
            notes=tuple(notes),
        )
