"""What numbers in annotations of SPair-71k stand for: levels of difficulty, and keypoints that are easily confused."""

from typing import Final

KEYPOINTS: Final = 30
"""Keypoint ids run from 0 to 29 in every category; a category uses a part of them (bus leaves out 8 and 9)."""

_GRADES: Final = ("easy", "medium", "hard")
_SIDES: Final = ("none", "source", "target", "both")

LEVELS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "viewpoint": ("viewpoint_variation", _GRADES),
    "scale": ("scale_variation", _GRADES),
    "truncation": ("truncation", _SIDES),
    "occlusion": ("occlusion", _SIDES),
}
"""Attribute of a pair to the JSON field and the names of its values 0, 1, ... (Min et al., 2019, Table 3)."""

_ANIMAL: Final = ((2, 3), (9, 10, 11, 12))  # ears; paws or hooves
_HORNED: Final = (*_ANIMAL, (15, 16, 17, 18), (19, 20))  # knees; horns

GROUPS: Final[dict[str, tuple[tuple[int, ...], ...]]] = {
    # landing gear, front of engine, wing tip, back of engine, front and back of wing root, tailplane tip, its root
    "aeroplane": tuple((i, i + 1) for i in range(4, 22, 2)),
    # handles, back ends of the saddle, pedals
    "bicycle": ((2, 3), (6, 7), (9, 10)),
    # wing tips, feet, knees, hips
    "bird": ((1, 2), (10, 11), (12, 13), (14, 15)),
    # upper front, side and back; lower front, side and back
    "boat": tuple((i, i + 1) for i in range(1, 13, 2)),
    # cap, neck, shoulder, body, base
    "bottle": tuple((i, i + 1) for i in range(0, 10, 2)),
    # mirrors, lights, licence plates, front of the wheel arch, wheels, back of the arch, upper and lower window corners
    "bus": (
        (0, 1), (2, 3, 5, 6), (4, 7), (10, 13, 20, 23), (11, 14, 21, 24), (12, 15, 22, 25), (16, 17, 26, 27),
        (18, 19, 28, 29),
    ),
    # the same, with brand logos after the plates
    "car": (
        (0, 1), (2, 3, 6, 7), (4, 8), (5, 9), (10, 13, 20, 23), (11, 14, 21, 24), (12, 15, 22, 25), (16, 17, 26, 27),
        (18, 19, 28, 29),
    ),
    "cat": _ANIMAL,
    # front and back of the seat, legs, top of the back, front and back of the arm rests
    "chair": ((0, 1), (2, 3), (4, 5, 6, 7), (8, 9), (10, 11), (12, 13)),
    "cow": _HORNED,
    "dog": _ANIMAL,
    # ears, hooves, knees
    "horse": ((2, 3), (10, 11, 12, 13), (16, 17, 18, 19)),
    # mirrors, handles
    "motorbike": ((0, 1), (2, 3)),
    # shoulders, elbows, wrists, knees, ankles, feet
    "person": tuple((i, i + 1) for i in range(8, 20, 2)),
    # rim, sides, bottom
    "pottedplant": ((0, 1, 2, 3), (4, 5), (6, 8)),
    "sheep": _HORNED,
    # front and back, top and bottom; outer and inner window corners, top and bottom; front lights
    "train": tuple((i, i + 1) for i in range(0, 18, 2)),
    # outer corners and sides, inner corners and sides
    "tvmonitor": ((0, 2, 4, 6), (1, 3, 5, 7), (8, 10, 12, 14), (9, 11, 13, 15)),
}  # fmt: skip
"""The geometry-aware groups of GeoAware-SC (Zhang et al., CVPR 2024; `SPAIR_GEO_AWARE` in its `utils_geoware.py`).

Keypoints of a group differ in left and right, front and back or order only. Eyes, nostrils and the roots of the ears
are in no group there, because they lie close together.
"""
