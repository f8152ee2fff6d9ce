"""Find the Edge TPU: its library, its devices, who may use them; load its delegate.

    state = find_edgetpu()          what is here, and what is missing in words
    delegate = load_edgetpu_delegate("usb:0")

Which versions fit together is in `edgetpu_versions`, the devices are looked for in
`edgetpu_devices`.
"""

import ctypes
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tfedge.errors import DelegateError, MissingExtraError, SettingsError
from tfedge.report import Record
from tfedge.runtime.edgetpu_devices import EdgeTpuDevice, User, device_problems, find_devices
from tfedge.runtime.edgetpu_versions import is_community, misfit, working_set
from tfedge.runtime.native import find_runtime, native_messages

LIBRARY: Final = "libedgetpu.so.1"
PACKAGES: Final = ("libedgetpu1-std", "libedgetpu1-max")
DEVICE: Final = re.compile(r"(usb|pci)?(:\d+)?")  # as libedgetpu takes it
_TRIPLETS: Final = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "armv7l": "arm-linux-gnueabihf",
}


@dataclass(frozen=True, kw_only=True)
class EdgeTpuState(Record):
    """What there is of an Edge TPU here.

    Attributes:
        library: Path of libedgetpu; empty where it was not found.
        package: Version of its package; empty where it is not known.
        community: Whether that is a community build.
        devices: The devices that the kernel sees.
        runtime: Name and version of the LiteRT runtime; empty without.
        python: Version of Python.
        machine: Kind of processor.
        problems: What is missing, each with the fix, in the order to mend them; empty where a model
            can run.
    """

    library: str
    package: str
    community: bool
    devices: tuple[EdgeTpuDevice, ...]
    runtime: str
    python: str
    machine: str
    problems: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing is known to be missing."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As `Record.to_dict`, `usable` among it."""
        return {**super().to_dict(), "usable": self.usable}


def find_edgetpu() -> EdgeTpuState:
    """What there is of an Edge TPU on this machine, and what is missing.

    Loads the LiteRT runtime to learn its version, but neither libedgetpu nor a device.
    """
    try:
        runtime, reason = find_runtime()[0], ""
    except MissingExtraError as error:
        runtime, reason = "", str(error)
    user = User(uid=os.geteuid(), groups=frozenset({os.getegid(), *os.getgroups()}))
    state = look(Path("/"), os.environ, user, runtime, machine=platform.machine())
    if not reason:
        return state
    return EdgeTpuState(**{**vars(state), "problems": (*state.problems, reason)})


def look(
    root: Path,
    environment: Mapping[str, str],
    user: User,
    runtime: str,
    *,
    machine: str,
    python: tuple[int, int] = sys.version_info[:2],
) -> EdgeTpuState:
    """What there is of an Edge TPU under a root folder.

    Args:
        root: `/`, or a folder that stands for it.
        environment: Environment variables; EDGETPU_LIBRARY names the library.
        user: Who wants to use it.
        runtime: Name and version of the runtime; empty without.
        machine: Kind of processor, as `platform.machine()` says it.
        python: Version of Python.
    """
    library, named = _library(root, environment, machine)
    package = "" if named else _package(root)
    devices = find_devices(root, user)
    problems = [
        *_library_problems(library, named, machine, python),
        *_version_problems(package, runtime, machine, python),
        *device_problems(devices),
    ]
    return EdgeTpuState(
        library=str(library or ""),
        package=package,
        community=is_community(package),
        devices=devices,
        runtime=runtime,
        python=".".join(map(str, python)),
        machine=machine,
        problems=tuple(problems),
    )


# ---------------------------------------------------------------------------- the library


def _library(root: Path, environment: Mapping[str, str], machine: str) -> tuple[Path | None, str]:
    """Where the library is, and what EDGETPU_LIBRARY says of it."""
    named = environment.get("EDGETPU_LIBRARY", "")
    if named:
        return (Path(named) if Path(named).is_file() else None), named
    folders = [Path(name) for name in environment.get("LD_LIBRARY_PATH", "").split(":") if name]
    triplet = _TRIPLETS.get(machine, "")
    for base in ("usr/local/lib", "usr/lib", "lib", "usr/lib64", "lib64"):
        folders += [root / base / triplet, root / base]
    found = next((path for folder in folders if (path := folder / LIBRARY).is_file()), None)
    return found or _from_loader_cache(root), ""


def _from_loader_cache(root: Path) -> Path | None:
    """The library in a folder that only the dynamic loader's configuration names."""
    try:
        cache = (root / "etc/ld.so.cache").read_bytes()
    except OSError:
        return None
    found = re.search(rb"(/[^\0]*/" + re.escape(LIBRARY).encode() + rb")\0", cache)
    path = None if found is None else root / os.fsdecode(found[1]).lstrip("/")
    return path if path is not None and path.is_file() else None


def _package(root: Path) -> str:
    """Version of the Debian package that brought the library; empty where dpkg knows none."""
    try:
        text = (root / "var/lib/dpkg/status").read_text("utf-8", "replace")
    except OSError:
        return ""
    for block in text.split("\n\n"):
        rows = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if rows.get("Package") in PACKAGES and rows.get("Status", "").endswith(" installed"):
            return rows.get("Version", "")
    return ""


def _library_problems(
    library: Path | None, named: str, machine: str, python: tuple[int, int]
) -> list[str]:
    if library is not None:
        return []
    if named:
        problem = (
            f"EDGETPU_LIBRARY names the library of the Edge TPU. Received: `{named}`, which does "
            "not exist. Correct it, or unset it."
        )
        return [problem]
    return [f"The library {LIBRARY} was not found. {_how_to_install(machine, python)}"]


def _how_to_install(machine: str, python: tuple[int, int]) -> str:
    chosen = working_set(python, machine)
    if chosen is None:
        return (
            f"No set of library and runtime is known for Python {python[0]}.{python[1]} on "
            f"{machine}: see `tfedge doctor edgetpu`."
        )
    return (
        f"For Python {python[0]}.{python[1]} on {machine}, libedgetpu {chosen.libedgetpu}, with "
        f"{chosen.runtime} is reported to work: {'; '.join(chosen.commands)}."
    )


def _version_problems(
    package: str, runtime: str, machine: str, python: tuple[int, int]
) -> list[str]:
    name, _, version = runtime.partition(" ")
    reason = misfit(package, name, version) if runtime else ""
    return [f"{reason}. {_how_to_install(machine, python)}"] if reason else []


# ---------------------------------------------------------------------------- the delegate


def load_edgetpu_delegate(device: str | None = None) -> Any:
    """The Edge TPU's delegate, for the interpreter of the runtime that tfedge uses.

    The first use of a USB device loads its firmware, which takes some seconds and changes its USB
    id. A library that does not fit the runtime can crash the process when a model is opened; pairs
    that are known to do so are refused.

    Args:
        device: Which Edge TPU, as libedgetpu numbers them: `"usb"`, `"usb:0"`, `"pci:1"`, `":0"`.
            Default: the first.

    Returns:
        The delegate, for `experimental_delegates` of the interpreter.

    Raises:
        SettingsError: `device` is not of that form.
        DelegateError: The library, a device, the permission to use it, or a fitting runtime is
            missing; which, and the fix, is said.
        MissingExtraError: No runtime is installed.

    Example:
        >>> delegate = load_edgetpu_delegate("usb")  # doctest: +SKIP
    """
    options = _options(device)
    _, module = find_runtime()
    state = find_edgetpu()
    if not state.usable:
        raise DelegateError(f"The Edge TPU cannot be used. {' '.join(state.problems)}")
    if device and device.partition(":")[0] not in ("", *(d.kind for d in state.devices)):
        raise DelegateError(
            f"There is no Edge TPU on {device.partition(':')[0]}. Received: device={device!r}, and "
            f"{', '.join(f'{d.kind} {d.path}' for d in state.devices)}. Choose one of these."
        )
    return open_library(module, state.library, options)


def _options(device: str | None) -> dict[str, str]:
    if device is None:
        return {}
    if not isinstance(device, str) or not device or not DEVICE.fullmatch(device):
        raise SettingsError(
            "`device` is `usb`, `pci` or neither, with a number or without, e.g. `usb:0` or `:1`. "
            f"Received: {device!r}."
        )
    return {"device": device}


def open_library(module: Any, library: str, options: Mapping[str, str]) -> Any:
    """Load a library and create its delegate, or say in words why that failed.

    Args:
        module: The interpreter module of a runtime.
        library: Path of libedgetpu.
        options: Of the delegate.

    Raises:
        DelegateError: The library does not load, or the delegate cannot be created.
    """
    messages: list[str] = []
    try:
        with native_messages(messages):
            ctypes.CDLL(library)  # whose error says what is missing, unlike `load_delegate`
            return module.load_delegate(library, dict(options))
    except OSError as error:
        raise DelegateError(f"The library of the Edge TPU does not load: {_why(error)}") from error
    except AttributeError as error:
        raise DelegateError(
            f"`{library}` is no delegate library: {error}. Name libedgetpu by EDGETPU_LIBRARY."
        ) from error
    except (ValueError, RuntimeError) as error:
        said = "; ".join([" ".join(str(error).split()), *messages])
        raise DelegateError(
            f"libedgetpu did not make a delegate: {said}. The device may be in use by another "
            "process, or lack power: close the other one, replug it, and try another port."
        ) from error


def _why(error: OSError) -> str:
    text = str(error)
    if "libusb" in text:
        return f"{text}. Run `sudo apt-get install libusb-1.0-0`."
    if "GLIBC" in text or "version `" in text:
        return f"{text}. It is built for a newer system: install the build for this one."
    if "wrong ELF class" in text or "invalid ELF header" in text:
        return f"{text}. It is built for another processor: this is {platform.machine()}."
    return f"{text}. Install libedgetpu anew; `tfedge doctor edgetpu` says which."
