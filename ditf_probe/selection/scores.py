"""Zero-shot scores of every block at every timestep, over the same pairs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.backbones.base import Tap
from ditf_probe.data.pairs import Pair, PairDataset, threshold_base
from ditf_probe.errors import InputError
from ditf_probe.features.bank import FeatureBank
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.store import FeatureStore, definition_of
from ditf_probe.features.stored import StoredBank
from ditf_probe.matching import match_keypoints
from ditf_probe.metrics.intervals import Interval, percentile_interval, resampled_scores
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


@dataclass(frozen=True)
class Counts:
    """What the blocks of one pass get right, pair by pair.

    Attributes:
        units: `N` names of sampling units.
        points: `(N,)` visible keypoints of each pair.
        correct: Block index to `(N,)` keypoints that are matched within the threshold.
    """

    units: list[str]
    points: NDArray[np.int64]
    correct: dict[int, NDArray[np.int64]]


@dataclass(frozen=True)
class Cell:
    """One block at one timestep.

    Attributes:
        timestep: Noise level.
        block: Flat block index.
        pck: Percent of visible keypoints matched within the threshold.
        ci95: Its interval over sampling units, or None with one unit.
        delta: Difference to the best cell, never above zero.
        delta_ci95: Its interval; the cells share the resamples, so that it is paired.
    """

    timestep: int
    block: int
    pck: float
    ci95: Interval | None
    delta: float
    delta_ci95: Interval | None

    @property
    def clearly_below(self) -> bool:
        """Whether the whole interval of the difference to the best cell is below zero."""
        return self.delta_ci95 is not None and self.delta_ci95[1] < 0


@dataclass(frozen=True)
class Grid:
    """The scores of every block at every timestep.

    Attributes:
        pairs: Number of pairs with a visible keypoint.
        keypoints: Number of those.
        cells: In order of timesteps, then blocks.
    """

    pairs: int
    keypoints: int
    cells: list[Cell]

    @property
    def best(self) -> Cell:
        """The first of the best cells."""
        return max(self.cells, key=lambda cell: cell.pck)

    @classmethod
    def of(cls, counts: Mapping[int, Counts]) -> "Grid":
        """The grid of the counts of each timestep, all over the same pairs."""
        first = next(iter(counts.values()))
        places = [(timestep, block) for timestep, found in counts.items() for block in found.correct]
        correct = np.stack([counts[timestep].correct[block] for timestep, block in places], axis=1)
        scores = 100.0 * correct.sum(0) / first.points.sum()
        best = int(scores.argmax())
        resampled = resampled_scores(first.units, first.points, correct)
        cells = []
        for number, ((timestep, block), score) in enumerate(zip(places, scores, strict=True)):
            own = difference = None
            if resampled is not None:
                own = percentile_interval(resampled[:, number])
                difference = percentile_interval(resampled[:, number] - resampled[:, best])
            cells.append(Cell(timestep, block, float(score), own, float(score - scores[best]), difference))
        return cls(int((first.points > 0).sum()), int(first.points.sum()), cells)


def score_grid(extractors: Iterable[FeatureExtractor], pairs: PairDataset, store: str | Path | None = None) -> Grid:
    """Scores the blocks of extractors that differ in their timestep, each in one pass.

    Args:
        extractors: With the blocks and the modulation to score, one after the other.
        pairs: Pairs to match.
        store: Folder of feature stores to read streams from, and to keep them in; None keeps nothing.

    Raises:
        InputError: No keypoint is visible in both images of any pair.
    """
    return Grid.of({extractor.timesteps[0]: count_blocks(extractor, pairs, store=store) for extractor in extractors})


def score_blocks(
    extractor: FeatureExtractor, pairs: PairDataset, alpha: float = 0.10, store: str | Path | None = None
) -> dict[int, float]:
    """Zero-shot PCK per point of every block of an extractor, from one pass.

    Args:
        extractor: With the blocks, the timestep and the modulation to score.
        pairs: Pairs to match.
        alpha: Fraction of the threshold base of the data set.
        store: As in `score_grid`.

    Returns:
        Block index to percent of visible keypoints matched within the threshold.
    """
    found = count_blocks(extractor, pairs, alpha, store)
    total = int(found.points.sum())
    return {block: 100.0 * int(correct.sum()) / total for block, correct in found.correct.items()}


def count_blocks(
    extractor: FeatureExtractor, pairs: PairDataset, alpha: float = 0.10, store: str | Path | None = None
) -> Counts:
    """What every block of an extractor gets right, from one pass; see `score_blocks` for the arguments.

    Raises:
        InputError: No keypoint is visible in both images of any pair.
    """
    bank = _bank(extractor, store)
    bank.fill(pairs, pairs.image_ids())
    units, points = [], []
    correct: dict[int, list[int]] = {block: [] for block in extractor.blocks}
    with progress(f"matches of {pairs.name}, t = {extractor.timestep}", len(pairs), "pairs") as advance:
        for pair in (pairs[index] for index in range(len(pairs))):
            units.append(pair.unit)
            points.append(int(pair.visible.sum()))
            tapped = bank.tapped([pair.source.image_id, pair.target.image_id])
            hits = _hits(extractor.features(tapped), pair, threshold_base(pair, pairs.threshold), alpha)
            for block, count in hits.items():
                correct[block].append(count)
            advance(1)
    if not sum(points):
        raise InputError("pairs", pairs.name, "no keypoint is visible in both images of any pair, use more pairs")
    return Counts(units, np.array(points), {block: np.array(counts) for block, counts in correct.items()})


def _bank(extractor: FeatureExtractor, store: str | Path | None) -> FeatureBank:
    if store is None:
        return FeatureBank(extractor)
    kept = FeatureStore(store, definition_of(extractor, "float32"), extractor.backbone.name)
    return StoredBank(extractor, kept)


def _hits(features: Mapping[int, Tensor], pair: Pair, base: float, alpha: float) -> dict[int, int]:
    """Keypoints of a pair that every block matches within the threshold; blocks of one shape are matched together."""
    found: dict[int, int] = {}
    visible = pair.visible
    count = int(visible.sum())
    for shape in dict.fromkeys(maps.shape for maps in features.values()):
        blocks = [block for block, maps in features.items() if maps.shape == shape]
        source, target = torch.stack([features[block] for block in blocks]).unbind(1)
        keypoints = pair.source.keypoints[visible].to(source.device).expand(len(blocks), count, 2)
        predicted, _ = match_keypoints(source, target, keypoints, pair.source.size, pair.target.size)
        truth, bases = pair.target.keypoints[visible].expand(len(blocks), count, 2), torch.full((len(blocks),), base)
        seen = torch.ones(len(blocks), count, dtype=torch.bool)
        hits = pck_counts(predicted.cpu(), truth, seen, bases, [alpha])[1][:, 0]
        found |= dict(zip(blocks, hits.tolist(), strict=True))
    return found
