"""Real diffusers models, tiny, every parameter random, so that no AdaLN is the identity by accident."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, FluxTransformer2DModel
from torch import nn


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def build_dit(in_channels: int = 3, patch_size: int = 4, **options: object) -> nn.Module:
    config = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "num_embeds_ada_norm": 5}
    shape = {"in_channels": in_channels, "out_channels": in_channels, "patch_size": patch_size, "sample_size": 16}
    return randomise(DiTTransformer2DModel(**config, **shape, **options))


def build_flux(in_channels: int = 48, guidance_embeds: bool = False) -> nn.Module:
    widths = {"joint_attention_dim": 24, "pooled_projection_dim": 20, "axes_dims_rope": [4, 6, 6]}
    blocks = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    return randomise(
        FluxTransformer2DModel(in_channels=in_channels, guidance_embeds=guidance_embeds, **widths, **blocks)
    )


def build_vae(**options: object) -> nn.Module:
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return randomise(AutoencoderKL(**kinds, block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4, **options))


@pytest.fixture(scope="session")
def dit() -> nn.Module:
    return build_dit()


@pytest.fixture(scope="session")
def flux() -> nn.Module:
    return build_flux()


@pytest.fixture(scope="session")
def make_dit() -> Callable[..., nn.Module]:
    return build_dit


@pytest.fixture(scope="session")
def make_flux() -> Callable[..., nn.Module]:
    return build_flux


@pytest.fixture(scope="session")
def make_vae() -> Callable[..., nn.Module]:
    return build_vae


@pytest.fixture
def images() -> torch.Tensor:
    """Two images that are not square."""
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def text_folders(tmp_path_factory: pytest.TempPathFactory) -> "TextFolders":
    """Whole tiny pipelines with text encoders and tokenizers, on disk."""
    return TextFolders(tmp_path_factory.mktemp("pipelines"))


class TextFolders:
    """Builds pipeline folders on first use; transformers is slow to import, so nothing else pays for it."""

    words = ("a", "photo", "of", "cat", "dog", "red", "car")
    letters = tuple("abcdefghijklmnopqrstuvwxyz")

    def __init__(self, root: Path) -> None:
        self.root = root

    def clip_tokenizer(self) -> Any:
        """Letters only, no merges; at most 16 tokens."""
        from transformers import CLIPTokenizer

        letters, special = self.letters, ("<|startoftext|>", "<|endoftext|>")
        pieces = [*letters, *(f"{letter}</w>" for letter in letters), *special]
        (self.root / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
        (self.root / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer(str(self.root / "vocab.json"), str(self.root / "merges.txt"), model_max_length=16)

    def t5_tokenizer(self) -> Any:
        """A few words, and letters for the rest."""
        from transformers import T5Tokenizer

        pieces = [(special, 0.0) for special in ("<pad>", "</s>", "<unk>")] + [
            (f"▁{word}", -1.0) for word in self.words
        ]
        pieces += [("▁", -4.0), *((letter, -6.0) for letter in self.letters)]
        return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64, chat_template="{{ messages[0].content }}")

    def clip(self, width: int, projection: int | None = None, positions: int = 16) -> nn.Module:
        """A CLIP text encoder with three layers; with a projection its pooled vector has that width."""
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        shape = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
        ids = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
        config = CLIPTextConfig(**shape, **ids, max_position_embeddings=positions, projection_dim=projection or width)
        return randomise((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), seed=width)

    def t5(self, width: int) -> nn.Module:
        """A T5 encoder with two layers."""
        from transformers import T5Config, T5EncoderModel

        shape = {"d_model": width, "vocab_size": 48, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
        return randomise(T5EncoderModel(T5Config(**shape)), seed=width)

    @cached_property
    def flux(self) -> Path:
        """FLUX: CLIP of width 20, T5 of width 24."""
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

        FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=build_vae(),
            text_encoder=self.clip(20),
            tokenizer=self.clip_tokenizer(),
            text_encoder_2=self.t5(24),
            tokenizer_2=self.t5_tokenizer(),
            transformer=build_flux(in_channels=16),
        ).save_pretrained(self.root / "tiny-flux")
        return self.root / "tiny-flux"

    @cached_property
    def sd3(self) -> Path:
        """SD3: two CLIPs of widths 8 and 12 with pooled vectors of 9 and 11, T5 of width 24; the text side alone."""
        from diffusers import StableDiffusion3Pipeline

        folder = self.root / "tiny-sd3"
        StableDiffusion3Pipeline(
            scheduler=None,
            vae=None,
            text_encoder=self.clip(8, 9),
            tokenizer=self.clip_tokenizer(),
            text_encoder_2=self.clip(12, 11),
            tokenizer_2=self.clip_tokenizer(),
            text_encoder_3=self.t5(24),
            tokenizer_3=self.t5_tokenizer(),
            transformer=None,
        ).save_pretrained(folder)
        self.name_transformer(folder, "SD3Transformer2DModel")
        return folder

    @cached_property
    def fibo(self) -> Path:
        """Bria FIBO: a SmolLM3 of three layers; its vocabulary holds the token that stands for an empty prompt."""
        from transformers import SmolLM3Config, SmolLM3ForCausalLM

        shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
        ids = {"vocab_size": 128001, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
        encoder = SmolLM3ForCausalLM(SmolLM3Config(**shape, **ids, num_key_value_heads=1, tie_word_embeddings=True))
        return self.with_encoder("BriaFiboPipeline", "BriaFiboTransformer2DModel", randomise(encoder))

    @cached_property
    def hunyuan_video(self) -> Path:
        """HunyuanVideo: a Llama of width 16 and four layers, CLIP of width 20."""
        from transformers import LlamaConfig, LlamaModel

        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
        encoder = randomise(LlamaModel(LlamaConfig(**shape, vocab_size=48, pad_token_id=0)))
        folder = self.with_encoder("HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel", encoder)
        self.clip(20, positions=77).save_pretrained(folder / "text_encoder_2")
        self.clip_tokenizer().save_pretrained(folder / "tokenizer_2")
        index = json.loads((folder / "model_index.json").read_text())
        index |= {"text_encoder_2": ["transformers", "CLIPTextModel"], "tokenizer_2": ["transformers", "CLIPTokenizer"]}
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    @cached_property
    def longcat(self) -> Path:
        """LongCat: a Qwen2.5-VL of width 16, two layers of language and one of vision."""
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        shape = {"intermediate_size": 16, "num_attention_heads": 2, "hidden_size": 16}
        text = shape | {"num_hidden_layers": 2, "num_key_value_heads": 1, "vocab_size": 48, "bos_token_id": 1}
        text |= {
            "eos_token_id": 1,
            "pad_token_id": 0,
            "rope_parameters": {"type": "default", "mrope_section": [1, 1, 2]},
        }
        vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 16}
        encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
        return self.with_encoder("LongCatImagePipeline", "LongCatImageTransformer2DModel", randomise(encoder))

    def with_encoder(self, pipeline: str, transformer: str, encoder: nn.Module) -> Path:
        """The text side alone of a pipeline with one encoder and the tokenizer of T5."""
        folder = self.root / pipeline
        encoder.save_pretrained(folder / "text_encoder")
        self.t5_tokenizer().save_pretrained(folder / "tokenizer")
        index = {
            "_class_name": pipeline,
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", type(encoder).__name__],
            "tokenizer": ["transformers", "T5Tokenizer"],
        }
        (folder / "model_index.json").write_text(json.dumps(index))
        self.name_transformer(folder, transformer)
        return folder

    def with_t5(self, pipeline: str, transformer: str, encoders: int = 1) -> Path:
        """The text side alone of a pipeline with one T5 of width 20, or two."""
        folder = self.root / pipeline
        if not folder.is_dir():
            index: dict[str, Any] = {"_class_name": pipeline, "vae": ["diffusers", "AutoencoderKL"]}
            for number in ("", "_2")[:encoders]:
                self.t5(20).save_pretrained(folder / f"text_encoder{number}")
                self.t5_tokenizer().save_pretrained(folder / f"tokenizer{number}")
                index[f"text_encoder{number}"] = ["transformers", "T5EncoderModel"]
                index[f"tokenizer{number}"] = ["transformers", "T5Tokenizer"]
            (folder / "model_index.json").write_text(json.dumps(index))
            self.name_transformer(folder, transformer)
        return folder

    def name_transformer(self, folder: Path, transformer: str) -> None:
        """Names the transformer of a pipeline in its index, as a whole folder would."""
        file = folder / "model_index.json"
        index = json.loads(file.read_text()) | {"transformer": ["diffusers", transformer]}
        file.write_text(json.dumps(index))
