"""Whether this project's matching finds what the loops of published codes find, over random pairs."""

import argparse
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.matching_methods import METHODS, Case, random_cases, settled, upsample
from benchmarks.measuring import table

WITHIN = 1e-5


def similarity_map(case: Case, number: int) -> Tensor:
    """Cosines of one keypoint with all pixels, row by row, in float64 and by upsampling."""
    x, y = case.keypoints[number].long().tolist()
    target = F.normalize(upsample(case.target.double(), case.size).flatten(1), dim=0)
    return F.normalize(upsample(case.source.double(), case.size)[:, y, x], dim=0) @ target


def deficit(case: Case, number: int, prediction: Tensor) -> float:
    """How far the similarity at a pixel is below the highest of all pixels."""
    x, y = prediction.long().tolist()
    cosines = similarity_map(case, number)
    return float(cosines.max() - cosines[y * case.size[1] + x])


@torch.no_grad()
def measure_agreement(options: argparse.Namespace) -> dict[str, Any]:
    """Compares `exact` with `reference` pixel by pixel, and `grid_exact` with `grid_loop` by distance."""
    cases = random_cases(
        options.channels,
        tuple(options.grid),
        tuple(options.image),
        options.keypoints,
        pairs=options.agreement,
        sizes=options.agreement,
        seed=options.seed,
    )
    found: dict[str, Any] = {"pairs": len(cases), "keypoints": 0, "same": 0, "same_beside_border_ties": 0}
    deficits, distance = [0.0], 0.0
    for case in cases:
        expected, mine = METHODS["reference"].match(*case)[0], METHODS["exact"].match(*case)[0]
        same = (mine == expected).all(1)
        found["keypoints"] += len(same)
        found["same"] += int(same.sum())
        found["same_beside_border_ties"] += int((settled(case, mine) == settled(case, expected)).all(1).sum())
        deficits += [deficit(case, number, mine[number]) for number in (~same).nonzero().flatten().tolist()]
        cells = [METHODS[name].match(*case)[0] for name in ("grid_loop", "grid_exact")]
        distance = max(distance, float((cells[0] - cells[1]).norm(dim=1).max()))
    beyond = sum(value > WITHIN for value in deficits)
    return found | {"largest_deficit": max(deficits), "beyond_1e-5": beyond, "largest_grid_distance": distance}


def agreement_table(found: dict[str, Any], options: argparse.Namespace) -> Table:
    (rows, columns), (height, width) = options.grid, options.image
    title = (
        f"{found['pairs']} random pairs, {options.channels} channels, up to {columns}x{rows} cells, {width}x{height} "
        f"pixels and {options.keypoints} keypoints, seed {options.seed}"
    )
    total = found["keypoints"]
    lines = [
        ("keypoints with the reference's pixel", f"{found['same']} of {total}"),
        ("or with one of equal similarity at the border", f"{found['same_beside_border_ties']} of {total}"),
        ("similarity below its maximum, at most", f"{found['largest_deficit']:.1e}"),
        ("keypoints with more than 1e-5 of that", str(found["beyond_1e-5"])),
        ("distance from the grid loop, at most, pixels", f"{found['largest_grid_distance']:.1e}"),
    ]
    return table(title, ("exact against reference", ""), lines)
