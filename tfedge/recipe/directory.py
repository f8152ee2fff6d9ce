"""Keep what a run has done: one folder per step, its record written last."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tfedge.errors import FileWriteError, SettingsError
from tfedge.files import check_writable, write_whole
from tfedge.report import plain

RECORD = "record.json"
LOCK = ".lock"


class RunDirectory:
    """The folder of a run. Steps that were done before, from the same, are not done again.

    Args:
        path: The folder; made if it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.used: set[Path] = set()  # folders of the steps of this run

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against other runs inside the block.

        Raises:
            SettingsError: Another run holds it, or it is somebody else's folder.
            FileWriteError: It cannot be written to.
        """
        from filelock import FileLock, Timeout

        self._check_ours()
        check_writable(self.path / RECORD)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, timeout=0)
            with lock:
                yield
        except Timeout as error:
            raise SettingsError(
                f"A run directory serves one run at a time. Another one is at work in "
                f"`{self.path}`. Wait for it, or choose another `--output`."
            ) from error

    def _check_ours(self) -> None:
        known = {"recipe.yaml", "report.json", "report.html", "steps", "logs", "model.keras", LOCK}
        if not self.path.is_dir():
            return
        names = {entry.name for entry in self.path.iterdir()}
        if names and not names & known:
            raise SettingsError(
                f"`--output` is a new or empty folder, or that of an earlier run. Received: "
                f"`{self.path}`, which holds {', '.join(sorted(names)[:3])}. Choose another one."
            )

    def step(
        self,
        name: str,
        key: Mapping[str, Any],
        make: Callable[[Path], Any],
    ) -> tuple[dict[str, Any], Path]:
        """The record of a step, done now or in an earlier run.

        Args:
            name: Of its folder.
            key: All that its result depends on, as plain values.
            make: Does it: writes artefacts into the folder that it is given, returns the record.

        Returns:
            The record as JSON gives it back, and the folder.

        Raises:
            FileWriteError: The folder cannot be written to. What was there is left.
        """
        digest = digest_of(key)
        folder = self.path / "steps" / f"{name}-{digest[:10]}"
        self.used.add(folder)
        known = _read(folder / RECORD)
        if known is not None and known.get("key") == digest and _whole(folder, known):
            return known["record"], folder
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileWriteError(
                f"Could not write `{folder}`: {error.strerror}. Choose another `--output`."
            ) from error
        record = make(folder)
        content = {
            "key": digest,
            "files": {
                str(path.relative_to(folder)): sha256_of(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file() and path.name != RECORD
            },
            "record": plain(record),
        }
        write_whole(folder / RECORD, json.dumps(content, indent=1, allow_nan=False))
        return json.loads(json.dumps(content["record"])), folder

    def clear(self) -> None:
        """Remove the folders of steps that this run did not use."""
        for folder in sorted((self.path / "steps").glob("*")):
            if folder not in self.used:
                shutil.rmtree(folder, ignore_errors=True)


def digest_of(key: Any) -> str:
    """SHA-256 of plain values, whatever the order of their keys.

    Example:
        >>> digest_of({"a": 1, "b": (2,)}) == digest_of({"b": [2], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(plain(key), sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seed_of(seed: int, step: str) -> int:
    """The seed of a step, from that of the recipe and the step's name.

    Example:
        >>> seed_of(0, "1-prune") != seed_of(0, "2-finetune")
        True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:4], "big")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _whole(folder: Path, known: Mapping[str, Any]) -> bool:
    """Whether all artefacts of a step are still what its record says."""
    files = known.get("files", {})
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == digest
        for name, digest in files.items()
    )
