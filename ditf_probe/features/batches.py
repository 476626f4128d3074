"""Batches of images and the ids that go with them."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from ditf_probe.errors import InputError


def with_ids(
    batches: Iterable[Tensor], image_ids: Sequence[str] | None
) -> Iterator[tuple[Tensor, Sequence[str] | None]]:
    """Each batch with its part of the ids.

    Args:
        batches: Batches of images `(B, 3, H, W)`.
        image_ids: Ids over all batches in order; None for none.

    Raises:
        InputError: There are more or fewer ids than images, once the batches are at their end.
    """
    start = 0
    for images in batches:
        yield images, None if image_ids is None else image_ids[start : start + len(images)]
        start += len(images)
    if image_ids is not None and start != len(image_ids):
        raise InputError("image_ids", f"{len(image_ids)} ids", f"give {start}, one per image")
