"""Evaluation protocols by name: what published code does between an image pair and a number.

A protocol holds every knob of an evaluation. None leaves a knob to the task: its features for the size of images, its
own arguments for the rest. `docs/protocols.md` gives the sources and the traps.
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser

from ditf_probe.errors import InputError, check_choice
from ditf_probe.geometry import Filter, Landing, Mode, Sampling
from ditf_probe.matching import MatchingRule, Rounding
from ditf_probe.matching.rules import Check, Kind, Mask, Origin, Precision
from ditf_probe.metrics.intervals import Statistic
from ditf_probe.metrics.pck import ALPHAS

Threshold = Literal["dataset", "bbox", "keypoints", "image", "canvas"]


@dataclass(frozen=True)
class Protocol:
    """Every knob of an evaluation; `PROTOCOLS[name]` says what is None here.

    Attributes:
        name: The preset that this one is, or changes.
        image_size: As in `geometry.fit`.
        cells: Size in cells of each backbone, in place of `image_size`: 60 is 960 pixels at a stride of 16, 840 at 14.
        resize: As in `geometry.fit`; the letterbox modes are matched over the whole canvas.
        multiple: As in `geometry.fit`; None is the stride of each backbone.
        filter: PIL filter of the resize.
        padding: Grey level of the padding, 0 (black) to 1 (white).
        matching: `kind` of the `MatchingRule`.
        rounding: As in `MatchingRule`, like all below up to `apart`.
        window: Side of the window in cells.
        temperature: Of a softmax over cosines.
        mask: What stands outside the window.
        sigma: Of the kernel, in cells.
        origin: Where annotations have their 0.
        sampling: Where keypoints lie on the grid.
        landing: Where a cell lies in the image.
        precision: Whether features are rounded before they are matched.
        check: What a match must pass to be accepted.
        cycle_pixels: Of the cycle check.
        ratio: Of the ratio check.
        apart: Of the ratio check.
        strict: Compare distances with `<` instead of `<=`.
        threshold: What alpha is multiplied by: the choice of the data set, the target's object box, the extent of its
            keypoints, its longer side, or the longer side of the prepared canvas in pixels of the original image.
        alphas: PCK thresholds as fractions.
        statistic: The average that intervals and differences refer to; all four are reported.
        pairs_per_category: Most test pairs of each category, drawn by `pairs_seed`; 0 keeps all.
        pairs_seed: Of the draw.
    """

    name: str = "default"
    image_size: int | list[int] | None = None
    cells: int | None = None
    resize: Mode | None = None
    multiple: int | None = None
    filter: Filter | None = None
    padding: float | None = None
    matching: Kind | None = None
    rounding: Rounding | None = None
    window: int | None = None
    temperature: float | None = None
    mask: Mask | None = None
    sigma: float | None = None
    origin: Origin | None = None
    sampling: Sampling | None = None
    landing: Landing | None = None
    precision: Precision | None = None
    check: Check | None = None
    cycle_pixels: float | None = None
    ratio: float | None = None
    apart: int | None = None
    strict: bool | None = None
    threshold: Threshold | None = None
    alphas: list[float] | None = None
    statistic: Statistic | None = None
    pairs_per_category: int | None = None
    pairs_seed: int | None = None

    def given(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The knobs among these that are not None."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def feature_settings(self) -> dict[str, Any]:
        """Changes of `BackboneFeatures`."""
        changes = self.given(IMAGE_KNOBS)
        # One of the two sizes replaces the other.
        if "cells" in changes:
            return changes | {"image_size": None}
        return changes | ({"cells": None} if "image_size" in changes else {})

    def rule(self) -> MatchingRule:
        """The matching rule; what is None stands as in `MatchingRule`.

        Raises:
            InputError: A knob out of range.
        """
        return MatchingRule(**{RULE_KNOBS[name]: value for name, value in self.given(tuple(RULE_KNOBS)).items()})


IMAGE_KNOBS = ("image_size", "cells", "resize", "multiple", "filter", "padding")
RULE_KNOBS = {"matching": "kind"} | {f.name: f.name for f in fields(MatchingRule) if f.name != "kind"}
"""Knob of a protocol to attribute of its `MatchingRule`."""

_ANY_PAIR = Protocol(threshold="dataset", alphas=list(ALPHAS), pairs_per_category=0, pairs_seed=0, check="none")
_PIXELS = replace(
    _ANY_PAIR,
    filter="bicubic",
    matching="argmax_pixel",
    rounding="integer",
    origin="centre",
    sampling="cells",
    precision="full",
    strict=False,
    statistic="per_point",
)
_CELLS = replace(_ANY_PAIR, origin="corner", precision="full", statistic="per_image")

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("default"),
        replace(_PIXELS, name="dift", image_size=768, resize="stretch"),
        replace(_PIXELS, name="ditf-paper", cells=60, resize="stretch"),
        replace(_PIXELS, name="ditf-code", image_size=640, resize="keep_aspect", multiple=16, precision="float16"),
        replace(
            _CELLS,
            name="geoaware",
            cells=60,
            resize="letterbox",
            filter="lanczos",
            padding=0.0,
            matching="window_softargmax",
            rounding="patch",
            window=11,
            temperature=0.02,
            mask="zero",
            sampling="cells",
            landing="centre",
            strict=True,
        ),
        replace(
            _CELLS,
            name="sd4match",
            image_size=768,
            resize="stretch",
            filter="bilinear",
            matching="kernel_softargmax",
            rounding="subpixel",
            temperature=0.04,
            sigma=7.0,
            sampling="aligned",
            landing="aligned",
            strict=False,
        ),
        replace(
            _CELLS,
            name="probe3d",
            image_size=800,
            resize="letterbox_end",
            filter="bicubic",
            padding=1.0,
            matching="argmax_grid",
            rounding="integer",
            sampling="aligned",
            landing="corner",
            strict=True,
            threshold="bbox",
            statistic="per_point",
            pairs_per_category=200,
            pairs_seed=20,
        ),
    )
}


def find_protocol(protocol: str | Protocol) -> Protocol:
    """A preset by name, or a changed one with all that the preset has beside the changes.

    Args:
        protocol: A name; a protocol whose `name` is that of the preset that it changes; or the same as a YAML file,
            such as those in `configs/protocol/`.

    Returns:
        The protocol; None is left where the preset leaves a knob to the task.

    Raises:
        InputError: An unknown name, a file that cannot be read, or a knob with a value that it cannot have.
    """
    asked = _read(protocol) if isinstance(protocol, str) else protocol
    if asked.name not in PROTOCOLS:
        raise InputError("protocol", asked.name, f"use one of {', '.join(PROTOCOLS)}, or change one of them")
    changes = asked.given(tuple(f.name for f in fields(Protocol)))
    if "cells" in changes and "image_size" in changes:
        raise InputError("protocol.cells", asked.cells, f"leave it out, or image_size, which is {asked.image_size}")
    preset = PROTOCOLS[asked.name]
    if "cells" in changes or "image_size" in changes:
        preset = replace(preset, cells=None, image_size=None)
    found = replace(preset, **changes)
    _check(found)
    return found


def changed_knobs(protocol: Protocol) -> list[str]:
    """Names of the knobs that differ from those of the preset of the same name."""
    preset, own = asdict(PROTOCOLS[protocol.name]), asdict(protocol)
    return [name for name, value in own.items() if value != preset[name]]


def _read(text: str) -> Protocol:
    """The protocol of a name, or of a file."""
    if Path(text).suffix not in (".yaml", ".yml"):
        return Protocol(text)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Protocol)
    try:
        return Protocol(**parser.parse_path(text).as_dict())
    except (ArgumentError, OSError, TypeError, UnicodeDecodeError) as error:
        remedy = f"give a file such as configs/protocol/geoaware_supervised.yaml ({error})"
        raise InputError("protocol", text, remedy) from error


def _check(protocol: Protocol) -> None:
    """Refuses what no evaluation could have, before any image is read."""
    protocol.rule()
    choices = {"resize": Mode, "filter": Filter, "threshold": Threshold, "statistic": Statistic}
    for name, value in protocol.given(tuple(choices)).items():
        check_choice(f"protocol.{name}", value, choices[name])
    for name, value in protocol.given(("cells", "multiple")).items():
        if value < 1:
            raise InputError(f"protocol.{name}", value, "use a positive number")
    for name, value in protocol.given(("pairs_per_category", "pairs_seed")).items():
        if value < 0:
            raise InputError(f"protocol.{name}", value, "use 0 or more")
