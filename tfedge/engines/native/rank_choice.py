"""Choose the rank of every layer: as asked, by energy, or within a budget of the whole model."""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfedge.engines.native.low_rank import Candidate, Option, energy_kept
from tfedge.errors import SettingsError

TINY = 1e-12  # energy below which its logarithm says no more
COSTS: Mapping[str, str] = {"flops": "multiply-accumulates", "params": "parameters"}


@dataclass(frozen=True)
class Choice:
    """What becomes of one layer: an option, or the reason why it stays whole."""

    candidate: Candidate
    option: Option | None
    reason: str = ""
    above_full_rank: bool = False


def by_rank(candidate: Candidate, rank: int | float) -> Choice:
    """The option of a given rank, by the one scheme that the candidate was looked at with.

    Args:
        candidate: A layer.
        rank: A rank, or as float a fraction of the full rank in (0, 1].
    """
    (scheme,) = candidate.spectra
    full = candidate.full_rank(scheme)
    wanted = rank if isinstance(rank, int) else max(1, round(rank * full))
    if wanted > full:
        reason = f"rank {wanted} is above its full rank {full}"
        return Choice(candidate, None, reason, above_full_rank=True)
    options = candidate.options[scheme]
    if wanted <= len(options):
        return Choice(candidate, options[wanted - 1])
    return Choice(candidate, None, f"at rank {wanted} two layers are {_no_gain(len(options))}")


def by_energy(candidate: Candidate, energy: float) -> Choice:
    """The cheapest option that keeps a fraction of the squared singular values.

    Args:
        candidate: A layer.
        energy: In (0, 1].
    """
    found: list[Option] = []
    needed: list[tuple[int, int]] = []
    for scheme, values in candidate.spectra.items():
        rank = 1 + int(np.argmax(energy_kept(values) >= energy * (1 - 1e-12)))
        options = candidate.options[scheme]
        needed.append((rank, len(options)))
        found += options[rank - 1 : rank]
    if found:
        return Choice(candidate, min(found, key=lambda o: (_macs(o), o.parameters)))
    rank, gain = min(needed)
    return Choice(
        candidate, None, f"{energy:.4g} of its energy takes rank {rank}: {_no_gain(gain)}"
    )


def _no_gain(last: int) -> str:
    limit = f"above rank {last}" if last else "at any rank"
    return f"no smaller and cheaper than one {limit}"


def _macs(option: Option) -> int:
    return option.macs if option.macs is not None else option.parameters


def within_budget(
    candidates: Sequence[Candidate], *, budget: float, total: int, cost: str
) -> list[Choice]:
    """The options that lose the least energy for a cost of the whole model.

    As in Zhang et al. 2015 (arXiv:1505.06798, section 2.4) the product of the layers' energies is
    kept high greedily, by the loss of its logarithm per unit of cost that a step saves. Steps go
    along the lower convex hull of each layer's options, so that a first step that saves little does
    not hide the better ones behind it; the last one goes no further than the budget asks.

    Args:
        candidates: Layers that may be factorised.
        budget: Fraction of `total` that may remain, in (0, 1].
        total: Cost of the whole model.
        cost: `"flops"` (multiply-accumulates) or `"params"`.

    Raises:
        SettingsError: The budget cannot be met; the message says what can.
    """
    count = _parameters_of if cost == "params" else _macs_of
    curves = [_Curve.of(candidate, count) for candidate in candidates]
    spent, target = total, math.floor(budget * total + 1e-9)
    queue: list[tuple[float, int]] = []
    for index, curve in enumerate(curves):
        curve.queue_step(queue, index)
    while spent > target and queue:
        _, index = heapq.heappop(queue)
        curve = curves[index]
        before = curve.costs[curve.at]
        curve.advance(target - (spent - before))
        spent += curve.costs[curve.at] - before
        curve.queue_step(queue, index)
    if spent > target:
        raise SettingsError(
            f"`{cost}={budget:g}` cannot be met: with every layer that may be factorised at its "
            f"lowest rank, {spent:,} of {total:,} {COSTS[cost]} remain, a fraction of "
            f"{spent / total:.3f}. Ask for that much or more, or let more layers take part."
        )
    return [
        Choice(candidate, curve.option, "" if curve.option else _left_whole(candidate, cost))
        for candidate, curve in zip(candidates, curves, strict=True)
    ]


def _left_whole(candidate: Candidate, cost: str) -> str:
    if any(candidate.options.values()):
        return f"left whole: the budget of `{cost}` was met without it"
    return f"two layers are {_no_gain(0)}"


@dataclass
class _Curve:
    """Cost and loss of a layer's options, the whole layer first; `at` is where it stands."""

    options: list[Option | None]
    costs: np.ndarray
    losses: np.ndarray
    at: int = 0
    following: int = 0

    @classmethod
    def of(cls, candidate: Candidate, count: Callable[[Candidate | Option], int]) -> "_Curve":
        options = [option for rows in candidate.options.values() for option in rows]
        costs = [count(candidate), *(count(option) for option in options)]
        losses = [0.0, *(-math.log(max(option.kept, TINY)) for option in options)]
        return cls([None, *options], np.array(costs), np.array(losses))

    @property
    def option(self) -> Option | None:
        return self.options[self.at]

    def queue_step(self, queue: list[tuple[float, int]], index: int) -> None:
        """Queue the step that loses the least per unit saved, if there is one."""
        saved = self.costs[self.at] - self.costs
        if not np.any(saved > 0):
            return
        lost = self.losses - self.losses[self.at]
        slopes = np.where(saved > 0, lost / np.where(saved > 0, saved, 1), np.inf)
        best = slopes.min()
        equal = np.flatnonzero(slopes <= best + 1e-15)
        self.following = int(equal[np.argmax(saved[equal])])
        heapq.heappush(queue, (float(best), index))

    def advance(self, target: int) -> None:
        """Take the step; where that meets `target`, the least loss that meets it too."""
        if self.costs[self.following] <= target:
            meets = np.flatnonzero(self.costs <= target)
            self.following = int(meets[np.argmin(self.losses[meets])])
        self.at = self.following


def _parameters_of(item: Candidate | Option) -> int:
    return item.parameters


def _macs_of(item: Candidate | Option) -> int:
    if item.macs is None:
        raise SettingsError(
            "`flops` needs the size of every axis. Received a model with an open one. Build it "
            "with a fixed `keras.Input(shape)`, or use `params`."
        )
    return item.macs
