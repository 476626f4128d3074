"""Matching rules against loops over single keypoints and cells, and against numbers worked out by hand."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.geometry import Landing, Sampling, Transform, fit
from ditf_probe.matching import MatchingRule, Rounding, match_by_rule, match_keypoints
from ditf_probe.matching.rules import Check, Kind, Mask, Origin

KINDS, CHECKS = get_args(Kind), get_args(Check)


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Slow:
    """One map of one image, everything in loops; points are pixels of what the map covers."""

    def __init__(self, feature, place, rule):
        self.feature, self.rule = feature.double().numpy(), rule
        if rule.precision == "float16":
            self.feature = self.feature.astype(np.float16).astype(np.float64)
        self.place = place if isinstance(place, Transform) else None
        self.height, self.width = place.canvas if self.place else place
        self.h, self.w = feature.shape[1:]

    def enter(self, x, y):
        if self.rule.origin == "corner":
            x, y = max(x - 0.5, -0.5), max(y - 0.5, -0.5)
        if self.place:
            (height, width), (tall, wide), (top, left) = self.place.size, self.place.scaled, self.place.offset
            x, y = (x + 0.5) * wide / width - 0.5 + left, (y + 0.5) * tall / height - 0.5 + top
        return x, y

    def leave(self, x, y):
        if self.place:
            (height, width), (tall, wide), (top, left) = self.place.size, self.place.scaled, self.place.offset
            x, y = (x - left + 0.5) * width / wide - 0.5, (y - top + 0.5) * height / tall - 0.5
        half = 0.5 if self.rule.origin == "corner" else 0.0
        return x + half, y + half

    def on_grid(self, x, y, sampling):
        if sampling == "aligned":
            return (x + 0.5) / self.width * (self.w - 1), (y + 0.5) / self.height * (self.h - 1)
        return (x + 0.5) / self.width * self.w - 0.5, (y + 0.5) / self.height * self.h - 0.5

    def cell(self, x, y, sampling="cells"):
        gx, gy = self.on_grid(x, y, sampling)
        return min(max(math.floor(gx + 0.5 + 1e-9), 0), self.w - 1), min(
            max(math.floor(gy + 0.5 + 1e-9), 0), self.h - 1
        )

    def interpolated(self, gx, gy):
        gx, gy = min(max(gx, 0), self.w - 1), min(max(gy, 0), self.h - 1)
        x, y = math.floor(gx), math.floor(gy)
        right, below = min(x + 1, self.w - 1), min(y + 1, self.h - 1)
        a, b = gx - x, gy - y
        f = self.feature
        return (1 - b) * ((1 - a) * f[:, y, x] + a * f[:, y, right]) + b * (
            (1 - a) * f[:, below, x] + a * f[:, below, right]
        )

    def read(self, x, y, rounding, sampling=None):
        sampling = sampling or self.rule.sampling
        if rounding == "integer":
            x, y = max(math.floor(x), 0), max(math.floor(y), 0)
        if rounding == "patch":
            column, row = self.cell(x, y, sampling)
            return self.feature[:, row, column]
        return self.interpolated(*self.on_grid(x, y, sampling))

    def cosines(self, vector):
        own = np.linalg.norm(self.feature, axis=0)
        return np.einsum("c,chw->hw", vector, self.feature) / (own * np.linalg.norm(vector))

    def best(self, vector):
        """Point, cell and cosine of the match."""
        if self.rule.kind == "argmax_pixel":
            big = F.interpolate(torch.from_numpy(self.feature)[None], (self.height, self.width), mode="bilinear")[0]
            maps = F.cosine_similarity(torch.from_numpy(vector)[:, None, None], big, dim=0, eps=1e-30).numpy()
            y, x = divmod(int(np.flatnonzero(maps.ravel() >= maps.max() - 1e-11)[0]), self.width)
            return (x, y), self.cell(x, y), maps[y, x]
        maps = self.cosines(vector)
        row, column = divmod(int(np.flatnonzero(maps.ravel() == maps.max())[0]), self.w)
        gx, gy = self.soft(maps, column, row)
        return self.lands(gx, gy), (column, row), maps[row, column]

    def soft(self, maps, column, row):
        rule = self.rule
        if rule.kind == "argmax_grid":
            return column, row
        total = x = y = 0.0
        for r in range(self.h):
            for c in range(self.w):
                value = maps[r, c]
                if rule.kind == "kernel_softargmax":
                    value *= math.exp(-((c - column) ** 2 + (r - row) ** 2) / (2 * rule.sigma**2))
                elif max(abs(c - column), abs(r - row)) > (rule.window - 1) / 2:
                    if rule.mask == "-inf":
                        continue
                    value = 0.0
                weight = math.exp((value - 1) / rule.temperature)
                total, x, y = total + weight, x + weight * c, y + weight * r
        return x / total, y / total

    def lands(self, gx, gy):
        if self.rule.landing == "corner":
            return gx * self.width / self.w - 0.5, gy * self.height / self.h - 0.5
        if self.rule.landing == "aligned":
            return gx * self.width / max(1, self.w - 1) - 0.5, gy * self.height / max(1, self.h - 1) - 0.5
        return (gx + 0.5) * self.width / self.w - 0.5, (gy + 0.5) * self.height / self.h - 0.5


def slow_match(source, target, keypoint, source_place, target_place, rule):
    """Prediction, cosine and whether it is accepted, and how near the decision was to falling otherwise."""
    here, there = Slow(source, source_place, rule), Slow(target, target_place, rule)
    point = here.enter(*keypoint)
    vector = here.read(*point, rule.rounding)
    match, (column, row), cosine = there.best(vector)
    accepted, margin = True, 1.0
    if rule.check == "mutual":
        if rule.kind == "argmax_pixel":
            back = there.interpolated(*there.on_grid(*match, "cells"))
        else:
            back = there.feature[:, row, column]
        accepted = here.best(back)[1] == here.cell(*point, rule.sampling)
    elif rule.check == "cycle":
        x, y = min(max(match[0], -0.5), there.width - 0.5), min(max(match[1], -0.5), there.height - 0.5)
        x, y = here.leave(*here.best(there.read(x, y, rule.rounding))[0])
        away = math.hypot(x - keypoint[0], y - keypoint[1])
        accepted, margin = away <= rule.cycle_pixels, abs(away - rule.cycle_pixels)
    elif rule.check == "ratio":
        maps = there.cosines(vector)
        others = [
            maps[r, c]
            for r in range(there.h)
            for c in range(there.w)
            if max(abs(r - row), abs(c - column)) > rule.apart
        ]
        rival = math.sqrt(max(0, 2 - 2 * max(others))) if others else math.inf
        distance = math.sqrt(max(0, 2 - 2 * cosine))
        accepted, margin = distance < rule.ratio * rival, abs(distance - rule.ratio * rival)
    return there.leave(*match), cosine, accepted, margin


def random_case(seed):
    """Maps, keypoints, sizes or canvases, visibility and a rule; source and target differ in everything."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    def pick(*options):
        return options[draw(0, len(options) - 1)]

    channels = draw(3, 12)
    maps, places, sizes = [], [], []
    whole = draw(0, 2) == 0
    for side in range(2):
        grid = (draw(2, 8), draw(2, 8))
        size = (draw(8, 50), draw(8, 50))
        if whole:
            transform = fit(size, (grid[0] * 6, grid[1] * 6), pick("letterbox", "letterbox_end"), 6)
            places.append(transform)
        else:
            places.append(size)
        sizes.append(size)
        maps.append(features(channels, *grid, seed=2 * seed + side))
    # Related maps, so that checks are passed as often as not.
    if draw(0, 1):
        maps[1] = F.interpolate(maps[0][None], maps[1].shape[1:], mode="bilinear")[0] + 0.3 * maps[1]
    keypoints = torch.rand(5, 2, generator=generator) * torch.tensor([sizes[0][1] - 1.0, sizes[0][0] - 1.0])
    rule = MatchingRule(
        kind=pick(*KINDS), rounding=pick(*get_args(Rounding)), window=pick(1, 3, 5), temperature=pick(0.02, 0.04, 1.0),
        mask=pick(*get_args(Mask)), sigma=pick(1.0, 7.0), origin=pick(*get_args(Origin)),
        sampling=pick(*get_args(Sampling)), landing=pick(*get_args(Landing)), precision=pick("full", "full", "float16"),
        check=pick(*CHECKS), cycle_pixels=pick(0.0, 3.0, 10.0), ratio=pick(0.6, 0.9, 1.0), apart=pick(0, 1, 2),
    )  # fmt: skip
    return maps, keypoints, places, torch.rand(5, generator=generator) < 0.8, rule


@pytest.mark.parametrize("seed", range(200))
def test_every_rule_equals_a_slow_loop(seed):
    maps, keypoints, places, visible, rule = random_case(seed)
    predictions, similarity, accepted = match_by_rule(*maps, keypoints, *places, rule, visible=visible)
    assert predictions.shape == (5, 2)
    for k in range(5):
        if not visible[k]:
            assert predictions[k].isnan().all()
            assert similarity[k].isnan()
            assert not accepted[k]
            continue
        point, cosine, passes, margin = slow_match(*maps, keypoints[k].tolist(), *places, rule)
        assert predictions[k].tolist() == pytest.approx(point, abs=1e-4), rule
        assert similarity[k].item() == pytest.approx(cosine, abs=1e-5)
        assert margin < 1e-6 or accepted[k].item() == passes, rule


def test_the_random_cases_accept_and_refuse_by_every_check():
    seen = set()
    for seed in range(200):
        maps, keypoints, places, _, rule = random_case(seed)
        accepted = match_by_rule(*maps, keypoints, *places, rule)[2]
        seen |= {(rule.kind, rule.check, bool(passed)) for passed in accepted}
    wanted = {(kind, check, passed) for kind in KINDS for check in CHECKS[1:] for passed in (True, False)}
    assert wanted <= seen


def test_the_default_rule_is_the_exact_matcher():
    source, target = features(8, 5, 7), features(8, 6, 4, seed=1)
    keypoints = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([69.0, 49.0])
    for rounding in get_args(Rounding):
        expected = match_keypoints(source, target, keypoints, (50, 70), (61, 43), rounding=rounding)
        found = match_by_rule(source, target, keypoints, (50, 70), (61, 43), MatchingRule(rounding=rounding))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert found[2].all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS)
def test_a_batch_equals_its_pairs(kind, check):
    source, target = features(3, 8, 4, 5), features(3, 8, 6, 3, seed=1)
    target[1] = F.interpolate(source[1:2], (6, 3), mode="bilinear")[0]
    points = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(0)) * 39
    visible = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]).bool()
    points[~visible] = torch.nan
    rule = MatchingRule(kind=kind, check=check, window=3, cycle_pixels=12, ratio=0.95)
    predictions, similarity, accepted = match_by_rule(source, target, points, (40, 50), (60, 40), rule, visible=visible)
    for pair in range(3):
        seen = visible[pair]
        alone = match_by_rule(source[pair], target[pair], points[pair][seen], (40, 50), (60, 40), rule)
        torch.testing.assert_close(predictions[pair][seen], alone[0])
        torch.testing.assert_close(similarity[pair][seen], alone[1])
        assert torch.equal(accepted[pair][seen], alone[2])
        assert predictions[pair][~seen].isnan().all()
        assert not accepted[pair][~seen].any()


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_the_first_in_row_major_order(kind):
    constant = features(8, 1, 1).expand(8, 4, 6)
    rule = MatchingRule(kind=kind, window=1, sigma=1e-3, temperature=1e-3)
    predictions, similarity, _ = match_by_rule(
        constant, constant, torch.tensor([[50.0, 30.0]]), (40, 60), (40, 60), rule
    )
    first = [0.0, 0.0] if kind == "argmax_pixel" else [4.5, 4.5]
    assert predictions[0].tolist() == pytest.approx(first)
    assert similarity.item() == pytest.approx(1.0)
    # Nothing tells equal cells apart: no ratio below one accepts any of them.
    assert not match_by_rule(
        constant, constant, torch.tensor([[50.0, 30.0]]), (40, 60), (40, 60), replace(rule, check="ratio")
    )[2].any()


def test_soft_argmax_by_hand():
    """Cosines 1, 0.6 and 0 in a row of three cells of 10 pixels; the source is the first cell."""
    target = torch.tensor([[[1.0, 0.6, 0.0]], [[0.0, 0.8, 1.0]]])
    source, point, size = target[:, :, :1], torch.tensor([[3.0, 3.0]]), (10, 30)

    def x_of(**choices):
        rule = MatchingRule(temperature=0.5, **choices)
        return match_by_rule(source, target, point, (10, 10), size, rule)[0][0, 0].item()

    near, far = math.exp(0.6 / 0.5) / math.exp(2), math.exp(0) / math.exp(2)
    assert x_of(kind="argmax_grid") == pytest.approx(4.5)
    assert x_of(kind="window_softargmax", window=1) == pytest.approx(4.5)
    assert x_of(kind="window_softargmax", window=3) == pytest.approx(4.5 + 10 * near / (1 + near))
    # GeoAware's mask: the cell outside the window still weighs as much as a cosine of zero.
    assert x_of(kind="window_softargmax", window=1, mask="zero") == pytest.approx(4.5 + 10 * 3 * far / (1 + 2 * far))
    damped = math.exp(0.6 * math.exp(-0.5) / 0.5) / math.exp(2)
    assert x_of(kind="kernel_softargmax", sigma=1.0) == pytest.approx(
        4.5 + 10 * (damped + 2 * far) / (1 + damped + far)
    )


def test_patches_of_a_letterbox_are_those_of_geoaware():
    """A keypoint at pixel x lies in patch floor((x * scale + offset) / 14); its centre is 14 p + 7 on the canvas."""
    size = (375, 500)
    transform = fit(size, 840, "letterbox", 14)
    scale, (top, left) = Fraction(840, 500), transform.offset
    # Every patch has a vector of its own, so that a map matched with itself returns the patch of the keypoint.
    maps = torch.nn.functional.normalize(features(32, 60, 60), dim=0)
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.stack([torch.randint(0, side, (60,), generator=generator) for side in size[::-1]], 1).float()
    keypoints[0] = torch.tensor([25.0, 12.5])  # 42 and 126 on the canvas: the edge between two patches
    rule = MatchingRule(kind="argmax_grid", rounding="patch", origin="corner")
    predictions, _, _ = match_by_rule(maps, maps, keypoints, transform, transform, rule)
    for (x, y), found in zip(keypoints.tolist(), predictions.tolist(), strict=True):
        column = math.floor((Fraction(x) * scale + left) / 14)
        row = math.floor((Fraction(y) * scale + top) / 14)
        expected = ((14 * column + 7 - left) / scale, (14 * row + 7 - top) / scale)
        assert found == pytest.approx([float(value) for value in expected], abs=1e-3)


def test_half_precision_rounds_the_features_alone():
    source, target = features(16, 5, 5), features(16, 5, 5, seed=1)
    points = torch.tensor([[3.0, 4.0], [30.5, 11.0]])
    found = match_by_rule(source, target, points, (40, 40), (40, 40), MatchingRule(precision="float16"))
    rounded = match_by_rule(source.half().float(), target.half().float(), points, (40, 40), (40, 40))
    assert torch.equal(found[0], rounded[0])
    assert torch.equal(found[1], rounded[1])
    with pytest.raises(InputError, match=r"`source_features` is .*infinity"):
        match_by_rule(source * 1e6, target, points, (40, 40), (40, 40), MatchingRule(precision="float16"))


def test_no_keypoints_give_no_matches():
    for kind in KINDS:
        for check in CHECKS:
            rule = MatchingRule(kind=kind, check=check)
            found = match_by_rule(features(4, 3, 3), features(4, 3, 3), torch.zeros(0, 2), (9, 9), (9, 9), rule)
            assert [tuple(x.shape) for x in found] == [(0, 2), (0,), (0,)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "argmin"}, "`kind` is 'argmin'"),
        ({"rounding": "nearest"}, "`rounding` is 'nearest'"),
        ({"mask": "nan"}, "`mask` is 'nan'"),
        ({"check": "lowe"}, "`check` is 'lowe'"),
        ({"window": 4}, "`window` is 4: use an odd"),
        ({"temperature": 0.0}, "`temperature` is 0.0"),
        ({"sigma": float("nan")}, "`sigma` is nan"),
        ({"ratio": 1.5}, "`ratio` is 1.5"),
        ({"cycle_pixels": -1.0}, "`cycle_pixels` is -1.0"),
    ],
)
def test_bad_rules(change, message):
    with pytest.raises(InputError, match=message):
        MatchingRule(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_features": torch.zeros(3, 3)}, r"`source_features` is '\(3, 3\)"),
        ({"target_features": torch.zeros(5, 3, 3)}, r"`target_features` is \(5, 3, 3\)"),
        ({"source_keypoints": torch.tensor([[12.0, 3.0]])}, r"`source_keypoints` is \(12.0, 3.0\)"),
        ({"target_size": (0, 4)}, r"`target_size` is \(0, 4\)"),
    ],
)
def test_bad_input(change, message):
    arguments = {"source_features": features(4, 3, 3), "target_features": features(4, 3, 3)}
    arguments |= {"source_keypoints": torch.tensor([[11.0, 3.0]]), "source_size": (9, 12), "target_size": (9, 12)}
    match_by_rule(**arguments)
    with pytest.raises(InputError, match=message):
        match_by_rule(**(arguments | change))
