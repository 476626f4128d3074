"""Listing and decoding of photos, against pixels that the test writes itself."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditf_probe.data.photos import builtin_file, builtin_photos, list_photos, photo_size, read_photo
from ditf_probe.errors import InputError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_lists_photos_at_any_depth_in_one_order(tmp_path: Path) -> None:
    for name in ("b.png", "a-b/z.JPG", "a/z.png", ".hidden/x.png", "a/.x.png", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in list_photos(tmp_path)]
    assert names == ["a/z.png", "a-b/z.JPG", "b.png"]


def test_missing_and_empty_roots_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`photos` is '.*nowhere': no such folder"):
        list_photos(tmp_path / "nowhere", "photos")
    with pytest.raises(InputError, match=r"`root` is .*holds no photo"):
        list_photos(tmp_path)


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.png")
    pixels = read_photo(tmp_path / "x.png")
    assert pixels.shape == (3, 5, 7)
    assert pixels.is_contiguous()
    assert (pixels.permute(1, 2, 0).numpy() == RGB).all()
    assert photo_size(tmp_path / "x.png") == (5, 7)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int, upright) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    expected = upright(RGB)
    pixels = read_photo(tmp_path / "x.png")
    assert (pixels.permute(1, 2, 0).numpy() == expected).all()
    assert photo_size(tmp_path / "x.png") == expected.shape[:2]


def test_grey_is_repeated(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0]).save(tmp_path / "x.png")
    assert (read_photo(tmp_path / "x.png").numpy() == RGB[..., 0]).all()


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65406, 65407, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert read_photo(tmp_path / "x.png")[1].tolist() == [[0, 0, 1, 1, 128, 254, 255, 255]]


def test_transparent_pixels_show_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)).save(
        tmp_path / "x.png"
    )
    assert read_photo(tmp_path / "x.png")[:, 0].T.tolist() == [[10, 20, 30], [255] * 3, [204] * 3]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_photo(tmp_path / "p.png")[:, 0].T.tolist() == [[255] * 3, [200, 0, 0]]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(InputError, match=r"x\.tiff.*floating-point"):
        read_photo(tmp_path / "x.tiff")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_photos_are_named(tmp_path: Path, kind: str) -> None:
    whole = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, kind)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(InputError, match=r"`image` is '.*cut\.png': .*damaged"):
        read_photo(cut)
    for content in (b"", b"not an image"):
        cut.write_bytes(content)
        for read in (read_photo, photo_size):
            with pytest.raises(InputError, match=r"cut\.png"):
                read(cut)
    with pytest.raises(InputError, match="no such file"):
        read_photo(tmp_path / "absent.png")


def test_builtin_photos_lie_in_the_wheel() -> None:
    sizes = {path.stem: photo_size(path) for path in builtin_photos()}
    expected = {"astronaut": (512, 512), "camera": (512, 512), "chelsea": (300, 451), "coffee": (400, 600)}
    assert sizes == expected | {"rocket": (427, 640)}
    assert all("site-packages" in path.parts or "skimage" in path.parts for path in builtin_photos())
    with pytest.raises(InputError, match="nothing_like_it"):
        builtin_file("nothing_like_it.png")


def test_data_package_is_light_to_import() -> None:
    heavy = ("skimage", "scipy", "cv2", "lightning", "matplotlib", "pooch")
    code = (
        "import sys, ditf_probe.data, ditf_probe.data.pairs, ditf_probe.data.photos as photos;"
        "photos.read_photo(photos.builtin_photos()[2]);"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
