"""TSS: a miniature of its tree written here, and the real one where `DITF_PROBE_TSS` names it."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data import TSS, threshold_base
from ditf_probe.errors import InputError

SIZES = {1: (24, 32), 2: (30, 20)}  # height, width


def write_pair(folder: Path, seed: int, flip: str = "0") -> None:
    """A pair whose masks are rectangles; a corner of each has no flow and some flow leads out of the other image."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number, (height, width) in SIZES.items():
        other_height, other_width = SIZES[3 - number]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"image{number}.png")
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[4:20, 3:18] = 255
        Image.fromarray(mask).save(folder / f"mask{number}.png")
        ys, xs = np.mgrid[:height, :width]
        places = np.stack([xs * other_width / 16 - 1.5, ys * other_height / height + 0.25], axis=-1)
        flow = (places - np.stack([xs, ys], axis=-1)).astype(np.float32)
        flow[4:8, 3:6] = 1e10
        flow[9, 9, 1] = np.nan
        assert cv2.writeOpticalFlow(str(folder / f"flow{number}.flo"), flow)
    (folder / "flip_gt.txt").write_text(flip)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, (name, flip) in enumerate({"FG3DCar/b": "0", "FG3DCar/a": "1\n", "JODS/c": "0", "PASCAL/d": "0"}.items()):
        write_pair(tmp_path / "TSS_CVPR2016" / name, seed, flip)
    return tmp_path / "TSS_CVPR2016"


def reference(folder: Path, source: int) -> dict[tuple[int, int], tuple[float, float]]:
    """Foreground pixels and their places, by a loop over bytes."""
    (height, width), (other_height, other_width) = SIZES[source], SIZES[3 - source]
    content = (folder / f"flow{source}.flo").read_bytes()
    assert np.frombuffer(content[:4], np.float32)[0] == np.float32(202021.25)
    assert np.frombuffer(content[4:12], np.int32).tolist() == [width, height]
    values = np.frombuffer(content[12:], np.float32)
    mask = np.asarray(Image.open(folder / f"mask{source}.png"))
    found = {}
    for y in range(height):
        for x in range(width):
            dx, dy = values[2 * (y * width + x)], values[2 * (y * width + x) + 1]
            if mask[y, x] and abs(dx) < 1e9 and abs(dy) < 1e9:
                to = (float(np.float32(x) + dx), float(np.float32(y) + dy))
                if -0.5 <= to[0] <= other_width - 0.5 and -0.5 <= to[1] <= other_height - 0.5:
                    found[x, y] = to
    return found


def test_keypoints_are_pixels_with_a_place(root: Path) -> None:
    dataset = TSS(root, num_keypoints=10_000)
    assert [pair.unit for pair in dataset] == [
        n for n in ("FG3DCar/a", "FG3DCar/b", "JODS/c", "PASCAL/d") for _ in "12"
    ]
    assert [pair.category for pair in dataset] == ["FG3DCar"] * 4 + ["JODS"] * 2 + ["PASCAL"] * 2
    assert [pair.attributes["mirrored"] for pair in dataset] == ["yes"] * 2 + ["no"] * 6
    for pair in dataset:
        source = 1 + pair.index % 2
        expected = reference(root / pair.unit, source)
        assert (pair.source.size, pair.target.size) == (SIZES[source], SIZES[3 - source])
        found = {
            (int(x), int(y)): (to[0], to[1])
            for (x, y), to in zip(pair.source.keypoints.tolist(), pair.target.keypoints.tolist(), strict=True)
        }
        assert found == expected
        assert pair.visible.all()
        assert threshold_base(pair, dataset.threshold) == max(SIZES[3 - source])


def test_drawn_keypoints_are_a_part_that_repeats(root: Path) -> None:
    whole, drawn, again = (TSS(root, num_keypoints=count) for count in (999, 12, 12))
    other = TSS(root, num_keypoints=12, seed=1)
    for pair, same, different, every in zip(drawn, again, other, whole, strict=True):
        assert pair.source.keypoints.shape == (12, 2)
        assert pair.source.keypoints.equal(same.source.keypoints)
        assert not pair.source.keypoints.equal(different.source.keypoints)
        assert {*map(tuple, pair.source.keypoints.tolist())} <= {*map(tuple, every.source.keypoints.tolist())}
        assert pair.target.bbox.equal(every.target.bbox)
    part = TSS(root, subsets=["JODS"], num_keypoints=12, direction="backward")
    assert len(part) == 1
    assert part[0].source.keypoints.equal(drawn[5].source.keypoints)


def test_the_target_of_mirrored_pairs_is_a_mirror_image(root: Path) -> None:
    dataset = TSS(root)
    for index, number in ((0, 2), (1, 1)):
        pixels = np.asarray(Image.open(root / f"FG3DCar/a/image{number}.png"))
        shown = dataset.image(dataset[index].target.image_id).permute(1, 2, 0).numpy()
        assert (shown == pixels[:, ::-1]).all()
        assert dataset[1 - index].source.image_id + "/mirrored" == dataset[index].target.image_id
    assert (dataset[2].source.image_id, dataset[2].target.image_id) == (
        dataset[3].target.image_id,
        dataset[3].source.image_id,
    )


def test_copies_share_an_id(root: Path) -> None:
    for end in ("PASCAL/d", "JODS/c"):
        (root / end / "image2.png").write_bytes((root / "FG3DCar/a/image2.png").read_bytes())
    dataset = TSS(root)
    # The pair that is mirrored uses each of its photos as it is and mirrored.
    assert len(dataset.files()) == 6
    assert len(dataset.image_ids()) == 6 + 2
    pixels = np.asarray(Image.open(root / "JODS/c/image2.png"))
    assert (dataset.image(dataset[4].target.image_id).permute(1, 2, 0).numpy() == pixels).all()


def cut(name: str, content: bytes | None) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / "JODS/c" / name
        found = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(found[:-8] if content == b"cut" else content)

    return damage


def blank_mask(root: Path) -> None:
    for number, size in SIZES.items():
        Image.new("L", size[::-1]).save(root / f"JODS/c/mask{number}.png")


def small_mask(root: Path) -> None:
    Image.new("L", (5, 5), 255).save(root / "JODS/c/mask1.png")


def other_flow(root: Path) -> None:
    (root / "JODS/c/flow1.flo").write_bytes((root / "JODS/c/flow2.flo").read_bytes())


DAMAGES: list[tuple[str, Callable[[Path], None], int]] = [
    ("image1.png': no such file", cut("image1.png", None), 1),
    ("image2.png': no image", cut("image2.png", b"text"), 1),
    ("flow1.flo': no such file", cut("flow1.flo", None), 1),
    ("flow1.flo': no flow file or a damaged one", cut("flow1.flo", b"cut"), 1),
    ("flow2.flo': no flow file or a damaged one", cut("flow2.flo", b"text"), 1),
    (r"flow1.flo': has size \(30, 20\) where its image has \(24, 32\)", other_flow, 1),
    ("mask1.png': no image", cut("mask1.png", b""), 1),
    ("mask1.png': has size", small_mask, 1),
    ("no pixel of mask1.png has a place", blank_mask, 2),
    ("flip_gt.txt': cannot be read", cut("flip_gt.txt", None), 1),
    ("flip_gt.txt': holds b'2' instead of 0 or 1", cut("flip_gt.txt", b"2"), 1),
]


@pytest.mark.parametrize(("message", "damage", "count"), DAMAGES, ids=[message for message, _, _ in DAMAGES])
def test_damage_is_named_and_left_out(root: Path, message: str, damage: Callable[[Path], None], count: int) -> None:
    damage(root)
    with pytest.raises(InputError, match=message) as stopped:
        TSS(root)
    assert "\n" not in str(stopped.value)
    dataset = TSS(root, keep_going=True)
    assert len(dataset.problems) == count
    assert str(dataset.problems[0]) == str(stopped.value)
    assert {pair.unit for pair in dataset} >= {"FG3DCar/a", "FG3DCar/b", "PASCAL/d"}
    assert [pair.index for pair in dataset] == list(range(len(dataset)))


def test_bad_arguments_and_names(root: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"direction": "up"}, "`direction`"),
        ({"subsets": ["CARS"]}, "`subsets` is 'CARS': use one of FG3DCar, JODS, PASCAL"),
        ({"num_keypoints": 0}, "`num_keypoints`"),
        ({"seed": -1}, "`seed`"),
    ):
        with pytest.raises(InputError, match=message):
            TSS(root, **options)
    with pytest.raises(InputError, match="holds no FG3DCar"):
        TSS(tmp_path)
    os.rename(os.fsencode(root / "JODS/c"), os.fsencode(root / "JODS") + b"/caf\xe9")
    dataset = TSS(root, keep_going=True)
    assert len(dataset) == 6
    assert ["the name is not UTF-8" in str(problem) for problem in dataset.problems] == [True]
    str(dataset.problems[0]).encode()


def test_the_real_counts() -> None:
    if "DITF_PROBE_TSS" not in os.environ:
        pytest.skip("needs TSS: set DITF_PROBE_TSS to its folder")
    root = Path(os.environ["DITF_PROBE_TSS"])
    dataset = TSS(root)
    assert Counter(pair.category for pair in dataset) == {"FG3DCar": 390, "JODS": 162, "PASCAL": 248}
    assert all(torch.isfinite(pair.target.keypoints).all() for pair in dataset)
    # Places lie on the object of the target; in mirrored pairs on that of the mirror image.
    hits: dict[str, list[float]] = {"no": [], "yes": []}
    for pair in dataset:
        mask = np.asarray(Image.open(root / pair.unit / f"mask{2 - pair.index % 2}.png").convert("L")) > 127
        mask = mask[:, ::-1] if pair.attributes["mirrored"] == "yes" else mask
        x, y = pair.target.keypoints.round().long().T.numpy()
        hits[pair.attributes["mirrored"]].append(float(mask[y, x].mean()))
    assert min(float(np.mean(values)) for values in hits.values()) > 0.8
