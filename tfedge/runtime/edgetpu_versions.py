"""Which libedgetpu, runtime and Python work together: a table of what is published, with sources.

libedgetpu is a C++ library that is built against one TensorFlow Lite and crashes, rather than
refuses, when the runtime that loads it has another layout of the same structures. None of these
rows was measured by tfedge, which had no Edge TPU: each says who did.
"""

import re
from dataclasses import dataclass
from typing import Final

from tfedge.report import Record

GOOGLE: Final = "Google"
COMMUNITY: Final = "community (feranick)"
GOOGLES_TENSORFLOW: Final = (2, 5)  # what Google's 16.0 is built against
LAST_WITH_GOOGLES: Final = (2, 11)  # runtimes after it crash with Google's build
RELEASES: Final = "https://github.com/feranick/libedgetpu/releases"


@dataclass(frozen=True, kw_only=True)
class Pairing(Record):
    """A row of the table.

    Attributes:
        libedgetpu: Its version, as its package says it.
        built_by: `"Google"`, or which community.
        runtime: The Python package that runs models, with its versions.
        python: Versions of Python that both exist for.
        verdict: `"works"`, `"crashes"` or `"unknown"`, as the source says.
        source: Who says so.
    """

    libedgetpu: str
    built_by: str
    runtime: str
    python: str
    verdict: str
    source: str


TABLE: Final = (
    Pairing(
        libedgetpu="16.0",
        built_by=GOOGLE,
        runtime="tflite-runtime 2.5.0.post1 (Coral's wheel)",
        python="3.6–3.9",
        verdict="works",
        source="google-coral/edgetpu issue 660; coral.ai/docs/accelerator/get-started",
    ),
    Pairing(
        libedgetpu="16.0",
        built_by=GOOGLE,
        runtime="tflite-runtime up to 2.11",
        python="3.7–3.10",
        verdict="works",
        source="google-coral/edgetpu issue 812",
    ),
    Pairing(
        libedgetpu="16.0",
        built_by=GOOGLE,
        runtime="tflite-runtime from 2.12, any ai-edge-litert",
        python="any",
        verdict="crashes",
        source="google-coral/edgetpu issue 812, google-coral/libedgetpu issue 53",
    ),
    Pairing(
        libedgetpu="16.0tf2.16.1-1",
        built_by=COMMUNITY,
        runtime="tflite-runtime 2.11.1 to 2.16.1",
        python="3.9–3.11 (PyPI's 2.14.0, with numpy<2)",
        verdict="works",
        source=f"its release notes, {RELEASES}",
    ),
    Pairing(
        libedgetpu="16.0tf2.17.1-1",
        built_by=COMMUNITY,
        runtime="tflite-runtime 2.17.1 (feranick/TFlite-builds)",
        python="3.11–3.13",
        verdict="works",
        source="blakeblackshear/frigate, its container's install script (Python 3.11)",
    ),
    Pairing(
        libedgetpu="16.0tf2.19.1-1",
        built_by=COMMUNITY,
        runtime="ai-edge-litert 1.2 to 2.2.0",
        python="3.10–3.13",
        verdict="works",
        source="google-ai-edge/LiteRT issue 3611; jiteshsaini/model_garden, install.sh (2.2.0)",
    ),
    Pairing(
        libedgetpu="16.0tf2.19.1-1",
        built_by=COMMUNITY,
        runtime="ai-edge-litert from 2.3.0",
        python="3.10–3.14",
        verdict="unknown",
        source="no report found",
    ),
)


@dataclass(frozen=True, kw_only=True)
class WorkingSet(Record):
    """One set that works together for a version of Python, and how to install it.

    Attributes:
        libedgetpu: Which build.
        runtime: Which runtime.
        commands: How to install it.
        pairing: The row of the table that it rests on.
    """

    libedgetpu: str
    runtime: str
    commands: tuple[str, ...]
    pairing: Pairing


def working_set(python: tuple[int, int], machine: str) -> WorkingSet | None:
    """A set that is reported to work with a version of Python, or `None` where none is.

    Args:
        python: E.g. `(3, 11)`.
        machine: As `platform.machine()` says it.

    Example:
        >>> working_set((3, 12), "aarch64").runtime
        'ai-edge-litert==2.2.0'
        >>> working_set((3, 8), "x86_64").libedgetpu
        '16.0, built by Google'
        >>> working_set((3, 15), "x86_64") is None
        True
    """
    architecture = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf"}.get(machine)
    if architecture is None:
        return None
    if (3, 6) <= python <= (3, 9):
        return _googles()
    if (3, 10) <= python <= (3, 13) and machine != "armv7l":
        return _communitys("16.0tf2.19.1-1", TABLE[5], "ai-edge-litert==2.2.0", architecture)
    if (3, 11) <= python <= (3, 13):  # LiteRT has no wheel for 32-bit systems
        return _communitys("16.0tf2.17.1-1", TABLE[4], "tflite-runtime 2.17.1", architecture)
    return None


def _googles() -> WorkingSet:
    return WorkingSet(
        libedgetpu="16.0, built by Google",
        runtime="tflite-runtime 2.5.0.post1",
        commands=(
            (
                "echo 'deb https://packages.cloud.google.com/apt coral-edgetpu-stable main' | sudo "
                "tee /etc/apt/sources.list.d/coral-edgetpu.list && sudo apt-get update && sudo "
                "apt-get install libedgetpu1-std"
            ),
            "pip install --extra-index-url https://google-coral.github.io/py-repo/ pycoral~=2.0",
        ),
        pairing=TABLE[0],
    )


def _communitys(version: str, pairing: Pairing, runtime: str, architecture: str) -> WorkingSet:
    tag = version.upper()
    package = f"libedgetpu1-std_{version}.bookworm_{architecture}.deb"
    pip = (
        f"pip install '{runtime}'"
        if "==" in runtime
        else (
            "install the wheel tflite_runtime-2.17.1 for this Python from "
            "https://github.com/feranick/TFlite-builds/releases/tag/v2.17.1"
        )
    )
    fetch = (
        f"curl -LO {RELEASES}/download/{tag}/{package} && sudo apt-get install ./{package} (there "
        "are others for bullseye, trixie and Ubuntu)"
    )
    return WorkingSet(
        libedgetpu=f"{version}, built by the community, not by Google",
        runtime=runtime,
        commands=(fetch, pip),
        pairing=pairing,
    )


def tensorflow_of(package_version: str) -> tuple[int, int] | None:
    """The TensorFlow that a package of libedgetpu is built against; `None` where it is not known.

    Args:
        package_version: As dpkg says it.

    Example:
        >>> tensorflow_of("16.0tf2.19.1-1"), tensorflow_of("16.0"), tensorflow_of("")
        ((2, 19), (2, 5), None)
    """
    found = re.search(r"tf(\d+)\.(\d+)", package_version)
    if found:
        return int(found[1]), int(found[2])
    return GOOGLES_TENSORFLOW if re.fullmatch(r"1[0-6]\.\d(-\d+)?", package_version) else None


def is_community(package_version: str) -> bool:
    """Whether a package of libedgetpu is a community build."""
    return "tf2" in package_version


def misfit(package_version: str, runtime: str, runtime_version: str) -> str:
    """Why libedgetpu and a runtime are known to crash together; empty where they are not.

    Args:
        package_version: Version of libedgetpu's package; empty where it is not known.
        runtime: `"ai-edge-litert"` or `"tflite-runtime"`.
        runtime_version: Its version.

    Example:
        >>> misfit("16.0tf2.19.1-1", "ai-edge-litert", "2.2.0")
        ''
        >>> misfit("16.0", "tflite-runtime", "2.14.0")[:62]
        "libedgetpu 16.0 is Google's, built against TensorFlow 2.5, and"
    """
    built = tensorflow_of(package_version)
    if built is None:
        return ""
    numbers = _numbers(runtime_version)
    newer = runtime == "ai-edge-litert" or numbers > LAST_WITH_GOOGLES
    if built <= GOOGLES_TENSORFLOW and newer:
        return (
            f"libedgetpu {package_version} is Google's, built against TensorFlow 2.5, and crashes "
            f"with runtimes after 2.11. Received: {runtime} {runtime_version}"
        )
    if runtime == "tflite-runtime" and is_community(package_version) and numbers < (2, 11):
        return (
            f"libedgetpu {package_version} is built against TensorFlow {built[0]}.{built[1]} and "
            f"fits tflite-runtime from 2.11.1 on. Received: {runtime} {runtime_version}"
        )
    return ""


def _numbers(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
