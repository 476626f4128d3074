"""DAVIS: a miniature of its tree written here, and the real slice where it is present."""

import os
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data.davis import DAVIS
from ditf_probe.data.videos import VideoDataModule, VideoSequence
from ditf_probe.errors import InputError

PALETTE = [value for number in range(256) for value in (number, 0, 255 - number)]
SIZE = (24, 40)


def write_mask(path: Path, values: np.ndarray, binary: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if not binary:
        image.putpalette(PALETTE)
    image.save(path)


def write_sequence(root: Path, name: str, frames: int, objects: int, binary: bool = False, masks: int = 99) -> None:
    """Noise, with a block of 4 x 6 pixels per object that moves one pixel per frame."""
    rng = np.random.default_rng(len(name))
    folder = root / "JPEGImages" / "480p" / name
    folder.mkdir(parents=True)
    for time in range(frames):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / f"{time:05d}.jpg")
        values = np.zeros(SIZE)
        for number in range(1, objects + 1):
            values[6 * number : 6 * number + 4, time : time + 6] = 255 if binary else number
        if time < masks:
            write_mask(root / "Annotations" / "480p" / name / f"{time:05d}.png", values, binary)


def write_list(root: Path, version: str, lines: list[str], split: str = "val") -> None:
    path = root / "ImageSets" / version / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two objects in "dogs", three in "pigs", one of 0 and 255 in "swan"."""
    write_sequence(tmp_path, "pigs", 5, 3)
    write_sequence(tmp_path, "dogs", 4, 2)
    write_sequence(tmp_path, "swan", 4, 1, binary=True)
    write_list(tmp_path, "2017", ["pigs", "dogs"])
    write_list(tmp_path, "2016", ["swan"])
    return tmp_path


def test_sequences_in_order_of_the_list(root: Path) -> None:
    dataset = DAVIS(root)
    assert [sequence.name for sequence in dataset] == ["pigs", "dogs"]
    assert dataset.counts() == {"sequences": 2, "frames": 9, "masks": 9, "objects": 5}
    pigs = dataset[0]
    assert pigs == VideoSequence(
        0, "pigs", SIZE, tuple(f"davis/480p/pigs/{time:05d}" for time in range(5)), (True,) * 5, 3
    )
    assert len(pigs) == 5
    assert pigs.scored
    assert dataset.frame(0, 2).shape == (3, *SIZE)
    assert dataset.frame(0, 2).dtype == torch.uint8
    mask = dataset.mask(0, 2)
    assert mask.dtype == torch.uint8
    assert mask.unique().tolist() == [0, 1, 2, 3]
    assert (mask == 3).nonzero()[0].tolist() == [18, 2]
    assert dataset.frame_name(1, 3) == "00003"
    assert len(dataset.files()) == 18
    assert all(path.is_file() for path in dataset.files())
    for index in (2, -1):
        with pytest.raises(IndexError):
            dataset[index]
    dataset.check()
    assert [sequence.name for sequence in DAVIS(root, sequences=["dogs"])] == ["dogs"]


def test_one_object_of_0_and_255(root: Path) -> None:
    dataset = DAVIS(root, version="2016")
    assert dataset[0].num_objects == 1
    assert dataset.mask(0, 1).unique().tolist() == [0, 1]
    # Such masks under a list of 2017 are told by their values.
    write_list(root, "2017", ["swan", "dogs"])
    assert [sequence.num_objects for sequence in DAVIS(root)] == [1, 2]
    assert DAVIS(root).mask(0, 0).max() == 1
    with pytest.raises(InputError, match="object numbers 255; number them 1, 2"):
        DAVIS(root, masks="indexed")
    with pytest.raises(InputError, match="pixels of value 1, 2 beside 0 and 255"):
        DAVIS(root, masks="binary")


@pytest.mark.parametrize("folder", ["2016", "480p"])
def test_lists_of_path_pairs(root: Path, folder: str) -> None:
    (root / "ImageSets" / "2016" / "val.txt").unlink()
    lines = [f"/JPEGImages/480p/swan/{t:05d}.jpg /Annotations/480p/swan/{t:05d}.png" for t in range(4)]
    write_list(root, folder, lines)
    assert [len(sequence) for sequence in DAVIS(root, version="2016")] == [4]
    write_list(root, folder, [*lines, "/JPEGImages/480p/swan/00004.jpg /Annotations/480p/swan/00004.png"])
    with pytest.raises(InputError, match=r"00004\.jpg.*no such frame"):
        DAVIS(root, version="2016")


def test_first_masks_only(root: Path) -> None:
    write_sequence(root, "cats", 4, 2, masks=1)
    write_list(root, "2017", ["cats"], "test-dev")
    dataset = DAVIS(root, split="test-dev")
    assert not dataset[0].scored
    assert dataset[0].annotated == (True, False, False, False)
    assert dataset.counts()["masks"] == 1
    with pytest.raises(InputError, match=r"00002\.jpg.*has no mask"):
        dataset.mask(0, 2)


def change(values: np.ndarray, value: int) -> np.ndarray:
    values = values.copy()
    values[0, 0] = value
    return values


def spoil_mask(name: str, time: int, value: int) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = root / "Annotations" / "480p" / name / f"{time:05d}.png"
        write_mask(path, change(np.array(Image.open(path)), value), binary=name == "swan")

    return spoil


def resize_mask(root: Path) -> None:
    write_mask(root / "Annotations/480p/dogs/00002.png", np.ones((24, 39)))


def empty_mask(root: Path) -> None:
    write_mask(root / "Annotations/480p/dogs/00000.png", np.zeros(SIZE))


def colour_mask(root: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(root / "Annotations/480p/dogs/00002.png")


def cut(path: str, kept: float) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        data = (root / path).read_bytes()
        (root / path).write_bytes(data[: int(len(data) * kept)])

    return spoil


def drop(*paths: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        for pattern in paths:
            for path in root.glob(pattern):
                path.unlink()

    return spoil


DAMAGE = {
    "value": (spoil_mask("dogs", 2, 77), r"dogs/00002\.png.*value 77 beside 0 to 2, the objects of the first mask"),
    "new object": (spoil_mask("dogs", 3, 3), r"dogs/00003\.png.*value 3 beside"),
    "gap in objects": (spoil_mask("dogs", 0, 4), r"dogs/00000\.png.*object numbers 1, 2, 4"),
    "binary value": (spoil_mask("swan", 1, 128), r"swan/00001\.png.*value 128 beside 0 and 255"),
    "size": (resize_mask, r"dogs/00002\.png.*is 39x24 and 00000\.jpg 40x24"),
    "no object": (empty_mask, r"dogs/00000\.png.*shows no object"),
    "colours": (colour_mask, r"dogs/00002\.png.*mode RGB"),
    "truncated frame": (cut("JPEGImages/480p/dogs/00001.jpg", 0.6), r"dogs/00001\.jpg.*damaged"),
    "truncated mask": (cut("Annotations/480p/dogs/00001.png", 0.6), r"dogs/00001\.png.*damaged"),
    "header": (cut("JPEGImages/480p/dogs/00001.jpg", 0.0), r"dogs/00001\.jpg.*damaged"),
    "frame of a mask": (drop("JPEGImages/480p/dogs/00003.jpg"), r"dogs/00003\.jpg.*no such frame; restore"),
    "gap": (drop("*/480p/dogs/00001.*"), r"dogs/00001\.jpg.*no such frame; restore"),
    "frames": (drop("JPEGImages/480p/dogs/0000[12].*"), r"dogs/00001\.jpg.*no such frame and 1 more"),
    "mask": (drop("Annotations/480p/dogs/00002.png"), r"dogs/00002\.png.*no such mask; restore it, or keep only"),
    "first mask": (drop("Annotations/480p/dogs/00000.png"), r"dogs/00000\.png.*no such mask of the first frame"),
    "empty sequence": (drop("JPEGImages/480p/dogs/*"), r"480p/dogs.*holds no frame"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line_and_the_rest_is_kept(root: Path, kind: str) -> None:
    spoil, message = DAMAGE[kind]
    spoil(root)
    write_list(root, "2017", ["dogs", "pigs", "swan"])
    with pytest.raises(InputError, match=message) as error:
        DAVIS(root).check()
    assert "\n" not in str(error.value)
    kept = DAVIS(root, keep_going=True)
    assert [str(problem) for problem in kept.problems] == [str(error.value)]
    damaged = "swan" if "swan" in message else "dogs"
    assert [sequence.name for sequence in kept] == [name for name in ("dogs", "pigs", "swan") if name != damaged]
    assert [sequence.index for sequence in kept] == [0, 1]


def test_frames_numbered_in_steps(root: Path) -> None:
    for time in (1, 3):
        drop(f"*/480p/pigs/{time:05d}.*")(root)
    assert len(DAVIS(root)[0]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": "nowhere"}, "`root` is 'nowhere': no such folder"),
        ({"split": "train"}, r"2017/train\.txt.*no such list"),
        ({"version": "2018"}, "`version` is '2018': use one of 2016, 2017"),
        ({"masks": "colour"}, "`masks` is 'colour'"),
        ({"sequences": ["cats"]}, "`sequences` is 'cats': no such sequence; choose from pigs, dogs"),
        ({"sequences": []}, "`sequences` is .*name at least one"),
    ],
)
def test_bad_arguments(root: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DAVIS(**({"root": root} | arguments))


@pytest.mark.parametrize(("content", "message"), [(b"\n", "names no sequence"), (b"\xff\xfe", "not UTF-8")])
def test_bad_lists(root: Path, content: bytes, message: str) -> None:
    (root / "ImageSets/2017/val.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        DAVIS(root)


def test_one_sequence_per_step_over_ranks(root: Path) -> None:
    write_list(root, "2017", ["pigs", "dogs", "swan"])
    module = VideoDataModule({"davis": DAVIS(root)})
    module.setup("test")
    assert [sequence.name for sequence in module.test_dataloader()[0]] == ["pigs", "dogs", "swan"]
    shares = []
    for rank in (0, 1):
        module.trainer = type("Ranks", (), {"world_size": 2, "global_rank": rank})()
        shares.append([sequence.name for sequence in module.test_dataloader()[0]])
    assert shares == [["pigs", "swan"], ["dogs", "pigs"]]


def test_nothing_to_serve_is_refused(root: Path) -> None:
    assert isinstance(VideoDataModule({}), L.LightningDataModule)
    with pytest.raises(InputError, match="`test` is None"):
        VideoDataModule({}).setup("test")
    drop("JPEGImages/480p/*/*")(root)
    with pytest.raises(InputError, match=r"`test\.davis` is 'DAVIS with 0 sequences'"):
        VideoDataModule({"davis": DAVIS(root, keep_going=True)}).setup("test")


def test_real_slice(shared_data: Path) -> None:
    dataset = DAVIS(shared_data / "davis-mini")
    assert [sequence.name for sequence in dataset] == ["blackswan", "libby", "motocross-jump"]
    assert dataset.counts() == {"sequences": 3, "frames": 75, "masks": 75, "objects": 3}
    assert {sequence.size for sequence in dataset} == {(480, 854)}
    dataset.check()


@pytest.mark.skipif(
    "DITF_PROBE_DAVIS" not in os.environ, reason="DITF_PROBE_DAVIS does not name the folder of DAVIS-2017"
)
def test_official_counts() -> None:
    """Pont-Tuset et al. 2017, table 1; Perazzi et al. 2016."""
    assert DAVIS(os.environ["DITF_PROBE_DAVIS"]).counts() == {
        "sequences": 30,
        "frames": 1999,
        "masks": 1999,
        "objects": 61,
    }
