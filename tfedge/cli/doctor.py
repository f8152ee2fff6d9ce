"""`tfedge doctor`: what is installed and usable, each with the fix."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from tfedge.cli._show import common_options, print_json, print_table, print_text, progress_bar
from tfedge.cli.doctor_edgetpu import doctor_edgetpu
from tfedge.report import Record

# Package: module that must import, extra that brings it (none for the base install), use.
PACKAGES = {
    "numpy": ("numpy", "", "arrays"),
    "flatbuffers": ("flatbuffers", "", "reading .tflite files"),
    "ai-edge-litert": ("ai_edge_litert.interpreter", "", "running .tflite files"),
    "tensorflow": ("tensorflow", "train", "training and converting"),
    "keras": ("keras", "train", "Keras 3 models"),
    "tf_keras": ("tf_keras", "train", "Keras 2 models"),
    "tensorflow-model-optimization": ("tfedge.engines.tfmot", "train", "Keras 2 models"),
    "scikit-learn": ("sklearn", "train", "the bundled digits"),
    "h5py": ("h5py", "train", ".h5 files"),
    "pillow": ("PIL", "train", "image folders"),
    "ethos-u-vela": ("ethosu.vela", "ethosu", "compiling for Arm Ethos-U"),
}
IMPORT_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """One thing that was looked at.

    Attributes:
        name: What was looked at.
        state: `"ok"`, `"missing"` or `"broken"`.
        found: Version or path.
        use: What it is needed for.
        fix: What to do; empty when nothing.
        required: Whether the base install cannot do without it.
    """

    name: str
    state: str
    found: str = ""
    use: str = ""
    fix: str = ""
    required: bool = False


@click.group(invoke_without_command=True)
@common_options
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check what is installed and usable here, and say how to fix what is not."""
    if ctx.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"Write `tfedge doctor {ctx.invoked_subcommand} --json`.")
        return
    with progress_bar(quiet=as_json) as advance:
        checks = examine(advance)
    if as_json:
        print_json({"checks": checks})
    else:
        rows = [(c.name, c.state, c.found or None, c.use) for c in checks]
        print_table("tfedge doctor", ("what", "state", "found", "needed for"), rows, words=4)
        for check in checks:
            if check.fix:
                print_text(f"{check.name}: {check.fix}")
    if any(check.required and check.state != "ok" for check in checks):
        click.get_current_context().exit(1)


doctor.add_command(doctor_edgetpu)


def examine(advance: object = None) -> list[Check]:
    """Check Python, the packages (each is really imported, in a child process) and the runtime.

    Args:
        advance: Called with a sentence and a fraction; default: nothing is called.

    Returns:
        One row per thing.
    """
    report = advance if callable(advance) else lambda what, fraction: None
    report("importing the packages", 0.1)
    failures = _import_failures([module for module, _, _ in PACKAGES.values()])
    checks = [_python(), *(_package(name, failures) for name in PACKAGES)]
    report("looking at the runtime", 0.9)
    checks += _runtimes()
    report("looking for GPUs", 0.95)
    return [*checks, _gpu(), _data_folder()]


def _python() -> Check:
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Check(
        name="python",
        state="ok" if good else "broken",
        found=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        use="everything",
        fix="" if good else "Use Python 3.11, 3.12 or 3.13.",
        required=True,
    )


def _package(name: str, failures: dict[str, str]) -> Check:
    module, extra, use = PACKAGES[name]
    install = f'pip install "tfedge[{extra}]"' if extra else "pip install tfedge"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        fix = f"Run `{install}`."
        return Check(name=name, state="missing", use=use, fix=fix, required=not extra)
    failure = failures.get(module, "")
    return Check(
        name=name,
        state="broken" if failure else "ok",
        found=version,
        use=use,
        fix=f"{failure} Run `{install} --force-reinstall`." if failure else "",
        required=not extra,
    )


_IMPORT_ALL = """
import importlib, json, sys
failures = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        failures[name] = f"{type(error).__name__}: {error}."[:300]
    print(json.dumps(failures), flush=True)
"""


def _import_failures(modules: list[str]) -> dict[str, str]:
    """What goes wrong when each module is imported, in a child process that may even crash."""
    command = [sys.executable, "-c", _IMPORT_ALL, *modules]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=IMPORT_SECONDS, env=environment
        )
        lines, ending = done.stdout.splitlines(), f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        text = output if isinstance(output, str) else output.decode(errors="replace")
        lines, ending = text.splitlines(), f"no end after {IMPORT_SECONDS} s"
    failures: dict[str, str] = {}
    for line in lines:
        if line.startswith("{"):
            failures = json.loads(line)
    finished = sum(line.startswith("{") for line in lines)
    for module in modules[finished:]:
        failures[module] = f"Importing {modules[finished]} ended the process ({ending})."
    return failures


def _runtimes() -> list[Check]:
    from tfedge.runtime import runtimes

    states = runtimes()
    names = ", ".join(f"{name} {state.version}" for name, state in states.items() if state.usable)
    reasons = "; ".join(f"{name}: {state.reason}" for name, state in states.items())
    return [
        Check(
            name="runtime",
            state="ok" if names else "missing",
            found=names,
            use="running .tflite files",
            fix="" if names else f"No runtime can be used. {reasons}.",
            required=True,
        ),
    ]


def _gpu() -> Check:
    """What `delegate="gpu"` would run on; `tfedge doctor edgetpu` looks for the Edge TPU."""
    from tfedge.runtime.adapters import find_adapter

    use = "the delegate gpu"
    found = find_adapter()
    if found.adapter is None:
        devices = ", ".join(found.devices)
        return Check(
            name="gpu", state="missing", found=devices, use=use, fix=f"Optional: {found.reason}"
        )
    others = [device for device in found.devices if not device.startswith(found.adapter.name)]
    software = "" if found.is_hardware else "a program on the CPU: "
    fix = (
        ""
        if found.is_hardware
        else "Optional: install the GPU's Vulkan driver. `--allow-software` runs on what is here."
    )
    return Check(
        name="gpu",
        state="ok" if found.is_hardware else "missing",
        found=software + "; also ".join([str(found.adapter), *others]),
        use=use,
        fix=fix,
    )


def _data_folder() -> Check:
    folder = os.environ.get("TFEDGE_DATA_DIR", "")
    if not folder:
        return Check(
            name="TFEDGE_DATA_DIR",
            state="missing",
            use="mnist, cifar10 without a download",
            fix="Optional: set it to a folder that holds mnist.npz or cifar10_jpeg.npz.",
        )
    good = Path(folder).is_dir()
    return Check(
        name="TFEDGE_DATA_DIR",
        state="ok" if good else "broken",
        found=folder,
        use="mnist, cifar10 without a download",
        fix="" if good else "It names no folder: correct it, or unset it.",
    )
