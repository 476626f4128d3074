"""Archives written here: extracted, resumed, and refused."""

import io
import os
import stat
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from ditf_probe.commands import main
from ditf_probe.data import archives
from ditf_probe.data.archives import extract
from ditf_probe.errors import InputError

FILES = {"set/a.jpg": b"aaa" * 5000, "set/more/b.txt": b"b", "set/empty": b""}
KINDS = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]


def write_archive(path: Path, files: dict[str, bytes] | None = None) -> Path:
    files = FILES if files is None else files
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    mode: Any = "w:" + {"tar": ""}.get(path.suffix[1:], path.suffix[1:])
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tree(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_extracts_and_resumes(tmp_path: Path, kind: str) -> None:
    archive, root = write_archive(tmp_path / f"data.{kind}"), tmp_path / "out"
    assert [(r.written, r.kept) for r in extract([archive], root)] == [(3, 0)]
    assert tree(root) == FILES
    kept = (root / "set/a.jpg").stat().st_ino
    (root / "set/more/b.txt").unlink()
    (root / "set/empty").write_bytes(b"longer")
    assert [(r.written, r.kept) for r in extract([archive], root)] == [(2, 1)]
    assert tree(root) == FILES
    assert (root / "set/a.jpg").stat().st_ino == kept
    assert (root / "set/a.jpg").stat().st_mode & 0o777 == 0o644


def test_a_changed_file_of_the_same_size_is_seen_by_its_crc(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "data.zip")
    extract([archive], tmp_path / "out")
    (tmp_path / "out/set/more/b.txt").write_bytes(b"x")
    assert extract([archive], tmp_path / "out")[0].written == 1
    assert tree(tmp_path / "out") == FILES


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archives_are_named(tmp_path: Path, kind: str) -> None:
    content = {"a.bin": os.urandom(30_000), "b.bin": os.urandom(30_000)}
    archive = write_archive(tmp_path / f"data.{kind}", content)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:40_000])
    with pytest.raises(InputError, match=rf"`archive` is '.*data\.{kind}': ") as error:
        extract([archive], tmp_path / "out")
    assert "get it again" in str(error.value)
    assert "\n" not in str(error.value)
    assert not any(name.startswith(".") for name in os.listdir(tmp_path / "out"))
    archive.write_bytes(whole)
    extract([archive], tmp_path / "out")
    assert tree(tmp_path / "out") == content


def test_a_wrong_crc_leaves_nothing_half_written(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "data.zip", {"good": b"good", "bad": b"0123456789" * 100})
    with zipfile.ZipFile(archive) as opened:
        offset = opened.getinfo("bad").header_offset + 30 + len("bad")
    changed = bytearray(archive.read_bytes())
    changed[offset + 5] ^= 0xFF
    archive.write_bytes(bytes(changed))
    with pytest.raises(InputError, match=r"data\.zip': is damaged"):
        extract([archive], tmp_path / "out")
    assert tree(tmp_path / "out") == {"good": b"good"}


EVIL = ["/etc/evil", "../evil", "a/../../evil", "C:/evil", "C:evil", "..\\evil", "\\evil", "a\\b"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", EVIL)
def test_paths_stay_inside_the_folder(tmp_path: Path, kind: str, name: str) -> None:
    archive = write_archive(tmp_path / f"data.{kind}", {"good": b"good", name: b"evil"})
    message = "backslash" if name == "a\\b" else "outside the folder; do not trust"
    with pytest.raises(InputError, match=message):
        extract([archive], tmp_path / "inner" / "out")
    # Looked at before anything is written.
    assert tree(tmp_path) == {archive.name: archive.read_bytes()}


def test_names_that_only_look_odd_are_fine(tmp_path: Path) -> None:
    content = {"PairAnnotation/1-2:cow.json": b"{}", "..a/b..": b"1", "1-2:cow.json": b"2", "é/ü.jpg": b"3"}
    for kind in ("zip", "tar"):
        extract([write_archive(tmp_path / f"data.{kind}", content)], tmp_path / kind)
        assert tree(tmp_path / kind) == content


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "data.tar", {os.fsdecode(b"caf\xe9.jpg"): b"x"})
    with pytest.raises(InputError, match=r"'caf\\+udce9\.jpg' has a name that is not UTF-8"):
        extract([archive], tmp_path / "out")


def write_links(path: Path, *links: tuple[str, str, bytes], files: dict[str, bytes] | None = None) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in (files or {}).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


def test_links_inside_the_folder_are_made(tmp_path: Path) -> None:
    links = [("b/soft", "../a/file", tarfile.SYMTYPE), ("b/hard", "a/file", tarfile.LNKTYPE)]
    archive = write_links(tmp_path / "data.tar", *links, files={"a/file": b"x"})
    root = tmp_path / "out"
    for _ in range(2):
        extract([archive], root)
        assert os.readlink(root / "b/soft") == "../a/file"
        assert (root / "b/soft").read_bytes() == b"x"
        assert (root / "b/hard").samefile(root / "a/file")


@pytest.mark.parametrize(
    ("name", "target", "kind"),
    [
        ("soft", "/etc/passwd", tarfile.SYMTYPE),
        ("soft", "a\\..\\..\\x", tarfile.SYMTYPE),
        ("soft", "../secret", tarfile.SYMTYPE),
        ("a/soft", "../../secret", tarfile.SYMTYPE),
        ("a/soft", "b/../../../secret", tarfile.SYMTYPE),
        ("a/hard", "../secret", tarfile.LNKTYPE),
        ("hard", "/etc/passwd", tarfile.LNKTYPE),
    ],
)
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str, target: str, kind: bytes) -> None:
    (tmp_path / "secret").write_text("secret")
    archive = write_links(tmp_path / "data.tar", (name, target, kind), files={"good": b"good"})
    with pytest.raises(InputError, match="points outside the folder"):
        extract([archive], tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_links_of_zip_archives_are_seen(tmp_path: Path) -> None:
    for target, message in (("../secret", "points outside"), ("a", "")):
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            archive.writestr("a", "x")
            info = zipfile.ZipInfo("soft")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
        if message:
            with pytest.raises(InputError, match=message):
                extract([tmp_path / "data.zip"], tmp_path / "out")
        else:
            extract([tmp_path / "data.zip"], tmp_path / "out")
            assert os.readlink(tmp_path / "out" / "soft") == "a"


def test_a_link_that_stands_there_already_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "victim").write_text("whole")
    root = tmp_path / "out"
    root.mkdir()
    (root / "set").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="would leave the folder through a link; remove the link"):
        extract([write_archive(tmp_path / "data.zip")], root)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (root / "set").unlink()
    (root / "set").mkdir()
    (root / "set/a.jpg").symlink_to(tmp_path / "victim")
    extract([tmp_path / "data.zip"], root)
    assert (tmp_path / "victim").read_text() == "whole"
    assert tree(root) == FILES


def test_two_links_do_not_lead_out_together(tmp_path: Path) -> None:
    """Each stays inside by its words; with the first one in place the second one would not."""
    for number, (name, target) in enumerate([("out", "d/../x"), ("d/out", "../x")]):
        links = [("d", ".", tarfile.SYMTYPE), (name, target, tarfile.SYMTYPE)]
        archive, root = write_links(tmp_path / "data.tar", *links), tmp_path / str(number)
        with pytest.raises(InputError, match="points outside the folder"):
            extract([archive], root)
        assert not (root / "out").is_symlink()


def test_devices_and_pipes_are_refused(tmp_path: Path) -> None:
    archive = write_links(tmp_path / "data.tar", ("pipe", "", tarfile.FIFOTYPE))
    with pytest.raises(InputError, match="'pipe' is a device or pipe"):
        extract([archive], tmp_path / "out")


def test_too_little_space_is_said_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage(10, 9, 2**26 + 14_000))
    archive = write_archive(tmp_path / "data.zip")
    with pytest.raises(InputError, match=r"needs 0\.00 GiB in .*, where 0\.06 GiB are free; free some"):
        extract([archive], tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_encrypted_archives_are_named(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "data.zip", {"a": b"secret"})
    content = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    archive.write_bytes(bytes(content))
    with pytest.raises(
        InputError, match=r"data\.zip': cannot be extracted \(.*encrypted.*\); unpack it by other means"
    ):
        extract([archive], tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no zip or tar archive"):
        extract([tmp_path / "a.zip"], tmp_path / "out")
    good = write_archive(tmp_path / "good.zip")
    with pytest.raises(InputError, match=r"`archive` is '.*b\.zip': no such file"):
        extract([good, tmp_path / "b.zip"], tmp_path / "out")
    assert tree(tmp_path / "out") == {}
    with pytest.raises(InputError, match="`root`"):
        extract([good], good)


def test_the_command_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = write_archive(tmp_path / "ap.zip", {"ap-10k/annotations/ap10k-test-split1.json": b"{}"})
    main(["prepare", str(archive), "--root", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{archive}: files written: 1, already there: 0",
        f"next: ditf-probe verify ap10k {tmp_path / 'out' / 'ap-10k'}",
    ]
    other = write_archive(tmp_path / "other.tar")
    main(["prepare", str(other), "--root", str(tmp_path / "elsewhere")])
    assert "verify DATASET" in capsys.readouterr().out
    other.write_bytes(b"x")
    with pytest.raises(SystemExit) as end:
        main(["prepare", str(other), "--root", str(tmp_path / "elsewhere")])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
