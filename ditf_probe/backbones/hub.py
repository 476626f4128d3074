"""Downloads what a backbone needs of a hub repository, and says in one line why it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ditf_probe.errors import InputError

_PARTS = ("transformer/", "unet/", "vae/", "scheduler/")
_DESCRIPTIONS = [
    "model_index.json",
    "config.json",
    "diffusion_pytorch_model*.json",
    *(f"{part}*.json" for part in _PARTS),
]
_WEIGHTS = [f"{part}diffusion_pytorch_model*" for part in ("", "transformer/", "unet/", "vae/")]


def download(repository: str) -> Path:
    """Fetches the transformer, the autoencoder and the scheduler of a repository, or finds them in the cache.

    Offline flags (`HF_HUB_OFFLINE=1`) and the cache folder (`HF_HOME`) of huggingface_hub are honoured. Nothing that
    needs pickle is fetched unless the repository has no safetensors (diffusers then reads tensors only).

    Args:
        repository: "owner/name".

    Returns:
        The local folder.

    Raises:
        InputError: Not there, not allowed, or no network.
    """
    for suffix in (".safetensors", ".bin"):
        folder = _fetch(repository, [*_DESCRIPTIONS, *(pattern + suffix for pattern in _WEIGHTS)])
        named = [folder / part for part in ("transformer", "unet", "vae") if (folder / part).is_dir()] or [folder]
        if all(any(file.suffix in (".safetensors", suffix) for file in part.iterdir()) for part in named):
            return folder
    raise InputError("backbone", repository, "the repository has no weights of a diffusers transformer")


def download_text(repository: str) -> Path:
    """Fetches the tokenizers and text encoders of a repository, or finds them in the cache, as `download` does.

    Args:
        repository: "owner/name" of a diffusers pipeline.

    Returns:
        The local folder; without text encoders where the repository has none as safetensors.

    Raises:
        InputError: Not there, not allowed, or no network.
    """
    text = [f"text_encoder*/*{suffix}" for suffix in (".json", ".safetensors")]
    return _fetch(repository, ["model_index.json", "tokenizer*/*", *text])


def _fetch(repository: str, patterns: list[str]) -> Path:
    options: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": ["*.fp16.*", "*.bf16.*", "*.non_ema.*"]}
    with explaining(repository):
        return Path(snapshot_download(repository, **options))


@contextmanager
def explaining(repository: str) -> Iterator[None]:
    """Says in one line why a download failed.

    Args:
        repository: What was asked for.

    Raises:
        InputError: Not there, not allowed, or no network.
    """
    try:
        yield
    except GatedRepoError as error:
        remedy = f"accept the licence of {repository} on the hub and set HF_TOKEN, or give a local folder"
        raise InputError("backbone", repository, remedy) from error
    except RepositoryNotFoundError as error:
        remedy = "no such repository (or it is private: set HF_TOKEN), check the name or give a local folder"
        raise InputError("backbone", repository, remedy) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        remedy = (
            "it is not in the cache (HF_HOME) and the hub cannot be reached or HF_HUB_OFFLINE is set: "
            "download it on a machine with network and give the local folder"
        )
        raise InputError("backbone", repository, remedy) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = f"could not be downloaded, try again or give a local folder ({reason})"
        raise InputError("backbone", repository, remedy) from error
