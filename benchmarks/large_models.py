"""Extraction with models of the sizes of the paper, random weights: the whole of them, or what is needed.

plain       as published codes do it: image by image, the autoencoder once per copy of an ensemble, the whole model,
            kept is what a hook sees at the block and tap of the preset
early exit  FeatureExtractor on the whole model: images as a batch, the autoencoder once per image, the pass left at the
            tap
truncated   FeatureExtractor on the model as far as it is loaded for that tap

A run has so many rows, images times copies, that all ensembles cost the same. Prompts are random tokens of the real
number and widths; text encoders are not loaded. Seconds are those until the device has finished; memory is that of all
tensors on the device at its peak, weights included. "differs" is the length of the difference of features from those of
`plain`, over theirs. Rows are printed as they are measured, and figures are written after every family.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.arguments import add_sizes, checked, measuring_parser, positive
from benchmarks.measuring import spread, write_figures
from benchmarks.on_device import DevicePeak, Rows, add_device, exact_float32, failure, rate, release, times, words_of
from ditf_probe.devices import DTYPES
from ditf_probe.errors import InputError

NAMES = ("flux", "sd35_large", "sd3_medium", "pixart_alpha", "dit_xl")
COLUMNS = ("family", "way", "pixels", "copies", "images/s", "min s", "median s", "max s")
COLUMNS += ("weights GB", "peak GB", "differs")
Features = dict[str, Tensor]
Work = Callable[[], Features]


def images_of(side: int, count: int, device: torch.device) -> tuple[Tensor, list[str]]:
    """Seeded images `(count, 3, side, side)` in [0, 1] on a device, and their ids."""
    generator = torch.Generator().manual_seed(side)
    images = torch.rand(count, 3, side, side, generator=generator)
    return images.to(device), [f"{side}/{number}" for number in range(count)]


def plain_work(subject: Any, images: Tensor, ids: list[str], ensemble: int) -> Work:
    """Published codes."""
    from benchmarks.large_subjects import PlainLoop

    loop = PlainLoop(subject, ensemble)
    return lambda: {name: loop(image, name) for image, name in zip(images, ids, strict=True)}


def own_work(subject: Any, images: Tensor, ids: list[str], ensemble: int) -> Work:
    """This project, on the model as far as it is there."""
    from ditf_probe import FeatureExtractor

    extractor = FeatureExtractor(
        subject.backbone, blocks=[subject.block], timestep=subject.timestep, tap=subject.tap, ensemble=ensemble
    )
    return lambda: dict(zip(ids, extractor(images, ids, subject.prompt)[subject.block], strict=True))


def on_host(found: Features) -> Features:
    return {name: feature.float().cpu() for name, feature in found.items()}


def difference(found: Features, expected: Features) -> float:
    """Length of the difference over that of what is expected, the largest of all images."""
    return max(float((found[name] - right).norm() / right.norm()) for name, right in expected.items())


class Measured:
    """The cells of one family: sides by ensembles by ways.

    Args:
        family: Which.
        options: Of the command.
        device: Where it runs.
        rows: Prints what is found.
    """

    def __init__(self, family: str, options: argparse.Namespace, device: torch.device, rows: Rows) -> None:
        self.family, self.options, self.device, self.rows = family, options, device, rows
        self.expected: dict[tuple[int, int], Features] = {}
        self.found: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        """Measures all of them; what fails is among the results with its error."""
        from benchmarks.large_subjects import build

        options, subject = self.options, None
        try:
            release(self.device)
            subject = build(self.family, self.device, DTYPES[options.dtype], options.rows, options.tiny)
        except Exception as error:  # whatever it is: the other families are measured
            self.note({"way": "build", "error": failure(error)})
        if subject is not None:
            self.cells(subject, {"plain": plain_work, "early exit": own_work})
            subject.truncate()
            release(self.device)
            self.cells(subject, {"truncated": own_work})
        return self.found

    def cells(self, subject: Any, ways: dict[str, Callable[..., Work]]) -> None:
        """Measures some ways at all sizes."""
        for side, ensemble in self.sizes():
            for way, make in ways.items():
                facts = {"way": way, "side": side, "ensemble": ensemble}
                try:
                    facts |= self.cell(subject, partial(make, subject), side, ensemble)
                except Exception as error:  # such as too little memory: the other cells are measured
                    facts |= {"error": failure(error)}
                self.note(facts)

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Sides and ensembles, the cheap ones first."""
        for side in sorted(self.options.sides):
            for ensemble in sorted(self.options.ensembles):
                yield side, ensemble

    def cell(self, subject: Any, make: Callable[..., Work], side: int, ensemble: int) -> dict[str, Any]:
        """One way at one size."""
        stride = subject.backbone.stride
        if side % stride:
            raise InputError("--sides", side, f"use a multiple of {stride}, the stride of the model")
        count = max(1, self.options.rows // ensemble)
        work = make(*images_of(side, count, self.device), ensemble)
        peak, weights = DevicePeak(self.device), subject.weights / 1e9
        features = on_host(work())
        above = peak() / 1e3
        taken = times(work, self.device, self.options.repeats, warmups=0)
        if not all(bool(feature.isfinite().all()) for feature in features.values()):
            raise InputError("--dtype", self.options.dtype, "features are not finite, use another")
        expected = self.expected.setdefault((side, ensemble), features)
        return {
            "images": count,
            "seconds": taken,
            **spread(taken),
            "images_per_second": rate(count, taken),
            "parameters": subject.parameters,
            "weights_gb": weights,
            "peak_gb": weights + above,
            "differs": difference(features, expected),
        }

    def note(self, facts: dict[str, Any]) -> None:
        """Keeps and prints a cell."""
        self.found.append(facts)
        cells = [self.family, facts["way"], *(str(facts.get(key, "")) for key in ("side", "ensemble"))]
        if "error" in facts:
            self.rows.add(*cells, facts["error"])
            return
        cells += [f"{facts['images_per_second']:.3f}", *(f"{facts[key]:.3f}" for key in ("min", "median", "max"))]
        self.rows.add(*cells, f"{facts['weights_gb']:.2f}", f"{facts['peak_gb']:.2f}", f"{facts['differs']:.1e}")


def gains(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as fast as `plain` each of this project's cells is, and how much of its memory it takes."""
    cells = {(x["way"], x["side"], x["ensemble"]): x for x in found if "error" not in x}
    made = []
    for (way, side, ensemble), facts in cells.items():
        plain = cells.get(("plain", side, ensemble))
        if plain is not None and way != "plain":
            faster = facts["images_per_second"] / plain["images_per_second"]
            memory = facts["peak_gb"] / plain["peak_gb"] if plain["peak_gb"] > 0 else None
            made.append({"way": way, "side": side, "ensemble": ensemble, "times_as_fast": faster, "memory": memory})
    return made


def show_gains(results: dict[str, Any]) -> None:
    """Prints the ratios to `plain`."""
    rows = Rows(("family", "way", "pixels", "copies", "times as fast as plain", "part of its peak"), text=2)
    for family, result in results.items():
        for gain in result["gains"]:
            part = "" if gain["memory"] is None else f"{gain['memory']:.2f}"
            sizes = (str(gain["side"]), str(gain["ensemble"]))
            rows.add(family, gain["way"], *sizes, f"{gain['times_as_fast']:.2f}", part)


def parser() -> argparse.ArgumentParser:
    made = measuring_parser("large_models", __doc__, repeats=3)
    made.add_argument("--families", nargs="+", choices=NAMES, default=NAMES, help="which, in this order (default all)")
    made.add_argument(
        "--sides", type=positive, nargs="+", default=[640, 960], help="of square images, in pixels (default 640 960)"
    )
    made.add_argument("--ensembles", type=positive, nargs="+", default=[1, 8], help="copies (default 1 8)")
    add_sizes(made, [("rows", 8, "images times copies of a run, and rows of a pass")])
    add_device(made, "cuda")
    made.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the models (default bfloat16)")
    made.add_argument("--tiny", action="store_true", help="very small models of the same classes, to try this command")
    return made


def main(arguments: list[str]) -> None:
    options = checked(parser().parse_args(arguments))
    device = exact_float32(options.device)
    print(f"{words_of(device)}, {options.dtype}, {options.rows} rows, torch {torch.__version__}\n")
    rows, results = Rows(COLUMNS, text=2), {}
    for family in options.families:
        found = Measured(family, options, device, rows).run()
        results[family] = {"cells": found, "gains": gains([x for x in found if "side" in x])}
        release(device)
        write_figures(options, results)
    print()
    show_gains(results)
    failed = [f"{family} {x['way']}" for family, result in results.items() for x in result["cells"] if "error" in x]
    if failed:
        raise InputError("--families", ", ".join(dict.fromkeys(failed)), "failed, see their rows for the reason")
