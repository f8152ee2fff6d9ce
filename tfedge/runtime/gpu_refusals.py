"""What LiteRT's GPU accelerator says when it refuses, as errors with cause and next move.

LiteRT raises a bare `RuntimeError`; the cause is among what it prints. The messages were read with
ai-edge-litert 2.3.0.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tfedge.errors import DelegateError
from tfedge.inspection.decode import Fields
from tfedge.inspection.layout import EDGETPU_OPERATOR
from tfedge.inspection.soundness import operator_name
from tfedge.runtime.native import one_line

LIBRARY: Final = "libLiteRtWebGpuAccelerator.so"
TESTED: Final = "ai-edge-litert 2.3.0"
ON_THE_CPU: Final = "`delegate='xnnpack'` runs it on the CPU"

_LISTING: Final = "Following operations are not supported by GPU delegate:"
_LEFT: Final = re.compile(r"operations will run on the CPU|remaining \d+ operations")
_SHOWN: Final = 6

# What is printed when there is no device: pattern, what it means, what to do.
_NO_DEVICE: Final = (
    (
        r"Couldn't load Vulkan",
        "the Vulkan loader is missing",
        "Install it (Debian, Ubuntu and Raspberry Pi OS: `apt install libvulkan1`)",
    ),
    (
        r"Found no drivers|VK_ERROR_INCOMPATIBLE_DRIVER",
        "the Vulkan loader found no driver",
        (
            "Install the GPU's Vulkan driver (NVIDIA: the driver itself; Intel, AMD: `apt install "
            "mesa-vulkan-drivers`), and check `VK_DRIVER_FILES` if it is set"
        ),
    ),
    (
        r"GPU accelerator could not be loaded",
        f"its accelerator library {LIBRARY} is missing or does not load",
        (
            "Reinstall the runtime, `pip install --force-reinstall ai-edge-litert` (its wheels for "
            "x86-64 and aarch64 Linux hold the library)"
        ),
    ),
    (
        r"No adapters found",
        "no driver offers what the accelerator needs",
        (
            "Update the GPU's Vulkan driver. The Raspberry Pi's GPU is not supported by LiteRT, "
            "nor is lavapipe of Mesa 22"
        ),
    ),
)
_NOISE: Final = re.compile(
    r"^(INFO|I\d{4} )|npu_registry|compiler_plugin|Could not load shared library .*CompilerPlugin"
    r"|Logging before InitGoogle|Source Location Trace|^third_party/|^\s+at |^\s*$"
)
_PLACE: Final = re.compile(
    r"^[└\s]*((ERROR|WARNING|Warning): )?(\[[^\]]*\]\s*)?([EW]\d{4} \S+ +\d+ \S+\] )?"
)


def native_cause(error: Exception | None, messages: Sequence[str]) -> str:
    """What native code printed and raised, without what is printed on every opening.

    Example:
        >>> native_cause(RuntimeError("ERROR: [a.h:1]"), ["INFO: hi", "Warning: no drivers!"])
        'no drivers!'
    """
    raised = [] if error is None else str(error).splitlines()
    said = [line for line in [*messages, *raised] if not _NOISE.search(line)]
    lines = [_PLACE.sub("", line).strip().rstrip(".") for line in said]
    return "; ".join(dict.fromkeys(filter(None, lines))) or "no message"


def refused_operators(messages: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Kinds of operators that the delegate says it does not take, with its reasons.

    Example:
        >>> refused_operators([
        ...     "ERROR: Following operations are not supported by GPU delegate:",
        ...     "RFFT2D: Operation is not supported.",
        ...     "No operations will run on the GPU, and all 1 operations will run on the CPU.",
        ... ])
        {'RFFT2D': ('Operation is not supported.',)}
    """
    found: dict[str, tuple[str, ...]] = {}
    listing = False
    for line in messages:
        if _LISTING in line:
            listing = True
        elif _LEFT.search(line):
            listing = False
        elif listing and ": " in line:
            kind, _, reason = line.partition(": ")
            found[kind] = (*found.get(kind, ()), reason.strip())
    return found


def left_to_the_cpu(messages: Sequence[str]) -> bool:
    """Whether the delegate says that it leaves operators to the CPU."""
    return any(_LEFT.search(line) for line in messages)


def misbuilt(messages: Sequence[str]) -> bool:
    """Whether the delegate says that its own graph does not fit together; its results are wrong."""
    return any("Shape mismatch in GpuModelBuilder" in line for line in messages)


def dynamic_tensors(fields: Fields) -> list[str]:
    """Names of the tensors whose shape is not fixed by the file, with it."""
    tensors = fields["subgraphs"][0]["tensors"] or []
    return [
        f"{tensor['name']!r} {tuple(int(n) for n in shape)}"
        for tensor in tensors
        if (shape := tensor["shape_signature"]) is not None and any(n < 0 for n in shape)
    ]


# ------------------------------------------------------------------------------ the errors


def no_accelerator(runtime: str, reason: str) -> DelegateError:
    """The runtime has no GPU accelerator that tfedge knows."""
    return DelegateError(
        f"The GPU needs LiteRT's accelerator, which {runtime} does not offer: {reason}. Install "
        f"{TESTED} or later: `pip install --upgrade ai-edge-litert`. {ON_THE_CPU}."
    )


def no_device(
    runtime: str, folder: str, error: Exception, messages: Sequence[str]
) -> DelegateError:
    """There is no device to run on."""
    text = "\n".join(messages)
    meaning, move = next(
        ((meaning, move) for pattern, meaning, move in _NO_DEVICE if re.search(pattern, text)),
        ("it did not start", "`tfedge doctor` shows what is there"),
    )
    library = Path(folder, LIBRARY)
    where = "" if library.is_file() else f" ({library} does not exist)"
    return DelegateError(
        f"No GPU can be used by {runtime}: {meaning}{where}. LiteRT says: "
        f"{native_cause(error, messages)}. {move}. {ON_THE_CPU}."
    )


def nameless_adapter(runtime: str, messages: Sequence[str]) -> DelegateError:
    """The accelerator started and did not say on what."""
    return DelegateError(
        f"{runtime} did not say which adapter it runs on, so that nobody knows whether it is a "
        f"GPU: {native_cause(None, messages)}. Tested with {TESTED}: install it. {ON_THE_CPU}."
    )


def software_adapter(adapter: Any) -> DelegateError:
    """The only adapter is a program that runs on the CPU."""
    return DelegateError(
        f"A GPU was asked for, and the only adapter is {adapter}, which is not known to be one. "
        "Install the GPU's Vulkan driver; or, to try the GPU's code path, say "
        f"`allow_software=True` (`--allow-software`). {ON_THE_CPU}."
    )


def wrong_results(adapter: Any, error: float) -> DelegateError:
    """The adapter computes nonsense."""
    return DelegateError(
        f"{adapter} must square four numbers before it is trusted with a model. Received results "
        f"that are off by {error:.2g} of their value. Update its Vulkan driver. {ON_THE_CPU}."
    )


def other_precision(adapter: Any, wanted: str, found: str) -> DelegateError:
    """The adapter computes in another precision than was asked for."""
    cause = (
        "Its driver offers no 16-bit floats (`shaderFloat16`), and LiteRT then takes 32 bits"
        if found == "fp32"
        else "LiteRT did not keep to `enforce_f32`"
    )
    return DelegateError(
        f"`precision={wanted!r}` was asked for, and {adapter} computes in {found}. {cause}. Use "
        f"`precision={found!r}`."
    )


def nothing_to_take(path: str) -> DelegateError:
    """The file has no operator."""
    return DelegateError(
        f"The GPU took nothing of {path}: it has no operator. Use `delegate='none'`."
    )


def refused_model(
    path: str, fields: Fields, adapter: Any, error: Exception | None, messages: Sequence[str]
) -> DelegateError:
    """The device is there and does not take the model, or not all of it."""
    kinds = refused_operators(messages)
    opening = f"The GPU delegate ({adapter}) does not take {path}"
    if kinds:
        rows = [f"{kind}: {' / '.join(reasons)}" for kind, reasons in kinds.items()]
        more = f" and {len(rows) - _SHOWN} more kinds" if len(rows) > _SHOWN else ""
        return DelegateError(
            f"{opening}: {'; '.join(rows[:_SHOWN])}{more}. Nothing of it runs on the GPU unless "
            f"all does. Replace these operators, or convert to other types. {ON_THE_CPU}."
        )
    cause = native_cause(error, messages)
    if misbuilt(messages):
        return DelegateError(
            f"{opening}: LiteRT built a graph for it that contradicts itself, and its results "
            f"would be wrong. LiteRT says: {cause}. {ON_THE_CPU}; the float file may run as it is."
        )
    tensors = dynamic_tensors(fields)
    if tensors and ("Failed to modify graph" in cause or "dynamic-sized" in cause):
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        return DelegateError(
            f"{opening}: it takes tensors of fixed shape only, and the file leaves open those of "
            f"{', '.join(tensors[:3])}{more}. LiteRT says: {cause}. Convert again with a fixed "
            f"batch, as `tfedge convert` does. {ON_THE_CPU}."
        )
    if EDGETPU_OPERATOR in {operator_name(fields, op) for op in _operators(fields)}:
        return DelegateError(
            f"{opening}: it is compiled for the Edge TPU. Give the file from before its "
            "compilation."
        )
    raised = "" if error is None else f" ({one_line(error)})" if cause == "no message" else ""
    return DelegateError(f"{opening}: {cause}{raised}. {ON_THE_CPU}, or convert it again.")


def _operators(fields: Fields) -> Sequence[Fields]:
    return fields["subgraphs"][0]["operators"] or []
