"""The bank: every image once, equal sizes together, within its budget."""

from collections.abc import Callable

import pytest
import torch

from ditf_probe.errors import InputError
from ditf_probe.features.bank import FeatureBank
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.loading import equal_size_batches

Make = Callable[..., object]


@pytest.fixture
def extractor(planted: Make) -> FeatureExtractor:
    return FeatureExtractor(planted(massive={2: 300.0}), blocks=[0, 1], timestep=1)


@pytest.fixture
def dataset(given_pairs: Make, make_image: Make) -> object:
    sizes = [(8, 12), (12, 8), (8, 12), (8, 12), (12, 8)]
    return given_pairs([make_image(*size, seed) for seed, size in enumerate(sizes)])


def test_an_image_is_computed_once(extractor: FeatureExtractor, dataset: object) -> None:
    bank = FeatureBank(extractor)
    bank.fill(dataset, ["image0", "image2", "image0"])
    bank.fill(dataset, batch_size=2)
    bank.fill(dataset)
    computed = [image_id for call in extractor.backbone.calls for image_id in call]
    assert sorted(computed) == [f"image{i}" for i in range(5)]
    assert len(bank) == 5
    assert "image4" in bank
    assert "image5" not in bank


def test_what_is_in_it_is_what_the_extractor_taps(extractor: FeatureExtractor, dataset: object) -> None:
    bank = FeatureBank(extractor)
    bank.fill(dataset)
    tapped = bank.tapped(["image3", "image0", "image3"])
    prepared = torch.stack([extractor.prepare(dataset.image(f"image{i}")) for i in (3, 0, 3)])
    expected = extractor.tapped(prepared)
    for block in (0, 1):
        torch.testing.assert_close(tapped[block].hidden_states, expected[block].hidden_states)
        assert torch.equal(tapped[block].shift, expected[block].shift)
        assert (tapped[block].norm, tapped[block].grid) == (expected[block].norm, (2, 3))
    features = extractor.features(tapped)[1]
    torch.testing.assert_close(features, extractor(prepared)[1])


def test_workers_give_the_same(extractor: FeatureExtractor, dataset: object) -> None:
    banks = [FeatureBank(extractor) for _ in range(2)]
    for workers, bank in enumerate(banks):
        bank.fill(dataset, num_workers=workers)
    for image_id in dataset.image_ids():
        first, second = (bank.tapped([image_id])[1].hidden_states for bank in banks)
        assert torch.equal(first, second)


def test_conditions_follow_the_ids(extractor: FeatureExtractor, dataset: object) -> None:
    seen = []

    def conditions(ids: list[str]) -> list[int]:
        seen.append((ids, extractor.backbone.arguments.get("conditions")))
        return [int(image_id[-1]) for image_id in ids]

    FeatureBank(extractor).fill(dataset, ["image1", "image4"], conditions=conditions)
    assert seen == [(["image1", "image4"], None)]
    assert extractor.backbone.arguments["conditions"] == [1, 4]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_estimate_is_what_it_takes(extractor: FeatureExtractor, dataset: object, dtype: str) -> None:
    bank = FeatureBank(extractor, dtype=dtype)
    bank.fill(dataset)
    assert bank.nbytes == bank.estimate([(8, 12)] * 3 + [(12, 8)] * 2)
    assert str(bank.tapped(["image0"])[0].hidden_states.dtype) == f"torch.{dtype}"
    assert bank.tapped(["image0"])[0].shift.dtype == torch.float32


def test_slices_do_not_keep_their_batch_alive(extractor: FeatureExtractor, dataset: object) -> None:
    bank = FeatureBank(extractor)
    bank.fill(dataset)
    stream = bank._blocks["image0"][0].hidden_states
    assert stream.untyped_storage().nbytes() == stream.nbytes


def test_the_budget_is_checked_before_anything_is_computed(extractor: FeatureExtractor, dataset: object) -> None:
    needed = FeatureBank(extractor).estimate([(8, 12)] * 5)
    enough, short = (FeatureBank(extractor, budget_gib=(needed + spare) / 2**30) for spare in (1, -1))
    enough.fill(dataset)
    computed = len(extractor.backbone.calls)
    with pytest.raises(InputError, match=r"5 images need .* GiB"):
        short.fill(dataset)
    assert len(extractor.backbone.calls) == computed
    short.fill(dataset, ["image0"])
    with pytest.raises(InputError, match="4 images"):
        short.fill(dataset)


def test_calibration_from_the_bank(extractor: FeatureExtractor, dataset: object) -> None:
    bank = FeatureBank(extractor)
    bank.calibrate(dataset, ["image0", "image2", "image3"])
    assert extractor.calibration.massive_channels == {0: [2], 1: [2]}
    assert extractor.calibration.num_images == 3
    from_bank = extractor.calibration.position_means["adaln", "none"][0]
    images = torch.stack([extractor.prepare(dataset.image(f"image{i}")) for i in (0, 2, 3)])
    torch.testing.assert_close(from_bank, extractor.calibrate(images).position_means["adaln", "none"][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line_from_any_worker(
    extractor: FeatureExtractor, given_pairs: Make, make_image: Make, workers: int
) -> None:
    broken = given_pairs([make_image(8, 8), make_image(8, 8)], broken=True)
    with pytest.raises(InputError, match="`image` is 'image1': cannot be read"):
        FeatureBank(extractor).fill(broken, num_workers=workers)


def test_bad_input(extractor: FeatureExtractor, dataset: object) -> None:
    bank = FeatureBank(extractor)
    bank.fill(dataset)
    for ids, word in (([], "at least one"), (["nobody"], "fill"), (["image0", "image1"], "different grids")):
        with pytest.raises(InputError, match=word):
            bank.tapped(ids)
    with pytest.raises(InputError, match="ids"):
        bank.fill(dataset, ["nobody"])
    for options in ({"dtype": "int8"}, {"budget_gib": 0.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            FeatureBank(extractor, **options)


def test_streams_too_large_for_float16(planted: Make, dataset: object) -> None:
    extractor = FeatureExtractor(planted(massive={2: 1e6}), blocks=[0], timestep=1)
    with pytest.raises(InputError, match="bfloat16"):
        FeatureBank(extractor, dtype="float16").fill(dataset)
    FeatureBank(extractor, dtype="bfloat16").fill(dataset)


def test_batches_of_equal_size() -> None:
    canvases = {"a": (1, 2), "b": (2, 1), "c": (1, 2), "d": (1, 2)}
    assert equal_size_batches(canvases, 2) == [["a", "c"], ["d"], ["b"]]
    assert equal_size_batches({}, 2) == []
