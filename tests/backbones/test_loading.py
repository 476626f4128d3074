"""Weights files, folders and hub ids: round trips, and one line for whatever is wrong."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from huggingface_hub import errors
from torch import nn

from ditf_probe.backbones import hub
from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.latents import noise
from ditf_probe.backbones.loading import from_denoiser, load_backbone, load_scheduler
from ditf_probe.backbones.spec import tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.errors import InputError

IMAGES = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
RUN = {"blocks": [0, -1], "timestep": 200, "tap": "attention", "image_ids": ["a", "b"]}


def assert_equal_runs(first: Backbone, second: Backbone, images: torch.Tensor = IMAGES, **options: object) -> None:
    runs = [backbone(images, **(RUN | options)) for backbone in (first, second)]
    for block, tapped in runs[0].items():
        assert torch.equal(tapped.hidden_states, runs[1][block].hidden_states)
        assert torch.equal(tapped.shift, runs[1][block].shift)


@pytest.fixture(params=["dit", "flux"])
def denoiser(request: pytest.FixtureRequest) -> TinyDenoiser:
    double = 1 if request.param == "flux" else 0
    spec = tiny_spec(
        request.param, ["cat", "dog"], width=32, head_dim=16, blocks=3, double_blocks=double, image_size=16
    )
    return TinyDenoiser.untrained(spec, seed=1)


def test_a_weights_file(denoiser: TinyDenoiser, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    denoiser.save(path)
    backbone = load_backbone(path, device="cpu")
    assert (backbone.name, backbone.stride, backbone.num_blocks, backbone.channels) == ("mine", 4, 3, 32)
    settings = backbone.settings()
    assert settings["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (settings["noising"], settings["dtype"], settings["null_condition"]) == ("flow", "float32", "null class")
    assert_equal_runs(backbone, from_denoiser(TinyDenoiser.load(path)))
    labelled = backbone(IMAGES, **RUN, conditions=[2, 0])[0].shift
    null = backbone(IMAGES, **RUN)[0].shift
    assert torch.equal(labelled[0], null[0])  # label 2 is the null class of two classes
    assert not torch.equal(labelled[1], null[1])


def test_a_denoiser_sees_what_the_backbone_sees(denoiser: TinyDenoiser) -> None:
    """The stream at the first AdaLN, taken from the denoiser's own forward on the same noise."""
    backbone = from_denoiser(denoiser)
    assert backbone.transformer is denoiser.transformer
    eps = torch.stack([noise((3, 16, 24), seed=0, image_id=i, draw=0, timestep=200) for i in "ab"])
    noisy = 0.8 * (2 * IMAGES - 1) + 0.2 * eps
    last = [*denoiser.transformer.transformer_blocks, *getattr(denoiser.transformer, "single_transformer_blocks", [])][
        -1
    ]
    seen: list[torch.Tensor] = []
    norm = last.norm1 if hasattr(last, "norm1") else last.norm
    handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        denoiser(noisy, torch.full((2,), 200.0), torch.full((2,), denoiser.null_label))
    handle.remove()
    found = backbone(IMAGES, **RUN)[2].hidden_states
    torch.testing.assert_close(found, seen[0][:, -24:], rtol=1e-5, atol=1e-6)


def test_the_untrained_control_is_that_of_the_denoiser(denoiser: TinyDenoiser) -> None:
    control = from_denoiser(denoiser).untrained()
    assert_equal_runs(control, from_denoiser(TinyDenoiser.untrained(denoiser.spec, seed=0)))


def test_the_packaged_backbone() -> None:
    backbone = load_backbone("ditf-tiny", device="cpu")
    assert (backbone.name, backbone.stride) == ("ditf-tiny", 4)
    tapped = backbone(torch.rand(1, 3, 64, 64), blocks=[0], timestep=100, tap="attention")[0]
    assert tapped.grid == (16, 16)
    assert bool(tapped.hidden_states.isfinite().all())


@pytest.fixture
def pipeline(tmp_path: Path, make_dit: object, make_vae: object) -> Path:
    folder = tmp_path / "pipe"
    make_dit(in_channels=4, patch_size=2).save_pretrained(folder / "transformer")
    make_vae(scaling_factor=0.7).save_pretrained(folder / "vae")
    DDIMScheduler(beta_end=0.03).save_pretrained(folder / "scheduler")
    return folder


def test_a_pipeline_folder(pipeline: Path, make_dit: object, make_vae: object) -> None:
    backbone = load_backbone(pipeline, device="cpu")
    in_memory = Backbone.from_model(
        make_dit(in_channels=4, patch_size=2), make_vae(scaling_factor=0.7), scheduler=DDIMScheduler(beta_end=0.03)
    )
    assert_equal_runs(backbone, in_memory)
    assert (backbone.name, backbone.stride) == ("pipe", 4)
    assert backbone.settings()["scheduler"]["beta_end"] == 0.03
    weights = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae")]
    lines = "".join(f"{hashlib.sha256((pipeline / f).read_bytes()).hexdigest()}  {f}\n" for f in weights)
    assert backbone.settings()["weights_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    json.dumps(backbone.settings())


def test_a_transformer_folder_and_options(tmp_path: Path, flux: nn.Module) -> None:
    flux.save_pretrained(tmp_path / "t")
    backbone = load_backbone(tmp_path / "t", device="cpu", dtype="bfloat16", name="mine", guidance=2.0)
    assert (backbone.name, backbone.settings()["dtype"], backbone.settings()["noising"]) == ("mine", "bfloat16", "flow")
    assert_equal_runs(load_backbone(tmp_path / "t", device="cpu"), Backbone.from_model(flux))


def test_a_flow_scheduler_in_the_folder_is_no_noise_schedule(tmp_path: Path, flux: nn.Module) -> None:
    flux.save_pretrained(tmp_path / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "scheduler")
    assert load_backbone(tmp_path, device="cpu").settings()["scheduler"] is None


def test_a_scheduler_that_shifts_the_signal_to_noise_ratio_is_kept(tmp_path: Path) -> None:
    saved = CogVideoXDDIMScheduler(snr_shift_scale=4.0, rescale_betas_zero_snr=True)
    saved.save_pretrained(tmp_path / "scheduler")
    assert torch.equal(load_scheduler(tmp_path).alphas_cumprod, saved.alphas_cumprod)


def refused(name: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_backbone(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_cannot_be_loaded(pipeline: Path, tmp_path: Path) -> None:
    assert "ditf-tiny" in refused("ditf-small")
    assert "no such file" in refused("weights/missing.safetensors")
    assert "transformer/config.json" in refused(tmp_path)
    assert "`nois`" in refused("ditf-tiny", nois="flow")
    assert "`device`" in refused(pipeline, device="cuda:99")
    assert "`dtype`" in refused(pipeline, device="cpu", dtype="int8")
    (tmp_path / "other.safetensors").write_bytes(b"nonsense")
    assert "TinyDenoiser.save" in refused(tmp_path / "other.safetensors")


def test_damaged_folders(pipeline: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(pipeline, tmp_path / name))

    folder = damaged("no_weights")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert "needs diffusion_pytorch_model.safetensors" in refused(folder)
    folder = damaged("cut_short")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "cannot be read" in refused(folder)
    for text, reason in (("{", "JSON"), ("[]", "JSON object"), ('{"_class_name": "UNet2DModel"}', "UNet2DModel")):
        folder = damaged(f"config_{len(text)}")
        (folder / "transformer" / "config.json").write_text(text)
        assert reason in refused(folder)
    folder = damaged("deeper")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps(config | {"num_layers": 4}))
    assert "no tensor transformer_blocks.3" in refused(folder)


def test_hub_ids_honour_the_offline_flag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The flag is read when huggingface_hub is imported, so it is set in its own constant here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "HF_HUB_OFFLINE" in refused("nobody/nothing")


def test_hub_downloads(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(repository: str, **options: object) -> str:
        asked.append((repository, options["allow_patterns"]))
        return str(pipeline)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert_equal_runs(load_backbone("someone/pipe", device="cpu"), load_backbone(pipeline, device="cpu"))
    (repository, patterns) = asked[0]
    assert repository == "someone/pipe"
    assert len(asked) == 1  # no pickled weights where safetensors are there
    assert not any(pattern.endswith(".bin") for pattern in patterns)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (errors.GatedRepoError, "licence"),
        (errors.RepositoryNotFoundError, "no such repository"),
        (errors.LocalEntryNotFoundError, "HF_HUB_OFFLINE"),
        (OSError, "try again"),
    ],
)
def test_hub_failures_are_one_line(error: type[Exception], word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error.__new__(error)

    monkeypatch.setattr(hub, "snapshot_download", fail)
    assert word in refused("someone/something")


def test_hub_repository_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert "no weights" in refused("someone/something")
