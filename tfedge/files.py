"""Write files whole or not at all; find modules where the user works."""

import contextlib
import errno
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tfedge.errors import FileWriteError

FULL = "the disk is full, or the file larger than this process may write. Free some space"


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends, and vanishes when it fails.

    The temporary file lies in the same folder and keeps the suffix of `path`, so that savers which
    look at the suffix work.

    Args:
        path: Where the file is to stand. Its folder is made if it does not exist.

    Raises:
        FileWriteError: The disk is full, the folder is read-only, and the like.

    Example:
        >>> with writing("out/report.json") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("{}")
    """
    target = Path(path)
    temporary = None
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        made.clear()
    except OSError as error:
        raise FileWriteError(_write_failure(target, error)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        for folder in made:  # empty, or never made
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether a file can be made at `path`. Leaves nothing there.

    Args:
        path: Where the file is to stand. Its folder need not exist yet.

    Raises:
        FileWriteError: It is a folder, or its folder cannot be made or written to.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        nearest = next(folder for folder in target.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise FileWriteError(_write_failure(target, error)) from error


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write `content` to `path` whole or not at all.

    Args:
        path: Where the file is to stand.
        content: Bytes, or text that is written as UTF-8.

    Returns:
        The path.

    Raises:
        FileWriteError: The file could not be written; what stood at `path` is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


@contextlib.contextmanager
def working_directory_importable() -> Iterator[None]:
    """Let modules in the working directory be imported inside the block, after all others."""
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
        importlib.invalidate_caches()
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room for a file."""
    full = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    return isinstance(error, OSError) and error.errno in full


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _write_failure(target: Path, error: OSError) -> str:
    if isinstance(error, FileWriteError):
        return str(error)
    reasons = {
        errno.ENOSPC: "the disk is full. Free some space, or choose another place",
        errno.EFBIG: "the file would be larger than this process may write. Raise `ulimit -f`",
        errno.EACCES: "the folder may not be written to. Choose another place",
        errno.EROFS: "the file system is read-only. Choose another place",
        errno.EISDIR: "it is a folder. Name a file in it",
        errno.EEXIST: "a part of this path is a file, not a folder. Choose another place",
        errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another place",
        errno.ENAMETOOLONG: "its name is too long. Choose a shorter one",
    }
    other = f"{error.strerror or error}. Choose another place"
    reason = reasons.get(error.errno or 0, other)
    return f"Could not write `{target}`: {reason}. Nothing was written there."
