"""The small denoiser: its file, its initialisation and the traps of the diffusers classes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ditf_probe
from ditf_probe.backbones.spec import Architecture, TinySpec, read_spec, tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.errors import InputError

BOTH = pytest.mark.parametrize("architecture", ["dit", "flux"])


def small(architecture: Architecture) -> TinySpec:
    return tiny_spec(architecture, ["cat", "dog"], width=32, head_dim=16, blocks=3, double_blocks=1, image_size=16)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 3, 16, 16), torch.tensor([100.0, 700.0]), torch.tensor([0, 2])


@BOTH
def test_file_round_trip(architecture: Architecture, tmp_path: Path) -> None:
    denoiser = TinyDenoiser.untrained(small(architecture), seed=3)
    path = tmp_path / "tiny.safetensors"
    denoiser.save(path, {"images_seen": 7})
    loaded = TinyDenoiser.load(path)
    assert read_spec(path).training == {"images_seen": 7}
    assert loaded.spec.config == denoiser.spec.config
    assert loaded.spec.class_names == ("cat", "dog")
    assert not loaded.training
    for name, value in denoiser.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name
    assert list(tmp_path.iterdir()) == [path]


@BOTH
def test_zero_initialised_denoiser_predicts_zero_and_passes_the_stream_through(architecture: Architecture) -> None:
    denoiser = TinyDenoiser.untrained(small(architecture))
    assert denoiser(*batch()).abs().max() > 1e-3
    denoiser.zero_initialise()
    streams: list[torch.Tensor] = []
    blocks = denoiser.transformer.transformer_blocks
    for block in blocks:
        module = block.norm1
        module.register_forward_pre_hook(lambda _, args, kwargs: streams.append(args[0]), with_kwargs=True)
    last = denoiser.transformer.norm_out
    last.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    assert denoiser(*batch()).abs().max() == 0
    for stream in streams[1:]:
        assert torch.equal(stream[:, -16:], streams[0][:, -16:])


def test_default_initialisation_of_dit_is_not_zero() -> None:
    denoiser = TinyDenoiser.untrained(small("dit"))
    assert denoiser.transformer.transformer_blocks[0].norm1.linear.weight.abs().max() > 0
    assert denoiser.transformer.proj_out_2.weight.abs().max() > 0


def test_untrained_is_seeded_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (TinyDenoiser.untrained(small("dit"), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    name = "transformer.transformer_blocks.0.ff.net.2.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_dit_equals_the_class_itself() -> None:
    denoiser = TinyDenoiser.untrained(small("dit"))
    noisy, timestep, labels = batch()
    assert torch.equal(denoiser(noisy, timestep, labels), denoiser.transformer(noisy, timestep, labels).sample)


@BOTH
def test_labels_survive_train_mode(architecture: Architecture) -> None:
    denoiser = TinyDenoiser.untrained(small(architecture)).train()
    outputs = [denoiser(*batch()) for _ in range(8)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    embedders = [m for m in denoiser.modules() if type(m).__name__ == "LabelEmbedding"]
    assert not any(m.training for m in embedders)


@BOTH
def test_null_class_matters(architecture: Architecture) -> None:
    denoiser = TinyDenoiser.untrained(small(architecture))
    noisy, timestep, labels = batch()
    null = torch.full_like(labels, denoiser.null_label)
    assert denoiser.null_label == 2
    assert not torch.equal(denoiser(noisy, timestep, labels)[0], denoiser(noisy, timestep, null)[0])


@BOTH
def test_keeping_every_token_is_the_whole_pass(architecture: Architecture) -> None:
    denoiser = TinyDenoiser.untrained(small(architecture))
    whole = denoiser.velocity_tokens(*batch())
    torch.testing.assert_close(denoiser.velocity_tokens(*batch(), torch.arange(16)), whole)
    assert denoiser.velocity_tokens(*batch(), torch.tensor([3, 9])).shape == (2, 2, 48)


@BOTH
def test_dropped_tokens_have_no_influence_and_positions_are_kept(architecture: Architecture) -> None:
    denoiser = TinyDenoiser.untrained(small(architecture))
    noisy, timestep, labels = batch()
    other = noisy.clone()
    other[:, :, :, 8:] = 0  # tokens 2 and 3 of every row
    keep = torch.tensor([0, 1, 4, 5])
    seen = denoiser.velocity_tokens(noisy, timestep, labels, keep)
    assert torch.equal(seen, denoiser.velocity_tokens(other, timestep, labels, keep))
    moved = noisy.roll(8, dims=3)
    shifted = denoiser.velocity_tokens(moved, timestep, labels, keep + 2)
    if architecture == "flux":  # rotary positions are relative, added ones are not; the text token sees no position
        assert (shifted - seen).abs().max() < (shifted - seen.flip(1)).abs().max()
    else:
        assert not torch.allclose(shifted, seen, atol=1e-4)


@pytest.mark.parametrize("kind", ["missing", "text", "foreign"])
def test_wrong_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    if kind == "text":
        path.write_text("no tensors here")
    elif kind == "foreign":
        save_file({"weight": nn.Linear(2, 2).weight.detach()}, path)
    with pytest.raises(InputError, match="weights"):
        TinyDenoiser.load(path)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    denoiser = TinyDenoiser.untrained(small("dit"))
    denoiser.spec.config["num_layers"] = 2
    denoiser.save(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="fit"):
        TinyDenoiser.load(tmp_path / "x.safetensors")


def test_shipped_weights_are_what_the_card_says() -> None:
    path = Path(ditf_probe.__file__).parent / "weights" / "ditf_tiny.safetensors"
    spec = read_spec(path)
    assert path.stat().st_size < 25e6
    assert (spec.image_size, spec.patch, spec.noising, spec.space) == (64, 4, "flow", "pixel")
    assert spec.training["images_seen"] > 0
    torch.manual_seed(0)
    clean, noise = torch.zeros(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    model = TinyDenoiser.load(path)
    with torch.no_grad():
        velocity = model((clean + noise) / 2, torch.tensor([500.0]), torch.tensor([model.null_label]))
    assert (velocity - noise).square().mean() < 0.2  # a model that knows nothing predicts 0 and errs by 1
