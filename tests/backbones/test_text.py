"""Every entry against the source of its pipeline; real text encoders against calls of them by hand."""

import ast
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ditf_probe.backbones import text_sides
from ditf_probe.backbones.text import encode_prompt, load_text_pipeline
from ditf_probe.backbones.text_sides import TEXT_SIDES, TextSide, find_text_side
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.errors import InputError

CPU = torch.device("cpu")
ENTRIES = [(model, side) for model, sides in TEXT_SIDES.items() for side in sides]
NAMES = [side.pipeline for _, side in ENTRIES]
# Values that `encode_prompt` of the pipeline returns, for a part that has another name than "prompt_embeds".
RETURNED = {
    "embeds": {"prompt_embeds", "prompt_embeds_t5", "text_hiddens", "prompt_embeds.to(self.device)"},
    "pooled": {"pooled_prompt_embeds"},
    "mask": {"prompt_attention_mask", "prompt_embeds_mask"},
}
RETURNED |= {"second": RETURNED["embeds"], "second_mask": RETURNED["mask"]}


def encode(folder: Path, prompt: str, **arguments: Any) -> PromptEmbeddings:
    side = find_text_side(folder)
    pipeline = load_text_pipeline(folder, side, CPU, torch.float32)
    return encode_prompt(pipeline, side, prompt, side.all_arguments(arguments))


@pytest.mark.parametrize(("model", "side"), ENTRIES, ids=NAMES)
def test_parts_are_where_the_source_returns_them(model: str, side: TextSide) -> None:
    source = textwrap.dedent(inspect.getsource(getattr(diffusers, side.pipeline).encode_prompt))
    (returned,) = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return))
    values = returned.elts if isinstance(returned, ast.Tuple) else [returned]
    for part, index in side.parts.items():
        assert ast.unparse(values[index % len(values)]) in RETURNED[part]  # of several calls one after the other
    assert hasattr(diffusers, model)


@pytest.mark.parametrize("side", [side for _, side in ENTRIES], ids=NAMES)
def test_arguments_are_those_of_the_pipeline_itself(side: TextSide) -> None:
    """What `__call__` passes on keeps its default; the exceptions are meant."""
    pipeline = getattr(diffusers, side.pipeline)
    known, call = (inspect.signature(f).parameters for f in (pipeline.encode_prompt, pipeline.__call__))
    arguments = side.all_arguments({})
    needed = {name for name, parameter in known.items() if parameter.default is parameter.empty}
    assert needed - {"self", "prompt", "device", "kwargs"} <= arguments.keys() <= known.keys()
    for name, value in arguments.items():
        if name in call and name not in ("clean_caption", "guidance_scale"):
            assert value == call[name].default, name
    if "max_sequence_length" in known:
        assert all("max_sequence_length" in {**arguments, **further} for further in side.calls)


def test_flux_against_its_encoders_by_hand(text_folders: Any) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    found = encode(text_folders.flux, "a photo of a zebra")
    clip, t5 = (
        kind.from_pretrained(text_folders.flux / part)
        for kind, part in ((CLIPTextModel, "text_encoder"), (T5EncoderModel, "text_encoder_2"))
    )
    first, second = (
        kind.from_pretrained(text_folders.flux / part)
        for kind, part in ((CLIPTokenizer, "tokenizer"), (T5Tokenizer, "tokenizer_2"))
    )
    # "▁a ▁photo ▁of ▁a ▁ z e b r a </s>", then padding, and no mask
    ids = [3, 4, 5, 3, 10, 36, 15, 12, 28, 11, 1]
    assert second("a photo of a zebra").input_ids == ids
    with torch.no_grad():
        tokens = t5(torch.tensor([ids + [0] * (512 - len(ids))])).last_hidden_state
        letters = first("a photo of a zebra", padding="max_length", max_length=16, truncation=True)
        pooled = clip(torch.tensor([letters.input_ids])).pooler_output
    torch.testing.assert_close(found.embeds, tokens)
    torch.testing.assert_close(found.pooled, pooled)
    assert found.mask is None


def test_sd3_against_its_encoders_by_hand(text_folders: Any) -> None:
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

    found = encode(text_folders.sd3, "a cat", max_sequence_length=8)
    ids = torch.tensor([CLIPTokenizer.from_pretrained(text_folders.sd3 / "tokenizer")("a cat").input_ids])
    ids = torch.nn.functional.pad(ids, (0, 16 - ids.shape[1]), value=53)
    hidden, pooled = [], []
    with torch.no_grad():
        for part in ("text_encoder", "text_encoder_2"):
            output = CLIPTextModelWithProjection.from_pretrained(text_folders.sd3 / part)(
                ids, output_hidden_states=True
            )
            hidden.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        t5 = T5EncoderModel.from_pretrained(text_folders.sd3 / "text_encoder_3")
        tokens = t5(torch.tensor([[3, 6, 1, 0, 0, 0, 0, 0]])).last_hidden_state
    padded = torch.cat([*hidden, torch.zeros(1, 16, 4)], dim=-1)  # 8 + 12 channels, up to the 24 of T5
    torch.testing.assert_close(found.embeds, torch.cat([padded, tokens], dim=1))
    torch.testing.assert_close(found.pooled, torch.cat(pooled, dim=-1))


def t5_by_hand(folder: Path, ids: list[int], length: int, masked: bool = True) -> Tensor:
    from transformers import T5EncoderModel

    padded = torch.tensor([ids + [0] * (length - len(ids))])
    with torch.no_grad():
        encoder = T5EncoderModel.from_pretrained(folder / "text_encoder")
        found: Tensor = encoder(padded, attention_mask=(padded > 0).long() if masked else None).last_hidden_state
    return found


CAT = [3, 4, 5, 3, 6, 1]  # "a photo of a cat"


@pytest.mark.parametrize(
    ("pipeline", "model", "length", "kept"),
    [
        ("PixArtAlphaPipeline", "PixArtTransformer2DModel", 120, 6),
        ("PixArtSigmaPipeline", "PixArtTransformer2DModel", 300, 6),
        ("ChromaPipeline", "ChromaTransformer2DModel", 512, 7),  # the model keeps one token of padding
    ],
)
def test_masked_t5(text_folders: Any, pipeline: str, model: str, length: int, kept: int) -> None:
    folder = text_folders.with_t5(pipeline, model)
    found = encode(folder, "a photo of a cat")
    torch.testing.assert_close(found.embeds, t5_by_hand(folder, CAT, length))
    assert found.mask is not None
    assert found.mask.dtype == torch.bool
    assert found.mask[0].tolist() == [True] * kept + [False] * (length - kept)
    assert found.pooled is None


@pytest.mark.parametrize(
    ("pipeline", "model", "length", "masked"),
    [
        ("CogVideoXPipeline", "CogVideoXTransformer3DModel", 226, False),
        ("LTXPipeline", "LTXVideoTransformer3DModel", 128, True),  # the transformer alone masks the padding
    ],
)
def test_t5_that_sees_its_padding(text_folders: Any, pipeline: str, model: str, length: int, masked: bool) -> None:
    folder = text_folders.with_t5(pipeline, model)
    found = encode(folder, "a photo of a cat")
    torch.testing.assert_close(found.embeds, t5_by_hand(folder, CAT, length, masked=False))
    assert (found.mask is not None) == masked
    if found.mask is not None:
        assert found.mask[0].tolist() == [True] * 6 + [False] * (length - 6)


@pytest.mark.parametrize(
    ("pipeline", "model", "length"),
    [
        ("AuraFlowPipeline", "AuraFlowTransformer2DModel", 256),
        ("BriaPipeline", "BriaTransformer2DModel", 128),
        ("WanPipeline", "WanTransformer3DModel", 512),
    ],
)
def test_t5_with_zeroed_padding(text_folders: Any, pipeline: str, model: str, length: int) -> None:
    folder = text_folders.with_t5(pipeline, model)
    found = encode(folder, "a photo of a cat")
    torch.testing.assert_close(found.embeds[:, :6], t5_by_hand(folder, CAT, length)[:, :6])
    assert not found.embeds[:, 6:].any()
    assert (found.mask, found.embeds.shape) == (None, (1, length, 20))


def test_two_encoders(text_folders: Any) -> None:
    folder = text_folders.with_t5("HunyuanDiTPipeline", "HunyuanDiT2DModel", encoders=2)  # T5 in the place of BERT
    found = encode(folder, "a photo of a cat")
    torch.testing.assert_close(found.embeds, t5_by_hand(folder, CAT, 77))
    assert found.mask is not None
    assert found.mask[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert found.second is not None
    torch.testing.assert_close(found.second, t5_by_hand(folder, CAT, 256))
    assert found.second_mask is not None
    assert found.second_mask.dtype == torch.bool
    assert found.second_mask[0].tolist() == [True] * 6 + [False] * 250
    with pytest.raises(InputError, match="no argument"):
        encode(folder, "a cat", max_sequence_length=5)

    folder = text_folders.with_t5("HunyuanImagePipeline", "HunyuanImageTransformer2DModel", encoders=2)
    plain, quoted = (encode(folder, prompt) for prompt in ("a cat", 'a cat "red"'))
    assert plain.second is not None
    assert not plain.second.any()  # nothing is to be drawn
    assert quoted.second is not None
    assert quoted.second.shape == (1, 128, 20)
    assert 1 < int(quoted.second.any(-1).sum()) < 128
    assert plain.embeds.shape == (1, 1000, 20)


def test_fibo_against_its_language_model_by_hand(text_folders: Any) -> None:
    """The last two layers are the text tokens, and every layer goes along. An empty prompt is one special token."""
    from transformers import SmolLM3ForCausalLM

    model = SmolLM3ForCausalLM.from_pretrained(text_folders.fibo / "text_encoder")
    for prompt, ids in (("a photo of a cat", CAT), ("", [128000])):
        found = encode(text_folders.fibo, prompt)
        with torch.no_grad():
            layers = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert len(layers) == 4  # the embedding, and three layers
        torch.testing.assert_close(found.embeds, torch.cat([layers[-1], layers[-2]], dim=-1))
        assert found.second is not None
        torch.testing.assert_close(found.second, torch.cat(layers, dim=-1))
        assert found.mask is not None
        assert found.mask.tolist() == [[True] * len(ids)]


def test_hunyuan_video_against_its_encoders_by_hand(text_folders: Any) -> None:
    """The request before the prompt is 95 tokens for Llama; here it is more, and what lies behind the 95th counts."""
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
    from transformers import CLIPTextModel, LlamaModel, T5Tokenizer

    folder = text_folders.hunyuan_video
    found = encode(folder, "a cat")
    ids = T5Tokenizer.from_pretrained(folder / "tokenizer")(
        DEFAULT_PROMPT_TEMPLATE["template"].format("a cat")
    ).input_ids
    assert len(ids) > 95 + 256  # no padding
    ids = torch.tensor([[*ids[: 95 + 255], 1]])
    letters = torch.tensor([[52, 26, 2, 0, 45, 53, *[53] * 71]])  # <start> a</w> c a t</w> <end>, padded
    with torch.no_grad():
        layers = LlamaModel.from_pretrained(folder / "text_encoder")(ids, output_hidden_states=True).hidden_states
        pooled = CLIPTextModel.from_pretrained(folder / "text_encoder_2")(letters).pooler_output
    torch.testing.assert_close(found.embeds, layers[-3][:, 95:])
    torch.testing.assert_close(found.pooled, pooled)
    assert found.mask is not None
    assert found.mask.shape == (1, 256)
    assert found.mask.all()


def test_hidream_against_its_encoders_by_hand(text_folders: Any) -> None:
    """T5 tokens, both projections of CLIP side by side, and every layer of Llama but its embedding."""
    from transformers import CLIPTextModelWithProjection, LlamaForCausalLM, T5EncoderModel

    folder = text_folders.hidream
    found = encode(folder, "a cat")
    letters = torch.tensor([[52, 26, 2, 0, 45, 53, *[53] * 122]])  # <start> a</w> c a t</w> <end>, padded
    words = torch.tensor([[3, 6, 1, *[0] * 61]])  # the tokenizer here ends at 64 tokens
    with torch.no_grad():
        pooled = [
            CLIPTextModelWithProjection.from_pretrained(folder / part)(letters).text_embeds
            for part in ("text_encoder", "text_encoder_2")
        ]
        t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_3")(words, attention_mask=words.gt(0).long())
        llama = LlamaForCausalLM.from_pretrained(folder / "text_encoder_4")
        ended = words.clamp(min=1)  # the pipeline has Llama's prompts padded with their last token
        layers = llama(ended, attention_mask=words.gt(0).long(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(found.pooled, torch.cat(pooled, dim=-1))
    torch.testing.assert_close(found.embeds, t5.last_hidden_state)
    assert found.second is not None
    torch.testing.assert_close(found.second, torch.cat(layers[1:], dim=-1))
    assert (found.mask, found.second_mask) == (None, None)


def test_ovis_against_its_language_model_by_hand(text_folders: Any) -> None:
    """28 tokens of a request before the prompt are cut off; here it has more. Padding is zeroed."""
    from transformers import Qwen3Model, T5Tokenizer

    folder = text_folders.ovis
    found = encode(folder, "a cat")
    request = load_text_pipeline(folder, find_text_side(folder), CPU, torch.float32).system_prompt
    ids = T5Tokenizer.from_pretrained(folder / "tokenizer")(request + "a cat", add_special_tokens=False).input_ids
    padded = torch.tensor([ids + [0] * (284 - len(ids))])
    with torch.no_grad():
        hidden = Qwen3Model.from_pretrained(folder / "text_encoder")(padded, attention_mask=padded.gt(0).long())
    assert 28 < len(ids) < 284
    torch.testing.assert_close(found.embeds[:, : len(ids) - 28], hidden.last_hidden_state[:, 28 : len(ids)])
    assert not found.embeds[:, len(ids) - 28 :].any()
    assert (found.embeds.shape, found.mask) == ((1, 256, 16), None)


def test_krea2_against_its_language_model_by_hand(text_folders: Any) -> None:
    """Chosen layers side by side. 34 tokens before the prompt are cut off, and padding is before what closes it."""
    from transformers import Qwen3VLModel, T5Tokenizer

    folder = text_folders.krea2
    found = encode(folder, "a cat")
    pipeline = load_text_pipeline(folder, find_text_side(folder), CPU, torch.float32)
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    before = tokenizer(pipeline.prompt_template_encode_prefix + "a cat").input_ids
    after = tokenizer(pipeline.prompt_template_encode_suffix).input_ids
    ids = torch.tensor([before + [0] * (512 + 34 - 5 - len(before)) + after])
    mask = ids.gt(0)
    counted = (mask.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        layers = Qwen3VLModel.from_pretrained(folder / "text_encoder")(
            input_ids=ids, attention_mask=mask, position_ids=counted.expand(3, -1, -1), output_hidden_states=True
        ).hidden_states
    torch.testing.assert_close(found.embeds, torch.cat([layers[1], layers[2]], dim=-1)[:, 34:])
    assert found.mask is not None
    assert torch.equal(found.mask, mask[:, 34:])


def test_longcat_against_its_language_model_by_hand(text_folders: Any) -> None:
    """The pipeline puts the prompt into a request and cuts its tokens out of the answer, padding and all."""
    from transformers import Qwen2_5_VLForConditionalGeneration, T5Tokenizer

    folder = text_folders.longcat
    found = encode(folder, "a photo of a cat")
    pipeline = load_text_pipeline(folder, find_text_side(folder), CPU, torch.float32)
    tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer")
    before, after = (
        tokenizer(text, add_special_tokens=False).input_ids
        for text in (pipeline.prompt_template_encode_prefix, pipeline.prompt_template_encode_suffix)
    )
    prompt = CAT[:-1] + [0] * (512 - 5)
    mask = [1] * (len(before) + 5) + [0] * (512 - 5) + [1] * len(after)
    with torch.no_grad():
        hidden = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder")(
            input_ids=torch.tensor([before + prompt + after]),
            attention_mask=torch.tensor([mask]),
            output_hidden_states=True,
        ).hidden_states[-1]
    torch.testing.assert_close(found.embeds, hidden[:, len(before) : len(before) + 512])
    assert (found.embeds.shape, found.mask, found.second) == ((1, 512, 16), None, None)


def test_glm_reads_what_is_to_be_written(text_folders: Any) -> None:
    folder = text_folders.with_t5("GlmImagePipeline", "GlmImageTransformer2DModel")
    found, nothing = (encode(folder, prompt) for prompt in ('a photo "a cat"', "a photo"))
    torch.testing.assert_close(found.embeds, t5_by_hand(folder, [3, 6, 1], 3))
    torch.testing.assert_close(nothing.embeds, t5_by_hand(folder, [1], 1))
    assert found.mask is None


def test_stand_ins_leave_the_global_generator_alone(text_folders: Any) -> None:
    folder = text_folders.with_t5("BriaPipeline", "BriaTransformer2DModel")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pipeline = load_text_pipeline(folder, find_text_side(folder), CPU, torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    assert pipeline.transformer.dtype == torch.bfloat16
    assert sum(p.numel() for part in (pipeline.vae, pipeline.transformer) for p in part.parameters()) < 1_000_000


def test_layers_of_a_language_model_side_by_side() -> None:
    (side,) = TEXT_SIDES["HiDreamImageTransformer2DModel"]
    layers = torch.randn(3, 1, 4, 5)  # (layers, B, L, D)
    assert side.second is not None
    found = side.second([None, None, layers])
    assert torch.equal(found.unflatten(-1, (3, 5)).permute(2, 0, 1, 3), layers)


# Pipelines that take any encoder with hidden states run with T5 in its place: tokens, masked tokens, options.
STAND_INS = {
    "CogView3PlusPipeline": (224, None, {}),
    "CogView4Pipeline": (16, None, {}),
    "ErnieImagePipeline": (6, 6, {}),
    "Flux2KleinPipeline": (512, None, {"text_encoder_out_layers": (0, 1, 2)}),
    "Lumina2Pipeline": (256, 256, {"system_prompt": "a " * 300}),
    "LuminaPipeline": (8, 6, {}),
    "PRXPipeline": (64, 6, {}),
    "QwenImagePipeline": (34, 34, {"max_sequence_length": 34}),
    "SanaPipeline": (300, 6, {"complex_human_instruction": None}),
    "ZImagePipeline": (6, 6, {}),
}


@pytest.mark.parametrize("pipeline", STAND_INS)
def test_other_pipelines_run(text_folders: Any, pipeline: str) -> None:
    ((model, side),) = ((model, side) for model, side in ENTRIES if side.pipeline == pipeline)
    for package in side.needs:
        pytest.importorskip(package)
    length, kept, options = STAND_INS[pipeline]
    found = encode(text_folders.with_t5(pipeline, model), "a photo of a cat", **options)
    width = 60 if pipeline == "Flux2KleinPipeline" else 20  # three layers side by side
    assert found.embeds.shape == (1, length, width)
    assert (None if found.mask is None else int(found.mask.sum())) == kept


def test_unknown_pipelines_are_refused(tmp_path: Path) -> None:
    for index, word in (
        ({"_class_name": "PixArtOmegaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]}, "Sigma"),
        ({"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}, "FluxTransformer2D"),
        ([], "JSON"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=word):
            find_text_side(tmp_path)
    with pytest.raises(InputError, match="pipeline folder"):
        find_text_side(tmp_path / "missing")
    with pytest.raises(InputError, match=r"`max_length` is 3: is no argument of FluxPipeline.encode_prompt"):
        TEXT_SIDES["FluxTransformer2DModel"][0].all_arguments({"max_length": 3})


def test_damaged_encoders_are_one_line(text_folders: Any, tmp_path: Path) -> None:
    index = (text_folders.flux / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_text_pipeline(tmp_path, find_text_side(tmp_path), CPU, torch.float32)


def test_without_transformers_it_says_what_to_install(text_folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_sides.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ditf_probe\[text\]'"):
        encode(text_folders.flux, "a cat")


def test_a_missing_package_of_one_pipeline(text_folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = text_folders.with_t5("PRXPipeline", "PRXTransformer2DModel")
    find = text_sides.importlib.util.find_spec
    monkeypatch.setattr(text_sides.importlib.util, "find_spec", lambda name: None if name == "ftfy" else find(name))
    with pytest.raises(InputError, match="pip install ftfy"):
        encode(folder, "a cat")
