"""Which block and which timestep: a grid of zero-shot scores on SyntheticPairs val, one pass per timestep."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ditf_probe.backbones.base import Tap
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.data.pairs import PairDataset, threshold_base
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.errors import InputError
from ditf_probe.features.bank import FeatureBank
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.files import write_text
from ditf_probe.matching import match_keypoints
from ditf_probe.metrics.pck import pck_counts
from ditf_probe.progress import progress


@dataclass(frozen=True)
class Selection:
    """The best cell of a block x timestep grid.

    Attributes:
        block: Flat block index.
        timestep: Noise level, 0 to 1000.
        tap: The tap that was searched.
        pck: PCK@0.10 per point on SyntheticPairs val, percent.
    """

    block: int
    timestep: int
    tap: Tap
    pck: float


def select(
    name_or_path: str,
    *,
    timesteps: Sequence[int],
    tap: Tap = "mlp",
    num_pairs: int = 200,
    image_size: int = 64,
    ensemble: int = 1,
    device: str = "auto",
    dtype: str = "auto",
) -> Selection:
    """Scores every block that has the tap at every timestep, prints the grid and returns its best cell.

    Args:
        name_or_path: As in `load_backbone`.
        timesteps: Noise levels to try.
        tap: Where to read the residual stream.
        num_pairs: Pairs of SyntheticPairs val.
        image_size: Side of the images given to the backbone, in pixels.
        ensemble: Noise draws per image.
        device: As in `load_backbone`.
        dtype: As in `load_backbone`.

    Returns:
        The best cell; the first one of equals, in order of timesteps, then blocks.
    """
    backbone = load_backbone(name_or_path, device=device, dtype=dtype)
    blocks = [block for block in range(backbone.num_blocks) if tap in backbone.taps(block)]
    if not blocks:
        raise InputError("tap", tap, f"no block of {name_or_path} has it, choose the other one")
    pairs = SyntheticPairs("val", num_pairs=num_pairs, image_size=image_size)
    scores: dict[int, dict[int, float]] = {}
    for timestep in timesteps:
        extractor = FeatureExtractor(
            backbone, blocks=blocks, timestep=timestep, tap=tap, ensemble=ensemble, image_size=image_size
        )
        scores[timestep] = score_blocks(extractor, pairs)
    Console().print(_grid(scores, title=f"{name_or_path}, tap {tap}: PCK@0.10 per point, SyntheticPairs val"))
    cells = [Selection(block, t, tap, pck) for t, row in scores.items() for block, pck in row.items()]
    best = max(cells, key=lambda cell: cell.pck)
    Console().print(f"best: block {best.block}, timestep {best.timestep}: {best.pck:.1f}")
    return best


def score_blocks(extractor: FeatureExtractor, pairs: PairDataset, alpha: float = 0.10) -> dict[int, float]:
    """Zero-shot PCK per point of every block of an extractor, from one pass.

    Args:
        extractor: With the blocks, the timestep and the modulation to score.
        pairs: Pairs to match.
        alpha: Fraction of the threshold base of the data set.

    Returns:
        Block index to percent of visible keypoints matched within the threshold.
    """
    bank = FeatureBank(extractor)
    bank.fill(pairs, pairs.image_ids())
    correct = dict.fromkeys(extractor.blocks, 0)
    total = 0
    with progress(f"matches of {pairs.name}", len(pairs), "pairs") as advance:
        for index in range(len(pairs)):
            pair = pairs[index]
            visible = pair.visible
            base = torch.tensor([threshold_base(pair, pairs.threshold)])
            features = extractor.features(bank.tapped([pair.source.image_id, pair.target.image_id]))
            for block, maps in features.items():
                keypoints = pair.source.keypoints[visible].to(maps.device)
                found, _ = match_keypoints(maps[0], maps[1], keypoints, pair.source.size, pair.target.size)
                truth, seen = pair.target.keypoints[visible][None], torch.ones(1, len(keypoints), dtype=torch.bool)
                correct[block] += int(pck_counts(found.cpu()[None], truth, seen, base, [alpha])[1])
            total += int(visible.sum())
            advance(1)
    if not total:
        raise InputError("pairs", pairs.name, "no keypoint is visible in both images of any pair, use more pairs")
    return {block: 100.0 * hits / total for block, hits in correct.items()}


def preset_lines(path: Path) -> dict[str, int]:
    """Where a preset file holds its block, timestep and tap.

    Args:
        path: YAML file.

    Returns:
        Key to line number from 0.

    Raises:
        InputError: The file is missing, or does not have exactly one line for each.
    """
    if not path.is_file():
        raise InputError("--write", str(path), "no such preset file, name one of configs/backbone/")
    lines = path.read_text().splitlines()
    found = {}
    for key in ("blocks", "timestep", "tap"):
        rows = [number for number, line in enumerate(lines) if line.startswith(f"{key}:")]
        if len(rows) != 1:
            raise InputError("--write", str(path), f"needs exactly one line that starts with `{key}:`")
        found[key] = rows[0]
    return found


def write_preset(path: Path, best: Selection) -> None:
    """Replaces block, timestep and tap in a preset file, keeping its comments.

    Args:
        path: YAML file with `blocks:`, `timestep:` and `tap:` lines.
        best: What to write.

    Raises:
        InputError: The file is missing or lacks one of the lines.
    """
    numbers, lines = preset_lines(path), path.read_text().splitlines()
    for key, value in {"blocks": f"[{best.block}]", "timestep": best.timestep, "tap": best.tap}.items():
        lines[numbers[key]] = f"{key}: {value}"
    write_text(path, "\n".join(lines) + "\n")


def _grid(scores: dict[int, dict[int, float]], title: str) -> Table:
    blocks = list(next(iter(scores.values())))
    best = max(pck for row in scores.values() for pck in row.values())
    table = Table("timestep", *(f"block {block}" for block in blocks), title=title)
    for timestep, row in scores.items():
        cells = (f"[bold green]{pck:.1f}[/]" if pck == best else f"{pck:.1f}" for pck in row.values())
        table.add_row(str(timestep), *cells)
    return table
