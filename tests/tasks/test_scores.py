"""From annotations and matches to what is counted and kept."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ditf_probe.data.pairs import Pair, PairDataset, Side, threshold_base
from ditf_probe.errors import InputError
from ditf_probe.metrics.pck import alpha_key
from ditf_probe.metrics.predictions import Predictions
from ditf_probe.tasks.matches import Match
from ditf_probe.tasks.records import pair_facts
from ditf_probe.tasks.scores import Scores

CPU = torch.device("cpu")
ALPHAS = (0.05, 0.10, 0.20)


class RandomPairs(PairDataset):
    """200 pairs that follow from their index; what a side does not show stands at -1, as in some annotations."""

    name, unit, threshold = "random", "pair", "bbox"

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        generator = torch.Generator().manual_seed(index)
        count = index % 6
        sides = []
        for name in ("source", "target"):
            points = torch.rand(count, 2, generator=generator) * 50 + 20
            visible = torch.rand(count, generator=generator) < 0.7
            points[~visible] = -1
            size = (90 + index % 7, 120 - index % 5)
            sides.append(Side(f"{index}/{name}", size, points, visible, torch.tensor([5.0, 10.0, 85.0, 70.0])))
        attributes = {"viewpoint": str(index % 3), "empty": ""}
        return Pair(index, ("cat", "dog")[index % 2], str(index // 4), sides[0], sides[1], attributes=attributes)

    def image(self, image_id: str) -> Tensor:
        raise KeyError(image_id)

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        return ((0, 1),) if category == "cat" else ()


def match(pair: Pair) -> Match:
    """Matches of the keypoints that the source shows, some near, some rejected; every fifth without a grid."""
    generator = torch.Generator().manual_seed(1000 + pair.index)
    near = pair.target.keypoints[pair.source.visible]
    points = near + 6 * torch.randn(near.shape, generator=generator)
    similarity, chance = torch.rand(2, len(near), generator=generator)
    canvas = 130.0 + pair.index if pair.index % 3 else None
    return Match(points, similarity, chance < 0.8, (5, 8), canvas)


def scored(threshold: str | None = None, strict: bool = False) -> tuple[Scores, Predictions]:
    dataset = RandomPairs()
    scores = Scores(dataset, ["row"], ALPHAS, strict, CPU, threshold=threshold)
    for start in range(0, len(dataset), 16):
        pairs = [dataset[index] for index in range(start, min(start + 16, len(dataset)))]
        scores.update("row", pairs, [match(pair) for pair in pairs])
    return scores, scores.predictions()["row"]


def test_kept_rows_equal_slow_loops() -> None:
    _, found = scored()
    row = 0
    for pair in (RandomPairs()[index] for index in range(200)):
        matched = match(pair)
        shown = pair.source.visible.nonzero()[:, 0].tolist()
        for position, k in enumerate(shown):
            point = matched.points[position].tolist()
            assert (found.pair_index[row], found.keypoint[row]) == (pair.index, k)
            assert (found.x[row], found.y[row]) == tuple(point)
            assert found.present[row] == pair.target.visible[k]
            assert found.accepted[row] == matched.accepted[position]
            gaps = {
                j: math.dist(point, pair.target.keypoints[j].tolist())
                for j in pair.target.visible.nonzero()[:, 0].tolist()
            }
            assert found.nearest[row] == (min(gaps, key=lambda j: gaps[j]) if gaps else -1)
            if found.present[row]:
                truth = pair.target.keypoints[k].tolist()
                height, width = pair.target.size
                steps = (width / 8, height / 5)
                centres = [((i + 0.5) * steps[0] - 0.5, (j + 0.5) * steps[1] - 0.5) for i in range(8) for j in range(5)]
                assert (found.true_x[row], found.true_y[row]) == tuple(truth)
                assert found.ceiling[row] == pytest.approx(min(math.dist(truth, c) for c in centres), abs=1e-4)
            else:
                assert np.isnan([found.true_x[row], found.true_y[row], found.ceiling[row]]).all()
            row += 1
    assert row == len(found)
    assert not found.present.all()
    assert not found.accepted.all()


def slow_base(pair: Pair, kind: str) -> float:
    height, width = pair.target.size
    if kind == "bbox":
        return 80.0
    if kind == "image":
        return float(max(height, width))
    if kind == "canvas":
        return match(pair).canvas or float(max(height, width))
    both = [p for p, seen in zip(pair.target.keypoints.tolist(), pair.visible, strict=True) if seen]
    return max(max(p[axis] for p in both) - min(p[axis] for p in both) for axis in (0, 1)) if both else math.nan


@pytest.mark.parametrize("kind", ["bbox", "keypoints", "image", "canvas"])
@pytest.mark.parametrize("strict", [False, True])
def test_every_threshold_base_equals_slow_loops(kind: str, strict: bool) -> None:
    """The -1 of missing keypoints is in no base; a match that the rule rejects is wrong."""
    scores, found = scored(kind, strict)
    assert scores.threshold == kind
    hits = dict.fromkeys(ALPHAS, 0)
    total = 0
    for pair in (RandomPairs()[index] for index in range(200)):
        base = slow_base(pair, kind)
        own = found.pair_index == pair.index
        assert found.threshold_base[own] == pytest.approx(np.full(own.sum(), base), nan_ok=True)
        matched, shown = match(pair), pair.source.visible.nonzero()[:, 0].tolist()
        for position, k in enumerate(shown):
            if pair.target.visible[k]:
                gap = math.dist(matched.points[position].tolist(), pair.target.keypoints[k].tolist())
                total += 1
                for alpha in ALPHAS:
                    hits[alpha] += bool(matched.accepted[position]) and gap <= alpha * base
    scored_pck = scores.pck["row"].compute()["per_point"]
    for alpha in ALPHAS:
        assert scored_pck[alpha_key(alpha)].item() == pytest.approx(100 * hits[alpha] / total, abs=1e-4)


def test_without_padding_the_image_is_the_canvas() -> None:
    pair = RandomPairs()[5]
    assert threshold_base(pair, "canvas") == threshold_base(pair, "image") == 120
    assert threshold_base(pair, "canvas", 150.5) == 150.5
    assert threshold_base(pair, "bbox", 150.5) == 80


def test_an_unknown_base_is_refused() -> None:
    with pytest.raises(InputError, match="`threshold` is 'head': use one of bbox, keypoints, image, canvas"):
        Scores(RandomPairs(), ["row"], ALPHAS, False, CPU, threshold="head")
    with pytest.raises(InputError, match="`threshold` is 'head'"):
        threshold_base(RandomPairs()[1], "head")


def test_a_row_without_a_grid_has_no_ceiling() -> None:
    dataset = RandomPairs()
    scores = Scores(dataset, ["row"], ALPHAS, False, CPU)
    pairs = [dataset[index] for index in (4, 5)]
    scores.update("row", pairs, [match(pair)._replace(grid=None) for pair in pairs])
    assert np.isnan(scores.predictions()["row"].ceiling).all()


def test_facts_hold_attributes_and_geometry_aware_keypoints() -> None:
    dataset = RandomPairs()
    facts = pair_facts(dataset, range(200))
    for index, found in facts.items():
        pair = dataset[index]
        twins = set()
        if pair.category == "cat" and len(pair.visible) > 1 and pair.target.visible[0] and pair.target.visible[1]:
            twins = {k for k in (0, 1) if pair.source.visible[k]}
        assert set(found.geometry_aware) == twins
        assert found.attributes == {"viewpoint": str(index % 3)}
