"""DIFT features of a tiny UNet against a reference that makes its own noise and runs the whole UNet."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from ditf_probe.backbones import hub
from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.unet import DIFTBackbone
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor

IDS = ["a", "b"]
STRIDES, CHANNELS = [8, 4, 2, 2], [16, 16, 16, 8]  # of the up blocks; the autoencoder halves the image


def build_unet(**options: object) -> nn.Module:
    """Four levels as in Stable Diffusion, the coarsest without attention."""
    crossed = 3 * ["CrossAttnDownBlock2D"]
    config = {
        "down_block_types": [*crossed, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *[name.replace("Down", "Up") for name in crossed]],
        "block_out_channels": [8, 16, 16, 16],
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    model = UNet2DConditionModel(**(config | options))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return build_unet()


@pytest.fixture(scope="module")
def vae(make_vae: object) -> nn.Module:
    return make_vae(scaling_factor=0.6)


@pytest.fixture
def pictures() -> Tensor:
    """Two images that are not square."""
    return torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(3))


def reference_noise(shape: torch.Size, image_id: str, draw: int, timestep: int) -> Tensor:
    digest = hashlib.sha256(json.dumps([0, image_id, draw, timestep]).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") // 2)
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def reference(
    unet: nn.Module, vae: nn.Module, image: Tensor, image_id: str, block: int, timestep: int, draw: int = 0
) -> Tensor:
    """The output `(C, h, w)` of an up block for one image and one draw."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = float(torch.cumprod(1 - betas, 0)[timestep])
    clean = 0.6 * vae.encode(2 * image[None] - 1).latent_dist.mode()
    noisy = kept**0.5 * clean + (1 - kept) ** 0.5 * reference_noise(clean.shape[1:], image_id, draw, timestep)
    seen: list[Tensor] = []
    handle = unet.up_blocks[block].register_forward_hook(lambda module, args, output: seen.append(output))
    unet(noisy, timestep, encoder_hidden_states=torch.zeros(1, 1, 12))
    handle.remove()
    return seen[0][0]


def as_tokens(features: Tensor) -> Tensor:
    return torch.stack([features[:, i, j] for i in range(features.shape[1]) for j in range(features.shape[2])])


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_tokens_are_the_output_of_the_up_block(unet: nn.Module, vae: nn.Module, pictures: Tensor, block: int) -> None:
    backbone = Backbone.from_model(unet, vae)
    assert isinstance(backbone, DIFTBackbone)
    tapped = backbone(pictures, blocks=[block], timestep=261, image_ids=IDS)[block]
    stride = STRIDES[block]
    assert (backbone.stride_at(block), backbone.channels_at(block)) == (stride, CHANNELS[block])
    assert tapped.grid == (24 // stride, 40 // stride)
    assert tapped.hidden_states.shape == (2, tapped.grid[0] * tapped.grid[1], CHANNELS[block])
    assert (tapped.shift, tapped.scale, tapped.gate) == (None, None, None)
    for row, image_id in enumerate(IDS):
        expected = as_tokens(reference(unet, vae, pictures[row], image_id, block, 261))
        assert relative_error(tapped.hidden_states[row], expected) <= 1e-5


def test_sides_are_multiples_of_the_stride_of_the_block(unet: nn.Module, vae: nn.Module) -> None:
    """20 x 28 pixels are 10 x 14 latents, which the coarser levels of the UNet do not divide."""
    backbone = Backbone.from_model(unet, vae)
    pictures = torch.rand(1, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    tapped = backbone(pictures, blocks=[1, 3], timestep=10, image_ids=["x"])
    assert [found.grid for found in tapped.values()] == [(5, 7), (10, 14)]
    for block, found in tapped.items():
        expected = as_tokens(reference(unet, vae, pictures[0], "x", block, 10))
        assert relative_error(found.hidden_states[0], expected) <= 1e-5
    with pytest.raises(InputError, match="multiples of 8"):
        backbone(pictures, blocks=[0, 1], timestep=10)
    assert FeatureExtractor(backbone, blocks=[1], timestep=10).size_rule.multiple == 4


@pytest.mark.parametrize("max_batch", [1, 2, 4, 64])
def test_ensemble_is_the_mean_of_single_draws(
    unet: nn.Module, vae: nn.Module, pictures: Tensor, max_batch: int
) -> None:
    backbone = Backbone.from_model(unet, vae, max_batch=max_batch)
    tapped = backbone(pictures, blocks=[1], timestep=261, image_ids=IDS, ensemble=3)[1]
    for row, image_id in enumerate(IDS):
        draws = [as_tokens(reference(unet, vae, pictures[row], image_id, 1, 261, draw)) for draw in range(3)]
        assert relative_error(tapped.hidden_states[row], torch.stack(draws).mean(0)) <= 1e-5
        assert relative_error(draws[0], draws[1]) > 1e-3


def test_batch_and_order_do_not_matter(unet: nn.Module, vae: nn.Module, pictures: Tensor) -> None:
    backbone = Backbone.from_model(unet, vae, posterior="sample")
    together = backbone(pictures.flip(0), blocks=[1], timestep=261, image_ids=["b", "a"])[1].hidden_states
    for row, image_id in ((1, "a"), (0, "b")):
        picture = pictures.flip(0)[row : row + 1]
        alone = backbone(picture, blocks=[1], timestep=261, image_ids=[image_id])[1].hidden_states[0]
        assert relative_error(together[row], alone) <= 1e-5
    mode = Backbone.from_model(unet, vae)(pictures, blocks=[1], timestep=261, image_ids=IDS)[1].hidden_states
    assert relative_error(together.flip(0), mode) > 1e-3


def test_several_timesteps_in_one_pass(unet: nn.Module, vae: nn.Module, pictures: Tensor) -> None:
    backbone = Backbone.from_model(unet, vae)
    both = backbone(pictures, blocks=[1], timestep=[261, 40], image_ids=IDS)[1].hidden_states
    for step, timestep in enumerate((261, 40)):
        alone = backbone(pictures, blocks=[1], timestep=timestep, image_ids=IDS)[1].hidden_states
        assert relative_error(both[:, step], alone) <= 1e-5


def test_early_exit_is_bit_equal_and_skips_later_blocks(unet: nn.Module, vae: nn.Module, pictures: Tensor) -> None:
    ran: list[int] = []
    handles = [b.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(unet.up_blocks)]
    backbone = Backbone.from_model(unet, vae)
    early = backbone(pictures, blocks=[1], timestep=261, image_ids=IDS)[1].hidden_states
    assert ran == [0, 1]
    late = backbone(pictures, blocks=[3, 1], timestep=261, image_ids=IDS)
    assert list(late) == [3, 1]
    assert torch.equal(early, late[1].hidden_states)
    for handle in handles:
        handle.remove()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_after_a_run_and_after_an_exception(unet: nn.Module, vae: nn.Module, pictures: Tensor) -> None:
    backbone = Backbone.from_model(unet, vae)
    backbone(pictures, blocks=[1], timestep=5)
    assert hooks(unet) == 0

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    handle = unet.mid_block.register_forward_pre_hook(fail)
    try:
        with pytest.raises(ZeroDivisionError):
            backbone(pictures, blocks=[1], timestep=5)
    finally:
        handle.remove()
    assert hooks(unet) == 0


def test_prompts_reach_the_unet(unet: nn.Module, vae: nn.Module, pictures: Tensor) -> None:
    backbone = Backbone.from_model(unet, vae)

    def stream(conditions: object) -> Tensor:
        return backbone(pictures, blocks=[1], timestep=261, image_ids=IDS, conditions=conditions)[1].hidden_states

    embeds = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    both = stream(PromptEmbeddings(embeds))
    first = stream(PromptEmbeddings(embeds[:1]))
    assert relative_error(first[0], both[0]) <= 1e-5
    assert relative_error(first[1], both[1]) > 1e-4
    assert torch.equal(stream(None), stream(PromptEmbeddings(torch.zeros(1, 1, 12))))
    mask = torch.tensor([[True, True, False, False, False]])
    masked = stream(PromptEmbeddings(embeds[:1], mask=mask))
    assert relative_error(masked, stream(PromptEmbeddings(embeds[:1, :2]))) <= 1e-4
    with pytest.raises(InputError, match="width 12"):
        stream(PromptEmbeddings(torch.zeros(1, 1, 13)))


def test_noise_is_that_of_the_scheduler(unet: nn.Module, vae: nn.Module, pictures: Tensor) -> None:
    """With a schedule that keeps everything, noise draws do not matter."""
    clean = DDIMScheduler(beta_start=1e-12, beta_end=1e-12, num_train_timesteps=300)
    backbone = Backbone.from_model(unet, vae, scheduler=clean)
    assert (backbone.num_timesteps, backbone.settings()["scheduler"]["beta_end"]) == (299, 1e-12)
    runs = [backbone(pictures, blocks=[1], timestep=261, seed=seed)[1].hidden_states for seed in (0, 1)]
    assert relative_error(runs[0], runs[1]) <= 1e-4


def test_runs_the_very_model_frozen(unet: nn.Module, vae: nn.Module, pictures: Tensor) -> None:
    backbone = Backbone.from_model(unet, vae, name="x")
    assert backbone.unet is unet
    assert backbone.train().training is False
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    settings = json.loads(json.dumps(backbone.settings()))
    assert (settings["name"], settings["class"], settings["posterior"]) == ("x", "UNet2DConditionModel", "mode")
    assert settings["vae"]["scaling_factor"] == 0.6
    half = Backbone.from_model(build_unet().to(torch.bfloat16), vae)
    assert half(pictures, blocks=[0], timestep=261)[0].hidden_states.dtype == torch.bfloat16
    with pytest.raises(InputError, match="no AdaLN"):
        FeatureExtractor(backbone, blocks=[1], timestep=261)(pictures)
    features = FeatureExtractor(backbone, blocks=[1], timestep=261, modulation="none")(pictures)[1]
    assert features.shape == (2, 16, 6, 10)


def test_untrained_is_the_default_initialisation(unet: nn.Module, vae: nn.Module, pictures: Tensor) -> None:
    backbone = Backbone.from_model(unet, vae)
    state = torch.random.get_rng_state()
    control = backbone.untrained()
    assert not backbone.has_adaln
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(0)
    expected = type(unet).from_config(unet.config).state_dict()
    torch.random.set_rng_state(state)
    for name, tensor in control.unet.state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert control.latents.vae is vae
    assert control.weights_sha256 != backbone.weights_sha256
    assert control(pictures, blocks=[1], timestep=261)[1].grid == (6, 10)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"blocks": [4]}, "blocks"),
        ({"timestep": 1000}, "timestep"),
        ({"tap": "query"}, "tap"),
        ({"ensemble": 0}, "ensemble"),
        ({"image_ids": ["a"]}, "image_ids"),
        ({"conditions": [1, 2]}, "conditions"),
        ({"images": torch.rand(1, 3, 24, 42)}, "images"),
    ],
)
def test_bad_input_names_the_argument(
    unet: nn.Module, vae: nn.Module, pictures: Tensor, change: dict, argument: str
) -> None:
    arguments = {"images": pictures, "blocks": [1], "timestep": 10} | change
    with pytest.raises(InputError) as caught:
        Backbone.from_model(unet, vae)(**arguments)
    assert caught.value.argument == argument


def test_models_that_cannot_be_wrapped(unet: nn.Module, vae: nn.Module, dit: nn.Module) -> None:
    compiled = build_unet()
    compiled.mid_block._compiled_call_impl = print  # as nn.Module.compile does, without importing the compiler
    for model, options, word in (
        (dit, {}, "UNet2DConditionModel"),
        (unet, {"vae": None}, "4 channels"),
        (build_unet(in_channels=9), {}, "9 channels"),
        (build_unet(class_embed_type="timestep"), {}, "class_embed_type"),
        (build_unet(num_class_embeds=3), {}, "num_class_embeds"),
        (build_unet(cross_attention_dim=[12, 8, 8, 8]), {}, "cross_attention_dim"),
        (unet, {"max_batch": 0}, "max_batch"),
        (unet, {"posterior": "mean"}, "posterior"),
        (compiled, {}, "compile"),
    ):
        with pytest.raises(InputError, match=word):
            DIFTBackbone(model, **({"vae": vae} | options))


@pytest.fixture
def pipeline(tmp_path: Path, unet: nn.Module, vae: nn.Module) -> Path:
    folder = tmp_path / "sd"
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    DDIMScheduler(beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    return folder


def test_a_pipeline_folder(pipeline: Path, unet: nn.Module, vae: nn.Module, pictures: Tensor) -> None:
    backbone = load_backbone(pipeline, device="cpu", max_batch=2)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear")
    in_memory = Backbone.from_model(unet, vae, scheduler=scheduler)
    runs = [b(pictures, blocks=[1], timestep=261, image_ids=IDS)[1].hidden_states for b in (backbone, in_memory)]
    torch.testing.assert_close(*runs, rtol=1e-5, atol=1e-5)
    assert (backbone.name, backbone.settings()["scheduler"]["beta_end"]) == ("sd", 0.02)
    weights = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
    lines = "".join(f"{hashlib.sha256((pipeline / f).read_bytes()).hexdigest()}  {f}\n" for f in weights)
    assert backbone.weights_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    with pytest.raises(InputError, match="no option of this backbone"):
        load_backbone(pipeline, device="cpu", guidance=2.0)


def test_a_hub_repository(pipeline: Path, pictures: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder stands for what the hub would send; of every part, safetensors are asked for first."""
    asked: list[str] = []

    def snapshot(repository: str, **options: list[str]) -> str:
        asked.extend(options["allow_patterns"])
        return str(pipeline)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    backbone = load_backbone("someone/sd", device="cpu")
    assert backbone.name == "sd"
    assert backbone(pictures, blocks=[1], timestep=261)[1].grid == (6, 10)
    assert {"unet/*config.json", "unet/diffusion_pytorch_model*.safetensors"} <= set(asked)
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        load_backbone("someone/sd", device="cpu")


def test_strings_are_conditions_where_there_is_a_text_side(unet: nn.Module, vae: nn.Module, pictures: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    known = {text: torch.randn(1, 4, 12, generator=generator) for text in ("a cat", "a dog")}
    texts = DIFTBackbone(unet, vae, prompts=lambda asked: [PromptEmbeddings(known[text]) for text in asked])
    options = {"blocks": [0], "timestep": 261, "image_ids": ["a", "b"]}
    found = texts(pictures, conditions=["a dog", "a cat"], **options)[0].hidden_states
    given = PromptEmbeddings(torch.cat([known["a dog"], known["a cat"]]))
    assert torch.equal(found, texts(pictures, conditions=given, **options)[0].hidden_states)
    with pytest.raises(InputError, match="reads no text"):
        DIFTBackbone(unet, vae)(pictures, conditions="a dog", **options)


@pytest.mark.parametrize(("option", "value"), [("last_block", 1), ("quantization", "fp8"), ("offload", "model")])
def test_options_of_transformers_are_refused(
    option: str, value: object, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditf_probe.backbones.weight_options.check_quantization", lambda *_: None)
    with pytest.raises(InputError, match=f"`{option}` is '{value}'.*does not take it, leave it out"):
        load_backbone(pipeline, device="cpu", **{option: value})
