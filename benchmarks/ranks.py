"""Extraction by one process of one core beside two, and whether metrics of the same store are the same bits.

Images are computed into a fresh store by `eval.py predict`, by one rank and by two ranks on gloo, in turns; every rank
has one thread. `loop` begins when models are loaded and the work is planned, and ends with the last rank; `whole` is
the process from start to end, imports and the launch of ranks included. The ratio is one rank over two.

Then `eval.py test` reads one full store, by one rank and by two. Compared are all values of comparison.json under
`datasets`, and the predictions byte by byte.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.arguments import add_sizes, checked, measuring_parser
from benchmarks.measuring import console, ratio, report, table, three, timed
from ditf_probe.errors import InputError

RANKS = (1, 2)
FEATURES = {"blocks": [3], "timestep": 100, "tap": "mlp"}


def write_photos(folder: Path, count: int, side: int) -> None:
    """Seeded noise as PNG files."""
    import torch
    from PIL import Image

    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        pixels = torch.randint(256, (side, side, 3), generator=generator).byte()
        Image.fromarray(pixels.numpy()).save(folder / f"{number:05d}.png")


def extract(folder: Path, model: Path, photos: Path, ranks: int, options: argparse.Namespace) -> dict[str, float]:
    """One extraction to a new store; refuses one that is not whole or computed an image twice."""
    from benchmarks.runs import entries, evaluate

    features = FEATURES | {"backbone": str(model), "blocks": [options.blocks - 1], "batch_size": options.batch_size}
    source = {"class_path": "ditf_probe.data.photo_folder.PhotoFolder", "init_args": {"root": str(photos)}}
    task = {"features": features, "store": str(folder / "store")}
    more = {
        "model": {"class_path": "ditf_probe.tasks.ExtractionTask", "init_args": task},
        "data": {
            "class_path": "ditf_probe.data.image_module.ImageModule",
            "init_args": {"sources": {"photos": source}},
        },
    }
    found = evaluate(folder, ["predict"], more, ranks)
    (count,) = entries(folder / "store").values()
    if count != (options.images, options.images):
        remedy = f"the store has {count[0]} of {options.images} images, written {count[1]} times; look into {folder}"
        raise InputError("ranks", ranks, remedy)
    return {"whole": found.whole, "loop": found.loop}


def measure_extraction(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Extracts by one rank and by two, in turns."""
    import shutil

    from benchmarks.models import save_pixels

    model, photos = save_pixels(folder / "model", options), folder / "photos"
    write_photos(photos, options.images, options.side)
    found: dict[int, list[dict[str, float]]] = {ranks: [] for ranks in RANKS}
    for repeat in range(options.repeats):
        for ranks, runs in found.items():
            place = folder / f"{repeat}-{ranks}"
            with console().status(f"{ranks} ranks ..."):
                runs.append(extract(place, model, photos, ranks, options))
            shutil.rmtree(place)
    results: dict[str, Any] = {}
    for field in ("loop", "whole"):
        taken = {ranks: [run[field] for run in runs] for ranks, runs in found.items()}
        results[field] = {str(ranks): timed(runs) for ranks, runs in taken.items()}
        results[field]["ratio"] = ratio(taken[1], taken[2])
    return results


def compare_metrics(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tests by one rank and by two over one store that is full."""
    from benchmarks.runs import evaluate

    features = FEATURES | {"backbone": "ditf-tiny", "image_size": 64, "store": str(folder / "store")}
    pairs = {
        "class_path": "ditf_probe.data.synthetic.SyntheticPairs",
        "init_args": {"split": "test", "num_pairs": options.pairs},
    }

    def test(name: str, ranks: int, store_only: bool) -> Path:
        task = {"features": features | {"store_only": store_only}, "rows": ["raw", "adaln", "same_position"]}
        more = {
            "model": {"class_path": "ditf_probe.tasks.CorrespondenceTask", "init_args": task},
            "data": {
                "class_path": "ditf_probe.data.datamodule.PairDataModule",
                "init_args": {"test": {"synthetic": pairs}},
            },
        }
        with console().status(f"metrics, {name} ..."):
            evaluate(folder / name, ["test"], more, ranks)
        return folder / name

    test("filling", 1, store_only=False)
    one, two = test("one", 1, store_only=True), test("two", 2, store_only=True)
    return same_bits(one, two)


def same_bits(one: Path, two: Path) -> dict[str, Any]:
    """Which metrics and predictions of two run folders differ."""
    scores = [json.loads((run / "comparison.json").read_text())["datasets"] for run in (one, two)]
    names = sorted({file.relative_to(run) for run in (one, two) for file in run.glob("predictions/**/*.csv")})
    contents = [[(run / name).read_bytes() if (run / name).is_file() else b"" for name in names] for run in (one, two)]
    differing = [str(name) for name, a, b in zip(names, *contents, strict=True) if a != b]
    if not names:
        raise InputError("ranks", str(one), "has no predictions to compare")
    return {"same_metrics": scores[0] == scores[1], "predictions": len(names), "differing_predictions": differing}


def results_table(results: dict[str, Any], options: argparse.Namespace) -> Table:
    title = (
        f"{options.images} images of {options.side} pixels, batches of {options.batch_size}, {options.blocks} blocks "
        f"of width {options.width}, one thread per rank"
    )
    rows = []
    for field in ("loop", "whole"):
        found = results["extraction"][field]
        rows += [[f"{field}, {ranks} rank{'s' * (ranks > 1)}", *three(found[str(ranks)], unit=" s")] for ranks in RANKS]
        rows.append([f"{field}, one rank over two", *three(found["ratio"], ".2f")])
    return table(title, ("", "min", "median", "max"), rows)


def metrics_table(found: dict[str, Any]) -> Table:
    differing = found["differing_predictions"]
    rows = [
        ["metrics", "same bits" if found["same_metrics"] else "differ"],
        ["prediction files", f"{found['predictions'] - len(differing)} of {found['predictions']} the same bytes"],
    ]
    return table("two ranks beside one, same store", ("", ""), rows)


def parser() -> argparse.ArgumentParser:
    from benchmarks.models import add_model

    made = measuring_parser("ranks", __doc__, repeats=3)
    sizes = [("images", 64, "to extract"), ("side", 256, "of an image in pixels"), ("batch-size", 4, "images per call")]
    add_sizes(made, [*sizes, ("pairs", 64, "of the test whose metrics are compared")])
    add_model(made)
    made.add_argument("--folder", type=Path, help="for stores, which go again (default: that of temporary files)")
    return made


def main(arguments: list[str]) -> None:
    from benchmarks.models import check_side

    options = checked(parser().parse_args(arguments))
    check_side("--side", options.side, options)
    if options.folder and not options.folder.is_dir():
        raise InputError("--folder", str(options.folder), "is no folder")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="ranks-benchmark-") as name:
        folder = Path(name)
        results = {"extraction": measure_extraction(folder, options), "metrics": compare_metrics(folder, options)}
    report([results_table(results, options), metrics_table(results["metrics"])], options, results)
