from pathlib import Path

import pytest
import torch
from PIL import Image

from ditf_probe.data.photo_folder import PhotoFolder
from ditf_probe.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photos of two folders, one of them turned by its EXIF orientation."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    turned = Image.new("RGB", (12, 8), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "photos" / "turned.jpg", exif=exif)
    Image.new("RGB", (5, 7), (1, 2, 3)).save(tmp_path / "photos" / "deep" / "b.png")
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path / "photos"


def test_every_photo_has_an_id_and_its_size(root: Path) -> None:
    folder = PhotoFolder(str(root))
    assert folder.name == "photos"
    assert folder.image_sizes() == {"photos/deep/b.png": (7, 5), "photos/turned.jpg": (12, 8)}
    assert len(folder) == 2
    for image_id, size in folder.image_sizes().items():
        assert folder.image(image_id).shape == (3, *size)
    assert torch.equal(folder.image("photos/deep/b.png")[:, 0, 0], torch.tensor([1, 2, 3], dtype=torch.uint8))
    assert list(PhotoFolder(str(root), "mine").image_sizes()) == ["mine/deep/b.png", "mine/turned.jpg"]


def test_what_is_not_there(root: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        PhotoFolder(str(root / "nowhere"))
    with pytest.raises(InputError, match="is no photo of"):
        PhotoFolder(str(root)).image("photos/c.png")
