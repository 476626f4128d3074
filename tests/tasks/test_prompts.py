"""Which text an image gets, and that it is the one that the backbone sees."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.diffusion import DiffusionBackbone
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.prompt_cache import PromptCache, encoder_folder, write_manifest
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.image_module import ImageModule
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.errors import InputError
from ditf_probe.probes import LinearProbe, load_probe
from ditf_probe.tasks import CorrespondenceTask, ExtractionTask, ProbeTask
from ditf_probe.tasks import prompts as module
from ditf_probe.tasks.models import Models
from ditf_probe.tasks.prompts import encode_prompts, image_categories, prompts_for, read_captions
from ditf_probe.tasks.settings import BackboneFeatures

CATEGORIES = {"x": "cat", "y": "dog"}


def test_each_source_of_prompts() -> None:
    ids = ["x", "y", "x"]

    def prompts(**given: Any) -> list[str] | None:
        return prompts_for(ids, CATEGORIES, **({"prompt": None, "captions": None} | given))

    assert prompts() is None
    assert prompts(prompt="") == ["", "", ""]
    assert prompts(prompt="a photo") == ["a photo"] * 3
    assert prompts(prompt="a {category} and a {category}") == ["a cat and a cat", "a dog and a dog", "a cat and a cat"]
    assert prompts(captions={"x": "one", "y": "{category}", "z": ""}) == ["one", "{category}", "one"]


def test_prompts_that_cannot_be_made() -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("`captions` is 'y, w': these images have no caption", {"captions": {"x": ""}}),
        ("not both", {"captions": {}, "prompt": ""}),
        (r"\{class\} is no placeholder, use \{category\}", {"prompt": "a {class}"}),
        ("category of image w", {"prompt": "a {category}"}),
    ]
    for words, given in cases:
        with pytest.raises(InputError, match=words):
            prompts_for(["x", "y", "w"], CATEGORIES, **({"prompt": None, "captions": None} | given))
    with pytest.raises(InputError, match="i0, i1, i2, i3, i4 and 3 more"):
        prompts_for([f"i{i}" for i in range(8)], {}, prompt=None, captions={})


def test_caption_files(tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    file.write_text('{"x": "ein Hündchen"}', encoding="utf-8")
    assert read_captions(file) == {"x": "ein Hündchen"}
    for text, words in (("[1]", "one JSON object"), ('{"x": 1}', "image id to text"), ("{", "no readable JSON")):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            read_captions(file)
    with pytest.raises(InputError, match="no readable JSON"):
        read_captions(tmp_path / "missing.json")


class Animals(PairDataset):
    """Two pairs of cats and one of dogs; the images are noise."""

    name, unit = "animals", "pair"

    def __init__(self, pairs: tuple[str, ...] = ("cat 0 1", "cat 1 2", "dog 3 4")) -> None:
        self._pairs = [pair.split() for pair in pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        category, *names = self._pairs[index]
        source, target = (self.side(name) for name in names)
        return Pair(index, category, str(index), source, target)

    def side(self, name: str) -> Side:
        points = torch.tensor([[3.0, 4.0], [12.5, 10.0]])
        return Side(name, (16, 16), points, torch.ones(2, dtype=torch.bool), torch.tensor([0.0, 0.0, 15.0, 15.0]))

    def image(self, image_id: str) -> Tensor:
        generator = torch.Generator().manual_seed(int(image_id))
        return torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8)


def test_categories_come_from_the_pairs() -> None:
    assert image_categories(Animals()) == {"0": "cat", "1": "cat", "2": "cat", "3": "dog", "4": "dog"}
    with pytest.raises(InputError, match="image 1 is in cat and dog"):
        image_categories(Animals(("cat 0 1", "dog 1 2")))


@pytest.fixture
def flux_features(tmp_path: Path) -> BackboneFeatures:
    """A FLUX transformer without text encoders, and a cache of four prompts for it."""
    generator = torch.Generator().manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=12,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        axes_dims_rope=(4, 6, 6),
    )
    for parameter in transformer.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    transformer.save_pretrained(tmp_path / "flux")
    encoder = {"pipeline": "FluxPipeline", "arguments": {}, "dtype": "float32", "files": {}}
    folder = encoder_folder(tmp_path / "cache", encoder)
    write_manifest(folder, encoder, {})
    for text in ("a photo of a cat", "a photo of a dog", "", "a photo"):
        vectors = torch.randn(1, 20, generator=generator), torch.randn(1, 6, 24, generator=generator)
        PromptCache(folder).write(text, PromptEmbeddings(vectors[1], vectors[0]))
    return BackboneFeatures(
        blocks=[1],
        timestep=200,
        tap="attention",
        image_size=16,
        backbone=str(tmp_path / "flux"),
        prompt_cache=str(tmp_path / "cache"),
        text_encoders=str(tmp_path / "flux"),
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Image id to the prompt that the backbone was given for it."""
    prompts: dict[str, str | None] = {}
    original = DiffusionBackbone.forward

    def forward(self: Any, images: Tensor, **arguments: Any) -> Any:
        ids, conditions = arguments["image_ids"], arguments["conditions"]
        prompts.update(zip(ids, conditions or [None] * len(ids), strict=True))
        return original(self, images, **arguments)

    monkeypatch.setattr(DiffusionBackbone, "forward", forward)
    return prompts


def test_zero_shot_rows_are_label_free_by_default(
    flux_features: BackboneFeatures, seen: dict[str, Any], trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    task = CorrespondenceTask(flux_features, rows=["adaln"], run_dir=str(tmp_path / "run"))
    trainer().test(task, PairDataModule(test={"animals": Animals()}))
    assert seen == dict.fromkeys("01234")
    (model,) = task.settings()["models"]
    assert (model["conditions"], model["backbone"]["prompts"]) == ("null", None)


def test_a_category_prompt_is_used_and_recorded(
    flux_features: BackboneFeatures, seen: dict[str, Any], trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    features = replace(flux_features, prompt="a photo of a {category}")
    data = PairDataModule(test={"animals": Animals()}, calibration=Animals(("dog 5 6",)))
    rows = ["adaln", "adaln+debias", "rgb", "untrained"]
    task = CorrespondenceTask(features, rows=rows, run_dir=str(tmp_path / "run"))
    trainer().test(task, data)
    cats, dogs = (dict.fromkeys(ids, f"a photo of a {name}") for ids, name in (("012", "cat"), ("3456", "dog")))
    assert seen == cats | dogs
    records = task.settings()["models"]
    asked = {"prompt": "a photo of a {category}", "captions": None, "captions_sha256": None}
    assert [record["conditions"] for record in records] == [asked, "null", asked]  # rgb patches read no text
    assert records[0]["backbone"]["prompts"]["pipeline"] == "FluxPipeline"


def test_extracted_features_are_found_by_their_text(
    flux_features: BackboneFeatures, seen: dict[str, Any], trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    """A store holds an image once for every text it had, and serves a test with the text that the test asks for."""
    store = str(tmp_path / "store")
    features = replace(flux_features, prompt="a photo of a {category}")
    for animals, expected in ((("cat 0 1", "dog 3 4"), "0134"), (("cat 0 1", "cat 3 4"), "34")):
        seen.clear()
        trainer().predict(ExtractionTask(features, store), ImageModule({"animals": Animals(animals)}))
        assert sorted(seen) == sorted(expected)
    seen.clear()
    found = []
    for chosen in (features, replace(features, store=store, store_only=True)):
        task = CorrespondenceTask(chosen, rows=["adaln"], run_dir=str(tmp_path / "run"))
        trainer().test(task, PairDataModule(test={"animals": Animals(("cat 0 1", "dog 3 4"))}), verbose=False)
        found.append(task.result().datasets[0].rows[0].predictions)
    assert sorted(seen) == ["0", "1", "3", "4"], "the run without the store"
    for name in ("x", "y", "similarity"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))


def test_probes_train_on_captions(
    flux_features: BackboneFeatures, seen: dict[str, Any], trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    file = tmp_path / "captions.json"
    captions = {str(i): "a photo" if i % 2 else "" for i in range(5)}
    file.write_text(json.dumps(captions))
    task = ProbeTask(
        replace(flux_features, captions=str(file)),
        {"linear": lambda channels, blocks: LinearProbe(channels, blocks, width=8)},
        run_dir=str(tmp_path / "run"),
    )
    data = PairDataModule(Animals(), Animals(("cat 0 2",)), batch_size=3)
    trainer(max_epochs=1, num_sanity_val_steps=0).fit(task, data)
    assert seen == captions
    assert load_probe(tmp_path / "run" / "probes" / "linear")[1].features["captions"] == str(file)


def test_what_is_missing_is_said_before_the_backbone_is_loaded(
    flux_features: BackboneFeatures,
    trainer: Callable[..., L.Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ditf_probe.tasks.models.load_backbone", lambda *_, **__: pytest.fail("loaded"))
    file = tmp_path / "captions.json"
    file.write_text('{"0": "a photo"}')
    for change, words in (
        ({"prompt": "a {category}"}, "'a cat' is not in .* give a folder with text encoders"),
        ({"captions": str(file)}, "1, 2, 3, 4"),
        ({"prompt": "", "captions": str(file)}, "not both"),
    ):
        task = CorrespondenceTask(replace(flux_features, **change), rows=["adaln"], run_dir=str(tmp_path))
        with pytest.raises(InputError, match=words):
            trainer().test(task, PairDataModule(test={"animals": Animals()}))


def test_missing_prompts_are_encoded_once_each(
    flux_features: BackboneFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module.PromptEncoder, "encode", lambda self, texts: asked.extend(texts) or len(set(asked)))
    features = replace(flux_features, prompt="a {category}")
    assert encode_prompts(features, [Animals(), Animals(("mug 8 9",))], torch.device("cpu")) == 3
    assert set(asked) == {"a cat", "a dog", "a mug"}
    assert encode_prompts(flux_features, [Animals()], torch.device("cpu")) == 0


def test_models_without_text_refuse_prompts(
    features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    task = CorrespondenceTask(replace(features, prompt="a photo"), rows=["adaln"], run_dir=str(tmp_path))
    with pytest.raises(InputError, match="pipeline folder"):
        trainer().test(task, PairDataModule(test={"animals": Animals()}))


def test_rows_with_and_without_text_do_not_share_a_backbone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []

    def load(name: str, **options: object) -> Backbone:
        asked.append(options.pop("prompts", None) is not None)
        return load_backbone(name, **options)

    monkeypatch.setattr("ditf_probe.tasks.models.load_backbone", load)
    plain = BackboneFeatures(blocks=[3], timestep=100)
    text = replace(plain, prompt="a photo", prompt_cache=str(tmp_path))
    models = Models("cpu")
    assert models[plain] is models[replace(plain, timestep=20)]
    assert models[text] is models[replace(text, prompt="another photo")]
    assert models[text] is not models[replace(text, text_encoders="elsewhere")]
    assert models[plain] is not models[text]
    assert asked == [False, True, True]
