"""Maps of single images are those that pairs are matched with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ditf_probe.data.warped import WarpedPhotos
from ditf_probe.errors import InputError
from ditf_probe.tasks.image_rows import ImageRows
from ditf_probe.tasks.matchers import FeatureMatcher
from ditf_probe.tasks.models import Models
from ditf_probe.tasks.planning import calibrate, plan, streams_of
from ditf_probe.tasks.rows import Fusion, chosen_rows
from ditf_probe.tasks.settings import BackboneFeatures


@pytest.mark.parametrize("resize", ["stretch", "keep_aspect", "pad"])
def test_equal_the_maps_of_pairs(features: BackboneFeatures, resize: str) -> None:
    features = replace(features, image_size=[32, 48], resize=resize)
    dataset = WarpedPhotos(num_pairs=2, image_size=60)
    rows = chosen_rows(["raw", "adaln", "adaln+debias", "same_position", "rgb", "untrained"])
    matchers = plan(Models("cpu"), features, rows)
    calibrate(matchers, dataset)
    for stream in streams_of(matchers):
        stream.open(dataset)
    image_rows = ImageRows(matchers)
    side = dataset[1].target
    found = image_rows(dataset.image(side.image_id)[None], [side.image_id])
    assert list(found) == ["raw", "adaln", "adaln+debias", "rgb", "untrained"]
    for matcher in matchers:
        if isinstance(matcher, FeatureMatcher):
            torch.testing.assert_close(found[matcher.row.name][0], matcher.maps(dataset[1])[1], rtol=0, atol=1e-5)


def test_a_batch_equals_its_images(features: BackboneFeatures) -> None:
    rows = ImageRows(plan(Models("cpu"), features, chosen_rows(["adaln"])))
    images = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    together = rows(images, ["a", "b", "c"])["adaln"]
    for index, name in enumerate("abc"):
        torch.testing.assert_close(rows(images[index : index + 1], [name])["adaln"][0], together[index])


def test_a_store_gives_the_same_maps(features: BackboneFeatures, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kept = replace(features, store=str(tmp_path))
    rows = chosen_rows(["raw", "adaln", "rgb", "untrained"])
    expected = ImageRows(plan(Models("cpu"), features, rows))(images, ["a", "b", "c"])
    for chosen in (kept, kept, replace(kept, store_only=True)):
        found = ImageRows(plan(Models("cpu"), chosen, rows))(images, ["a", "b", "c"])
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_fusion_is_refused(features: BackboneFeatures) -> None:
    fusions = {"both": Fusion(["raw", "adaln"])}
    with pytest.raises(InputError, match="both"):
        ImageRows(plan(Models("cpu"), features, chosen_rows(["raw", "adaln"]), fusions=fusions))
