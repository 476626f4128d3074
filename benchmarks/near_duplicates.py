"""Nearest neighbours of evaluation images among the training images of ditf-tiny.

The central square of every image, which is what training sees, becomes 16 x 16 grey levels with mean 0 and norm 1; the
similarity of two images is the higher correlation of the picture and of its mirror image. Prints, per evaluation set,
how many images have a neighbour above a threshold and the closest pairs, and writes a sheet of those (evaluation image
left, its neighbour right).

    python -m benchmarks near_duplicates --cache runs/pretrain/cache --willow ../shared/data/pf-willow \\
        --photos ../shared/data/caltech101-96/101_ObjectCategories --sheet near_duplicates.png
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from benchmarks.arguments import positive
from ditf_probe.data.image_pools import ImagePool, centre_square
from ditf_probe.data.images import ImagePoolsModule
from ditf_probe.data.photos import list_photos, read_photo
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.files import ensure_writable, replacing

SIDE = 16
SHOWN = 64


def thumbnails(images: Tensor) -> Tensor:
    """`(B, 3, H, W)` in [0, 255] as `(B, 256)` grey levels of mean 0 and norm 1."""
    grey = F.interpolate(images.float().mean(1, keepdim=True), (SIDE, SIDE), mode="area").flatten(1)
    return F.normalize(grey - grey.mean(1, keepdim=True), dim=1)


def nearest(queries: Tensor, pool: ImagePool, chunk: int = 2000) -> tuple[Tensor, Tensor]:
    """Highest correlation of each query over a pool, `(B,)`, and where it is, `(B,)`."""
    best, where = torch.full((len(queries),), -1.0), torch.zeros(len(queries), dtype=torch.long)
    mirrored = queries.reshape(-1, SIDE, SIDE).flip(2).flatten(1)
    for start in track(range(0, len(pool.images), chunk), description="correlations", transient=True):
        keys = thumbnails(pool.images[start : start + chunk])
        values, indices = torch.maximum(queries @ keys.T, mirrored @ keys.T).max(1)
        better = values > best
        best, where = torch.where(better, values, best), torch.where(better, indices + start, where)
    return best, where


def square(image: Tensor) -> Tensor:
    """The central square of an image `(3, H, W)`, `(3, 64, 64)` uint8."""
    return torch.from_numpy(centre_square(image, SHOWN).copy())


def report(name: str, images: list[Tensor], pools: list[ImagePool], threshold: float, console: Console) -> list[Tensor]:
    """Prints the numbers of one evaluation set; returns its closest pairs, side by side, `(3, 64, 128)` uint8."""
    small = torch.stack([square(image) for image in images])
    found = [nearest(thumbnails(small), pool) for pool in pools]
    best = torch.stack([values for values, _ in found])
    highest, pool_index = best.max(0)
    console.print(
        f"{name}: {len(images)} images, highest correlation {highest.max():.3f}, median {highest.median():.3f}, "
        f"{int((highest > threshold).sum())} above {threshold}",
        soft_wrap=True,
    )
    sheets = []
    for index in highest.argsort(descending=True)[:8].tolist():
        chosen = int(pool_index[index])
        number = int(found[chosen][1][index])
        sheets.append(torch.cat([small[index], square(pools[chosen].images[number])], dim=2))
        console.print(f"  {highest[index]:.3f}  image {index}, pool {chosen}, number {number}")
    return sheets


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks near_duplicates", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="arrays of the training images, drawn if missing")
    parser.add_argument("--photos", type=Path, help="image folder that was trained on (default: drawings alone)")
    parser.add_argument("--num-drawn", type=positive, default=80_000, help="drawings trained on (default 80000)")
    parser.add_argument("--willow", type=Path, help="root of PF-WILLOW (default: drawings alone)")
    parser.add_argument("--num-pairs", type=positive, default=1000, help="of SyntheticPairs test (default 1000)")
    parser.add_argument("--threshold", type=float, default=0.95, help="correlation that is counted (default 0.95)")
    parser.add_argument("--sheet", type=Path, help="PNG of the closest pairs")
    options = parser.parse_args(arguments)
    if options.sheet:
        ensure_writable(options.sheet.parent, "--sheet")
    willow = list_photos(options.willow, "--willow") if options.willow else []
    module = ImagePoolsModule(options.photos, options.cache, options.num_drawn)
    module.setup()
    console = Console()
    test = SyntheticPairs("test", options.num_pairs)
    sheets = report(
        "SyntheticPairs test", [test.image(i) for i in test.image_ids()], module.pools, options.threshold, console
    )
    if willow:
        sheets += report("PF-WILLOW", [read_photo(path) for path in willow], module.pools, options.threshold, console)
    if options.sheet:
        sheets += [torch.zeros_like(sheets[0])] * (-len(sheets) % 4)
        rows = [torch.cat(sheets[i : i + 4], dim=2) for i in range(0, len(sheets), 4)]
        with replacing(options.sheet) as temporary:
            Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(temporary, format="png")
