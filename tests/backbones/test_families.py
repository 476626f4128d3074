"""Every entry on a very small model with random weights: an entry that is added needs no test of its own.

References hook the input of the next sub-layer and share no code with taps and extractor.
"""

import contextlib
import copy
import itertools
import json
from collections.abc import Iterator
from typing import Any, get_args

import diffusers
import pytest
import torch
from torch import Tensor, nn

from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.base import Backbone, Tap
from ditf_probe.backbones.draws import NoisyBatch
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.latents import LatentSpace
from ditf_probe.backbones.truncation import NotLoaded, truncate
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor

T = 260
IDS = ["a", "b"]
CASES = [(name, tap) for name, family in FAMILIES.items() for tap in ("attention", "mlp")]

pytestmark = pytest.mark.usefixtures("autoencoders_once", "no_gradients")


def randomise(model: nn.Module) -> nn.Module:
    """Random parameters and statistics, so that no AdaLN is the identity by accident."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2  # keeps the size of what passes through
        middle = 1.0 if parameter.ndim == 1 and "norm" in name and name.endswith("weight") else 0.0
        parameter.data = middle + spread * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def build(name: str) -> Backbone:
    family = FAMILIES[name]
    transformer = randomise(getattr(diffusers, name)(**family.tiny))
    vae = randomise(getattr(diffusers, family.vae)(**AUTOENCODERS[family.vae].tiny))
    return Backbone.from_model(transformer, vae)


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    return {}


@pytest.fixture(scope="module")
def encodings() -> dict[tuple[LatentSpace, bytes], Any]:
    return {}


@pytest.fixture(autouse=True)
def pictures_encoded_once(encodings: dict[tuple[LatentSpace, bytes], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the transformers that are tested."""
    encode = LatentSpace.encode

    def encode_once(self: LatentSpace, pixels: Tensor) -> Any:
        key = self, pixels.numpy().tobytes()
        if key not in encodings:
            encodings[key] = encode(self, pixels)
        return copy.deepcopy(encodings[key])

    monkeypatch.setattr(LatentSpace, "encode", encode_once)


@pytest.fixture
def backbone(name: str, backbones: dict[str, Backbone]) -> Backbone:
    """Built once per class."""
    if name not in backbones:
        backbones[name] = build(name)
    return backbones[name]


def pictures(backbone: Backbone, rows: int = 3, columns: int = 5) -> Tensor:
    """Two images that are not square."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, rows * backbone.stride, columns * backbone.stride, generator=generator)


def masked_prompts(backbone: Backbone) -> PromptEmbeddings:
    """Two random prompts, the second half as long."""
    generator = torch.Generator().manual_seed(2)
    shape = backbone.family.text(backbone.transformer.config)
    tokens = shape.tokens or 6
    embeds = torch.randn(2, tokens, shape.width, generator=generator)
    pooled = None if shape.pooled is None else torch.randn(2, shape.pooled, generator=generator)
    mask = torch.arange(tokens) < torch.tensor([[tokens], [tokens // 2]])
    second = None
    if shape.second is not None:
        second = torch.randn(2, shape.second_tokens or 6, shape.second, generator=generator)
    return PromptEmbeddings(embeds, pooled, mask, second)


def blocks_with(backbone: Backbone, tap: str) -> list[int]:
    return [block for block in range(backbone.num_blocks) if tap in backbone.taps(block)]


def all_blocks(backbone: Backbone) -> Iterator[tuple[Any, nn.Module]]:
    for group in backbone.family.groups:
        for block in backbone.transformer.get_submodule(group.container):
            yield group, block


def call_arguments(backbone: Backbone, images: Tensor) -> dict[str, Any]:
    """What the backbone calls the transformer with."""
    seen: list[dict[str, Any]] = []
    handle = backbone.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    try:
        backbone(images, blocks=[0], timestep=T, tap="attention", image_ids=IDS)
    finally:
        handle.remove()
    return seen[0]


def tensors_of(args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    return [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 3]


def as_tokens(x: Tensor, batch: int, channels: int) -> Tensor | None:
    """`(B, tokens, C)` from the layouts that occur: channels first, or tokens before the batch."""
    if x.ndim == 4 and x.shape[:2] == (batch, channels):
        return x.flatten(2).transpose(1, 2)
    if x.ndim == 3 and x.shape[-1] == channels:
        return x if x.shape[0] == batch else x.transpose(0, 1)
    return None


@torch.no_grad()
def entering(backbone: Backbone, tap: str, images: Tensor) -> dict[int, Tensor]:
    """What enters the next sub-layer of every block in a whole pass: the first tensor that holds the image tokens."""
    found: dict[int, Tensor] = {}
    count = images.shape[2] * images.shape[3] // backbone.stride**2
    handles = []
    for index, (group, block) in enumerate(all_blocks(backbone)):
        layer = getattr(group, tap)
        if layer is None:
            continue

        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], index: int = index, order=group.order) -> None:
            for x in tensors_of(args, kwargs):
                tokens = as_tokens(x, len(images), backbone.channels)
                if index not in found and tokens is not None and tokens.shape[1] >= count:
                    found[index] = tokens[:, :count] if order.startswith("image") else tokens[:, -count:]

        handles.append(block.get_submodule(layer.into).register_forward_pre_hook(hook, with_kwargs=True))
    arguments = call_arguments(backbone, images)
    try:
        with contextlib.suppress(RuntimeError):  # some classes cannot unpack what is not square, after their last block
            backbone.transformer(**arguments)
    finally:
        for handle in handles:
            handle.remove()
    return found


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("name", "tap"), CASES)
def test_features_are_what_enters_the_next_sublayer(name: str, tap: str, backbone: Backbone) -> None:
    images, blocks = pictures(backbone), blocks_with(backbone, tap)
    reference = entering(backbone, tap, images)
    assert list(reference) == blocks
    if not blocks:
        assert tap == "mlp"
        return
    features = FeatureExtractor(backbone, blocks=blocks, timestep=T, tap=tap)(images, IDS)
    for block in blocks:
        expected = reference[block].transpose(1, 2).reshape(2, -1, 3, 5)
        assert relative_error(features[block], expected) <= 1e-6, f"block {block}"
        assert backbone.channels == features[block].shape[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_moving_one_patch_moves_one_token(name: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first AdaLN no token has seen another one. An autoencoder sees further, so it is latents that change."""
    images = pictures(backbone)
    encode, moved = backbone.latents.encode, []

    def changed(pixels: Tensor) -> Any:
        encoded = encode(pixels)
        if moved:
            patch = backbone.patch
            encoded.mean[:, :, 1 * patch : 2 * patch, 3 * patch : 4 * patch] += 1.0
        return encoded

    monkeypatch.setattr(backbone.latents, "encode", changed)
    runs = []
    for _ in range(2):
        runs.append(backbone(images, blocks=[0], timestep=T, tap="attention", image_ids=IDS)[0])
        moved.append(True)
    different = (runs[0].hidden_states - runs[1].hidden_states).abs().amax(-1).reshape(2, *runs[0].grid) > 1e-6
    assert different.nonzero().tolist() == [[0, 1, 3], [1, 1, 3]]


@pytest.mark.parametrize("name", FAMILIES)
def test_stream_of_an_ensemble_is_the_mean_of_its_draws(
    name: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(backbone)
    block = backbone.num_blocks - 1
    options = {"blocks": [block], "timestep": T, "tap": "attention", "image_ids": IDS}
    together = backbone(images, ensemble=3, **options)[block]
    singles, original = [], NoisyBatch.noisy
    for draw in range(3):
        monkeypatch.setattr(NoisyBatch, "noisy", lambda self, image, t, _, draw=draw: original(self, image, t, draw))
        singles.append(backbone(images, **options)[block].hidden_states)
    assert relative_error(together.hidden_states, torch.stack(singles).mean(0)) <= 1e-5
    assert relative_error(singles[0], singles[1]) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_several_timesteps_in_one_pass(name: str, backbone: Backbone) -> None:
    images = pictures(backbone)
    block, steps = backbone.num_blocks - 1, [400, 20, T]
    options = {"blocks": [block], "tap": "attention", "image_ids": IDS}
    together = backbone(images, timestep=steps, ensemble=2, **options)[block]
    alone = [backbone(images, timestep=t, ensemble=2, **options)[block] for t in steps]
    assert together.hidden_states.shape == (2, 3, 15, backbone.channels)
    for found, expected in (
        (together.hidden_states, [x.hidden_states for x in alone]),
        (together.shift, [x.shift for x in alone]),
        (together.scale, [x.scale for x in alone]),
    ):
        assert (found is None) == (expected[0] is None)
        if found is not None:
            assert relative_error(found, torch.stack(expected, 1)) <= 1e-5
    modulation = "adaln" if alone[0].scale is not None or alone[0].shift is not None else "layer_norm"
    made = [
        FeatureExtractor(backbone, blocks=[block], timestep=t, tap="attention", modulation=modulation)(images, IDS)
        for t in ([400, 20], 400, 20)
    ]
    assert relative_error(made[0][block], (made[1][block] + made[2][block]) / 2) <= 1e-5


def holds(attended: Tensor, tokens: Tensor) -> bool:
    """Whether every token `(B, N, C)` is a row of what is attended to, `(B, heads, T, C / heads)`."""
    if attended.ndim != 4 or len(attended) != len(tokens) or (attended.shape[1] * attended.shape[3]) % tokens.shape[-1]:
        return False
    shared = attended.shape[1] * attended.shape[3] // tokens.shape[-1]  # queries that share a head of keys and values
    rows = attended[:, ::shared].transpose(1, 2).flatten(2)
    nearest = torch.cdist(tokens, rows, p=float("inf")).amin(-1)
    return bool(nearest.max() <= 1e-5 * rows.abs().max())


def holds_lengths(attended: Tensor, tokens: Tensor) -> bool:
    """As `holds` for queries and keys: position encodings turn the vectors of heads and keep their lengths."""
    if attended.ndim != 4 or tokens.shape[-1] % attended.shape[-1]:
        return False
    return holds(attended.norm(dim=-1, keepdim=True), tokens.unflatten(-1, (-1, attended.shape[-1])).norm(dim=-1))


def linear_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention `(B, N, C)` with the positive parts of query times key as weights, pair by pair."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = query.clamp(min=0) @ key.clamp(min=0).transpose(2, 3)
    return (weights @ value / weights.sum(-1, keepdim=True)).transpose(1, 2).flatten(2)


@torch.no_grad()
def attending(backbone: Backbone, images: Tensor) -> tuple[list[tuple[Tensor, ...]], dict[int, Tensor]]:
    """Query, key and value wherever torch attends in a whole pass; what leaves linear attentions, by block."""
    attended: list[tuple[Tensor, ...]] = []
    left: dict[int, Tensor] = {}
    original = torch.nn.functional.scaled_dot_product_attention
    arguments = call_arguments(backbone, images)

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        attended.append((query, key, value))
        return original(query, key, value, *args, **kwargs)

    handles = []
    for index, (group, block) in enumerate(all_blocks(backbone)):
        attention = block.get_submodule(group.attention.into)
        if "Linear" in type(getattr(attention, "processor", None)).__name__:
            handles.append(
                attention.to_out[0].register_forward_pre_hook(lambda _, args, at=index: left.update({at: args[0]}))
            )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
        if "Ernie" in backbone.name:  # turns the two halves of a pair by angles of their own, so lengths change
            patch.setattr(backbone.transformer.pos_embed, "forward", lambda ids: ids.new_zeros(*ids.shape[:2], 1, 16))
        with contextlib.suppress(RuntimeError):
            backbone.transformer(**arguments)
    for handle in handles:
        handle.remove()
    return attended, left


@pytest.mark.parametrize("name", FAMILIES)
def test_projections_are_what_enters_the_attention(name: str, backbone: Backbone) -> None:
    """In the first block of each kind. Query, key and value of a linear attention explain what leaves it."""
    images, kinds = pictures(backbone), [group.container for group, _ in all_blocks(backbone)]
    blocks = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    attended, left = attending(backbone, images)
    options = {"blocks": blocks, "timestep": T, "image_ids": IDS}
    found = [backbone(images, tap=tap, **options) for tap in ("query", "key", "value")]
    for block in blocks:
        taps = [tapped[block] for tapped in found]
        assert all(x.shift is None and x.scale is None and x.grid == (3, 5) for x in taps)
        query, key, value = (x.hidden_states for x in taps)
        if block in left:
            heads = backbone.transformer.config.num_attention_heads
            assert relative_error(linear_attention(query, key, value, heads), left[block]) <= 1e-5
            continue
        seen = [holds_lengths(q, query) and holds_lengths(k, key) and holds(v, value) for q, k, v in attended]
        assert any(seen), f"block {block}"


@pytest.mark.parametrize("name", FAMILIES)
def test_modulation_from_a_part_of_the_condition(name: str, backbone: Backbone) -> None:
    """The parts are checked by changing the other one: a class or prompt must not reach "t", a timestep not "c"."""
    images, known = pictures(backbone), backbone.modulation_conditions
    options = {"blocks": [0], "tap": "attention", "image_ids": IDS}
    whole = backbone(images, timestep=T, **options)[0]
    if "t" in known and "c" not in known:
        found = backbone(images, timestep=T, modulation_condition="t", **options)[0]
        assert torch.equal(found.scale, whole.scale)
    if "c" not in known:
        with pytest.raises(InputError, match="can be computed from t"):
            backbone(images, timestep=T, modulation_condition="c", **options)
        return
    if backbone.family.text is None:
        other: Any = torch.tensor([1, 2])
    else:
        shape = backbone.family.text(backbone.transformer.config)
        other = PromptEmbeddings(torch.rand(1, 4, shape.width), torch.rand(1, shape.pooled))
    for part, changed, kept in (
        ("t", {"timestep": 20}, {"conditions": other}),
        ("c", {"conditions": other}, {"timestep": 20}),
    ):
        first, second, third = (
            backbone(images, modulation_condition=part, **({"timestep": T} | options | change))[0].scale
            for change in ({}, kept, changed)
        )
        assert torch.equal(first, second)
        assert relative_error(third, first) > 1e-3
        assert relative_error(whole.scale, first) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_and_order_do_not_matter(name: str, backbone: Backbone) -> None:
    images = pictures(backbone)
    block = backbone.num_blocks - 1
    options = {"blocks": [block], "timestep": T, "tap": "attention"}
    together = backbone(images.flip(0), image_ids=["b", "a"], **options)[block]
    for row, image_id in ((1, "a"), (0, "b")):
        alone = backbone(images.flip(0)[row : row + 1], image_ids=[image_id], **options)[block]
        assert relative_error(together.hidden_states[row], alone.hidden_states[0]) <= 1e-5


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.text is not None])
def test_prompts_of_unequal_length_share_a_batch(name: str, backbone: Backbone) -> None:
    """A row is as if it were alone, and its last token, which is masked, does not matter. Or masks are refused."""
    images, prompts = pictures(backbone), masked_prompts(backbone)
    block = backbone.num_blocks - 1
    options = {"blocks": [block], "timestep": T, "tap": "attention"}
    try:
        together = backbone(images, image_ids=IDS, conditions=prompts, **options)[block].hidden_states
    except InputError as error:
        if error.argument == "conditions.mask":
            return
        raise
    for row, image_id in enumerate(IDS):
        prompt = prompts[torch.tensor([row])]
        prompt.embeds[:, -1] += row  # the first row has no padding
        alone = backbone(images[row : row + 1], image_ids=[image_id], conditions=prompt, **options)[block]
        assert relative_error(together[row], alone.hidden_states[0]) <= 1e-5, f"row {row}"


@pytest.mark.parametrize("name", FAMILIES)
def test_early_exit_is_bit_equal_and_leaves_no_hook(name: str, backbone: Backbone) -> None:
    images = pictures(backbone)
    last = backbone.num_blocks - 1
    early = backbone(images, blocks=[0], timestep=T, tap="attention", image_ids=IDS)[0]
    late = backbone(images, blocks=[0, last], timestep=T, tap="attention", image_ids=IDS)[0]
    assert torch.equal(early.hidden_states, late.hidden_states)
    for first, second in ((early.shift, late.shift), (early.scale, late.scale), (early.gate, late.gate)):
        assert (first is None and second is None) or torch.equal(first, second)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.transformer.modules())


def ends(backbone: Backbone) -> list[int]:
    """The first block, and the last one of every kind."""
    counts = [len(backbone.transformer.get_submodule(group.container)) for group in backbone.family.groups]
    return [0, *(end - 1 for end in itertools.accumulate(counts))]


class Alarm(nn.Module):
    """Stands where a module was, and tells that it is called."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("called")


def twin(module: nn.Module) -> nn.Module:
    """The same modules anew, around the same weights: any may be replaced."""
    copied = copy.copy(module)
    copied._modules = {name: child and twin(child) for name, child in module._modules.items()}
    return copied


@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_loaded_for_one_tap_alone(name: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same features bit for bit, from not a part more than they need; taps that need more are refused."""
    images, options = pictures(backbone)[:1], {"timestep": T, "image_ids": IDS[:1]}
    encoded = backbone.latents.encode(images)
    monkeypatch.setattr(LatentSpace, "encode", lambda self, pixels: encoded)
    whole = {
        tap: backbone(images, blocks=blocks, tap=tap, **options)
        for tap in get_args(Tap)
        if (blocks := blocks_with(backbone, tap))
    }
    for last, tap in itertools.product(ends(backbone), get_args(Tap)):
        transformer = twin(backbone.transformer)
        if tap not in backbone.taps(last):
            with pytest.raises(InputError, match=f"`last_tap` is '{tap}': block {last} "):
                truncate(transformer, backbone.family, last, tap)
            continue
        truncate(transformer, backbone.family, last, tap)
        part = Backbone.from_model(transformer, backbone.latents.vae)
        _, block = list(all_blocks(part))[last]
        assert any(isinstance(module, NotLoaded) for module in block.modules())
        projections = {"query", "key", "value"} & set(backbone.taps(last))  # their order is that of the class
        earlier = {"attention", tap} | (projections if tap == "mlp" else set())
        later = set(backbone.taps(last)) - {"attention", tap} - (set() if tap == "attention" else projections)
        for other in earlier:
            found = part(images, blocks=[last], tap=other, **options)[last]
            for field in ("hidden_states", "shift", "scale", "gate"):
                here, there = getattr(found, field), getattr(whole[other][last], field)
                assert (here is None and there is None) or torch.equal(here, there)
        for other in later:
            with pytest.raises(InputError, match=f"`tap` is '{other}': block {last} was loaded for .*{tap}.* alone"):
                part(images, blocks=[last], tap=other, **options)
        for path, child in list(block.named_children()):
            if last and not isinstance(child, NotLoaded):  # the first block would show the same
                setattr(block, path, Alarm())
                with pytest.raises((RuntimeError, AttributeError)):
                    part(images, blocks=[last], tap=tap, **options)
                setattr(block, path, child)


@pytest.mark.parametrize("name", FAMILIES)
def test_settings_are_plain_values_and_untrained_weights_differ(name: str, backbone: Backbone) -> None:
    settings = json.loads(json.dumps(backbone.settings()))
    assert settings["class"] == name
    assert backbone.has_adaln
    assert backbone.untrained().settings()["weights_sha256"] != settings["weights_sha256"]


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_strides_and_channels_are_those_of_the_latents(name: str) -> None:
    vae = randomise(getattr(diffusers, name)(**AUTOENCODERS[name].tiny))
    space = LatentSpace(vae)
    side = 4 * space.stride
    with torch.no_grad():
        encoded = space.encode(torch.rand(2, 3, side, 2 * side))
    assert encoded.mean.shape == (2, space.channels, 4, 8)
    assert encoded.mean.isfinite().all()
