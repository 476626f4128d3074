"""What label propagation remembers of a video: the first frame and the last few."""

from collections import deque
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ditf_probe.errors import InputError, check_choice
from ditf_probe.matching.labels import LabelResize
from ditf_probe.matching.propagation import propagate_labels

ArgmaxAt = Literal["frame", "input"]


@dataclass(frozen=True)
class Propagation:
    """A protocol of label propagation; the defaults are those of DINO (ViT-S/16 and larger patches alike).

    Radius and frame size belong together, and scores at unequal sizes do not compare: a cell is as large as the stride
    of the backbone in the pixels of the resized frame.

    Attributes:
        n_last_frames: Frames before the current one whose propagated labels count. The first frame, whose labels are
            given, always counts beside them; it is never among them, so no frame counts twice.
        radius: Rows and columns, in cells, that a cell sees around its own place; 0 is no restriction.
        topk: Cells of all these frames together that count.
        temperature: What cosines are divided by before the exponential.
        labels: How the first mask becomes labels of cells, as in `soft_labels`.
        norm_mask: Stretch soft labels of each object to [0, 1] before the largest is taken.
        argmax_at: Where that is: at the size of the "frame", or of the model's "input", from which the mask is brought
            to the frame by nearest pixels (DINO, DIFT, DiTF).
        short_side: Frames are first resized to this many pixels on their shorter side, bilinear without antialiasing,
            the longer side floored to `multiple`, as the reference codes do. None leaves the size to the features.
        multiple: See `short_side`.
        budget_mib: As in `propagate_labels`; changes no result beyond rounding.

    Raises:
        InputError: An option out of range.
    """

    n_last_frames: int = 7
    radius: int = 12
    topk: int = 5
    temperature: float = 0.1
    labels: LabelResize = "nearest"
    norm_mask: bool = True
    argmax_at: ArgmaxAt = "frame"
    short_side: int | None = None
    multiple: int = 32
    budget_mib: float = 64.0

    def __post_init__(self) -> None:
        check_choice("labels", self.labels, LabelResize)
        check_choice("argmax_at", self.argmax_at, ArgmaxAt)
        for name, least in (("n_last_frames", 0), ("radius", 0), ("topk", 1), ("multiple", 1)):
            if getattr(self, name) < least:
                raise InputError(name, getattr(self, name), f"use a whole number of at least {least}")
        for name in ("temperature", "budget_mib"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(name, getattr(self, name), "use a number above 0")
        if self.short_side is not None and self.short_side < self.multiple:
            raise InputError("short_side", self.short_side, f"use at least `multiple`, {self.multiple} pixels")


class LabelMemory:
    """Carries labels through one video; holds the maps of `n_last_frames` + 1 frames.

    Args:
        settings: The protocol.
        features: `(C, h, w)` of the first frame.
        labels: `(K + 1, h, w)` soft labels of the first frame.
    """

    def __init__(self, settings: Propagation, features: Tensor, labels: Tensor) -> None:
        self.settings = settings
        self._first = (features, labels.to(features.device))
        self._last: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.n_last_frames)

    def __len__(self) -> int:
        return 1 + len(self._last)

    def step(self, features: Tensor) -> Tensor:
        """Labels of the next frame, which from now on is one of the last.

        Args:
            features: `(C, h, w)` of the next frame, on the grid of the first.

        Returns:
            `(K + 1, h, w)` soft labels.
        """
        maps, labels = zip(self._first, *self._last, strict=True)
        settings = self.settings
        found = propagate_labels(
            features,
            maps,
            labels,
            radius=settings.radius,
            topk=settings.topk,
            temperature=settings.temperature,
            budget_mib=settings.budget_mib,
        )
        self._last.append((features, found))
        return found
