"""A small pixel-space diffusion transformer with its class embedding, and the one file it is kept in."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ditf_probe.backbones.packing import pack_patches, position_ids, unpack_patches
from ditf_probe.backbones.skeletons import parameters_on_meta
from ditf_probe.backbones.spec import METADATA_KEY, MODEL_CLASSES, TinySpec, read_spec
from ditf_probe.errors import InputError
from ditf_probe.files import replacing

NUM_TIMESTEPS = 1000
SMALLEST_LEVEL = 0.05
"""Noise levels below count as this one where a predicted image becomes a velocity (Li and He 2025)."""


class TinyDenoiser(nn.Module):
    """A diffusers transformer that denoises RGB images given a timestep and a class.

    Built with diffusers' default initialisation, which is what an untrained control needs;
    a training run calls `zero_initialise` first.

    Args:
        spec: What to build.
    """

    def __init__(self, spec: TinySpec) -> None:
        super().__init__()
        self.spec = spec
        import diffusers  # slow to import

        self.transformer: Any = getattr(diffusers, MODEL_CLASSES[spec.architecture])(**spec.config)
        self.class_embedding: nn.Embedding | None = None
        if spec.architecture == "flux":
            self.class_embedding = nn.Embedding(spec.num_classes + 1, spec.width)
        self.train(self.training)

    @classmethod
    def untrained(cls, spec: TinySpec, seed: int = 0) -> Self:
        """The same configuration with diffusers' default initialisation, in eval mode.

        Args:
            spec: What to build.
            seed: Seed of the initialisation; the global generator is left as it was.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(spec).eval()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a weights file, in float32 and eval mode.

        Raises:
            InputError: No such file, or one that `save` did not write.
        """
        spec = read_spec(path)
        with torch.random.fork_rng(devices=[]):
            denoiser = cls(spec)
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        try:
            denoiser.load_state_dict(tensors)
        except RuntimeError as error:
            raise InputError("weights", str(path), f"use a file whose tensors fit its config ({error})") from error
        return denoiser.eval()

    @classmethod
    def outline(cls, path: str | Path) -> Self:
        """What `load` makes, without the weights: their shapes alone, on the device "meta".

        Raises:
            InputError: As `load`; tensors are not read.
        """
        with parameters_on_meta(), torch.random.fork_rng(devices=[]):
            return cls(read_spec(path)).eval()

    def save(self, path: str | Path, training: dict[str, Any] | None = None) -> None:
        """Writes the weights as bfloat16 safetensors with the spec as metadata, whole or not at all.

        Args:
            path: File to write; its folder is created.
            training: Facts about the training to keep in the file; the spec's own by default.
        """
        facts = asdict(self.spec) | ({} if training is None else {"training": training})
        tensors = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in self.state_dict().items()}
        metadata = {"format": "pt", METADATA_KEY: json.dumps(facts, allow_nan=False)}
        with replacing(Path(path)) as temporary:
            save_file(tensors, temporary, metadata=metadata)
            temporary.chmod(0o644)  # safetensors makes the file anew, for the owner alone

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; the class embedders of DiT stay in eval mode.

        In train mode each block of diffusers' DiT would drop the label by a draw of its own, so that
        no sample ever carries the null class in all blocks. Labels are dropped by the caller instead.
        """
        super().train(mode)
        for module in self.transformer.modules():
            if type(module).__name__ == "LabelEmbedding":
                module.eval()
        return self

    def zero_initialise(self) -> None:
        """Zeroes every modulation and the output (adaLN-zero, DiT section 3.2), which diffusers leaves random."""
        for name, module in self.transformer.named_modules():
            if isinstance(module, nn.Linear) and is_zero_initialised(name):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    @property
    def null_label(self) -> int:
        """The label that stands for no class."""
        return self.spec.num_classes

    def forward(self, noisy: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        """Predicts the velocity eps - x0 of whole images.

        Args:
            noisy: `(B, 3, H, W)` noised images, clean values in [-1, 1], sides multiples of the patch.
            timestep: `(B,)`, 0 (clean) to 1000.
            labels: `(B,)` int64 class labels, `null_label` for none.

        Returns:
            `(B, 3, H, W)`.
        """
        grid = (noisy.shape[2] // self.spec.patch, noisy.shape[3] // self.spec.patch)
        return unpack_patches(self.velocity_tokens(noisy, timestep, labels), grid, self.spec.patch)

    def velocity_tokens(self, noisy: Tensor, timestep: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Predicts the velocity of some tokens while the others are absent.

        Args:
            noisy: `(B, 3, H, W)` as in `forward`.
            timestep: `(B,)`, 0 to 1000.
            labels: `(B,)` int64.
            keep: `(K,)` indices of the tokens that the model sees, in row-major order; None keeps all.

        Returns:
            `(B, K, 3 * patch**2)`, packed as by `pack_patches`.
        """
        predict = self._dit_tokens if self.spec.architecture == "dit" else self._flux_tokens
        tokens = predict(noisy, timestep, labels, keep)
        if self.spec.prediction == "velocity":
            return tokens
        seen = pack_patches(noisy, self.spec.patch)
        level = (timestep / NUM_TIMESTEPS).clamp_min(SMALLEST_LEVEL)[:, None, None]
        return ((seen if keep is None else seen[:, keep]) - tokens) / level

    def _flux_tokens(self, noisy: Tensor, timestep: Tensor, labels: Tensor, keep: Tensor | None) -> Tensor:
        assert self.class_embedding is not None
        patch = self.spec.patch
        tokens = pack_patches(noisy, patch)
        ids = position_ids((noisy.shape[2] // patch, noisy.shape[3] // patch), noisy.device)
        if keep is not None:
            tokens, ids = tokens[:, keep], ids[keep]
        condition = self.class_embedding(labels)
        output: Tensor = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=condition[:, None],
            pooled_projections=condition,
            timestep=timestep / NUM_TIMESTEPS,
            img_ids=ids,
            txt_ids=ids.new_zeros(1, 3),
            return_dict=False,
        )[0]
        return output

    def _dit_tokens(self, noisy: Tensor, timestep: Tensor, labels: Tensor, keep: Tensor | None) -> Tensor:
        # The class itself neither drops tokens nor unpacks non-square images, so its parts are called one by one.
        model, patch = self.transformer, self.spec.patch
        hidden_states = model.pos_embed(noisy)
        if keep is not None:
            hidden_states = hidden_states[:, keep]
        for block in model.transformer_blocks:
            hidden_states = block(hidden_states, timestep=timestep, class_labels=labels)
        condition = model.transformer_blocks[0].norm1.emb(timestep, labels, hidden_dtype=hidden_states.dtype)
        shift, scale = model.proj_out_1(F.silu(condition)).chunk(2, dim=1)
        output: Tensor = model.proj_out_2(model.norm_out(hidden_states) * (1 + scale[:, None]) + shift[:, None])
        patches = output.reshape(*output.shape[:2], patch, patch, 3)  # DiT has channels last
        return patches.permute(0, 1, 4, 2, 3).flatten(2)


def is_zero_initialised(name: str) -> bool:
    """Whether adaLN-zero starts the linear layer of this name at zero."""
    layer = name.rsplit(".", 1)[-1]
    modulation = layer == "linear" and "norm" in name
    return modulation or layer in {"proj_out_1", "proj_out_2"} or name == "proj_out"
