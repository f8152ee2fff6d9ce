"""Arm Ethos-U: compile a `.tflite` file with Vela, and say what it made of it.

    compile_ethosu("model_int8.tflite", target="ethos-u55-128", out="model_u55.tflite")

Vela (package `ethos-u-vela`, extra `ethosu`) gathers the operators that the NPU takes into custom
operators `ethos-u` and leaves the others where they were. Its cycles and times come from a model
of the system: they are estimates.
"""

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tfedge.accelerators.ethosu.checking import check_compiled
from tfedge.accelerators.ethosu.configurations import ACCELERATORS, Configuration, configure
from tfedge.accelerators.ethosu.figures import read_layers, read_sources, read_summary
from tfedge.accelerators.ethosu.mapping import CUSTOM, map_operators
from tfedge.accelerators.ethosu.vela import VelaFiles, find_vela, run_vela
from tfedge.accelerators.records import Compilation, OperatorMapping
from tfedge.errors import CompilationError, SettingsError, did_you_mean
from tfedge.files import check_writable, write_whole
from tfedge.inspection import InspectionReport, inspect_model, layer_of, load_bytes
from tfedge.inspection.layout import EDGETPU_OPERATOR

__all__ = ["ACCELERATORS", "TIMEOUT_S", "compile_ethosu", "find_vela"]

TIMEOUT_S: Final = 600.0
COMPILED: Final = {
    CUSTOM: "an Ethos-U (by Vela)",
    EDGETPU_OPERATOR: "the Edge TPU",
}


def compile_ethosu(
    model: bytes | str | os.PathLike[str],
    *,
    target: str,
    out: str | os.PathLike[str] | None = None,
    system_config: str | None = None,
    memory_mode: str | None = None,
    vela_config: str | os.PathLike[str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Compilation:
    """Compile a quantized `.tflite` file for an Arm Ethos-U.

    Args:
        model: Path of the file, or its content. int8 or int16x8; what computes in float stays on
            the CPU.
        target: One of `ACCELERATORS`, e.g. `"ethos-u55-128"`: family and multiply-accumulates per
            cycle.
        out: Where the compiled file goes. Default: it is not kept, only looked at.
        system_config: Section `System_Config.…` of the configuration file: clock and memories.
            Default: `Ethos_U55_High_End_Embedded`, `Ethos_U65_Client_Server` or
            `Ethos_U85_SYS_DRAM_Mid`.
        memory_mode: Section `Memory_Mode.…`: which memory holds what. Default: `Shared_Sram` on the
            U55, else `Dedicated_Sram_384KB`.
        vela_config: A configuration file of the user's own (`.ini`). Default: Vela's.
        timeout_s: Seconds after which Vela is ended.

    Returns:
        Which operators run on the NPU and why others do not, memory needed, and estimates.

    Raises:
        SettingsError: A setting out of its range.
        FileFormatError: No such file, or it is not sound.
        CompilationError: Vela is not installed or failed, the file was compiled before, or the NPU
            takes none of its operators. Nothing is written.
        FileWriteError: `out` cannot be written.

    Example:
        >>> done = compile_ethosu("model_int8.tflite", target="ethos-u55-128")  # doctest: +SKIP
        >>> done.mapped, done.estimates["latency_ms"]  # doctest: +SKIP
        (17, 0.403494)
    """
    _check_settings(target, timeout_s)
    data, path = load_bytes(model)
    name = f"`{path}`" if path else "the model"
    source = inspect_model(data)
    _check_not_compiled(source, name)
    if out is not None:
        check_writable(out)
    version = find_vela()
    configuration = configure(
        target,
        system_config=system_config,
        memory_mode=memory_mode,
        vela_config=None if vela_config is None else Path(vela_config),
    )
    with tempfile.TemporaryDirectory(prefix="tfedge-") as folder:
        files = run_vela(data, configuration, Path(folder), name=name, timeout_s=timeout_s)
        result = _describe(source, data, files, configuration, version)
    if result.mapped == 0:
        raise _nothing_mapped(result, source, name)
    if out is not None:
        write_whole(out, files.compiled)
    return dataclasses.replace(result, path=None if out is None else str(out))


def _check_settings(target: str, timeout_s: float) -> None:
    if target not in ACCELERATORS:
        raise SettingsError(
            f"`target` must be one of {list(ACCELERATORS)}. Received: {target!r}."
            f"{did_you_mean(target, ACCELERATORS)}"
        )
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise SettingsError(f"`timeout_s` must be above 0. Received: {timeout_s!r}.")


def _check_not_compiled(source: InspectionReport, name: str) -> None:
    for custom, what in COMPILED.items():
        if custom in source.custom_operators:
            raise CompilationError(
                f"A file is compiled once, and {name} was already compiled for {what}: it holds "
                f"the operator `{custom}`. Give the file that it was made of."
            )


def _describe(
    source: InspectionReport,
    data: bytes,
    files: VelaFiles,
    configuration: Configuration,
    version: str,
) -> Compilation:
    """The result of a run of Vela, checked."""
    streams = check_compiled(data, files.compiled)
    sources = read_sources(files.database, source)
    operators, added = map_operators(source, inspect_model(files.compiled), files.log, sources)
    figures, estimates, limits = read_summary(files.summary)
    layers = [layer_of(operator.output_name) for operator in source.operators]
    cycles = estimates.get("cycles", 0)
    rows = read_layers(
        files.layers,
        sources,
        source,
        layers,
        macs_per_cycle=configuration.macs_per_cycle,
        cycles=cycles,
    )
    complete = sum(row.cycles for row in rows) == cycles
    return Compilation(
        target=configuration.target,
        compiler=f"ethos-u-vela {version}",
        path=None,
        size_bytes=len(files.compiled),
        operators=operators,
        figures={"npu_custom_operators": streams, **figures},
        estimates=estimates,
        settings={
            "system_config": configuration.system_config,
            "memory_mode": configuration.memory_mode,
            "config_file": "Vela's own (Arm/vela.ini)"
            if configuration.is_own
            else str(configuration.file),
            "optimise": "Performance",
            **{name: f"{value:.0f}" for name, value in limits.items()},
        },
        notes=tuple(_notes(operators, added, configuration, source, complete=complete)),
        seconds=files.seconds,
        layers=rows,
    )


def _notes(
    operators: Sequence[OperatorMapping],
    added: Sequence[str],
    configuration: Configuration,
    source: InspectionReport,
    *,
    complete: bool,
) -> Iterator[str]:
    left = [row.name for row in operators if not row.mapped]
    if left:
        kinds = ", ".join(dict.fromkeys(left))
        yield (
            f"Partly mapped: {len(left)} of {len(operators)} operators left to the CPU ({kinds}). "
            "The estimates do not count them."
        )
    if set(left) and set(left) <= {"QUANTIZE", "DEQUANTIZE"}:
        yield (
            "They turn floats into integers and back at the ends of the model. Convert it with "
            "integer inputs and outputs to be rid of them."
        )
    if added:
        yield f"Vela added operators that run on the CPU: {', '.join(added)}."
    if any(operator.subgraph for operator in source.operators):
        yield "The estimates count operators in loops and branches once."
    if not complete:
        yield "Estimates of single operators are not complete: Vela gives those of one subgraph."
    yield (
        "Cycles, latency and inferences per second are estimates of Vela's model of "
        f"{configuration.system_config} with {configuration.memory_mode}: nobody measured them."
    )
    yield (
        "Checked: the file is sound, its inputs, outputs and signatures are those of the model, "
        "and what stays on the CPU is unchanged. LiteRT cannot run the NPU's part here: results "
        "can be compared on the device only."
    )


def _nothing_mapped(result: Compilation, source: InspectionReport, name: str) -> CompilationError:
    total = len(result.operators)
    if source.float_operators:
        why = (
            f"it is a float model ({len(source.float_operators)} of {total} operators compute in "
            "float), and Ethos-U takes integers only. Convert it with `tfedge convert MODEL "
            "--mode int8`"
        )
    else:
        reasons = dict.fromkeys(f"{row.name}: {row.reason}" for row in result.operators)
        why = " ".join(list(reasons)[:3]) or "it has no operators"
    return CompilationError(
        f"None of the {total} operators of {name} would run on {result.target!r}: {why}. "
        "No file was written."
    )
