"""Verification finds what was damaged on purpose, says it in one line each, and counts the rest."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ditf_probe.commands import main
from ditf_probe.data.catalogue import CATALOGUE, dataset_builder, recognise
from ditf_probe.data.verification import check_file, verify
from ditf_probe.errors import InputError

HEADER = "image,category,keypoint,x,y,visible,x0,y0,x1,y1"


def write_photo(file: Path, seed: int = 0, size: tuple[int, int] = (48, 64)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, quality=95)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five images of one category with one keypoint each."""
    for seed in range(5):
        write_photo(tmp_path / f"{seed}.jpg", seed)
    write_table(tmp_path, [f"{n}.jpg,cat,nose,5,5,1,,,," for n in range(5)])
    return tmp_path


def write_table(root: Path, rows: list[str]) -> None:
    (root / "keypoints.csv").write_text("\n".join([HEADER, *rows]) + "\n")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1500])


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    """Exit code, problems and the report of the command."""
    code = 0
    try:
        main(["verify", *words])
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr()
    return code, [line for line in shown.err.splitlines() if line.startswith("error: ")], shown.out


def test_a_whole_data_set(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, problems, report = run(capsys, "keypoint-folder", str(root), "--decode")
    assert (code, problems) == (0, [])
    assert report == f"keypoint-folder in {root}: files: 5, pairs: 20, images: 5, keypoints: 20; problems: 0\n"
    drawn = run(capsys, "keypoint-folder", str(root), "--set", "num_pairs=3", "--set", "seed=4")[2]
    assert "pairs: 3" in drawn


def test_every_damaged_file_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(root / "1.jpg")
    truncate(root / "3.jpg")
    assert run(capsys, "keypoint-folder", str(root))[0] == 0  # headers are whole
    code, problems, report = run(capsys, "keypoint-folder", str(root), "--decode")
    assert code == 2
    assert [f"{n}.jpg" in line for n, line in zip((1, 3), problems, strict=True)] == [True, True]
    assert report.endswith(": files: 5; problems: 2\n")
    code, problems, report = run(capsys, "keypoint-folder", str(root), "--decode", "--keep-going")
    assert (code, len(problems)) == (2, 2)
    assert "files: 5, pairs: 20, images: 5, keypoints: 20; problems: 2" in report


def test_phases_and_keep_going(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight mistakes, seven of them in the annotations; with --keep-going the rest is whole."""
    (root / "note.jpg").write_text("no image")
    write_photo(root / "9.jpg", 9)
    truncate(root / "4.jpg")
    rows = [
        *(f"{n}.jpg,cat,nose,5,5,1,,,," for n in range(5)),
        "missing.jpg,cat,nose,1,1,1,,,,",  # no such image
        "note.jpg,cat,nose,1,1,1,,,,",  # no image
        "9.jpg,cat,nose,500,1,1,,,,",  # outside
        "0.jpg,cat,nose,1,1,1,,,,",  # twice
        "0.jpg,cat,tail,one,1,1,,,,",  # no number
        "0.jpg,cat,tail,1,1",  # too few cells
        "1.jpg,dog,tail,1,1,1,,,,",  # another category
        "1.jpg,cat,tail,999,999,0,,,,",  # zero visibility: missing, not bad
    ]
    write_table(root, rows)
    code, problems, report = run(capsys, "keypoint-folder", str(root), "--decode")
    assert (code, len(problems)) == (2, 7)
    assert "nothing counted; problems: 7" in report
    code, problems, report = run(capsys, "keypoint-folder", str(root), "--decode", "--keep-going")
    assert (code, len(problems)) == (2, 8)
    assert "files: 5, pairs: 20, images: 5, keypoints: 20; problems: 8" in report
    for text in ("missing.jpg", "note.jpg", "9.jpg", "line 10", "line 11", "line 12", "line 13", "4.jpg"):
        assert sum(text in line for line in problems) == 1, text


def test_empty_boxes_and_wrong_columns(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(root, [f"{n}.jpg,cat,nose,5,5,1,1,1,{n},9" for n in range(5)])
    code, problems, report = run(capsys, "keypoint-folder", str(root), "--keep-going")
    assert (code, len(problems)) == (2, 2)
    assert "empty box of -1 x 8 pixels" in problems[0]
    assert "pairs: 6" in report
    (root / "keypoints.csv").write_text("image,category,keypoint,x,z\n")
    code, problems, _ = run(capsys, "keypoint-folder", str(root), "--keep-going")
    assert (code, len(problems)) == (2, 1)
    assert "unknown column 'z'; the columns are image, category, keypoint, x, y" in problems[0]


def test_names_that_are_not_utf8(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        write_photo(root / name, 7)
    except OSError:
        pytest.skip("this file system allows UTF-8 names only")
    with pytest.raises(InputError, match="its name is not UTF-8; rename the file"):
        check_file(root / name)
    code, problems, report = run(capsys, "photos", str(root), "--set", "num_pairs=4", "--keep-going")
    assert (code, len(problems)) == (2, 1)
    assert "caf\\udce9.jpg" in problems[0]
    assert "files: 5, pairs: 4" in report


def test_photos_without_labels(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(root / "2.jpg")
    code, problems, report = run(capsys, "photos", str(root), "--set", "num_pairs=5", "--decode", "--keep-going")
    assert (code, len(problems)) == (2, 1)  # named once, though the pairs meet it again
    assert "2.jpg" in problems[0]
    assert "files: 5" in report


def test_sizes_are_compared_with_the_annotations(tmp_path: Path) -> None:
    class OneFile:
        problems = ()

        def files(self) -> tuple[Path, ...]:
            return (tmp_path / "a.png",)

        def counts(self) -> dict[str, int]:
            return {"sequences": 1}

        def sizes(self) -> dict[Path, tuple[int, int]]:
            return {tmp_path / "a.png": (9, 8)}

    write_photo(tmp_path / "a.png", size=(8, 9))
    found = verify(OneFile, keep_going=True)
    assert found.counts == {"files": 1, "sequences": 1}
    assert "the image has 9x8 pixels, its annotation says 8x9" in str(found.problems[0])


def test_other_files_must_be_readable(tmp_path: Path) -> None:
    (tmp_path / "a.mat").touch()
    with pytest.raises(InputError, match=r"a\.mat': is empty; restore it"):
        check_file(tmp_path / "a.mat")
    (tmp_path / "a.mat").write_text("x")
    check_file(tmp_path / "a.mat")
    with pytest.raises(InputError, match=r"b\.mat': cannot be read \(No such file"):
        check_file(tmp_path / "b.mat")


def test_a_folder_that_cannot_be_read_is_one_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, problems, report = run(capsys, "pf-willow", str(tmp_path / "nowhere"))
    assert (code, len(problems)) == (2, 1)
    assert "nothing counted; problems: 1" in report


WRONG_WORDS: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "name": (lambda root: ["nothing", str(root)], "`dataset` is 'nothing': use one of ade20k"),
    "module": (lambda root: ["no.such.Class", str(root)], "cannot be imported"),
    "function": (lambda root: ["ditf_probe.data.pairs.threshold_base", str(root)], "is no class"),
    "no root": (lambda root: ["ditf_probe.data.SyntheticPairs", str(root)], "has no folder to read"),
    "argument": (lambda root: ["keypoint-folder", str(root), "--set", "pairs=3"], "use NAME=VALUE with a name of"),
    "no value": (lambda root: ["keypoint-folder", str(root), "--set", "seed"], "use NAME=VALUE"),
    "type": (lambda root: ["keypoint-folder", str(root), "--set", "seed=many"], "of another type than seed has"),
    "needed": (lambda root: ["coco", str(root)], "coco needs it; give it with --set annotations=VALUE"),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_words_are_named(root: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = WRONG_WORDS[case]
    code, problems, report = run(capsys, *words(root))
    assert (code, len(problems), report) == (2, 1, "")
    assert message in problems[0]


def test_any_class_can_be_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, report = run(capsys, "ditf_probe.data.KeypointFolder", str(root))
    assert (code, "pairs: 20" in report) == (0, True)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_name_of_the_catalogue_has_a_class(name: str, tmp_path: Path) -> None:
    """The class is found and refuses an empty folder in one line."""
    settings = {"coco": ["annotations=a.json"], "mask-folder": ["classes=2"]}.get(name, [])
    build = dataset_builder(name, tmp_path, settings)
    with pytest.raises(InputError):
        build()
    entry: Any = CATALOGUE[name]
    if entry.sign is not None:
        (tmp_path / "inner" / entry.sign).mkdir(parents=True)
        assert recognise(tmp_path) == (name, tmp_path / "inner")


def test_real_slices(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (shared_data / "ap10k-mini").is_dir():
        pytest.skip("needs AP-10K")
    words = ["--set", "parts=[test]", "--set", "kind=cross-family", "--decode"]
    code, problems, report = run(capsys, "ap10k", str(shared_data / "ap10k-mini"), *words)
    assert (code, problems) == (0, [])
    assert "files: 2, pairs: 1, images: 2, keypoints: 16; problems: 0" in report
    # The three official files are expected; with only one of them nothing is lost, and the lack is reported.
    words = ["--set", "kind=intra-species", "--keep-going"]
    code, problems, report = run(capsys, "ap10k", str(shared_data / "ap10k-mini"), *words)
    assert (code, len(problems)) == (2, 3)
    assert "pairs: 0" in report
