"""Real diffusers models, tiny, every parameter random, so that no AdaLN is the identity by accident."""

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, FluxTransformer2DModel
from torch import nn

from ditf_probe.backbones import loading


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
        from transformers import LlamaModel

        encoder = randomise(LlamaModel(self.llama_config()))
        folder = self.with_encoder("HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel", encoder)
        return self.add_encoder(folder, 2, self.clip(20, positions=77), self.clip_tokenizer())

    @cached_property
    def hidream(self) -> Path:
        """HiDream: two CLIPs with pooled vectors of 9 and 11, T5 of width 24, a Llama of width 16 and four layers."""
        from transformers import LlamaForCausalLM

        folder = self.with_encoder("HiDreamImagePipeline", "HiDreamImageTransformer2DModel", self.clip(8, 9, 128))
        self.add_encoder(folder, 1, self.clip(8, 9, 128), self.clip_tokenizer())
        self.add_encoder(folder, 2, self.clip(12, 11, 128), self.clip_tokenizer())
        self.add_encoder(folder, 3, self.t5(24), self.t5_tokenizer())
        return self.add_encoder(folder, 4, randomise(LlamaForCausalLM(self.llama_config())), self.t5_tokenizer())

    @cached_property
    def ovis(self) -> Path:
        """Ovis: a Qwen3 of width 16 and two layers."""
        from transformers import Qwen3Config, Qwen3Model

        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = Qwen3Config(**shape, num_key_value_heads=1, head_dim=8, vocab_size=48)
        return self.with_encoder("OvisImagePipeline", "OvisImageTransformer2DModel", randomise(Qwen3Model(config)))

    @cached_property
    def krea2(self) -> Path:
        """Krea 2: a Qwen3-VL of width 16, of whose three hidden states the last two count."""
        from transformers import Qwen3VLConfig, Qwen3VLModel

        shape = {"hidden_size": 16, "intermediate_size": 16}
        text = shape | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
        text |= {"vocab_size": 48, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
        vision = shape | {"depth": 1, "num_heads": 2, "out_hidden_size": 16, "deepstack_visual_indexes": [0]}
        encoder = randomise(Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)))
        folder = self.with_encoder("Krea2Pipeline", "Krea2Transformer2DModel", encoder)
        self.change_index(folder, text_encoder_select_layers=[1, 2])
        return folder

    def llama_config(self) -> Any:
        """Of a Llama with four layers."""
        from transformers import LlamaConfig

        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
        return LlamaConfig(**shape, vocab_size=48, pad_token_id=0)

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
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
        self.change_index(folder, _class_name=pipeline, vae=["diffusers", "AutoencoderKL"])
        self.name_transformer(folder, transformer)
        return self.add_encoder(folder, 1, encoder, self.t5_tokenizer())

    def add_encoder(self, folder: Path, number: int, encoder: nn.Module, tokenizer: Any) -> Path:
        """Puts an encoder and its tokenizer into a pipeline; the first has no number in its name."""
        suffix = "" if number == 1 else f"_{number}"
        encoder.save_pretrained(folder / f"text_encoder{suffix}")
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        kinds = {f"text_encoder{suffix}": encoder, f"tokenizer{suffix}": tokenizer}
        self.change_index(folder, **{name: ["transformers", type(part).__name__] for name, part in kinds.items()})
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
        self.change_index(folder, transformer=["diffusers", transformer])

    def change_index(self, folder: Path, **entries: Any) -> None:
        """Sets entries of `model_index.json`."""
        file = folder / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """Nothing asks a model whether one of its weights is trained, which takes as long as a block of a tiny one."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def autoencoders_once() -> Iterator[None]:
    """Loads the autoencoder of a folder once for many transformers; half of the time of a tiny pipeline goes there."""
    load, loaded = loading.load_model, dict[Any, Any]()

    def load_once(folder: Path, *arguments: Any, **options: Any) -> Any:
        if folder.name != "vae":
            return load(folder, *arguments, **options)
        key = (folder, *arguments)
        if key not in loaded:
            loaded[key] = load(folder, *arguments, **options)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_model", load_once)
        yield
