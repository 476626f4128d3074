"""Keypoints of single images: the strongest, in a fixed order, where they should be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ditf_probe.data.detectors import Detector, KeypointFiles, Orb, Sift
from ditf_probe.data.photos import builtin_photos, read_photo
from ditf_probe.errors import InputError


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    return read_photo(builtin_photos()[0])[:, :200, :240]


@pytest.mark.parametrize("detector", [Sift(), Orb()], ids=["sift", "orb"])
def test_keypoints_are_fixed_and_inside(detector: Detector, photo: torch.Tensor) -> None:
    points = detector(photo, "any")
    assert points.shape[0] > 50
    assert points.dtype == torch.float32
    assert torch.equal(points, detector(photo, "any"))
    assert len({tuple(point) for point in points.tolist()}) == len(points)
    assert (points >= 0).all()
    assert (points <= torch.tensor([239.0, 199.0])).all()
    assert json.loads(json.dumps(detector.settings()))["num_keypoints"] == 1000


def test_fewer_are_the_first_of_more(photo: torch.Tensor) -> None:
    assert torch.equal(Sift(20)(photo, "any"), Sift()(photo, "any")[:20])


def test_sift_finds_the_centre_of_a_blob() -> None:
    rows, columns = np.mgrid[:90, :110]
    for x, y in ((40.3, 33.7), (60.0, 50.0), (51.5, 44.25)):
        blob = 20 + 200 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2))
        image = torch.from_numpy(np.rint(blob).astype(np.uint8)).expand(3, -1, -1)
        points = Sift(5)(image, "blob")
        torch.testing.assert_close(points, torch.tensor([[x, y]]), atol=0.1, rtol=0)


def test_sift_descriptors_belong_to_the_keypoints(photo: torch.Tensor) -> None:
    points, descriptors = Sift(100).describe(photo)
    assert torch.equal(points, Sift(100)(photo, "any"))
    assert descriptors.shape == (100, 128)
    turned, others = Sift(100).describe(photo.rot90(2, (1, 2)))
    moved = torch.tensor([239.0, 199.0]) - turned
    cosines = torch.nn.functional.normalize(descriptors) @ torch.nn.functional.normalize(others).T
    distance = torch.cdist(points, moved)
    near = distance.amin(1) < 0.5
    assert near.sum() > 50
    assert (distance[torch.arange(100), cosines.argmax(1)][near] < 1.5).float().mean() > 0.8


def test_nothing_to_see() -> None:
    flat = torch.full((3, 40, 40), 128, dtype=torch.uint8)
    assert Sift()(flat, "flat").shape == (0, 2)
    points, descriptors = Sift().describe(flat)
    assert (points.shape, descriptors.shape) == ((0, 2), (0, 128))


IMAGE = torch.zeros(3, 10, 20, dtype=torch.uint8)


def test_archives_and_text(tmp_path: Path) -> None:
    (tmp_path / "v_bird").mkdir()
    points = np.array([[1.0, 2.0], [19.25, 9.0], [1.0, 2.0], [-0.5, 0.0]])
    np.savez(tmp_path / "v_bird" / "4.npz", keypoints=points, scores=np.array([0.1, 0.9, 0.2, 0.3]))
    found = KeypointFiles(tmp_path)(IMAGE, "hpatches/v_bird/4.ppm")
    assert found.tolist() == [[19.25, 9.0], [-0.5, 0.0], [1.0, 2.0]]
    assert KeypointFiles(tmp_path, num_keypoints=1)(IMAGE, "hpatches/v_bird/4.ppm").tolist() == [[19.25, 9.0]]
    with (tmp_path / "v_bird" / "4.ppm.superpoint").open("wb") as file:
        np.savez(file, keypoints=points.astype(np.float32), scores=[], descriptors=np.zeros((4, 2)))
    wide = KeypointFiles(tmp_path, "{folder}/{name}.superpoint")
    assert wide(IMAGE, "hpatches/v_bird/4.ppm").tolist() == [[1.0, 2.0], [19.25, 9.0], [-0.5, 0.0]]
    (tmp_path / "v_bird-4.kp").write_text("1.5 2\n3 4.25\n")
    text = KeypointFiles(tmp_path, "{folder}-{stem}.kp")
    assert text(IMAGE, "hpatches/v_bird/4.ppm").tolist() == [[1.5, 2.0], [3.0, 4.25]]
    (tmp_path / "v_bird-5.kp").write_text("")
    assert text(IMAGE, "hpatches/v_bird/5.ppm").shape == (0, 2)
    assert text.settings()["pattern"] == "{folder}-{stem}.kp"


@pytest.mark.parametrize(
    "content", [b"\x80\x04", b"1 2\n3\n", b"one two\n", b"1 nan\n", b"1\n2\n", b"PK\x03\x04cut", b"20.5 3\n", b"3 -1\n"]
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "1.kp").write_bytes(content)
    with pytest.raises(InputError) as caught:
        KeypointFiles(tmp_path, "{stem}.kp")(IMAGE, "a/1.ppm")
    assert str(tmp_path / "1.kp") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_archives_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "1.npz", keypoints=np.array([[1, 2], None], dtype=object))
    np.savez(tmp_path / "2.npz", points=np.zeros((1, 2)))
    np.savez(tmp_path / "3.npz", keypoints=np.zeros((2, 2)), scores=np.zeros(3))
    for number in (1, 2, 3, 4):
        with pytest.raises(InputError, match=rf"{number}\.npz"):
            KeypointFiles(tmp_path, "{stem}.npz")(IMAGE, f"a/{number}.ppm")


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_keypoints"):
        Sift(0)
    with pytest.raises(InputError, match="contrast_threshold"):
        Sift(contrast_threshold=-1)
    with pytest.raises(InputError, match="root"):
        KeypointFiles(tmp_path / "nowhere")
    with pytest.raises(InputError, match="pattern"):
        KeypointFiles(tmp_path, "{sequence}.npz")
    with pytest.raises(InputError, match="image"):
        Sift()(torch.zeros(3, 5, 5), "any")
