"""The backbone against references that hook the input of the NEXT sub-layer and make their own noise and inputs."""

import contextlib
import hashlib
import json

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.matching import match_keypoints

IDS = ["a", "b"]
NEXT = {  # the sub-layer behind each AdaLN, and which rows of its input are image tokens
    "DiTTransformer2DModel": {"transformer_blocks": {"attention": "attn1", "mlp": "ff"}},
    "FluxTransformer2DModel": {
        "transformer_blocks": {"attention": "attn", "mlp": "ff"},
        "single_transformer_blocks": {"attention": "proj_mlp"},
    },
}


def reference_noise(shape: torch.Size, image_id: str, draw: int, timestep: int, seed: int = 0) -> Tensor:
    digest = hashlib.sha256(json.dumps([seed, image_id, draw, timestep]).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") // 2)
    return torch.randn(shape, generator=generator)


def noisy_pixels(images: Tensor, ids: list[str], timestep: int, draw: int = 0) -> Tensor:
    eps = torch.stack([reference_noise(images.shape[1:], image_id, draw, timestep) for image_id in ids])
    return (1 - timestep / 1000) * (2 * images - 1) + timestep / 1000 * eps


def run_by_hand(model: nn.Module, noisy: Tensor, timestep: int, labels: Tensor | None = None) -> None:
    """Calls the model on its own terms; DiT cannot unpack images that are not square, after its last block."""
    if type(model).__name__ == "DiTTransformer2DModel":
        labels = torch.full((len(noisy),), 5) if labels is None else labels
        with contextlib.suppress(RuntimeError):
            model(noisy, timestep=torch.full((len(noisy),), timestep), class_labels=labels)
        return
    b, _, height, width = noisy.shape
    rows, columns = height // 4, width // 4
    tokens = [
        noisy[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(b, -1) for i in range(rows) for j in range(columns)
    ]
    model(
        hidden_states=torch.stack(tokens, 1),
        encoder_hidden_states=torch.zeros(b, 1, 24),
        pooled_projections=torch.zeros(b, 20),
        timestep=torch.full((b,), timestep / 1000),
        img_ids=torch.tensor([[0.0, i, j] for i in range(rows) for j in range(columns)]),
        txt_ids=torch.zeros(1, 3),
    )


def sublayer_inputs(model: nn.Module, tap: str, run: object) -> dict[int, Tensor]:
    """What enters the next sub-layer of every block that has the tap, all tokens."""
    found: dict[int, Tensor] = {}
    handles, index = [], 0
    for container, names in NEXT[type(model).__name__].items():
        for block in getattr(model, container):
            if tap in names:

                def hook(module: nn.Module, args: tuple, kwargs: dict, index: int = index) -> None:
                    found[index] = args[0] if args else kwargs["hidden_states"]

                handles.append(getattr(block, names[tap]).register_forward_pre_hook(hook, with_kwargs=True))
            index += 1
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ["dit", "flux"])
@pytest.mark.parametrize("tap", ["attention", "mlp"])
def test_adaln_features_are_what_enters_the_next_sublayer(
    name: str, tap: str, images: Tensor, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    backbone = Backbone.from_model(model, noising="flow")
    reference = sublayer_inputs(model, tap, lambda: run_by_hand(model, noisy_pixels(images, IDS, 260), 260))
    blocks = [block for block in range(backbone.num_blocks) if tap in backbone.taps(block)]
    assert list(reference) == blocks
    assert blocks[-1] == backbone.num_blocks - 1 or (name, tap) == ("flux", "mlp")
    features = FeatureExtractor(backbone, blocks=blocks, timestep=260, tap=tap)(images, IDS)
    for block in blocks:
        expected = reference[block][:, -24:].transpose(1, 2).reshape(2, 32, 4, 6)
        assert relative_error(features[block], expected) <= 1e-6


def test_norms_differ_between_the_taps_of_dit(dit: nn.Module, images: Tensor) -> None:
    backbone = Backbone.from_model(dit)
    eps = [backbone(images, blocks=[0], timestep=1, tap=tap)[0].norm.eps for tap in ("attention", "mlp")]
    assert eps == [1e-6, 1e-5]


def test_weights_of_the_norm_are_folded_into_the_modulation(make_dit: object, images: Tensor) -> None:
    model = make_dit(norm_elementwise_affine=True)
    assert model.transformer_blocks[0].norm3.weight is not None
    extractor = FeatureExtractor(Backbone.from_model(model, noising="flow"), blocks=[0, 2], timestep=100)
    features = extractor(images, IDS)
    reference = sublayer_inputs(model, "mlp", lambda: run_by_hand(model, noisy_pixels(images, IDS, 100), 100))
    for block in (0, 2):
        expected = reference[block].transpose(1, 2).reshape(2, 32, 4, 6)
        assert relative_error(features[block], expected) <= 1e-6


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_moving_one_patch_moves_one_token(name: str, request: pytest.FixtureRequest) -> None:
    """At the first AdaLN no token has seen another one yet."""
    backbone = Backbone.from_model(request.getfixturevalue(name), noising="flow")
    first = torch.full((1, 3, 16, 24), 0.5)
    second = first.clone()
    second[:, :, 8:12, 20:24] = 1.0
    runs = [backbone(x, blocks=[0], timestep=100, tap="attention", image_ids=["same"])[0] for x in (first, second)]
    changed = (runs[0].hidden_states != runs[1].hidden_states).any(-1)[0].reshape(runs[0].grid)
    assert changed.nonzero().tolist() == [[2, 5]]


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_batch_and_order_do_not_matter(name: str, images: Tensor, request: pytest.FixtureRequest) -> None:
    backbone = Backbone.from_model(request.getfixturevalue(name), noising="flow", max_batch=3)
    options = {"blocks": [0, 1], "timestep": 500, "tap": "attention"}
    together = backbone(images.flip(0), image_ids=["b", "a"], **options)
    for row, image_id in ((1, "a"), (0, "b")):
        alone = backbone(images.flip(0)[row : row + 1], image_ids=[image_id], **options)
        for block in (0, 1):
            assert relative_error(together[block].hidden_states[row], alone[block].hidden_states[0]) <= 1e-5


@pytest.mark.parametrize("max_batch", [1, 2, 3, 4, 64])
def test_ensemble_is_the_mean_of_single_draws(dit: nn.Module, images: Tensor, max_batch: int) -> None:
    backbone = Backbone.from_model(dit, noising="flow", max_batch=max_batch)
    tapped = backbone(images, blocks=[1], timestep=400, image_ids=IDS, ensemble=3, conditions=[1, 4])[1]
    streams = []
    for draw in range(3):
        seen: list[Tensor] = []
        handle = dit.transformer_blocks[1].norm3.register_forward_pre_hook(
            lambda m, args, seen=seen: seen.append(args[0])
        )
        with torch.no_grad():
            run_by_hand(dit, noisy_pixels(images, IDS, 400, draw), 400, torch.tensor([1, 4]))
        handle.remove()
        streams.append(seen[0])
    assert relative_error(tapped.hidden_states, torch.stack(streams).mean(0)) <= 1e-6
    single = backbone(images, blocks=[1], timestep=400, image_ids=IDS, conditions=[1, 4])[1]
    assert torch.equal(single.hidden_states, streams[0]) or max_batch == 1
    for name in ("shift", "scale", "gate"):
        assert relative_error(getattr(tapped, name), getattr(single, name)) <= 1e-6  # noise does not enter them


def test_noise_depends_on_each_of_its_arguments(dit: nn.Module, images: Tensor) -> None:
    backbone = Backbone.from_model(dit, noising="flow")
    same = images[:1].repeat(2, 1, 1, 1)

    def stream(ids: list[str] | None = None, **options: int) -> Tensor:
        options = {"timestep": 300, "seed": 0, **options}
        return backbone(same, blocks=[0], image_ids=ids, **options)[0].hidden_states

    assert torch.equal(*stream(["x", "x"]))
    assert torch.equal(*stream())  # equal pixels, equal hash
    assert not torch.equal(*stream(["x", "y"]))
    assert not torch.equal(stream(["x", "x"]), stream(["x", "x"], seed=1))
    state = torch.random.get_rng_state()
    stream(["x", "x"])
    assert torch.equal(state, torch.random.get_rng_state())


def test_ddpm_noising_of_dit(make_dit: object, images: Tensor) -> None:
    model = make_dit()
    backbone = Backbone.from_model(model)
    tapped = backbone(images, blocks=[0], timestep=261, tap="attention", image_ids=IDS)[0]
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[261]
    eps = torch.stack([reference_noise(images.shape[1:], image_id, 0, 261) for image_id in IDS])
    noisy = kept.sqrt() * (2 * images - 1) + (1 - kept).sqrt() * eps
    assert relative_error(tapped.hidden_states, model.pos_embed(noisy).detach()) <= 1e-6
    other = Backbone.from_model(model, scheduler=DDPMScheduler(beta_end=0.04))
    assert (
        relative_error(other(images, blocks=[0], timestep=261, image_ids=IDS)[0].hidden_states, tapped.hidden_states)
        > 0.01
    )
    assert other.settings()["scheduler"]["beta_end"] == 0.04


def test_labels_condition_dit_and_none_is_the_null_class(dit: nn.Module, images: Tensor) -> None:
    backbone = Backbone.from_model(dit)

    def shift(conditions: object) -> Tensor:
        return backbone(images, blocks=[1], timestep=10, image_ids=IDS, conditions=conditions)[1].shift

    assert torch.equal(shift(None), shift(torch.tensor([5, 5])))
    assert torch.equal(shift([2, 2])[0], shift([2, 3])[0])
    assert not torch.allclose(shift([2, 2])[1], shift([2, 3])[1])


def test_flux_with_prompts(flux: nn.Module, images: Tensor) -> None:
    backbone = Backbone.from_model(flux)
    generator = torch.Generator().manual_seed(0)
    prompts = PromptEmbeddings(torch.randn(2, 7, 24, generator=generator), torch.randn(2, 20, generator=generator))

    def tapped(conditions: object) -> Tensor:
        return backbone(images, blocks=[3], timestep=260, tap="attention", image_ids=IDS, conditions=conditions)[3]

    both, first = tapped(prompts), tapped(prompts[torch.tensor([0])])
    assert relative_error(first.hidden_states[0], both.hidden_states[0]) <= 1e-5
    assert relative_error(first.hidden_states[1], both.hidden_states[1]) > 1e-3
    null = PromptEmbeddings(torch.zeros(1, 1, 24), torch.zeros(1, 20))
    assert torch.equal(tapped(None).shift, tapped(null).shift)
    assert backbone.settings()["null_condition"] == "zero embeddings"


def test_guidance_reaches_a_distilled_flux(make_flux: object, images: Tensor) -> None:
    model = make_flux(guidance_embeds=True)
    runs = {
        guidance: Backbone.from_model(model, guidance=guidance)(images, blocks=[0], timestep=260, image_ids=IDS)[0]
        for guidance in (3.5, 7.0)
    }
    assert not torch.allclose(runs[3.5].shift, runs[7.0].shift)
    assert torch.equal(
        Backbone.from_model(model)(images, blocks=[0], timestep=260, image_ids=IDS)[0].shift, runs[3.5].shift
    )
    assert Backbone.from_model(model).settings()["guidance"] == 3.5


def test_runs_the_very_model_frozen(dit: nn.Module, images: Tensor) -> None:
    backbone = Backbone.from_model(dit)
    assert backbone.transformer is dit
    assert all(a is b for a, b in zip(backbone.parameters(), dit.parameters(), strict=True))
    assert backbone.train().training is False
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    tapped = backbone(images, blocks=[0], timestep=1)[0]
    assert not tapped.hidden_states.requires_grad
    assert not tapped.hidden_states.is_inference()
    assert (tapped.hidden_states.shape[-1], backbone.stride) == (backbone.channels, images.shape[2] // tapped.grid[0])


def test_untrained_is_the_default_initialisation(dit: nn.Module, images: Tensor) -> None:
    backbone = Backbone.from_model(dit, noising="flow", name="x")
    state = torch.random.get_rng_state()
    control = backbone.untrained()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(0)
    expected = type(dit).from_config(dit.config)
    torch.random.set_rng_state(state)
    for name, tensor in control.transformer.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])
    assert control.noising == "flow"
    assert control.settings()["weights_sha256"] != backbone.settings()["weights_sha256"]
    assert control(images, blocks=[-1], timestep=5)[2].grid == (4, 6)


def test_half_precision_stream_stays_what_the_model_computed(make_dit: object, images: Tensor) -> None:
    model = make_dit().to(torch.bfloat16)
    tapped = Backbone.from_model(model)(images, blocks=[1], timestep=100)[1]
    assert tapped.hidden_states.dtype == torch.bfloat16
    features = FeatureExtractor(Backbone.from_model(model), blocks=[1], timestep=100)(images)
    assert features[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"blocks": [3]}, "blocks"),
        ({"blocks": [-4]}, "blocks"),
        ({"blocks": []}, "blocks"),
        ({"timestep": 1000}, "timestep"),  # the last DDPM step is 999
        ({"timestep": -1}, "timestep"),
        ({"timestep": 0.5}, "timestep"),
        ({"tap": "gate"}, "tap"),
        ({"ensemble": 0}, "ensemble"),
        ({"image_ids": ["a"]}, "image_ids"),
        ({"image_ids": "ab"}, "image_ids"),
        ({"conditions": [1]}, "conditions"),
        ({"conditions": [1, 6]}, "conditions"),
        ({"conditions": ["cat", "dog"]}, "conditions"),
        ({"conditions": torch.rand(2)}, "conditions"),
        ({"images": torch.rand(2, 3, 16, 22)}, "images"),
        ({"images": torch.rand(2, 1, 16, 16)}, "images"),
        ({"images": torch.rand(0, 3, 16, 16)}, "images"),
        ({"images": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)}, "images"),
        ({"images": torch.full((2, 3, 16, 16), 200.0)}, "images"),
        ({"images": torch.full((2, 3, 16, 16), float("nan"))}, "images"),
    ],
)
def test_bad_input_names_the_argument(dit: nn.Module, images: Tensor, change: dict, argument: str) -> None:
    arguments = {"images": images, "blocks": [0], "timestep": 10} | change
    with pytest.raises(InputError) as caught:
        Backbone.from_model(dit)(**arguments)
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)


def test_single_stream_blocks_refuse_the_second_tap_by_name(flux: nn.Module, images: Tensor) -> None:
    backbone = Backbone.from_model(flux)
    assert ["mlp" in backbone.taps(block) for block in (1, 2, -1)] == [True, False, False]
    with pytest.raises(InputError, match=r"block 2 \(single_transformer_blocks\[0\]\)"):
        backbone(images, blocks=[2], timestep=260, tap="mlp")


def test_prompts_of_the_wrong_shape(flux: nn.Module, images: Tensor) -> None:
    backbone = Backbone.from_model(flux)
    good, pooled = torch.zeros(2, 3, 24), torch.zeros(2, 20)
    for conditions in (
        PromptEmbeddings(torch.zeros(2, 3, 23), pooled),
        PromptEmbeddings(good),
        PromptEmbeddings(torch.zeros(3, 3, 24), torch.zeros(3, 20)),
        PromptEmbeddings(good, pooled, torch.ones(2, 3, dtype=torch.bool)),
        torch.tensor([1, 2]),
        ["a cat", "a dog"],
    ):
        with pytest.raises(InputError, match="conditions"):
            backbone(images, blocks=[0], timestep=260, conditions=conditions)


def test_models_that_cannot_be_wrapped(dit: nn.Module, flux: nn.Module, make_dit: object, make_vae: object) -> None:
    compiled = make_dit()
    compiled.transformer_blocks[1].compile()
    for transformer, options, word in (
        (nn.Linear(2, 2), {}, "transformer"),
        (torch.compile(dit), {}, "transformer"),
        (compiled, {}, "transformer"),
        (dit, {"vae": make_vae()}, "vae"),
        (flux, {"vae": make_vae()}, "vae"),
        (flux, {"class_embedding": nn.Embedding(4, 24)}, "class_embedding"),  # its pooled vectors have width 20
        (dit, {"class_embedding": nn.Embedding(4, 32)}, "class_embedding"),
        (dit, {"noising": "cosine"}, "noising"),
        (dit, {"posterior": "mean"}, "posterior"),
        (dit, {"max_batch": 0}, "max_batch"),
    ):
        with pytest.raises(InputError) as caught:
            Backbone.from_model(transformer, **options)
        assert caught.value.argument == word


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_an_image_matches_itself(name: str, request: pytest.FixtureRequest) -> None:
    """Integer keypoints, half a stride inside the border, come back exactly under one id."""
    backbone = Backbone.from_model(request.getfixturevalue(name), noising="flow")
    extractor = FeatureExtractor(backbone, blocks=[1], timestep=150, image_size=32)
    image = SyntheticPairs("train", num_pairs=1).image(SyntheticPairs("train", num_pairs=1).image_ids()[0])
    prepared = extractor.prepare(image)[None]
    source, target = (extractor(prepared, ["same"])[1][0] for _ in range(2))
    keypoints = torch.tensor([[x, y] for x in range(4, 60, 11) for y in range(4, 60, 11)], dtype=torch.float32)
    predictions, similarity = match_keypoints(source, target, keypoints, (64, 64), (64, 64))
    assert torch.equal(predictions, keypoints)
    assert float(similarity.min()) > 1 - 1e-5


@pytest.mark.parametrize("tap", ["query", "key"])
@pytest.mark.parametrize("block", [0, 3])
def test_queries_and_keys_of_flux_by_hand(tap: str, block: int, flux: nn.Module, images: Tensor) -> None:
    """Linear layer and RMS norm per head on what enters the attention, written out."""
    backbone = Backbone.from_model(flux, noising="flow")
    feature = FeatureExtractor(backbone, blocks=[block], timestep=260, tap="attention")(images, IDS)[block]
    blocks = [*flux.transformer_blocks, *flux.single_transformer_blocks]
    linear, norm = getattr(blocks[block].attn, f"to_{tap[0]}"), getattr(blocks[block].attn, f"norm_{tap[0]}")
    heads = (feature.flatten(2).mT @ linear.weight.T + linear.bias).reshape(2, 24, 2, 16)
    expected = (heads / (heads.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight).reshape(2, 24, 32)
    found = backbone(images, blocks=[block], timestep=260, tap=tap, image_ids=IDS)[block]
    assert relative_error(found.hidden_states, expected) <= 1e-5
    maps = FeatureExtractor(backbone, blocks=[block], timestep=260, tap=tap, modulation="none")(images, IDS)[block]
    assert torch.equal(maps, found.hidden_states.mT.reshape(2, 32, 4, 6))
    with pytest.raises(InputError, match="no AdaLN here, use none"):
        FeatureExtractor(backbone, blocks=[block], timestep=260, tap=tap)(images, IDS)
