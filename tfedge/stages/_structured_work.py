"""Carry out structured pruning: choose channels, rebuild, measure, and say what happened."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfedge.engines.native.channel_choice import (
    Levels,
    Step,
    by_fraction,
    cost_of,
    evenly_within,
    least_important_first,
    within,
)
from tfedge.engines.native.channel_costs import fewest, keep_best, levels_of
from tfedge.engines.native.channel_importance import score_channels
from tfedge.engines.native.channels import Channels, Group, Part, find_channels
from tfedge.engines.native.graph import read_graph
from tfedge.engines.native.shrink import shrink
from tfedge.errors import SettingsError
from tfedge.models import choose_layers
from tfedge.report import Skipped, StageReport
from tfedge.stages._base import Context
from tfedge.stages._channel_report import changes, totals, unchanged
from tfedge.stages.structured import BUDGETS, WITH_DATA, StructuredPrune

LATENCY_TURNS = 6  # candidates that are converted and measured while looking for a latency
UNKNOWN = "the importance says nothing about its channels"


class Work:
    """One `StructuredPrune.apply`.

    Args:
        stage: The settings.
        model: The model that came in.
        context: What the stage may use.

    Raises:
        SettingsError: A named layer is missing or cannot be pruned, or the budget cannot be met.
    """

    def __init__(self, stage: StructuredPrune, model: Any, context: Context) -> None:
        self.stage, self.context = stage, context
        self.first = find_channels(read_graph(model))
        self.named = {
            "layers": None if stage.layers is None else self._names(model, stage.layers),
            "exclude": self._names(model, stage.exclude),
        }
        self.fractions = {
            name: fraction
            for key, fraction in (stage.per_layer or {}).items()
            for name in self._names(model, [key])
        }
        self.sizes = {key: group.size for key, group in _by_key(self.first).items()}
        self.silent: set[str] = set()
        self.notes: list[str] = []
        self.latency: dict[str, float] = {}
        self._check_named()
        self.most_macs: float | None = None
        self._check_reachable()
        if stage.latency_ms is not None:
            self.most_macs = self._macs_for_latency(model)

    # ------------------------------------------------------------------ which channels

    def why_not(self, group: Group) -> str | None:
        """Why the settings leave a group alone."""
        writers = {part.name for part in group.writers}
        stays = writers & (self.named["exclude"] or set())
        if stays:
            return f"`exclude` holds {', '.join(sorted(stays))}"
        if self.named["layers"] is not None and not writers & self.named["layers"]:
            return "not in `layers`"
        alone = self.stage.per_layer is not None and self.stage.amount is None
        return "not in `per_layer`" if alone and not writers & set(self.fractions) else None

    def levels(self, channels: Channels) -> dict[int, list[int]]:
        """The numbers of channels that each group may keep."""
        return {
            group.index: levels_of(group, self.stage.round_to, self.stage.min_channels)
            for group in channels.groups
            if self.why_not(group) is None
        }

    def smaller(self, model: Any, turn: int) -> Any:
        """The model with fewer channels, as after that iteration; uncompiled."""
        channels = self.first if turn == 1 else find_channels(read_graph(model))
        scores = self._scores(model, channels)
        levels = {g: own for g, own in self.levels(channels).items() if g in scores}
        done = turn / self.stage.iterations
        counts = self._counts(channels, levels, scores, done)
        return _built(channels, scores, counts)

    def _counts(
        self, channels: Channels, levels: Levels, scores: Mapping[int, Any], done: float
    ) -> dict[int, int]:
        budget = self._budget()
        if budget is None and not self.stage.compares_all:
            return self._by_fraction(channels, levels, done)
        measure, most = budget or ("channels", self._channels_left())
        whole = cost_of(self.first, {}, measure)
        most = whole - (whole - most) * done
        if not self.stage.compares_all:
            return evenly_within(channels, levels, measure, most)
        steps = self._steps(channels, levels, scores, measure)
        counts = within(channels, levels, steps, measure, most)
        if budget is not None:
            self._check_most(channels, levels, measure, most)
        return counts

    def _steps(
        self, channels: Channels, levels: Levels, scores: Mapping[int, Any], measure: str
    ) -> list[Step]:
        one_loss = self.stage.importance == "taylor"  # the others say nothing between groups
        return least_important_first(channels, levels, scores, measure, per_cost=one_loss)

    def _by_fraction(self, channels: Channels, levels: Levels, done: float) -> dict[int, int]:
        fractions = {}
        for key, group in _by_key(channels).items():
            own = [self.fractions[p.name] for p in group.writers if p.name in self.fractions]
            asked = own[0] if own else (self.stage.amount or 0.0)
            left = self.sizes.get(key, group.size) * (1 - asked * done)
            fractions[group.index] = max(0.0, 1 - left / group.size)
        return by_fraction(levels, fractions)

    def _budget(self) -> tuple[str, float] | None:
        """What the budget counts, and how much of it may remain."""
        if self.most_macs is not None:
            return "macs", self.most_macs
        for setting, measure in BUDGETS.items():
            if getattr(self.stage, setting) is not None:
                whole = cost_of(self.first, {}, measure)
                return measure, getattr(self.stage, setting) * whole
        return None

    def _channels_left(self) -> float:
        levels = self.levels(self.first)
        chosen = sum(
            levels[g.index][0] * g.multiplicity for g in self.first.groups if g.index in levels
        )
        return cost_of(self.first, {}, "channels") - (self.stage.amount or 0.0) * chosen

    def _scores(self, model: Any, channels: Channels) -> dict[int, np.ndarray]:
        data = None
        if self.stage.importance in WITH_DATA and self.context.data is not None:
            train = self.context.data.train
            count, seed = self.stage.importance_samples, self.context.seed
            data = None if train is None else train.take(count, seed)
        scores = score_channels(
            model, channels, self.stage.importance, data=data, seed=self.context.seed
        )
        for group in channels.groups:
            if group.index not in scores:
                self.silent.update(part.name for part in group.writers)
        return scores

    # ------------------------------------------------------------------ checks

    def _names(self, model: Any, names: Any) -> set[str]:
        """Names in the flat graph of layers, or nested models, named in the settings."""
        chosen = {id(layer) for layer in choose_layers(model, names)}
        return {call.name for call in self.first.graph.calls if id(call.operation) in chosen}

    def _check_named(self) -> None:
        writers = {part.name for group in self.first.groups for part in group.writers}
        if self.named["layers"] is not None and not self.named["layers"] & writers:
            raise SettingsError(
                "`layers` names layers that channels can be removed from. Received: "
                f"{list(self.stage.layers or ())}. {self._why(self.named['layers'])}"
            )
        for name, fraction in self.fractions.items():
            if fraction > 0 and name not in writers:
                raise SettingsError(f"No channel of {name!r} can be removed. {self._why({name})}")
        for group in self.first.groups:
            own = {
                p.name: self.fractions[p.name] for p in group.writers if p.name in self.fractions
            }
            if len(set(own.values())) > 1:
                raise SettingsError(
                    f"The channels of {', '.join(own)} are combined with each other, so they go "
                    f"together. Received: per_layer={own}. Give one number."
                )

    def _why(self, names: set[str]) -> str:
        reasons = [f"{row.layer}: {row.reason}." for row in self._unchanged() if row.layer in names]
        return " ".join(reasons[:3])

    def _check_reachable(self) -> None:
        budget = self._budget()
        if budget is not None:
            self._check_most(self.first, self.levels(self.first), *budget)

    def _check_most(self, channels: Channels, levels: Levels, measure: str, most: float) -> None:
        """Refuse a budget below what is left with the fewest channels."""
        whole = cost_of(self.first, {}, measure)
        _, least = fewest(channels, levels, measure)
        if least <= most:
            return
        setting = next(name for name, counted in BUDGETS.items() if counted == measure)
        raise SettingsError(
            f"`{setting}={getattr(self.stage, setting)}` cannot be met: with "
            f"round_to={self.stage.round_to} and min_channels={self.stage.min_channels}, "
            f"{least / whole:.3f} of the {measure} remain at least ({least:,} of {whole:,}). Raise "
            f"`{setting}`, or lower `round_to` and `min_channels`."
        )

    # ------------------------------------------------------------------ latency

    def _macs_for_latency(self, model: Any) -> float:
        """The multiply-accumulates with which the latency that was asked for was measured."""
        asked = float(self.stage.latency_ms or 0.0)
        scores = self._scores(model, self.first)
        levels = {g: own for g, own in self.levels(self.first).items() if g in scores}
        whole, least = fewest(self.first, levels, "macs")
        steps = self._steps(self.first, levels, scores, "macs")

        def counts_at(most: float) -> dict[int, int]:
            if self.stage.compares_all:
                return within(self.first, levels, steps, "macs", most)
            return evenly_within(self.first, levels, "macs", most)

        def latency_at(most: float) -> float:
            return latency_ms(_built(self.first, scores, counts_at(most)))

        self.latency["latency_ms_before"] = latency_ms(model)
        if self.latency["latency_ms_before"] <= asked:
            self.notes.append("The model meets `latency_ms` as it is: no channel was removed.")
            return whole
        reached = latency_at(least)
        if reached > asked:
            raise SettingsError(
                f"`latency_ms={asked}` cannot be met: {self.latency['latency_ms_before']:.3f} ms "
                f"now, {reached:.3f} ms with the fewest channels that round_to="
                f"{self.stage.round_to} and min_channels={self.stage.min_channels} allow. Raise it."
            )
        low, high = float(least), float(whole)
        for _ in range(LATENCY_TURNS):
            middle = (low + high) / 2
            measured = latency_at(middle)
            if measured <= asked:
                low, reached = middle, measured
            else:
                high = middle
        self.latency["latency_ms_after"] = reached
        return low

    # ------------------------------------------------------------------ the report

    def report(self, model: Any, metrics: dict[str, Any]) -> StageReport:
        """What became of every layer.

        Args:
            model: What came out.
            metrics: Figures that are known already.
        """
        graph, after = self.first.graph, read_graph(model)
        rows = changes(graph, after)
        metrics |= totals(graph, after)
        if not rows and self._asks_for_less():
            self.notes.append(
                f"Nothing was removed: round_to={self.stage.round_to} and "
                f"min_channels={self.stage.min_channels} leave no step near what was asked for."
            )
        skipped = [row for row in self._unchanged() if row.layer not in rows]
        return StageReport(
            stage=self.stage.name,
            changed=tuple(rows),
            skipped=tuple(skipped),
            metrics={**metrics, **self.latency, "layers": rows},
            notes=tuple(self.notes),
        )

    def _asks_for_less(self) -> bool:
        stage = self.stage
        fractions = (stage.amount or 0.0, *(stage.per_layer or {}).values())
        return any(fractions) or any(getattr(stage, name) not in (None, 1) for name in BUDGETS)

    def _unchanged(self) -> list[Skipped]:
        """Every layer, with the reason if nothing of it goes."""
        return unchanged(self.first, self._why_all_stay)

    def _why_all_stay(self, part: Part) -> str:
        own = [group for group in self.first.groups if part in group.writers]
        reason = next((why for group in own if (why := self.why_not(group)) is not None), "")
        if not reason and part.name in self.silent:
            return UNKNOWN
        return reason or self._all_stay(own)

    def _all_stay(self, groups: list[Group]) -> str:
        count = sum(group.size * group.multiplicity for group in groups)
        settings = (self.stage.round_to, self.stage.min_channels)
        if all(len(levels_of(group, *settings)) == 1 for group in groups):
            return (
                f"round_to={settings[0]} and min_channels={settings[1]} leave none of its {count} "
                "channels to remove"
            )
        return f"all of its {count} channels stay"


def latency_ms(model: Any) -> float:
    """Median latency of a model as a float32 `.tflite` file on this machine, one thread."""
    from tfedge.benchmark import benchmark
    from tfedge.convert import convert

    content, _ = convert(model, mode="float32")
    return benchmark(content, runs=100, seconds=2.0).rows[0].p50_ms


def _built(channels: Channels, scores: Mapping[int, np.ndarray], counts: Mapping[int, int]) -> Any:
    keep = {group: keep_best(scores[group], count) for group, count in counts.items()}
    return shrink(channels, channels.kept(keep))


def _by_key(channels: Channels) -> dict[tuple[str, int], Group]:
    """Groups by what they are called, which stays the same while channels go."""
    keyed: dict[tuple[str, int], Group] = {}
    for group in channels.groups:
        number = sum(name == group.name for name, _ in keyed)
        keyed[group.name, number] = group
    return keyed
