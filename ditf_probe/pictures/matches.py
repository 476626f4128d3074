"""Matches between two images: what was found, what was missed, and where it should have been."""

import torch
from torch import Tensor

from ditf_probe.pictures.canvas import Picture, Strip, distinct_colour


def match_picture(
    source: Tensor,
    target: Tensor,
    source_keypoints: Tensor,
    predictions: Tensor,
    targets: Tensor,
    visible: Tensor,
    radius: float,
    *,
    title: str = "",
    height: int = 400,
    accepted: Tensor | None = None,
) -> Picture:
    """Source left, target right, a line per keypoint in its colour: circle where correct, cross where wrong.

    A dotted line leads from a wrong prediction to the true place, in the middle of a dotted circle of the radius. Of a
    match that a rule rejects only the two true places are drawn; it counts as wrong.

    Args:
        source: `(3, H, W)` uint8.
        target: `(3, H', W')` uint8.
        source_keypoints: `(K, 2)` in pixels of the source, x before y.
        predictions: `(K, 2)` in pixels of the target.
        targets: `(K, 2)`, the true places in the target.
        visible: `(K,)` bool: keypoints to draw and to count.
        radius: Largest distance that counts as correct, in pixels of the target.
        title: Stands above the picture, in front of the score.
        height: Of both images in the picture, in pixels.
        accepted: `(K,)` bool, False where the matching rule says "no match"; by default every match is accepted.

    Returns:
        The picture, `(height + title, W, 3)` uint8.
    """
    distances = (predictions.detach().cpu().double() - targets.detach().cpu().double()).norm(dim=1)
    shown = visible.cpu().nonzero().flatten().tolist()
    kept = torch.ones_like(visible) if accepted is None else accepted.to(visible.device)
    correct = ((distances <= radius) & kept.cpu()).tolist()
    strip = Strip([[source, target]], height, _headline(title, sum(correct[k] for k in shown), len(shown)))
    starts = strip.places(source_keypoints, 0)
    ends, truths = strip.places(predictions, 1), strip.places(targets, 1)
    for k in shown:
        colour = distinct_colour(k)
        strip.dot(starts[k], colour)
        if kept[k]:
            strip.line(starts[k], ends[k], colour, strong=correct[k])
        if correct[k]:
            strip.ring(ends[k], colour)
        else:
            if kept[k]:
                strip.cross(ends[k], colour)
                strip.line(ends[k], truths[k], colour, style=":")
            strip.circle(truths[k], radius * strip.scale(1), colour)
    return strip.picture()


def _headline(title: str, correct: int, total: int) -> str:
    score = f"{correct} of {total} correct, PCK {100 * correct / total:.1f}" if total else "no visible keypoint"
    return f"{title}   {score}" if title else score
