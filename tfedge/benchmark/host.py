"""Facts about the machine that a measurement was taken on."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from tfedge.report import Record


@dataclass(frozen=True, kw_only=True)
class HostFacts(Record):
    """The machine.

    Attributes:
        cpu: Model of the processor, or of the board.
        cores: Cores that this process may use.
        arch: E.g. `"x86_64"`, `"aarch64"`.
        os: System and kernel.
        python: Version of Python.
        governor: Frequency governor of the first core; `None` if it cannot be read.
        load_average: Processes that wanted to run in the last minute; `None` if unknown.
    """

    cpu: str
    cores: int
    arch: str
    os: str
    python: str
    governor: str | None
    load_average: float | None


def host_facts() -> HostFacts:
    """What can be read about this machine without special rights."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        load = None
    governor = _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")).strip()
    return HostFacts(
        cpu=_cpu(_text(Path("/proc/cpuinfo"))) or platform.processor() or "unknown",
        cores=cores,
        arch=platform.machine(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        governor=governor or None,
        load_average=load,
    )


def _cpu(cpuinfo: str) -> str:
    """The processor's name in `/proc/cpuinfo`; boards such as the Pi name themselves instead."""
    found: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found.get("model name") or found.get("Model") or found.get("Hardware") or ""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
