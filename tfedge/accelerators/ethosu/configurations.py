"""The Ethos-U accelerators, and what Vela assumes of the memories around them.

A *system configuration* says how fast clock and memories are, a *memory mode* which memory holds
weights and activations; both are sections of an `.ini` file of Vela, its own (`Arm/vela.ini`) or
the user's. Vela's defaults when it is told nothing differ between families and come with a warning
(`ArchitectureFeatures._set_default_sys_config` of ethos-u-vela 5.2): here they are always written
out.
"""

import configparser
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from tfedge.errors import CompilationError, SettingsError, did_you_mean

PACKAGE: Final = "ethos-u-vela"
OWN_FILE: Final = "ethosu/config_files/Arm/vela.ini"  # in the package
INSTALL: Final = 'Run `pip install "tfedge[ethosu]"`'

# Family: sizes in multiply-accumulates per cycle, system configuration, memory mode.
FAMILIES: Final = {
    "u55": ((32, 64, 128, 256), "Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "u65": ((256, 512), "Ethos_U65_Client_Server", "Dedicated_Sram_384KB"),
    "u85": ((128, 256, 512, 1024, 2048), "Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB"),
}
ACCELERATORS: Final = tuple(
    f"ethos-{family}-{size}" for family, (sizes, _, _) in FAMILIES.items() for size in sizes
)


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What Vela is told of the system.

    Attributes:
        target: The accelerator, e.g. `"ethos-u55-128"`.
        system_config: Name of a section `System_Config.…` of `file`.
        memory_mode: Name of a section `Memory_Mode.…` of `file`.
        file: The `.ini` file, absolute.
        is_own: Whether that is Vela's own file.
    """

    target: str
    system_config: str
    memory_mode: str
    file: Path
    is_own: bool

    @property
    def macs_per_cycle(self) -> int:
        """Multiply-accumulates that the accelerator can do in a cycle."""
        return int(self.target.rpartition("-")[2])


def configure(
    target: str,
    *,
    system_config: str | None = None,
    memory_mode: str | None = None,
    vela_config: str | Path | None = None,
) -> Configuration:
    """Choose system configuration and memory mode for a target, and check that they exist.

    Args:
        target: One of `ACCELERATORS`.
        system_config: Default: that of the family in `FAMILIES`.
        memory_mode: Default: that of the family in `FAMILIES`.
        vela_config: The user's own `.ini` file. Default: Vela's own.

    Returns:
        Both names with the file that they are in.

    Raises:
        SettingsError: No such name in the file, one made for another family, or no such file.
        CompilationError: Vela's own file is not there.
    """
    family = target.split("-")[1]
    _, default_system, default_mode = FAMILIES[family]
    file = _own_file() if vela_config is None else _user_file(Path(vela_config))
    sections = _sections(file)
    chosen = {
        "system_config": ("System_Config", system_config or default_system),
        "memory_mode": ("Memory_Mode", memory_mode or default_mode),
    }
    for setting, (prefix, name) in chosen.items():
        names = [section.removeprefix(f"{prefix}.") for section in sections if prefix in section]
        fitting = [name for name in names if _family_of(name) in (None, family)]
        if name in fitting:
            continue
        other = f" It is for the Ethos-{name[6:9]}." if name in names else ""
        raise SettingsError(
            f"`{setting}` for {target!r} must be a section `{prefix}.…` of `{file.name}`: "
            f"{sorted(fitting)}. Received: {name!r}.{other or did_you_mean(name, fitting)}"
        )
    return Configuration(
        target=target,
        system_config=chosen["system_config"][1],
        memory_mode=chosen["memory_mode"][1],
        file=file,
        is_own=vela_config is None,
    )


def _family_of(name: str) -> str | None:
    """The family in the names of Vela's own system configurations; `None` in others."""
    found = re.match(r"Ethos_(U\d+)_", name)
    return found and found[1].lower()


def _own_file() -> Path:
    try:
        file = Path(str(metadata.distribution(PACKAGE).locate_file(OWN_FILE)))
    except metadata.PackageNotFoundError:
        file = Path(OWN_FILE)
    if not file.is_file():
        raise CompilationError(
            f"Vela's own configuration file `{OWN_FILE}` is not installed. {INSTALL}, or give a "
            "file of your own with `vela_config`."
        )
    return file.resolve()


def _user_file(path: Path) -> Path:
    if path.suffix != ".ini" or not path.is_file():
        raise SettingsError(
            f"`vela_config` must be an `.ini` file of Vela's format. Received: `{path}`, "
            f"{'which is none' if path.exists() else 'which does not exist'}."
        )
    return path.resolve()


def _sections(file: Path) -> list[str]:
    parser = configparser.ConfigParser()
    try:
        parser.read_string(file.read_text(encoding="utf-8"), source=file.name)
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        first = str(error).splitlines()[0]
        raise SettingsError(
            f"`vela_config` must be an `.ini` file that can be read. Received: `{file}` ({first})."
        ) from error
    return parser.sections()
