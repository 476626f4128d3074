"""Strings as conditions: the cache, when encoders are loaded, and what reaches the transformer."""

import json
import multiprocessing
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from torch import Tensor, nn

from ditf_probe import InputError, PromptEmbeddings
from ditf_probe.backbones import hub as hub_module
from ditf_probe.backbones import prompts as module
from ditf_probe.backbones import text_sides
from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.hub import download_text
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.prompt_cache import PromptCache, manifests
from ditf_probe.backbones.prompts import PromptEncoder
from ditf_probe.backbones.strings import stack
from ditf_probe.features.extractor import FeatureExtractor

TEXTS = ["a photo of a cat", "a red car", ""]


@pytest.fixture(scope="module")
def filled(text_folders: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the prompts above, of the FLUX folder."""
    cache = tmp_path_factory.mktemp("cache")
    assert PromptEncoder(text_folders.flux, cache, device="cpu").encode([*TEXTS, TEXTS[0]]) == 3
    return cache


@pytest.fixture(scope="module")
def backbone(text_folders: Any, filled: Path) -> Backbone:
    return load_backbone(
        text_folders.flux, device="cpu", prompts=PromptEncoder(text_folders.flux, filled, device="cpu")
    )


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the text encoders were loaded")

    monkeypatch.setattr(module, "load_text_pipeline", fail)


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 12, generator=torch.Generator().manual_seed(5))


def run(backbone: Backbone, conditions: Any, count: int = 3) -> Any:
    ids = [str(i) for i in range(count)]
    return backbone(images(count), blocks=[0, 3], timestep=300, tap="attention", image_ids=ids, conditions=conditions)


@pytest.mark.usefixtures("never_loaded")
def test_a_complete_cache_never_loads_the_encoders(text_folders: Any, filled: Path, backbone: Backbone) -> None:
    expected = run(backbone, TEXTS)
    for source, cache in ((text_folders.flux, filled), (None, filled), (None, next(iter(manifests(filled))))):
        encoder = PromptEncoder(source, cache, device="cpu")
        assert encoder.encode(TEXTS) == 0
        other = load_backbone(text_folders.flux, device="cpu", prompts=encoder)
        assert other.settings()["prompts"]["pipeline"] == "FluxPipeline"
        for block, tapped in run(other, TEXTS).items():
            assert torch.equal(tapped.hidden_states, expected[block].hidden_states)


def test_a_complete_cache_does_without_transformers(
    text_folders: Any, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_sides.importlib.util, "find_spec", lambda name: None)
    assert PromptEncoder(text_folders.flux, filled, device="cpu").encode(TEXTS) == 0
    for cache in (filled, tmp_path):
        with pytest.raises(InputError, match=r"pip install 'ditf_probe\[text\]'"):
            PromptEncoder(text_folders.flux, cache, device="cpu").encode(["never seen"])


def test_strings_are_their_embeddings(backbone: Backbone, text_folders: Any) -> None:
    from diffusers import FluxPipeline

    whole = FluxPipeline.from_pretrained(text_folders.flux)
    embeds, pooled, _ = whole.encode_prompt(TEXTS)  # as a batch, by the whole pipeline
    by_text, by_vectors = (run(backbone, conditions) for conditions in (TEXTS, PromptEmbeddings(embeds, pooled)))
    for block, tapped in by_text.items():
        torch.testing.assert_close(tapped.hidden_states, by_vectors[block].hidden_states, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(tapped.shift, by_vectors[block].shift, rtol=1e-4, atol=1e-4)
    shared = run(backbone, TEXTS[1])
    each = run(backbone, (TEXTS[1],) * 3)
    assert torch.equal(shared[3].hidden_states, each[3].hidden_states)


def test_the_prompt_reaches_modulation_and_features(backbone: Backbone) -> None:
    first, second = (run(backbone, text, 1) for text in TEXTS[:2])
    assert not torch.allclose(first[0].shift, second[0].shift)  # the pooled vector is in the modulation
    assert torch.equal(first[0].hidden_states, second[0].hidden_states)  # before block 0 there is no text yet
    assert not torch.allclose(first[3].hidden_states, second[3].hidden_states)
    extractor = FeatureExtractor(backbone, blocks=[3], timestep=300, tap="attention")
    maps = [extractor(images(1), ["a"], conditions=text)[3] for text in (TEXTS[0], TEXTS[1], None)]
    assert not torch.allclose(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


def test_encoders_are_loaded_when_missing_and_freed(
    text_folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[nn.Module]] = []
    original = module.load_text_pipeline

    def load(*arguments: Any) -> Any:
        pipeline = original(*arguments)
        assert (pipeline.transformer, pipeline.vae) == (None, None)
        loaded.extend(weakref.ref(part) for part in (pipeline.text_encoder, pipeline.text_encoder_2))
        return pipeline

    monkeypatch.setattr(module, "load_text_pipeline", load)
    encoder = PromptEncoder(text_folders.flux, tmp_path, device="cpu")
    assert encoder.encode(TEXTS[:1]) == 1
    assert [one() for one in loaded] == [None, None]
    assert (encoder.encode(TEXTS[:1]), encoder.encode(TEXTS[:2]), len(loaded)) == (0, 1, 4)
    assert sorted(encoder.cache) == sorted(TEXTS[:2])


def test_the_cache_tells_encoders_apart(text_folders: Any, tmp_path: Path) -> None:
    root, folder = tmp_path / "cache", text_folders.with_t5("PixArtAlphaPipeline", "PixArtTransformer2DModel")
    other = shutil.copytree(folder, tmp_path / "other")
    weights = other / "text_encoder" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1  # one bit of one weight
    weights.write_bytes(changed)
    encoders = [
        PromptEncoder(folder, root, device="cpu"),
        PromptEncoder(folder, root, device="cpu", max_sequence_length=4),
        PromptEncoder(folder, root, device="cpu", dtype="bfloat16"),
        PromptEncoder(other, root, device="cpu"),
    ]
    assert [encoder.encode(["a cat"]) for encoder in encoders] == [1, 1, 1, 1]
    found = [encoder(["a cat"])[0] for encoder in encoders]
    assert [prompt.embeds.shape[1] for prompt in found] == [120, 4, 120, 120]
    assert found[2].embeds.dtype == torch.bfloat16
    assert len({encoder.cache.folder for encoder in encoders}) == 4
    with pytest.raises(InputError, match="several encoders"):
        PromptEncoder(None, root).encode(["a cat"])
    assert PromptEncoder(None, root, max_sequence_length=4)(["a cat"])[0].embeds.shape[1] == 4
    assert PromptEncoder(None, root, dtype="bfloat16").settings() == encoders[2].settings()
    copied = shutil.copytree(folder, tmp_path / "copied")  # another place, the same encoder
    assert PromptEncoder(copied, root, device="cpu").encode(["a cat"]) == 0


def test_known_files_are_not_hashed_again(text_folders: Any, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "file_sha256", lambda path: pytest.fail(f"{path} was hashed"))
    assert PromptEncoder(text_folders.flux, filled, device="cpu").encode(TEXTS) == 0


def test_the_manifest_is_readable(filled: Path) -> None:
    (folder,) = manifests(filled)
    facts = json.loads((folder / "manifest.json").read_text())
    encoder = facts["encoder"]
    assert (encoder["pipeline"], encoder["dtype"]) == ("FluxPipeline", "float32")
    assert encoder["arguments"] == {"max_sequence_length": 512}
    assert len(encoder["files"]["text_encoder_2/model.safetensors"]) == 64
    assert folder.name.startswith("FluxPipeline-")
    assert sorted(PromptCache(folder)) == sorted(TEXTS)


def write_many(folder: Path, seed: int) -> None:
    cache = PromptCache(folder)
    for number in range(40):
        cache.write(f"prompt {number}", PromptEmbeddings(torch.full((1, 50, 8), float(number))))
        assert cache.read(f"prompt {(number * seed) % (number + 1)}").embeds.shape == (1, 50, 8)


def test_processes_share_a_cache(tmp_path: Path) -> None:
    """Each writes every prompt and reads back others meanwhile; a half-written file would fail to load."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(tmp_path, seed)) for seed in (3, 5, 7)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    for number in range(40):
        assert PromptCache(tmp_path).read(f"prompt {number}").embeds.unique().tolist() == [number]
    assert len(list(tmp_path.iterdir())) == 40


def test_every_part_survives_the_cache(tmp_path: Path) -> None:
    prompt = PromptEmbeddings(
        torch.randn(1, 3, 4).bfloat16(), torch.randn(1, 5), torch.tensor([[True, True, False]]), torch.randn(1, 2, 7)
    )
    cache = PromptCache(tmp_path)
    cache.write("é\n", prompt)
    found = cache.read("é\n")
    assert all(
        torch.equal(getattr(found, part), getattr(prompt, part)) for part in ("embeds", "pooled", "mask", "second")
    )
    assert found.embeds.dtype == torch.bfloat16
    assert ("é\n" in cache, "e\n" in cache, 3 in cache, list(cache)) == (True, False, False, ["é\n"])
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match="damaged, delete it"):
        cache.read("é\n")


def row(length: int, value: float, masked: bool) -> PromptEmbeddings:
    mask = torch.ones(1, length, dtype=torch.bool) if masked else None
    return PromptEmbeddings(torch.full((1, length, 2), value), torch.full((1, 3), value), mask)


def test_masked_prompts_are_padded() -> None:
    ((rows, found),) = stack([row(2, 1.0, True), row(3, 2.0, True)])
    assert rows == [0, 1]
    assert found.embeds[..., 0].tolist() == [[1, 1, 0], [2, 2, 2]]
    assert found.mask is not None
    assert found.mask.tolist() == [[True, True, False], [True, True, True]]
    assert found.pooled is not None
    assert found.pooled[:, 0].tolist() == [1, 2]


def test_second_tokens_that_share_the_mask_are_padded_along() -> None:
    """Those of another number, or with a mask of their own, are as they were."""
    shared = [replace(row(length, 1.0, True), second=torch.full((1, length, 4), 7.0)) for length in (2, 3)]
    ((_, found),) = stack(shared)
    assert found.second is not None
    assert found.second[..., 0].tolist() == [[7, 7, 0], [7, 7, 7]]
    for second, mask in ((torch.ones(1, 5, 4), None), (torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.bool))):
        ((_, found),) = stack([replace(one, second=second, second_mask=mask) for one in shared])
        assert found.second is not None
        assert torch.equal(found.second, second.expand(2, -1, -1))


def test_prompts_without_a_mask_go_by_length() -> None:
    groups = stack([row(2, 1.0, False), row(3, 2.0, False), row(2, 3.0, False)])
    assert [rows for rows, _ in groups] == [[0, 2], [1]]
    assert groups[0][1].embeds[:, 0, 0].tolist() == [1, 3]
    assert groups[0][1].mask is None


def test_images_of_other_prompt_lengths_run_apart(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the text encoder is replaced: FLUX itself pads all prompts to one length."""
    made = {text: row_of_flux(length) for text, length in zip("abc", (2, 5, 2), strict=True)}
    monkeypatch.setattr(backbone, "prompts", lambda texts: [made[text] for text in texts])
    mixed = run(backbone, ["a", "b", "c"])
    for block, tapped in mixed.items():
        for number, text in enumerate("abc"):
            alone = run(backbone, text)[block].map(lambda x, number=number: x[number])
            torch.testing.assert_close(tapped.hidden_states[number], alone.hidden_states)
            torch.testing.assert_close(tapped.shift[number], alone.shift)


def row_of_flux(length: int) -> PromptEmbeddings:
    generator = torch.Generator().manual_seed(length)
    return PromptEmbeddings(torch.randn(1, length, 24, generator=generator), torch.randn(1, 20, generator=generator))


def test_refusals(text_folders: Any, backbone: Backbone, filled: Path, tmp_path: Path) -> None:
    bare = load_backbone(text_folders.flux, device="cpu")
    cases: list[tuple[str, Callable[[], object]]] = [
        ("PromptEncoder", lambda: run(bare, "a cat")),
        ("one per image", lambda: run(backbone, ["a", "b"])),
        ("one per image", lambda: run(backbone, ["a", 3, "b"])),
        ("text encoders", lambda: PromptEncoder(None, filled)(["never seen"])),
        ("text encoders", lambda: PromptEncoder(None, tmp_path)(["a"])),
        ("owner/name", lambda: PromptEncoder(tmp_path / "missing" / "folder", filled)(["a"])),
        ("max_len", lambda: PromptEncoder(text_folders.flux, tmp_path, max_len=3)(["a"])),
        ("not in the prompt cache", lambda: PromptCache(filled).read("a")),
        ("class labels", lambda: load_backbone("ditf-tiny", device="cpu", prompts=PromptEncoder(None, filled))),
        ("PromptEncoder", lambda: run(load_backbone("ditf-tiny", device="cpu"), "a cat")),
    ]
    for word, call in cases:
        with pytest.raises(InputError, match=word):
            call()


@pytest.fixture
def hub(text_folders: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that serves the FLUX folder; the list of what was asked."""
    asked: list[str] = []

    def download(repository: str) -> Path:
        asked.append(repository)
        return Path(text_folders.flux)

    monkeypatch.setattr(module, "download_text", download)
    return asked


def test_hub_ids_are_downloaded_for_missing_prompts_only(hub: list[str], tmp_path: Path) -> None:
    assert PromptEncoder("someone/pipe", tmp_path, device="cpu").encode(["a cat"]) == 1
    assert hub == ["someone/pipe"]
    assert PromptEncoder("someone/pipe", tmp_path, device="cpu").encode(["a cat"]) == 0
    assert hub == ["someone/pipe"]
    assert PromptEncoder("someone/pipe", tmp_path, device="cpu").encode(["a dog"]) == 1
    assert hub == ["someone/pipe"] * 2
    short = PromptEncoder("someone/pipe", tmp_path, device="cpu", max_sequence_length=4)  # not what is known
    assert short(["a cat"])[0].embeds.shape[1] == 4
    assert PromptEncoder("someone/pipe", tmp_path, device="cpu")(["a cat"])[0].embeds.shape[1] == 512
    assert hub == ["someone/pipe"] * 3


def test_only_the_text_side_is_downloaded(text_folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(repository: str, *, allow_patterns: list[str], **_: object) -> str:
        assert repository == "someone/pipe"
        names = [file.relative_to(text_folders.flux).as_posix() for file in text_folders.flux.rglob("*")]
        for name in sorted(set(filter_repo_objects([*names, "text_encoder/x.bin"], allow_patterns=allow_patterns))):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(text_folders.flux / name, tmp_path / name)
        return str(tmp_path)

    monkeypatch.setattr(hub_module, "snapshot_download", snapshot)
    parts = {path.name for path in download_text("someone/pipe").iterdir()}
    assert parts == {"model_index.json", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    assert PromptEncoder(tmp_path, tmp_path / "cache", device="cpu").encode(["a cat"]) == 1


def test_a_folder_without_encoders_uses_the_cache(text_folders: Any, filled: Path, tmp_path: Path) -> None:
    stripped = shutil.copytree(text_folders.flux, tmp_path / "stripped", ignore=shutil.ignore_patterns("t*k*", "text*"))
    assert PromptEncoder(stripped, filled, device="cpu")([TEXTS[0]])[0].embeds.shape == (1, 512, 24)
    with pytest.raises(InputError, match="give a folder with text encoders"):
        PromptEncoder(stripped, filled, device="cpu")(["never seen"])
    (stripped / "model_index.json").write_text((text_folders.sd3 / "model_index.json").read_text())
    with pytest.raises(InputError, match="has nothing of it either"):
        PromptEncoder(stripped, filled, device="cpu")([TEXTS[0]])


def test_the_untrained_control_reads_the_same_prompts(backbone: Any) -> None:
    assert backbone.untrained().prompts is backbone.prompts
