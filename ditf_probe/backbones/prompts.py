"""The text side of a backbone: each distinct prompt is encoded once, kept in a cache, and looked up from then on."""

import gc
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ditf_probe.backbones.fingerprint import file_sha256
from ditf_probe.backbones.hub import download_text
from ditf_probe.backbones.prompt_cache import PromptCache, encoder_folder, manifests, write_manifest
from ditf_probe.backbones.text import encode_prompt, load_text_pipeline, text_files
from ditf_probe.backbones.text_sides import TextSide, find_text_side, installed
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.devices import resolve_device, resolve_dtype
from ditf_probe.errors import InputError
from ditf_probe.files import ensure_writable
from ditf_probe.progress import progress


class PromptEncoder:
    """The text side of a backbone: prompts to `PromptEmbeddings`, from a cache where it has them.

    The text encoders are loaded when a prompt is missing, used, and freed. Encode all prompts before the transformer is
    loaded, and both never share a memory; with every prompt in the cache the encoders need not even be there.

    Args:
        source: Pipeline folder with `model_index.json`, `text_encoder*/` and `tokenizer*/`, or a hub id, of which those
            parts are downloaded. None, or a folder without text encoders: what is in the cache, nothing else.
        cache_dir: Folder of the embeddings, for any number of encoders; or that of one encoder in it.
        device: Where to run the encoders, as in `load_backbone`.
        dtype: Their dtype, as in `load_backbone`.
        **arguments: Of the pipeline's `encode_prompt`, in place of its defaults; for example `max_sequence_length=256`,
            with which FLUX.1-schnell was trained.

    Raises:
        InputError: On first use: a source or a cache that cannot be used, an argument that does not exist.
    """

    def __init__(
        self,
        source: str | Path | None,
        cache_dir: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        **arguments: Any,
    ) -> None:
        self.source = None if source is None else str(source)
        self.cache_dir = Path(cache_dir).expanduser()
        self.device, self.dtype, self.arguments = device, dtype, arguments

    def encode(self, prompts: Iterable[str]) -> int:
        """Computes the prompts that are not in the cache.

        Args:
            prompts: Any number of texts; equal ones are computed once.

        Returns:
            How many were missing.

        Raises:
            InputError: Some are, and there are no text encoders.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.cache]
        if missing:
            try:
                self._encode(missing)
            finally:
                gc.collect()  # encoders hold cycles
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return len(missing)

    def __call__(self, prompts: Sequence[str]) -> list[PromptEmbeddings]:
        """The embeddings of prompts, one row each; those that are missing are computed now.

        Raises:
            InputError: As in `encode`, or a damaged cache.
        """
        self.encode(prompts)
        found = {prompt: self.cache.read(prompt) for prompt in dict.fromkeys(prompts)}
        return [found[prompt] for prompt in prompts]

    @property
    def cache(self) -> PromptCache:
        """The embeddings of this encoder."""
        return PromptCache(self._identity[0])

    def settings(self) -> dict[str, Any]:
        """What decides about the embeddings, as plain JSON values."""
        return dict(self._identity[1])

    def _encode(self, prompts: Sequence[str]) -> None:
        folder, cache = self._folder, self.cache
        if folder is None or not text_files(folder):
            where = self.source or "only a prompt cache"
            remedy = f"{prompts[0]!r} is not in {cache.folder}, give a folder with text encoders to have it encoded"
            raise InputError("prompts", where, remedy)
        ensure_writable(cache.folder, "cache_dir")
        side, device = find_text_side(folder), resolve_device(self.device)
        pipeline = load_text_pipeline(folder, side, device, resolve_dtype(self.dtype, device))
        arguments = side.all_arguments(self.arguments)
        with progress("prompts", len(prompts), "prompts") as advance:
            for prompt in prompts:
                cache.write(prompt, encode_prompt(pipeline, side, prompt, arguments))
                advance(1)

    @cached_property
    def _folder(self) -> Path | None:
        if self.source is None or (path := Path(self.source).expanduser()).is_dir():
            return None if self.source is None else path
        if self._is_hub_id:
            return download_text(self.source)
        raise InputError("prompts", self.source, "give a diffusers pipeline folder or a hub id owner/name")

    @property
    def _is_hub_id(self) -> bool:
        parts = (self.source or "").split("/")
        return len(parts) == 2 and all(parts) and parts[0][0] not in ".~" and not Path(self.source or "").is_dir()

    @cached_property
    def _identity(self) -> tuple[Path, dict[str, Any]]:
        """Folder of the embeddings, and the encoder that they are of."""
        known = manifests(self.cache_dir)
        here = {"source": self.source, "given": _plain(self.arguments)}
        if self._is_hub_id:  # no download for what is known
            dtype = _name(resolve_dtype(self.dtype, resolve_device(self.device)))
            for place, facts in known.items():
                if here.items() <= facts["seen"].items() and facts["encoder"]["dtype"] == dtype:
                    return place, facts["encoder"]
        folder = self._folder
        files = [] if folder is None else text_files(folder)
        fitting = self._fitting(known)
        if folder is None or not files or (fitting and not installed("transformers")):
            return self._only(fitting, folder)
        asked = self._asked(find_text_side(folder))
        seen = here | {"transformers": version("transformers"), "files": _stats(files, folder)}
        for place, facts in known.items():
            if facts["seen"] == seen and all(facts["encoder"].get(key) == value for key, value in asked.items()):
                return place, facts["encoder"]
        encoder = asked | {"files": {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}}
        place = encoder_folder(ensure_writable(self.cache_dir, "cache_dir"), encoder)
        write_manifest(place, encoder, seen)
        return place, encoder

    def _asked(self, side: TextSide) -> dict[str, Any]:
        """What decides about the embeddings, beside the files of the encoder."""
        dtype = resolve_dtype(self.dtype, resolve_device(self.device))
        arguments = _plain(side.all_arguments(self.arguments))
        return {"pipeline": side.pipeline, "arguments": arguments, "dtype": _name(dtype)}

    def _fitting(self, known: dict[Path, dict[str, Any]]) -> list[tuple[Path, dict[str, Any]]]:
        """The encoders of a cache that have the arguments and the dtype that were asked for."""
        given = _plain(self.arguments)
        dtype = None if self.dtype == "auto" else _name(resolve_dtype(self.dtype, torch.device("cpu")))
        return [
            (place, facts["encoder"])
            for place, facts in known.items()
            if all(facts["encoder"]["arguments"].get(name) == value for name, value in given.items())
            and dtype in (None, facts["encoder"]["dtype"])
        ]

    def _only(self, found: list[tuple[Path, dict[str, Any]]], folder: Path | None) -> tuple[Path, dict[str, Any]]:
        """The one encoder of a cache without the encoder itself; that of the pipeline, where the folder names one."""
        if folder is not None and (folder / "model_index.json").is_file():
            pipeline = find_text_side(folder).pipeline
            found = [one for one in found if one[1]["pipeline"] == pipeline]
        if not found:
            remedy = f"{self.cache_dir} has nothing of it either, give a pipeline folder with text encoders"
            raise InputError("prompts", self.source or "no folder of text encoders", remedy)
        if len(found) > 1:
            names = ", ".join(place.name for place, _ in found)
            raise InputError(
                "cache_dir", str(self.cache_dir), f"holds several encoders, name the folder of one: {names}"
            )
        return found[0]


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as JSON gives them back."""
    values: dict[str, Any] = json.loads(json.dumps(arguments))
    return values


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _stats(files: Sequence[Path], root: Path) -> dict[str, list[int]]:
    """Size and time of files, by path: what tells a file from another without reading it."""
    stats = {file.relative_to(root).as_posix(): file.stat() for file in files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
