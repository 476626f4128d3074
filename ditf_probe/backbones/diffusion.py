"""A diffusers transformer as a backbone: encode, noise, run as far as needed, average over draws."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone, ModulationCondition, Tap, TappedBlock, without_gradients
from ditf_probe.backbones.block_taps import BlockTap, StreamTap, group_taps, modulation_conditions, tap_block
from ditf_probe.backbones.checks import (
    check_blocks,
    check_condition,
    check_embedding,
    check_ids,
    check_images,
    check_timesteps,
    diffusers_class,
    find_family,
)
from ditf_probe.backbones.draws import Condition, Draws, NoisyBatch, only_timestep, run_draws
from ditf_probe.backbones.families import ModelInputs, Noising
from ditf_probe.backbones.fingerprint import initialised_facts, initialised_sha256, known_sha256, plain
from ditf_probe.backbones.latents import LatentSpace, Posterior, ddpm_noising, flow_noising, image_hash, noise_schedule
from ditf_probe.backbones.prompts import PromptEncoder
from ditf_probe.backbones.skeletons import is_outline, parameters_on_meta
from ditf_probe.backbones.strings import reads_text
from ditf_probe.backbones.taps import containers, find_block, gathered, recording
from ditf_probe.backbones.truncation import check_loaded, leave_out_alike
from ditf_probe.conditions import PromptEmbeddings, class_labels, prompt_embeddings
from ditf_probe.errors import InputError, check_choice


class DiffusionBackbone(Backbone):
    """Runs the very transformer that it is given, in eval mode and without gradients.

    Args:
        transformer: A diffusers model of a class in `FAMILIES`. Set to eval mode and frozen.
        vae: Its autoencoder, of a class in `AUTOENCODERS`, or None for a model of RGB pixels in [-1, 1].
        name: Short name for tables; the class name by default.
        scheduler: diffusers scheduler whose `add_noise` noises for "ddpm"; by default that of the family.
            Flow noising needs none.
        noising: "flow" or "ddpm"; that of the family by default.
        class_embedding: Class labels to the text token and pooled vector of a model that takes prompts, the last
            label the null class. Without it such a model takes prompts.
        posterior: "mode" or "sample" of the autoencoder.
        prompts: Text side of a model that takes prompts, so that conditions can be strings.
        guidance: Guidance scale for models that embed it (FLUX.1-dev), unused otherwise.
        max_batch: Rows (image x draw) per pass of the transformer.
        weights_sha256: Hash of the weights if known, or how to compute it; otherwise of the tensors in memory.
        quantization: How the weights are quantised, for `settings`.
        compute_device: Where an offloaded transformer computes; None for one whose weights stay where they are.

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
        quantization: str | None = None,
        compute_device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.family = find_family(transformer)
        self.transformer: Any = transformer
        self.latents = LatentSpace(vae, posterior, scaled=self.family.scaled)
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
        self.scheduler = (scheduler or noise_schedule(self.family.schedule)) if self.noising == "ddpm" else None
        config: Any = transformer.config
        self.guidance = guidance if config.get("guidance_embeds") else None
        self.max_batch = max_batch
        self.name = name or diffusers_class(transformer).__name__
        self.patch = self.family.patch(config, self.latents.channels)
        self.stride = self.patch * self.latents.stride
        self.channels = self.family.width(config)
        self.num_blocks = sum(len(blocks) for _, blocks in containers(transformer, self.family))
        if self.scheduler is not None:  # a schedule counts its noised steps from 0
            self.num_timesteps = self.scheduler.config.num_train_timesteps - 1
        self.modulation_conditions = modulation_conditions(self.family)
        self._weights_sha256 = weights_sha256
        self.quantization = quantization
        self._compute_device = compute_device
        self.requires_grad_(False).eval()

    def taps(self, block: int) -> tuple[Tap, ...]:
        """The taps that a block has."""
        (index,) = check_blocks([block], self.num_blocks)
        group, _, _ = find_block(self.transformer, self.family, index)
        return group_taps(group)

    @reads_text
    @without_gradients
    def forward(
        self,
        images: Tensor,
        *,
        blocks: Sequence[int],
        timestep: int | Sequence[int],
        tap: Tap = "mlp",
        image_ids: Sequence[str] | None = None,
        conditions: Any = None,
        ensemble: int = 1,
        seed: int = 0,
        modulation_condition: ModulationCondition = "t+c",
    ) -> dict[int, TappedBlock]:
        """Runs the frozen model as far as the last requested block; see `Backbone.forward`.

        Args:
            images: As in `Backbone.forward`, as are the other arguments but the last.
            blocks: Block indices.
            timestep: One noise level, or several, which run as one batch.
            tap: Where to read.
            image_ids: Seeds of the noise.
            conditions: Class labels or prompts.
            ensemble: Number of noise draws.
            seed: Seed of the noise.
            modulation_condition: What shift, scale and gate of the tapped blocks are computed from: timestep and
                condition, or one of them. The pass itself always has both.
        """
        check_images(images, self.stride)
        timesteps = check_timesteps(timestep, self.num_timesteps)
        if ensemble < 1:
            raise InputError("ensemble", ensemble, "use at least one noise draw")
        check_choice("tap", tap, Tap)
        check_condition(modulation_condition, self.modulation_conditions, self.name)
        chosen = check_blocks(blocks, self.num_blocks)
        check_loaded(self.transformer, self.family, chosen, tap)
        taps = [tap_block(self.transformer, self.family, index, tap, modulation_condition) for index in chosen]
        ids = check_ids(image_ids, len(images)) if image_ids is not None else [image_hash(x) for x in images]
        condition = self._condition(conditions, len(images))
        noising = partial(ddpm_noising, scheduler=self.scheduler) if self.scheduler is not None else flow_noising
        draws = Draws(timesteps, ensemble, seed, noising, self.max_batch)
        found = run_draws(images.to(self.device), ids, condition, self.latents, draws, partial(self._run, taps))
        return only_timestep(found) if isinstance(timestep, int) else found

    def _condition(self, conditions: Any, count: int) -> Condition:
        config = self.transformer.config
        if self.family.text is None:
            return class_labels(conditions, count, config.num_embeds_ada_norm).to(self.device)
        if self.class_embedding is not None:
            null = self.class_embedding.num_embeddings - 1
            vectors = self.class_embedding(class_labels(conditions, count, null).to(self.device))
            vectors = vectors.to(self.transformer.dtype)
            return PromptEmbeddings(vectors[:, None], vectors)
        prompts = prompt_embeddings(conditions, count, self.family.text(config))
        return prompts.to(self.device, self.transformer.dtype)

    def _run(self, taps: Sequence[BlockTap], batch: NoisyBatch, draws: range) -> dict[int, TappedBlock]:
        """One pass over all timesteps and draws of all images, in the order of `NoisyBatch.rows`."""
        rows = batch.rows(draws)
        noisy = torch.stack([batch.noisy(*row) for row in rows])
        grid = (noisy.shape[2] // self.patch, noisy.shape[3] // self.patch)
        images = torch.tensor([image for image, _, _ in rows], device=self.device)
        times = [self.family.time(timestep) for _, timestep, _ in rows]
        inputs = ModelInputs(
            latents=noisy.to(self.transformer.dtype),
            time=torch.tensor(times, device=self.device),
            condition=batch.condition[images],
            grid=grid,
            patch=self.patch,
            guidance=self.guidance,
            size=(grid[0] * self.stride, grid[1] * self.stride),
            config=self.transformer.config,
        )
        points = [point for tapped in taps for point in tapped.points()]
        with recording(points) as record:
            self.transformer(**self.family.call(inputs), return_dict=False)
        needed = [tapped.block for tapped in taps if isinstance(tapped, StreamTap) and tapped.reads_weights]
        with gathered(self.transformer, needed):
            return {tapped.index: tapped.assemble(record, grid, inputs.text_lengths) for tapped in taps}

    def untrained(self, seed: int = 0) -> "DiffusionBackbone":
        """The same configuration with diffusers' default initialisation; the autoencoder is shared and stays trained.

        Args:
            seed: Seed of the initialisation; the global generator is left as it was.
        """
        embedding = self.class_embedding
        weightless = parameters_on_meta() if is_outline(self.transformer) else nullcontext()
        with weightless, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer = diffusers_class(self.transformer).from_config(self.transformer.config)
            for path, weight in transformer.named_parameters():
                if path.rpartition(".")[2] in self.family.uninitialised:
                    bound = weight.shape[-2] ** -0.5
                    nn.init.uniform_(weight, -bound, bound)
            leave_out_alike(transformer, self.transformer)
            if embedding is not None:
                embedding = nn.Embedding(embedding.num_embeddings, embedding.embedding_dim).to(embedding.weight)
        labels = None if embedding is None else embedding.num_embeddings
        facts = initialised_facts(type(transformer).__name__, transformer.config, seed, labels)
        options = self.options() | {"name": f"{self.name} untrained", "class_embedding": embedding}
        options["weights_sha256"] = partial(initialised_sha256, facts, self.latents)
        transformer = nn.Module.to(transformer, self.device, self.transformer.dtype)  # diffusers' own warns for nothing
        return DiffusionBackbone(transformer, **options)

    def options(self) -> dict[str, Any]:
        """The arguments beside the transformer that build the same backbone around another one of its class."""
        return {
            "vae": self.latents.vae,
            "name": self.name,
            "scheduler": self.scheduler,
            "noising": self.noising,
            "class_embedding": self.class_embedding,
            "prompts": self.prompts,
            "posterior": self.latents.posterior,
            "guidance": self.guidance or 0.0,
            "max_batch": self.max_batch,
            "weights_sha256": lambda: self.weights_sha256,
        }

    def settings(self) -> dict[str, Any]:
        """Everything that changes a number, as plain JSON values."""
        return {
            "name": self.name,
            "class": diffusers_class(self.transformer).__name__,
            "config": plain(self.transformer.config),
            "weights_sha256": self.weights_sha256,
            "dtype": str(self.transformer.dtype).removeprefix("torch."),
            **({} if self.quantization is None else {"quantization": self.quantization}),
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
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._compute_device or super().device

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # An offloaded model moves its weights itself; `to` would bring all of them at once.
        if self._compute_device is not None:
            return self
        moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return moved

    @property
    def offloaded(self) -> bool:
        """Whether weights rest elsewhere than where they compute."""
        return self._compute_device is not None

    @property
    def _takes_labels(self) -> bool:
        return self.family.text is None or self.class_embedding is not None

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file, of what an untrained model is made of, or else of the tensors in memory."""
        return known_sha256(self._weights_sha256, self)
