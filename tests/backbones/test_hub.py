"""What a download asks for, and one line for each way in which it fails."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from ditf_probe.backbones import hub
from ditf_probe.backbones.hub import download, download_configs, explaining
from ditf_probe.errors import InputError


def answer(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("first line\nsecond line", response=response)


def fails_with(error: Exception, monkeypatch: pytest.MonkeyPatch, fetch: Callable[[str], Path] = download) -> str:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(InputError) as caught:
        fetch("someone/something")
    message = str(caught.value)
    assert "someone/something" in message
    assert "\n" not in message
    assert "local folder with transformer/, vae/ and scheduler/" in message
    return message


@pytest.mark.parametrize("status", [401, 403])
def test_gated(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    message = fails_with(answer(errors.GatedRepoError, status), monkeypatch)
    for word in ("accept the licence", "HF_TOKEN", "hf auth login"):
        assert word in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answer(errors.RepositoryNotFoundError, 404), ("no such repository", "HF_TOKEN")),
        (answer(errors.RepositoryNotFoundError, 401), ("private", "hf auth login")),
        (answer(errors.RevisionNotFoundError, 404), ("revision",)),
        (answer(errors.HfHubHTTPError, 403), ("refused", "HF_TOKEN", "hf auth login")),
        (answer(errors.HfHubHTTPError, 401), ("refused", "HF_TOKEN", "hf auth login")),
        (answer(errors.HfHubHTTPError, 500), ("try again", "first line second line")),
        (errors.OfflineModeIsEnabled("offline"), ("HF_HUB_OFFLINE", "HF_HOME")),
        (errors.LocalEntryNotFoundError("nothing"), ("HF_HUB_OFFLINE", "cannot be reached")),
        (errors.HTTPError("no route"), ("try again", "no route")),  # of what huggingface_hub talks through
        (ConnectionResetError("reset"), ("try again", "reset")),
        (OSError(28, "No space left on device"), ("try again", "No space left")),
        (errors.HFValidationError("bad id"), ("bad id",)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures(error: Exception, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for fetch in (download, download_configs):
        message = fails_with(error, monkeypatch, fetch)
        assert all(word in message for word in words)


def test_an_error_of_ours_passes_as_it_is() -> None:
    with pytest.raises(InputError, match="`size` is 3: use 4"), explaining("someone/something"):
        raise InputError("size", 3, "use 4")
