"""What extracting features costs, in three comparisons on a DiT of any size with random weights.

loop       this project (images of one size as a batch, noise draws as a batch, one pass of the autoencoder per image,
           the transformer left at the last block of the first half) over the loop of published codes: image by image,
           the autoencoder once per draw, the whole transformer. Same weights, noise and threads, float32; features are
           compared.
ensemble   an ensemble through `FeatureExtractor`, at the last block, over as many single passes of the bare transformer
           and one pass of the bare autoencoder
depth      the last block of the first half: the whole transformer, left early, and loaded up to there. Weights are
           those of the transformer; resident memory is how much a process grows by loading it.

Within a comparison all ways take turns in one process, after a round of warm-up, and ratios are those of single rounds.
Peak memory is measured in processes of their own, above the state with the model loaded.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.arguments import add_sizes, checked, measuring_parser, positive
from benchmarks.measuring import (
    PeakMemory,
    console,
    in_turns,
    measure_apart,
    memory,
    memory_ratio,
    ratio,
    report,
    shown,
    table,
    three,
    timed,
)
from ditf_probe.errors import InputError

TIMESTEP = 141
Work = Callable[[], Any]


def loop_works(folder: Path, options: argparse.Namespace, block: int | None = None) -> dict[str, Work]:
    """The same images both ways; each returns id to feature `(C, h, w)` of a block, by default of half the depth."""
    from benchmarks.extraction_peers import ReferenceLoop
    from benchmarks.models import images_of
    from ditf_probe import FeatureExtractor, load_backbone

    backbone: Any = load_backbone(folder, device="cpu", dtype="float32")
    block = half(options) if block is None else block
    extractor = FeatureExtractor(backbone, blocks=[block], timestep=TIMESTEP, ensemble=options.ensemble)
    groups = [images_of(side, options.images) for side in options.sides]

    def ours() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for images, ids in groups:
            for start in range(0, len(ids), options.batch_size):
                part = slice(start, start + options.batch_size)
                found |= zip(ids[part], extractor(images[part], ids[part])[block], strict=True)
        return found

    def reference() -> dict[str, Tensor]:
        loop = ReferenceLoop(backbone.transformer, backbone.latents.vae, block, TIMESTEP, options.ensemble)
        try:
            return {name: loop(image, name) for images, ids in groups for image, name in zip(images, ids, strict=True)}
        finally:
            loop.close()

    return {"reference": reference, "ours": ours}


def measure_loop(folder: Path, options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Comparison `loop`."""
    works = loop_works(folder, options)
    found = {name: work() for name, work in works.items()}  # the warm-up
    apart = max(float((found["ours"][name] - feature).abs().max()) for name, feature in found["reference"].items())
    taken = in_turns(works, options.repeats, warmups=0)
    results: dict[str, Any] = {name: timed(runs) for name, runs in taken.items()}
    for name in works:
        command = ["extraction", *arguments, "--in-this-process", f"loop-{name}", str(folder)]
        results[name] |= measure_apart("loop", name, command)
    results["images"] = len(found["reference"])
    return results | {"ratio": ratio(taken["reference"], taken["ours"]), "largest_difference": apart}


def measure_ensemble(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Comparison `ensemble`."""
    from benchmarks.models import images_of
    from ditf_probe import FeatureExtractor, load_backbone

    backbone: Any = load_backbone(folder, device="cpu", dtype="float32")
    draws = options.draws
    extractor = FeatureExtractor(backbone, blocks=[options.blocks - 1], timestep=TIMESTEP, ensemble=draws)
    images, ids = images_of(options.sides[0], 1)
    transformer, vae = backbone.transformer, backbone.latents.vae
    latents = torch.randn(1, 4, *(options.sides[0] // backbone.latents.stride for _ in range(2)))
    inputs = {
        "timestep": torch.tensor([TIMESTEP]),
        "class_labels": torch.tensor([transformer.config.num_embeds_ada_norm]),
    }

    def passes() -> None:
        for _ in range(draws):
            transformer(latents, **inputs)

    works: dict[str, Work] = {
        "passes": passes,
        "encode": lambda: vae.encode(images * 2 - 1),
        "ensemble": lambda: extractor(images, ids),
    }
    with torch.no_grad():
        taken = in_turns(works, options.repeats)
    bare = [a + b for a, b in zip(taken["passes"], taken["encode"], strict=True)]
    results: dict[str, Any] = {name: timed(runs) for name, runs in taken.items()}
    return results | {"draws": draws, "ratio": ratio(taken["ensemble"], bare)}


def half(options: argparse.Namespace) -> int:
    """The last block of the first half."""
    return max(0, int(options.blocks) // 2 - 1)


def weight_bytes(backbone: Any) -> int:
    return sum(parameter.nbytes for parameter in backbone.transformer.parameters())


def load_at(folder: Path, options: argparse.Namespace, part: str) -> Any:
    """The transformer of pixels, whole or up to the middle."""
    from ditf_probe import load_backbone

    if part == "whole":
        return load_backbone(folder, device="cpu", dtype="float32")
    return load_backbone(folder, device="cpu", dtype="float32", last_block=half(options), last_tap="mlp")


def measure_depth(folder: Path, options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Comparison `depth`."""
    from benchmarks.models import images_of
    from ditf_probe import FeatureExtractor

    whole, truncated = load_at(folder, options, "whole"), load_at(folder, options, "truncated")
    images, ids = images_of(options.sides[0], 1)
    extractors = {
        name: FeatureExtractor(backbone, blocks=[half(options)], timestep=TIMESTEP)
        for name, backbone in (("early_exit", whole), ("truncated", truncated))
    }
    times, labels = torch.tensor([TIMESTEP]), torch.tensor([whole.transformer.config.num_embeds_ada_norm])
    works: dict[str, Work] = {name: partial(x, images, ids) for name, x in extractors.items()}
    works = {"whole": lambda: whole.transformer(images * 2 - 1, timestep=times, class_labels=labels), **works}
    with torch.no_grad():
        taken = in_turns(works, options.repeats)
        same = torch.equal(*(works[name]()[half(options)] for name in extractors))
    results: dict[str, Any] = {name: timed(runs) for name, runs in taken.items()}
    for name, backbone in (("whole", whole), ("truncated", truncated)):
        command = ["extraction", *arguments, "--in-this-process", f"depth-{name}", str(folder)]
        results[name] |= {"weight_mb": weight_bytes(backbone) / 1e6} | measure_apart("depth", name, command)
    results |= {f"{name}_ratio": ratio(taken["whole"], taken[name]) for name in extractors}
    for field in ("weight_mb", "resident_mb"):
        results[f"{field}_ratio"] = memory_ratio(results["whole"][field], results["truncated"][field])
    return results | {"block": half(options), "same_features": same}


@torch.no_grad()
def measure_memory(part: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Memory of one way in this process."""
    kind, _, name = part.partition("-")
    if kind == "loop":
        work = loop_works(folder, options)[name]
        peak = PeakMemory()
        work()
        return {"peak_mb": peak()}
    from ditf_probe import load_backbone

    load_backbone("ditf-tiny", device="cpu")  # libraries are not to be counted
    before = memory("VmRSS")
    backbone = load_at(folder, options, name)
    found = memory("VmRSS") - before
    del backbone
    return {"resident_mb": found}


def loop_table(found: dict[str, Any], options: argparse.Namespace) -> Table:
    title = (
        f"{found['images']} images of {' and '.join(map(str, options.sides))} pixels, block {half(options)} of "
        f"{options.blocks}, width {options.width}, ensemble {options.ensemble}, {options.threads} threads, "
        f"torch {torch.__version__}; features differ by {found['largest_difference']:.1e} at most"
    )
    rows = [[name, *three(found[name]), f"{found[name]['peak_mb']:.0f}"] for name in ("reference", "ours")]
    ratios = ["reference over ours", *three(found["ratio"], ".2f")]
    ratios.append(shown(memory_ratio(found["reference"]["peak_mb"], found["ours"]["peak_mb"])))
    return table(title, ("", "min s", "median s", "max s", "peak MB"), [*rows, ratios])


def ensemble_table(found: dict[str, Any], options: argparse.Namespace) -> Table:
    title = f"ensemble of {found['draws']}, one image of {options.sides[0]} pixels, {options.threads} threads"
    names = {"passes": f"{found['draws']} bare passes", "encode": "bare encoding", "ensemble": "FeatureExtractor"}
    rows = [[label, *three(found[name])] for name, label in names.items()]
    rows.append(["FeatureExtractor over both", *three(found["ratio"], ".3f")])
    return table(title, ("", "min s", "median s", "max s"), rows)


def depth_table(found: dict[str, Any], options: argparse.Namespace) -> Table:
    title = f"block {found['block']} of {options.blocks}, one image of {options.sides[0]} pixels, no autoencoder"
    rows = []
    for name in ("whole", "early_exit", "truncated"):
        sizes = [f"{found[name][key]:.1f}" if key in found[name] else "" for key in ("weight_mb", "resident_mb")]
        rows.append([name.replace("_", " "), *three(found[name], ".4f"), *sizes])
    sizes = [shown(found[f"{key}_ratio"]) for key in ("weight_mb", "resident_mb")]
    rows.append(["whole over early exit", *three(found["early_exit_ratio"], ".2f"), "", ""])
    rows.append(["whole over truncated", *three(found["truncated_ratio"], ".2f"), *sizes])
    return table(title, ("", "min s", "median s", "max s", "weights MB", "resident MB"), rows)


PARTS = ("loop", "ensemble", "depth")


def parser() -> argparse.ArgumentParser:
    from benchmarks.models import add_model

    made = measuring_parser("extraction", __doc__)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which comparisons (default all)")
    made.add_argument(
        "--sides", type=positive, nargs="+", default=[256, 192], help="of square images, in pixels (default 256 192)"
    )
    sizes = [("images", 4, "of each size"), ("batch-size", 4, "most images per call")]
    add_sizes(made, [*sizes, ("ensemble", 4, "draws of `loop`"), ("draws", 8, "of `ensemble`")])
    add_model(made)
    made.add_argument("--folder", type=Path, help="for the model, which goes again (default: that of temporary files)")
    made.add_argument("--in-this-process", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    return made


def main(arguments: list[str]) -> None:
    from benchmarks.models import check_side, save_pipeline, save_pixels

    options = checked(parser().parse_args(arguments))
    if options.in_this_process:
        part, folder = options.in_this_process
        print(json.dumps(measure_memory(part, Path(folder), options)))
        return
    for side in options.sides:
        check_side("--sides", side, options)
    if options.folder and not options.folder.is_dir():
        raise InputError("--folder", str(options.folder), "is no folder")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="extraction-benchmark-") as name:
        pipeline, pixels = save_pipeline(Path(name) / "latents", options), save_pixels(Path(name) / "pixels", options)
        works: dict[str, Work] = {
            "loop": lambda: measure_loop(pipeline, options, arguments),
            "ensemble": lambda: measure_ensemble(pipeline, options),
            "depth": lambda: measure_depth(pixels, options, arguments),
        }
        for part in options.parts:
            with console().status(f"{part} ..."):
                results[part] = works[part]()
    made = {"loop": loop_table, "ensemble": ensemble_table, "depth": depth_table}
    report([made[part](results[part], options) for part in options.parts], options, results)
