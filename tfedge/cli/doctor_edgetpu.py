"""`tfedge doctor edgetpu`: what is here for the Edge TPU, and what works together."""

from typing import Any

import click

from tfedge.cli._show import common_options, print_json, print_table, print_text


@click.command("edgetpu")
@common_options
def doctor_edgetpu(as_json: bool) -> None:
    """Look for Coral's library, devices and compiler, and say what works together.

    Exit code 1 when a model cannot run on an Edge TPU here.
    """
    from tfedge.accelerators.edgetpu.doctor import examine_edgetpu

    found = examine_edgetpu()
    if as_json:
        print_json(found)
    else:
        _show(found)
    if not found.state.usable:
        click.get_current_context().exit(1)


def _show(found: Any) -> None:
    state = found.state
    print_table("Edge TPU on this machine", ("what", "found", "needed for"), _rows(found), words=3)
    for problem in state.problems:
        print_text(f"Missing: {problem}")
    if found.compiler_missing:
        print_text(f"To compile: {found.compiler_missing}")
    columns = ("libedgetpu", "built by", "runtime", "Python", "reported", "who says so")
    rows = [
        (row.libedgetpu, row.built_by, row.runtime, row.python, row.verdict, row.source)
        for row in found.table
    ]
    print_table("What works together (reported, not measured here)", columns, rows, words=6)
    chosen = found.working_set
    if chosen is None:
        print_text(f"No set is known for Python {state.python} on {state.machine}.")
        return
    print_text(
        f"For Python {state.python} on {state.machine}: libedgetpu {chosen.libedgetpu}, with "
        f"{chosen.runtime}.",
    )
    for command in chosen.commands:
        print_text(f"  {command}")


def _rows(found: Any) -> list[tuple[str, str | None, str]]:
    state = found.state
    build = f" ({state.package}, {'community' if state.community else 'Google'})"
    library = f"{state.library}{build if state.package else ''}"
    rows = [
        ("libedgetpu", library or None, "running"),
        *((f"device, {device.kind}", _device(device), "running") for device in state.devices),
        ("runtime", state.runtime or None, "running"),
        ("python", f"{state.python} on {state.machine}", "running"),
        ("edgetpu_compiler", found.compiler or None, "compiling"),
    ]
    return rows if state.devices else [rows[0], ("device", None, "running"), *rows[1:]]


def _device(device: Any) -> str:
    usable = ", not usable" if device.problem else ""
    return f"{device.path or 'no device node'}: {device.state}{usable}"
