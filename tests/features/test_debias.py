"""Positional debias against numpy's singular value decomposition, on planted and on real position patterns."""

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from ditf_probe.backbones.vit import TimmBackbone
from ditf_probe.errors import InputError
from ditf_probe.features.debias import noise_images, position_components, project_out
from ditf_probe.features.extractor import FeatureExtractor

Make = Callable[..., object]


def slow_components(features: Tensor, count: int) -> np.ndarray:
    """Columns one by one: length one, mean over images, centred over positions, left singular vectors."""
    images, channels, height, width = features.shape
    columns = []
    for row in range(height):
        for column in range(width):
            mean = np.zeros(channels)
            for image in range(images):
                vector = features[image, :, row, column].double().numpy()
                mean += vector / np.sqrt((vector**2).sum()) / images
            columns.append(mean)
    matrix = np.stack(columns, 1)
    left, _, _ = np.linalg.svd(matrix - matrix.mean(1, keepdims=True))
    return left[:, :count].T


def slow_projection(features: Tensor, components: np.ndarray) -> np.ndarray:
    found = features.double().numpy().copy()
    for image in found:
        for row in range(found.shape[2]):
            for column in range(found.shape[3]):
                for direction in components:
                    image[:, row, column] -= direction * (direction @ image[:, row, column])
    return found


def random_features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)) + 2


@pytest.mark.parametrize(("shape", "count"), [((3, 6, 4, 5), 3), ((1, 12, 2, 3), 5), ((2, 5, 7, 3), 5)])
def test_components_against_numpy(shape: tuple[int, ...], count: int) -> None:
    features = random_features(*shape)
    found = position_components(features, count)
    expected = slow_components(features, count)
    assert (found.shape, found.dtype) == ((count, shape[1]), torch.float32)
    for mine, theirs in zip(found.double().numpy(), expected, strict=True):  # a singular vector has no sign
        np.testing.assert_allclose(mine * np.sign(mine @ theirs), theirs, atol=1e-6)


def test_projection_against_a_loop() -> None:
    features = random_features(2, 6, 3, 4)
    components = position_components(random_features(2, 6, 4, 4), 2)
    found = project_out(features, components)
    np.testing.assert_allclose(found.numpy(), slow_projection(features, components.double().numpy()), atol=1e-5)
    assert torch.allclose(project_out(found, components), found, atol=1e-6)
    assert project_out(features.bfloat16(), components).dtype == torch.float32


def test_by_hand() -> None:
    """Two positions that differ along (1, -1) alone; what is left is the part along (1, 1)."""
    features = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).reshape(1, 2, 1, 2)
    components = position_components(features, 1)
    assert components.abs().flatten().tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    assert project_out(features, components).flatten().tolist() == pytest.approx([2.0, 2.0, 2.0, 2.0])


def test_noise_images_depend_on_the_seed_alone() -> None:
    images = noise_images(3, (8, 12), seed=2)
    assert images.shape == (3, 3, 8, 12)
    assert torch.equal(images[:2], noise_images(2, (8, 12), seed=2))
    assert not torch.equal(images, noise_images(3, (8, 12), seed=3))
    assert not torch.equal(images[0], images[1])
    large = noise_images(1, (128, 128))
    assert float(large.min()) == 0.0
    assert float(large.max()) == 1.0
    assert float(large.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(large.std()) == pytest.approx(0.24, abs=0.01)  # 0.25 before the ends are cut


@pytest.mark.parametrize("count", [0, 7, 12])
def test_more_directions_than_there_are(count: int) -> None:
    with pytest.raises(InputError, match="1 to 6"):
        position_components(random_features(1, 6, 3, 4), count)
    with pytest.raises(InputError, match="1 to 5"):
        position_components(random_features(1, 9, 2, 3), 6)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("modulation", ["none", "adaln"])
def test_the_extractor_projects_a_planted_pattern_out(planted: Make, images: Tensor, modulation: str) -> None:
    """The reference taps the same noise images and goes through numpy."""
    options = {"blocks": [1], "timestep": 1, "debias_components": 3, "debias_images": 2, "seed": 4}
    extractor = FeatureExtractor(planted(position=True), modulation=modulation, position_debias="svd", **options)
    found = extractor(images)[1]
    plain = FeatureExtractor(planted(position=True), modulation=modulation, **options)
    components = slow_components(plain(noise_images(2, (24, 32), seed=4))[1], 3)
    expected = slow_projection(plain(images)[1], components)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
    spread = [float(x.mean(0).flatten(1).std(1).square().sum()) for x in (plain(images)[1], found)]
    assert spread[1] < 0.7 * spread[0]  # what the images share at each position


def test_components_are_computed_once_per_grid_and_recipe(planted: Make, images: Tensor) -> None:
    backbone = planted()
    extractor = FeatureExtractor(backbone, blocks=[0, 1], timestep=1, position_debias="svd", debias_components=2)
    extractor(images)
    extractor(images)
    ids = [f"position {number}" for number in range(4)]
    assert backbone.calls == [None, ids, None]
    tapped = extractor.tapped(images)
    extractor.features(tapped, modulation="none")
    extractor.features(tapped, modulation="none")
    assert backbone.calls == [None, ids, None, None, ids]
    extractor(images[:, :, :, :16])
    assert backbone.calls[5:] == [None, ids]


def test_calibration_makes_components_anew(planted: Make, images: Tensor) -> None:
    """Other channels are discarded afterwards."""
    extractor = FeatureExtractor(
        planted(massive={2: 500.0}), blocks=[0], timestep=1, discard="post_adaln", position_debias="svd",
        debias_components=2,
    )  # fmt: skip
    with pytest.raises(InputError, match="calibrate"):
        extractor(images)
    extractor.calibrate(images)
    assert float(extractor(images)[0][:, 2].abs().max()) < 1e-5
    extractor.backbone.massive = {}
    assert extractor.calibrate(images).massive_channels == {0: []}
    plain = FeatureExtractor(extractor.backbone, blocks=[0], timestep=1, position_debias="svd", debias_components=2)
    assert torch.equal(extractor(images)[0], plain(images)[0])


def test_the_position_embedding_of_a_vision_transformer() -> None:
    """Over a constant image only the position varies; a few directions carry most of it."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, depth=2, embed_dim=48)
    model.pos_embed.data = torch.randn(1, 197, 3) @ torch.randn(3, 48)  # position in a subspace of 3 of 48 channels
    extractor = FeatureExtractor(TimmBackbone(model), blocks=[1], timestep=0, modulation="none", debias_components=6)
    tapped = extractor.tapped(torch.full((1, 3, 96, 128), 0.5))
    spread = []
    for debias in ("none", "svd"):
        tokens = extractor.features(tapped, position_debias=debias)[1].flatten(2)
        spread.append(float((tokens - tokens.mean(-1, keepdim=True)).norm()))
    assert spread[1] < 0.05 * spread[0]


def test_stages_of_a_cnn_have_each_their_own_grid() -> None:
    backbone = TimmBackbone(timm.create_model("test_resnet"))
    options = {"timestep": 0, "modulation": "none", "position_debias": "svd", "debias_components": 4}
    both = FeatureExtractor(backbone, blocks=[1, 3], **options)
    images = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    features = both(images)
    for block in (1, 3):
        alone = FeatureExtractor(backbone, blocks=[block], **options)(images)[block]
        torch.testing.assert_close(features[block], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"debias_components": 0}, {"debias_images": 0}])
def test_bad_settings_name_the_argument(planted: Make, change: dict) -> None:
    with pytest.raises(InputError) as caught:
        FeatureExtractor(planted(), blocks=[0], timestep=1, **change)
    assert caught.value.argument == next(iter(change))
