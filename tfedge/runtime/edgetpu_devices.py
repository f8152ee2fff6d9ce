"""Find the Edge TPUs that the kernel sees, and who may use them.

USB ids are those of Coral's udev rules (google-coral/libedgetpu, debian/edgetpu-accelerator.rules):
1a6e:089a before the first use, 18d1:9302 after it. PCIe devices are /dev/apex_*, made by the kernel
driver gasket (google/gasket-driver); on the bus they are 1ac1:089a.
"""

import grp
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tfedge.report import Record

USB_IDS: Final = {("1a6e", "089a"): "not used yet", ("18d1", "9302"): "initialised"}
PCI_ID: Final = ("0x1ac1", "0x089a")


@dataclass(frozen=True, kw_only=True)
class EdgeTpuDevice(Record):
    """An Edge TPU that the kernel sees.

    Attributes:
        kind: `"usb"` or `"pci"`.
        path: Its device node; empty where there is none.
        state: `"not used yet"`, `"initialised"`, or `"ready"` for PCIe.
        problem: Why this user cannot use it, with the fix; empty where there is no reason.
    """

    kind: str
    path: str
    state: str
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class User:
    """Who wants to use a device.

    Attributes:
        uid: Number of the user; 0 may do all.
        groups: Numbers of the user's groups.
    """

    uid: int
    groups: frozenset[int]


def find_devices(root: Path, user: User) -> tuple[EdgeTpuDevice, ...]:
    """The Edge TPUs that the kernel lists under a root folder.

    Args:
        root: `/`, or a folder that stands for it.
        user: Who wants to use them.
    """
    return (*_usb_devices(root, user), *_pci_devices(root, user))


def _usb_devices(root: Path, user: User) -> list[EdgeTpuDevice]:
    devices = []
    for folder in sorted((root / "sys/bus/usb/devices").glob("*")):
        ids = (_text(folder / "idVendor"), _text(folder / "idProduct"))
        if ids not in USB_IDS:
            continue
        bus, number = _text(folder / "busnum"), _text(folder / "devnum")
        if bus.isdigit() and number.isdigit():
            node = root / f"dev/bus/usb/{int(bus):03d}/{int(number):03d}"
            path, problem = _node(node, user, "plugdev", _USB_RULE)
        else:
            path, problem = "", "The kernel lists an Edge TPU on USB without a number: replug it."
        devices.append(EdgeTpuDevice(kind="usb", path=path, state=USB_IDS[ids], problem=problem))
    return devices


_USB_RULE: Final = (
    "the package libedgetpu1-std brings the udev rule that gives Edge TPUs to the group plugdev; "
    "replug the device after installing it"
)
_PCI_RULE: Final = (
    """put SUBSYSTEM=="apex", MODE="0660", GROUP="apex" into /etc/udev/rules.d/65-apex.rules, """
    "and reboot"
)


def _pci_devices(root: Path, user: User) -> list[EdgeTpuDevice]:
    devices = []
    for node in sorted((root / "dev").glob("apex_*")):
        path, problem = _node(node, user, "apex", _PCI_RULE)
        devices.append(EdgeTpuDevice(kind="pci", path=path, state="ready", problem=problem))
    if devices:
        return devices
    cards = [
        folder.name
        for folder in sorted((root / "sys/bus/pci/devices").glob("*"))
        if (_text(folder / "vendor"), _text(folder / "device")) == PCI_ID
    ]
    problem = (
        "An Edge TPU on PCIe ({}) has no device node /dev/apex_0: the kernel driver is missing. "
        "Install gasket-dkms (https://github.com/google/gasket-driver) and reboot; in a container, "
        "pass `--device /dev/apex_0`."
    )
    return [
        EdgeTpuDevice(kind="pci", path="", state="no driver", problem=problem.format(card))
        for card in cards
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""


def _node(node: Path, user: User, group: str, rule: str) -> tuple[str, str]:
    """Path of a device node, and why the user cannot use it."""
    try:
        status = node.stat()
    except OSError:
        return "", (
            f"An Edge TPU is attached, but its device node `{node}` is not here. In a container, "
            "pass it with `--device`, or all of USB with `--device /dev/bus/usb`."
        )
    if may_use(status, user):
        return str(node), ""
    if status.st_mode & stat.S_IRGRP and status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        name = _group_name(status.st_gid)
        fix = f"Run `sudo usermod -aG {name} $USER`, then log out and in again"
    else:
        fix = f"Give it to the group {group}: {rule}. Then `sudo usermod -aG {group} $USER`"
    return str(node), f"This user may not read and write `{node}`. {fix}."


def may_use(status: os.stat_result, user: User) -> bool:
    """Whether a user may read and write a file, by its mode.

    Args:
        status: Of the file.
        user: The user.
    """
    if user.uid == 0:
        return True
    if status.st_uid == user.uid:
        wanted = stat.S_IRUSR | stat.S_IWUSR
    elif status.st_gid in user.groups:
        wanted = stat.S_IRGRP | stat.S_IWGRP
    else:
        wanted = stat.S_IROTH | stat.S_IWOTH
    return status.st_mode & wanted == wanted


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def device_problems(devices: Sequence[EdgeTpuDevice]) -> list[str]:
    """What keeps all devices from being used; empty where one can be.

    Args:
        devices: As `find_devices` returns them.
    """
    if any(not device.problem for device in devices):
        return []
    if devices:
        return [device.problem for device in devices]
    return [NONE]


NONE: Final = (
    "No Edge TPU is attached: the kernel lists none on USB (1a6e:089a or 18d1:9302) and none on "
    "PCIe (/dev/apex_0). Plug one in; in a virtual machine or container, pass it through."
)
