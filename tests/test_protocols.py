"""Presets hold what the field's code does; changes of a preset are visible and checked."""

from dataclasses import asdict, fields
from pathlib import Path

import pytest

from ditf_probe.configs_folder import CONFIGS
from ditf_probe.errors import InputError
from ditf_probe.matching import MatchingRule
from ditf_probe.metrics.pck import ALPHAS
from ditf_probe.protocols import PROTOCOLS, RULE_KNOBS, Protocol, changed_knobs, find_protocol

# By hand from the code of each project; what is not named here is None in a preset.
SHARED = {"threshold": "dataset", "alphas": list(ALPHAS), "pairs_per_category": 0, "pairs_seed": 0, "check": "none"}
PIXELS = SHARED | {
    "filter": "bicubic", "matching": "argmax_pixel", "rounding": "integer", "origin": "centre", "sampling": "cells",
    "precision": "full", "strict": False, "statistic": "per_point",
}  # fmt: skip
GOLDEN = {
    "default": {},
    # 768 x 768 whatever the aspect; features upsampled to the original image, read at int(x), int(y); <=.
    "dift": PIXELS | {"image_size": 768, "resize": "stretch"},
    # 960 x 960 for a transformer of stride 16, 840 x 840 for DINOv2 of stride 14.
    "ditf-paper": PIXELS | {"cells": 60, "resize": "stretch"},
    # Longer side 640, aspect kept, multiples of 16, matched in half precision.
    "ditf-code": PIXELS | {"image_size": 640, "resize": "keep_aspect", "multiple": 16, "precision": "float16"},
    # Lanczos, centred zeros, 60 x 60 patches, the patch of the keypoint, window of 2 * 5 + 1, masked to zero; <.
    "geoaware": SHARED | {
        "cells": 60, "resize": "letterbox", "filter": "lanczos", "padding": 0.0, "matching": "window_softargmax",
        "rounding": "patch", "window": 11, "temperature": 0.02, "mask": "zero", "origin": "corner",
        "sampling": "cells", "landing": "centre", "precision": "full", "strict": True, "statistic": "per_image",
    },
    # 768 x 768, grid_sample with aligned corners, kernel soft-argmax of sigma 7 and temperature 0.04; <=.
    "sd4match": SHARED | {
        "image_size": 768, "resize": "stretch", "filter": "bilinear", "matching": "kernel_softargmax",
        "rounding": "subpixel", "temperature": 0.04, "sigma": 7.0, "origin": "corner", "sampling": "aligned",
        "landing": "aligned", "precision": "full", "strict": False, "statistic": "per_image",
    },
    # 800 x 800, white at the bottom and right, int keypoints, aligned corners, argmax / width; 200 pairs a class; <.
    "probe3d": SHARED | {
        "image_size": 800, "resize": "letterbox_end", "filter": "bicubic", "padding": 1.0, "matching": "argmax_grid",
        "rounding": "integer", "origin": "corner", "sampling": "aligned", "landing": "corner", "precision": "full",
        "strict": True, "threshold": "bbox", "statistic": "per_point", "pairs_per_category": 200, "pairs_seed": 20,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_every_knob_of_a_preset(name: str) -> None:
    found = {knob: value for knob, value in asdict(find_protocol(name)).items() if value is not None}
    assert found == {"name": name, **GOLDEN[name]}


def test_presets_are_those_that_are_known() -> None:
    assert list(PROTOCOLS) == list(GOLDEN)


def test_every_attribute_of_a_rule_is_a_knob() -> None:
    assert set(RULE_KNOBS.values()) == {field.name for field in fields(MatchingRule)}
    assert set(RULE_KNOBS) <= {field.name for field in fields(Protocol)}
    assert find_protocol("default").rule() == MatchingRule()
    rule = find_protocol("geoaware").rule()
    assert (rule.kind, rule.window, rule.mask, rule.rounding) == ("window_softargmax", 11, "zero", "patch")


def test_a_change_keeps_the_rest_and_is_named() -> None:
    found = find_protocol(Protocol("geoaware", window=5, strict=True))
    assert asdict(found) == asdict(PROTOCOLS["geoaware"]) | {"window": 5}
    assert changed_knobs(found) == ["window"]
    assert changed_knobs(find_protocol("geoaware")) == []


def test_one_size_replaces_the_other() -> None:
    found = find_protocol(Protocol("geoaware", image_size=64))
    assert (found.image_size, found.cells) == (64, None)
    assert changed_knobs(found) == ["image_size", "cells"]
    assert find_protocol("geoaware").feature_settings()["image_size"] is None
    assert find_protocol("dift").feature_settings()["cells"] is None
    assert find_protocol("default").feature_settings() == {}
    with pytest.raises(InputError, match=r"`protocol.cells` is 8: leave it out, or image_size, which is 64"):
        find_protocol(Protocol("dift", image_size=64, cells=8))


def test_files(tmp_path: Path) -> None:
    supervised = find_protocol(str(CONFIGS / "protocol" / "geoaware_supervised.yaml"))
    assert supervised == find_protocol(Protocol("geoaware", window=15))
    with pytest.raises(InputError, match=r"`protocol` is .*none\.yaml"):
        find_protocol(str(tmp_path / "none.yaml"))
    (tmp_path / "wrong.yaml").write_text("name: dift\nwindwo: 3\n")
    with pytest.raises(InputError, match=r"`protocol` is .*wrong\.yaml.*windwo"):
        find_protocol(str(tmp_path / "wrong.yaml"))


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("spair", r"`protocol` is 'spair': use one of default, dift, ditf-paper"),
        (Protocol("dift", resize="crop"), r"`protocol.resize` is 'crop'"),  # type: ignore[arg-type]
        (Protocol("dift", threshold="area"), r"`protocol.threshold` is 'area'"),  # type: ignore[arg-type]
        (Protocol("dift", window=2), r"`window` is 2"),
        (Protocol("dift", cells=0), r"`protocol.cells` is 0"),
        (Protocol("dift", pairs_per_category=-1), r"`protocol.pairs_per_category` is -1"),
    ],
)
def test_bad_protocols(protocol: str | Protocol, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_protocol(protocol)
    assert "\n" not in str(caught.value)
