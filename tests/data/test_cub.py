"""CUB-200-2011: a miniature of its tree written here, and the real one where `DITF_PROBE_CUB` names it."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditf_probe.data import CUB200, threshold_base
from ditf_probe.data.cub import PARTS
from ditf_probe.errors import InputError

SPECIES = ("001.Albatross", "002.Auklet", "003.Wren")
PER_SPECIES = 4
SIZE = (40, 30)


def shown(number: int) -> list[bool]:
    """Which parts of image `number` are visible: image 12 has but two, the others most."""
    if number == 12:
        return [part < 2 for part in range(15)]
    return [(number + part) % 5 != 0 for part in range(15)]


def place(number: int, part: int) -> tuple[float, float]:
    return (float((number * 3 + part * 2) % 40), float((number + part) % 30))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "CUB_200_2011"
    (folder / "parts").mkdir(parents=True)
    names, boxes, flags, parts = [], [], [], []
    for index in range(len(SPECIES) * PER_SPECIES):
        number, species = index + 1, SPECIES[index // PER_SPECIES]
        # Names are listed against their order, which must not matter.
        name = f"{species}/{species[4:]}_{99 - index:04d}_{index}.jpg"
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=95)
        names.append(f"{number} {name}")
        boxes.append(f"{number} 4.0 5.0 20.0 {10 + number}.0")
        flags.append(f"{number} {int(index % PER_SPECIES == 0)}")
        for part in range(15):
            x, y = place(number, part) if shown(number)[part] else (0.0, 0.0)
            parts.append(f"{number} {part + 1} {x} {y} {int(shown(number)[part])}")
    for file, lines in {"images.txt": names, "bounding_boxes.txt": boxes, "train_test_split.txt": flags}.items():
        (folder / file).write_text("\n".join(lines) + "\n")
    (folder / "parts/part_locs.txt").write_text("\n".join(parts) + "\n")
    return folder


def number_of(image_id: str) -> int:
    return int(image_id.rsplit("_", 1)[1].removesuffix(".jpg")) + 1


def test_pairs_stay_within_a_species(root: Path) -> None:
    dataset = CUB200(root, pairs_per_species=3)
    assert Counter(pair.category for pair in dataset) == {"001.Albatross": 3, "002.Auklet": 3, "003.Wren": 2}
    assert len({(pair.source.image_id, pair.target.image_id) for pair in dataset}) == 8
    for pair in dataset:
        assert pair.unit == pair.category
        for side in (pair.source, pair.target):
            number = number_of(side.image_id)
            assert number % PER_SPECIES != 1  # the first of each species is for training
            assert side.image_id.startswith(f"cub-200-2011/{pair.category}/")
            assert side.visible.tolist() == shown(number)
            assert side.size == (30, 40)
            expected = [place(number, part) if shown(number)[part] else (0, 0) for part in range(15)]
            assert [tuple(point) for point in side.keypoints.tolist()] == expected
            assert side.bbox.tolist() == [4, 5, 24, 15 + number]
        assert pair.source.image_id != pair.target.image_id
        assert int(pair.visible.sum()) >= 3
        target = number_of(pair.target.image_id)
        assert threshold_base(pair, dataset.threshold) == max(20, 10 + target)
    assert dataset.keypoint_names("001.Albatross") == PARTS
    sided = {PARTS[row] for group in dataset.keypoint_groups("") for row in group}
    assert sided == {"left eye", "right eye", "left leg", "right leg", "left wing", "right wing"}
    assert dataset.image(dataset[0].source.image_id).shape == (3, 30, 40)
    assert len(dataset.files()) == len(dataset.image_ids())
    with pytest.raises(IndexError):
        dataset[8]


def test_pairs_across_species(root: Path) -> None:
    dataset = CUB200(root, "all", "across", pairs_per_species=7)
    assert Counter(pair.unit for pair in dataset) == dict.fromkeys(SPECIES, 7)
    for pair in dataset:
        assert pair.category == "bird"
        assert pair.source.image_id.split("/")[1] == pair.unit != pair.target.image_id.split("/")[1]


def test_draws_depend_on_the_seed_and_nothing_else(root: Path) -> None:
    def pairs(**options: int) -> list[tuple[str, str]]:
        return [(pair.source.image_id, pair.target.image_id) for pair in CUB200(root, pairs_per_species=2, **options)]

    assert pairs() == pairs()
    assert any(pairs() != pairs(seed=seed) for seed in range(1, 6))
    before = pairs()
    lines = (root / "images.txt").read_text().splitlines()
    (root / "images.txt").write_text("\n".join(reversed(lines)))
    assert pairs() == before
    everything = {(p.source.image_id, p.target.image_id) for p in CUB200(root, pairs_per_species=99)}
    assert set(before) <= everything
    # Of the nine test photos, all but image 12 show enough in common.
    assert len(everything) == 3 * 2 + 3 * 2 + 2
    assert len(CUB200(root, pairs_per_species=99, min_common=1)) == 3 * 2 * 3
    assert len(CUB200(root, "train")) == 0


def line(file: str, number: int, text: bytes | None) -> Callable[[Path], None]:
    """Replaces a line, counted from 1, or takes it out."""

    def damage(root: Path) -> None:
        lines = (root / file).read_bytes().splitlines()
        lines[number - 1 : number] = [] if text is None else [text]
        (root / file).write_bytes(b"\n".join(lines))

    return damage


def spoil(content: bytes | None) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = next((root / "images/002.Auklet").glob("*_5.jpg"))
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return damage


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    ("images.txt line 6': 1 columns instead of 2", line("images.txt", 6, b"6")),
    ("images.txt line 6': not UTF-8", line("images.txt", 6, b"6 002.Auklet/caf\xe9.jpg")),
    ("'x.jpg' is not SPECIES/NAME", line("images.txt", 6, b"6 x.jpg")),
    ("image 5 or .* stands there twice", line("images.txt", 6, b"5 002.Auklet/x.jpg")),
    ("no such file", line("images.txt", 6, b"6 002.Auklet/x.jpg")),
    ("bounding_boxes.txt': has no line of image 6", line("bounding_boxes.txt", 6, None)),
    (r"bounding_boxes.txt line 6': empty box \(4, 5, 4, 21\)", line("bounding_boxes.txt", 6, b"6 4 5 0 16")),
    ("the box is not made of numbers", line("bounding_boxes.txt", 6, b"6 4 5 wide 16")),
    ("image 5 has two boxes", line("bounding_boxes.txt", 6, b"5 4 5 6 16")),
    ("train_test_split.txt line 6': not one flag", line("train_test_split.txt", 6, b"6 2")),
    ("part_locs.txt': has not 15 lines of image 6", line("parts/part_locs.txt", 80, None)),
    ("part 16 is not one of 1 to 15", line("parts/part_locs.txt", 80, b"6 16 1 1 1")),
    ("part 4 is not one of 1 to 15, each once", line("parts/part_locs.txt", 80, b"6 4 1 1 1")),
    ("visibility 3 is neither 0 nor 1", line("parts/part_locs.txt", 80, b"6 5 1 1 3")),
    ("the place is not made of numbers", line("parts/part_locs.txt", 80, b"6 5 one 1 1")),
    (r"keypoint \(90, 1\) outside the 40x30 image", line("parts/part_locs.txt", 80, b"6 5 90 1 1")),
    ("no such file", spoil(None)),
    ("no image or a damaged one", spoil(b"text")),
]


@pytest.mark.parametrize(("message", "damage"), DAMAGES, ids=[message for message, _ in DAMAGES])
def test_damage_is_named_and_left_out(root: Path, message: str, damage: Callable[[Path], None]) -> None:
    damage(root)
    with pytest.raises(InputError, match=message) as stopped:
        CUB200(root, pairs_per_species=99)
    assert "\n" not in str(stopped.value)
    dataset = CUB200(root, pairs_per_species=99, keep_going=True)
    assert str(dataset.problems[0]) == str(stopped.value)
    assert len(dataset.problems) <= 2  # the line, and what its image lacks then
    assert Counter(pair.category for pair in dataset) == {"001.Albatross": 6, "002.Auklet": 2, "003.Wren": 2}


def test_bad_arguments(root: Path, tmp_path: Path) -> None:
    cases = ({"split": "val"}, {"pairing": "all"}, {"pairs_per_species": 0}, {"min_common": 16}, {"seed": -1})
    for options in cases:
        with pytest.raises(InputError, match=f"`{next(iter(options))}`"):
            CUB200(root, **options)
    with pytest.raises(InputError, match=r"holds no images\.txt"):
        CUB200(tmp_path)
    (root / "parts/part_locs.txt").unlink()
    with pytest.raises(InputError, match=r"part_locs\.txt': no such file"):
        CUB200(root, keep_going=True)


def test_a_cut_photo_is_found_when_it_is_decoded(root: Path) -> None:
    dataset = CUB200(root)
    file = dataset.files()[0]
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match="damaged"):
        dataset.image(dataset[0].source.image_id)


def test_the_real_counts() -> None:
    if "DITF_PROBE_CUB" not in os.environ:
        pytest.skip("needs CUB-200-2011: set DITF_PROBE_CUB to its folder CUB_200_2011")
    dataset = CUB200(os.environ["DITF_PROBE_CUB"])
    assert len({pair.category for pair in dataset}) == 200
    assert len(dataset) == 2000
    lines = (Path(os.environ["DITF_PROBE_CUB"]) / "train_test_split.txt").read_text().split()[1::2]
    assert Counter(lines) == {"1": 5994, "0": 5794}
