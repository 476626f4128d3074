"""Maps over an image: similarity to one descriptor, and features as colours."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ditf_probe.pictures.canvas import Picture, Strip

_MARK = "#39d353"


def similarity_heat_map(
    target: Tensor,
    similarity: Tensor,
    *,
    prediction: Tensor | None = None,
    truth: Tensor | None = None,
    source: Tensor | None = None,
    source_keypoint: Tensor | None = None,
    title: str = "",
    height: int = 400,
) -> Picture:
    """Where one keypoint of the source finds itself in the target: dark to bright with rising similarity.

    Args:
        target: `(3, H', W')` uint8.
        similarity: `(h, w)` on any grid that covers the target.
        prediction: `(2,)` in pixels of the target, drawn as a ring.
        truth: `(2,)` in pixels of the target, drawn as a plus.
        source: `(3, H, W)` uint8, shown on the left if given.
        source_keypoint: `(2,)` in pixels of the source, drawn as a dot.
        title: Stands above, in front of the range of the similarities.
        height: Of the images in the picture, in pixels.

    Returns:
        The picture, `(height + title, W, 3)` uint8.
    """
    low, high = float(similarity.min()), float(similarity.max())
    images = [overlay(target, similarity)]
    if source is not None:
        images.insert(0, source)
    scale = f"similarity {low:.2f} (dark) to {high:.2f} (bright)"
    strip = Strip([images], height, f"{title}   {scale}" if title else scale)
    if source is not None and source_keypoint is not None:
        strip.dot(strip.places(source_keypoint[None], 0)[0], _MARK)
    last = len(images) - 1
    if prediction is not None:
        strip.ring(strip.places(prediction[None], last)[0], _MARK)
    if truth is not None:
        strip.plus(strip.places(truth[None], last)[0], "white")
    return strip.picture()


def overlay(image: Tensor, values: Tensor) -> Tensor:
    """Colours an image by a map: `(3, H, W)` uint8 from `(3, H, W)` uint8 and `(h, w)` of any range."""
    from matplotlib import colormaps

    raised = values.detach().float().cpu()
    unit = (raised - raised.min()) / (raised.max() - raised.min()).clamp_min(1e-12)
    smooth = interpolate(unit[None, None], size=image.shape[1:], mode="bilinear")[0, 0]
    colours = torch.from_numpy(colormaps["inferno"](smooth.numpy())[..., :3]).permute(2, 0, 1) * 255
    grey = image.detach().cpu().double().mean(0, keepdim=True)
    return (0.35 * grey + 0.65 * colours).round().clamp(0, 255).to(torch.uint8)


def pca_colours(features: Sequence[Tensor]) -> list[Tensor]:
    """The three principal components of feature maps as red, green and blue, on one scale for all maps.

    Equal colours mean similar features, across images too. Each component points to where its largest
    coefficient is positive, and is stretched between its 1st and 99th percentile.

    Args:
        features: Maps `(C, h, w)` with one C; heights and widths may differ.

    Returns:
        `(3, h, w)` uint8 per map.
    """
    vectors = torch.cat([f.detach().cpu().double().flatten(1).T for f in features])
    components = _principal_components(vectors - vectors.mean(0), 3)
    low, high = (torch.quantile(components, q, dim=0) for q in (0.01, 0.99))
    unit = ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    parts = torch.split((unit * 255).round().to(torch.uint8), [f[0].numel() for f in features])
    return [part.T.reshape(3, *f.shape[1:]) for part, f in zip(parts, features, strict=True)]


def pca_map(images: Sequence[Tensor], features: Sequence[Tensor], *, title: str = "", height: int = 300) -> Picture:
    """Images in the upper row, the `pca_colours` of their features below.

    Args:
        images: `(3, H, W)` uint8 each.
        features: `(C, h, w)` each, covering the images.
        title: Stands above.
        height: Of each image in the picture, in pixels.

    Returns:
        The picture, `(2 * height + title, W, 3)` uint8.
    """
    return Strip([list(images), pca_colours(features)], height, title, sharp_rows=(1,)).picture()


def _principal_components(centred: Tensor, count: int) -> Tensor:
    """`(N, count)` from `(N, C)`; zeros where there are fewer components than asked for."""
    # The smaller of both Gram matrices has the same non-zero spectrum and is the cheaper one to decompose.
    wide = centred.shape[1] > centred.shape[0]
    _, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    leading = vectors.flip(1)[:, :count]
    directions = torch.nn.functional.normalize(centred.T @ leading, dim=0) if wide else leading
    largest = directions.abs().argmax(0, keepdim=True)
    components = centred @ (directions * directions.gather(0, largest).sign())
    return torch.nn.functional.pad(components, (0, count - components.shape[1]))
