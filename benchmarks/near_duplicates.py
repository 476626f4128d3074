"""Nearest neighbours of evaluation images among the training images of ditf-tiny.

Every image becomes 16 x 16 grey levels with mean 0 and norm 1; the similarity of two images is the higher correlation
of the picture and of its mirror image. Prints, per evaluation set, how many images have a neighbour above a threshold
and the closest pairs, and writes a sheet of those (evaluation image left, its neighbour right).

    python -m benchmarks.near_duplicates --cache runs/pretrain/cache --willow ../shared/data/pf-willow \\
        --photos ../shared/data/caltech101-96/101_ObjectCategories --sheet near_duplicates.png
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.data.images import ImagePool, ImagePoolsModule
from ditf_probe.data.photos import list_photos, read_photo
from ditf_probe.data.synthetic import SyntheticPairs

SIDE = 16


def thumbnails(images: Tensor) -> Tensor:
    """`(B, 3, H, W)` in [0, 255] as `(B, 256)` grey levels of mean 0 and norm 1."""
    grey = F.interpolate(images.float().mean(1, keepdim=True), (SIDE, SIDE), mode="area").flatten(1)
    return F.normalize(grey - grey.mean(1, keepdim=True), dim=1)


def nearest(queries: Tensor, pool: ImagePool, chunk: int = 2000) -> tuple[Tensor, Tensor]:
    """Highest correlation of each query over a pool, `(B,)`, and where it is, `(B,)`."""
    best, where = torch.full((len(queries),), -1.0), torch.zeros(len(queries), dtype=torch.long)
    mirrored = queries.reshape(-1, SIDE, SIDE).flip(2).flatten(1)
    for start in track(range(0, len(pool.images), chunk), description="correlations", transient=True):
        keys = thumbnails(torch.from_numpy(np.array(pool.images[start : start + chunk])))
        values, indices = torch.maximum(queries @ keys.T, mirrored @ keys.T).max(1)
        better = values > best
        best, where = torch.where(better, values, best), torch.where(better, indices + start, where)
    return best, where


def report(name: str, images: list[Tensor], pools: list[ImagePool], threshold: float, console: Console) -> list[Tensor]:
    """Prints the numbers of one evaluation set; returns its closest pairs, side by side, `(3, 64, 128)` uint8."""
    small = [F.interpolate(image[None].float(), (64, 64), mode="area")[0] for image in images]
    found = [nearest(thumbnails(torch.stack(small)), pool) for pool in pools]
    best = torch.stack([values for values, _ in found])
    highest, pool_index = best.max(0)
    console.print(
        f"{name}: {len(images)} images, highest correlation {highest.max():.3f}, median {highest.median():.3f}, "
        f"{int((highest > threshold).sum())} above {threshold}"
    )
    sheets = []
    for index in highest.argsort(descending=True)[:8].tolist():
        chosen = int(pool_index[index])
        neighbour = torch.from_numpy(np.array(pools[chosen].images[int(found[chosen][1][index])])).float()
        neighbour = F.interpolate(neighbour[None], (64, 64), mode="area")[0]
        sheets.append(torch.cat([small[index], neighbour], dim=2).byte())
        console.print(f"  {highest[index]:.3f}  image {index}, pool {chosen}, number {int(found[chosen][1][index])}")
    return sheets


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("near_duplicates", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="arrays of the training images")
    parser.add_argument("--photos", type=Path, help="image folder that was trained on")
    parser.add_argument("--num-drawn", type=int, default=80_000)
    parser.add_argument("--willow", type=Path, help="root of PF-WILLOW")
    parser.add_argument("--num-pairs", type=int, default=1000, help="pairs of SyntheticPairs test")
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--sheet", type=Path, help="PNG of the closest pairs")
    options = parser.parse_args(arguments)
    module = ImagePoolsModule(options.photos, options.cache, options.num_drawn)
    module.setup()
    console = Console()
    test = SyntheticPairs("test", options.num_pairs)
    sheets = report(
        "SyntheticPairs test", [test.image(i) for i in test.image_ids()], module.pools, options.threshold, console
    )
    if options.willow:
        photos = [read_photo(path) for path in list_photos(options.willow)]
        sheets += report("PF-WILLOW", photos, module.pools, options.threshold, console)
    if options.sheet:
        rows = [torch.cat(sheets[i : i + 4], dim=2) for i in range(0, len(sheets), 4)]
        Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
