"""Models of timm, tiny and with random weights, against their own modules run by hand."""

import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.timm_loading import build_model
from ditf_probe.backbones.vit import TimmBackbone
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor

VIT, DINOV3, CNN, SWIN = "test_vit", "vit_small_patch16_dinov3", "test_resnet", "swin_tiny_patch4_window7_224"
SMALL = {  # the real classes with fewer and narrower layers
    "dinov2": ("vit_small_patch14_reg4_dinov2", {"embed_dim": 24, "depth": 3, "num_heads": 2}),
    "dinov3": (DINOV3, {"embed_dim": 32, "depth": 3, "num_heads": 2}),
    "swin": (SWIN, {"embed_dim": 8, "depths": (1, 1, 1), "num_heads": (1, 2, 4)}),
    "convnext": ("convnext_atto", {"dims": (4, 8, 12, 16), "depths": (1, 1, 1, 1)}),
    "vit": (VIT, {}),
    "resnet": (CNN, {}),
}


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def make(kind: str, **options: object) -> TimmBackbone:
    name, sizes = SMALL[kind]
    return TimmBackbone(randomise(build_model(name, **sizes)), **options)


def normalised(model: nn.Module, images: Tensor) -> Tensor:
    """As timm's test models were trained, and all others here."""
    if "test_" in model.pretrained_cfg["architecture"]:
        return 2 * images - 1
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    return (images - mean) / torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)


def pixels(height: int, width: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def block_outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The output of every block, from a whole pass with ordinary hooks."""
    seen: list[Tensor] = []
    handles = [block.register_forward_hook(lambda m, args, out: seen.append(out)) for block in model.blocks]
    model.forward_features(normalised(model, images))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(("kind", "prefix", "patch"), [("dinov2", 5, 14), ("dinov3", 5, 16), ("vit", 1, 16)])
@pytest.mark.parametrize("norm", [False, True])
def test_tokens_are_the_output_of_the_block(kind: str, prefix: int, patch: int, norm: bool) -> None:
    """At a size that is neither square nor that of the training: positions are interpolated."""
    backbone = make(kind, norm=norm)
    images = pixels(5 * patch, 3 * patch)
    tapped = backbone(images, blocks=[-1, 1], timestep=0)
    outputs = block_outputs(backbone.model, images)
    assert list(tapped) == [backbone.num_blocks - 1, 1]
    assert backbone.stride == patch
    for block, found in tapped.items():
        expected = outputs[block][:, prefix:]
        if norm:
            centred = expected - expected.mean(-1, keepdim=True)
            last = backbone.model.norm
            scaled = centred / (centred.square().mean(-1, keepdim=True) + last.eps).sqrt()
            expected = scaled * last.weight + last.bias
        assert found.grid == (5, 3)
        assert found.hidden_states.shape == (2, 15, backbone.channels)
        torch.testing.assert_close(found.hidden_states, expected, rtol=1e-5, atol=1e-5)
        assert (found.shift, found.scale, found.gate) == (None, None, None)


@pytest.mark.parametrize("kind", ["dinov2", "dinov3", "vit"])
def test_the_norm_is_that_of_timm(kind: str) -> None:
    backbone = make(kind, norm=True)
    images = pixels(4 * backbone.stride, 4 * backbone.stride)
    found = backbone(images, blocks=[0, 2])
    model = backbone.model
    expected = model.forward_intermediates(
        normalised(model, images), indices=[0, 2], norm=True, intermediates_only=True
    )
    for block, features in zip((0, 2), expected, strict=True):
        torch.testing.assert_close(found[block].hidden_states, features.flatten(2).mT, rtol=1e-5, atol=1e-5)


def test_the_norm_is_computed_in_float32() -> None:
    model = make("vit").model.bfloat16()
    images = pixels(32, 32)
    raw = TimmBackbone(model)(images, blocks=[1])[1].hidden_states
    normed = TimmBackbone(model, norm=True)(images, blocks=[1])[1].hidden_states
    assert (raw.dtype, normed.dtype) == (torch.bfloat16, torch.float32)
    weight, bias = model.norm.weight.float(), model.norm.bias.float()
    expected = nn.functional.layer_norm(raw.float(), (64,), weight, bias, model.norm.eps)
    torch.testing.assert_close(normed, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["dinov2", "swin", "resnet"])
def test_stopping_early_changes_nothing(kind: str) -> None:
    backbone = make(kind)
    images = pixels(64 // backbone.stride * backbone.stride or backbone.stride, 2 * backbone.stride)
    early = backbone(images, blocks=[1])[1].hidden_states
    assert torch.equal(early, backbone(images, blocks=[1, -1])[1].hidden_states)


def test_stopping_early_skips_later_blocks() -> None:
    backbone, ran = make("dinov2"), []
    for index, block in enumerate(backbone.model.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    backbone(pixels(28, 28), blocks=[1])
    assert ran == [0, 1]


@pytest.mark.parametrize("kind", list(SMALL))
def test_channels_and_strides_are_those_of_the_tensors(kind: str) -> None:
    backbone = make(kind)
    images = pixels(2 * backbone.stride, 3 * backbone.stride, 1)
    tapped = backbone(images, blocks=range(backbone.num_blocks))
    for block, found in tapped.items():
        stride = backbone.stride_at(block)
        assert found.grid == (2 * backbone.stride // stride, 3 * backbone.stride // stride)
        assert found.hidden_states.shape == (1, found.grid[0] * found.grid[1], backbone.channels_at(block))


def test_stages_of_a_cnn_against_its_modules() -> None:
    backbone = make("resnet")
    model, images = backbone.model, pixels(32, 48)
    with torch.no_grad():
        x = model.maxpool(model.act1(model.bn1(model.conv1(normalised(model, images)))))
        second = model.layer2(model.layer1(x))
    found = backbone(images, blocks=[2])[2]
    assert found.grid == (4, 6)
    rows = torch.stack([second[:, :, i, j] for i in range(4) for j in range(6)], 1)
    assert torch.equal(found.hidden_states, rows)


def test_sides_are_multiples_of_the_coarsest_stage_asked_for() -> None:
    backbone = make("resnet")
    assert [backbone.stride_at(block) for block in range(5)] == [2, 4, 8, 16, 32]
    assert backbone(pixels(24, 40), blocks=[2, 0])[2].grid == (3, 5)
    with pytest.raises(InputError, match="multiples of 16"):
        backbone(pixels(24, 40), blocks=[2, 3])
    extractor = FeatureExtractor(backbone, blocks=[2, 0], timestep=0, modulation="none")
    assert extractor.prepare(torch.zeros(3, 29, 41, dtype=torch.uint8)).shape == (3, 32, 40)
    features = extractor(pixels(24, 40))
    assert {block: tuple(x.shape[1:]) for block, x in features.items()} == {2: (48, 3, 5), 0: (32, 12, 20)}
    assert backbone.common_channels([2]) == 48
    with pytest.raises(InputError, match="one width"):
        backbone.common_channels([0, 2])


def test_massive_channels_are_checked_against_the_narrowest_stage() -> None:
    FeatureExtractor(make("resnet"), blocks=[4], timestep=0, massive_channels=[90])
    with pytest.raises(InputError, match="from 0 to 31"):
        FeatureExtractor(make("resnet"), blocks=[4, 0], timestep=0, massive_channels=[90])


def test_moving_one_patch_moves_its_token_most() -> None:
    backbone = make("vit")
    first = torch.full((1, 3, 48, 80), 0.5)
    second = first.clone()
    second[:, :, 16:32, 64:80] = 1.0
    runs = [backbone(images, blocks=[0])[0] for images in (first, second)]
    moved = (runs[0].hidden_states - runs[1].hidden_states).norm(dim=-1)[0].reshape(runs[0].grid)
    assert divmod(int(moved.argmax()), 5) == (1, 4)


def test_batches_and_what_has_no_meaning_without_noise() -> None:
    backbone = make("vit", max_batch=2)
    images = pixels(32, 48, 5)
    together = backbone(images, blocks=[1, 0], image_ids=list("abcde"), ensemble=3, seed=4, conditions=["a cat"])
    for row in range(5):
        alone = backbone(images[row : row + 1], blocks=[1])[1].hidden_states[0]
        torch.testing.assert_close(together[1].hidden_states[row], alone, rtol=1e-5, atol=1e-5)
    assert backbone(images, blocks=[1], timestep=[0])[1].hidden_states.shape == (5, 1, 6, 64)


def test_frozen_and_in_eval_mode() -> None:
    model = timm.create_model(VIT).train()
    backbone = Backbone.from_model(model)
    assert backbone.model is model
    assert backbone.train().training is False
    assert not model.training
    tapped = backbone(pixels(160, 160), blocks=[0])[0]
    assert not tapped.hidden_states.requires_grad
    assert not tapped.hidden_states.is_inference()


def test_adaln_is_refused_and_the_plain_recipes_work() -> None:
    backbone = make("dinov2")
    assert FeatureExtractor(backbone, blocks=[2], timestep=0, modulation="layer_norm")(pixels(28, 28))[2].shape[1] == 24
    with pytest.raises(InputError, match="no AdaLN"):
        FeatureExtractor(backbone, blocks=[2], timestep=0)(pixels(28, 28))


@pytest.mark.parametrize(
    ("change", "argument", "word"),
    [
        ({"blocks": [3]}, "blocks", "0 to 2"),
        ({"timestep": 1}, "timestep", "no noise"),
        ({"tap": "query"}, "tap", "output"),
        ({"images": pixels(28, 30)}, "images", "multiples of 14"),
        ({"images": 300 * pixels(28, 28)}, "images", "finite values"),
    ],
)
def test_bad_input_names_the_argument(change: dict, argument: str, word: str) -> None:
    arguments = {"images": pixels(28, 28), "blocks": [0]} | change
    with pytest.raises(InputError, match=word) as caught:
        make("dinov2")(**arguments)
    assert caught.value.argument == argument


def test_models_that_cannot_be_wrapped() -> None:
    for model, options, word in (
        (nn.Linear(2, 2), {}, "forward_intermediates"),
        (timm.create_model(CNN), {"norm": True}, "no final norm"),
        (timm.create_model(VIT), {"max_batch": 0}, "max_batch"),
    ):
        with pytest.raises(InputError, match=word):
            TimmBackbone(model, **options)
    with pytest.raises(InputError, match="does not fit block 0"):
        make("swin", norm=True)(pixels(64, 64), blocks=[0])
    assert make("swin", norm=True)(pixels(64, 64), blocks=[2])[2].grid == (4, 4)


def test_a_model_of_one_size_says_so() -> None:
    name, sizes = SMALL["dinov2"]
    fixed = TimmBackbone(timm.create_model(name, img_size=56, **sizes))  # without dynamic_img_size
    assert fixed(pixels(56, 56), blocks=[0])[0].grid == (4, 4)
    with pytest.raises(InputError, match="56 x 56 pixels alone"):
        fixed(pixels(56, 70), blocks=[0])


def test_cells_that_do_not_tile_the_image_are_refused() -> None:
    model = timm.create_model("test_resnet")
    model.feature_info[1]["reduction"] = 8  # as in CNNs that do not pad
    with pytest.raises(InputError, match="do not tile"):
        TimmBackbone(model)(pixels(64, 64), blocks=[1])


def test_settings_tell_what_changes_a_number() -> None:
    backbone = load_backbone(f"timm/{VIT}.r160_in1k", device="cpu", pretrained=False, norm=True)
    settings = json.loads(json.dumps(backbone.settings()))
    assert settings == {
        "name": "test_vit.r160_in1k",
        "class": "VisionTransformer",
        "model": "test_vit.r160_in1k",
        "weights_sha256": backbone.weights_sha256,
        "dtype": "float32",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "norm": True,
    }
    other = load_backbone(f"timm/{VIT}.r160_in1k", device="cpu", pretrained=False, seed=1)
    assert other.settings()["weights_sha256"] != settings["weights_sha256"]


def test_random_weights_and_the_untrained_control() -> None:
    state = torch.random.get_rng_state()
    first = load_backbone(f"timm/{VIT}", device="cpu", pretrained=False)
    control = first.untrained()
    assert not first.has_adaln
    assert torch.equal(state, torch.random.get_rng_state())
    assert control.name == "test_vit untrained"
    torch.manual_seed(0)
    expected = timm.create_model(VIT, dynamic_img_size=True).state_dict()
    torch.random.set_rng_state(state)
    for name, tensor in expected.items():
        assert torch.equal(tensor, first.model.state_dict()[name])
        assert torch.equal(tensor, control.model.state_dict()[name])
    assert control(pixels(32, 48), blocks=[0])[0].grid == (2, 3)
    assert control.untrained(seed=1).weights_sha256 != control.weights_sha256
    with pytest.raises(InputError, match="untrained"):
        TimmBackbone(timm.create_model(VIT)).untrained()


def test_a_weights_file_and_a_folder(tmp_path: Path) -> None:
    model = randomise(timm.create_model(VIT))
    save_for_hf(model, tmp_path / "folder", safe_serialization=True)
    file = tmp_path / "w.safetensors"
    save_file(model.state_dict(), file)
    expected = TimmBackbone(model)(pixels(160, 160), blocks=[3])[3].hidden_states
    for weights in (file, tmp_path / "folder"):
        backbone = load_backbone(f"timm/{VIT}", device="cpu", weights=str(weights), name="mine")
        assert backbone.name == "mine"
        torch.testing.assert_close(
            backbone(pixels(160, 160), blocks=[3])[3].hidden_states, expected, rtol=1e-5, atol=1e-5
        )
        kept = weights / "model.safetensors" if weights.is_dir() else weights
        assert backbone.weights_sha256 == hashlib.sha256(kept.read_bytes()).hexdigest()
        assert backbone(pixels(32, 48), blocks=[3])[3].grid == (2, 3)
    half = load_backbone(f"timm/{VIT}", device="cpu", dtype="bfloat16", weights=str(file))
    assert half(pixels(32, 32), blocks=[0])[0].hidden_states.dtype == torch.bfloat16


def refused(name: str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_backbone(name, device="cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    assert "vit_base_patch14_dinov2" in refused("timm/vit_base_patch14_dino2")
    assert "near names" not in refused("timm/0")
    assert "lvd142m" in refused("timm/vit_base_patch14_dinov2.lvd1689m")
    assert "norm" in refused(f"timm/{VIT}", guidance=3.5)
    assert "leave it out" in refused(f"timm/{VIT}", pretrained=False, weights="x")
    assert "no file" in refused(f"timm/{VIT}", weights=str(tmp_path / "missing.safetensors"))
    assert "model.safetensors" in refused(f"timm/{VIT}", weights=str(tmp_path))
    assert "pretrained: false" in refused("timm/vit_base_patch16_18x2_224")  # timm has no weights of it
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    assert "no weights that fit" in refused(f"timm/{VIT}", weights=str(tmp_path / "bad.safetensors"))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "no weights that fit" in refused(f"timm/{VIT}", weights=str(tmp_path / "other.safetensors"))
    save_for_hf(timm.create_model(CNN), tmp_path / "cnn", safe_serialization=True)
    assert "timm/test_resnet" in refused(f"timm/{VIT}", weights=str(tmp_path / "cnn"))


def test_without_network_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refused("timm/vit_small_patch14_dinov2.lvd142m")
    assert "timm/vit_small_patch14_dinov2.lvd142m" in message
    assert "HF_HUB_OFFLINE" in message


def test_weights_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What timm downloads is put in its place; the answer of the hub itself is not tested here."""
    name, asked = f"{VIT}.r160_in1k", []
    model = randomise(timm.create_model(VIT))
    save_file(model.state_dict(), tmp_path / "model.safetensors")

    def fetch(repo_id: str, filename: str, **_: object) -> str:
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetch)
    found = load_backbone(f"timm/{name}", device="cpu")
    assert asked == [(f"timm/{name}", "model.safetensors")]
    for key, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key])
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    assert "no weights that fit" in refused(f"timm/{name}")
