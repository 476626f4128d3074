"""Every normalisation with every discard and pick of channels on planted streams, against slow references."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from ditf_probe.backbones.base import Norm, TappedBlock
from ditf_probe.errors import InputError
from ditf_probe.features.channels import ChannelPick
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.settings import FITTED, Modulate

Make = Callable[..., Any]
MODULATIONS = get_args(Modulate)
BLOCK, EPS = 1, 1e-5


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 8, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def extractor(planted: Make, images: Tensor) -> FeatureExtractor:
    """Calibrated; channels 2 and 5 of 8 are massive."""
    made = FeatureExtractor(planted(massive={2: 500.0, 5: -700.0}, position=True), blocks=[BLOCK, 0], timestep=1)
    made.calibrate(images, modulations=FITTED)
    return made


def slow(stream: Tensor, modulation: str, discard: str, channels: list[int], shift: Tensor, scale: Tensor) -> Tensor:
    """A recipe in numpy's float64, fitted to the stream itself: `(B, N, C)`."""
    x = stream.double().numpy().copy()
    if discard == "pre_norm":
        x[..., channels] = 0
    if modulation in ("layer_norm", "adaln"):
        x = x - x.mean(-1, keepdims=True)
    if modulation in ("layer_norm", "adaln", "rms_norm"):
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)
    if modulation == "adaln":
        x = (1 + scale.double().numpy()) * x + shift.double().numpy()
    if modulation in FITTED:
        tokens = x.reshape(-1, x.shape[-1])
        x = x - tokens.mean(0)
        alive = tokens.std(0) > 0  # what was discarded is constant
        x[..., alive] /= tokens.std(0)[alive]
        if modulation == "whiten":
            shrunk = 0.9 * np.corrcoef(tokens[:, alive], rowvar=False) + 0.1 * np.eye(alive.sum())
            x[..., alive] = x[..., alive] @ scipy.linalg.fractional_matrix_power(shrunk, -0.5).real
    if discard == "post_adaln":
        x[..., channels] = 0
    return torch.from_numpy(x)


@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("discard", ["none", "pre_norm", "post_adaln"])
@pytest.mark.parametrize("pick", [None, ChannelPick(1), ChannelPick(3), ChannelPick(2, "random", 7)])
def test_recipes_against_a_slow_reference(
    extractor: FeatureExtractor, images: Tensor, modulation: str, discard: str, pick: ChannelPick | None
) -> None:
    backbone: Any = extractor.backbone
    stream = (BLOCK + 1) * backbone.stream(images)
    strengths = stream.double().abs().mean((0, 1)).tolist()
    strongest = sorted(range(8), key=lambda channel: -strengths[channel])
    assert set(strongest[:2]) == {2, 5}
    channels = extractor.recipes.discarded(BLOCK, pick)
    if pick is None or pick.kind == "massive":
        assert channels == sorted(strongest[: 2 if pick is None else pick.count])
    else:
        assert len(channels) == 2
        assert not {2, 5} & set(channels)
    expected = slow(stream, modulation, discard, channels, *backbone.modulation)
    found = extractor.features(extractor.tapped(images), modulation=modulation, discard=discard, pick=pick)[BLOCK]
    assert found.dtype == torch.float32
    tokens = found.flatten(2).mT.double()
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        tokens, expected, rtol=1e-3, atol=2e-4 * max(1.0, scale if modulation == "none" else 1.0)
    )


@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("discard", ["pre_norm", "post_adaln"])
@pytest.mark.parametrize("kind", ["massive", "random"])
def test_no_channel_is_no_discard_bit_for_bit(
    extractor: FeatureExtractor, images: Tensor, modulation: str, discard: str, kind: str
) -> None:
    tapped = extractor.tapped(images)
    plain = extractor.features(tapped, modulation=modulation, discard="none")
    zero = extractor.features(tapped, modulation=modulation, discard=discard, pick=ChannelPick(0, kind))
    assert all(torch.equal(plain[block], zero[block]) for block in plain)
    some = extractor.features(tapped, modulation=modulation, discard=discard, pick=ChannelPick(1, kind))
    assert not any(torch.equal(plain[block], some[block]) for block in plain)


def test_standardisation_without_a_channel_is_the_same_before_and_after(
    extractor: FeatureExtractor, images: Tensor
) -> None:
    tapped = extractor.tapped(images)
    before, after = (
        extractor.features(tapped, modulation="standardise", discard=discard) for discard in ("pre_norm", "post_adaln")
    )
    assert torch.equal(before[BLOCK], after[BLOCK])
    white = [extractor.features(tapped, modulation="whiten", discard=d)[BLOCK] for d in ("pre_norm", "post_adaln")]
    assert float((white[0] - white[1]).abs().max()) > 0.1


def test_the_calibration_images_are_standard_afterwards(extractor: FeatureExtractor, images: Tensor) -> None:
    found = extractor.features(extractor.tapped(images), modulation="standardise")[BLOCK]
    tokens = found.transpose(0, 1).flatten(1)
    torch.testing.assert_close(tokens.mean(1), torch.zeros(8), rtol=0, atol=1e-3)
    torch.testing.assert_close(tokens.std(1, correction=0), torch.ones(8), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("discard", ["none", "pre_norm", "post_adaln"])
def test_means_of_positions(extractor: FeatureExtractor, images: Tensor, modulation: str, discard: str) -> None:
    tapped = extractor.tapped(images)
    recipe = {"modulation": modulation, "discard": discard}
    plain, debiased = (extractor.features(tapped, **recipe, position_debias=d)[BLOCK] for d in ("none", "mean"))
    scale = max(1.0, float(plain.abs().max()))
    torch.testing.assert_close(debiased, plain - plain.mean(0), rtol=0, atol=1e-4 * scale)


def test_means_of_positions_know_their_channels(planted: Make, images: Tensor) -> None:
    extractor = FeatureExtractor(planted(massive={1: 400.0}), blocks=[0], timestep=1, massive_count=2)
    extractor.calibrate(images)
    tapped = extractor.tapped(images)
    own = {"discard": "pre_norm", "position_debias": "mean"}
    plain = extractor.features(tapped, discard="pre_norm")[0]
    torch.testing.assert_close(extractor.features(tapped, **own)[0], plain - plain.mean(0), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"position_debias.*count=2.*count=1"):
        extractor.features(tapped, **own, pick=ChannelPick(1))


def test_settings_in_place_of_arguments(planted: Make, images: Tensor) -> None:
    """A pick of the extractor is the same as one that is asked for, and stands in its record."""
    backbone = planted(massive={3: 300.0})
    options: dict[str, Any] = {"blocks": [0], "timestep": 1, "modulation": "whiten", "discard": "pre_norm"}
    given = FeatureExtractor(
        backbone, **options, massive_count=2, channel_choice="random", channel_seed=4, whiten_shrinkage=0.3
    )
    asked = FeatureExtractor(backbone, **options, whiten_shrinkage=0.3)
    for extractor in (given, asked):
        extractor.calibrate(images)
    pick = ChannelPick(2, "random", 4)
    tapped = given.tapped(images)
    assert torch.equal(given(images)[0], asked.features(tapped, pick=pick)[0])
    record = given.settings()
    assert record["massive_channels"] == {"0": given.recipes.discarded(0)} == {"0": asked.recipes.discarded(0, pick)}
    chosen = ("modulation", "massive_count", "channel_choice", "channel_seed", "whiten_shrinkage", "calibration_images")
    assert [record[key] for key in chosen] == ["whiten", 2, "random", 4, 0.3, 4]
    other = FeatureExtractor(backbone, **options)
    other.calibrate(images)
    assert not torch.equal(other.features(tapped, pick=pick)[0], given(images)[0]), "shrinkage changes features"


def test_what_needs_calibration_says_so(planted: Make, images: Tensor) -> None:
    def extractor(**options: Any) -> FeatureExtractor:
        return FeatureExtractor(planted(), blocks=[0], timestep=1, **options)

    for modulation in FITTED:
        with pytest.raises(InputError, match=r"`modulation` is .*calibrate"):
            extractor(modulation=modulation)(images)
    plain = extractor()
    tapped = plain.tapped(images)
    plain.calibrate(images)
    with pytest.raises(InputError, match=r"calibrate.*standardise"):
        plain.features(tapped, modulation="standardise")
    plain.calibrate(images, modulations=["standardise"])
    with pytest.raises(InputError, match=r"calibrate.*whiten"):
        plain.features(tapped, modulation="whiten")
    for options in ({"massive_count": 1}, {"channel_choice": "random"}):
        with pytest.raises(InputError, match="calibrate"):
            extractor(discard="pre_norm", **options)(images)
    assert extractor(discard="pre_norm", massive_count=0)(images)[0].shape == (4, 8, 2, 3)
    given = extractor(discard="pre_norm", massive_channels=[1, 2], channel_choice="random")
    assert not {1, 2} & set(given.recipes.discarded(0))
    assert given(images)[0].shape == (4, 8, 2, 3)


def test_the_calibration_of_another_extractor(extractor: FeatureExtractor, images: Tensor) -> None:
    again = FeatureExtractor(extractor.backbone, blocks=[BLOCK], timestep=1, modulation="whiten", discard="pre_norm")
    with pytest.raises(InputError, match="calibrate"):
        again(images)
    again.calibration = extractor.calibration
    tapped = extractor.tapped(images)
    expected = extractor.features(tapped, modulation="whiten", discard="pre_norm")
    assert torch.equal(again(images)[BLOCK], expected[BLOCK])
    assert again.discarded(BLOCK) == extractor.discarded(BLOCK) == [2, 5]
    few = FeatureExtractor(extractor.backbone, blocks=[BLOCK], timestep=1)
    few.calibrate(images[:1], modulations=["whiten"])
    assert few.calibration is not None
    again.calibration = few.calibration
    assert not torch.equal(again(images)[BLOCK], expected[BLOCK]), "what was made of the first is forgotten"


def test_calibrating_again_forgets_what_was_fitted(extractor: FeatureExtractor, images: Tensor) -> None:
    tapped = extractor.tapped(images)
    first = extractor.features(tapped, modulation="whiten")[BLOCK]
    extractor.calibrate(images[:2], modulations=["whiten"])
    second = extractor.features(tapped, modulation="whiten")[BLOCK]
    assert not torch.equal(first, second)
    extractor.calibrate(images, modulations=["whiten"])
    assert torch.equal(extractor.features(tapped, modulation="whiten")[BLOCK], first)


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_several_timesteps_are_normalised_each_then_averaged(extractor: FeatureExtractor, modulation: str) -> None:
    stream = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(3))
    shift, scale = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(4))
    extractor.recipes.calibrate([{0: TappedBlock(stream, shift, scale, None, Norm(), (2, 3))}], FITTED)
    found = extractor.recipes.make(
        0, TappedBlock(stream, shift, scale, None, Norm(), (2, 3)), modulation, "post_adaln", ChannelPick(1)
    )
    parts = [TappedBlock(stream[:, s], shift[:, s], scale[:, s], None, Norm(), (2, 3)) for s in range(3)]
    each = [extractor.recipes.make(0, part, modulation, "post_adaln", ChannelPick(1)) for part in parts]
    torch.testing.assert_close(found, torch.stack(each).mean(0))


def test_fewer_tokens_than_channels(planted: Make) -> None:
    image = torch.rand(1, 3, 4, 8, generator=torch.Generator().manual_seed(2))  # two tokens, eight channels
    extractor = FeatureExtractor(planted(), blocks=[0], timestep=1, modulation="whiten")
    extractor.calibrate(image)
    found = extractor(torch.rand(2, 3, 8, 8))[0]
    assert bool(found.isfinite().all())
    assert float(found.abs().max()) > 0


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"massive_count": -1}, "massive_count"),
        ({"massive_count": 9}, "massive_count"),
        ({"massive_count": 2, "massive_channels": [1]}, "massive_count"),
        ({"massive_count": 8, "massive_channels": [1], "channel_choice": "random"}, "massive_count"),
        ({"channel_choice": "weak"}, "channel_choice"),
        ({"channel_seed": -1}, "channel_seed"),
        ({"whiten_shrinkage": 0.0}, "whiten_shrinkage"),
        ({"whiten_shrinkage": 1.5}, "whiten_shrinkage"),
        ({"massive_ratio": 0.0}, "massive_ratio"),
        ({"modulation": "batch_norm"}, "modulation"),
    ],
)
def test_bad_settings_name_the_argument(planted: Make, change: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        FeatureExtractor(planted(), **({"blocks": [0], "timestep": 1} | change))
    assert caught.value.argument == argument


def test_too_many_random_channels_are_refused_by_calibration(planted: Make, images: Tensor) -> None:
    extractor = FeatureExtractor(planted(), blocks=[0], timestep=1, massive_count=5, channel_choice="random")
    with pytest.raises(InputError, match=r"massive_count.*use 0 to 3"):
        extractor.calibrate(images)
