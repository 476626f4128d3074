"""SHA-256 of large files, kept from run to run: a file that has not changed since is not read again."""

import hashlib
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from ditf_probe.files import write_text

VARIABLE = "DITF_PROBE_CACHE"
SMALLEST = 2**24
"""Bytes from which on a hash is kept; smaller files are hashed as quickly as their hash is looked up."""
_SETTLED = 2.0  # seconds; the coarsest clock of a file system, so that no later change has the same times


def cache_folder() -> Path:
    """Where hashes are kept: `$DITF_PROBE_CACHE`, else `ditf_probe` in the folder for caches of the platform.

    That is `$XDG_CACHE_HOME` or `~/.cache` on Linux, `~/Library/Caches` on macOS, and `%LOCALAPPDATA%` on Windows.
    """
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "ditf_probe"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it.

    That of a large file is kept in `cache_folder`, with all that its file system says of it: real path, inode, size,
    and the times of its last change and of the last change of its status, in nanoseconds. The latter moves with every
    write, whatever time a program gives the file afterwards. Where any of them differs, or the file was changed in the
    seconds before it was read, it is read anew the next time. A folder that cannot be written to costs time alone.
    """
    facts = _facts(path)
    if int(facts["size"]) < SMALLEST:
        return _read(path)
    name = hashlib.sha256(str(facts["path"]).encode()).hexdigest()[:32]
    kept = cache_folder() / "sha256" / f"{name}.json"
    with suppress(OSError, ValueError):
        values = json.loads(kept.read_text(encoding="utf-8"))
        known = values.pop("sha256", None) if isinstance(values, dict) else None
        if values == facts and isinstance(known, str):
            return known
    began = time.time()
    found = _read(path)
    last = max(int(facts["mtime_ns"]), int(facts["ctime_ns"])) / 1e9
    if _facts(path) == facts and last + _SETTLED < began:
        with suppress(OSError):
            write_text(kept, json.dumps(facts | {"sha256": found}))
    return found


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(path: Path) -> dict[str, str | int]:
    real = path.resolve()
    status = real.stat()
    return {
        "path": str(real),
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }
