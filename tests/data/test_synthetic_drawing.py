"""Sketches, poses and pixels of drawn objects."""

import numpy as np
import pytest
from matplotlib.path import Path

from ditf_probe.data.drawing import OBJECTS, Category, Dice, compose, rasterise
from ditf_probe.data.drawing.categories import other_side
from ditf_probe.data.drawing.dice import mix
from ditf_probe.data.drawing.sketch import Sketch, box, ellipse, ribbon, smooth

RED = (255, 0, 0)


@pytest.mark.parametrize("category", OBJECTS, ids=lambda category: category.name)
def test_every_drawing_marks_the_named_keypoints(category: Category) -> None:
    assert 6 <= len(category.keypoints) <= 12
    assert len(set(category.keypoints)) == len(category.keypoints)
    for number in range(30):
        sketch = category.draw(Dice((number,)))
        assert tuple(sketch.names) == category.keypoints
        assert len(sketch.places) == len(sketch.order) == len(category.keypoints)
        assert np.isfinite(np.concatenate([shape.points for shape in sketch.shapes])).all()


@pytest.mark.parametrize("category", OBJECTS, ids=lambda category: category.name)
def test_mirroring_swaps_sides_where_the_object_faces_the_viewer(category: Category) -> None:
    rows = category.mirrored
    assert sorted(rows) == list(range(len(rows)))
    assert [rows[row] for row in rows] == list(range(len(rows)))
    sided = [name for name in category.keypoints if other_side(name) != name]
    assert bool(sided) == category.frontal
    for name in sided:
        assert category.keypoints[rows[category.keypoints.index(name)]] == other_side(name)


def test_other_side_changes_whole_words_only() -> None:
    assert other_side("left eye") == "right eye"
    assert other_side("right mouth corner") == "left mouth corner"
    assert other_side("leftover brightness") == "leftover brightness"


def _draw_square(dice: Dice) -> Sketch:
    """A pure red square with a grid of marks, the last of them under a green square."""
    del dice
    sketch = Sketch(RED)
    sketch.add(box(-1, -1, 1, 1), RED)
    for i in range(9):
        sketch.mark(str(i), (i % 3 - 1) * 0.7, (i // 3 - 1) * 0.7)
    sketch.mark("under", 0.35, 0.35)
    sketch.add(box(0.25, 0.25, 0.45, 0.45), (0, 255, 0))
    sketch.mark("over", 0.35, 0.35)
    return sketch


SQUARE = Category("square", _draw_square, (*"012345678", "under", "over"))


def test_visibility_agrees_with_the_pixels() -> None:
    checked = {True: 0, False: 0}
    for number in range(120):
        scene = compose(SQUARE, Dice((7, number)))
        visible = scene.visible.copy()
        picture = rasterise(scene, 128)
        red = (picture[..., 0] > 0) & (picture[..., 1:] == 0).all(2)  # occluders are never saturated
        for (x, y), seen in zip(scene.keypoints[:9] * 128 - 0.5, visible[:9], strict=True):
            column, row = round(float(x)), round(float(y))
            if not (4 <= column < 124 and 4 <= row < 124):
                continue
            around = red[row - 1 : row + 2, column - 1 : column + 2]
            if around.all() or not around.any():  # else: at the edge of an occluder
                assert bool(seen) == bool(around.all())
                checked[bool(seen)] += 1
    assert checked[True] > 500
    assert checked[False] > 50


def test_what_is_drawn_later_covers_what_was_marked_before() -> None:
    scenes = [compose(SQUARE, Dice((3, number))) for number in range(20)]
    assert not any(scene.visible[9] for scene in scenes)
    assert any(scene.visible[10] for scene in scenes)


def test_the_box_holds_the_whole_object_cut_at_the_border() -> None:
    for number in range(40):
        scene = compose(SQUARE, Dice((11, number)))
        corners = scene.shapes[0].points.clip(0, 1)
        np.testing.assert_allclose(scene.bbox, [*corners.min(0), *corners.max(0)], atol=1e-12)


def test_covered_keypoints_match_a_slow_reference() -> None:
    for number in range(10):
        for category in OBJECTS:
            if category.frontal:  # their rows may be swapped
                continue
            order = category.draw(Dice((number,))).order
            scene = compose(category, Dice((number,)))
            own = len(category.draw(Dice((number,))).shapes)
            assert own <= len(scene.shapes) <= own + 2
            for point, first, seen in zip(scene.keypoints, order, scene.visible, strict=True):
                hidden = any(Path(shape.points).contains_point(point) for shape in scene.shapes[first:])
                inside = bool(((point >= 1 / 32) & (point <= 31 / 32)).all())
                assert bool(seen) == (inside and not hidden)


def test_a_straight_ribbon_is_a_rectangle() -> None:
    outline = ribbon([(0, 0), (2, 0), (4, 0)], [1, 1, 1])
    np.testing.assert_allclose(outline, [(0, 0.5), (2, 0.5), (4, 0.5), (4, -0.5), (2, -0.5), (0, -0.5)])


def test_a_smooth_curve_passes_through_its_points() -> None:
    corners = [(0.0, 0.0), (2.0, 0.0), (2.0, 1.0), (0.0, 1.0)]
    curve = smooth(*corners)
    assert curve.shape == (16, 2)
    np.testing.assert_allclose(curve[::4], corners, atol=1e-12)
    np.testing.assert_allclose(curve[2], (1.0, -0.125))  # halfway: (-p0 + 9 p1 + 9 p2 - p3) / 16


def test_an_ellipse_turns_from_x_to_y() -> None:
    points = ellipse(1.0, 2.0, 3.0, 1.0, turn=np.pi / 2, corners=8)
    np.testing.assert_allclose(points[[0, 2]], [(1.0, 5.0), (0.0, 2.0)], atol=1e-12)


def test_dice_are_seeded_and_stay_in_range() -> None:
    a, b, other = Dice((1, 2, 3)), Dice((1, 2, 3)), Dice((1, 2, 4))
    draws = [a.between(-2, 5) for _ in range(600)]
    assert draws == [b.between(-2, 5) for _ in range(600)]
    assert draws != [other.between(-2, 5) for _ in range(600)]
    assert min(draws) >= -2
    assert max(draws) < 5
    assert {a.integer(3, 5) for _ in range(200)} == {3, 4, 5}
    assert mix((0, 100, 200), (100, 100, 0), 0.5) == (50, 100, 100)
