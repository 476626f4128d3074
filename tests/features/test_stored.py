"""The bank over a store: nothing is computed twice by anyone, and the streams are those of a bank without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ditf_probe.errors import InputError
from ditf_probe.features.bank import FeatureBank
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.settings import FeatureSettings
from ditf_probe.features.store import FeatureStore, definition_of, feature_store
from ditf_probe.features.store.manifest import address_of, differences
from ditf_probe.features.stored import StoredBank, entry_keys

Make = Callable[..., Any]
IDS = [f"image{i}" for i in range(5)]


@pytest.fixture
def extractor(planted: Make) -> FeatureExtractor:
    return FeatureExtractor(planted(massive={2: 300.0}), blocks=[0, 1], timestep=1)


@pytest.fixture
def dataset(given_pairs: Make, make_image: Make) -> Any:
    sizes = [(8, 12), (12, 8), (8, 12), (8, 12), (12, 8)]
    return given_pairs([make_image(*size, seed) for seed, size in enumerate(sizes)])


def stored(extractor: FeatureExtractor, root: Path, *, dtype: str = "float32", **options: Any) -> StoredBank:
    store = FeatureStore(root, definition_of(extractor, dtype), create=not options.get("only", False))
    return StoredBank(extractor, store, dtype=dtype, **options)


def computed(extractor: FeatureExtractor) -> list[str]:
    return [image_id for call in extractor.backbone.calls for image_id in call]


def same(first: FeatureBank, second: FeatureBank, ids: list[str]) -> bool:
    """Whether two banks hold the same bytes."""
    for image_id in ids:
        one, two = first.tapped([image_id]), second.tapped([image_id])
        assert list(one) == list(two)
        for a, b in zip(one.values(), two.values(), strict=True):
            assert (a.norm, a.grid, a.hidden_states.dtype) == (b.norm, b.grid, b.hidden_states.dtype)
            for name in ("hidden_states", "shift", "scale", "gate"):
                x, y = getattr(a, name), getattr(b, name)
                assert (x is None) == (y is None)
                assert x is None or torch.equal(x, y)
    return True


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("modulated", [True, False])
def test_the_streams_are_those_of_a_bank_without_a_store(
    planted: Make, dataset: Any, tmp_path: Path, dtype: str, modulated: bool
) -> None:
    extractor = FeatureExtractor(planted(modulated=modulated), blocks=[0, 1], timestep=1)
    plain = FeatureBank(extractor, dtype=dtype)
    cold, warm = (stored(extractor, tmp_path, dtype=dtype) for _ in range(2))
    plain.fill(dataset, batch_size=2)
    cold.fill(dataset, batch_size=2)
    calls = len(extractor.backbone.calls)
    warm.fill(dataset, batch_size=2)
    assert len(extractor.backbone.calls) == calls, "the second run computes nothing"
    assert len(cold) == len(warm) == 5
    assert same(plain, cold, IDS)
    assert same(plain, warm, IDS)
    together = [bank.tapped(["image2", "image0", "image2"])[1].hidden_states for bank in (plain, cold, warm)]
    assert torch.equal(together[0], together[1])
    assert torch.equal(together[0], together[2])


def test_only_what_is_missing_is_computed(extractor: FeatureExtractor, dataset: Any, tmp_path: Path) -> None:
    stored(extractor, tmp_path).fill(dataset, ["image3", "image0"])
    bank = stored(extractor, tmp_path)
    assert "image0" not in bank, "it has not been asked for"
    bank.fill(dataset)
    bank.fill(dataset)
    assert sorted(computed(extractor)) == IDS
    assert "image0" in bank


def test_another_process_is_seen(extractor: FeatureExtractor, dataset: Any, tmp_path: Path) -> None:
    first, second = stored(extractor, tmp_path), stored(extractor, tmp_path)
    first.fill(dataset)
    second.fill(dataset)
    assert sorted(computed(extractor)) == IDS


def test_blocks_add_up(planted: Make, dataset: Any, tmp_path: Path) -> None:
    """One store serves every choice of blocks, and holds each block of an image once."""
    backbone = planted()
    make = [FeatureExtractor(backbone, blocks=blocks, timestep=1) for blocks in ([1], [0, 1], [0])]
    for extractor in make:
        stored(extractor, tmp_path).fill(dataset)
    assert len(computed(make[0])) == 10, "block 0 once, block 1 once"
    held = [sorted({name[0] for name in load_file(path)}) for path in tmp_path.glob("*/*.safetensors")]
    assert sorted(held) == [["0"]] * 2 + [["1"]] * 2, "images of two prepared sizes, one block per shard"
    whole = stored(make[1], tmp_path)
    whole.fill(dataset)
    assert len(computed(make[0])) == 10
    plain = FeatureBank(make[1])
    plain.fill(dataset)
    assert same(whole, plain, IDS)


def test_memory_stays_within_the_budget(extractor: FeatureExtractor, dataset: Any, tmp_path: Path) -> None:
    """The images that were asked for longest ago leave, and come back from the store."""
    one = FeatureBank(extractor).estimate([(8, 12)])
    bank = stored(extractor, tmp_path, budget_gib=2.5 * one / 2**30)
    plain = FeatureBank(extractor)
    plain.fill(dataset)
    for _ in range(2):
        bank.fill(dataset)
        for image_id in ("image0", "image3", "image1", "image1", "image3"):
            bank.tapped([image_id])
            assert bank.nbytes == bank._held <= 2.5 * one
        assert list(bank._blocks) == ["image1", "image3"]
        assert same(bank, plain, IDS)
    assert sorted(computed(extractor)) == sorted(IDS * 2)
    tiny = stored(extractor, tmp_path, budget_gib=1 / 2**30)
    tiny.fill(dataset)
    assert same(tiny, plain, IDS)
    assert len(tiny._blocks) == 1


def test_reading_copies_nothing(extractor: FeatureExtractor, dataset: Any, tmp_path: Path) -> None:
    stored(extractor, tmp_path).fill(dataset)
    bank = stored(extractor, tmp_path)
    bank.fill(dataset)
    first, second = (bank.tapped([name])[1].hidden_states for name in ("image0", "image2"))
    assert second.data_ptr() - first.data_ptr() == first.nbytes, "neighbours in one mapped shard"


def test_calibration_is_the_same(planted: Make, dataset: Any, tmp_path: Path) -> None:
    found = []
    for number in range(3):
        extractor = FeatureExtractor(planted(massive={2: 300.0}), blocks=[0, 1], timestep=1)
        bank = FeatureBank(extractor) if number == 0 else stored(extractor, tmp_path)
        bank.calibrate(dataset, ["image0", "image2", "image3"])
        found.append(extractor.calibration)
    for other in found[1:]:
        assert other.massive_channels == found[0].massive_channels == {0: [2], 1: [2]}
        for recipe, means in other.position_means.items():
            assert all(torch.equal(mean, found[0].position_means[recipe][block]) for block, mean in means.items())


def test_a_condition_is_part_of_an_entry(extractor: FeatureExtractor, dataset: Any, tmp_path: Path) -> None:
    texts = {"image0": "a cat", "image2": "a dog"}
    stored(extractor, tmp_path).fill(dataset, ["image0", "image2"], conditions=lambda ids: [texts[i] for i in ids])
    texts["image2"] = "a duck"
    bank = stored(extractor, tmp_path)
    bank.fill(dataset, ["image0", "image2"], conditions=lambda ids: [texts[i] for i in ids])
    assert computed(extractor) == ["image0", "image2", "image2"]
    assert len(bank.store) == 3
    assert entry_keys(["a", "b", "c"], None) == ["a", "b", "c"]
    first, second, third = entry_keys(["a", "b", "a"], lambda ids: ["x", "x", 7])
    assert first.split()[1] == second.split()[1] != third.split()[1]
    with pytest.raises(InputError, match="conditions"):
        entry_keys(["a"], lambda ids: torch.zeros(1))


def test_images_at_hand(extractor: FeatureExtractor, dataset: Any, tmp_path: Path) -> None:
    """Batches that come with their pixels, an image twice among them, some known and some not."""
    stored(extractor, tmp_path).fill(dataset, ["image2"])
    bank, plain = stored(extractor, tmp_path), FeatureBank(extractor)
    plain.fill(dataset)
    ids = ["image0", "image2", "image0", "image3"]
    images = torch.stack([dataset.image(image_id) for image_id in ids])
    for _ in range(2):
        found, expected = bank.through(images, ids), plain.tapped(ids)
        for block in (0, 1):
            torch.testing.assert_close(found[block].hidden_states, expected[block].hidden_states)
            assert torch.equal(found[block].shift, expected[block].shift)
    assert [call for call in extractor.backbone.calls if len(call) < 3] == [
        ["image2"],
        ["image1", "image4"],
        ["image0", "image3"],
    ]
    with pytest.raises(InputError, match="image0"):
        bank.through(images[:1, :, :, 1:], ["image0"])
    only = stored(extractor, tmp_path, only=True)
    only.through(images[:2], ids[:2], None)
    with pytest.raises(InputError, match="store_only"):
        only.through(dataset.image("image1")[None], ["image1"])
    texts = ["a", "b", "a", "c"]
    labelled = stored(extractor, tmp_path)
    labelled.through(images, ids, texts)
    assert extractor.backbone.arguments["conditions"] == ["a", "b", "c"]
    calls = len(extractor.backbone.calls)
    labelled.through(images, ids, texts)
    assert len(extractor.backbone.calls) == calls
    labelled.through(images, ids, ["a", "b", "a", "d"])
    assert extractor.backbone.arguments["conditions"] == ["d"], "another text is another entry, in memory as well"


def test_an_id_of_another_size_is_refused(
    extractor: FeatureExtractor, given_pairs: Make, make_image: Make, tmp_path: Path
) -> None:
    for width, refused in ((12, False), (16, True)):
        dataset = given_pairs([make_image(8, 12), make_image(8, width)])
        bank = stored(extractor, tmp_path)
        if not refused:
            bank.fill(dataset)
        else:
            with pytest.raises(InputError, match=r"`ids` is 'image1': it is 8 x 12 in .* and 8 x 16 here"):
                bank.fill(dataset)


def test_a_store_that_is_only_read(extractor: FeatureExtractor, dataset: Any, tmp_path: Path) -> None:
    stored(extractor, tmp_path).fill(dataset, ["image0", "image1"])
    calls = len(extractor.backbone.calls)
    bank = stored(extractor, tmp_path, only=True)
    bank.fill(dataset, ["image1"])
    with pytest.raises(InputError, match=r"`store_only` is True: .* lacks 3 images, image2 first"):
        bank.fill(dataset)
    assert len(extractor.backbone.calls) == calls


def test_a_disk_without_room_is_refused_before_anything_is_computed(
    extractor: FeatureExtractor, dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 64 * 2**20 + FeatureBank(extractor).estimate([(8, 12)] * 5) - 1

    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda folder: Usage)
    bank = stored(extractor, tmp_path)
    with pytest.raises(InputError, match="5 images need"):
        bank.fill(dataset)
    assert not extractor.backbone.calls
    bank.fill(dataset, IDS[:4])
    bank.fill(dataset, ["image1"])


def test_streams_too_large_for_float16_are_not_written(planted: Make, dataset: Any, tmp_path: Path) -> None:
    extractor = FeatureExtractor(planted(massive={2: 1e6}), blocks=[0], timestep=1)
    with pytest.raises(InputError, match="bfloat16"):
        stored(extractor, tmp_path, dtype="float16").fill(dataset)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_bad_input(extractor: FeatureExtractor, dataset: Any, tmp_path: Path) -> None:
    bank = stored(extractor, tmp_path)
    with pytest.raises(InputError, match="nobody"):
        bank.fill(dataset, ["nobody"])
    with pytest.raises(InputError, match="call fill first"):
        bank.tapped(["image0"])


def test_what_a_definition_depends_on(planted: Make) -> None:
    """Every setting that changes a stream has an address of its own; what is made from a stream has not."""
    options: dict[str, Any] = {"blocks": [1], "timestep": 1}

    def address(dtype: str = "float32", conditions: object = "null", **changed: Any) -> str:
        return address_of(definition_of(FeatureExtractor(planted(), **(options | changed)), dtype, conditions))

    base = address()
    for alike in (
        {"blocks": [0, 1]}, {"modulation": "none"}, {"discard": "pre_norm"}, {"massive_channels": [1]},
        {"massive_ratio": 7.0}, {"position_debias": "svd"}, {"debias_images": 2}, {"massive_count": 3},
        {"channel_choice": "random"}, {"channel_seed": 1}, {"whiten_shrinkage": 0.5}, {"modulation": "whiten"},
    ):  # fmt: skip
        assert address(**alike) == base, alike
    others = [
        address(**changed)
        for changed in (
            {"timestep": 2}, {"timestep": [1]}, {"timestep": [1, 2]}, {"tap": "attention"}, {"ensemble": 2},
            {"seed": 1}, {"image_size": 8}, {"image_size": [8, 12]}, {"resize": "pad"}, {"multiple": 8},
            {"filter": "bilinear"}, {"padding": 0.5},
            {"dtype": "bfloat16"}, {"conditions": {"prompt": ""}}, {"conditions": {"prompt": "a {category}"}},
        )
    ]  # fmt: skip
    assert len({base, *others}) == 1 + len(others)


def test_a_backbone_goes_by_its_weights_and_not_by_its_name(planted: Make) -> None:
    class Weighty(planted):  # type: ignore[misc, valid-type]
        def __init__(self, name: str, digest: str) -> None:
            super().__init__()
            self.facts = {"name": name, "weights_sha256": digest}

        def settings(self) -> dict[str, Any]:
            return self.facts

    def definition(name: str, digest: str) -> dict[str, Any]:
        return definition_of(FeatureExtractor(Weighty(name, digest), blocks=[1], timestep=1), "float32")

    assert definition("a", "ff") == definition("b", "ff")
    assert differences(definition("a", "ff"), definition("a", "00")) == [
        'backbone.weights_sha256 ("ff" there, "00" here)'
    ]


def test_no_setting_of_an_extractor_is_forgotten(planted: Make) -> None:
    """A setting that is neither made from a stream nor part of the definition would mix different streams."""
    extractor = FeatureExtractor(planted(), blocks=[1], timestep=1)
    later = {"blocks", "modulation", "discard", "massive_channels", "massive_ratio"}
    later |= {"massive_count", "channel_choice", "channel_seed", "whiten_shrinkage"}
    later |= {"position_debias", "debias_components", "debias_images"}
    assert set(FeatureSettings.__dataclass_fields__) - later <= definition_of(extractor, "float32").keys()
