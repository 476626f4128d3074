"""A diffusers transformer as a backbone: encode, noise, run as far as needed, average over draws."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone, Tap, TappedBlock
from ditf_probe.backbones.checks import (
    check_blocks,
    check_embedding,
    check_ids,
    check_images,
    check_timestep,
    find_family,
)
from ditf_probe.backbones.families import ModelInputs, Noising
from ditf_probe.backbones.fingerprint import module_sha256, plain
from ditf_probe.backbones.latents import Encoded, LatentSpace, Posterior, ddpm_noising, flow_noising, image_hash, noise
from ditf_probe.backbones.prompts import PromptEncoder
from ditf_probe.backbones.strings import reads_text
from ditf_probe.backbones.taps import BlockTap, containers, find_block, recording, tap_block
from ditf_probe.conditions import PromptEmbeddings, class_labels, prompt_embeddings
from ditf_probe.errors import InputError, check_choice

Condition = Tensor | PromptEmbeddings


class DiffusionBackbone(Backbone):
    """Runs the very transformer that it is given, in eval mode and without gradients.

    Args:
        transformer: A diffusers model of a class in `FAMILIES`. Set to eval mode and frozen.
        vae: Its autoencoder (the AutoencoderKL kind), or None for a model of RGB pixels in [-1, 1].
        name: Short name for tables; the class name by default.
        scheduler: diffusers scheduler whose `add_noise` noises for "ddpm"; by default the one of DiT (linear betas
            from 0.0001 to 0.02 over 1000 steps). Flow noising needs none.
        noising: "flow" or "ddpm"; that of the family by default.
        class_embedding: Class labels to the text token and pooled vector of a model that takes prompts, the last
            label the null class. Without it such a model takes prompts.
        posterior: "mode" or "sample" of the autoencoder.
        prompts: Text side of a model that takes prompts, so that conditions can be strings.
        guidance: Guidance scale for models that embed it (FLUX.1-dev), unused otherwise.
        max_batch: Rows (image x draw) per pass of the transformer.
        weights_sha256: Hash of the weights if known, or how to compute it; otherwise of the tensors in memory.

    Raises:
        InputError: A class that no family describes, parts that do not fit each other, an unknown option value.
    """

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module | None = None,
        *,
        name: str | None = None,
        scheduler: Any = None,
        noising: Noising | None = None,
        class_embedding: nn.Embedding | None = None,
        prompts: PromptEncoder | None = None,
        posterior: Posterior = "mode",
        guidance: float = 3.5,
        max_batch: int = 16,
        weights_sha256: str | Callable[[], str] | None = None,
    ) -> None:
        super().__init__()
        self.family = find_family(transformer)
        self.transformer: Any = transformer
        self.latents = LatentSpace(vae, posterior)
        self.class_embedding = class_embedding
        if class_embedding is not None:
            check_embedding(class_embedding, self.family, self.transformer.config)
        if prompts is not None and self._takes_labels:
            raise InputError("prompts", type(prompts).__name__, "this model takes class labels, leave it out")
        self.prompts = prompts
        self.noising: Noising = noising or self.family.noising
        check_choice("noising", self.noising, Noising)
        if max_batch < 1:
            raise InputError("max_batch", max_batch, "use at least 1")
        self.scheduler = (scheduler or DDPMScheduler()) if self.noising == "ddpm" else None
        config: Any = transformer.config
        self.guidance = guidance if config.get("guidance_embeds") else None
        self.max_batch = max_batch
        self.name = name or type(transformer).__name__
        self.patch = self.family.patch(config, self.latents.channels)
        self.stride = self.patch * self.latents.stride
        self.channels = int(config.num_attention_heads * config.attention_head_dim)
        self.num_blocks = sum(len(blocks) for _, blocks in containers(transformer, self.family))
        if self.scheduler is not None:  # a schedule counts its noised steps from 0
            self.num_timesteps = self.scheduler.config.num_train_timesteps - 1
        self._weights_sha256 = weights_sha256
        self.requires_grad_(False).eval()

    def taps(self, block: int) -> tuple[Tap, ...]:
        """The taps that a block has."""
        (index,) = check_blocks([block], self.num_blocks)
        group, _, _ = find_block(self.transformer, self.family, index)
        return ("attention", "mlp") if group.mlp is not None else ("attention",)

    @reads_text
    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        *,
        blocks: Sequence[int],
        timestep: int,
        tap: Tap = "mlp",
        image_ids: Sequence[str] | None = None,
        conditions: Any = None,
        ensemble: int = 1,
        seed: int = 0,
    ) -> dict[int, TappedBlock]:
        """Runs the frozen model as far as the last requested block; see `Backbone.forward`."""
        check_images(images, self.stride)
        check_timestep(timestep, self.num_timesteps)
        if ensemble < 1:
            raise InputError("ensemble", ensemble, "use at least one noise draw")
        check_choice("tap", tap, Tap)
        taps = [tap_block(self.transformer, self.family, i, tap) for i in check_blocks(blocks, self.num_blocks)]
        ids = check_ids(image_ids, len(images)) if image_ids is not None else [image_hash(x) for x in images]
        condition = self._condition(conditions, len(images))
        grid = (images.shape[2] // self.stride, images.shape[3] // self.stride)
        parts = []
        for rows in _slices(len(images), max(1, self.max_batch // ensemble)):
            encoded = self.latents.encode(images[rows].to(self.device))
            chosen = torch.arange(rows.start, rows.stop, device=self.device)
            batch = _Batch(encoded, ids[rows], condition[chosen], timestep, seed)
            parts.append(self._ensemble(batch, taps, grid, ensemble))
        return {tapped.index: TappedBlock.join([part[tapped.index] for part in parts], torch.cat) for tapped in taps}

    def _condition(self, conditions: Any, count: int) -> Condition:
        config = self.transformer.config
        if self.family.condition == "class":
            return class_labels(conditions, count, config.num_embeds_ada_norm).to(self.device)
        if self.class_embedding is not None:
            null = self.class_embedding.num_embeddings - 1
            vectors = self.class_embedding(class_labels(conditions, count, null).to(self.device))
            vectors = vectors.to(self.transformer.dtype)
            return PromptEmbeddings(vectors[:, None], vectors)
        assert self.family.text_width is not None
        pooled = None if self.family.pooled_width is None else config[self.family.pooled_width]
        prompts = prompt_embeddings(conditions, count, config[self.family.text_width], pooled)
        return prompts.to(self.device, self.transformer.dtype)

    def _ensemble(
        self, batch: "_Batch", taps: Sequence[BlockTap], grid: tuple[int, int], ensemble: int
    ) -> dict[int, TappedBlock]:
        """Means over the draws of a batch of images; a single draw stays as the model computed it."""
        sums: dict[int, TappedBlock] = {}
        for draws in _slices(ensemble, self.max_batch):
            found = self._run(batch, range(draws.start, draws.stop), taps, grid)
            if ensemble == 1:
                return found
            for index, tapped in found.items():
                part = tapped.map(lambda x: x.float().reshape(len(batch), -1, *x.shape[1:]).sum(1))
                sums[index] = TappedBlock.join([sums[index], part], _sum) if index in sums else part
        return {index: tapped.map(lambda x: x / ensemble) for index, tapped in sums.items()}

    def _run(
        self, batch: "_Batch", draws: range, taps: Sequence[BlockTap], grid: tuple[int, int]
    ) -> dict[int, TappedBlock]:
        """One pass over all draws of all images, rows image by image."""
        noisy = torch.stack([self._noisy(batch, image, draw) for image in range(len(batch)) for draw in draws])
        rows = torch.arange(len(batch), device=self.device).repeat_interleave(len(draws))
        inputs = ModelInputs(
            latents=noisy.to(self.transformer.dtype),
            time=torch.full((len(noisy),), self.family.time(batch.timestep), device=self.device),
            condition=batch.condition[rows],
            grid=grid,
            patch=self.patch,
            guidance=self.guidance,
        )
        points = [point for tapped in taps for point in tapped.points()]
        with recording(points) as record:
            self.transformer(**self.family.call(inputs), return_dict=False)
        return {tapped.index: tapped.assemble(record, grid) for tapped in taps}

    def _noisy(self, batch: "_Batch", image: int, draw: int) -> Tensor:
        clean = batch.encoded.draw(image, seed=batch.seed, image_id=batch.ids[image], draw=draw)
        eps = noise(clean.shape, seed=batch.seed, image_id=batch.ids[image], draw=draw, timestep=batch.timestep)
        if self.scheduler is not None:
            return ddpm_noising(clean[None], eps[None].to(clean.device), batch.timestep, self.scheduler)[0]
        return flow_noising(clean, eps.to(clean.device), batch.timestep)

    def untrained(self, seed: int = 0) -> "DiffusionBackbone":
        """The same configuration with diffusers' default initialisation; the autoencoder is shared and stays trained.

        Args:
            seed: Seed of the initialisation; the global generator is left as it was.
        """
        embedding = self.class_embedding
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer = type(self.transformer).from_config(self.transformer.config)
            if embedding is not None:
                embedding = nn.Embedding(embedding.num_embeddings, embedding.embedding_dim).to(embedding.weight)
        return DiffusionBackbone(
            nn.Module.to(transformer, self.device, self.transformer.dtype),  # that of diffusers warns for nothing
            self.latents.vae,
            name=f"{self.name} untrained",
            scheduler=self.scheduler,
            noising=self.noising,
            class_embedding=embedding,
            prompts=self.prompts,
            posterior=self.latents.posterior,
            guidance=self.guidance or 0.0,
            max_batch=self.max_batch,
        )

    def settings(self) -> dict[str, Any]:
        """Everything that changes a number, as plain JSON values."""
        return {
            "name": self.name,
            "class": type(self.transformer).__name__,
            "config": plain(self.transformer.config),
            "weights_sha256": self.weights_sha256,
            "dtype": str(self.transformer.dtype).removeprefix("torch."),
            "vae": None if self.latents.vae is None else plain(self.latents.vae.config),
            "posterior": None if self.latents.vae is None else self.latents.posterior,
            "noising": self.noising,
            "scheduler": None if self.scheduler is None else plain(self.scheduler.config),
            "guidance": self.guidance,
            "stride": self.stride,
            "prompts": None if self.prompts is None else self.prompts.settings(),
            "null_condition": "null class" if self._takes_labels else "zero embeddings",
        }

    @property
    def _takes_labels(self) -> bool:
        return self.family.condition == "class" or self.class_embedding is not None

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file, or of the tensors in memory where there is no file."""
        given = self._weights_sha256
        if given is None:
            return module_sha256(self)
        return given if isinstance(given, str) else given()


@dataclass(frozen=True, slots=True)
class _Batch:
    """Images that are run together."""

    encoded: Encoded
    ids: list[str]
    condition: Condition
    timestep: int
    seed: int

    def __len__(self) -> int:
        return len(self.ids)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] + parts[1]


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
