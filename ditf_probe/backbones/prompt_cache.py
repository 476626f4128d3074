"""Embeddings of prompts in a folder, one safetensors file per prompt, and a readable manifest of their encoder."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.errors import InputError
from ditf_probe.files import replacing, write_text

MANIFEST = "manifest.json"


class PromptCache:
    """What one text side made of prompts. Files are written whole, so several processes may share the folder.

    A prompt is found by the SHA-256 of its text; the text itself stands in the metadata of its file.

    Args:
        folder: Folder of this encoder alone, as `encoder_folder` names it; created by the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, prompt: object) -> bool:
        return isinstance(prompt, str) and self._file(prompt).is_file()

    def __iter__(self) -> Iterator[str]:
        """The prompts that it holds, in no order."""
        for file in self.folder.glob("*.safetensors"):
            with safe_open(file, framework="pt") as opened:
                yield opened.metadata()["prompt"]

    def read(self, prompt: str) -> PromptEmbeddings:
        """The embeddings of a prompt, one row.

        Raises:
            InputError: It is not there, or its file is damaged.
        """
        file = self._file(prompt)
        try:
            return PromptEmbeddings(**load_file(file))
        except FileNotFoundError as error:
            raise InputError("conditions", prompt, f"is not in the prompt cache {self.folder}") from error
        except (OSError, SafetensorError, TypeError, InputError) as error:
            raise InputError("prompts", str(file), "is damaged, delete it to have its prompt encoded again") from error

    def write(self, prompt: str, embeddings: PromptEmbeddings) -> None:
        """Keeps the embeddings of a prompt, one row, in the dtype that they have."""
        parts = {part.name: getattr(embeddings, part.name) for part in fields(embeddings)}
        tensors = {name: value.cpu().contiguous() for name, value in parts.items() if value is not None}
        with replacing(self._file(prompt)) as temporary:
            save_file(tensors, temporary, metadata={"prompt": prompt})
            temporary.chmod(0o644)  # safetensors makes the file anew, for the owner alone

    def _file(self, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256(prompt.encode()).hexdigest()}.safetensors"


def encoder_folder(root: Path, encoder: Mapping[str, Any]) -> Path:
    """The folder of an encoder in a cache.

    Args:
        root: The cache.
        encoder: Everything that decides about its numbers: pipeline, arguments, dtype, and hashes of its files.
    """
    digest = hashlib.sha256(json.dumps(encoder, sort_keys=True).encode()).hexdigest()
    return root / f"{encoder['pipeline']}-{digest[:16]}"


def write_manifest(folder: Path, encoder: Mapping[str, Any], seen: Mapping[str, Any]) -> None:
    """Describes an encoder beside its embeddings.

    Args:
        folder: From `encoder_folder`.
        encoder: As there.
        seen: Where it was found: source, sizes and times of its files. Spares the hashing when it is there again.
    """
    write_text(folder / MANIFEST, json.dumps({"encoder": encoder, "seen": seen}, indent=2) + "\n")


def manifests(root: Path) -> dict[Path, dict[str, Any]]:
    """The encoders of a cache by folder; `root` may also be the folder of one encoder.

    Raises:
        InputError: A manifest is damaged.
    """
    found = {}
    for file in sorted({root / MANIFEST, *root.glob(f"*/{MANIFEST}")}):
        if not file.is_file():
            continue
        try:
            facts = json.loads(file.read_text())
            found[file.parent] = {"encoder": dict(facts["encoder"]), "seen": dict(facts["seen"])}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError("prompts", str(file), "is damaged, delete it to have it written again") from error
    return found
