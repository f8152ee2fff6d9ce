"""From a `.tflite` file to the file of an accelerator, and what it will take before it is asked.

compile_model("model_int8.tflite", target="ethos-u55-128")    one target, one file
all_targets("model_int8.tflite")                              what runs where, in one table

edgetpu/       Coral Edge TPU: pre-flight, Google's compiler, what is in a compiled file
ethosu/        Arm Ethos-U: Vela
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tfedge.accelerators.ethosu.configurations import ACCELERATORS
from tfedge.accelerators.records import Compilation, LayerEstimate, OperatorMapping
from tfedge.errors import SettingsError, did_you_mean
from tfedge.report import Record

__all__ = [
    "TARGETS",
    "Compilation",
    "LayerEstimate",
    "OperatorMapping",
    "Target",
    "check_options",
    "check_target",
    "compile_model",
    "default_path",
]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Target(Record):
    """Something that a `.tflite` file is compiled for.

    Attributes:
        name: E.g. `"ethos-u55-128"`.
        device: What it is, for people.
        compiler: What compiles for it.
        options: Options of `compile_model` that it takes.
    """

    name: str
    device: str
    compiler: str
    options: tuple[str, ...]


EDGETPU: Final = Target(
    name="edgetpu",
    device="Coral Edge TPU",
    compiler="Google's edgetpu_compiler (x86-64 Linux)",
    options=(
        *("min_runtime_version", "segments", "together_with"),
        *("timeout_s", "compiler", "container"),
    ),
)
TARGETS: Final[Mapping[str, Target]] = MappingProxyType(
    {EDGETPU.name: EDGETPU}
    | {
        name: Target(
            name=name,
            device=f"Arm {name.replace('ethos-u', 'Ethos-U').rpartition('-')[0]}, "
            f"{name.rpartition('-')[2]} MACs per cycle",
            compiler='Vela (`pip install "tfedge[ethosu]"`)',
            options=("system_config", "memory_mode", "vela_config", "timeout_s"),
        )
        for name in ACCELERATORS
    }
)
RUN_AS_THEY_ARE: Final = ("none", "xnnpack", "gpu")


def compile_model(
    model: bytes | PathLike,
    *,
    target: str,
    out: PathLike | None = None,
    system_config: str | None = None,
    memory_mode: str | None = None,
    vela_config: PathLike | None = None,
    min_runtime_version: int | None = None,
    segments: int | None = None,
    together_with: Sequence[PathLike] = (),
    timeout_s: float | None = None,
    compiler: str | None = None,
    container: str | None = None,
) -> Compilation:
    """Compile a `.tflite` file for an accelerator.

    Args:
        model: Path of the file, or its content.
        target: One of `TARGETS`.
        out: Where the compiled file goes. Default: `<stem>_<target>.tflite` beside the model; with
            content in place of a path, it is not kept.
        system_config: Ethos-U: see `compile_ethosu`.
        memory_mode: Ethos-U: see `compile_ethosu`.
        vela_config: Ethos-U: see `compile_ethosu`.
        min_runtime_version: Edge TPU: oldest runtime that has to run it.
        segments: Edge TPU: pieces to cut the model into, for a pipeline of as many.
        together_with: Edge TPU: other models that share its memory.
        timeout_s: Seconds after which the compiler is ended. Default: the compiler's own.
        compiler: Edge TPU: path of `edgetpu_compiler`.
        container: Edge TPU: a container image that holds it.

    Returns:
        Where every operator runs, with figures and estimates of the compiler.

    Raises:
        SettingsError: No such target, an option of another target, or `out` is the model itself.
        FileFormatError: No such file, or it is not sound.
        CompilationError: The compiler is missing, or made nothing that would run on the target.
        FileWriteError: `out` cannot be written.

    Example:
        >>> made = compile_model("model_int8.tflite", target="ethos-u55-128")  # doctest: +SKIP
        >>> made.path, made.mapped, len(made.operators)  # doctest: +SKIP
        ('model_int8_ethos-u55-128.tflite', 17, 17)
    """
    given: dict[str, Any] = {
        "system_config": system_config,
        "memory_mode": memory_mode,
        "vela_config": vela_config,
        "min_runtime_version": min_runtime_version,
        "segments": segments,
        "together_with": together_with,
        "timeout_s": timeout_s,
        "compiler": compiler,
        "container": container,
    }
    options = {name: value for name, value in given.items() if value not in (None, (), [])}
    check_options(target, options)
    if isinstance(model, str | os.PathLike):
        if out is not None:
            _check_apart(Path(model), Path(out))
        elif target != EDGETPU.name:
            out = default_path(model, target)
    if target == EDGETPU.name:
        return _compile_edgetpu(model, out, options)
    from tfedge.accelerators.ethosu import compile_ethosu

    return compile_ethosu(model, target=target, out=out, **options)


def check_target(target: str) -> Target:
    """The target of that name.

    Raises:
        SettingsError: There is none to compile for.
    """
    if target in TARGETS:
        return TARGETS[target]
    if target in RUN_AS_THEY_ARE:
        raise SettingsError(
            f"Nothing is compiled for {target!r}: it runs `.tflite` files as they are. Measure one "
            f"with `tfedge benchmark MODEL --delegate {target}`, or choose one of {list(TARGETS)}."
        )
    raise SettingsError(
        f"`target` must be one of {list(TARGETS)}. Received: {target!r}."
        f"{did_you_mean(target, TARGETS)}"
    )


def check_options(
    target: str,
    options: Mapping[str, object],
    spell: Callable[[str], str] = lambda name: f"`{name}`",
) -> None:
    """Raise `SettingsError` for options that do not belong to a target.

    Args:
        target: Name of the target.
        options: The options that were given.
        spell: How to write an option's name.
    """
    taken = check_target(target).options
    foreign = [name for name in options if name not in taken]
    if foreign:
        raise SettingsError(
            f"The target {target!r} takes {', '.join(map(spell, taken))}. Received: "
            f"{', '.join(map(spell, foreign))}. Leave out what belongs to other targets."
        )


def default_path(model: PathLike, target: str) -> Path:
    """Where the compiled file goes when nothing is said.

    Example:
        >>> print(default_path("models/net.tflite", "ethos-u55-128"))
        models/net_ethos-u55-128.tflite
    """
    path = Path(model)
    return path.with_name(f"{path.stem}_{target}.tflite")


def _check_apart(model: Path, out: Path) -> None:
    if model.exists() and out.exists() and out.samefile(model):
        raise SettingsError(
            f"The compiled file must not take the place of the model. Received `{out}` for both. "
            "Name another file."
        )


def _compile_edgetpu(
    model: bytes | PathLike, out: PathLike | None, options: Mapping[str, Any]
) -> Compilation:
    """As `compile_edgetpu`, content in place of a path too."""
    from tfedge.accelerators.edgetpu.compiler import compile_edgetpu

    if isinstance(model, str | os.PathLike):
        return compile_edgetpu(model, out=out, **options)
    with tempfile.TemporaryDirectory(prefix="tfedge-") as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(model)
        result = compile_edgetpu(path, out=out, **options)
    return result if out is not None else dataclasses.replace(result, path=None)
