"""What text each image of a comparison is given, and when it is encoded."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ditf_probe.backbones.fingerprint import file_sha256
from ditf_probe.backbones.prompts import PromptEncoder
from ditf_probe.data.pairs import ImageSource, PairDataset
from ditf_probe.errors import InputError
from ditf_probe.tasks.settings import BackboneFeatures

CATEGORY = "{category}"


def prompts_for(
    ids: Sequence[str], categories: Mapping[str, str], *, prompt: str | None, captions: Mapping[str, str] | None
) -> list[str] | None:
    """The prompt of each image.

    Args:
        ids: Image ids.
        categories: Image id to category; looked into only if `prompt` names `{category}`.
        prompt: Text for every image, `{category}` in it replaced; "" is the empty prompt.
        captions: Image id to text, in place of `prompt`.

    Returns:
        One text per id; None, the null condition, with neither `prompt` nor `captions`.

    Raises:
        InputError: Both are given, another placeholder, or an image without caption or category.
    """
    if captions is not None:
        if prompt is not None:
            raise InputError("prompt", prompt, "give a prompt or captions, not both")
        missing = [i for i in ids if i not in captions]
        if missing:
            named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise InputError("captions", named, "these images have no caption, add them to the file")
        return [captions[i] for i in ids]
    if prompt is None:
        return None
    unknown = [name for name in re.findall(r"\{\w*\}", prompt) if name != CATEGORY]
    if unknown:
        raise InputError("prompt", prompt, f"{unknown[0]} is no placeholder, use {CATEGORY}")
    if CATEGORY not in prompt:
        return [prompt] * len(ids)
    nameless = [i for i in ids if i not in categories]
    if nameless:
        raise InputError("prompt", prompt, f"the category of image {nameless[0]} is not known, leave {CATEGORY} out")
    return [prompt.replace(CATEGORY, categories[i]) for i in ids]


def image_categories(dataset: PairDataset) -> dict[str, str]:
    """The category of every image of a pair list.

    Raises:
        InputError: An image is in pairs of two categories.
    """
    found: dict[str, str] = {}
    for pair in (dataset[index] for index in range(len(dataset))):
        for side in (pair.source, pair.target):
            if found.setdefault(side.image_id, pair.category) != pair.category:
                both = f"{found[side.image_id]} and {pair.category}"
                raise InputError("prompt", CATEGORY, f"image {side.image_id} is in {both}, use captions instead")
    return found


def read_captions(path: str | Path) -> dict[str, str]:
    """Reads a caption file: a JSON object of image id to text.

    Raises:
        InputError: No such file, or other contents.
    """
    try:
        captions = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("captions", str(path), "is no readable JSON file") from error
    if not isinstance(captions, dict) or not all(isinstance(text, str) for text in captions.values()):
        raise InputError("captions", str(path), "give one JSON object, image id to text")
    return captions


def conditions_for(dataset: ImageSource, features: BackboneFeatures) -> Callable[[list[str]], list[str] | None] | None:
    """From image ids of a data set to their prompts, for `FeatureBank.fill`; None where no text is asked for.

    Raises:
        InputError: The captions cannot be read, an image is in two categories, or images have none.
    """
    if features.prompt is None and features.captions is None:
        return None
    captions = None if features.captions is None else read_captions(features.captions)
    categories = {}
    if CATEGORY in (features.prompt or ""):
        if not isinstance(dataset, PairDataset):
            raise InputError("prompt", features.prompt, f"images of {dataset.name} have no category, use other words")
        categories = image_categories(dataset)
    return lambda ids: prompts_for(ids, categories, prompt=features.prompt, captions=captions)


def encode_prompts(features: BackboneFeatures, datasets: Iterable[PairDataset], device: torch.device) -> int:
    """Encodes the prompts of all images of some data sets that are not in the cache, to be done before loading.

    Returns:
        How many were missing.

    Raises:
        InputError: As in `prompts_for` and `PromptEncoder.encode`.
    """
    encoder = _encoder(features, device)
    if encoder is None:
        return 0
    texts: list[str] = []
    for dataset in datasets:
        conditions = conditions_for(dataset, features)
        texts += (conditions and conditions(dataset.image_ids())) or []
    return encoder.encode(texts)


def encode_image_prompts(
    features: BackboneFeatures, ids: Sequence[str], categories: Mapping[str, str], device: torch.device
) -> int:
    """As `encode_prompts`, for single images and their categories."""
    encoder = _encoder(features, device)
    if encoder is None:
        return 0
    captions = None if features.captions is None else read_captions(features.captions)
    return encoder.encode(prompts_for(ids, categories, prompt=features.prompt, captions=captions) or [])


def loading_options(features: BackboneFeatures, device: torch.device) -> dict[str, Any]:
    """Further options of `load_backbone`: those of the settings, and the text side where text is asked for."""
    encoder = _encoder(features, device)
    return features.options | ({} if encoder is None else {"prompts": encoder})


def condition_settings(features: BackboneFeatures) -> dict[str, Any] | str:
    """What images are conditioned on, as plain JSON values."""
    if features.prompt is None and features.captions is None:
        return "null"
    captions = features.captions
    return {
        "prompt": features.prompt,
        "captions": captions,
        "captions_sha256": None if captions is None else file_sha256(Path(captions)),
    }


def condition_words(features: BackboneFeatures) -> dict[str, Any] | str:
    """What a store of features says of their conditions; the text of each image is part of its entry there."""
    if features.captions is not None:
        return "captions"
    return "null" if features.prompt is None else {"prompt": features.prompt}


def _encoder(features: BackboneFeatures, device: torch.device) -> PromptEncoder | None:
    if features.prompt is None and features.captions is None:
        return None
    return PromptEncoder(
        features.text_encoders or features.backbone,
        features.prompt_cache,
        device=device,
        dtype=features.dtype,
        **features.text_options,
    )
