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
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from ditf_probe.errors import InputError

_PARTS = ("transformer/", "unet/", "vae/", "scheduler/")
_CONFIGS = ["model_index.json", "config.json", *(f"{part}*config.json" for part in _PARTS)]
_INDICES = [f"{part}diffusion_pytorch_model*.json" for part in ("", *_PARTS)]
_WEIGHTS = [f"{part}diffusion_pytorch_model*" for part in ("", "transformer/", "unet/", "vae/")]
_LOCAL = "or give a local folder with transformer/, vae/ and scheduler/ of the repository"


def download(repository: str) -> Path:
    """Fetches the transformer, the autoencoder and the scheduler of a repository, or finds them in the cache.

    Offline flags (`HF_HUB_OFFLINE=1`) and the cache folder (`HF_HOME`) of huggingface_hub are honoured. Nothing that
    needs pickle is fetched unless the repository has no safetensors (only tensors are read of it then).

    Args:
        repository: "owner/name".

    Returns:
        The local folder.

    Raises:
        InputError: Not there, not allowed, or no network.
    """
    for suffix in (".safetensors", ".bin"):
        folder = _fetch(repository, [*_CONFIGS, *_INDICES, *(pattern + suffix for pattern in _WEIGHTS)])
        named = [folder / part for part in ("transformer", "unet", "vae") if (folder / part).is_dir()] or [folder]
        if all(any(file.suffix in (".safetensors", suffix) for file in part.iterdir()) for part in named):
            return folder
    raise InputError("backbone", repository, "the repository has no weights of a diffusers transformer")


def download_configs(repository: str) -> Path:
    """Fetches the configs of a repository and no weights, or finds them in the cache.

    Args:
        repository: "owner/name".

    Returns:
        The local folder.

    Raises:
        InputError: Not there, not allowed, or no network.
    """
    return _fetch(repository, _CONFIGS)


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
    except (InputError, SafetensorError, RuntimeError):  # what came of it does not fit: not the hub's fault
        raise
    except Exception as error:  # of huggingface_hub, of what it talks through, and of the disk
        raise InputError("backbone", repository, _remedy(repository, error)) from error


def _remedy(repository: str, error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return (
            f"accept the licence on the page of {repository} on the hub, "
            f"then set HF_TOKEN or run `hf auth login`, {_LOCAL}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"no such repository (or it is private: set HF_TOKEN or run `hf auth login`), check the name, {_LOCAL}"
    if isinstance(error, RevisionNotFoundError):
        return f"the repository does not have that revision, check it, {_LOCAL}"
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return (
            "it is not whole in the cache (HF_HOME), and the hub cannot be reached or HF_HUB_OFFLINE is set: "
            f"try with network, {_LOCAL}"
        )
    if isinstance(error, HfHubHTTPError) and _status(error) in (401, 403):
        return f"the hub refused it: set HF_TOKEN or run `hf auth login` with a token that may read it, {_LOCAL}"
    reason = " ".join(str(error).split())[:200]
    return f"could not be downloaded, try again, {_LOCAL} ({reason})"


def _status(error: HfHubHTTPError) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
