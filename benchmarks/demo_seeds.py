"""The demo with several seeds: does what it claims hold in the mean?

    python benchmarks/demo_seeds.py [--seeds 3] [--output DIR]

Prints one row per seed and the mean. Exit code 1 when a claim fails: float32 accuracy at least
98 %, int8 at most 1 point below (both in the mean), and in every run at least 85 % zeros in the
int8 kernels, the int8 file after gzip -9 at least 10 times smaller than the raw float32 file, and
no float operator.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tfedge.cli.demo import (  # noqa: E402  # the environment comes first
    LOWEST_BASELINE,
    LOWEST_RATIO,
    LOWEST_SPARSITY,
    MAX_DROP,
    DemoReport,
    run_demo,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … (default: 3)")
    parser.add_argument("--output", type=Path, help="keep the run directories here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output or Path(temporary)
        reports = []
        print_head()
        for seed in range(arguments.seeds):
            reports.append(run_demo(folder / f"seed_{seed}", seed, measure_latency=False))
            print_row(reports[-1])
    claims = judge(reports)
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(claims.values()) else 1


def print_head() -> None:
    print(
        f"{'seed':>4} {'float32':>8} {'pruned':>8} {'int8':>8} {'zeros':>7} {'ratio':>6} {'s':>6}"
    )


def print_row(report: DemoReport) -> None:
    first, pruned, last = report.run.files
    figures = "".join(f"{file.figures['accuracy']:>9.2%}" for file in (first, pruned, last))
    print(
        f"{report.seed:>4}{figures} {last.sparsity:>7.1%} "
        f"{first.size_bytes / last.gzip_bytes:>6.1f} {report.run.seconds:>6.0f}",
        flush=True,
    )


def judge(reports: Sequence[DemoReport]) -> dict[str, bool]:
    firsts = [report.run.files[0] for report in reports]
    lasts = [report.run.files[-1] for report in reports]
    baseline = mean(file.figures["accuracy"] for file in firsts)
    integer = mean(file.figures["accuracy"] for file in lasts)
    zeros = min(file.sparsity for file in lasts)
    ratio = min(
        first.size_bytes / last.gzip_bytes for first, last in zip(firsts, lasts, strict=True)
    )
    floats = max(len(file.float_operators) for file in lasts)
    return {
        f"mean float32 accuracy {baseline:.2%}, at least {LOWEST_BASELINE:.0%}": (
            baseline >= LOWEST_BASELINE
        ),
        f"mean int8 accuracy {integer:.2%}, at most {MAX_DROP:.0f} point below": (
            baseline - integer <= MAX_DROP / 100
        ),
        f"fewest zeros {zeros:.1%}, at least {LOWEST_SPARSITY:.0%}": zeros >= LOWEST_SPARSITY,
        f"smallest ratio {ratio:.1f}, at least {LOWEST_RATIO:.0f}": ratio >= LOWEST_RATIO,
        f"most float operators {floats}, none allowed": floats == 0,
    }


if __name__ == "__main__":
    sys.exit(main())
