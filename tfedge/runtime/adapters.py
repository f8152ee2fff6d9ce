"""Tell what GPUs are here, from a child process: a driver may crash the process that asks it."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tfedge.errors import DelegateError, TfedgeError
from tfedge.report import Record
from tfedge.runtime.gpu import Adapter, find_device

SECONDS: Final = 60
# VkPhysicalDeviceType
_KINDS: Final = ("Unknown", "Integrated GPU", "Discrete GPU", "Virtual GPU", "CPU / Software")
_INSTANCE_CREATE_INFO: Final = 1  # VkStructureType
_PROPERTIES_BYTES: Final = 4096  # VkPhysicalDeviceProperties has 824
_KIND_OFFSET, _NAME_OFFSET, _NAME_BYTES = 16, 20, 256


@dataclass(frozen=True, kw_only=True)
class AdapterState(Record):
    """What LiteRT's GPU accelerator would run on.

    Attributes:
        adapter: The adapter that it selects; `None` if it cannot be used.
        devices: All devices that Vulkan knows, as `name (kind)`.
        reason: Why none can be used, with the fix; `None` if one can.
    """

    adapter: Adapter | None
    devices: tuple[str, ...]
    reason: str | None

    @property
    def is_hardware(self) -> bool:
        """Whether the adapter is a GPU, not a program on the CPU."""
        return self.adapter is not None and self.adapter.is_hardware


def find_adapter() -> AdapterState:
    """Ask LiteRT and Vulkan in a child process.

    Returns:
        What they say; how the child ended, where it did not live to say it.
    """
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tfedge.runtime.adapters"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    except subprocess.TimeoutExpired:
        return _lost(f"did not answer within {SECONDS} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"adapter"')]
    if not lines:
        code = done.returncode
        return _lost(signal.Signals(-code).name if code < 0 else f"ended with exit code {code}")
    answer = json.loads(lines[-1])
    adapter = None if answer["adapter"] is None else Adapter(**answer["adapter"])
    return AdapterState(adapter=adapter, devices=tuple(answer["devices"]), reason=answer["reason"])


def _lost(how: str) -> AdapterState:
    reason = (
        f"The process that asked the Vulkan driver for its adapters: {how}. Update the GPU's "
        "driver, or point `VK_DRIVER_FILES` to another one."
    )
    return AdapterState(adapter=None, devices=(), reason=reason)


def vulkan_devices() -> list[str]:
    """All devices that Vulkan's loader finds, as `name (kind)`; may crash with a bad driver.

    Raises:
        DelegateError: There is no loader, or no driver.
    """
    try:
        vulkan = ctypes.CDLL("libvulkan.so.1")
    except OSError as error:
        raise DelegateError(f"Vulkan's loader is needed. Received: {error}.") from error
    info, instance = (ctypes.c_uint64 * 8)(_INSTANCE_CREATE_INFO), ctypes.c_void_p()
    if (code := vulkan.vkCreateInstance(info, None, ctypes.byref(instance))) != 0:
        raise DelegateError(f"Vulkan's loader found no driver (VkResult {code}).")
    count = ctypes.c_uint32()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    devices = (ctypes.c_void_p * count.value)()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
    found = [_device(vulkan, device) for device in devices[: count.value]]
    vulkan.vkDestroyInstance(instance, None)
    return found


def _device(vulkan: Any, device: int | None) -> str:
    properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
    vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), properties)
    kind = int.from_bytes(properties.raw[_KIND_OFFSET:_NAME_OFFSET], sys.byteorder)
    name = properties.raw[_NAME_OFFSET : _NAME_OFFSET + _NAME_BYTES].split(b"\0")[0]
    known = _KINDS[kind] if kind < len(_KINDS) else _KINDS[0]
    return f"{name.decode('utf-8', 'replace')} ({known})"


def main() -> None:
    """Print what is here, as one line of JSON."""
    adapter = reason = None
    devices: list[str] = []
    with contextlib.suppress(DelegateError):  # LiteRT says it better, and with the fix
        devices = vulkan_devices()
    try:
        adapter = find_device("fp32").adapter.to_dict()
    except TfedgeError as error:
        reason = str(error)
    print(json.dumps({"adapter": adapter, "devices": devices, "reason": reason}), flush=True)


if __name__ == "__main__":
    main()
