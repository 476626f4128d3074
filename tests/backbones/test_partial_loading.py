"""Loading up to one block, for every entry: the same numbers as the whole model, and not a parameter more."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.base import Backbone, TappedBlock
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.skeletons import load_model
from ditf_probe.backbones.truncation import HEADS, NotLoaded, truncate
from ditf_probe.errors import InputError

WEIGHTS = "diffusion_pytorch_model.safetensors"
RUN = {"timestep": 260, "image_ids": ["a"]}

pytestmark = pytest.mark.usefixtures("autoencoders_once", "no_gradients")


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of a very small model, its transformer in several shards."""
    family, folder = FAMILIES[request.param], tmp_path_factory.mktemp(request.param)
    transformer = randomise(getattr(diffusers, request.param)(**family.tiny))
    transformer.save_pretrained(folder / "transformer", max_shard_size="40KB")
    randomise(getattr(diffusers, family.vae)(**AUTOENCODERS[family.vae].tiny)).save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def original(pipeline: Path) -> Any:
    """The transformer as diffusers loads it."""
    name = json.loads((pipeline / "transformer" / "config.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(str(pipeline / "transformer"))


@pytest.fixture(scope="module")
def full(pipeline: Path) -> Backbone:
    return load_backbone(pipeline, device="cpu")


@pytest.fixture(scope="module")
def start(pipeline: Path) -> Backbone:
    """Loaded up to the first block."""
    return load_backbone(pipeline, device="cpu", last_block=0)


@pytest.fixture(scope="module")
def control(full: Backbone) -> Backbone:
    """The untrained control of the whole."""
    return full.untrained()


def picture(backbone: Backbone) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, 2 * backbone.stride, 3 * backbone.stride, generator=generator)


def features(backbone: Backbone, blocks: list[int]) -> dict[tuple[str, int], TappedBlock]:
    """Of a picture, by tap and block, at the taps that a block has."""
    found = {}
    for tap in ("attention", "mlp"):
        wanted = [block for block in blocks if tap in backbone.taps(block)]
        if wanted:
            tapped = backbone(picture(backbone), blocks=wanted, tap=tap, **RUN)
            found |= {(tap, block): tapped[block] for block in wanted}
    return found


def assert_same_features(found: dict[Any, TappedBlock], expected: dict[Any, TappedBlock]) -> None:
    assert found
    for place, here in found.items():
        there = expected[place]
        assert torch.equal(here.hidden_states, there.hidden_states)
        for name in ("shift", "scale", "gate"):
            value = getattr(here, name)
            assert value is None or torch.equal(value, getattr(there, name))


@pytest.fixture(scope="module")
def expected(full: Backbone) -> dict[tuple[str, int], TappedBlock]:
    """Features of the whole model, of all blocks."""
    return features(full, list(range(full.num_blocks)))


def test_a_truncated_load_equals_a_full_one(
    pipeline: Path, full: Backbone, start: Backbone, expected: dict[tuple[str, int], TappedBlock]
) -> None:
    for last in range(full.num_blocks):
        part = load_backbone(pipeline, device="cpu", last_block=last) if last else start
        found = features(part, list(range(last + 1)))
        assert found.keys() == {place for place in expected if place[1] <= last}
        assert_same_features(found, expected)
        assert part.num_blocks == full.num_blocks
        assert part.settings() == full.settings()
        if last < full.num_blocks - 1:
            with pytest.raises(InputError, match=f"loaded up to block {last}"):
                part(picture(part), blocks=[-1], tap="attention", **RUN)


def test_it_holds_not_a_parameter_more(original: Any, start: Backbone) -> None:
    """Counted in the model as diffusers loads it: everything but later blocks and the output head."""
    family = FAMILIES[type(original).__name__]
    blocks = [f"{g.container}.{i}." for g in family.groups for i in range(len(original.get_submodule(g.container)))]
    kept = {
        name: parameter.numel()
        for name, parameter in original.named_parameters()
        if not name.startswith(tuple(blocks[1:])) and name.split(".")[0] not in HEADS
    }
    assert sum(kept.values()) < sum(parameter.numel() for parameter in original.parameters())
    part = start.transformer
    assert {name: parameter.numel() for name, parameter in part.named_parameters()} == kept
    assert not any(tensor.is_meta for tensor in [*part.parameters(), *part.buffers()])
    copy.deepcopy(part).to("cpu", torch.float64)  # nothing is left that could not be moved


def test_of_the_last_block_only_what_a_tap_needs(
    pipeline: Path, full: Backbone, control: Backbone, expected: dict[tuple[str, int], TappedBlock]
) -> None:
    """What runs in it after the tap is not in memory, not in an untrained control either; settings are the same."""
    last = full.num_blocks - 1
    part = load_backbone(pipeline, device="cpu", last_block=last, last_tap="attention")
    part_control = part.untrained()
    whole_run = {block: expected["attention", block] for block in (0, last)}
    part_run, *control_runs = (
        b(picture(full), blocks=[0, last], tap="attention", **RUN) for b in (part, control, part_control)
    )
    for runs, first, second in (((whole_run, part_run), full, part), (control_runs, control, part_control)):
        assert all(torch.equal(runs[0][block].hidden_states, runs[1][block].hidden_states) for block in (0, last))
        assert first.settings() == second.settings()
    whole, held = (dict(b.transformer.named_parameters()) for b in (full, part))
    assert held.keys() == dict(part_control.transformer.named_parameters()).keys()
    group = part.family.groups[-1]
    spared = {name for name in whole.keys() - held.keys() if name.startswith(f"{group.container}.")}
    # The attention at least, or all that attention and MLP project.
    assert sum(whole[name].numel() for name in spared) > part.channels**2
    assert not any(tensor.is_meta for tensor in [*part.transformer.parameters(), *part.transformer.buffers()])


def test_reading_equals_that_of_diffusers(pipeline: Path, original: Any) -> None:
    """Every weight and every buffer, also in bfloat16, where some classes keep a part in float32."""
    folder = pipeline / "transformer"
    halved = type(original).from_pretrained(str(folder), torch_dtype=torch.bfloat16)
    for dtype, theirs in ((torch.float32, original), (torch.bfloat16, halved)):
        ours = load_model(folder, dtype)
        assert type(ours) is type(theirs)
        pairs = [(dict(model.named_parameters()), dict(model.named_buffers())) for model in (ours, theirs)]
        for here, there in zip(*pairs, strict=True):
            assert here.keys() == there.keys()
            for name, tensor in here.items():
                assert tensor.dtype == there[name].dtype or name in dict(ours.named_buffers())
                assert torch.equal(tensor, there[name].to(tensor.dtype)), name
        assert dict(ours.config) | {"_name_or_path": None} == dict(theirs.config) | {"_name_or_path": None}
        assert not ours.training
        assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_shards_of_later_blocks_are_not_opened(
    pipeline: Path, start: Backbone, expected: dict[tuple[str, int], TappedBlock], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pipeline, tmp_path / "pipe"))
    index = json.loads((folder / "transformer" / f"{WEIGHTS}.index.json").read_text())["weight_map"]
    needed = {index[name] for name in start.transformer.state_dict()}
    spared = set(index.values()) - needed
    for shard in spared:
        (folder / "transformer" / shard).write_bytes(b"")
    part = load_backbone(folder, device="cpu", last_block=0)
    assert_same_features(features(part, [0]), expected)
    if spared:
        with pytest.raises(InputError, match="cannot be read"):
            load_backbone(folder, device="cpu")


def test_the_untrained_control_of_a_part(control: Backbone, start: Backbone) -> None:
    assert_same_features(features(start.untrained(), [0]), features(control, [0]))


def small(tmp_path: Path, name: str = "DiTTransformer2DModel", **config: object) -> Path:
    transformer = randomise(getattr(diffusers, name)(**(FAMILIES[name].tiny | config)))
    transformer.save_pretrained(tmp_path / name)
    return tmp_path / name


def refused(*args: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_backbone(*args, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_blocks_that_are_not_there(tmp_path: Path) -> None:
    folder = small(tmp_path)
    for last in (-1, 99):
        assert "`last_block`" in refused(folder, last_block=last)
        assert "`last_block`" in refused("ditf-tiny", last_block=last)
    with pytest.raises(RuntimeError, match="not loaded"):
        NotLoaded()(1)


def test_taps_that_are_not_there(tmp_path: Path) -> None:
    folder = small(tmp_path, "FluxTransformer2DModel", in_channels=12)  # RGB pixels in patches of 2
    assert "block 2 (single_transformer_blocks[0]) has one AdaLN only" in refused(folder, last_block=2, last_tap="mlp")
    assert "`last_tap` is 'both'" in refused(folder, last_block=2, last_tap="both")
    assert "name that with last_block" in refused(folder, last_tap="mlp")
    part = load_backbone(folder, device="cpu", last_block=1, last_tap="attention")
    images = torch.rand(1, 3, 4, 4)
    with pytest.raises(InputError, match=r"`tap` is 'mlp': block 1 was loaded for attention alone, load it with .*tap"):
        part(images, blocks=[0, 1], tap="mlp", **RUN)
    assert list(part(images, blocks=[0], tap="mlp", **RUN)) == [0]


def test_what_the_very_small_model_of_a_class_lacks_stays() -> None:
    name = "DiTTransformer2DModel"
    model = diffusers.DiTTransformer2DModel(**FAMILIES[name].tiny)
    block = model.transformer_blocks[1]
    block.further = nn.Linear(2, 2)
    truncate(model, FAMILIES[name], 1, "attention")
    assert isinstance(block.further, nn.Linear)
    left_out = [path for path, module in block.named_children() if isinstance(module, NotLoaded)]
    assert left_out == ["attn1", "norm3", "ff"]
    assert [isinstance(part, NotLoaded) for part in model.transformer_blocks] == [False, False, True]


def test_the_packaged_backbone_up_to_a_block() -> None:
    full, part = (load_backbone("ditf-tiny", device="cpu", last_block=last) for last in (None, 1))
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    runs = [backbone(images, blocks=[1], tap="attention", **RUN)[1] for backbone in (full, part)]
    assert torch.equal(runs[0].hidden_states, runs[1].hidden_states)
    assert part.settings() == full.settings()
    with pytest.raises(InputError, match="loaded up to block 1"):
        part(images, blocks=[2], tap="attention", **RUN)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    folder = small(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    name = "transformer_blocks.1.attn1.to_q.weight"
    save_file(tensors | {name: tensors[name][:3].clone()}, folder / WEIGHTS)
    assert f"{name} (3, " in refused(folder)
    save_file({key: value for key, value in tensors.items() if key != name}, folder / WEIGHTS)
    assert f"no tensor {name}" in refused(folder)
    load_model(folder, torch.float32, last_block=0)  # which does without it
    (folder / WEIGHTS).write_bytes(b"{}")
    assert "cannot be read" in refused(folder)


def test_shards_that_do_not_fit(tmp_path: Path) -> None:
    model = randomise(diffusers.DiTTransformer2DModel(**FAMILIES["DiTTransformer2DModel"].tiny))
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / f"{WEIGHTS}.index.json"
    contents = json.loads(index.read_text())
    shard = sorted(set(contents["weight_map"].values()))[-1]
    (tmp_path / shard).unlink()
    assert shard in refused(tmp_path)
    index.write_text(json.dumps(contents | {"weight_map": ["nonsense"]}))
    assert "no weight_map" in refused(tmp_path)
    index.write_text("{")
    assert "JSON" in refused(tmp_path)


def test_weights_without_safetensors(tmp_path: Path) -> None:
    """The `.bin` of torch, in today's format and in the one before; tensors only."""
    folder = small(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    expected = load_model(folder, torch.float32).state_dict()
    (folder / WEIGHTS).unlink()
    for zipped in (True, False):
        torch.save(tensors, folder / "diffusion_pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        found = load_model(folder, torch.float32).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    torch.save({"weights": Path("code")}, folder / "diffusion_pytorch_model.bin")
    assert "cannot be read" in refused(folder)


def test_names_of_old_repositories(tmp_path: Path) -> None:
    """Transformer2DModel with a kind of norm, and the attention layers of autoencoders before diffusers 0.13."""
    folder = small(tmp_path)
    expected = load_model(folder, torch.float32).state_dict()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "Transformer2DModel"}))
    found = load_model(folder, torch.float32)
    assert type(found) is diffusers.DiTTransformer2DModel
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in expected.items())
    vae = randomise(diffusers.AutoencoderKL(**AUTOENCODERS["AutoencoderKL"].tiny))
    vae.save_pretrained(tmp_path / "vae")
    renamed = {}
    for name, tensor in vae.state_dict().items():
        for now, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(now, then)
        renamed[name] = tensor
    assert renamed.keys() != vae.state_dict().keys()
    save_file(renamed, tmp_path / "vae" / WEIGHTS)
    theirs = diffusers.AutoencoderKL.from_pretrained(str(tmp_path / "vae")).state_dict()
    ours = load_model(tmp_path / "vae", torch.float32).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_global_generator_stays_as_it_was(tmp_path: Path) -> None:
    folder = small(tmp_path)
    before = torch.random.get_rng_state()
    load_model(folder, torch.float32, last_block=0)
    assert torch.equal(torch.random.get_rng_state(), before)
