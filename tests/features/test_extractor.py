"""The extractor on planted streams: recipes, calibration, sizes, refusals."""

import json
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.settings import FeatureSettings
from ditf_probe.geometry import prepare_image

Make = Callable[..., object]


def layer_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def as_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    return torch.stack([x[:, row * grid[1] : (row + 1) * grid[1]] for row in range(grid[0])], 1).permute(0, 3, 1, 2)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(1))


def test_recipes(planted: Make, images: Tensor) -> None:
    backbone = planted(massive={6: 900.0})
    extractor = FeatureExtractor(backbone, blocks=[1, 0], timestep=10, massive_channels=[6])
    shift, scale = backbone.modulation
    tapped = extractor.tapped(images)
    for block in (0, 1):
        raw = (block + 1) * backbone.stream(images)
        without = raw.clone()
        without[..., 6] = 0
        modulated = (1 + scale) * layer_norm(raw) + shift
        after = modulated.clone()
        after[..., 6] = 0
        expected = {
            ("none", "none"): raw,
            ("none", "pre_norm"): without,
            ("none", "post_adaln"): without,
            ("layer_norm", "none"): layer_norm(raw),
            ("layer_norm", "pre_norm"): layer_norm(without),
            ("adaln", "none"): modulated,
            ("adaln", "pre_norm"): (1 + scale) * layer_norm(without) + shift,
            ("adaln", "post_adaln"): after,
        }
        for (modulation, discard), tokens in expected.items():
            found = extractor.features(tapped, modulation=modulation, discard=discard)[block]
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, as_map(tokens, (2, 3)), rtol=1e-4, atol=1e-5)
    # The two orders differ by far more than rounding: the channel sets the scale of all others.
    both = [extractor.features(tapped, discard=discard)[0][:, :6] for discard in ("pre_norm", "post_adaln")]
    assert float((both[0] - both[1]).abs().max()) > 0.5


def test_one_call_is_tap_and_recipe(planted: Make, images: Tensor) -> None:
    backbone = planted()
    extractor = FeatureExtractor(backbone, blocks=[-1, 0], timestep=77, tap="attention", ensemble=4, seed=9)
    found = extractor(images, ["a", "b", "c"], conditions=[1, 2, 3])
    assert list(found) == [2, 0]
    assert torch.equal(found[0], extractor.features(extractor.tapped(images))[0])
    assert backbone.calls[0] == ["a", "b", "c"]
    asked = {"blocks": [2, 0], "timestep": 77, "tap": "attention", "ensemble": 4, "seed": 9}
    assert backbone.arguments == asked | {"conditions": None}
    extractor(images, conditions=[1, 2, 3])
    assert backbone.arguments["conditions"] == [1, 2, 3]


def test_calibration_finds_planted_channels_per_block(planted: Make, images: Tensor) -> None:
    extractor = FeatureExtractor(planted(massive={2: 500.0, 5: -500.0}), blocks=[0, 1], timestep=1, discard="pre_norm")
    with pytest.raises(InputError, match="calibrate"):
        extractor(images)
    assert extractor.settings()["massive_channels"] == "auto, not calibrated"
    result = extractor.calibrate([images[:1], images[1:]])
    assert (result.num_images, result.massive_channels) == (3, {0: [2, 5], 1: [2, 5]})
    assert extractor.settings()["massive_channels"] == {"0": [2, 5], "1": [2, 5]}
    given = FeatureExtractor(extractor.backbone, blocks=[0], timestep=1, discard="pre_norm", massive_channels=[5, 2, 2])
    assert torch.equal(extractor(images)[0], given(images)[0])


def test_where_none_is_massive_nothing_is_discarded(planted: Make, images: Tensor) -> None:
    extractor = FeatureExtractor(planted(), blocks=[0], timestep=1, discard="post_adaln")
    assert extractor.calibrate(images).massive_channels == {0: []}
    plain = FeatureExtractor(extractor.backbone, blocks=[0], timestep=1)
    assert torch.equal(extractor(images)[0], plain(images)[0])
    assert extractor.settings()["massive_channels"] == {"0": []}


@pytest.mark.parametrize("modulation", ["none", "layer_norm", "adaln"])
@pytest.mark.parametrize("discard", ["none", "pre_norm", "post_adaln"])
def test_debias_subtracts_the_mean_of_each_position(
    planted: Make, images: Tensor, modulation: str, discard: str
) -> None:
    extractor = FeatureExtractor(planted(massive={1: 400.0}, position=True), blocks=[1], timestep=1)
    with pytest.raises(InputError, match="calibrate"):
        extractor.features(extractor.tapped(images), position_debias="mean")
    extractor.calibrate(images)
    tapped = extractor.tapped(images)
    plain = extractor.features(tapped, modulation=modulation, discard=discard)[1]
    debiased = extractor.features(tapped, modulation=modulation, discard=discard, position_debias="mean")[1]
    torch.testing.assert_close(debiased, plain - plain.mean(0), rtol=1e-4, atol=1e-4)
    assert float(debiased.mean(0).abs().max()) < 1e-3
    assert float(plain.mean(0).std(dim=(1, 2)).max()) > 0.01  # there was a pattern to remove


def test_debias_on_another_grid(planted: Make) -> None:
    """The position pattern of a constant image, read at another resolution (bilinear, half-pixel centres)."""
    backbone = planted()
    extractor = FeatureExtractor(backbone, blocks=[0], timestep=1, modulation="none", position_debias="mean")
    ramp = torch.linspace(0, 1, 8).repeat_interleave(4).expand(1, 3, 8, 32)
    extractor.calibrate(ramp)
    half = extractor(ramp[..., ::2])[0]  # 4 columns instead of 8
    raw = extractor.features(extractor.tapped(ramp[..., ::2]), position_debias="none")[0]
    fine = extractor.features(extractor.tapped(ramp), position_debias="none")[0]
    expected = raw - (fine[..., ::2] + fine[..., 1::2]) / 2
    torch.testing.assert_close(half, expected, rtol=1e-4, atol=1e-5)


def test_calibration_over_grids_that_differ(planted: Make, images: Tensor) -> None:
    extractor = FeatureExtractor(planted(massive={3: 700.0}), blocks=[0], timestep=1)
    result = extractor.calibrate([images, images[:, :, :, :8]], image_ids=[f"i{n}" for n in range(6)])
    assert (result.num_images, result.massive_channels[0]) == (6, [3])
    assert result.position_means["adaln", "none"][0].shape == (8, 2, 3)
    assert extractor.backbone.calls == [["i0", "i1", "i2"], ["i3", "i4", "i5"]]
    with pytest.raises(InputError, match="image_ids"):
        extractor.calibrate(images, image_ids=["a", "b", "c", "d"])
    with pytest.raises(InputError, match="calibration image"):
        extractor.calibrate([])


def test_a_backbone_without_adaln(planted: Make, images: Tensor) -> None:
    extractor = FeatureExtractor(planted(modulated=False), blocks=[0], timestep=1, modulation="layer_norm")
    extractor.calibrate(images)
    assert extractor(images)[0].shape == (3, 8, 2, 3)
    with pytest.raises(InputError, match="no AdaLN"):
        extractor.features(extractor.tapped(images), modulation="adaln")


def test_preparing_an_image(planted: Make, make_image: Make) -> None:
    extractor = FeatureExtractor(planted(), blocks=[0], timestep=1, image_size=(30, 18), filter="bilinear")
    image = make_image(50, 40)
    assert extractor.transform((50, 40)).canvas == (32, 20)  # nearest multiples of the stride of 4
    prepared = extractor.prepare(image)
    assert torch.equal(prepared, prepare_image(image, extractor.transform((50, 40)), "bilinear"))
    own = FeatureExtractor(planted(), blocks=[0], timestep=1, multiple=8)
    assert own.prepare(image).shape == (3, 48, 40)
    kept = FeatureExtractor(planted(), blocks=[0], timestep=1, image_size=40, resize="keep_aspect")
    assert kept.prepare(image).shape == (3, 40, 32)
    padded = FeatureExtractor(planted(), blocks=[0], timestep=1, image_size=40, resize="pad")
    assert padded.prepare(image).shape == (3, 40, 40)


def test_images_are_used_as_they_are_or_brought_to_size(planted: Make, make_image: Make) -> None:
    image = make_image(50, 40)
    batch = (image.float() / 255)[None]
    sized = FeatureExtractor(planted(), blocks=[0], timestep=1, image_size=32)
    assert torch.equal(sized(batch)[0], sized(sized.prepare(image)[None])[0])
    assert sized(batch)[0].shape == (1, 8, 8, 8)
    backbone = planted()
    FeatureExtractor(backbone, blocks=[0], timestep=1)(batch[:, :, :48])
    with pytest.raises(InputError, match="finite"):
        sized(torch.full((1, 3, 50, 40), float("nan")))


def test_settings_are_plain_values(planted: Make) -> None:
    settings = FeatureSettings(blocks=[0, -2], timestep=260, image_size=[32, 64], massive_channels=[1])
    extractor = FeatureExtractor(planted(), **asdict(settings))
    found = json.loads(json.dumps(extractor.settings()))
    expected = asdict(settings) | {"blocks": [0, 1], "multiple": 4, "massive_channels": {"0": [1], "1": [1]}}
    expected |= {"massive_ratio": None, "calibration_images": None, "backbone": {"name": "planted"}}
    assert found == expected


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"blocks": [3]}, "blocks"),
        ({"blocks": []}, "blocks"),
        ({"blocks": [0, 2]}, "tap"),  # block 2 has no second AdaLN
        ({"timestep": 1001}, "timestep"),
        ({"tap": "mid"}, "tap"),
        ({"modulation": "film"}, "modulation"),
        ({"discard": "before"}, "discard"),
        ({"position_debias": "median"}, "position_debias"),
        ({"massive_channels": [8]}, "massive_channels"),
        ({"massive_channels": "top2"}, "massive_channels"),
        ({"ensemble": 0}, "ensemble"),
        ({"multiple": 6}, "multiple"),
    ],
)
def test_bad_settings_name_the_argument(planted: Make, change: dict, argument: str) -> None:
    with pytest.raises(InputError) as caught:
        FeatureExtractor(planted(), **({"blocks": [0], "timestep": 1} | change))
    assert caught.value.argument == argument


def test_unknown_choices_in_a_row(planted: Make, images: Tensor) -> None:
    extractor = FeatureExtractor(planted(), blocks=[0], timestep=1)
    tapped = extractor.tapped(images)
    for choice in ({"modulation": "x"}, {"discard": "x"}, {"position_debias": "x"}):
        with pytest.raises(InputError, match=next(iter(choice))):
            extractor.features(tapped, **choice)


def test_features_can_be_trained_on(planted: Make, images: Tensor) -> None:
    features = FeatureExtractor(planted(), blocks=[0], timestep=1)(images)[0]
    weight = torch.ones(4, 8, 1, 1, requires_grad=True)
    torch.nn.functional.conv2d(features, weight).sum().backward()
    assert weight.grad is not None
    assert not features.requires_grad
