"""Files that are either whole or not there, and folders that are known to be writable beforehand."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ditf_probe.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Writes a file under a temporary name and renames it at the end: a kill leaves the old file or the new one.

    Args:
        path: Where the file shall be; its folder is created.

    Yields:
        The temporary path to write to, in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o644)  # mkstemp makes it private, a result is for everyone who may read the folder
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def ensure_writable(folder: str | Path, argument: str) -> Path:
    """Creates a folder and proves that a file can be written there, before anything expensive runs.

    Args:
        folder: The folder.
        argument: Name of the argument that it came from, for the error.

    Returns:
        The folder as a path.

    Raises:
        InputError: It cannot be created or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(argument, str(folder), f"cannot be written to ({reason}), name another folder") from error
    return path


def is_checkpoint(path: Path) -> bool:
    """Whether a file is there and a whole checkpoint of a training."""
    import torch  # slow to import

    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of nearly any kind, from bytes that are no pickle
        return False
    return True
