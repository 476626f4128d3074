"""Hashes of large files are kept, and never those of a file that has changed."""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ditf_probe.backbones import known_hashes
from ditf_probe.backbones.fingerprint import file_sha256, files_sha256

Reads = list[Path]


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reads:
    """The files that are read, with a cache in a folder of the test, for files of any size."""
    seen: Reads = []
    read = known_hashes._read

    def recorded(path: Path) -> str:
        seen.append(path)
        return read(path)

    monkeypatch.setenv("DITF_PROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_hashes, "SMALLEST", 1)
    monkeypatch.setattr(known_hashes, "_SETTLED", -1.0)  # the files of the test are new
    monkeypatch.setattr(known_hashes, "_read", recorded)
    return seen


def expected(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_unchanged_file_is_read_once(tmp_path: Path, reads: Reads) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"abc" * 1000)
    (tmp_path / "link").symlink_to(file)
    for path in (file, file, tmp_path / "link"):
        assert file_sha256(path) == expected(file)
    assert reads == [file]
    lines = f"{expected(file)}  weights.safetensors\n"
    assert files_sha256([file], tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    assert len(reads) == 1


def rewrite(file: Path) -> None:
    file.write_bytes(b"abd" * 1000)


def rewrite_with_old_times(file: Path) -> None:
    """Of the same size, and with the time of the file before."""
    before = file.stat()
    file.write_bytes(b"abd" * 1000)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(file: Path) -> None:
    """Another file moves there, with the same times as far as a program can set them."""
    before = file.stat()
    other = file.with_suffix(".new")
    other.write_bytes(b"abd" * 1000)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, file)


def patch_one_byte(file: Path) -> None:
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(1500)
        opened.write(b"z")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, rewrite_with_old_times, replace, patch_one_byte])
def test_a_changed_file_is_read_again(tmp_path: Path, reads: Reads, change: Callable[[Path], None]) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"abc" * 1000)
    first = file_sha256(file)
    # The coarse clock of a file system may tick slower than this test runs, which is what the grace is for.
    status = file.stat()
    while (tmp_path / "clock").write_bytes(b"") or (tmp_path / "clock").stat().st_ctime_ns == status.st_ctime_ns:
        pass
    change(file)
    assert file_sha256(file) == expected(file) != first
    assert len(reads) == 2
    assert file_sha256(file) == expected(file)
    assert len(reads) == 2


def test_a_file_that_was_just_written_is_not_kept(
    tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_hashes, "_SETTLED", 60.0)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"abc")
    assert file_sha256(file) == file_sha256(file) == expected(file)
    assert len(reads) == 2
    assert not (tmp_path / "cache").exists()


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"abc")
    read = known_hashes._read

    def slow(path: Path) -> str:
        found = read(path)
        path.write_bytes(b"abcd")
        return found

    monkeypatch.setattr(known_hashes, "_read", slow)
    file_sha256(file)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"text"'])
def test_a_damaged_note_is_passed_over(tmp_path: Path, reads: Reads, text: str) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"abc")
    file_sha256(file)
    (note,) = (tmp_path / "cache").rglob("*.json")
    note.write_text(text)
    assert file_sha256(file) == expected(file)
    assert len(reads) == 2
    assert file_sha256(file) == expected(file)
    assert len(reads) == 2, "and written anew"


def test_without_a_folder_it_takes_time_alone(tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("DITF_PROBE_CACHE", str(tmp_path / "occupied"))
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"abc")
    assert file_sha256(file) == file_sha256(file) == expected(file)
    assert len(reads) == 2


def test_small_files_leave_no_note(tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_hashes, "SMALLEST", 4)
    (tmp_path / "small").write_bytes(b"abc")
    assert file_sha256(tmp_path / "small") == expected(tmp_path / "small")
    assert not (tmp_path / "cache").exists()


def test_where_hashes_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DITF_PROBE_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert known_hashes.cache_folder() == tmp_path / "ditf_probe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert known_hashes.cache_folder() == tmp_path / ".cache" / "ditf_probe"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert known_hashes.cache_folder() == tmp_path / "Library" / "Caches" / "ditf_probe"
    monkeypatch.setenv("DITF_PROBE_CACHE", "~/here")
    assert known_hashes.cache_folder() == tmp_path / "here"
