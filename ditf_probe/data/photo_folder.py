"""Photos of a folder, without pairs or labels, as a source of images."""

from pathlib import Path

from torch import Tensor

from ditf_probe.data.photos import list_photos, photo_size, read_photo
from ditf_probe.errors import InputError


class PhotoFolder:
    """All photos under a folder, at any depth; an `ImageSource`.

    Ids are `<name>/<relative path>`. Stores of features know photos by their ids, so the name must be one that no other
    folder has.

    Args:
        root: The folder.
        name: What ids begin with; the name of the folder by default.

    Raises:
        InputError: The folder does not exist or holds no photo.
    """

    def __init__(self, root: str, name: str | None = None) -> None:
        folder = Path(root).expanduser()
        self.root, self.name = root, name or folder.resolve().name
        self._files = {f"{self.name}/{file.relative_to(folder).as_posix()}": file for file in list_photos(root)}

    def __len__(self) -> int:
        return len(self._files)

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of every photo, from the headers of the files.

        Raises:
            InputError: A photo is damaged.
        """
        return {image_id: photo_size(file) for image_id, file in self._files.items()}

    def image(self, image_id: str) -> Tensor:
        """The pixels of a photo at its native size: `(3, H, W)` uint8 RGB.

        Raises:
            InputError: It is not one of this folder, or it is damaged.
        """
        if image_id not in self._files:
            raise InputError("image_id", image_id, f"is no photo of {self.root}")
        return read_photo(self._files[image_id])
